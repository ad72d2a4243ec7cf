"""Prediction: equal to training, sound with bad cases, free of torch."""

import base64
import csv
import hashlib
import html
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import hyperfusion_rt
from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.errors import CohortError, TableError
from hyperfusion_rt.runtime.cohort.infer import infer
from hyperfusion_rt.runtime.options import CohortOptions
from hyperfusion_rt.training.dataset import gather
from hyperfusion_rt.training.loop import predict, split_of, summarise
from hyperfusion_rt.training.results import load_member


def rows_of(path):
    with open(path, newline="") as file:
        return {row["subject"]: row for row in csv.DictReader(file)}


def test_equals_training(session_run, session_artifact, session_cohort):
    config = session_run.config
    dataset = gather(config, session_cohort)
    everyone = np.arange(len(dataset.cases))
    outputs = []
    for index, member in enumerate(session_run.members):
        split = split_of(dataset, config, index)
        assert np.array_equal(split.tabular, member.encoder.encode(dataset.rows))
        outputs.append(predict(load_member(session_run, member), dataset, split, everyone, 7))
    expected = summarise(config, np.stack(outputs))
    found = hyperfusion_rt.load(session_artifact).predict(
        session_cohort / "scans", session_cohort / "data.csv"
    )
    assert [p.subject for p in found] == [case.subject for case in dataset.cases]
    np.testing.assert_allclose([p.values for p in found], expected, atol=1e-5)
    assert all(p.spread is not None and p.status == "ok" for p in found)


def test_a_list_of_files_predicts_the_same(cohort):
    predictor = hyperfusion_rt.load(cohort / "base.hfrt", threads=1)
    files = sorted((cohort / "scans").iterdir())[:2]
    some = [p for p in predictor.predict(files, cohort / "data.csv") if p.status == "ok"]
    every = predictor.predict(cohort / "scans", cohort / "data.csv")
    for one in some:
        (other,) = [p for p in every if p.subject == one.subject]
        np.testing.assert_allclose(one.values, other.values, atol=1e-6)


def spoil(cohort):
    """Break scans and rows of the cohort; returns subject → what the reason says."""
    scans = cohort / "scans"
    good = (scans / "S5-0002.nii.gz").read_bytes()
    for name, content in {"S5-0002": good[:5000], "S5-0003": b"", "S5-9999": good}.items():
        path = scans / f"{name}.nii.gz"
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    lines = (cohort / "data.csv").read_text().splitlines()
    header = lines[0].split(",")

    def put(line, column, value):
        fields = lines[line].split(",")
        fields[header.index(column)] = value
        lines[line] = ",".join(fields)

    put(4, "PTGENDER", "Other")
    put(5, "AGE", "seventy")
    lines.append(lines[6])
    (cohort / "data.csv").write_text("\n".join(lines[:7] + lines[8:]) + "\n")
    return {
        "S5-0002": "truncated",
        "S5-0003": "empty",
        "S5-0004": "Other",
        "S5-0005": "seventy",
        "S5-0006": "line",
        "S5-0007": "no row",
        "S5-9999": "no row",
    }


def test_bad_cases_are_rows_and_the_others_stand(cohort, hfrt):
    status, _, err = hfrt(
        cohort, "infer", "scans", "--tabular", "data.csv", "--unmatched-rows", "ignore"
    )
    assert status == 0
    assert "predictions carry warnings" in err
    before = rows_of(cohort / "predictions.csv")
    assert len(before) == 8
    expected = spoil(cohort)
    status, out, err = hfrt(
        cohort, "infer", "scans/", "--tabular", "data.csv", "--unmatched-rows", "ignore"
    )
    assert status == 3
    assert "Traceback" not in out + err
    after = rows_of(cohort / "predictions.csv")
    for subject, reason in expected.items():
        assert after[subject]["status"] == "error"
        assert reason in after[subject]["reason"], after[subject]["reason"]
        assert after[subject]["p_AD"] == ""
        assert subject in err
    for subject in ("S5-0001", "S5-0008"):
        same = {k: v for k, v in after[subject].items() if k != "seconds"}
        assert same == {k: v for k, v in before[subject].items() if k != "seconds"}
    page = (cohort / "predictions.html").read_text()
    assert "truncated" in page
    # Every script of the page is one that its policy names: none came with a reason or a name.
    # Data blocks (`type=`) do not run.
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert scripts
    assert page.count("<script") == len(scripts) + len(
        re.findall(r'<script type="\w+/[^>]*>', page)
    )
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"sha256-{digest}" in html.unescape(page)


def test_rows_without_a_scan_are_listed_ignored_or_refused(cohort):
    os.chdir(cohort)
    args = [cohort / "scans"], cohort / "data.csv"
    found = infer(*args, CohortOptions(artifact=cohort / "base.hfrt", out=cohort / "a.csv"))
    assert (found.summary["ok"], found.summary["skipped"], found.summary["error"]) == (8, 32, 0)
    with pytest.raises(CohortError, match="32 rows have no scan and `unmatched_rows` is fail"):
        infer(*args, CohortOptions(artifact=cohort / "base.hfrt", unmatched_rows="fail"))


def test_how_scans_and_rows_were_joined_is_said(cohort, hfrt):
    first = sorted((cohort / "scans").iterdir())[0]
    name = first.name.split(".")[0]
    (cohort / "few").mkdir()
    (cohort / "few" / f"{name}-2.nii.gz").symlink_to(first)
    (cohort / "few" / f"{name}x.nii").symlink_to("nowhere.nii")
    text = (cohort / "data.csv").read_text().splitlines()
    lines = [text[0] + ",SES", *(f"{line},2" for line in text[1:])]
    (cohort / "data.csv").write_text("\n".join(lines) + "\n")
    status, out, _ = hfrt(
        cohort, "infer", "few", "--tabular", "data.csv", "--engine", "native",
        "--unmatched-rows", "ignore",
    )  # fmt: skip
    said = [
        "data.csv: subjects: column 'subject'",
        "data.csv: no column of sessions; not taken for sessions: 'SES'",
        "1 of 2 scans have a row",
    ]
    assert status == 3
    assert set(said) <= set(out.splitlines())
    assert json.loads((cohort / "predictions.csv.run.json").read_text())["joined"] == said
    rows = rows_of(cohort / "predictions.csv")
    assert {key: row["status"] for key, row in rows.items()} == {name: "ok", f"{name}x": "error"}
    assert f"file name '{name}-2': taken for subject '{name}'" in rows[name]["warnings"]
    assert "is a link to nowhere.nii, which is not there" in rows[f"{name}x"]["reason"]
    assert rows[name]["session"] == ""


def test_unusual_rows_are_predicted_with_a_remark(cohort):
    lines = (cohort / "data.csv").read_text().splitlines()
    fields = lines[1].split(",")
    fields[1], fields[3] = "104.5", ""
    lines[1] = ",".join(fields)
    (cohort / "data.csv").write_text("\n".join(lines))
    predictor = hyperfusion_rt.load(cohort / "base.hfrt")
    first = predictor.predict(cohort / "scans", cohort / "data.csv")[0]
    assert first.status == "ok"
    assert "AGE 104.5 is outside the training range" in first.warnings[0]
    assert "PTEDUCAT is missing" in first.warnings[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("name,AGE\na,70\n", "subject"),
        ("subject,PTGENDER\nS5-0001,Male\n", "missing columns: 'AGE'"),
    ],
)
def test_a_table_that_cannot_be_used(cohort, hfrt, text, message):
    (cohort / "data.csv").write_text(text)
    status, _, err = hfrt(cohort, "infer", "scans", "--tabular", "data.csv")
    assert status == 1
    assert err.startswith("error: data.csv")
    assert message in err
    assert err.count("\n") == 1
    assert not (cohort / "predictions.csv").exists()
    with pytest.raises(TableError):
        hyperfusion_rt.load(cohort / "base.hfrt").predict(cohort / "scans", cohort / "data.csv")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["bom", "semicolon", "quoted", "tsv"])
def test_other_ways_to_write_the_same_table(cohort, hfrt, change):
    text = (cohort / "data.csv").read_text()
    name = "data.tsv" if change == "tsv" else "data.csv"
    text = {
        "bom": "\ufeff" + text,
        "semicolon": text.replace(",", ";").replace(".", ","),
        "quoted": text.replace("subject,", 'note,subject,', 1).replace("\nS5", '\n"a, b",S5'),
        "tsv": text.replace(",", "\t").replace("subject", "participant_id"),
    }[change]  # fmt: skip
    hfrt(cohort, "infer", "scans", "--tabular", "data.csv", "--out", "expected.csv")
    (cohort / name).write_text(text)
    assert hfrt(cohort, "infer", "scans", "--tabular", name)[0] == 0
    found, expected = rows_of(cohort / "predictions.csv"), rows_of(cohort / "expected.csv")
    assert found.keys() == expected.keys()
    assert all(found[s]["p_CN"] == expected[s]["p_CN"] for s in expected)


def test_a_full_disk_keeps_the_old_output(cohort, monkeypatch, hfrt):
    (cohort / "predictions.csv").write_text("old")
    from hyperfusion_rt import files

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    status, _, err = hfrt(cohort, "infer", "scans", "--tabular", "data.csv")
    assert status == 1
    assert "No space left on device" in err
    assert "unchanged" in err
    assert (cohort / "predictions.csv").read_text() == "old"
    assert not [p for p in cohort.iterdir() if p.name.startswith(".predictions")]


def test_no_write_permission(cohort, hfrt, monkeypatch):
    import tempfile

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    # Patched: the suite may run as root, who is never denied.
    monkeypatch.setattr(tempfile, "mkstemp", denied)
    status, _, err = hfrt(cohort, "infer", "scans", "--tabular", "data.csv")
    assert status == 1
    assert "predictions.csv: cannot be written: Permission denied" in err


def test_inference_does_not_import_torch(cohort):
    code = """
        import sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "onnx", "nilearn", "sklearn", "scipy"):
                    raise ImportError(f"{name} must not be imported")

        sys.meta_path.insert(0, Refuse())
        sys.argv = ["hfrt", "infer", "scans/", "--tabular", "data.csv"]
        from hyperfusion_rt.cli import main
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=cohort, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "8 predicted" in done.stdout


@pytest.mark.parametrize(
    ("option", "path"),
    [
        ("--out", "data.csv"),
        ("--report", "data.csv"),
        ("--report", "./x.csv"),
        ("--out", "base.hfrt/manifest.json"),
        ("--out", "scans/new.nii.gz"),
    ],
)
def test_an_output_never_replaces_an_input(cohort, hfrt, option, path):
    before = {p: p.read_bytes() for p in cohort.rglob("*") if p.is_file()}
    rest = () if option == "--out" else ("--out", "x.csv")
    status, _, err = hfrt(cohort, "infer", "scans", "--tabular", "data.csv", option, path, *rest)
    assert status == 1
    assert "choose another name" in err
    assert {p: p.read_bytes() for p in cohort.rglob("*") if p.is_file()} == before


def test_threads_beyond_the_cores_are_not_used(cohort, hfrt):
    """A thousand threads on two cores did not come to an end."""
    status, out, err = hfrt(
        cohort, "infer", "scans", "--tabular", "data.csv", "--threads", "100000", "--json"
    )
    assert status == 0, err
    assert json.loads(out)["summary"]["ok"] == 8


@pytest.mark.parametrize("how", ["no home", "a file in its place"])
def test_without_a_cache_it_predicts(cohort, hfrt, monkeypatch, how):
    if how == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(cohort / "data.csv"))
    status, out, err = hfrt(cohort, "infer", "scans", "--tabular", "data.csv", "--json")
    assert status == 0, err
    assert json.loads(out)["summary"]["ok"] == 8


@pytest.mark.parametrize("when", [1.5, 2.5, 3.5])
def test_a_terminated_export_leaves_nothing(session_run, tmp_path, when):
    """SIGTERM, which batch schedulers send."""
    code = "from hyperfusion_rt.cli import main; main()"
    arguments = ["export", "--run", str(session_run.folder), "--out", "a.hfrt"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, stderr=subprocess.PIPE
    ) as process:
        try:
            process.wait(when)
        except subprocess.TimeoutExpired:
            process.terminate()
        _, err = process.communicate(timeout=60)
    if (tmp_path / "a.hfrt").exists():  # it was done: Python's own end cannot be interrupted
        assert process.returncode in (0, -signal.SIGTERM)
        assert [p.name for p in tmp_path.iterdir()] == ["a.hfrt"]
        assert Artifact.open(tmp_path / "a.hfrt").file("native")
    else:
        assert (process.returncode, err.decode().strip()[-11:]) == (130, "interrupted")
        assert list(tmp_path.iterdir()) == []


def test_json_output(cohort, hfrt):
    arguments = ("infer", "scans", "--tabular", "data.csv", "--engine", "native", "--json")
    status, out, _ = hfrt(cohort, *arguments)
    content = json.loads(out)
    assert status == 0
    assert content["engine"] == "native"
    first = content["predictions"][0]
    assert first["p_CN"] + first["p_MCI"] + first["p_AD"] == pytest.approx(1)


def test_two_streams_of_one_predictor_have_a_usage_each(cohort):
    predictor = hyperfusion_rt.load(cohort / "base.hfrt", engine="native", threads=1)
    found = predictor.gather(cohort / "scans", cohort / "data.csv").cases
    one, other = predictor.stream(found), predictor.stream(found[:2])
    first, second = next(one), next(other)
    for stream, items in ((one, [first, *one]), (other, [second, *other])):
        assert len(items) == (len(found) if stream is one else 2)
        assert all(item.status == "ok" for item in items)
        assert stream.usage.wall > 0
        assert set(stream.usage.steps) == {"read", "decode", "preprocess"}
        # Its own scans' work, and no other's.
        decoded = sum(item.seconds.decode for item in items)
        assert stream.usage.steps["decode"] == pytest.approx(decoded)
