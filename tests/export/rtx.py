"""Builds graphs with TensorRT-RTX, which needs no GPU, where it is installed."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

from hyperfusion_rt.export.ir.ensemble import Ensemble
from hyperfusion_rt.export.ir.graph import Graph
from hyperfusion_rt.export.ir.typed import Typed
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.export.precision import TYPES, could_be_narrow
from hyperfusion_rt.runtime.engines.trt_build import BuildOptions, Built, build

INSTALLED = importlib.util.find_spec("tensorrt_rtx") is not None
OPTIONS = BuildOptions(batch=(1, 2, 4), capabilities=(80,))


def all_narrow(content: Graph | Ensemble, precision: str) -> Typed:
    """Every node that reads and makes volumes."""
    if precision not in TYPES:
        return Typed(precision)
    graphs = [content] if isinstance(content, Graph) else [content.trunk, content.head]
    nodes = [n.output for g in graphs for n in g.nodes if could_be_narrow(g, n, precision)]
    return Typed(precision, frozenset(nodes))


def builds(content: Graph | Ensemble, precision: str = "fp32") -> Built | None:
    """Write, parse and build; None where the package is missing. An error fails the test."""
    if not INSTALLED:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.onnx"
        write_onnx(content, path, all_narrow(content, precision))
        built = build("trt-rtx", path, OPTIONS)
    assert built.layers > 0
    assert len(built.content) > 0
    return built
