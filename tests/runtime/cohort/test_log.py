"""The log of a run: what stands in it, and what is refused."""

import json
import stat
import time

import pytest

from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.runtime.cohort.log import RunLog

COMMAND = ("infer", "scans", "--tabular", "data.csv", "--engine", "native")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_happens_is_appended(cohort, hfrt):
    (cohort / "scans" / "S5-0001.nii.gz").unlink()
    (cohort / "scans" / "S5-0001.nii.gz").write_bytes(b"damaged")
    text = (cohort / "data.csv").read_text().splitlines()
    header, cells = text[0].split(","), text[2].split(",")
    cells[header.index("AGE")] = "120"
    (cohort / "data.csv").write_text("\n".join([*text[:2], ",".join(cells), *text[3:]]) + "\n")
    options = (*COMMAND, "--resume", "--log-file", "logs/hfrt.log")
    before = time.time()
    assert hfrt(cohort, *options)[0] == 3
    path = cohort / "logs" / "hfrt.log"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first, *middle, last = lines(path)
    assert all(list(line)[:3] == ["time", "level", "code"] for line in (first, *middle, last))
    moment = time.strptime(first["time"], "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(moment) - time.timezone - before) < 60
    record = json.loads((cohort / "predictions.csv.run.json").read_text())
    assert (first["level"], first["code"]) == ("info", "run-started")
    assert (first["artifact"], first["checksum"]) == ("base", record["artifact"]["checksum"])
    assert first["counts"] == {"cases": 8, "taken_over": 0, "known": 0}
    (failed,) = [line for line in middle if line["level"] == "error"]
    assert failed["subject"] == "S5-0001"
    assert failed["scan"] == "scans/S5-0001.nii.gz"
    assert failed["code"].startswith("scan-")
    assert "NIfTI" in failed["message"]
    warned = [line for line in middle if line["code"] == "case-warning"]
    assert any("AGE 120 is outside" in line["message"] for line in warned)
    assert {line["level"] for line in warned} == {"warning"}
    assert (last["level"], last["code"], last["ending"]) == ("info", "run-ended", "finished")
    assert last["counts"] == record["counts"]
    # The second night has nothing to tell but its counts.
    assert hfrt(cohort, *options)[0] == 0
    again = lines(path)[2 + len(middle) :]
    assert [line["code"] for line in again] == ["run-started", "run-ended"]
    assert again[0]["counts"] == {"cases": 8, "taken_over": 7, "known": 1}


def test_an_error_that_ends_the_command_is_a_line(cohort, hfrt):
    for options, status, code in (
        (("--out", "p.xlsx"), 1, "output-wrong-name"),
        (("--resume", "--force"), 1, "option-conflict"),
        (("--nonsense",), 2, "usage-wrong"),
    ):
        for log in (("--log-file", "run.log"), ("--log-file=run.log",)):
            found, _, err = hfrt(cohort, *COMMAND, *log, *options)
            assert found == status
            line = lines(cohort / "run.log")[-1]
            assert (line["level"], line["code"]) == ("critical", code)
            assert line["exit_status"] == status
            assert status == 2 or err == f"error: {line['message']}\n"
    assert len(lines(cohort / "run.log")) == 6
    assert hfrt(cohort, "infer", "scans", "--log-file", "run.log")[0] == 1  # no table
    assert "--tabular" in lines(cohort / "run.log")[-1]["message"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data.csv", "would write over what is read"),
        ("scans", "is a folder"),
        ("scans/S5-0002.nii.gz", "would write over what is read"),
        ("base.hfrt/new.log", "would write over what is read"),
        ("predictions.csv", "is --out, or of it"),
        ("predictions.csv.journal", "is --out, or of it"),
        ("predictions.html", "or the report"),
        ("truth.csv", "holds something else than a log"),
    ],
)
def test_a_log_never_replaces_something(cohort, hfrt, name, message):
    before = sorted(cohort.rglob("*"))
    content = {path: path.read_bytes() for path in before if path.is_file()}
    # The first stops at the log; the second has another error, and must not write it there either.
    for more in ((), ("--nonsense",)):
        status, _, err = hfrt(cohort, *COMMAND, "--log-file", name, *more)
        assert status == (2 if more else 1)
        assert more or message in err
        assert {path: path.read_bytes() for path in content} == content
    if name != "predictions.csv.journal":
        assert not (cohort / "predictions.csv.journal").exists()


def test_a_log_that_cannot_be_opened_is_an_error_at_once(cohort, hfrt):
    status, _, err = hfrt(cohort, *COMMAND, "--log-file", "data.csv/x.log")
    assert status == 1
    assert "--log-file data.csv/x.log: cannot be written" in err
    assert not (cohort / "predictions.csv").exists()


def test_a_full_disk_below_the_log_costs_lines_not_the_run(cohort, hfrt):
    status, _, err = hfrt(cohort, *COMMAND, "--log-file", "/dev/full")
    assert status == 0
    assert "warning: --log-file /dev/full: cannot be written: No space left on device" in err
    assert (cohort / "predictions.csv").exists()


def test_half_a_line_is_ended_before_the_next(tmp_path):
    path = tmp_path / "x.log"
    with RunLog(path) as log:
        log.write("info", "run-ended", "one")
    path.write_bytes(path.read_bytes() + b'{"time": "20')
    with RunLog(path) as log:
        log.write("info", "run-ended", "two \udcfc", scan=None)
    whole = path.read_text().splitlines()
    assert len(whole) == 3
    assert json.loads(whole[2])["message"] == r"two \udcfc"
    assert "scan" not in json.loads(whole[2])


def test_what_is_no_log_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine\n")
    with pytest.raises(ConfigError, match="holds something else") as error:
        RunLog(path)
    assert (error.value.code, error.value.parameter) == ("output-wrong-name", "log_file")
    assert path.read_text() == "mine\n"
    with pytest.raises(HyperFusionError, match="cannot be written") as error:
        RunLog(path / "below")
    assert error.value.code == "output-cannot-be-written"


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunLog(None) as log:
        log.write("info", "run-ended", "one")
    assert not [*tmp_path.iterdir()]
