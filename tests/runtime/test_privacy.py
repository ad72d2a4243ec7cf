"""What a run writes is its owner's alone, and nothing leaves the machine."""

import os
import re
import shutil
import stat
import subprocess
import sys

import pytest

from hyperfusion_rt.errors import CODES

COMMAND = (
    sys.executable, "-m", "hyperfusion_rt.cli", "infer", "scans", "--tabular", "data.csv",
    "--unmatched-rows", "ignore", "--feature-cache", "features",
)  # fmt: skip


def environment(home):
    """A user with a home of her own, and nothing else set."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8"}


def infer(cohort, home, *arguments, before=()):
    return subprocess.run(
        [*before, *COMMAND, *arguments],
        cwd=cohort,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=300,
    )


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_outputs_are_their_owners_alone(cohort, tmp_path):
    before = files_below(cohort)
    done = infer(cohort, tmp_path, "--engine", "native")
    assert done.returncode == 0, done.stderr
    written = files_below(cohort) - before
    assert {"predictions.csv", "predictions.csv.journal", "predictions.csv.run.json"} <= written
    assert {"predictions.html", "features/features.sqlite"} <= written
    for name in written:
        assert stat.S_IMODE((cohort / name).stat().st_mode) == 0o600, name


def test_the_report_may_name_nobody(cohort, hfrt):
    scans = sorted((cohort / "scans").iterdir())
    scans[0].unlink()
    scans[0].write_bytes(b"damaged")
    arguments = ("--tabular", "data.csv", "--engine", "native", "--no-ids-in-report")
    status, _, _ = hfrt(cohort, "infer", "scans", *arguments)
    assert status == 3
    report = (cohort / "predictions.html").read_text(encoding="utf-8")
    table = (cohort / "predictions.csv").read_text(encoding="utf-8")
    subjects = [line.split(",")[0] for line in table.splitlines()[1:]]
    assert len(subjects) > 8
    assert not [name for name in subjects if name in report]
    assert "scans/" not in report
    assert "row 1" in report
    assert CODES["scan-format-unknown"] in report


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed: nothing was seen")
def test_nothing_leaves_the_machine_and_nothing_is_written_elsewhere(cohort, tmp_path):
    """`auto` tries every engine: with all that their libraries do."""
    home, log = tmp_path / "home", tmp_path / "log"
    home.mkdir()
    trace = ("strace", "-f", "-qq", "-e", "trace=socket,connect,openat,mkdir,rename,renameat2")
    done = infer(cohort, home, "--engine", "auto", before=(*trace, "-o", str(log)))
    if "PTRACE" in done.stderr:
        pytest.skip("this container does not allow strace: nothing was seen")
    assert done.returncode == 0, done.stderr
    lines = log.read_text(errors="replace").splitlines()
    assert any("predictions.csv" in line for line in lines)
    assert [line for line in lines if re.search(r"AF_INET", line)] == []
    opened = (re.search(r'openat\([^,]*, "([^"]+)", (\S*O_(?:WRONLY|RDWR)\S*)', x) for x in lines)
    here = (str(cohort), str(home / ".cache" / "hyperfusion_rt"), "/dev/", "/proc/", "/sys/")
    for found in filter(None, opened):
        path = str(cohort / found[1])
        assert path.startswith(here) or "__pycache__" in path, found[0]
    assert files_below(home) == {".cache/hyperfusion_rt/trials.json"}
