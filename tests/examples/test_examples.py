"""The scripts under examples/ run as they stand: the documentation shows these very files."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, *arguments):
    """Run one script in a process of its own; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in sorted(EXAMPLES.glob("*.py")) if path.name not in text] == []


def test_a_layer_in_a_model_of_your_own_learns():
    _, before, _, after = run("hyper_layer.py").split()
    assert float(after) < float(before)


def test_a_trained_network_learns_to_read_a_row():
    _, before, _, after = run("hyperfy.py").splitlines()[-1].split()
    assert float(after) < float(before)


def test_a_network_of_your_own_becomes_an_engine():
    assert "largest difference" in run("export_your_cnn.py")


def test_a_cohort_is_predicted_from_python(cohort):
    out = run("predict_from_python.py", cohort / "base.hfrt", cohort / "scans", cohort / "data.csv")
    lines = out.splitlines()
    assert lines[1] == "classes, or unit: ('CN', 'MCI', 'AD')"
    predicted = [line for line in lines[2:] if line.endswith("]")]
    assert len(predicted) == len(list((cohort / "scans").iterdir()))
