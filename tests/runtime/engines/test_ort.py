"""The ONNX Runtime engine: which provider, and inputs that stay in buffers."""

import numpy as np
import pytest

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.errors import EngineError
from hyperfusion_rt.runtime.engines.ort import PROVIDERS, OnnxEngine

ort = pytest.importorskip("onnxruntime", reason="the onnx engine is NOT run")


@pytest.fixture(scope="module")
def path(session_artifact):
    return Artifact.open(session_artifact).file("onnx")


@pytest.fixture(scope="module")
def given(session_artifact):
    manifest = Artifact.open(session_artifact).manifest
    rng = np.random.default_rng(3)
    boxes = len(manifest.preprocessing.boxes)
    image = rng.standard_normal((5, boxes, *manifest.preprocessing.shape), np.float32)
    width = sum(member.width for member in manifest.members)
    return image, rng.standard_normal((5, width), np.float32)


def same(found, expected):
    assert set(found) == set(expected) == {"output", "members"}
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_bound_buffers_give_the_same(path, given):
    """On the CPU's memory, where both ways can run; batches alternate and inputs change."""
    plain, bound = OnnxEngine(path, 1, "cpu"), OnnxEngine(path, 1, "cpu", bound=True)
    image, rows = given
    original = image.copy()
    for count in (2, 5, 2, 1, 3, 4, 2):
        first, second = (image[:count], rows[:count]), (image[-count:] + 1, rows[-count:])
        kept = bound.run(*first)
        same(kept, plain.run(*first))
        before = {name: value.copy() for name, value in kept.items()}
        same(bound.run(*second), plain.run(*second))
        same(kept, before)  # a later run does not write into an earlier one's outputs
    np.testing.assert_array_equal(image, original)  # nor into the caller's inputs


def test_the_provider_is_chosen_by_name(path, monkeypatch):
    assert OnnxEngine(path, 1, "cpu").provider == "cpu"
    monkeypatch.setenv("HFRT_ONNX_PROVIDER", "cpu")
    assert OnnxEngine(path, 1).provider == "cpu"
    monkeypatch.setenv("HFRT_ONNX_PROVIDER", "abacus")
    with pytest.raises(EngineError, match=r"there is no provider 'abacus'.*cuda, tensorrt"):
        OnnxEngine(path, 1)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_said(path, provider):
    if PROVIDERS[provider].name in ort.get_available_providers():
        pytest.skip(f"{provider} is here: the message where it is missing is NOT checked")
    with pytest.raises(EngineError, match=r"offers no .*pip install 'hyperfusion_rt\[gpu\]'"):
        OnnxEngine(path, 1, provider)


def test_a_plugin_that_is_not_there_is_said(path):
    if any(d.ep_name == PROVIDERS["tensorrt-rtx"].name for d in ort.get_ep_devices()):
        pytest.skip("the plugin is here: the message where it is missing is NOT checked")
    with pytest.raises(EngineError, match=r"not installed: pip install|finds no GPU|cannot load"):
        OnnxEngine(path, 1, "tensorrt-rtx")


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_on_a_gpu(path, given, provider):
    try:
        engine = OnnxEngine(path, 1, provider)
    except EngineError as error:
        pytest.skip(f"{provider} NOT run: {error}")
    expected = OnnxEngine(path, 1, "cpu").run(*given)
    found = engine.run(*given)
    scale = np.abs(expected["members"]).max()
    assert np.abs(found["members"] - expected["members"]).max() <= 1e-4 * scale
    for _ in range(20):
        same(engine.run(*given), found)
