"""What ONNX's operations with weights, windows or statistics become in a graph, in `LAYERS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hyperfusion_rt.export.ir import layers
from hyperfusion_rt.export.ir import layout as at
from hyperfusion_rt.export.ir.builder import Builder, UnsupportedError, Value, window_size
from hyperfusion_rt.export.onnx_import.given import Array, Given, axis_of, number, numbers


def _volume(x: Any) -> Value:
    if not isinstance(x, Value):
        raise UnsupportedError("of a constant")
    if len(x.shape) < 3:
        raise UnsupportedError(f"on a tensor of shape {x.shape}")
    return x


def _weights(weight: Any, bias: Any) -> tuple[Array, Array | None]:
    if isinstance(weight, Value) or isinstance(bias, Value) or weight is None:
        raise UnsupportedError("with a computed weight")
    return weight, bias


def _filters(g: Given, weight: Any, bias: Any, outputs: int) -> tuple[Array, Array | None]:
    """The weights of a convolution, whose bias is one number for each of its `outputs`."""
    weight, bias = _weights(weight, bias)
    if list(g.get("kernel_shape", weight.shape[2:])) != list(weight.shape[2:]):
        raise UnsupportedError(f"with weights {list(weight.shape)}, {g.get('kernel_shape')}")
    if g.get("group", 1) < 1 or (bias is not None and bias.shape != (outputs,)):
        raise UnsupportedError(f"with {g.get('group')} groups, a bias {np.shape(bias)}")
    return weight, bias


def _window(g: Given, x: Value, kernel: Sequence[int]) -> dict[str, Any]:
    """Stride, dilation and pairs of padding along the axes of voxels of `x`."""
    axes = len(x.shape) - 2
    if len(kernel) != axes:
        raise UnsupportedError(f"a kernel {list(kernel)} for {x.shape}")
    stride = list(g.get("strides", [1] * axes))
    dilation = list(g.get("dilations", [1] * axes))
    pads = list(g.get("pads", [0] * 2 * axes))
    automatic = g.get("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"):
        raise UnsupportedError(f"with auto_pad {automatic}")
    if any(len(v) != axes for v in (stride, dilation)) or len(pads) != 2 * axes:
        raise UnsupportedError(f"with strides {stride}, dilations {dilation}, pads {pads}")
    if min([*stride, *dilation, *kernel]) < 1 or min(pads) < 0:
        raise UnsupportedError(
            f"with strides {stride}, dilations {dilation}, pads {pads}, kernel {list(kernel)}"
        )
    pairs = list(zip(pads[:axes], pads[axes:], strict=True))
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        pairs = []
        for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
            needed = (-(-n // s) - 1) * s + d * (k - 1) + 1 - n
            if needed < -1:  # where others start later than at the first voxel, or do not
                raise UnsupportedError(f"with auto_pad {automatic}, strides {stride}, and {kernel}")
            needed = max(0, needed)
            small, large = needed // 2, needed - needed // 2
            pairs.append((small, large) if automatic == "SAME_UPPER" else (large, small))
    elif automatic == "VALID":
        pairs = [(0, 0)] * axes
    return {"stride": stride, "dilation": dilation, "padding": pairs}


def _conv(c: Builder, g: Given, x: Any, weight: Any, bias: Any = None) -> Value:
    x = _volume(x)
    weight, bias = _filters(g, weight, bias, len(weight))
    window = _window(g, x, weight.shape[2:])
    return layers.convolution(c, x, weight, bias, groups=g.get("group", 1), **window)


def _conv_transpose(c: Builder, g: Given, x: Any, weight: Any, bias: Any = None) -> Value:
    x = _volume(x)
    weight, bias = _filters(g, weight, bias, weight.shape[1] * g.get("group", 1))
    axes = len(x.shape) - 2
    window = _window(g, x, weight.shape[2:])
    extra = list(g.get("output_padding", [0] * axes))
    wanted, automatic = g.get("output_shape"), g.get("auto_pad", "NOTSET")
    stride, dilation, pairs = window["stride"], window["dilation"], window["padding"]
    most = [max(s, d) for s, d in zip(stride, dilation, strict=True)]
    if any(not 0 <= e < n for e, n in zip(extra, most, strict=True)):
        raise UnsupportedError(f"with an output_padding of {extra}")
    if wanted is None and automatic in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
    if wanted is not None:
        along = zip(x.shape[2:], weight.shape[2:], stride, dilation, extra, strict=True)
        full = [s * (n - 1) + e + d * (k - 1) + 1 for n, k, s, d, e in along]
        total = [f - w for f, w in zip(full, list(wanted)[-axes:], strict=True)]
        if min(total) < 0:
            raise UnsupportedError(f"with an output_shape of {list(wanted)}, more than {full}")
        lower = automatic != "SAME_UPPER"
        pairs = [(t - t // 2, t // 2) if lower else (t // 2, t - t // 2) for t in total]
    # What is cut off on both sides is never made.
    padding = [min(pair) for pair in pairs]
    y = layers.transposed(c, x, weight, bias, stride, padding, extra, g.get("group", 1), dilation)
    starts = [a - p for (a, _), p in zip(pairs, padding, strict=True)]
    stops = [n - (b - p) for n, (_, b), p in zip(y.shape[2:], pairs, padding, strict=True)]
    return layers.crop(c, y, starts, stops, [1] * axes)


def _gemm(c: Builder, g: Given, a: Any, b: Any, bias: Any = None) -> Value:
    if not isinstance(a, Value) or isinstance(b, Value) or b is None or g.get("transA"):
        raise UnsupportedError("with a first factor that is a constant or transposed")
    weight = np.asarray(b if g.get("transB") else b.T, dtype=np.float64) * g.get("alpha", 1.0)
    if isinstance(bias, Value):
        raise UnsupportedError("with a computed third input")
    if bias is None:
        return layers.linear(c, a, weight)
    added = np.asarray(bias, dtype=np.float64) * g.get("beta", 1.0)
    if added.size not in (1, len(weight)) or (added.ndim > 1 and added.shape[0] != 1):
        raise UnsupportedError(f"with a third input of shape {added.shape}")
    return layers.linear(c, a, weight, np.broadcast_to(added.reshape(-1), (len(weight),)).copy())


def _matmul(c: Builder, g: Given, a: Any, b: Any) -> Value:
    if not isinstance(a, Value) or isinstance(b, Value) or np.ndim(b) != 2:
        raise UnsupportedError("of two computed values, or of more than one matrix")
    return layers.linear(c, a, np.asarray(b).T)


def _batch_norm(c: Builder, g: Given, x: Any, scale: Any, shift: Any, mean: Any, var: Any) -> Value:
    if g.get("training_mode") or any(isinstance(v, Value) for v in (scale, shift, mean, var)):
        raise UnsupportedError("without running statistics")
    if not isinstance(x, Value):
        raise UnsupportedError("of a constant")
    scale, shift, mean, var = (np.asarray(v, dtype=np.float64) for v in (scale, shift, mean, var))
    if any(v.shape != (x.shape[1],) for v in (scale, shift, mean, var)):
        raise UnsupportedError(f"of {x.shape} with {scale.shape} numbers")
    gain = scale / np.sqrt(var + g.get("epsilon", 1e-5))
    return layers.batch_norm(c, x, gain, shift - mean * gain)


def _instance_norm(c: Builder, g: Given, x: Any, scale: Any, shift: Any) -> Value:
    x = _volume(x)
    scale, shift = _weights(scale, shift)
    return layers.group_norm(c, x, None, scale, shift, g.get("epsilon", 1e-5))


def _group_norm(c: Builder, g: Given, x: Any, scale: Any, shift: Any) -> Value:
    x = _volume(x)
    scale, shift = _weights(scale, shift)
    groups, channels = g.get("num_groups", 1), x.shape[1]
    if groups < 1 or channels % groups:
        raise UnsupportedError(f"of {channels} channels in {groups} groups")
    if g.opset < 21:  # one number a group
        scale, shift = (np.repeat(v, channels // groups) for v in (scale, shift))
    return layers.group_norm(c, x, groups, scale, shift, g.get("epsilon", 1e-5))


def _layer_norm(c: Builder, g: Given, x: Any, scale: Any, shift: Any = None) -> Value:
    if not isinstance(x, Value):
        raise UnsupportedError("of a constant")
    scale, shift = _weights(scale, shift)
    axes = len(x.shape) - axis_of(g.get("axis", -1), len(x.shape))
    return layers.layer_norm(c, x, axes, scale, shift, g.get("epsilon", 1e-5))


def _pool(kind: Any) -> Callable[..., Any]:
    def handler(c: Builder, g: Given, x: Any) -> Any:
        x = _volume(x)
        if 1 in g.read:
            raise UnsupportedError("whose indices are read")
        kernel = list(g.get("kernel_shape", []))
        window = _window(g, x, kernel)
        counts, pairs = bool(g.get("count_include_pad")), window["padding"]
        ceil = bool(g.get("ceil_mode")) and g.get("auto_pad", "NOTSET") == "NOTSET"
        stride, dilation = window["stride"], window["dilation"]
        if kind == "avg_pool" and max(dilation) > 1:
            raise UnsupportedError("with a dilation")
        if kind == "avg_pool" and counts and any(a != b for a, b in pairs):
            x, pairs = layers.pad(c, x, pairs), [(0, 0)] * len(pairs)
        geometry = list(zip(x.shape[2:], kernel, stride, dilation, pairs, strict=True))
        for up in (False, True) if not ceil else (True,):
            found = [_even(*axis, ceil=ceil, up=up) for axis in geometry]
            if None not in found:
                break
        else:
            raise UnsupportedError(f"with padding {pairs} for a kernel {kernel}")
        even = [axis for axis in found if axis is not None]
        padding = [p for p, _, _ in even]
        y = layers.pool(c, x, kind, kernel, stride, padding, dilation, up, counts)
        stops = [first + count for _, first, count in even]
        return layers.crop(c, y, [first for _, first, _ in even], stops, [1] * len(even))

    return handler


def _even(
    n: int, k: int, s: int, d: int, pair: tuple[int, int], *, ceil: bool, up: bool
) -> tuple[int, int, int] | None:
    """An axis with the padding `pair` as one with the same on both sides: (padding, the first of
    its windows that is kept, how many are). `up`: its windows are counted with ceil_mode. Maxima,
    and averages that leave the padding out, do not see more of it.
    """
    before, after = pair
    room = n + before + after - d * (k - 1) - 1
    wanted = (-(-room // s) if ceil else room // s) + 1
    wanted -= ceil and (wanted - 1) * s >= n + before
    for first in range(k):
        padding = before + first * s
        if 2 * padding > k or min(pair) < 0:
            return None
        if window_size(n, k, s, padding, padding, d, up) >= first + wanted:
            return padding, first, wanted
    return None


def _global(kind: Any) -> Callable[..., Value]:
    return lambda c, g, x: layers.everywhere(c, c.volume(_volume(x)), kind, keep=True)


def _pad(c: Builder, g: Given, x: Any, pads: Any, value: Any = None, axes: Any = None) -> Value:
    if not isinstance(x, Value):
        raise UnsupportedError("of a constant")
    widths, ndim = numbers(pads, "widths"), len(x.shape)
    along = list(range(ndim))
    if axes is not None:
        along = [axis_of(axis, ndim) for axis in numbers(axes, "axes")]
    if len(widths) != 2 * len(along):
        raise UnsupportedError(f"by {widths}")
    pairs = [(0, 0)] * ndim
    for i, axis in enumerate(along):
        pairs[axis] = (widths[i], widths[len(along) + i])
    filling = 0.0 if value is None or np.size(value) == 0 else number(value, "value")
    mode = g.get("mode", "constant")
    if mode not in ("constant", "edge", "reflect"):
        raise UnsupportedError(f"in the mode {mode}")
    if not any(n for pair in pairs for n in pair):
        return x
    if not any(n for pair in pairs[:2] for n in pair) and ndim < 6:
        return layers.pad(c, x, pairs[2:], mode, filling)
    return _pad_where_they_lie(c, x, pairs, mode, filling)


def _pad_where_they_lie(
    c: Builder, x: Value, pairs: list[tuple[int, int]], mode: str, filling: float
) -> Value:
    """Around axes of voxels that are not the last ones, as where channels come last."""
    extent = c.extent(x)
    around, lies = [(0, 0)] * 3, list(x.layout)
    for i, pair in enumerate(pairs):
        voxels = {part.axis for part in x.layout[i - 1]} if i else {0}
        if not any(pair):
            continue
        axis = voxels.pop() if len(voxels) == 1 else 0
        if axis == 0 or not at.same(x.layout[i - 1], at.whole(axis, extent[axis])):
            raise UnsupportedError(f"by {pairs}: only around D, H and W")
        around[axis - 1] = pair
        lies[i - 1] = at.whole(axis, extent[axis] + sum(pair))
    whole = x.seen(at.plain(extent))
    return layers.pad(c, whole, around, mode, filling).seen(tuple(lies))


def _resize(
    c: Builder, g: Given, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None
) -> Value:
    x = _volume(x)
    ndim = len(x.shape)
    axes = [axis_of(axis, ndim) for axis in g.get("axes", range(ndim))]
    if sizes is not None and np.size(sizes):
        given, step = numbers(sizes, "sizes"), None
        full = list(x.shape)
        for axis, size in zip(axes, given, strict=True):
            full[axis] = size
    else:
        if isinstance(scales, Value) or scales is None or np.size(scales) != len(axes):
            raise UnsupportedError("without sizes or scales that are constants")
        factors = [1.0] * ndim
        for axis, factor in zip(axes, np.asarray(scales, dtype=np.float64).tolist(), strict=True):
            factors[axis] = factor
        if min(factors) <= 0:
            raise UnsupportedError(f"by the factors {factors}")
        full = [int(n * f + 1e-6) for n, f in zip(x.shape, factors, strict=True)]
        step = [1 / f for f in factors[2:]]
    if full[:2] != list(x.shape[:2]):
        raise UnsupportedError(f"from {x.shape} to {full}: only along D, H and W")
    mode, where = g.get("mode", "nearest"), g.get("coordinate_transformation_mode", "half_pixel")
    mode = "linear" if mode in ("bilinear", "trilinear") else mode
    # At one voxel they differ, but there is nothing between two.
    if where == "pytorch_half_pixel" and all(
        m > 1 or n == 1 for n, m in zip(x.shape[2:], full[2:], strict=True)
    ):
        where = "half_pixel"
    known = where in ("half_pixel", "asymmetric", "align_corners")
    plain = not (g.get("antialias") or g.get("exclude_outside"))
    plain = plain and g.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    rounding = g.get("nearest_mode", "round_prefer_floor")
    plain = plain and rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    if mode not in ("linear", "nearest") or not known or not plain:
        raise UnsupportedError(f"{mode}, {where}: only nearest and linear without antialiasing")
    return layers.resize(
        c,
        x,
        full[2:],
        linear=mode == "linear",
        step=step,
        coordinates=where,
        rounding=rounding if mode == "nearest" else "floor",
    )


LAYERS: dict[str, Callable[..., Any]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "MaxPool": _pool("max_pool"),
    "AveragePool": _pool("avg_pool"),
    "GlobalAveragePool": _global("mean"),
    "GlobalMaxPool": _global("maximum"),
    "Pad": _pad,
    "Resize": _resize,
}
