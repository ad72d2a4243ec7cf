"""TensorRT engines: what is built, in which types, and what is said of it. Nothing runs here."""

from __future__ import annotations

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch

from hyperfusion_rt.errors import EngineError, HyperFusionError
from hyperfusion_rt.export.compare import Expected, compare
from hyperfusion_rt.export.ir.ensemble import Ensemble, join
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.export.ir.typed import Typed
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.export.precision import Emulated, blame, check_drift, choose, drift
from hyperfusion_rt.export.targets.tensorrt_engine import export_tensorrt, runs_here
from hyperfusion_rt.runtime.engines.gpu import Gpu
from hyperfusion_rt.runtime.engines.ort import OnnxEngine
from hyperfusion_rt.runtime.engines.trt_build import BuildOptions, Built, build

from ..ir.test_lower import MODULES, V
from ..networks import FUSIONS, SHAPES, MidTrunk, published, shaken
from ..rtx import INSTALLED, OPTIONS, all_narrow, builds

PRECISIONS = ("fp32", "fp16", "bf16")
needs_rtx = pytest.mark.skipif(
    not INSTALLED, reason="tensorrt_rtx is not installed: its engines are NOT built"
)


def ensemble_of(task, networks, shape=None, boxes=2, channels=1):
    shape, width = shape or SHAPES[task], 5 if task == "ad" else 2
    graphs = [fold(lower(n, {"image": (channels, *shape), "tabular": (width,)})) for n in networks]
    widths = [width] * len(graphs)
    rule = "confidence_weighted" if task == "ad" else "mean"
    made = join(graphs, widths, boxes, classes=task == "ad", rule=rule)
    rng = np.random.default_rng(1)
    image = rng.standard_normal((4, boxes, channels, *shape), np.float32)
    rows = [rng.standard_normal((4, width), np.float32) for _ in networks]
    return made, Expected.of(
        networks,
        image,
        rows,
        real=False,
        classes=task == "ad",
        rule=rule,
        spread=1.0 if task == "ad" else 10.0,
    )


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("task", SHAPES)
def test_published_networks(task, fusion, precision):
    network = published(task, fusion)
    shapes = {"image": (1, *SHAPES[task]), "tabular": (5 if task == "ad" else 2,)}
    graph = lower(network, shapes)
    builds(graph, precision)
    builds(fold(graph), precision)


@needs_rtx
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_generated_layer_in_the_middle(precision):
    shapes = {"image": (1, 9, 10, 11), "tabular": (5,)}
    builds(fold(lower(shaken(MidTrunk()), shapes)), precision)


@needs_rtx
def test_what_tensorrt_cannot_build_is_said():
    graph = lower(MODULES[DILATED], {"image": V})
    with pytest.raises(EngineError, match=r"cannot build it.*Strided & Dilated Deconv"):
        builds(graph, "fp32")


DILATED = "transposed conv, dilated"


@needs_rtx
@pytest.mark.parametrize("name", [name for name in MODULES if name != DILATED])
def test_every_operation(name):
    graph = lower(shaken(MODULES[name]), {"image": V})
    if graph.outputs == ["image"]:
        pytest.skip("nothing is left to build: the module does nothing in eval mode")
    for precision in PRECISIONS:
        builds(graph, precision)


@needs_rtx
@pytest.mark.parametrize(
    "rule", ["mean", "confidence_weighted", "weighted_voting", "most_confident"]
)
def test_an_ensemble_with_every_rule(rule):
    networks = [published("ad", "hyper") for _ in range(3)]
    shapes = {"image": (1, *SHAPES["ad"]), "tabular": (5,)}
    graphs = [fold(lower(n, shapes)) for n in networks]
    builds(join(graphs, [5] * 3, 2, classes=True, rule=rule), "fp16")


@needs_rtx
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("task", SHAPES)
def test_an_ensemble_on_several_images(task, precision, tmp_path):
    """Two boxes of three images: built, and the same graph run in its place."""
    networks = [published(task, "hyper", channels=3) for _ in range(2)]
    ensemble, expected = ensemble_of(task, networks, channels=3)
    assert ensemble.inputs["image"] == (6, *SHAPES[task])
    found = export_tensorrt("trt-rtx", ensemble, expected, tmp_path, precision, OPTIONS)
    assert found.comparison.largest_difference <= found.comparison.tolerance


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("task", SHAPES)
def test_the_emulation_rounds_as_onnx_runtime_does(task, fusion, tmp_path):
    """The same float16 graph, by ONNX Runtime and emulated: a few roundings apart at most."""
    pytest.importorskip("onnxruntime", reason="the emulation is NOT compared")
    ensemble, expected = ensemble_of(task, [published(task, fusion)])
    typed = choose(ensemble, "fp16", expected)
    write_onnx(ensemble, tmp_path / "x.onnx", typed)
    given = expected.image, np.concatenate(expected.rows, 1)
    ran = OnnxEngine(tmp_path / "x.onnx", 1).run(*given)["members"]
    emulated = Emulated(ensemble, "fp16", typed.narrow).run(*given)["members"]
    exact = expected.outputs.reshape(ran.shape)
    scale = max(np.abs(exact).max(), 0.1)  # a network of dead units leaves a bias of 0.001
    assert np.abs(ran - emulated).max() / scale <= 2e-3
    if fusion != "tabular":
        assert np.abs(emulated - exact).max() / scale > 5e-7  # it does round
    assert np.abs(emulated - exact).max() / scale <= 4e-3


def loud(factor):
    """A network whose first convolution makes numbers `factor` times as large, and then not."""
    network = published("brain-age", "hyper")
    with torch.no_grad():
        network.conv1_a.weight.mul_(factor)
        network.conv1_a.bias.mul_(factor)
        network.conv1_b.weight.div_(factor)
    return network


def test_what_does_not_fit_float16_stays_float32():
    ensemble, expected = ensemble_of("brain-age", [loud(1e5)], boxes=1)
    typed = choose(ensemble, "fp16", expected)
    assert any("conv1_a" in layer for layer in typed.kept)
    assert all(value > 65504 / 8 for value in typed.kept.values())
    good = drift(ensemble, typed, expected)
    everything = all_narrow(ensemble, "fp16")
    assert len(everything.narrow) > len(typed.narrow)
    assert good < 0.1 < drift(ensemble, everything, expected)
    assert not choose(ensemble, "bf16", expected).kept  # the range of float32
    assert choose(ensemble, "fp32", expected) == Typed("fp32")


def test_a_drift_is_refused_and_its_layer_named():
    """A normalisation takes off what a bias adds; folded, conv3_a reads large numbers and takes it
    off: bfloat16 loses the small difference.
    """
    network = published("brain-age", "hyper")
    with torch.no_grad():
        network.conv2_b.bias.add_(300.0)
    network.batchnorm2.running_mean.add_(300.0)
    ensemble, expected = ensemble_of("brain-age", [network], boxes=1)
    typed = choose(ensemble, "bf16", expected)
    found = drift(ensemble, typed, expected)
    layer, alone = blame(ensemble, typed, expected)
    assert alone > 0
    with pytest.raises(HyperFusionError, match=r"bf16 \(emulated\): the result drifts") as error:
        check_drift(ensemble, typed, replace(expected, drift=found / 2))
    assert f"'{layer}' alone causes {alone:.2g}" in str(error.value)
    assert layer == "m0: conv3_a (conv)"
    assert check_drift(ensemble, typed, replace(expected, drift=found)) == found
    small = replace(expected, drift=found / 100)
    assert check_drift(ensemble, Typed("fp32"), small) < found / 100
    with pytest.raises(HyperFusionError, match="'float32 itself' alone"):
        check_drift(ensemble, Typed("fp32"), replace(expected, drift=0.0))


@needs_rtx
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_files_and_the_record(precision, tmp_path):
    ensemble, expected = ensemble_of("ad", [published("ad", "hyper")])
    phases = []
    found = export_tensorrt(
        "trt-rtx", ensemble, expected, tmp_path, precision, OPTIONS,
        lambda phase, done, steps: phases.append(phase),
    )  # fmt: skip
    assert [part for part, _ in found.files] == ["whole", "source", "log"]
    assert all(path.exists() for _, path in found.files)
    log = gzip.decompress(found.files[2][1].read_bytes()).decode()
    assert "[VERBOSE]" in log
    assert "Building engine" in phases
    made = found.build
    if made.gpu is None:
        assert made.status == "built, not run"
        by = {"bf16": "emulated"}.get(precision, "ONNX Runtime, same graph")
        assert found.comparison.by == by
    assert (made.batch, made.capabilities, found.device) == ((1, 2, 4), (80,), "sm_80")
    assert (made.narrow > 0) == (precision != "fp32")
    assert found.comparison.largest_difference <= found.comparison.tolerance


@needs_rtx
def test_what_cannot_be_built_is_said(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(EngineError, match=r"broken\.onnx: trt-rtx cannot read it"):
        build("trt-rtx", path, OPTIONS)
    ensemble, _ = ensemble_of("ad", [published("ad", "hyper")])
    assert isinstance(ensemble, Ensemble)
    write_onnx(ensemble, path)
    for wrong in (75, 70, 999):
        with pytest.raises(EngineError, match=f"compute capability {wrong}: .* builds for 80, 86"):
            build("trt-rtx", path, type(OPTIONS)(capabilities=(wrong,)))


def test_it_is_compared_only_on_a_gpu_that_it_was_built_for():
    hopper = Built(b"", "1", 0.1, 1, Gpu("NVIDIA H100", 90, "580"))
    nowhere = Built(b"", "1", 0.1, 1, None)
    assert runs_here("trt", hopper, BuildOptions())
    assert not runs_here("trt-rtx", hopper, BuildOptions(capabilities=(80, 89)))
    assert runs_here("trt-rtx", hopper, BuildOptions(capabilities=(80, 90)))
    assert not runs_here("trt-rtx", nowhere, BuildOptions())


def test_a_wrong_engine_does_not_pass_in_its_place():
    ensemble, expected = ensemble_of("ad", [published("ad", "hyper")])
    wrong = Emulated(ensemble, "bf16", all_narrow(ensemble, "bf16").narrow)
    with pytest.raises(HyperFusionError, match="more than the tolerance"):
        compare(wrong, expected, name="x", precision="fp32")
