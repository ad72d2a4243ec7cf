"""The fusions with many small maps, from training to an artifact of a table with gaps."""

import pytest

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.config import load_config
from hyperfusion_rt.export import export_run
from hyperfusion_rt.training.train import train


@pytest.mark.parametrize("fusion", ["tabmixer", "attention"])
def test_what_was_trained_exports(session_cohort, tmp_path, fusion):
    """The export itself compares each engine with torch in float64."""
    change = {
        "network": {"features": 2, "fusion": fusion},
        "training": {"epochs": 1, "parts": 5, "members": 2},
    }
    config = load_config(session_cohort / "hfrt.yaml", change)
    run = train(config, session_cohort, name=f"export-{fusion}")
    assert any(column.gap is not None for column in run.member(0).encoder.input_columns)
    export_run(run, tmp_path / "x.hfrt")
    assert Artifact.open(tmp_path / "x.hfrt").engines == ["native", "onnx"]
