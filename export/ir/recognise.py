"""Operations that a file or a module spells out in smaller ones, put back together.

A rule looks for one place where it applies, changes the graph there, and says whether it did. What
comes out is the same function of real numbers; it runs as one operation, and rounds once.
"""

from __future__ import annotations

import math

import numpy as np

from hyperfusion_rt.artifact.operations import (
    Activation,
    Kind,
    Normalisation,
    Reduction,
    Subsampling,
)
from hyperfusion_rt.export.ir.graph import Graph, Node

# What multiplies x in these activations.
_GATES: dict[str, Kind] = {"sigmoid": "silu", "hardsigmoid": "hardswish"}


def _act(graph: Graph, value: str, kind: str) -> str | None:
    """What `value` is this activation of."""
    node = graph.producer(value)
    if node is None or node.op != "activation" or node.given(Activation).kind != kind:
        return None
    return node.inputs[0]


def _one(array: np.ndarray) -> float | None:
    """The number that an array holds, if all are equal."""
    return float(array.flat[0]) if np.all(array == array.flat[0]) else None


def _scaled(graph: Graph, value: str) -> tuple[str, float, float]:
    """(x, scale, shift) of a value that is x, or an affine map of it with two numbers."""
    node = graph.producer(value)
    if node is not None and node.op == "affine":
        scale, shift = (_one(node.arrays[name]) for name in ("scale", "shift"))
        if scale is not None and shift is not None:
            return node.inputs[0], scale, shift
    return value, 1.0, 0.0


def _near(a: float, b: float) -> bool:
    # Constants of a file are float32.
    return math.isclose(a, b, rel_tol=1e-6)


def _becomes(graph: Graph, node: Node, kind: Kind, x: str, factor: float = 1.0) -> None:
    """`node` makes `factor` times this activation of `x`."""
    if factor == 1.0:
        node.op, node.inputs, node.arrays, node.attrs = "activation", [x], {}, Activation(kind=kind)
        return
    attrs = Activation(kind=kind)
    made = graph.add("activation", [x], graph.shapes[x], before=node, like=node, attrs=attrs)
    channels = graph.shapes[x][0]
    node.op, node.inputs, node.attrs = "affine", [made], None
    node.arrays = {"scale": np.full(channels, factor), "shift": np.zeros(channels)}


def gated_activation(graph: Graph) -> bool:
    """`x sigmoid(x)` is silu, `x tanh(softplus(x))` mish, `x hardsigmoid(x)` hardswish."""
    for node in graph.nodes:
        if node.op != "mul":
            continue
        for x, gate in (node.inputs, node.inputs[::-1]):
            for kind, whole in _GATES.items():
                if _act(graph, gate, kind) == x:
                    _becomes(graph, node, whole, x)
                    return True
            inner = _act(graph, gate, "tanh")
            if inner is not None and _act(graph, inner, "softplus") == x:
                _becomes(graph, node, "mish", x)
                return True
    return False


def hard_gate(graph: Graph) -> bool:
    """`clip(x / 6 + 1/2, 0, 1)` and `relu6(x + 3) / 6` are hardsigmoid."""
    for node in graph.nodes:
        if node.op == "activation" and node.given(Activation).kind == "clip":
            act = node.given(Activation)
            x, scale, shift = _scaled(graph, node.inputs[0])
            if (act.alpha, act.beta) == (0, 1) and _near(scale, 1 / 6) and _near(shift, 0.5):
                _becomes(graph, node, "hardsigmoid", x)
                return True
        if node.op == "affine":
            made, outer, none = _scaled(graph, node.output)
            inner = _act(graph, made, "relu6") if none == 0 and _near(outer, 1 / 6) else None
            x, scale, shift = _scaled(graph, inner) if inner is not None else ("", 0.0, 0.0)
            if (scale, shift) == (1, 3):
                _becomes(graph, node, "hardsigmoid", x)
                return True
    return False


def gelu(graph: Graph) -> bool:
    """`x/2 (1 + erf(x/√2))`, and `x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))`."""
    for node in graph.nodes:
        if node.op != "mul":
            continue
        for first, second in (node.inputs, node.inputs[::-1]):
            curve, one, shift = _scaled(graph, second)
            # x may itself be an affine map of something.
            x, half, none = _scaled(graph, first)
            if none:
                x, half, none = first, 1.0, 0.0
            if one == 0 or not _near(one, shift):
                continue
            factor = 2 * half * one
            factor = 1.0 if _near(factor, 1.0) else factor
            inner = _act(graph, curve, "erf")
            if inner is not None:
                of, scale, none = _scaled(graph, inner)
                if of == x and none == 0 and _near(scale, math.sqrt(0.5)):
                    _becomes(graph, node, "gelu", x, factor)
                    return True
            inner = _act(graph, curve, "tanh")
            if inner is not None and _is_cubic(graph, inner, x):
                _becomes(graph, node, "gelu_tanh", x, factor)
                return True
    return False


def _is_cubic(graph: Graph, value: str, x: str) -> bool:
    """Whether `value` is √(2/π) (x + 0.044715 x³)."""
    total, scale, none = _scaled(graph, value)
    node = graph.producer(total)
    if none or not _near(scale, math.sqrt(2 / math.pi)) or node is None or node.op != "add":
        return False
    for first, second in (node.inputs, node.inputs[::-1]):
        cube, part, none = _scaled(graph, second)
        made = graph.producer(cube)
        third = (
            made is not None
            and made.op == "activation"
            and made.given(Activation).kind == "power"
            and made.given(Activation).alpha == 3
            and made.inputs == [x]
        )
        if first == x and third and none == 0 and _near(part, 0.044715):
            return True
    return False


def _mean_of(graph: Graph, value: str) -> tuple[str, str] | None:
    """(x, the axes) of a mean over the channels, or over the voxels of each channel."""
    node = graph.producer(value)
    if node is not None and node.op == "reduce" and node.given(Reduction).kind == "mean":
        return node.inputs[0], "channel_norm"
    if node is not None and node.op == "reshape":
        node = graph.producer(node.inputs[0])
    if node is None or node.op != "global_avg_pool" or node.given(Subsampling) != Subsampling():
        return None
    return node.inputs[0], "group_norm"


def normalisation(graph: Graph) -> bool:
    """`(x - mean) / √(mean of (x - mean)² + ε)` over the channels, or over a channel's voxels."""
    for node in graph.nodes:
        if node.op != "div":
            continue
        deviation = graph.producer(node.inputs[0])
        if deviation is None or deviation.op != "sub":
            continue
        x, found = deviation.inputs[0], _mean_of(graph, deviation.inputs[1])
        inner = _act(graph, node.inputs[1], "sqrt")
        if found is None or found[0] != x or inner is None:
            continue
        variance, scale, eps = _scaled(graph, inner)
        squares = _mean_of(graph, variance)
        made = graph.producer(squares[0]) if squares is not None else None
        if scale != 1 or eps < 0 or made is None or squares is None or squares[1] != found[1]:
            continue
        if made.op != "mul" or made.inputs != [deviation.output] * 2:
            continue
        channels = graph.shapes[x][0]
        groups = 1 if found[1] == "channel_norm" else None
        node.op, node.inputs, node.attrs = found[1], [x], Normalisation(eps=eps, groups=groups)
        node.arrays = {"scale": np.ones(channels), "shift": np.zeros(channels)}
        if node.op == "channel_norm" and len(graph.shapes[x]) == 1:
            node.op = "group_norm"
        return True
    return False


def nothing(graph: Graph) -> bool:
    """`1 x + 0`, unless it names an output."""
    for node in graph.nodes:
        if node.op != "affine" or node.output in graph.outputs:
            continue
        if np.all(node.arrays["scale"] == 1) and not np.any(node.arrays["shift"]):
            graph.replace(node.output, node.inputs[0])
            graph.nodes.remove(node)
            return True
    return False
