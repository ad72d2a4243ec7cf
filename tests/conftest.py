"""One small cohort, run and artifact for the whole session."""

import os
import shutil
import tempfile
from pathlib import Path

# Before torch is imported: on a shared machine spinning threads make training many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Before Triton is imported: without a GPU its kernels run in its interpreter, on CPU tensors.
os.environ.setdefault("TRITON_INTERPRET", "1")

# The outcome of trials and built engines of the tests are not kept among the user's.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="hfrt-tests-cache-")

import pytest

from hyperfusion_rt.config import load_config

SMALL = {
    "network": {"features": 2},
    "training": {"epochs": 2, "embedding_epochs": 3, "members": 2, "batch_size": 8, "parts": 5},
}


@pytest.fixture(scope="session")
def session_cohort(tmp_path_factory):
    """A simulated AD cohort of 40 subjects at 2 mm."""
    from hyperfusion_rt.data.simulate import simulate_cohort

    root = tmp_path_factory.mktemp("cohort")
    simulate_cohort(root, task="ad", subjects=40, seed=5, spacing=2, jobs=2)
    return root


@pytest.fixture(scope="session")
def session_run(session_cohort):
    """Two members, two epochs, f = 2."""
    from hyperfusion_rt.training.train import train

    return train(load_config(session_cohort / "hfrt.yaml", SMALL), session_cohort, name="base")


@pytest.fixture(scope="session")
def session_artifact(session_run, session_cohort):
    from hyperfusion_rt.export import export_run

    return export_run(session_run, session_cohort / "base.hfrt").folder


@pytest.fixture(scope="session")
def session_sure(session_run, tmp_path_factory):
    """The same network. Few cases are enough for its artifact to scale and to know usual scans."""
    from hyperfusion_rt.export import calibration, export_run, typical_scans

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "FEWEST", 10)
        patch.setattr(typical_scans, "FEWEST", 10)
        return export_run(session_run, tmp_path_factory.mktemp("sure") / "base.hfrt").folder


@pytest.fixture
def cohort(session_cohort, session_artifact, tmp_path):
    """A copy of the cohort's files and the artifact, to be spoilt."""
    root = tmp_path / "cohort"
    root.mkdir()
    for name in ("data.csv", "truth.csv", "hfrt.yaml", "optimum.json"):
        shutil.copy(session_cohort / name, root / name)
    (root / "scans").mkdir()
    for scan in sorted((session_cohort / "scans").iterdir())[:8]:
        (root / "scans" / scan.name).symlink_to(scan)
    shutil.copytree(session_artifact, root / "base.hfrt")
    return root


@pytest.fixture
def hfrt(monkeypatch, capsys):
    """Run the command line in this process: `hfrt(folder, *arguments) -> (status, out, err)`."""
    import sys

    from hyperfusion_rt.cli import main

    def run(folder: Path, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["hfrt", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
