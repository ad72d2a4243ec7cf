"""Arithmetic of two values, shapes, and parts of values: what every front end says in its words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from hyperfusion_rt.artifact.operations import Pairwise, Probabilities, Reduction, Span
from hyperfusion_rt.export.ir import layers
from hyperfusion_rt.export.ir import layout as at
from hyperfusion_rt.export.ir.builder import Builder, UnsupportedError, Value

# --- two values -----------------------------------------------------------------------------------


def pairwise(c: Builder, op: Pairwise, a: Any, b: Any) -> Value:
    """`a op b`: values, or one of them a constant that is a number, or one per channel."""
    if isinstance(a, Value) and isinstance(b, Value):
        return _meet(c, op, c.flat(a), c.flat(b))
    a, b = (c.flat(v) if isinstance(v, Value) else v for v in (a, b))
    x, constant = (a, b) if isinstance(a, Value) else (b, a)
    number = np.asarray(constant, dtype=np.float64)
    match op:
        case "add":
            return c.affine(x, 1.0, number)
        case "mul":
            return c.affine(x, number, 0.0)
        case "sub":
            return c.affine(x, 1.0, -number) if x is a else c.affine(x, -1.0, number)
        case "div":
            if x is a:
                return c.affine(x, 1.0 / number, 0.0)
            return c.affine(power(c, x, -1.0), number, 0.0)
    if number.size != 1:
        raise UnsupportedError("with a constant that is not one number")
    low, high = (float(number), None) if op == "maximum" else (None, float(number))
    return layers.clip(c, x, low, high)


def power(c: Builder, x: Value, exponent: float) -> Value:
    """`x ** exponent`, where there is a simpler operation with that."""
    if exponent == 1:
        return x
    if exponent == 2:
        return pairwise(c, "mul", x, x)
    if exponent == 0.5:
        return layers.activation(c, x, "sqrt")
    return layers.activation(c, x, "power", exponent)


def _meet(c: Builder, op: str, a: Value, b: Value) -> Value:
    if len(a.shape) != len(b.shape):
        raise UnsupportedError(f"of shapes {a.shape} and {b.shape}")
    extents = [c.extent(v) for v in (a, b)]
    if len(extents[0]) != len(extents[1]):
        # A vector beside a volume: `[C]` is `[C, 1, 1, 1]`.
        a, b = (_as_volume(c, v) for v in (a, b))
        extents = [c.extent(v) for v in (a, b)]
    for v, w in ((a, b), (b, a)):
        for p, q in zip(v.layout, w.layout, strict=True):
            if p and q and not at.same(p, q):
                raise UnsupportedError(f"of shapes {a.shape} and {b.shape}")
        if any(n != m and 1 not in (n, m) for n, m in zip(*extents, strict=True)):
            raise UnsupportedError(f"of shapes {a.shape} and {b.shape}")
    shape = tuple(max(n, m) for n, m in zip(*extents, strict=True))
    lies = tuple(p or q for p, q in zip(a.layout, b.layout, strict=True))
    if math.prod(at.sizes(lies)) != math.prod(shape):
        raise UnsupportedError(f"of shapes {a.shape} and {b.shape}")
    return c.emit(op, [_grown(c, v, shape) for v in (a, b)], shape, layout=lies)


def _grown(c: Builder, x: Value, shape: Sequence[int]) -> Value:
    """`x`, repeated along some axes of voxels of `shape`: engines take all voxels or one."""
    own = c.extent(x)[1:]
    return x if not own or own == (1, 1, 1) else _stretched(c, x, shape[1:])


def _stretched(c: Builder, x: Value, size: Sequence[int]) -> Value:
    """`x`, whose voxels are repeated to D, H and W of `size`; seen as its value lies."""
    whole = x.seen(at.plain(c.extent(x)))
    return layers.resize(c, whole, size, linear=False, coordinates="asymmetric")


def _as_volume(c: Builder, x: Value) -> Value:
    """`[C]` as `[C, 1, 1, 1]`, seen as before."""
    extent = c.extent(x)
    if len(extent) == 4:
        return x
    return c.emit("reshape", [x], (*extent, 1, 1, 1), layout=x.layout)


# --- many numbers ---------------------------------------------------------------------------------


def reduce(
    c: Builder,
    x: Value,
    kind: Literal["mean", "maximum", "sum", "l2"],
    axes: Sequence[int],
    *,
    keep: bool,
) -> Value:
    """Over `axes`, which count the batch as 0."""
    if 0 in axes:
        raise UnsupportedError("over the batch")
    found = {part for axis in axes for part in x.layout[axis - 1]}
    extent = c.extent(x)
    channels, voxels = (set(at.parts(at.plain(extent)[i])) for i in (slice(1), slice(1, None)))
    kept = tuple(() if i in axes else axis for i, axis in enumerate(x.layout, 1))
    if found == voxels and len(extent) == 4:
        y = layers.everywhere(c, x, kind, keep=True)
    elif found and found == channels | voxels:
        y = _everything(c, x, kind)
    elif found and found == channels:
        y = _channels(c, x, kind)
    elif not found:  # each number is all that there is along these axes
        y = layers.activation(c, x, "abs") if kind == "l2" else x
    elif found < voxels:
        y = _along(c, x, kind, {part.axis for part in found})
    else:
        raise UnsupportedError(
            f"over the axes {list(axes)} of {x.shape}: only over all or some of D, H, W, over the "
            "channels, or over everything"
        )
    layout = kept if keep else tuple(a for i, a in enumerate(kept) if i + 1 not in axes)
    return y.seen(layout)


def _everything(c: Builder, x: Value, kind: Any) -> Value:
    pooled = x if len(c.extent(x)) == 1 else layers.everywhere(c, x, kind, keep=True)
    return _channels(c, pooled, kind)


def _channels(c: Builder, x: Value, kind: Any) -> Value:
    return c.emit("reduce", [x], (1, *c.extent(x)[1:]), Reduction(kind=kind), layout=())


def _along(c: Builder, x: Value, kind: str, axes: set[int]) -> Value:
    """Over some axes of voxels: windows as long as these."""
    extent = c.extent(x)
    window = [n if axis in axes else 1 for axis, n in enumerate(extent)][1:]
    whole = x.seen(at.plain(extent))
    pooling: Any = "max_pool" if kind == "maximum" else "avg_pool"
    whole = power(c, whole, 2.0) if kind == "l2" else whole
    y = layers.pool(c, whole, pooling, window, window)
    y = c.affine(y, float(math.prod(window)), 0.0) if kind in ("sum", "l2") else y
    return power(c, y, 0.5) if kind == "l2" else y


def softmax(c: Builder, x: Value, axis: int, *, log: bool = False) -> Value:
    """Over the channels, or an axis of one number."""
    if axis % len(x.shape) == 0:
        raise UnsupportedError("over the batch")
    x = c.flat(x)
    if x.shape[axis] == 1:
        return c.affine(x, 0.0, 0.0 if log else 1.0)
    if not at.same(x.layout[axis % len(x.shape) - 1], at.whole(0, c.extent(x)[0])):
        raise UnsupportedError(f"along axis {axis} of {x.shape}: only along the channels")
    return c.emit("softmax", [x], c.extent(x), Probabilities(log=log), layout=x.layout)


# --- shapes ---------------------------------------------------------------------------------------


def reshape(c: Builder, x: Value, shape: Sequence[int]) -> Value:
    """`shape` with the batch, and at most one -1."""
    total, known = math.prod(x.shape), math.prod(n for n in shape if n != -1)
    if known < 1 or total % known or list(shape).count(-1) > 1 or min(shape, default=0) < -1:
        raise UnsupportedError(f"from {x.shape} to {tuple(shape)}")
    full = tuple(total // known if n == -1 else int(n) for n in shape)
    if not full or full[0] != x.batch:
        raise UnsupportedError(f"from {x.shape} to {full}: it mixes the samples of a batch")
    layout = at.reshaped(x.layout, full[1:])
    if layout is None:
        raise UnsupportedError(f"from {x.shape} to {full}")
    return x.seen(layout)


def flatten(c: Builder, x: Value, start: int = 0, end: int = -1) -> Value:
    """The axes from `start` to `end` become one."""
    n = len(x.shape)
    start, end = start % n, end % n
    joined = math.prod(x.shape[start : end + 1])
    return reshape(c, x, [*x.shape[:start], joined, *x.shape[end + 1 :]])


def permute(c: Builder, x: Value, order: Sequence[int]) -> Value:
    """The axes in another order; the batch stays first."""
    axes = [axis % len(x.shape) for axis in order]
    if sorted(axes) != list(range(len(x.shape))):
        raise UnsupportedError(f"by {list(order)} of {x.shape}: not each axis once")
    if axes[0] != 0:
        raise UnsupportedError(f"by {list(order)}: the batch must stay the first axis")
    return x.seen(tuple(x.layout[axis - 1] for axis in axes[1:]))


def unsqueeze(c: Builder, x: Value, axes: Sequence[int]) -> Value:
    """Axes of size 1 at `axes` of what comes out."""
    layout: list[at.Axis] = list(x.layout)
    full = len(x.shape) + len(axes)
    for axis in sorted(axis % full for axis in axes):
        if axis == 0:
            raise UnsupportedError("in front of the batch")
        layout.insert(axis - 1, ())
    return x.seen(tuple(layout))


def squeeze(c: Builder, x: Value, axes: Sequence[int] | None = None) -> Value:
    """Without axes of size 1; None: without all of them."""
    n = len(x.shape)
    chosen = set(range(1, n)) if axes is None else {axis % n for axis in axes}
    kept = [a for i, a in enumerate(x.layout, 1) if i not in chosen or x.shape[i] != 1]
    return x.seen(tuple(kept))


def expand(c: Builder, x: Value, shape: Sequence[int]) -> Value:
    """Axes of one voxel repeated; -1 keeps an axis."""
    full = [n if m == -1 else m for n, m in zip(x.shape[-len(shape) :], shape, strict=False)]
    if len(full) != len(x.shape) or len(shape) > len(full) or full[0] != x.batch:
        raise UnsupportedError(f"from {x.shape} to {tuple(shape)}")
    if tuple(full) == x.shape:
        return x
    volume = c.volume(x)
    axes = len(volume.layout) - 1
    if full[1] != x.shape[1] or axes < 1:
        raise UnsupportedError(f"from {x.shape} to {tuple(shape)}: only along D, H and W")
    return layers.resize(c, volume, full[2:], linear=False, coordinates="asymmetric")


def repeat(c: Builder, x: Value, axis: int, times: int) -> Value:
    """An axis of size 1, right behind an axis of voxels, repeated: each voxel becomes `times`."""
    before = x.layout[axis - 2] if axis >= 2 else ()
    along = before[-1].axis if before else 0
    if x.shape[axis] != 1 or not along or {part.axis for part in before} - {0, along}:
        raise UnsupportedError(f"along axis {axis} of {x.shape}: only behind an axis of voxels")
    size = list(c.extent(x)[1:])
    size[along - 1] *= times
    lies = [
        tuple(part._replace(step=part.step * times) if part.axis == along else part for part in a)
        for a in x.layout
    ]
    lies[axis - 1] = at.whole(along, times)
    return _stretched(c, x, size).seen(tuple(lies))


# --- parts ----------------------------------------------------------------------------------------


def concat(c: Builder, values: Sequence[Any], axis: int) -> Value:
    """One after the other, along the channels."""
    if not values or not all(isinstance(v, Value) for v in values):
        raise UnsupportedError("with constants: only computed values")
    axis %= len(values[0].shape)
    if len(values) == 1:
        return values[0]  # type: ignore[no-any-return]
    if len(values[0].layout) == 1:
        values = [c.settled(v, v.shape[1:], 1) if len(c.extent(v)) > 1 else v for v in values]
    first = values[0]
    shapes = [v.shape[:axis] + v.shape[axis + 1 :] for v in values]
    if axis == 0 or any(shape != shapes[0] for shape in shapes):
        raise UnsupportedError(f"of shapes {[v.shape for v in values]} along axis {axis}")
    alike = [_like(c, v, first, axis) for v in values]
    channels = sum(c.extent(v)[0] for v in alike)
    if channels != sum(v.shape[axis] for v in values):
        raise UnsupportedError(f"along axis {axis}: only along the channels")
    layout = list(first.layout)
    layout[axis - 1] = at.whole(0, channels)
    shape = (channels, *c.extent(first)[1:])
    return c.emit("concat", alike, shape, layout=tuple(layout))


def _like(c: Builder, x: Value, first: Value, axis: int) -> Value:
    """`x`, whose channels are at `axis` and whose other axes are as those of `first`."""
    if len(c.extent(x)) != len(c.extent(first)):
        x = c.volume(x) if len(x.layout) > 1 else c.vector(x)[0]
    for i, (a, b) in enumerate(zip(x.layout, first.layout, strict=True), 1):
        if i == axis and not at.same(a, at.whole(0, c.extent(x)[0])):
            x = c.volume(x) if len(x.layout) > 1 else c.vector(x)[0]
            break
        if i != axis and not at.same(a, b):
            raise UnsupportedError(f"of values that lie in different orders, {x.shape}")
    if len(c.extent(x)) != len(c.extent(first)) or c.extent(x)[1:] != c.extent(first)[1:]:
        raise UnsupportedError(f"of shapes {x.shape} and {first.shape}")
    return x


def part(
    c: Builder, x: Value, axis: int, start: int | None, end: int | None, step: int = 1
) -> Value:
    """`x[start:end:step]` along `axis`: channels, or voxels."""
    axis %= len(x.shape)
    size = x.shape[axis]
    first, last, _ = slice(start, end).indices(size)
    if (first, last, step) == (0, size, 1):
        return x
    if axis == 0:
        raise UnsupportedError("of the batch")
    if step < 1 or last <= first:
        raise UnsupportedError(f"from {start} to {end} by {step} along axis {axis} of {x.shape}")
    channels = c.extent(x)[0]
    along = x.layout[axis - 1]
    if at.same(along, at.whole(0, channels)) and step == 1:
        lies = list(x.layout)
        lies[axis - 1] = at.whole(0, last - first)
        shape = (last - first, *c.extent(x)[1:])
        return c.emit("slice", [x], shape, Span(start=first, stop=last), layout=tuple(lies))
    if len(along) != 1 or along[0].axis == 0 or along[0].size != c.extent(x)[along[0].axis]:
        raise UnsupportedError(f"along axis {axis} of {x.shape} with step {step}")
    voxels = along[0].axis
    extent = c.extent(x)
    starts, stops, steps = [0, 0, 0], list(extent[1:]), [1, 1, 1]
    starts[voxels - 1], stops[voxels - 1], steps[voxels - 1] = first, last, step
    whole = x.seen(at.plain(extent))
    y = layers.crop(c, whole, starts, stops, steps)
    lies = list(x.layout)
    lies[axis - 1] = at.whole(voxels, c.extent(y)[voxels])
    return y.seen(tuple(lies))


def select(c: Builder, x: Value, axis: int, index: int) -> Value:
    """`x[index]` along `axis`, which goes."""
    axis %= len(x.shape)
    index = index % x.shape[axis] if -x.shape[axis] <= index < x.shape[axis] else x.shape[axis]
    return squeeze(c, part(c, x, axis, index, index + 1), [axis])


def split(c: Builder, x: Value, sizes: int | Sequence[int], axis: int) -> list[Value]:
    """Parts of one size, or of each of `sizes`, along `axis`."""
    total = x.shape[axis % len(x.shape)]
    if isinstance(sizes, int):
        sizes = [sizes] * (total // sizes) + [total % sizes] * (total % sizes > 0)
    if sum(sizes) != total:
        raise UnsupportedError(f"into {list(sizes)} along an axis of {total}")
    ends = np.cumsum([0, *sizes]).tolist()
    return [part(c, x, axis, a, b) for a, b in itertools.pairwise(ends)]
