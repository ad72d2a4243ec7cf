"""What the handlers of single operations build a `Graph` with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hyperfusion_rt.artifact.operations import Transposition, Window
from hyperfusion_rt.export.ir import layout as at
from hyperfusion_rt.export.ir.graph import Array, Attributes, Graph, Node, Shape

BATCH = 2  # samples in the traced example: one would be taken for a constant


class Value:
    """A framework's tensor: a value of the graph that is being built, and how it lies in it.

    `batch`: the samples that the framework sees.
    """

    def __init__(self, name: str, layout: at.Layout, batch: int) -> None:
        self.name, self.layout, self.batch = name, layout, batch

    @property
    def shape(self) -> Shape:
        """As the framework has it, with the batch."""
        return (self.batch, *at.sizes(self.layout))

    def seen(self, layout: at.Layout) -> Value:
        """The same numbers, seen in another layout."""
        return Value(self.name, layout, self.batch)


class UnsupportedError(Exception):
    """What follows the operation's name in the message: what about it engines cannot do."""


class Builder:
    """A graph that grows: what the handlers get."""

    def __init__(
        self,
        inputs: dict[str, Shape],
        batch: int = BATCH,
        last: Collection[str] = (),
        outputs: Collection[str] = (),
    ) -> None:
        """`inputs`: without the batch; with fewer than three axes of voxels, as in 2D networks,
        the graph has D = 1, then H = 1. `last`: those with the channels last. `outputs`: the names
        that outputs will have, and no other value.
        """
        self.batch, self.last, self.kept = batch, frozenset(last), frozenset(outputs)
        self.names = (f"v{number}" for number in itertools.count())
        self.renamed: dict[str, str] = {}  # to the names of outputs
        inputs = {
            name: (shape[-1], *shape[:-1]) if name in self.last else tuple(shape)
            for name, shape in inputs.items()
        }
        shapes = {name: as_volume(shape) for name, shape in inputs.items()}
        outer = {name: shape for name, shape in inputs.items() if shapes[name] != tuple(shape)}
        self.graph = Graph(dict(shapes), [], [], dict(shapes), outer, set(self.last))
        self.layer = ""

    def input(self, name: str, shape: Shape) -> Value:
        """The input `name`, which the framework sees as `shape` without the batch."""
        layout = at.plain(self.graph.shapes[name], len(shape))
        layout = (*layout[1:], layout[0]) if name in self.last else layout
        return Value(name, layout, self.batch)

    def emit(
        self,
        op: str,
        inputs: Sequence[Value],
        shape: Shape,
        attrs: Attributes = None,
        layout: at.Layout | None = None,
        **arrays: Tensor | Array,
    ) -> Value:
        """Add a node; `shape` of its value, which the framework sees in `layout`, or as it is."""
        name = next(n for n in self.names if n not in self.graph.shapes and n not in self.kept)
        kept = {key: np.asarray(a, dtype=np.float64) for key, a in arrays.items()}
        self.graph.nodes.append(Node(op, [v.name for v in inputs], name, attrs, kept, self.layer))
        made = self.graph.shapes[name] = tuple(int(n) for n in shape)
        return Value(name, at.plain(made) if layout is None else layout, self.batch)

    def extent(self, x: Value) -> Shape:
        """The shape of its value."""
        return self.graph.shapes[x.name]

    def volume(self, x: Value) -> Value:
        """`x [C, ...]`, with up to three axes of voxels, as a value `[C, D, H, W]` that lies so."""
        axes = len(x.layout)
        if not 2 <= axes <= 4:
            raise UnsupportedError(f"on a tensor of shape {x.shape}")
        shape = as_volume(at.sizes(x.layout))
        if self.extent(x) == shape and x.layout == at.plain(shape, axes):
            return x
        return self.settled(x, shape, axes)

    def settled(self, x: Value, shape: Shape, axes: int) -> Value:
        """The numbers of `x` in its own order, as a value `shape`, seen with `axes` axes."""
        lies = at.plain(shape, axes)
        if self.in_order(x):
            return self.emit("reshape", [x], shape, layout=lies)
        extent = self.extent(x)
        seen = [part for axis in x.layout for part in axis]
        # The parts of each of the value's axes, the slowest first.
        stored = sorted(seen, key=lambda part: (part.axis, -part.step))
        if math.prod(part.size for part in stored) != math.prod(extent):
            raise UnsupportedError(f"on a tensor of shape {x.shape}")
        turned = Transposition(
            sizes=tuple(part.size for part in stored),
            order=tuple(stored.index(part) for part in seen),
        )
        return self.emit("transpose", [x], shape, turned, layout=lies)

    def vector(self, x: Value) -> tuple[Value, NDArray[np.int64] | None]:
        """All numbers of `x` as a value `[F]`, in the order of the value; and where each of them
        stands in `x`, if the orders differ.
        """
        extent = self.extent(x)
        flat = x
        if len(extent) != 1:
            flat = self.emit("reshape", [x], (math.prod(extent),))
        order = None if self.in_order(x) else self.places(x)
        return flat.seen(at.plain(self.extent(flat))), order

    def flat(self, x: Value) -> Value:
        """`x`, but as a value `[F]` where it is `[B, F]` and more than the channels."""
        many = len(x.layout) == 1 and not at.same(x.layout[0], at.whole(0, self.extent(x)[0]))
        return self.settled(x, x.shape[1:], 1) if many else x

    def output(self, x: Value, name: str) -> None:
        """Let `x` be the output `name`, in the order in which the framework has its numbers, but
        for channels that come last: they stay first, and `Graph.last` says so.
        """
        if name in self.graph.inputs:
            raise UnsupportedError("is an input, too")
        x = Value(self.renamed.get(x.name, x.name), x.layout, x.batch)
        first = x.seen((*x.layout[-1:], *x.layout[:-1]))
        if len(x.layout) > 1 and not self.in_order(x) and self.in_order(first):
            x = first
            self.graph.last.add(name)
        seen = at.sizes(x.layout)
        shape = as_volume(seen) if 1 <= len(seen) <= 4 else (math.prod(seen),)
        if self.extent(x) != shape or not self.in_order(x):
            x = self.settled(x, shape, len(shape))
        if x.name in self.graph.inputs or x.name in self.graph.outputs:
            x = self.emit("reshape", [x], shape)
        self.renamed[x.name] = name
        self.graph.shapes[name] = self.graph.shapes.pop(x.name)
        self.graph.replace(x.name, name)
        for node in self.graph.nodes:
            node.output = name if node.output == x.name else node.output
        self.graph.outputs.append(name)
        if shape != seen:
            self.graph.outer[name] = seen

    def in_order(self, x: Value) -> bool:
        """Whether the numbers of `x` follow each other as those of its value do."""
        return at.parts(x.layout) == at.parts(at.plain(self.extent(x)))

    def places(self, x: Value) -> NDArray[np.int64]:
        """Where in `x`, flattened, each number of its value stands."""
        seen = [part for axis in x.layout for part in axis]
        return _places(seen, self.extent(x)).reshape(-1)

    def per_channel(self, x: Value, constant: Any) -> Array:
        """A constant that meets `x`, as one number for each of its value's channels `[C]`."""
        given: Array = np.asarray(constant, dtype=np.float64)
        full: Array = given.reshape((1,) * (len(x.shape) - given.ndim) + given.shape)
        if len(full.shape) != len(x.shape) or full.shape[0] != 1:
            raise UnsupportedError(f"with a constant of shape {given.shape}")
        channels = self.extent(x)[0]
        indices = []
        for i, axis in enumerate(x.layout, 1):
            n, size = full.shape[i], math.prod(part.size for part in axis)
            if n == size and np.all(full == full.take([0], i)):  # the same all along it
                full, n = full.take([0], i), 1
            if n == 1:
                indices.append(np.zeros(channels, np.int64))
                continue
            if n != size or any(part.axis for part in axis):
                raise UnsupportedError(
                    f"with a constant of shape {given.shape} that is not one number per channel"
                )
            indices.append(_places(axis, (channels,)))
        spread: Array = np.broadcast_to(full[0][tuple(indices)], (channels,)).copy()
        return spread

    def affine(self, x: Value, scale: Any, shift: Any) -> Value:
        """`x * scale + shift`, each a number or one per channel."""
        return self.emit(
            "affine",
            [x],
            self.extent(x),
            layout=x.layout,
            scale=self.per_channel(x, scale),
            shift=self.per_channel(x, shift),
        )


def _places(parts: Sequence[at.Part], extent: Shape) -> NDArray[np.int64]:
    """Where along `parts`, the slowest first, each number of a value `extent` stands."""
    found = np.zeros(extent, np.int64)
    stride = 1
    for part in reversed(parts):
        along = np.arange(extent[part.axis]) // part.step % part.size
        found += stride * along.reshape([-1 if a == part.axis else 1 for a in range(len(extent))])
        stride *= part.size
    return found


def as_volume(shape: Sequence[int]) -> Shape:
    """`[C, ...]` with up to three axes of voxels as `[C, D, H, W]`; `[F]` as it is."""
    c, *extent = shape
    if not extent:
        return (c,)
    if len(extent) > 3:
        raise UnsupportedError(f"with {len(extent)} axes of voxels: at most three")
    return (c, *(1,) * (3 - len(extent)), *extent)


def spread(value: Any, axes: int, fill: int) -> tuple[int, int, int]:
    """A number for each of D, H and W, from one or `axes` ones; `fill` for the others."""
    found = [value] * axes if isinstance(value, int) else [int(v) for v in value]
    found = found * axes if len(found) == 1 else found
    if len(found) != axes:
        raise UnsupportedError(f"along {len(found)} axes: only {axes}")
    full = [fill] * (3 - axes) + found
    return full[0], full[1], full[2]


def window_size(size: int, k: int, s: int, p: int, q: int, d: int, ceil: bool = False) -> int:
    """How many windows there are along an axis with `p` voxels in front of it and `q` behind."""
    room = size + p + q - d * (k - 1) - 1
    n = -(-room // s) + 1 if ceil else room // s + 1
    return n - 1 if ceil and (n - 1) * s >= size + p else n


def windows(extent: Shape, w: Window, ceil: bool = False) -> Shape:
    """How many windows there are along D, H and W of a value `[C, D, H, W]`."""
    behind = w.padding if w.behind is None else w.behind
    return tuple(
        window_size(
            extent[i + 1], w.kernel[i], w.stride[i], w.padding[i], behind[i], w.dilation[i], ceil
        )
        for i in range(3)
    )
