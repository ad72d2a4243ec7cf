"""The journal: what it keeps of a run that was killed, and what it refuses."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.data.table_file import Row
from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.files import stamp
from hyperfusion_rt.runtime.cohort.journal import Journal, read_journal
from hyperfusion_rt.runtime.prediction import Prediction, Seconds, as_json, from_json

IDENTITY = {"artifact": "a1", "engine": "native"}


def case(folder: Path, name: str = "s1", age: str = "70") -> Case:
    scan = folder / f"{name}.nii.gz"
    if not scan.exists():
        scan.write_bytes(name.encode())
    return Case(name, None, scan, Row(name, None, 2, {"ID": name, "AGE": age}))


def prediction(item: Case, status: str = "ok") -> Prediction:
    values = (0.1 + 0.2, 1 / 3, 1e-17) if status == "ok" else ()
    seconds = Seconds(0.1, 0.2, 0.3, 0.4)
    quality = {"correlation": 2 / 3}
    return Prediction(
        item.subject,
        None,
        status,
        "über, \n",
        values,
        0.1,
        seconds,
        quality,
        item.scan,
        stamp(item.scan),
    )


def opened(folder: Path, identity=IDENTITY, **options) -> Journal:
    return Journal(folder / "p.csv.journal", identity, folder / "x.hfrt", ["AGE"], **options)


def test_predictions_are_kept_bit_for_bit(tmp_path):
    before = prediction(case(tmp_path))
    assert from_json(json.loads(json.dumps(as_json(before)))) == before
    with opened(tmp_path) as journal:
        journal.append(case(tmp_path), before)
    with opened(tmp_path, resume=True) as journal:
        assert journal.known(case(tmp_path)) == before
        assert "ended without a word" in journal.note
        assert "after 1 cases" in journal.note


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_last_line_costs_its_case_only(tmp_path, cut):
    path = tmp_path / "p.csv.journal"
    with opened(tmp_path) as journal:
        for name in ("s1", "s2"):
            journal.append(case(tmp_path, name), prediction(case(tmp_path, name)))
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    with opened(tmp_path, resume=True) as journal:
        assert journal.known(case(tmp_path, "s1"))
        assert journal.known(case(tmp_path, "s2")) is None
        journal.append(case(tmp_path, "s2"), prediction(case(tmp_path, "s2")))
    assert len(read_journal(path).predictions) == 2


def test_a_spoilt_line_costs_its_case_only(tmp_path):
    path = tmp_path / "p.csv.journal"
    with opened(tmp_path) as journal:
        for name in ("s1", "s2", "s3"):
            journal.append(case(tmp_path, name), prediction(case(tmp_path, name)))
    path.write_bytes(path.read_bytes().replace(b'"subject":"s2"', b'"sub\xffect:"s2"'))
    with opened(tmp_path, resume=True) as journal:
        found = [journal.known(case(tmp_path, name)) is not None for name in ("s1", "s2", "s3")]
    assert found == [True, False, True]


def test_what_changed_is_predicted_again(tmp_path):
    with opened(tmp_path) as journal:
        for name in ("s1", "s2", "s3"):
            status = "error" if name == "s3" else "ok"
            journal.append(case(tmp_path, name), prediction(case(tmp_path, name), status))
        journal.end("finished", [], [], "")
    case(tmp_path, "s2").scan.write_bytes(b"another")
    with opened(tmp_path, resume=True) as journal:
        assert journal.known(case(tmp_path, "s1"))
        assert journal.known(case(tmp_path, "s1", age="71")) is None  # its row changed
        assert journal.known(case(tmp_path, "s2")) is None  # its scan changed
        assert journal.known(case(tmp_path, "s3")) is None  # failed: tried again
        assert journal.note == ""


def test_a_scan_that_was_replaced_while_it_was_predicted(tmp_path):
    before = prediction(case(tmp_path))
    case(tmp_path).scan.write_bytes(b"its new content")
    with opened(tmp_path) as journal:
        journal.append(case(tmp_path), before)
        assert journal.known(case(tmp_path)) is None


def test_two_scans_that_were_swapped(tmp_path):
    """Size and time of change are the same."""
    cases = [case(tmp_path, name) for name in ("s1", "s2")]
    for item in cases:
        os.utime(item.scan, ns=(10**18, 10**18))
    with opened(tmp_path) as journal:
        for item in cases:
            journal.append(item, prediction(item))
    first, second = (item.scan for item in cases)
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    with opened(tmp_path, resume=True) as journal:
        assert [journal.known(item) for item in cases] == [None, None]


def test_a_folder_of_slices_that_changed(tmp_path):
    (tmp_path / "dicom").mkdir()
    for name in ("1", "2"):
        (tmp_path / "dicom" / name).write_bytes(b"slice")
    before = stamp(tmp_path / "dicom")
    assert before == stamp(tmp_path / "dicom")
    with open(tmp_path / "dicom" / "1", "r+b") as file:
        file.write(b"other")
    assert stamp(tmp_path / "dicom") != before


def test_a_line_without_its_row(tmp_path):
    path = tmp_path / "p.csv.journal"
    with opened(tmp_path) as journal:
        journal.append(case(tmp_path), prediction(case(tmp_path)))
    path.write_bytes(path.read_bytes().replace(b',"row":', b',"wor":'))
    with opened(tmp_path, resume=True) as journal:
        assert journal.known(case(tmp_path)) is None


def test_an_unfinished_run_is_not_thrown_away(tmp_path):
    with opened(tmp_path) as journal:
        journal.append(case(tmp_path), prediction(case(tmp_path)))
    with pytest.raises(ConfigError, match=r"\(1 cases are done\).*`resume`.*`force`"):
        opened(tmp_path)
    with opened(tmp_path, force=True) as journal:
        assert journal.known(case(tmp_path)) is None
    with opened(tmp_path):  # nothing was done: nothing is lost
        pass


def test_a_finished_run_may_be_replaced(tmp_path):
    with opened(tmp_path) as journal:
        journal.append(case(tmp_path), prediction(case(tmp_path)))
        journal.append(case(tmp_path, "gone"), prediction(case(tmp_path, "gone")))
        left_out = [prediction(case(tmp_path, "s9"), "skipped")]
        journal.end("finished", [case(tmp_path)], left_out, "")
    found = read_journal(tmp_path / "p.csv.journal")
    assert [p.subject for p in found.predictions] == ["s1"]  # of the last run only
    assert [p.subject for p in read_journal(tmp_path / "p.csv.journal").problems] == ["s9"]
    with opened(tmp_path) as journal:
        assert journal.known(case(tmp_path)) is None


@pytest.mark.parametrize(
    ("identity", "shard", "named"),
    [({**IDENTITY, "engine": "onnx"}, None, "engine"), (IDENTITY, (1, 2), "shard")],
)
def test_other_numbers_are_not_mixed_in(tmp_path, identity, shard, named):
    with opened(tmp_path) as journal:
        journal.append(case(tmp_path), prediction(case(tmp_path)))
    with pytest.raises(ConfigError, match=f"another {named}"):
        opened(tmp_path, identity, shard=shard, resume=True)
    assert len(read_journal(tmp_path / "p.csv.journal").predictions) == 1


def test_one_writer_at_a_time(tmp_path):
    with (
        opened(tmp_path),
        pytest.raises(ConfigError, match="another hfrt infer writes here"),
    ):
        opened(tmp_path, resume=True)
    opened(tmp_path, resume=True).__exit__()


@pytest.mark.parametrize("content", [b"subject,session\n1,2\n", b"[]\n", b'{"journal": 1}\n'])
def test_what_is_no_journal_is_not_overwritten(tmp_path, content):
    path = tmp_path / "p.csv.journal"
    path.write_bytes(content)
    with pytest.raises(HyperFusionError, match="not a journal"):
        opened(tmp_path)
    assert path.read_bytes() == content


def failed(item: Case, code: str = "scan-truncated") -> Prediction:
    return replace(prediction(item, "error"), code=code)


def written(folder: Path, *items: Prediction, end: bool = True, **options) -> None:
    with opened(folder, **options) as journal:
        for item in items:
            journal.append(case(folder, item.subject), item)
        if end:
            cases = [case(folder, item.subject) for item in items]
            journal.end("finished", cases, [], "")


def test_a_failure_that_lasts_is_kept(tmp_path):
    before = failed(case(tmp_path))
    written(tmp_path, before)
    with opened(tmp_path, resume=True) as journal:
        assert journal.known(case(tmp_path)) == replace(before, known=True)
        assert journal.known(case(tmp_path), failures=False) is None


@pytest.mark.parametrize("code", ["out-of-memory", "unexpected", ""])
def test_a_failure_that_may_pass_is_not_kept(tmp_path, code):
    written(tmp_path, failed(case(tmp_path), code))
    with opened(tmp_path, resume=True) as journal:
        assert journal.known(case(tmp_path)) is None


def test_a_failure_that_nobody_was_told_is_not_kept(tmp_path):
    written(tmp_path, failed(case(tmp_path)), failed(case(tmp_path, "s2")))
    # Of the next run, which is killed, only s2 and s3 were tried.
    items = [failed(case(tmp_path, name)) for name in ("s2", "s3")]
    written(tmp_path, *items, end=False, resume=True)
    with opened(tmp_path, resume=True) as journal:
        known = [journal.known(case(tmp_path, name)) for name in ("s1", "s2", "s3")]
    assert [item is not None for item in known] == [True, False, False]


def test_a_failure_of_a_changed_case_is_not_kept(tmp_path):
    names = ("s1", "s2", "s3")
    written(tmp_path, *(failed(case(tmp_path, name)) for name in names), checks="refuse")
    case(tmp_path, "s2").scan.write_bytes(b"another")
    with opened(tmp_path, resume=True, checks="refuse") as journal:
        assert journal.known(case(tmp_path, "s1"))
        assert journal.known(case(tmp_path, "s2")) is None
        assert journal.known(case(tmp_path, "s3", age="71")) is None
    with opened(tmp_path, resume=True, checks="warn") as journal:
        assert journal.known(case(tmp_path, "s1")) is None


def test_what_could_not_be_joined_is_told_though_a_later_run_was_killed(tmp_path):
    lost = Prediction("s9", None, "error", "x.nii: no row", code="scan-without-row")
    with opened(tmp_path) as journal:
        journal.end("finished", [], [lost], "")
    written(tmp_path, prediction(case(tmp_path)), end=False, resume=True)
    with opened(tmp_path, resume=True) as journal:
        assert journal.record.told == [lost]
    with opened(tmp_path, {**IDENTITY, "engine": "onnx"}, force=True) as journal:
        assert journal.record.told == []


def test_problems_alone_do_not_bind_to_an_engine(tmp_path):
    """No number could be mixed in."""
    lost = Prediction("s9", None, "error", "x.nii: no row", code="scan-without-row")
    with opened(tmp_path) as journal:
        journal.end("finished", [], [lost], "")
    with opened(tmp_path, {**IDENTITY, "engine": "onnx"}, resume=True) as journal:
        assert journal.record.identity["engine"] == "onnx"
        assert journal.record.told == []


def test_the_end_says_which_failures_were_known(tmp_path):
    item, new = failed(case(tmp_path)), failed(case(tmp_path, "s2"))
    with opened(tmp_path) as journal:
        cases = [case(tmp_path), case(tmp_path, "s2")]
        for one, found in zip(cases, (item, new), strict=True):
            journal.append(one, found)
        lost = replace(failed(case(tmp_path, "s9")), known=True)
        journal.end("finished", cases, [lost], "", known=[item], counts={"known": 2})
    content = read_journal(tmp_path / "p.csv.journal")
    assert {p.subject: p.known for p in content.predictions} == {"s1": True, "s2": False}
    assert [p.known for p in content.problems] == [True]
    assert content.end["counts"] == {"known": 2}
