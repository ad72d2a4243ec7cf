"""How a framework's tensor lies in a value of the graph.

A value is `[C, D, H, W]` or `[F]`. A framework sees the same numbers under other shapes: without
axes of one voxel, with the channels last, with channels in groups, flattened. A tensor's *layout*
says for each of its axes, without the batch, which parts of the value's axes it runs through, the
slowest first. So permuting and reshaping move nothing.

A part `(axis, step, size)` takes `size` steps of `step` along `axis`; parts of one step are left
out. Channels in 2 groups of 4, flattened with 6 voxels along W:
`((0, 4, 2),), ((0, 1, 4), (3, 1, 6))`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Shape = tuple[int, ...]


class Part(NamedTuple):
    """`size` steps of `step` along `axis`."""

    axis: int
    step: int
    size: int


Axis = tuple[Part, ...]
Layout = tuple[Axis, ...]


def whole(axis: int, size: int) -> Axis:
    """All of one axis."""
    return (Part(axis, 1, size),) if size > 1 else ()


def plain(shape: Shape, axes: int | None = None) -> Layout:
    """Of a value `shape` seen as it is; `axes` (with the channels) leaves out D, then H."""
    kept = range(len(shape)) if axes is None else (0, *range(len(shape) - axes + 1, len(shape)))
    return tuple(whole(axis, shape[axis]) for axis in kept)


def sizes(layout: Layout) -> Shape:
    """The tensor's shape."""
    return tuple(math.prod(part.size for part in axis) for axis in layout)


def parts(layout: Layout) -> Axis:
    """All parts, the slowest first, neighbours joined where they follow each other."""
    joined: list[Part] = []
    for part in (part for axis in layout for part in axis):
        last = joined[-1] if joined else None
        if last is not None and last.axis == part.axis and last.step == part.step * part.size:
            joined[-1] = Part(part.axis, part.step, last.size * part.size)
        else:
            joined.append(part)
    return tuple(joined)


def reshaped(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout under another shape; None where an axis would cut through a part unevenly."""
    left = list(parts(layout))[::-1]
    made: list[Axis] = []
    for size in shape:
        axis: list[Part] = []
        while size > 1:
            if not left:
                return None
            part = left.pop()
            if size % part.size == 0:
                axis.append(part)
                size //= part.size
            elif part.size % size == 0:
                rest = part.size // size
                axis.append(Part(part.axis, part.step * rest, size))
                left.append(Part(part.axis, part.step, rest))
                size = 1
            else:
                return None
        made.append(tuple(axis))
    return None if left else tuple(made)


def same(a: Axis, b: Axis) -> bool:
    """Whether two axes run through the same numbers."""
    return parts((a,)) == parts((b,))
