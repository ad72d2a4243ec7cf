"""`hfrt what-if`: what it answers, and what it refuses in a user's words."""

import csv
import json

import pytest

COMMAND = ("what-if", "scans/S5-0001.nii.gz", "--tabular", "data.csv", "--engine", "native")


def test_every_point_is_answered_and_written(cohort, hfrt):
    arguments = (*COMMAND, "--vary", "AGE=60:70:5", "--vary", "APOE4=0,2", "--out", "w.csv")
    status, out, _ = hfrt(cohort, *arguments)
    assert status == 0
    assert "the model's answer: p_CN" in out
    with open(cohort / "w.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["AGE"], row["APOE4"]) for row in rows] == [
        (age, apoe) for age in ("60", "65", "70") for apoe in ("0", "2")
    ]
    for row in rows:
        assert sum(float(row[f"p_{name}"]) for name in ("CN", "MCI", "AD")) == pytest.approx(
            1, abs=3e-6
        )
    assert (cohort / "w.html").is_file()


def test_the_answer_is_that_of_infer(cohort, hfrt):
    """Calibrated, as the table of predictions has it."""
    status, out, _ = hfrt(cohort, *COMMAND, "--vary", "APOE4=0,1,2", "--json")
    assert status == 0
    found = json.loads(out)
    infer = ("infer", "scans/S5-0001.nii.gz", "--tabular", "data.csv", "--engine", "native")
    assert hfrt(cohort, *infer, "--out", "p.jsonl", "--unmatched-rows", "ignore")[0] == 0
    row = json.loads((cohort / "p.jsonl").read_text())
    for name, value in found["answer"].items():
        assert value == pytest.approx(row[name], abs=1e-6)


@pytest.mark.parametrize(
    ("vary", "says", "code"),
    [
        ("AEG=60:70", "--vary AEG: the model reads no such column; did you mean 'AGE'",
         "what-if-unknown-column"),
        ("AGE=70:60:1", "--vary AGE=70:60:1: the range is empty: 70 is above 60; write 60:70",
         "what-if-wrong-values"),
        ("AGE=60:70:0", "--vary AGE=60:70:0: the step is 0", "what-if-wrong-values"),
        ("AGE=", "--vary AGE=: write it as COLUMN=FROM:TO:STEP", "what-if-wrong-values"),
        ("AGE", "--vary AGE: write it as COLUMN=FROM:TO:STEP", "what-if-wrong-values"),
        ("AGE=old", "--vary AGE=old: is no usable number", "table-not-a-number"),
        ("PTGENDER=X", "--vary PTGENDER=X: is not a known value; allowed: ",
         "table-unknown-category"),
        ("AGE=0:2000000", "--vary AGE=0:2000000: these are 2,000,001 values",
         "what-if-wrong-values"),
    ],
)  # fmt: skip
def test_bad_values_are_one_line(cohort, hfrt, vary, says, code):
    status, out, err = hfrt(cohort, *COMMAND, "--vary", vary, "--json")
    assert status == 1
    content = json.loads(out)["error"]
    assert content["code"] == code
    assert says in content["message"]
    assert err == f"error: {content['message']}\n"


def test_what_asks_nothing_is_refused(cohort, hfrt):
    status, _, err = hfrt(cohort, *COMMAND)
    assert status == 1
    assert "nothing is asked: give --vary" in err
    assert "--nearest-flip" in err
    status, _, err = hfrt(cohort, *COMMAND, "--vary", "AGE=60,70", "--out", "w.xlsx")
    assert status == 1
    assert "--out w.xlsx: its name must end in .csv or .tsv" in err
    status, _, err = hfrt(cohort, *COMMAND, "--nearest-flip", "--out", "w.csv")
    assert status == 1
    assert "--out is the table of points: give --vary" in err


def test_one_scan_at_a_time(cohort, hfrt):
    status, _, err = hfrt(
        cohort, "what-if", "scans", "--tabular", "data.csv", "--vary", "AGE=60:70"
    )
    assert status == 1
    assert "8 scans have a row of the table; name one scan" in err


def test_what_is_read_is_not_written_over(cohort, hfrt):
    before = {p: p.read_bytes() for p in (cohort / "data.csv", *(cohort / "base.hfrt").iterdir())}
    for out in ("data.csv", "base.hfrt/x.csv"):
        status, _, err = hfrt(cohort, *COMMAND, "--vary", "AGE=60,70", "--out", out)
        assert status == 1
        assert f"--out {out}: would write over what is read" in err
    assert {
        p: p.read_bytes() for p in (cohort / "data.csv", *(cohort / "base.hfrt").iterdir())
    } == (before)
    status, _, err = hfrt(
        cohort, "explain", "scans/S5-0001.nii.gz", "--tabular", "data.csv", "--out", "hfrt.yaml"
    )
    assert status == 1
    assert "--out hfrt.yaml: is no folder" in err  # before the work


def test_a_scan_whose_row_is_there_twice_or_not_at_all(cohort, hfrt):
    lines = (cohort / "data.csv").read_text().splitlines()
    (cohort / "data.csv").write_text("\n".join([*lines, lines[1]]) + "\n")
    status, _, err = hfrt(cohort, *COMMAND, "--vary", "AGE=60,70")
    assert status == 1
    assert "scans/S5-0001.nii.gz: cannot be asked about: " in err
    assert "name one scan" not in err
    (cohort / "data.csv").write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    status, _, err = hfrt(cohort, *COMMAND, "--vary", "AGE=60,70")
    assert status == 1
    assert "S5-0001" in err
    assert "name one scan" not in err


def test_a_censored_value_as_tables_have_it(cohort, hfrt):
    status, out, _ = hfrt(cohort, *COMMAND, "--vary", "ABETA=>1700,1700", "--json")
    assert status == 0
    first, second = json.loads(out)["what_if"]
    assert first["p_AD"] == second["p_AD"]


def test_python_is_told_what_is_wrong(cohort):
    import numpy as np

    import hyperfusion_rt
    from hyperfusion_rt.errors import HyperFusionError

    predictor = hyperfusion_rt.load(cohort / "base.hfrt", engine="native", threads=1)
    row = dict.fromkeys((c.name for c in predictor.manifest.members[0].columns), None)
    scan = cohort / "scans" / "S5-0001.nii.gz"
    for arguments, says in (
        ((scan, row, {"AGE": 60}), "`vary` AGE: give a list of values, not 60"),
        ((scan, row, {"AGE": b"60"}), "`vary` AGE: give a list of values"),
        ((scan, row, ["AGE"]), "`vary`: give a mapping"),
        ((scan, row, {3: [1]}), "`vary` 3: the model reads no such column"),
        ((scan, None, {"AGE": [1]}), "the row: give a mapping"),
        ((None, row, {"AGE": [1]}), "the scan: 0 files, and the model reads 1"),
        (([scan, scan], row, {"AGE": [1]}), "the scan: 2 files, and the model reads 1"),
    ):
        with pytest.raises(HyperFusionError) as error:
            predictor.what_if(*arguments)
        assert says in str(error.value)
    found = predictor.what_if(scan, row, {"AGE": (a for a in (60, float("nan"), np.nan))})
    assert found.points == ((60.0,), (None,), (None,))
