"""Networks of MONAI: what torch writes is read as it is lowered, what we write is read again."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.export.onnx_import.read import read_onnx

from ..networks import shaken
from .models import difference, in_float64, natively, noise

nets = pytest.importorskip("monai.networks.nets", reason="networks of MONAI NOT tried")
TOLERANCE = 1e-5  # float32, of the largest number


def _senet():
    from monai.networks.blocks.squeeze_and_excitation import SEResNeXtBottleneck

    return nets.SENet(
        spatial_dims=3, in_channels=1, block=SEResNeXtBottleneck, layers=(1, 1, 1, 1), groups=4,
        reduction=4, num_classes=3, inplanes=8, input_3x3=False, downsample_kernel_size=1,
    )  # fmt: skip


NETWORKS = {
    "UNet": (lambda: nets.UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=1), 16),
    "SegResNet": (
        lambda: nets.SegResNet(
            init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 1), blocks_up=(1,)
        ),
        16,
    ),
    "DynUNet": (lambda: nets.DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2] * 2, filters=(4, 8, 8)), 16),
    "BasicUNet": (lambda: nets.BasicUNet(3, 1, 2, (4, 4, 8, 8, 8, 4)), 32),
    "AttentionUnet": (lambda: nets.AttentionUnet(3, 1, 2, (4, 8, 16), (2, 2)), 16),
    "ResNet": (
        lambda: nets.ResNet("basic", [1] * 4, [4, 8, 8, 16], n_input_channels=1, num_classes=3),
        32,
    ),
    "DenseNet": (
        lambda: nets.DenseNet(3, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2)),
        32,
    ),
    "EfficientNet": (
        lambda: nets.EfficientNetBN(
            "efficientnet-b0", spatial_dims=3, in_channels=1, num_classes=3, pretrained=False
        ),
        32,
    ),
    "SEResNeXt": (_senet, 32),
    "other layers": (
        lambda: nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.Upsample(scale_factor=2, mode="trilinear"),
            nn.InstanceNorm3d(4), nn.GELU(), nn.GroupNorm(2, 4), nn.SiLU(), nn.PReLU(4),
            nn.ConvTranspose3d(4, 2, 3, 2, 1, 1), nn.AvgPool3d(2), nn.Softmax(1),
        ),
        8,
    ),
}  # fmt: skip
EVERY = [(name, opset, dynamo) for dynamo in (False, True) for name in NETWORKS
         for opset in (13, 17, 18, 20)]  # fmt: skip
FEW = [("SegResNet", 13, False), ("AttentionUnet", 17, False), ("other layers", 20, False)]


def exported(network, shape, path, opset, *, dynamo):
    """The file that torch writes of `network`, with a dynamic batch."""
    names = {"input_names": ["image"], "output_names": ["output"], "opset_version": opset}
    if dynamo:
        names |= {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "external_data": False}
    else:
        names |= {"dynamic_axes": {"image": {0: "batch"}, "output": {0: "batch"}}}
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(network, (torch.zeros(2, *shape),), str(path), dynamo=dynamo, **names)
    finally:
        logging.disable(logging.NOTSET)


def operations(graph):
    return Counter(node.op for node in fold(graph).nodes)


def described(graph):
    """The graph up to the names of its values."""
    numbers = {name: i for i, name in enumerate([*graph.inputs, *(n.output for n in graph.nodes)])}
    return [
        (n.op, n.attrs, sorted(n.arrays), [numbers[v] for v in n.inputs], graph.shapes[n.output])
        for n in graph.nodes
    ]


@pytest.mark.parametrize(
    ("name", "opset", "dynamo"),
    [pytest.param(*case, marks=[] if case in FEW else [pytest.mark.slow]) for case in EVERY],
)
def test_files_of_torch(name, opset, dynamo, tmp_path):
    torch.manual_seed(0)
    make, size = NETWORKS[name]
    network, shape = shaken(make()), (1, size, size, size)
    lowered = lower(network, {"image": shape})
    x = {"image": noise(2, *shape)}
    with torch.no_grad():
        expected = network.float()(torch.from_numpy(x["image"])).numpy()
    path = tmp_path / "x.onnx"
    exported(network, shape, path, opset, dynamo=dynamo)
    graph = read_onnx(path)
    assert graph.inputs == {"image": shape}
    assert graph.outputs == ["output"]
    assert operations(graph) == operations(lowered)
    assert difference(in_float64(graph, x)[0], expected) <= TOLERANCE
    assert difference(natively(graph, x)[0], expected) <= TOLERANCE
    for form in (graph, fold(graph)):
        write_onnx(form, path)
        again = read_onnx(path)
        assert described(fold(again)) == described(fold(graph))
        for one, other in zip(fold(again).nodes, fold(graph).nodes, strict=True):
            for key, array in other.arrays.items():
                np.testing.assert_allclose(one.arrays[key], array, rtol=1e-6, atol=1e-7)
