"""Night after night with --resume: what alarms, what is tried again, and what the counts say."""

import collections
import csv
import json
import shutil

import pytest

from hyperfusion_rt.errors import MissingExtraError, ScanError
from hyperfusion_rt.runtime import case_input as module
from hyperfusion_rt.runtime.cohort.journal import read_journal

COMMAND = ("infer", "scans", "--tabular", "data.csv", "--engine", "native")
COMMAND = (*COMMAND, "--unmatched-rows", "ignore")
NIGHT = (*COMMAND, "--resume")


def spoil(cohort, name, content=b"damaged"):
    path = cohort / "scans" / f"{name}.nii.gz"
    path.unlink()
    path.write_bytes(content)


def table(cohort, name="predictions.csv"):
    with open(cohort / name, newline="") as file:
        return {row["subject"]: row for row in csv.DictReader(file)}


def record(cohort, name="predictions.csv"):
    return json.loads((cohort / f"{name}.run.json").read_text())


def named(err):
    """What the lines on standard error begin with."""
    return {line.split(":")[0] for line in err.splitlines()}


def tried(cohort):
    """Subjects, once for each time that they were tried, of the last run."""
    lines = (cohort / "predictions.csv.journal").read_text().splitlines()
    last = [n for n, line in enumerate(lines) if line.startswith('{"start"')][-1]
    found = [json.loads(line) for line in lines[last:]]
    return sorted(line["case"]["subject"] for line in found if "case" in line)


def counted(cohort, name="predictions.csv"):
    """The counts of the record, which table, journal and report have, too."""
    counts = record(cohort, name)["counts"]
    with open(cohort / name, newline="") as file:
        rows = collections.Counter(row["status"] for row in csv.DictReader(file))
    assert counts["error"] == rows["error"] == counts["new"] + counts["known"]
    assert counts["not_tried"] == rows["not-tried"]
    assert (counts["ok"], counts["skipped"]) == (rows["ok"], rows["skipped"])
    if (cohort / f"{name}.journal").exists():
        assert read_journal(cohort / f"{name}.journal").end["counts"] == counts
    page = (cohort / name).with_suffix(".html").read_text()
    for count, caption in (
        ("ok", "predicted"), ("error", "failed"), ("known", "of them before, and unchanged"),
        ("not_tried", "not tried"), ("skipped", "skipped"),
    ):  # fmt: skip
        number = [text for text in page.split("<") if text.endswith(f">{counts[count]}")]
        assert not counts[count] or (number and f">{caption}<" in page), caption
    return counts


def test_only_what_is_new_alarms(cohort, hfrt):
    spoil(cohort, "S5-0001")
    spoil(cohort, "S5-0002", (cohort / "scans" / "S5-0003.nii.gz").read_bytes()[:1000])
    (cohort / "scans" / "S5-0004.nii.gz").rename(cohort / "scans" / "NOBODY.nii.gz")
    status, out, err = hfrt(cohort, *NIGHT)
    assert status == 3
    assert named(err) >= {"S5-0001", "S5-0002", "NOBODY"}
    assert "failed before" not in out
    counts = {"ok": 5, "error": 3, "new": 3, "known": 0, "not_tried": 0, "skipped": 0}
    assert counted(cohort) == counts
    first = table(cohort)

    for _ in range(2):  # the third night knows what the second has not tried
        status, out, err = hfrt(cohort, *NIGHT)
        assert (status, err) == (0, "")
        assert "5 were done before" in out
        known = "3 failed before and have not changed (--retry-failed tries them again)"
        assert out.count(known) == 1
        assert "in the table: 5 predicted, 3 failed (0 new), 0 skipped" in out
        assert tried(cohort) == []
        assert table(cohort) == first
        assert counted(cohort) == {**counts, "new": 0, "known": 3}
        assert record(cohort)["taken_over"] == 5

    status, out, err = hfrt(cohort, *NIGHT, "--retry-failed")
    assert status == 3
    assert named(err) == {"S5-0001", "S5-0002", "NOBODY"}
    assert "failed before" not in out
    assert tried(cohort) == ["S5-0001", "S5-0002"]
    assert counted(cohort) == counts

    spoil(cohort, "S5-0003")
    status, out, err = hfrt(cohort, *NIGHT)
    assert status == 3
    assert [line.split(":")[0] for line in err.splitlines()] == ["S5-0003"]
    assert "in the table: 4 predicted, 4 failed (1 new), 0 skipped" in out
    assert tried(cohort) == ["S5-0003"]
    assert counted(cohort) == {**counts, "ok": 4, "error": 4, "new": 1, "known": 3}


def test_json_says_what_is_new_and_what_is_known(cohort, hfrt):
    spoil(cohort, "S5-0001")
    assert hfrt(cohort, *NIGHT)[0] == 3
    spoil(cohort, "S5-0002")
    status, out, err = hfrt(cohort, *NIGHT, "--json")
    assert (status, err) == (3, "")
    content = json.loads(out)
    assert {name: content["summary"][name] for name in ("error", "new", "known")} == {
        "error": 2, "new": 1, "known": 1,
    }  # fmt: skip
    assert content["taken_over"] == 6
    failed = {row["subject"]: row["known"] for row in content["predictions"] if row["code"]}
    assert failed == {"S5-0001": True, "S5-0002": False}
    assert content["artifact"]["checksum"] == record(cohort)["artifact"]["checksum"]


def test_what_changed_is_tried_again(cohort, hfrt):
    """A new content, a new row; and a row that has only moved is the same."""
    for name in ("S5-0001", "S5-0002"):
        spoil(cohort, name)
    text = (cohort / "data.csv").read_text().splitlines()
    age = text[0].split(",").index("AGE")

    def with_age(line, value):
        cells = line.split(",")
        cells[age] = value
        return ",".join(cells)

    at = next(n for n, line in enumerate(text) if line.startswith("S5-0003,"))
    text[at] = with_age(text[at], "old")
    (cohort / "data.csv").write_text("\n".join(text) + "\n")
    assert hfrt(cohort, *NIGHT)[0] == 3
    assert f"line {at + 1}, column 'AGE'" in table(cohort)["S5-0003"]["reason"]

    text.insert(1, text.pop(at))  # the row moves to the top
    (cohort / "data.csv").write_text("\n".join(text) + "\n")
    assert hfrt(cohort, *NIGHT)[0] == 0
    assert tried(cohort) == []
    assert "line 2, column 'AGE'" in table(cohort)["S5-0003"]["reason"]

    text[1] = with_age(text[1], "71")
    text[2:] = [with_age(t, "72") if t.startswith("S5-0001,") else t for t in text[2:]]
    (cohort / "data.csv").write_text("\n".join(text) + "\n")
    spoil(cohort, "S5-0002", b"damaged otherwise")
    status, _, err = hfrt(cohort, *NIGHT)
    assert status == 3
    assert tried(cohort) == ["S5-0001", "S5-0002", "S5-0003"]
    assert named(err) >= {"S5-0001", "S5-0002"}
    assert table(cohort)["S5-0003"]["status"] == "ok"


def test_rows_twice_and_scans_twice_alarm_once(cohort, hfrt):
    text = (cohort / "data.csv").read_text().splitlines()
    twice = next(line for line in text if line.startswith("S5-0001,"))
    (cohort / "data.csv").write_text("\n".join([*text, twice]) + "\n")
    scan = cohort / "scans" / "S5-0002.nii.gz"
    shutil.copy(scan, scan.with_name("S5-0002_T1w.nii.gz"))
    assert hfrt(cohort, *NIGHT)[0] == 3
    codes = collections.Counter(
        row.code for row in read_journal(cohort / "predictions.csv.journal").problems
    )
    assert codes["table-duplicate-row"] == 2
    assert codes["scan-ambiguous"] == 2
    status, _, err = hfrt(cohort, *NIGHT)
    assert (status, "warning" in err or err == "") == (0, True)
    assert counted(cohort)["new"] == 0
    (cohort / "scans" / "NOBODY.nii.gz").write_bytes(b"")
    status, _, err = hfrt(cohort, *NIGHT)
    assert (status, err.count("\n")) == (3, 1)
    assert err.startswith("NOBODY: ")


def test_a_cohort_without_any_case_alarms_once(cohort, hfrt):
    for scan in sorted((cohort / "scans").iterdir()):
        scan.rename(scan.with_name(f"X{scan.name}"))
    assert [hfrt(cohort, *NIGHT)[0] for _ in range(3)] == [3, 0, 0]
    assert counted(cohort)["known"] == 8


def test_what_may_pass_is_tried_every_night_and_alarms(cohort, hfrt, monkeypatch):
    real = module.read_volume

    def short(path, *args):
        if path.name.startswith("S5-0001"):
            raise MemoryError
        if path.name.startswith("S5-0002"):
            raise ScanError(f"{path}: cannot be read: Stale file handle", code="scan-read-failed")
        return real(path, *args)

    monkeypatch.setattr(module, "read_volume", short)
    for _ in range(2):
        status, out, err = hfrt(cohort, *NIGHT)
        assert status == 3
        assert {"S5-0001", "S5-0002"} <= {*tried(cohort)}
        assert named(err) >= {"S5-0001", "S5-0002"}
        assert "failed before" not in out
    monkeypatch.undo()
    monkeypatch.chdir(cohort)
    assert hfrt(cohort, *NIGHT)[0] == 0
    assert tried(cohort) == ["S5-0001", "S5-0002"]
    assert counted(cohort)["ok"] == 8


def test_what_a_killed_run_met_was_told_to_nobody(cohort, hfrt):
    spoil(cohort, "S5-0001")
    assert hfrt(cohort, *NIGHT)[0] == 3
    path = cohort / "predictions.csv.journal"
    text = path.read_text()
    path.write_text(text[: text.rindex('{"end"')])  # as kill -9 leaves it
    status, _, err = hfrt(cohort, *NIGHT)
    assert status == 3
    assert "S5-0001: " in err
    assert tried(cohort) == ["S5-0001"]
    assert hfrt(cohort, *NIGHT)[0] == 0
    # A kill later on does not make news of what was told before.
    path.write_text(path.read_text() + '{"start":{"host":"x","pid":1,"time":""}}\n')
    status, _, err = hfrt(cohort, *NIGHT)
    assert status == 0
    assert "ended without a word" in err


def test_without_resume_everything_is_new(cohort, hfrt):
    spoil(cohort, "S5-0001")
    assert [hfrt(cohort, *COMMAND)[0] for _ in range(2)] == [3, 3]
    assert counted(cohort)["new"] == 1
    status, _, err = hfrt(cohort, *COMMAND, "--retry-failed")
    assert (status, err.count("\n")) == (1, 1)
    assert "--retry-failed tries again what --resume keeps: give both" in err


def test_what_was_not_tried_is_no_failure(cohort, hfrt):
    for name in sorted(path.name[:7] for path in (cohort / "scans").iterdir())[2:]:
        spoil(cohort, name)
    status, out, err = hfrt(cohort, *COMMAND, "--threads", 1, "--max-errors", 1)
    assert status == 3
    counts = counted(cohort)
    assert (counts["error"], counts["new"]) == (2, 2)
    assert counts["not_tried"] == 6 - counts["ok"]
    assert f"2 failed, {counts['not_tried']} not tried, 0 skipped" in out
    rows = [row for row in table(cohort).values() if row["status"] == "not-tried"]
    assert {row["code"] for row in rows} == {"not-tried"}
    assert all(row["reason"].startswith("not tried: the run was stopped") for row in rows)
    listed = [line for line in err.splitlines() if line.startswith("S5-")]
    assert len(listed) == 2
    # What was not tried is tried next; what failed is known, and does not stop the run.
    status, out, err = hfrt(cohort, *NIGHT, "--threads", 1, "--max-errors", 1)
    assert status == 3
    assert counted(cohort)["known"] == 2
    assert counted(cohort)["new"] == 2
    status, out, _ = hfrt(cohort, *NIGHT, "--json")
    assert status == 3
    summary = json.loads(out)["summary"]
    assert (summary["ok"], summary["known"], summary["not_tried"]) == (2, 4, 0)
    assert summary["new"] == 2


def test_merge_does_not_alarm_for_what_its_shards_know(cohort, hfrt):
    spoil(cohort, "S5-0001")
    spoil(cohort, "S5-0002")

    def shards():
        return [hfrt(cohort, *NIGHT, "--shard", f"{n}/2")[0] for n in (1, 2)]

    assert 3 in shards()
    status, out, err = hfrt(cohort, "merge", ".")
    assert status == 3
    assert err.count("S5-0001: ") == 1
    assert "6 were done before" in out
    assert counted(cohort)["new"] == 2
    assert shards() == [0, 0]
    status, out, err = hfrt(cohort, "merge", ".")
    assert status == 0
    assert "S5-000" not in err.replace("warning: S5", "")
    assert "2 failed before and have not changed" in out
    assert counted(cohort) == {
        "ok": 6, "error": 2, "new": 0, "known": 2, "not_tried": 0, "skipped": 0,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [MissingExtraError, ImportError])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_missing_package_is_one_error_of_the_run(cohort, hfrt, monkeypatch, kind, batch):
    def missing(*_):
        if kind is ImportError:
            raise ImportError("No module named 'isal'", name="isal")
        raise MissingExtraError("nilearn", "raw", "raw scans")

    monkeypatch.setattr(module, "read_volume", missing)
    status, out, err = hfrt(cohort, *COMMAND, "--batch", batch, "--json")
    assert status == 1
    assert (err.startswith("error: "), err.count("\n")) == (True, 1)
    assert "pip" in err
    assert json.loads(out)["error"]["code"] == "missing-extra"
    assert not (cohort / "predictions.csv").exists()
    monkeypatch.undo()
    assert hfrt(cohort, *NIGHT)[0] == 0


def test_a_missing_package_ends_preprocess(cohort, hfrt, monkeypatch):
    def missing(*_, **__):
        raise MissingExtraError("nilearn", "raw", "raw scans")

    monkeypatch.setattr("hyperfusion_rt.runtime.cohort.preprocess.register", missing)
    status, out, err = hfrt(cohort, "preprocess", "scans", "--out", "registered", "--json")
    assert status == 1
    assert (err.startswith("error: "), err.count("\n")) == (True, 1)
    assert json.loads(out)["error"]["code"] == "missing-extra"


def test_ray_that_is_missing_is_one_error(cohort, hfrt, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    status, out, err = hfrt(cohort, *COMMAND, "--executor", "ray", "--json")
    assert status == 1
    assert "pip install 'hyperfusion_rt[ray]'" in err
    assert json.loads(out)["error"]["code"] == "missing-extra"
