"""Small ONNX models, and their numbers in every engine beside those of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hyperfusion_rt.export.fuse.fuser import plan
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.graph import Graph, run
from hyperfusion_rt.export.onnx_import.read import read_onnx
from hyperfusion_rt.runtime.engines.native import NativeEngine

BATCH = 3  # not the batch that a graph is made with
TOLERANCE = 5e-6  # float32, of the largest number: the same as of networks from torch


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Float32 numbers, normally distributed."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def built(
    nodes,
    inputs,
    outputs=("y",),
    constants=None,
    opset=18,
    *,
    kind=TensorProto.FLOAT,
    batch="batch",
    **more,
) -> onnx.ModelProto:
    """A model. `inputs`: name → shape without the batch; `constants`: name → array or tensor."""
    tensors = [
        c if isinstance(c, TensorProto) else numpy_helper.from_array(np.asarray(c), name)
        for name, c in (constants or {}).items()
    ]
    graph = helper.make_graph(
        list(nodes),
        "test",
        [
            helper.make_tensor_value_info(name, kind, [batch, *shape])
            for name, shape in inputs.items()
        ],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        tensors,
    )
    # IR 8 is what ONNX Runtime reads of every opset here.
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **more)


def single(
    op, shape, *constants, opset=18, outputs=("y",), batch="batch", **attributes
) -> onnx.ModelProto:
    """One operation on `image`, batch and `shape`; the other inputs are constants, or None."""
    names = ["" if c is None else f"c{i}" for i, c in enumerate(constants)]
    node = helper.make_node(op, ["image", *names], list(outputs), name="node", **attributes)
    kept = {n: c for n, c in zip(names, constants, strict=True) if n}
    return built([node], {"image": shape}, outputs, kept, opset, batch=batch)


def chain(shape, *steps, opset=18) -> onnx.ModelProto:
    """`(op, constants, attributes)`, one after the other, from `image` to `y`."""
    nodes, constants, at = [], {}, "image"
    for i, (op, *rest) in enumerate(steps):
        given = rest[0] if rest else ()
        attributes = rest[1] if len(rest) > 1 else {}
        names = ["" if c is None else f"c{i}_{j}" for j, c in enumerate(given)]
        constants |= {n: c for n, c in zip(names, given, strict=True) if n}
        made = "y" if i == len(steps) - 1 else f"v{i}"
        nodes.append(helper.make_node(op, [at, *names], [made], name=f"node{i}", **attributes))
        at = made
    return built(nodes, {"image": shape}, ["y"], constants, opset)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    """The file of a model."""
    path = folder / "x.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def by_onnxruntime(model: onnx.ModelProto, feeds) -> list[np.ndarray]:
    """What ONNX Runtime makes of it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {item.name: feeds[item.name] for item in session.get_inputs()})


def by_onnx(model: onnx.ModelProto, feeds) -> list[np.ndarray]:
    """What ONNX's own reference makes of it."""
    return ReferenceEvaluator(model).run(None, feeds)


def given(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 inputs as a caller of the file has them, `[BATCH, ...]`."""
    return {name: noise(BATCH, *outside(graph, name), seed=seed) for name in graph.inputs}


def outside(graph: Graph, name: str) -> tuple[int, ...]:
    """The shape that a caller of the file sees, without the batch."""
    seen = graph.outer.get(name, graph.shapes[name])
    return (*seen[1:], seen[0]) if name in graph.last else tuple(seen)


def inside(graph: Graph, name: str, x: np.ndarray) -> np.ndarray:
    """A caller's numbers as the graph has them."""
    x = np.moveaxis(x, -1, 1) if name in graph.last else x
    return np.ascontiguousarray(x).reshape(len(x), *graph.inputs[name])


def outward(graph: Graph, name: str, y: np.ndarray) -> np.ndarray:
    """The graph's numbers as a caller has them."""
    y = y.reshape(len(y), *graph.outer.get(name, graph.shapes[name]))
    return np.moveaxis(y, 1, -1) if name in graph.last else y


def in_float64(graph: Graph, feeds) -> list[np.ndarray]:
    """The graph's own meaning."""
    prepared = {
        name: torch.from_numpy(inside(graph, name, x)).double() for name, x in feeds.items()
    }
    made = run(graph, prepared)
    return [outward(graph, n, y.numpy()) for n, y in zip(graph.outputs, made, strict=True)]


def natively(graph: Graph, feeds) -> list[np.ndarray]:
    """The native engine, of a graph with one input."""
    folded = fold(graph)
    (name,) = folded.inputs
    x = inside(graph, name, feeds[name])
    if name != "image":
        folded.replace(name, "image")
        folded.inputs = {"image": folded.inputs[name]}
        folded.shapes["image"] = folded.shapes.pop(name)
    found = NativeEngine(plan(folded, folded=True), threads=1).run(x)
    return [outward(graph, name, found[name]) for name in graph.outputs]


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest finite number; NaN and infinities are the same."""
    with np.errstate(over="ignore"):
        found, expected = (np.asarray(a).astype(np.float32) for a in (found, expected))
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    odd = ~np.isfinite(expected)
    np.testing.assert_array_equal(found[odd], expected[odd])
    if odd.all():
        return 0.0
    scale = max(np.abs(expected[~odd]).max(), 0.1)
    return float(np.abs(found[~odd] - expected[~odd]).max() / scale)


def agrees(
    model: onnx.ModelProto, folder: Path, *, reference=by_onnxruntime, feeds=None, shapes=None
) -> Graph:
    """The graph in float64, folded, and in the native engine, is what `reference` says."""
    graph = read_onnx(saved(model, folder), shapes)
    feeds = given(graph) if feeds is None else feeds
    expected = reference(model, feeds)
    assert graph.outputs == [item.name for item in model.graph.output]
    for form in (graph, fold(graph)):
        for found, wanted in zip(in_float64(form, feeds), expected, strict=True):
            assert difference(found, wanted) <= TOLERANCE
    if len(graph.inputs) == 1:
        for found, wanted in zip(natively(graph, feeds), expected, strict=True):
            assert difference(found, wanted) <= TOLERANCE
    return graph
