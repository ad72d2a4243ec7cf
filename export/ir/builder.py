"""What the handlers of single operations build a `Graph` with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hyperfusion_rt.artifact.operations import Window
from hyperfusion_rt.export.ir.graph import Array, Attributes, Graph, Node, Shape

BATCH = 2  # samples in the traced example: one would be taken for a constant


class Value:
    """A value of the graph that is being built; the shape counts the batch."""

    def __init__(self, name: str, shape: Shape) -> None:
        self.name, self.shape = name, (BATCH, *shape)


class UnsupportedError(Exception):
    """What follows the operation's name in the message: what about it engines cannot do."""


class Builder:
    """A graph that grows: what the handlers get."""

    def __init__(self, inputs: dict[str, Shape]) -> None:
        self.graph = Graph(dict(inputs), [], [], dict(inputs))
        self.layer = ""

    def emit(
        self,
        op: str,
        inputs: Sequence[Value],
        shape: Shape,
        attrs: Attributes = None,
        **arrays: Tensor | Array,
    ) -> Value:
        """Add a node; `shape` without the batch."""
        name = f"v{len(self.graph.nodes)}"
        kept = {key: np.asarray(a, dtype=np.float64) for key, a in arrays.items()}
        self.graph.nodes.append(Node(op, [v.name for v in inputs], name, attrs, kept, self.layer))
        self.graph.shapes[name] = tuple(int(n) for n in shape)
        return Value(name, self.graph.shapes[name])

    def affine(self, x: Value, scale: Any, shift: Any) -> Value:
        """`x * scale + shift`, each a number or one per channel."""

        def per_channel(v: Any) -> Array:
            flat = np.asarray(v, dtype=np.float64).reshape(-1)
            if flat.size not in (1, x.shape[1]):
                raise UnsupportedError(f"with a constant of shape {np.shape(v)}")
            spread: Array = np.broadcast_to(flat, (x.shape[1],)).copy()
            return spread

        if len(x.shape) not in (2, 5):
            raise UnsupportedError(f"on a tensor of shape {x.shape}")
        return self.emit(
            "affine", [x], x.shape[1:], scale=per_channel(scale), shift=per_channel(shift)
        )


def triple(value: Any) -> tuple[int, int, int]:
    """A number for each of D, H and W, from one or three."""
    if isinstance(value, int):
        return value, value, value
    found = [int(v) for v in value]
    found = found * 3 if len(found) == 1 else found
    if len(found) != 3:
        raise UnsupportedError(f"along {len(found)} axes: only three")
    return found[0], found[1], found[2]


def expect_axes(x: Value, dims: int) -> None:
    """Refuse a tensor that has not this many axes, the batch among them."""
    if len(x.shape) != dims:
        raise UnsupportedError(f"on a tensor of shape {x.shape}")


def _window(size: int, k: int, s: int, p: int, d: int, ceil: bool = False) -> int:
    room = size + 2 * p - d * (k - 1) - 1
    n = -(-room // s) + 1 if ceil else room // s + 1
    return n - 1 if ceil and (n - 1) * s >= size + p else n


def windows(x: Value, w: Window, ceil: bool = False) -> Shape:
    """How many windows there are along D, H and W."""
    along = zip(x.shape[2:], w.kernel, w.stride, w.padding, w.dilation, strict=True)
    return tuple(_window(*axis, ceil) for axis in along)
