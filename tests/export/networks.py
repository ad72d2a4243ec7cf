"""Small networks with weights and statistics that are not trivial."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import nn

from hyperfusion_rt.config import NetworkConfig
from hyperfusion_rt.export.ir.graph import run
from hyperfusion_rt.models import HyperConv3d, build_network

SHAPES = {"ad": (16, 24, 16), "brain-age": (36, 44, 36)}
FUSIONS = ("hyper", "film", "daft", "concat", "image", "tabular", "tabmixer", "attention")


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` in eval mode, its normalisation with random statistics and weights."""
    torch.manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm3d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            if m.affine:
                m.weight.data.uniform_(0.5, 2)
                m.bias.data.normal_()
    return module.eval()


def published(
    task: str,
    fusion: str,
    channels: int = 1,
    outputs: int | None = None,
    shape: tuple[int, ...] | None = None,
    **fields: object,
) -> nn.Module:
    """A small network of ours; T = 5, or 2 for brain age; 3 outputs, or 1."""
    torch.manual_seed(1)
    config = NetworkConfig(architecture=task, fusion=fusion, **{"features": 4, **fields})
    width, usual = (5, 3) if task == "ad" else (2, 1)
    network = build_network(
        config,
        shape=shape or SHAPES[task],
        tabular_width=width,
        outputs=outputs or usual,
        channels=channels,
    )
    return shaken(network)


class MidTrunk(nn.Module):
    """A generated 3x3x3 layer, in groups, in the middle of the trunk."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.norm = nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6)
        self.hyper = HyperConv3d(
            6, 8, 3, condition_features=5, embedding_features=3, padding=1, groups=2
        )
        self.norm2 = nn.BatchNorm3d(8)
        self.last, self.linear = nn.Conv3d(8, 4, 3, stride=2), nn.Linear(4, 2)

    def forward(self, image, tabular):
        x = self.norm(self.first(image)).relu()
        x = self.norm2(self.hyper(x, tabular)).relu()
        return self.linear(self.last(x).relu().mean((2, 3, 4)))


def as_onnx(module, example, path, **options):
    """Write `module` by torch's older exporter, which needs no more packages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is older, and what tracing fixes
        torch.onnx.export(module, example, path, dynamo=False, opset_version=17, **options)
    return path


def of_a_scan(path, module, shape=(20, 24, 20)):
    """Write `module`, of one image `shape`, with its batch open and its input called `scan`."""
    example = (torch.zeros(1, 1, *shape),)
    return as_onnx(module, example, path, input_names=["scan"], dynamic_axes={"scan": {0: "n"}})


def inputs(graph, batch=3, seed=3):
    """Random float64 inputs for a graph: `{name: [B, ...]}`."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(batch, *shape, generator=g, dtype=torch.float64)
        for name, shape in graph.inputs.items()
    }


def difference(found, expected) -> float:
    """The largest difference, over the largest value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def exact(module: nn.Module, feeds) -> np.ndarray:
    """The module itself in float64."""
    with torch.no_grad():
        return module.double()(*feeds.values()).numpy()


def outcome(graph, feeds) -> np.ndarray:
    """The graph in float64."""
    return run(graph, feeds)[0].numpy()
