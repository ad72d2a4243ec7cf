"""`compile`, `save` and `load_network`: any network on the native engine."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import hyperfusion_rt
from hyperfusion_rt.errors import EngineError, HyperFusionError

from .networks import as_onnx, difference, shaken


class Several(nn.Module):
    """Two inputs, and outputs in a dictionary and a list."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(4, 5)

    def forward(self, picture, row):
        y = self.conv(picture) * self.linear(row)[:, :, None, None]
        return {"map": y.relu(), "mean": [y.mean((2, 3)), row]}


def segmenter():
    torch.manual_seed(1)
    return shaken(
        nn.Sequential(
            nn.Conv3d(1, 8, 3, 2, 1), nn.InstanceNorm3d(8, affine=True), nn.PReLU(8),
            nn.ConvTranspose3d(8, 4, 2, 2), nn.GroupNorm(2, 4), nn.GELU(), nn.Conv3d(4, 2, 1),
            nn.Softmax(1),
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 1, 12, 10, 14, generator=torch.Generator().manual_seed(0))


def exactly(module, *inputs):
    with torch.inference_mode():
        return module.double()(*(x.double() for x in inputs))


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 5e-6), ("bf16", 2e-2)])
def test_a_module(image, precision, limit):
    network = hyperfusion_rt.compile(segmenter(), image[:1], precision=precision)
    found = network(image)
    assert isinstance(found, torch.Tensor)
    assert difference(found, exactly(segmenter(), image)) <= limit
    assert network.inputs == {"input": (1, 12, 10, 14)}
    assert network.outputs == {"output": (2, 12, 10, 14)}
    assert network.precision == precision


def test_several_inputs_and_outputs():
    inputs = torch.randn(3, 3, 9, 7), torch.randn(3, 4)
    network = hyperfusion_rt.compile(Several(), inputs)
    expected = exactly(Several(), *inputs)
    for found in (network(*inputs), network(row=inputs[1], picture=inputs[0])):
        assert [tuple(f.shape) for f in found] == [(3, 5, 9, 7), (3, 5), (3, 4)]
        for have, want in zip(found, [expected["map"], *expected["mean"]], strict=True):
            assert difference(have, want) <= 1e-6
    named = hyperfusion_rt.compile(Several(), dict(zip(("picture", "row"), inputs, strict=True)))
    assert difference(named(*inputs)[0], expected["map"]) <= 1e-6


def test_a_file_runs_without_torch(image, tmp_path):
    network = hyperfusion_rt.compile(segmenter(), image)
    network.save(tmp_path / "net")
    np.save(tmp_path / "x.npy", image.numpy())
    program = (
        "import sys, numpy as np; sys.modules['torch'] = None\n"
        "import hyperfusion_rt\n"
        "net = hyperfusion_rt.load_network(sys.argv[1] + '/net', threads=1)\n"
        "np.save(sys.argv[1] + '/y.npy', net(np.load(sys.argv[1] + '/x.npy')))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), network(image.numpy()))


@pytest.mark.parametrize("batch", [True, False])
def test_an_onnx_file(image, batch, tmp_path):
    path, module = tmp_path / "x.onnx", segmenter()
    axes = {"picture": {0: "n"}} if batch else None
    as_onnx(
        module, (image[:1],), path,
        input_names=["picture"], output_names=["mask"], dynamic_axes=axes,
    )  # fmt: skip
    network = hyperfusion_rt.compile(path)
    assert (list(network.inputs), list(network.outputs)) == (["picture"], ["mask"])
    assert difference(network(image.numpy()), exactly(module, image)) <= 5e-6


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(2, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


def test_channels_that_come_last(tmp_path):
    x, module = torch.randn(2, 4, 5, 6, 2), Last()
    as_onnx(module, (x,), tmp_path / "x.onnx")
    network = hyperfusion_rt.compile(tmp_path / "x.onnx")
    assert list(network.inputs.values()) == [(4, 5, 6, 2)]
    found = network(x.numpy())
    assert found.shape == (2, 4, 5, 6, 3)
    assert difference(found, exactly(module, x)) <= 1e-6
    assert difference(hyperfusion_rt.compile(module.float(), x)(x), found) <= 1e-6


def test_the_module_stays_as_it_is(image):
    module = segmenter().train()
    before = [p.clone() for p in module.parameters()]
    hyperfusion_rt.compile(module, image)
    assert module.training
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (None, "the example: the network takes input"),
        ((torch.zeros(1, 1, 4, 4, 4),) * 2, "the example: the network takes input"),
        (torch.zeros(3), "has the shape \\[3\\]"),
        (torch.zeros(1, 3, 4, 4, 4), "cannot be exported"),
    ],
)
def test_an_example_that_does_not_fit(example, message):
    with pytest.raises(HyperFusionError, match=message):
        hyperfusion_rt.compile(segmenter(), example)


def test_what_is_wrong_is_said(image, tmp_path):
    network = hyperfusion_rt.compile(segmenter(), image)
    with pytest.raises(EngineError, match="has the inputs input; it was given 2"):
        network(image, image)
    with pytest.raises(EngineError, match=r"input is \[B, 1, 12, 10, 14\]"):
        network(image[:, :, 1:])
    with pytest.raises(HyperFusionError, match="`precision` is fp32 or bf16"):
        hyperfusion_rt.compile(segmenter(), image, precision="int8")
    (tmp_path / "no").write_bytes(b"nothing")
    with pytest.raises(EngineError, match="not an engine file"):
        hyperfusion_rt.load_network(tmp_path / "no")


class Twisted(nn.Module):
    """What torch runs is not what it exports."""

    def forward(self, x):
        return x * (2.0 if torch.compiler.is_exporting() else 1.0)


def test_an_engine_that_differs_is_refused(image):
    with pytest.raises(HyperFusionError, match=r"differs from the network's by 1.0e\+00"):
        hyperfusion_rt.compile(Twisted(), image)
