"""What ONNX says in another way than PyTorch does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from torch import nn

from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.export.onnx_file.model import write_onnx

from ..networks import SHAPES, difference, exact, inputs, published

ort = pytest.importorskip("onnxruntime", reason="ONNX files NOT run")

POOLS = {
    "maximum": lambda k, s, p: nn.MaxPool3d(k, s, p, ceil_mode=True),
    "maximum, dilated": lambda k, s, p: nn.MaxPool3d(k, s, p, 2, ceil_mode=True),
    "average": lambda k, s, p: nn.AvgPool3d(k, s, p, ceil_mode=True),
    "average, padding left out": lambda k, s, p: nn.AvgPool3d(
        k, s, p, ceil_mode=True, count_include_pad=False
    ),
}


def outputs(graph, feeds, path):
    write_onnx(graph, path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {k: np.asarray(v, np.float32) for k, v in feeds.items()})


@pytest.mark.parametrize("kind", POOLS)
def test_pooling_that_rounds_its_size_up(kind, tmp_path):
    """Each axis rounds up, or drops a window that starts in the padding, or fits."""
    for kernel, stride, padding in itertools.product((2, 3), (1, 2, 3), (0, 1)):
        for size in ((5, 6, 7), (8, 8, 8)):
            module = POOLS[kind](kernel, stride, padding)
            graph = lower(module, {"image": (2, *size)})
            feeds = inputs(graph, 2)
            (found,) = outputs(graph, feeds, tmp_path / "x.onnx")
            assert difference(found, exact(module, feeds)) <= 1e-6


def test_the_file_names_inputs_that_nothing_reads(tmp_path):
    """The runtime feeds the volume and the row to every network."""
    network = published("ad", "image")
    graph = lower(network, {"image": (1, *SHAPES["ad"]), "tabular": (5,)})
    feeds = inputs(graph, 2)
    (found,) = outputs(graph, feeds, tmp_path / "x.onnx")
    assert difference(found, exact(network, feeds)) <= 5e-6
