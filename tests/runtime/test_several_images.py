"""The whole way with two images of a case: study, training, export, every engine."""

import numpy as np
import pytest

import hyperfusion_rt
from hyperfusion_rt.config import load_config
from hyperfusion_rt.export import export_run

ENGINES = ["native", "onnx", "torch"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Subjects with a T1 and a FLAIR image; the AD network learns their age."""
    from hyperfusion_rt.data.simulate import simulate_cohort
    from hyperfusion_rt.training.train import train

    root = tmp_path_factory.mktemp("two")
    simulate_cohort(root, task="ad", subjects=16, seed=5, spacing=2, jobs=2, flair=True)
    change = {
        "task": "regression",
        "network": {"features": 2},
        "tabular": {
            "target": "AGE",
            "unit": "years",
            "features": [{"name": "PTGENDER", "kind": "categorical"}],
            "stratify": [],
        },
        "training": {"epochs": 1, "embedding_epochs": 1, "members": 2, "batch_size": 8, "parts": 5},
    }
    run = train(load_config(root / "hfrt.yaml", change), root, name="two")
    export_run(run, root / "two.hfrt", engines=ENGINES)
    return root


@pytest.mark.slow
def test_every_engine_says_the_same(study):
    found = {}
    for engine in ENGINES:
        predictor = hyperfusion_rt.load(study / "two.hfrt", engine=engine, batch=3)
        boxes = len(predictor.manifest.preprocessing.boxes)
        assert predictor.manifest.image_shape[0] == 2 * boxes == 4
        found[engine] = predictor.predict(study / "scans", study / "data.csv")
    assert len(found["native"]) == 16
    for engine, predictions in found.items():
        for one, other in zip(predictions, found["onnx"], strict=True):
            assert (one.subject, one.status) == (other.subject, "ok"), one.reason
            assert one.values == pytest.approx(other.values, rel=1e-5), engine


@pytest.mark.slow
def test_kept_features_and_a_limit_of_memory_change_nothing(study, tmp_path):
    """Both count the images of a case."""
    wanted = hyperfusion_rt.load(study / "two.hfrt", engine="native").predict(
        study / "scans", study / "data.csv"
    )
    for _ in range(2):
        options = {"engine": "native", "feature_cache": tmp_path / "kept", "max_memory": 4 << 30}
        predictor = hyperfusion_rt.load(study / "two.hfrt", **options)
        found = predictor.predict(study / "scans", study / "data.csv")
        np.testing.assert_array_equal([p.values for p in found], [p.values for p in wanted])
