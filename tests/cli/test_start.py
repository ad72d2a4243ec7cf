"""Whatever happens to a command: one line and an exit status, never a traceback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from hyperfusion_rt.cli import start

HFRT = [sys.executable, "-m", "hyperfusion_rt.cli"]
SHELL = " ".join(f"'{part}'" for part in HFRT)


def shell(command, folder, **environment):
    """The end of a bash command in which `hfrt` is the program."""
    return subprocess.run(
        ["bash", "-c", f'hfrt() {{ {SHELL} "$@"; }}; {command}'],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
    )


def is_one_line(text):
    return text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text


@pytest.mark.parametrize("command", ["--version", "--help", "doctor --json"])
def test_a_full_disk_below_standard_output_is_said(tmp_path, command):
    done = shell(f"hfrt {command} > /dev/full", tmp_path)
    assert done.returncode == 1
    assert is_one_line(done.stderr)
    assert "No space left" in done.stderr


def test_a_closed_standard_output_is_said(tmp_path):
    done = shell("hfrt --version >&-", tmp_path)
    assert done.returncode == 1
    assert is_one_line(done.stderr)
    assert "closed" in done.stderr


@pytest.mark.parametrize("command", ["--help", "--version"])
def test_without_a_reader_the_program_ends_quietly(tmp_path, command):
    # `head` has ended before anything is written.
    done = shell(f"(sleep 1; hfrt {command}; echo $? > status) | true", tmp_path)
    assert done.stderr == ""
    assert (tmp_path / "status").read_text().strip() == str(start.NO_READER)


@pytest.mark.parametrize("where", ["/dev/full", "&-"])
def test_messages_may_be_lost(tmp_path, where):
    done = shell(f"hfrt inspect nowhere --json 2>{where}", tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "artifact-missing"


def test_a_folder_that_is_gone_is_said(tmp_path):
    done = shell("mkdir gone; cd gone; rmdir ../gone; hfrt inspect", tmp_path)
    assert done.returncode == 1
    assert is_one_line(done.stderr[done.stderr.index("error: the working") :])


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("name", ["M\u00fcller", "M\udcfcller"])
@pytest.mark.parametrize("environment", [ASCII, {"LC_ALL": "C.UTF-8"}])
def test_any_name_can_be_shown(tmp_path, name, environment):
    shown = name if name.isprintable() else r"M\udcfcller"
    done = shell(f"hfrt inspect '{name}'", tmp_path, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {shown}: not an artifact")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("after", [0.05, 0.1, 0.2, 0.5])
def test_an_interrupt_at_any_time_is_one_line(tmp_path, number, after):
    """From the first moment on: while Python imports, and while subjects are simulated."""
    wait = (
        "import sys; from hyperfusion_rt.cli import start; print('.', flush=True); "
        "sys.argv = ['hfrt', *sys.argv[1:]]; start.main()"
    )
    command = [sys.executable, "-c", wait, "simulate", "x", "--subjects", "60", "--jobs", "2"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    process.stdout.read(2)
    time.sleep(after)
    os.killpg(process.pid, number)  # as a terminal does: all processes of the command
    _, err = process.communicate(timeout=60)
    assert process.returncode == start.INTERRUPTED
    assert err == "interrupted\n"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("RuntimeError('a worker died')", (start.INTERRUPTED, "interrupted\n")),
        # A command that ends in order after an interrupt can still fail by itself.
        (
            "HyperFusionError('x.csv: the disk is full', code='output-cannot-be-written')",
            (1, "error: x.csv: the disk is full\n"),
        ),
    ],
)
def test_an_interrupt_that_is_lost_on_its_way(error, expected):
    """As in a callback, where Python ignores it: what fails because of it is not to blame."""
    code = (
        "import contextlib, os, signal, sys\n"
        "from hyperfusion_rt.cli import app, start\n"
        "from hyperfusion_rt.errors import HyperFusionError\n"
        "def run(arguments):\n"
        "    with contextlib.suppress(KeyboardInterrupt):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        f"    raise {error}\n"
        "app.run = run\n"
        "start.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == expected


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (EOFError("cut"), "unexpected EOFError: cut"),
        (BrokenPipeError(32, "Broken pipe"), "unexpected BrokenPipeError"),
        (OSError(5, "Input/output error", "x.csv"), "x.csv"),
        (ValueError("two\nlines"), "unexpected ValueError: two lines"),
        (RecursionError("deep"), "unexpected RecursionError"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_an_error_that_nobody_knows_is_one_line(tmp_path, hfrt, monkeypatch, error, says):
    def fail(*_):
        raise error

    monkeypatch.setattr("hyperfusion_rt.artifact.manifest.only_artifact", fail)
    status, out, err = hfrt(tmp_path, "inspect", "--json")
    assert status == 1
    assert is_one_line(err)
    assert says in err
    assert json.loads(out)["error"]["message"] in err


def test_the_terminal_counts_the_warnings(cohort, hfrt):
    lines = (cohort / "data.csv").read_text().splitlines()
    header = lines[0].split(",")
    for n in range(1, len(lines)):
        cells = lines[n].split(",")
        cells[header.index("AGE")] = "120"
        lines[n] = ",".join(cells)
    (cohort / "data.csv").write_text("\n".join(lines) + "\n")
    arguments = ("--tabular", "data.csv", "--engine", "native", "--unmatched-rows", "ignore")
    status, _, err = hfrt(cohort, "infer", "scans", *arguments)
    assert status == 0
    assert "8 predictions carry warnings: see the column `warnings`" in err
    assert err.count("AGE 120 is outside") == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "environment", "name"),
    [
        *(("csv", e, n) for e in (ASCII, {"LC_ALL": "C.UTF-8"}) for n in ("\u00e9", "\udce9")),
        # The worst of both in every other format.
        *((suffix, ASCII, "\udce9") for suffix in ("jsonl", "parquet")),
    ],
)
def test_every_output_can_hold_any_name(cohort, name, environment, suffix):
    """In the scans' folder, a scan without a row, the artifact and every output."""
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed: no table was written")
    scans = sorted((cohort / "scans").iterdir())
    folder = cohort / f"named {name}"
    folder.mkdir()
    shutil.copy(scans[0].resolve(), folder / scans[0].name)
    shutil.copy(scans[1].resolve(), folder / f"{name}{scans[1].name}")
    (cohort / "base.hfrt").rename(cohort / f"{name}.hfrt")
    command = (
        f"hfrt infer named* --tabular data.csv --artifact '{name}.hfrt' --out 't {name}.{suffix}' "
        f"--feature-cache 'c {name}' --unmatched-rows ignore --report 'r {name}.html'"
    )
    for engine in ("native", "native --resume", "onnx --force"):
        done = shell(f"{command} --engine {engine}", cohort, **environment)
        assert "Traceback" not in done.stderr
        assert "unexpected" not in done.stderr
        # One scan has no row, which is no news in the second run.
        new = 0 if "resume" in engine else 1
        assert done.returncode == 3 * new, done.stderr
        report = (cohort / f"r {name}.html").read_text(encoding="utf-8")
        record = (cohort / f"t {name}.{suffix}.run.json").read_text(encoding="utf-8")
        assert name.encode("utf-8", "backslashreplace").decode() in report
        counts = {"ok": 1, "error": 1, "new": new, "known": 1 - new, "not_tried": 0, "skipped": 0}
        assert json.loads(record)["counts"] == counts
        (cohort / f"t {name}.{suffix}.journal").read_text(encoding="utf-8")
        if suffix != "parquet":
            (cohort / f"t {name}.{suffix}").read_text(encoding="utf-8")
