"""The scripts under examples/ run as they stand: the documentation shows these very files."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hyperfusion_rt.config import load_config

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


@pytest.mark.slow
def test_a_network_of_your_own_is_trained(session_cohort, tmp_path, hfrt):
    """As the documentation has it, with one epoch."""
    page = (EXAMPLES.parent / "docs" / "how-to" / "own-network.md").read_text(encoding="utf-8")
    settings, *others = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    commands = re.search(
        r"^    (hfrt train)\n    (hfrt export)\n    hfrt infer", page, re.MULTILINE
    )
    assert commands
    assert "torch.Size([2, 3])" in run("own_network.py")
    root = tmp_path / "study"
    shutil.copytree(session_cohort, root, ignore=shutil.ignore_patterns("runs", "*.hfrt"))
    shutil.copy(EXAMPLES / "own_network.py", root)
    (root / "hfrt.yaml").write_text(settings, encoding="utf-8")
    assert hfrt(root, "train", "--set", "training.epochs=1", "--name", "own")[0] == 0
    (root / "own_network.py").unlink()
    assert hfrt(root, "export", "--engine", "native")[0] == 0
    status, _, _ = hfrt(root, "infer", "scans", "--tabular", "data.csv", "--out", "p.csv")
    assert status == 0
    assert (root / "p.csv").read_text(encoding="utf-8").count("\n") == 41
    # The others are right, too, as far as that can be said without their weights.
    for text in others:
        (root / "hfrt.yaml").write_text(text, encoding="utf-8")
        assert load_config(root / "hfrt.yaml").network.own


def test_a_network_of_your_own_becomes_an_engine():
    assert "largest difference" in run("export_your_cnn.py")


def test_a_cohort_is_predicted_from_python(cohort):
    out = run("predict_from_python.py", cohort / "base.hfrt", cohort / "scans", cohort / "data.csv")
    lines = out.splitlines()
    assert lines[1] == "classes, or unit: ('CN', 'MCI', 'AD')"
    predicted = [line for line in lines[2:] if line.endswith("]")]
    assert len(predicted) == len(list((cohort / "scans").iterdir()))
