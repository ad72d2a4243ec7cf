"""The torch engine: what it runs on which device, its files, its errors.

That it computes the right thing is checked beside the native engine, in tests/export.
"""

import csv
import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.artifact.plan import read_plan
from hyperfusion_rt.errors import EngineError
from hyperfusion_rt.export import export_run
from hyperfusion_rt.runtime.engines.eager import TorchEngine
from hyperfusion_rt.runtime.engines.native import NativeEngine


@pytest.fixture
def plan(session_artifact):
    return read_plan(Artifact.open(session_artifact).file("native"))


def given(plan, batch=3):
    rng = np.random.default_rng(2)
    shapes = {**plan.head.inputs, "image": (plan.boxes, *plan.trunk.inputs["image"][1:])}
    return [rng.standard_normal((batch, *shapes[n]), np.float32) for n in ("image", "tabular")]


def off(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.slow
def test_the_fused_kernels_in_the_interpreter(plan, monkeypatch):
    """As on CUDA, but on CPU tensors: every convolution of the trunk is one Triton launch."""
    pytest.importorskip("triton", reason="Triton is not installed: its kernels are NOT checked")
    from hyperfusion_rt.kernels import backend
    from hyperfusion_rt.kernels.gpu import configs, launch

    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton's interpreter is off")
    monkeypatch.setattr(backend, "TRITON_DEVICES", {"cpu", "cuda"})
    huge = configs.Config(16384, 32, 64, 4, 1, 255)
    monkeypatch.setattr(configs, "CONV3D", dict.fromkeys(configs.CONV3D, huge))
    launches = []
    plain = launch.conv3d
    monkeypatch.setattr(launch, "conv3d", lambda *a, **k: launches.append(1) or plain(*a, **k))
    image, tabular = given(plan, 1)
    expected = NativeEngine(plan)(image, tabular)
    assert off(TorchEngine(plan, device="cpu")(image, tabular), expected) < 1e-5
    convs = [op for op in plan.trunk.ops if op.op == "conv"]
    assert len(launches) == len(convs) + sum(bool(op.shortcut) for op in convs)


@pytest.mark.gpu
def test_on_a_gpu(plan):
    if not torch.cuda.is_available():
        pytest.skip("no GPU: the torch engine on CUDA is NOT checked")
    image, tabular = given(plan)
    expected = NativeEngine(plan)(image, tabular)
    assert off(TorchEngine(plan, device="cuda")(image, tabular), expected) < 1e-5
    narrow = dataclasses.replace(plan, precision="bf16")
    assert off(TorchEngine(narrow, device="cuda")(image, tabular), expected) < 2e-2


def probabilities(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([[float(row[c]) for c in row if c.startswith("p_")] for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_exported_and_used(session_run, cohort, hfrt, precision):
    out = cohort / "torch.hfrt"
    artifact = export_run(session_run, out, engines=["torch"], precision=precision)
    entry = artifact.manifest.engines[0]
    assert (entry.engine, entry.precision, entry.file) == ("torch", precision, "model.torch")
    assert 0 < entry.comparison.largest_difference < entry.comparison.tolerance
    base = ["infer", "scans", "--tabular", "data.csv", "--unmatched-rows", "ignore"]
    status, _, err = hfrt(cohort, *base, "--artifact", out, "--engine", "torch", "--out", "a.csv")
    assert status == 0, err
    assert hfrt(cohort, *base, "--artifact", "base.hfrt", "--out", "b.csv")[0] == 0
    one, other = (probabilities(cohort / name) for name in ("a.csv", "b.csv"))
    assert one.shape == other.shape == (8, 3)
    np.testing.assert_allclose(one, other, atol=1e-5 if precision == "fp32" else 2e-2)


def test_one_batch_is_its_samples(plan):
    image, tabular = given(plan)
    engine = TorchEngine(plan, device="cpu")
    alone = [engine(image[i : i + 1], tabular[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(engine(image, tabular), np.concatenate(alone), atol=1e-5)


def test_inputs_that_do_not_fit_are_named(plan):
    engine = TorchEngine(plan, device="cpu")
    image, tabular = given(plan)
    with pytest.raises(EngineError, match=r"tabular is .* but it was given nothing"):
        engine(image)
    with pytest.raises(EngineError, match=r"image is .* but it was given an array"):
        engine(image[..., 1:], tabular)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"op": "fourier"}, "operation 'fourier'"),
        ({"inputs": ["nobody"]}, "reads 'nobody'"),
        ({"tensors": {"weight": "gone", "bias": "gone"}}, "names the tensor 'gone'"),
        ({"attrs": {}}, "cannot|not an engine file"),
    ],
)
def test_a_plan_it_cannot_run_is_refused(session_artifact, tmp_path, change, message):
    path = Artifact.open(session_artifact).file("native")
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    body = json.loads(metadata["plan"])
    body["trunk"]["ops"][0].update(change)
    save_file(load_file(path), tmp_path / "x", {**metadata, "plan": json.dumps(body)})
    with pytest.raises(EngineError, match=message) as caught:
        TorchEngine(tmp_path / "x", device="cpu")
    assert caught.value.code == "engine-file-damaged"
