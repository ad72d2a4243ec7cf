"""Operations with weights, windows or statistics, as nodes: what every front end says in its words.

Networks of one or two axes of voxels are volumes with D = 1, or D = H = 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from hyperfusion_rt.artifact.operations import (
    Activation,
    Cropping,
    Grid,
    Kind,
    Margins,
    Normalisation,
    Pooling,
    Resizing,
    Subsampling,
    Transposed,
    Widths,
)
from hyperfusion_rt.export.ir import layout as at
from hyperfusion_rt.export.ir.builder import (
    Builder,
    UnsupportedError,
    Value,
    spread,
    windows,
)
from hyperfusion_rt.export.ir.graph import Array, Attributes, Convolution, Shape

# No axis of a value may be longer.
_LONGEST = 1 << 20


def made(
    c: Builder,
    op: str,
    inputs: Sequence[Value],
    shape: Shape,
    attrs: Attributes = None,
    **arrays: ArrayLike,
) -> Value:
    """A node whose value the framework sees as it sees the first input, whose axes are plain."""
    if min(shape) < 1 or max(shape) > _LONGEST:
        raise UnsupportedError(f"from {inputs[0].shape} to {list(shape)}")
    lies = at.plain(shape, len(inputs[0].layout))
    kept = {name: np.asarray(array) for name, array in arrays.items()}
    return c.emit(op, inputs, shape, attrs, lies, **kept)


def _filters(weight: ArrayLike, axes: int) -> Array:
    """`[..., k...]` with `axes` axes of voxels, with three."""
    found = np.asarray(weight, dtype=np.float64)
    lead = found.ndim - axes
    return found.reshape(*found.shape[:lead], *(1,) * (3 - axes), *found.shape[lead:])


def convolution(
    c: Builder,
    x: Value,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    condition: Value | None = None,
) -> Value:
    """`weight [Cout, Cin/groups, k...]`; with a `condition` (ẽ, a vector) of more in front, `[K]`.

    `padding`: one number for both sides of an axis, or pairs.
    """
    x, axes = c.volume(x), len(x.layout) - 1
    filters = _filters(weight, axes)
    cout, cin = filters.shape[-5:-3]
    if c.extent(x)[0] != cin * groups or cout % groups:
        raise _misfit(c, x, weight, groups)
    front, behind = _sides(axes, padding)
    window = Convolution(
        kernel=(filters.shape[-3], filters.shape[-2], filters.shape[-1]),
        stride=spread(stride, axes, 1),
        padding=front,
        dilation=spread(dilation, axes, 1),
        behind=None if behind == front else behind,
        groups=groups,
    )
    shape = (cout, *windows(c.extent(x), window))
    return _weighted(c, "conv", x, shape, window, filters, bias, condition)


def _sides(axes: int, padding: Any) -> tuple[Widths, Widths]:
    """Padding in front of and behind every axis."""
    if isinstance(padding, int) or all(isinstance(p, int) for p in padding):
        return spread(padding, axes, 0), spread(padding, axes, 0)
    pairs = [(int(a), int(b)) for a, b in padding]
    return spread([a for a, _ in pairs], axes, 0), spread([b for _, b in pairs], axes, 0)


def transposed(
    c: Builder,
    x: Value,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Any = 1,
    padding: Any = 0,
    extra: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    condition: Value | None = None,
) -> Value:
    """`weight [Cin, Cout/groups, k...]`; with a `condition` of more in front, `[K]`."""
    x, axes = c.volume(x), len(x.layout) - 1
    filters = _filters(weight, axes)
    cin, each = filters.shape[-5:-3]
    if c.extent(x)[0] != cin or cin % groups:
        raise _misfit(c, x, weight, groups)
    kernel = (filters.shape[-3], filters.shape[-2], filters.shape[-1])
    window = Transposed(
        kernel=kernel,
        stride=spread(stride, axes, 1),
        padding=spread(padding, axes, 0),
        dilation=spread(dilation, axes, 1),
        extra=spread(extra, axes, 0),
        groups=groups,
    )
    along = zip(c.extent(x)[1:], kernel, window.stride, window.padding, window.dilation,
                window.extra, strict=True)  # fmt: skip
    extent = [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, k, s, p, d, e in along]
    shape = (each * groups, *extent)
    return _weighted(c, "conv_transpose", x, shape, window, filters, bias, condition)


def _misfit(c: Builder, x: Value, weight: ArrayLike, groups: int) -> UnsupportedError:
    return UnsupportedError(
        f"of {c.extent(x)[0]} channels with weights {list(np.shape(weight))}, {groups} groups"
    )


def _weighted(
    c: Builder,
    op: str,
    x: Value,
    shape: Shape,
    window: Convolution | Transposed,
    filters: Array,
    bias: ArrayLike | None,
    condition: Value | None,
) -> Value:
    """`op` with these weights, or what generates them from `condition`; no bias is zeros."""
    added = np.zeros((*filters.shape[:-5], shape[0])) if bias is None else bias
    inputs = [x] if condition is None else [x, condition]
    op = op if condition is None else f"hyper_{op}"
    return made(c, op, inputs, shape, window, weight=filters, bias=added)


def condition(c: Builder, e: Value, *arrays: tuple[Any, Any]) -> tuple[Value, list[Array]]:
    """ẽ = [1, e] and G̃ = [g0, G] for each pair (G, g0)."""
    vector, order = c.vector(e)
    if order is not None:
        raise UnsupportedError("with a condition whose numbers are in another order")
    full = c.emit("one_and", [vector], (c.extent(vector)[0] + 1,))
    stacked = []
    for g, g0 in arrays:
        if isinstance(g, Value) or isinstance(g0, Value):
            raise UnsupportedError("with generators that are computed from the input")
        first = np.zeros(tuple(g.shape[1:])) if g0 is None else np.asarray(g0)
        stacked.append(np.concatenate([first[None], np.asarray(g)]))
    return full, stacked


def linear(c: Builder, x: Value, weight: ArrayLike, bias: ArrayLike | None = None) -> Value:
    """`y = W x + b` along the last axis, `weight [O, I]`; of channels, a 1x1x1 convolution."""
    matrix = np.asarray(weight, dtype=np.float64)
    added = np.zeros(len(matrix)) if bias is None else np.asarray(bias, dtype=np.float64)
    if x.shape[-1] != matrix.shape[1]:
        raise UnsupportedError(f"of {x.shape} with weights {list(matrix.shape)}")
    if len(x.layout) == 1:
        vector, order = c.vector(x)
        matrix = matrix if order is None else matrix[:, order]
        return c.emit("linear", [vector], (len(matrix),), weight=matrix, bias=added)
    channels = c.extent(x)[0]
    if not at.same(x.layout[-1], at.whole(0, channels)):
        raise UnsupportedError(f"of {x.shape} along an axis that is not the channels")
    shape = (len(matrix), *c.extent(x)[1:])
    lies = (*x.layout[:-1], at.whole(0, len(matrix)))
    if len(shape) == 1:
        return c.emit("linear", [x], shape, layout=lies, weight=matrix, bias=added)
    window = Convolution(kernel=(1, 1, 1), stride=(1, 1, 1), padding=(0, 0, 0), groups=1)
    filters = matrix[:, :, None, None, None]
    return c.emit("conv", [x], shape, window, layout=lies, weight=filters, bias=added)


# --- normalisation --------------------------------------------------------------------------------


def _first(c: Builder, x: Value, vector: Any, fill: float) -> Array:
    """One number for each entry of the axis behind the batch, as one per channel of the value."""
    size = x.shape[1]
    along = np.full(size, fill) if vector is None else np.asarray(vector, dtype=np.float64)
    if along.size != size:
        raise UnsupportedError(f"of {x.shape} with {along.size} numbers")
    return c.per_channel(x, along.reshape(1, size, *(1,) * (len(x.shape) - 2)))


def batch_norm(c: Builder, x: Value, scale: Any, shift: Any) -> Value:
    """`x * scale + shift`, a number for each entry of the axis behind the batch."""
    x = c.flat(x)
    return c.emit(
        "affine",
        [x],
        c.extent(x),
        layout=x.layout,
        scale=_first(c, x, scale, 1.0),
        shift=_first(c, x, shift, 0.0),
    )


def group_norm(
    c: Builder, x: Value, groups: int | None, scale: Any, shift: Any, eps: float
) -> Value:
    """The axis behind the batch in `groups`, None: each entry by itself; `scale` and `shift` have a
    number for each entry, or are None.
    """
    x = c.flat(x)
    extent, size = c.extent(x), x.shape[1]
    groups = size if groups is None else groups
    if size % groups:
        raise UnsupportedError(f"of {size} channels in {groups} groups")
    first = at.parts(x.layout[:1])
    # That axis runs through the channels in equal runs, one after the other.
    runs = size == 1 or first == (at.Part(0, extent[0] // size, size),)
    if not runs or sorted(at.parts(x.layout)) != sorted(at.parts(at.plain(extent))):
        raise UnsupportedError(f"of {x.shape}, whose second axis is not the channels")
    return c.emit(
        "group_norm",
        [x],
        extent,
        Normalisation(eps=float(eps), groups=None if groups == extent[0] else groups),
        layout=x.layout,
        scale=_first(c, x, scale, 1.0),
        shift=_first(c, x, shift, 0.0),
    )


def layer_norm(c: Builder, x: Value, axes: int, scale: Any, shift: Any, eps: float) -> Value:
    """Over the last `axes` axes; `scale` and `shift` have their shape, or are None."""
    x = c.flat(x)
    if axes > len(x.layout):
        raise UnsupportedError("over the batch")
    normed = at.parts(x.layout[len(x.layout) - axes :])
    extent = c.extent(x)
    channels = extent[0]

    def vectors(v: Any, fill: float) -> Array:
        return np.full(channels, fill) if v is None else c.per_channel(x, v)

    arrays: dict[str, Any] = {"scale": vectors(scale, 1.0), "shift": vectors(shift, 0.0)}
    kept = Normalisation(eps=float(eps), groups=1)
    if sorted(normed) == sorted(at.parts(at.plain(extent))):
        return c.emit("group_norm", [x], extent, kept, layout=x.layout, **arrays)
    if normed == at.whole(0, channels):
        return c.emit("channel_norm", [x], extent, kept, layout=x.layout, **arrays)
    raise UnsupportedError(f"over the last {axes} axes of {x.shape}: not the channels, nor all")


# --- windows --------------------------------------------------------------------------------------


def pool(
    c: Builder,
    x: Value,
    kind: Literal["max_pool", "avg_pool"],
    kernel: Any,
    stride: Any,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Value:
    """Maxima or averages of windows; where both sides of an axis are padded alike."""
    x, axes = c.volume(x), len(x.layout) - 1
    window = Pooling(
        kernel=spread(kernel, axes, 1),
        stride=spread(stride, axes, 1),
        padding=spread(padding, axes, 0),
        dilation=spread(dilation, axes, 1),
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
    )
    shape = (c.extent(x)[0], *windows(c.extent(x), window, ceil_mode))
    along = zip(c.extent(x)[1:], window.kernel, window.padding, window.dilation, strict=True)
    least = 2 if kind == "max_pool" else 0  # torch's averages do not look at padding alone
    if any(d * (k - 1) + 1 > n + least * p for n, k, p, d in along):
        raise UnsupportedError(f"of {x.shape}: windows larger than it")
    return made(c, kind, [x], shape, window)


def adaptive_pool(c: Builder, x: Value, kind: Literal["avg", "max"], size: Any) -> Value:
    """To `size` voxels along each axis; None keeps an axis."""
    x, axes = c.volume(x), len(x.layout) - 1
    given = [size] * axes if isinstance(size, int) else list(size)
    given = given * axes if len(given) == 1 else given
    extent = c.extent(x)
    wanted = [1] * (3 - axes) + [
        n if n is not None else f for n, f in zip(given, extent[4 - axes :], strict=True)
    ]
    grid = Grid(size=spread(wanted, 3, 1))
    if wanted == [1, 1, 1]:
        return everywhere(c, x, "mean" if kind == "avg" else "maximum", keep=True)
    shape = (extent[0], *grid.size)
    if any(f % n for f, n in zip(extent[1:], wanted, strict=True)):
        return made(c, f"{kind}_pool", [x], shape, _alike(extent[1:], grid.size))
    return made(c, f"adaptive_{kind}_pool", [x], shape, grid)


def _alike(sizes: Sequence[int], wanted: Sequence[int]) -> Pooling:
    """The pooling that is the adaptive one where its windows are of one size and evenly apart, as
    two along an axis always are. Two windows on one voxel: what pads it does not count.
    """
    found: list[tuple[int, int, int]] = []
    for size, count in zip(sizes, wanted, strict=True):
        starts = [i * size // count for i in range(count)]
        widths = {-(-(i + 1) * size // count) - start for i, start in enumerate(starts)}
        steps = {b - a for a, b in itertools.pairwise(starts)} or {1}
        if (size, count) == (1, 2):
            found.append((2, 1, 1))
        elif len(widths) == len(steps) == 1 and steps != {0}:
            found.append((widths.pop(), steps.pop(), 0))
        else:
            raise UnsupportedError(f"from {size} to {count} voxels: windows of several sizes")
    kernel, stride, padding = (spread(along, 3, 1) for along in zip(*found, strict=True))
    return Pooling(kernel=kernel, stride=stride, padding=padding, count_include_pad=False)


def everywhere(
    c: Builder, x: Value, kind: Literal["mean", "maximum", "sum", "l2"], *, keep: bool
) -> Value:
    """One number of all voxels for each channel; `keep`: as axes of one voxel."""
    channels, *voxels = c.extent(x)
    pooled = {"mean": "global_avg_pool", "sum": "global_avg_pool", "maximum": "global_max_pool"}
    attrs = None if kind == "l2" else Subsampling()
    y = c.emit(pooled.get(kind, "global_norm"), [x], (channels,), attrs)
    if kind == "sum":
        y = c.affine(y, float(np.prod(voxels)), 0.0)
    left: list[at.Axis] = []
    for axis in x.layout:
        kept = tuple(part for part in axis if part.axis == 0)
        if kept or keep or not axis:
            left.append(kept)
    return y.seen(tuple(left))


def resize(
    c: Builder,
    x: Value,
    size: Sequence[int],
    *,
    linear: bool,
    step: Sequence[float] | None = None,
    coordinates: Any = "half_pixel",
    rounding: Any = "floor",
) -> Value:
    """To `size` voxels along each axis; `step`: voxels of x per voxel, from the sizes if None."""
    x, axes = c.volume(x), len(x.layout) - 1
    extent = c.extent(x)[4 - axes :]
    if coordinates == "align_corners":
        step = [(n - 1) / (m - 1) if m > 1 else 0.0 for n, m in zip(extent, size, strict=True)]
    elif step is None:
        step = [n / m for n, m in zip(extent, size, strict=True)]
    full = [1.0] * (3 - axes) + [float(s) for s in step]
    resizing = Resizing(
        size=spread(list(size), axes, 1),
        linear=linear,
        step=(full[0], full[1], full[2]),
        coordinates=coordinates,
        rounding=rounding,
    )
    if resizing.size == c.extent(x)[1:] and full == [1.0, 1.0, 1.0]:
        return x
    return made(c, "resize", [x], (c.extent(x)[0], *resizing.size), resizing)


def pad(
    c: Builder,
    x: Value,
    widths: Sequence[tuple[int, int]],
    mode: Any = "constant",
    value: float = 0.0,
) -> Value:
    """Voxels in front of and behind each axis; less than none: voxels are cut off."""
    x, axes = c.volume(x), len(x.layout) - 1
    pairs = [(0, 0)] * (3 - axes) + [(int(a), int(b)) for a, b in widths]
    if any(a < 0 or b < 0 for a, b in pairs):
        extent = c.extent(x)[1:]
        starts = [max(0, -a) for a, _ in pairs]
        stops = [n - max(0, -b) for n, (_, b) in zip(extent, pairs, strict=True)]
        x = crop(c, x, starts[3 - axes :], stops[3 - axes :], [1] * axes)
        pairs = [(max(a, 0), max(b, 0)) for a, b in pairs]
    if not any(a or b for a, b in pairs):
        return x
    extent = c.extent(x)[1:]
    if mode == "reflect" and any(max(p) >= n for p, n in zip(pairs, extent, strict=True)):
        raise UnsupportedError(f"reflect by {pairs} of {x.shape}: more than there is to reflect")
    margins = Margins(
        before=spread([a for a, _ in pairs], 3, 0),
        after=spread([b for _, b in pairs], 3, 0),
        mode=mode,
        value=float(value),
    )
    shape = [n + a + b for n, (a, b) in zip(extent, pairs, strict=True)]
    return made(c, "pad", [x], (c.extent(x)[0], *shape), margins)


def crop(
    c: Builder, x: Value, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]
) -> Value:
    """Voxels from `starts` to `stops` (without these) along each axis."""
    x, axes = c.volume(x), len(x.layout) - 1
    kept = [len(range(a, b, s)) for a, b, s in zip(starts, stops, steps, strict=True)]
    cropping = Cropping(
        start=spread(list(starts), axes, 0),
        step=spread(list(steps), axes, 1),
        size=spread(kept, axes, 1),
    )
    if cropping.size == c.extent(x)[1:]:
        return x
    return made(c, "crop", [x], (c.extent(x)[0], *cropping.size), cropping)


# --- number by number -----------------------------------------------------------------------------


def activation(
    c: Builder, x: Value, kind: Kind, alpha: float = 0.0, beta: float = 0.0, **arrays: Array
) -> Value:
    """See `artifact.operations.Activation`."""
    attrs = Activation(kind=kind, alpha=float(alpha), beta=float(beta))
    return c.emit("activation", [x], c.extent(x), attrs, layout=x.layout, **arrays)


def celu(c: Builder, x: Value, alpha: float = 1.0) -> Value:
    """`alpha elu(x / alpha)`."""
    y = activation(c, c.affine(x, 1 / alpha, 0.0), "elu", 1.0)
    return c.affine(y, alpha, 0.0)


def prelu(c: Builder, x: Value, slope: ArrayLike) -> Value:
    """`slope`: one, or one for each entry of the axis behind the batch."""
    x = c.flat(x)
    found = np.asarray(slope, dtype=np.float64).reshape(-1)
    return activation(c, x, "prelu", slope=_first(c, x, np.broadcast_to(found, x.shape[1:2]), 0.0))


def clip(c: Builder, x: Value, low: float | None, high: float | None) -> Value:
    """Between two numbers, or bounded on one side."""
    if low == 0 and high is None:
        return activation(c, x, "relu")
    if (low, high) == (0, 6):
        return activation(c, x, "relu6")
    most = float(np.finfo(np.float32).max)
    return activation(c, x, "clip", -most if low is None else low, most if high is None else high)
