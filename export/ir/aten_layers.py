"""What an ATen operation with weights, windows or an activation becomes, in `LAYERS`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperfusion_rt.artifact.operations import (
    Activation,
    Grid,
    Kind,
    Normalisation,
    Pooling,
    Subsampling,
)
from hyperfusion_rt.export.ir.builder import (
    Builder,
    UnsupportedError,
    Value,
    expect_axes,
    triple,
    windows,
)
from hyperfusion_rt.export.ir.graph import Array, Convolution


def _conv3d(
    c: Builder,
    x: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    if not isinstance(x, Value) or not isinstance(weight, Tensor):
        raise UnsupportedError("with a computed weight: use hyperfusion_rt.kernels.hyper_conv3d")
    expect_axes(x, 5)
    stride, dilation = triple(stride), triple(dilation)
    kernel = triple(weight.shape[2:])
    if isinstance(padding, str):
        padding = (
            [0] * 3
            if padding == "valid"
            else [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
        )
        if any((k - 1) * d % 2 for k, d in zip(kernel, dilation, strict=True)):
            raise UnsupportedError("with padding='same' and an even kernel")
    padding = triple(padding)
    if bias is None:
        bias = torch.zeros(weight.shape[0])
    window = Convolution(
        kernel=kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    shape = (weight.shape[0], *windows(x, window))
    return c.emit("conv", [x], shape, window, weight=weight, bias=bias)


def _condition(c: Builder, e: Value, *arrays: tuple[Any, Any]) -> tuple[Value, list[Array]]:
    """ẽ = [1, e] and G̃ = [g0, G] for each pair (G, g0)."""
    full = c.emit("one_and", [e], (e.shape[1] + 1,))
    stacked = []
    for g, g0 in arrays:
        if not isinstance(g, Tensor):
            raise UnsupportedError("with generators that are computed from the input")
        first = np.zeros(tuple(g.shape[1:])) if g0 is None else np.asarray(g0)
        stacked.append(np.concatenate([first[None], np.asarray(g)]))
    return full, stacked


def _hyper_conv(
    c: Builder,
    x: Value,
    e: Value,
    G: Any,
    h: Any,
    g0: Any,
    h0: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Value:
    full, (weight, bias) = _condition(c, e, (G, g0), (h, h0))
    window = Convolution(
        kernel=triple(weight.shape[3:]),
        stride=triple(stride),
        padding=triple(padding),
        dilation=triple(dilation),
        groups=groups,
    )
    shape = (weight.shape[1], *windows(x, window))
    return c.emit("hyper_conv", [x, full], shape, window, weight=weight, bias=bias)


def _hyper_linear(
    c: Builder, x: Value, e: Value, G: Any, h: Any, g0: Any = None, h0: Any = None
) -> Value:
    full, (weight, bias) = _condition(c, e, (G, g0), (h, h0))
    return c.emit("hyper_linear", [x, full], (weight.shape[1],), weight=weight, bias=bias)


def _linear(c: Builder, x: Value, weight: Any, bias: Any = None) -> Value:
    if not isinstance(weight, Tensor):
        raise UnsupportedError("with a computed weight")
    expect_axes(x, 2)
    return c.emit(
        "linear",
        [x],
        (weight.shape[0],),
        weight=weight,
        bias=torch.zeros(weight.shape[0]) if bias is None else bias,
    )


def _addmm(c: Builder, bias: Any, x: Value, weight: Any) -> Value:
    return _linear(c, x, weight.t(), bias)


def _batch_norm(
    c: Builder,
    x: Value,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = True,
) -> Value:
    if training or mean is None:
        raise UnsupportedError("without running statistics")
    scale = 1 / torch.sqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    return c.affine(x, scale, shift if bias is None else shift + bias)


def _instance_norm(
    c: Builder,
    x: Value,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    use_input: bool,
    momentum: float,
    eps: float,
    cudnn: bool = True,
) -> Value:
    if not use_input and mean is not None:
        return _batch_norm(c, x, weight, bias, mean, var, False, momentum, eps)
    expect_axes(x, 5)
    n = x.shape[1]
    return c.emit(
        "instance_norm",
        [x],
        x.shape[1:],
        Normalisation(eps=float(eps)),
        scale=torch.ones(n) if weight is None else weight,
        shift=torch.zeros(n) if bias is None else bias,
    )


def _activate(c: Builder, x: Value, kind: Kind, alpha: float = 0.0, **arrays: Array) -> Value:
    return c.emit("activation", [x], x.shape[1:], Activation(kind=kind, alpha=alpha), **arrays)


def _activation(kind: Kind) -> Callable[..., Value]:
    def handler(c: Builder, x: Value, *args: Any, **kwargs: Any) -> Value:
        if args:
            raise UnsupportedError(f"with the parameters {args}")
        return _activate(c, x, kind)

    return handler


def _with_alpha(kind: Kind, default: float) -> Callable[..., Value]:
    def handler(c: Builder, x: Value, alpha: float = default, *args: Any, **kwargs: Any) -> Value:
        if args:
            raise UnsupportedError(f"with the parameters {args}")
        return _activate(c, x, kind, float(alpha))

    return handler


def _softplus(c: Builder, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    if (beta, threshold) != (1, 20):
        raise UnsupportedError(f"with beta {beta} and threshold {threshold}: only 1 and 20")
    return _activate(c, x, "softplus")


def _gelu(c: Builder, x: Value, approximate: str = "none") -> Value:
    return _activate(c, x, "gelu" if approximate == "none" else "gelu_tanh")


def _prelu(c: Builder, x: Value, weight: Any) -> Value:
    slope = np.broadcast_to(np.asarray(weight).reshape(-1), (x.shape[1],)).copy()
    return _activate(c, x, "prelu", slope=slope)


def _hardtanh(c: Builder, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    if (low, high) != (0, 6):
        raise UnsupportedError(f"between {low} and {high}: only relu6")
    return _activate(c, x, "relu6")


def _clamp(c: Builder, x: Value, low: Any = None, high: Any = None) -> Value:
    if low == 0 and high is None:
        return _activate(c, x, "relu")
    return _hardtanh(c, x, low, high)


def _max_pool(
    c: Builder,
    x: Value,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Value:
    expect_axes(x, 5)
    window = Pooling(
        kernel=triple(kernel),
        stride=triple(stride or kernel),
        padding=triple(padding),
        dilation=triple(dilation),
        ceil_mode=ceil_mode,
    )
    return c.emit("max_pool", [x], (x.shape[1], *windows(x, window, ceil_mode)), window)


def _avg_pool(
    c: Builder,
    x: Value,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: Any = None,
) -> Value:
    expect_axes(x, 5)
    if divisor is not None:
        raise UnsupportedError("with a divisor of its own")
    window = Pooling(
        kernel=triple(kernel),
        stride=triple(stride or kernel),
        padding=triple(padding),
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
    )
    return c.emit("avg_pool", [x], (x.shape[1], *windows(x, window, ceil_mode)), window)


def _adaptive(kind: str) -> Callable[..., Any]:
    def handler(c: Builder, x: Value, size: Any) -> Any:
        expect_axes(x, 5)
        wanted = [n if n is not None else f for n, f in zip(_sizes(size), x.shape[2:], strict=True)]
        if wanted == [1, 1, 1]:
            pooled = c.emit(f"global_{kind}_pool", [x], x.shape[1:2], Subsampling())
            return c.emit("reshape", [pooled], (x.shape[1], 1, 1, 1))
        grid = Grid(size=triple(wanted))
        if any(f % n for f, n in zip(x.shape[2:], wanted, strict=True)):
            window = _alike(x.shape[2:], grid.size)
            return c.emit(f"{kind}_pool", [x], (x.shape[1], *grid.size), window)
        return c.emit(f"adaptive_{kind}_pool", [x], (x.shape[1], *grid.size), grid)

    return handler


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
    kernel, stride, padding = (triple(along) for along in zip(*found, strict=True))
    return Pooling(kernel=kernel, stride=stride, padding=padding, count_include_pad=False)


def _sizes(size: Any) -> list[Any]:
    found = [size] * 3 if isinstance(size, int) else list(size)
    return found * 3 if len(found) == 1 else found


def _adaptive_max(c: Builder, x: Value, size: Any) -> Any:
    # The indices are not made: what reads them finds None.
    return _adaptive("max")(c, x, size), None


def _mean(c: Builder, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    axes = sorted(d % len(x.shape) for d in dim or ())
    if len(x.shape) != 5 or axes != [2, 3, 4]:
        raise UnsupportedError(f"over the axes {axes} of {x.shape}: only over all of D, H, W")
    y = c.emit("global_avg_pool", [x], x.shape[1:2], Subsampling())
    return c.emit("reshape", [y], (x.shape[1], 1, 1, 1)) if keepdim else y


_relu, _silu, _sigmoid = _activation("relu"), _activation("silu"), _activation("sigmoid")
LAYERS: dict[str, Callable[..., Any]] = {
    "conv3d": _conv3d,
    "hfrt.hyper_conv3d": _hyper_conv,
    "hfrt.hyper_linear": _hyper_linear,
    "linear": _linear,
    "addmm": _addmm,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "relu": _relu,
    "relu_": _relu,
    "silu": _silu,
    "silu_": _silu,
    "sigmoid": _sigmoid,
    "sigmoid_": _sigmoid,
    "tanh": _activation("tanh"),
    "leaky_relu": _with_alpha("leaky_relu", 0.01),
    "leaky_relu_": _with_alpha("leaky_relu", 0.01),
    "elu": _with_alpha("elu", 1.0),
    "elu_": _with_alpha("elu", 1.0),
    "hardswish": _activation("hardswish"),
    "hardswish_": _activation("hardswish"),
    "hardsigmoid": _activation("hardsigmoid"),
    "softplus": _softplus,
    "mish": _activation("mish"),
    "mish_": _activation("mish"),
    "relu6": _activation("relu6"),
    "hardtanh": _hardtanh,
    "hardtanh_": _hardtanh,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "gelu": _gelu,
    "prelu": _prelu,
    "max_pool3d": _max_pool,
    "avg_pool3d": _avg_pool,
    "adaptive_avg_pool3d": _adaptive("avg"),
    "adaptive_max_pool3d": _adaptive_max,
    "mean": _mean,
}
