"""What the commands print where nobody sits at a terminal, and under --json."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.cli import start, terminal
from hyperfusion_rt.number_text import number

COMMAND = ("infer", "scans", "--tabular", "data.csv", "--engine", "native")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.25, "0.250"), (-0.0123456, "-0.0123"), (0.00123, "0.00123"),
        (1.0, "1.00"), (12.345, "12.3"), (99.96, "100"), (123.4, "123"), (1234.6, "1235"),
        (999_999.0, "999999"), (1.5e6, "1.50e+06"), (6.64e-4, "6.64e-04"), (-2e-9, "-2.00e-09"),
        (float("nan"), "nan"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_a_table_in_a_pipe_is_narrow_and_whole(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    words = " ".join(f"word{n}" for n in range(40))
    rows = [["m0.b0.a_long_name_without_any_space_at_all." * 3, "conv", words, 1.23456, 7]]
    terminal.table("title [x]", ["layer", "operation", "what", "ms", "n"], rows)
    out = capsys.readouterr().out
    assert out.startswith("title [x]\n")
    assert max(map(len, out.splitlines())) <= 100
    assert all(line == line.rstrip() for line in out.splitlines())
    assert {f"word{n}" for n in range(40)} <= {*out.split()}  # no word is cut
    assert "1.23" in out.split()
    assert "conv" in out.split()
    monkeypatch.setenv("COLUMNS", "60")
    terminal.table("", ["layer", "operation", "what", "ms", "n"], rows)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


def test_square_brackets_are_no_markup(capsys):
    """A class may be called so."""
    terminal.table("title [b]", ["", "it's [ok]", "[/x]"], [["true [i]", "1", "2"]])
    out = capsys.readouterr().out
    assert all(text in out for text in ("title [b]", "it's [ok]", "[/x]", "true [i]"))


def test_a_table_without_names_has_no_header(capsys):
    terminal.table("Machine", ["", ""], [["cores", 2]])
    assert capsys.readouterr().out.split() == ["Machine", "cores", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("inspect",), ("inspect", "--plan"), ("doctor",), COMMAND,
        ("bench", "--only", "hfrt native", "--rounds", 3, "--batch", 1),
    ],
)  # fmt: skip
def test_every_table_fits_a_log(session_run, cohort, hfrt, monkeypatch, command):
    monkeypatch.delenv("COLUMNS", raising=False)
    if command[0] == "bench":
        command = (*command, "--run", session_run.folder)
    status, out, _ = hfrt(cohort, *command)
    assert status == 0
    # Lines of a table are indented; others are sentences, and as long as what they name.
    assert not [line for line in out.splitlines() if line.startswith(" ") and len(line) > 100]
    long = re.compile(r"(?<![\d.])(0\.0*[1-9]\d{3,}|[1-9]\d*\.\d{3,})(?![\d.])")
    assert not [line for line in out.splitlines() if long.search(line)]
    label = Artifact.open(cohort / "base.hfrt").label.replace(f"{cohort}/", "")
    if command[0] != "doctor" and "--plan" not in command:
        assert out.startswith(f"artifact {label}, the only one here\n")


def test_a_named_artifact_is_shown_too(cohort, hfrt):
    for command in (("inspect", "base.hfrt"), (*COMMAND, "--artifact", "base.hfrt")):
        out = hfrt(cohort, *command)[1].splitlines()
        assert re.fullmatch(r"artifact base\.hfrt \([0-9a-f]{8}\)", out[0])


@pytest.mark.parametrize("command", [COMMAND, ("inspect",), ("bench",)])
def test_several_artifacts_are_refused(cohort, hfrt, command):
    shutil.copytree(cohort / "base.hfrt", cohort / "other.hfrt")
    status, out, err = hfrt(cohort, *command, "--json")
    assert status == 1
    assert "2 artifacts are here (base.hfrt, other.hfrt)" in err
    assert json.loads(out)["error"]["code"] == "artifact-ambiguous"


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (("infer",), 2, "usage-wrong"),
        (("infer", "scans", "--tabular", "data.csv", "--nonsense"), 2, "usage-wrong"),
        (("infer", "scans", "--tabular", "data.csv", "--batch", "x"), 2, "usage-wrong"),
        (("infer", "scans", "--tabular", "data.csv", "--duplicates", "x"), 2, "usage-wrong"),
        (("nonsense",), 2, "usage-wrong"),
        (("--nonsense",), 2, "usage-wrong"),
        (("bids-app", "a", "b", "c"), 2, "usage-wrong"),
        (("simulate", "x", "--spacing", "7"), 2, "usage-wrong"),
        (("doctor", "more"), 2, "usage-wrong"),
        (("infer", "scans", "--tabular", "data.csv", "--shard", "9/8"), 1, "option-wrong"),
        (("infer", "scans", "--tabular", "data.csv"), 1, "artifact-missing"),
        (("merge", "nowhere"), 1, "shard-missing"),
        (("bids-app", "a", "b", "group"), 1, "bids-no-dataset"),
        (("export",), 1, "run-not-found"),
        (("check",), 1, "config-not-found"),
    ],
)
def test_an_error_is_one_json_object(tmp_path, hfrt, arguments, status, code):
    found, out, err = hfrt(tmp_path, *arguments, "--json")
    assert found == status
    content = json.loads(out)
    assert list(content) == ["error"]
    assert content["error"]["code"] == code
    assert content["error"]["message"]
    assert "\n" not in content["error"]["message"]
    assert err


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (KeyError, 1)])
@pytest.mark.parametrize("where", ["reading", "predicting", "writing"])
def test_whatever_ends_a_run_there_is_one_json_object(
    cohort, hfrt, monkeypatch, error, status, where
):
    place = {
        "reading": "hyperfusion_rt.runtime.gather.find_cases",
        "predicting": "hyperfusion_rt.runtime.cohort.journal.Journal.append",
        "writing": "hyperfusion_rt.runtime.cohort.record.write_predictions",
    }[where]

    def fail(*_, **__):
        raise error("x")

    monkeypatch.setattr(place, fail)
    found, out, err = hfrt(cohort, *COMMAND, "--json", "--log-file", "run.log")
    assert found == status
    content = json.loads(out)
    lines = [json.loads(line) for line in (cohort / "run.log").read_text().splitlines()]
    codes = [line["code"] for line in lines if line["code"] not in ("run-started", "case-warning")]
    assert "Traceback" not in err
    if where == "predicting" and status == 130:
        # The run ends by itself, and its result says so.
        assert content["ending"] == "interrupted"
        assert content["summary"]["not_tried"] == 8
        assert codes == ["run-ended"]
        return
    assert content["error"]["code"] == ("run-interrupted" if status == 130 else "unexpected")
    assert codes == [content["error"]["code"]]
    assert lines[-1]["exit_status"] == status


def test_a_signal_while_a_command_starts_is_one_json_object(tmp_path):
    # Before `main` it is Python that is interrupted.
    wait = (
        "import sys; from hyperfusion_rt.cli import start; run = start._run\n"
        "def say():\n    print('.', flush=True, file=sys.stderr)\n    return run()\n"
        "start._run = say; sys.argv = ['hfrt', *sys.argv[1:]]; start.main()"
    )
    command = [sys.executable, "-c", wait, "simulate", "x", "--subjects", "60", "--json"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    process.stderr.read(2)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (start.INTERRUPTED, "interrupted\n")
    assert json.loads(out)["error"]["code"] == "run-interrupted"


def test_the_report_has_the_name_of_its_table(cohort, hfrt):
    status, out, _ = hfrt(cohort, *COMMAND, "--out", "tonight.v2.tsv")
    assert status == 0
    assert "written: tonight.v2.tsv, tonight.v2.tsv.html" in out
    assert (cohort / "tonight.v2.tsv.html").exists()
    assert not (cohort / "report.html").exists()
