"""What an ATen operation with weights, windows or an activation becomes, in `LAYERS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperfusion_rt.artifact.operations import Kind
from hyperfusion_rt.export.ir import layers
from hyperfusion_rt.export.ir.builder import Builder, UnsupportedError, Value, spread


def _conv(
    c: Builder,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    if not isinstance(x, Value) or not isinstance(weight, Tensor):
        raise UnsupportedError("with a computed weight: use hyperfusion_rt.kernels.hyper_conv3d")
    if isinstance(padding, str):
        axes = weight.dim() - 2
        reach = [
            d * (k - 1)
            for k, d in zip(weight.shape[2:], spread(dilation, axes, 1)[3 - axes :], strict=True)
        ]
        # Of an odd number, the voxel more is behind.
        padding = [(0, 0) if padding == "valid" else (r // 2, r - r // 2) for r in reach]
    return layers.convolution(c, x, weight, bias, stride, padding, dilation, groups)


def _transposed(
    c: Builder,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    if not isinstance(x, Value) or not isinstance(weight, Tensor):
        raise UnsupportedError("with a computed weight")
    return layers.transposed(c, x, weight, bias, stride, padding, output_padding, groups, dilation)


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
    full, (weight, bias) = layers.condition(c, e, (G, g0), (h, h0))
    return layers.convolution(c, x, weight, bias, stride, padding, dilation, groups, full)


def _hyper_transposed(
    c: Builder,
    x: Value,
    e: Value,
    G: Any,
    h: Any,
    g0: Any,
    h0: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: int,
) -> Value:
    full, (weight, bias) = layers.condition(c, e, (G, g0), (h, h0))
    return layers.transposed(
        c, x, weight, bias, stride, padding, output_padding, groups, dilation, full
    )


def _hyper_linear(
    c: Builder, x: Value, e: Value, G: Any, h: Any, g0: Any = None, h0: Any = None
) -> Value:
    full, (weight, bias) = layers.condition(c, e, (G, g0), (h, h0))
    vector, order = c.vector(x)
    weight = weight if order is None else weight[..., order]
    return c.emit("hyper_linear", [vector, full], (weight.shape[1],), weight=weight, bias=bias)


def _linear(c: Builder, x: Value, weight: Any, bias: Any = None) -> Value:
    if not isinstance(weight, Tensor):
        raise UnsupportedError("with a computed weight")
    return layers.linear(c, x, weight, bias)


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
    return layers.batch_norm(c, x, scale, shift if bias is None else shift + bias)


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
    return layers.group_norm(c, x, None, weight, bias, eps)


def _group_norm(
    c: Builder,
    x: Value,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Value:
    return layers.group_norm(c, x, groups, weight, bias, eps)


def _layer_norm(
    c: Builder,
    x: Value,
    shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Value:
    return layers.layer_norm(c, x, len(shape), weight, bias, eps)


def _activation(kind: Kind) -> Callable[..., Value]:
    def handler(c: Builder, x: Value, *args: Any, **kwargs: Any) -> Value:
        if args:
            raise UnsupportedError(f"with the parameters {args}")
        return layers.activation(c, x, kind)

    return handler


def _with_alpha(kind: Kind, default: float) -> Callable[..., Value]:
    def handler(c: Builder, x: Value, alpha: float = default, *args: Any, **kwargs: Any) -> Value:
        if args:
            raise UnsupportedError(f"with the parameters {args}")
        return layers.activation(c, x, kind, alpha)

    return handler


def _softplus(c: Builder, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    if (beta, threshold) != (1, 20):
        raise UnsupportedError(f"with beta {beta} and threshold {threshold}: only 1 and 20")
    return layers.activation(c, x, "softplus")


def _gelu(c: Builder, x: Value, approximate: str = "none") -> Value:
    return layers.activation(c, x, "gelu" if approximate == "none" else "gelu_tanh")


def _prelu(c: Builder, x: Value, weight: Any) -> Value:
    return layers.prelu(c, x, np.asarray(weight))


def _elu(
    c: Builder, x: Value, alpha: float = 1.0, scale: float = 1, input_scale: float = 1
) -> Value:
    if input_scale != 1:
        raise UnsupportedError(f"with an input_scale of {input_scale}")
    y = layers.activation(c, x, "elu", alpha)
    return y if scale == 1 else c.affine(y, scale, 0.0)


def _selu(c: Builder, x: Value) -> Value:
    return _elu(c, x, 1.6732632423543772, 1.0507009873554805)


def _log_sigmoid(c: Builder, x: Value) -> Value:
    y = layers.activation(c, c.affine(x, -1.0, 0.0), "softplus")
    return c.affine(y, -1.0, 0.0)


def _clamp(c: Builder, x: Value, low: Any = None, high: Any = None) -> Value:
    if isinstance(low, (Tensor, Value)) or isinstance(high, (Tensor, Value)):
        raise UnsupportedError("between tensors")
    return layers.clip(c, x, low, high)


def _hardtanh(c: Builder, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    return layers.clip(c, x, low, high)


def _max_pool(
    c: Builder,
    x: Value,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Value:
    step = stride or kernel
    return layers.pool(c, x, "max_pool", kernel, step, padding, dilation, ceil_mode)


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
    if divisor is not None:
        raise UnsupportedError("with a divisor of its own")
    step = stride or kernel
    return layers.pool(c, x, "avg_pool", kernel, step, padding, 1, ceil_mode, count_include_pad)


def _adaptive_avg(c: Builder, x: Value, size: Any) -> Value:
    return layers.adaptive_pool(c, x, "avg", size)


def _adaptive_max(c: Builder, x: Value, size: Any) -> Any:
    # The indices are not made: what reads them finds None.
    return layers.adaptive_pool(c, x, "max", size), None


def _upsample(
    *, linear: bool, rounding: str = "floor", centred: bool = False
) -> Callable[..., Value]:
    """`upsample_...(x, size, [align_corners], factors)`: some versions give one factor an axis."""

    def handler(c: Builder, x: Value, size: Any, *rest: Any) -> Value:
        aligned = bool(rest[0]) if linear else False
        given = [f for f in rest[linear:] if f is not None]
        factors = list(given[0]) if given and not isinstance(given[0], float) else given
        axes = len(x.shape) - 2
        if size is None:
            size = [int(n * f) for n, f in zip(x.shape[2:], factors, strict=True)]
        step = [1 / f for f in factors] if len(factors) == axes else None
        where = "align_corners" if aligned else "half_pixel" if linear or centred else "asymmetric"
        return layers.resize(
            c, x, list(size), linear=linear, step=step, coordinates=where, rounding=rounding
        )

    return handler


_NEAREST = _upsample(linear=False)
# PyTorch's nearest-exact takes the voxel whose half-open interval holds the centre.
_EXACT = _upsample(linear=False, rounding="round_prefer_ceil", centred=True)
_LINEAR = _upsample(linear=True)


_relu, _silu, _sigmoid = _activation("relu"), _activation("silu"), _activation("sigmoid")
LAYERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    "hfrt.hyper_conv3d": _hyper_conv,
    "hfrt.hyper_conv_transpose3d": _hyper_transposed,
    "hfrt.hyper_linear": _hyper_linear,
    "linear": _linear,
    "addmm": _addmm,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    **dict.fromkeys(("relu", "relu_"), _relu),
    **dict.fromkeys(("silu", "silu_"), _silu),
    **dict.fromkeys(("sigmoid", "sigmoid_"), _sigmoid),
    **dict.fromkeys(("tanh", "tanh_"), _activation("tanh")),
    **dict.fromkeys(("leaky_relu", "leaky_relu_"), _with_alpha("leaky_relu", 0.01)),
    **dict.fromkeys(("elu", "elu_"), _elu),
    **dict.fromkeys(("selu", "selu_"), _selu),
    **dict.fromkeys(("celu", "celu_"), layers.celu),
    **dict.fromkeys(("hardswish", "hardswish_"), _activation("hardswish")),
    "hardsigmoid": _activation("hardsigmoid"),
    "softplus": _softplus,
    "log_sigmoid": _log_sigmoid,
    **dict.fromkeys(("mish", "mish_"), _activation("mish")),
    "relu6": _activation("relu6"),
    **dict.fromkeys(("hardtanh", "hardtanh_"), _hardtanh),
    **dict.fromkeys(("clamp", "clamp_", "clamp_min", "clamp_min_"), _clamp),
    "clamp_max": lambda c, x, high: _clamp(c, x, None, high),
    **{name: _activation(name) for name in ("exp", "log", "sqrt", "abs", "erf")},
    "gelu": _gelu,
    "prelu": _prelu,
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _max_pool),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _avg_pool),
    **{f"adaptive_avg_pool{n}d": _adaptive_avg for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": _adaptive_max for n in (1, 2, 3)},
    **{f"upsample_nearest{n}d": _NEAREST for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": _EXACT for n in (1, 2, 3)},
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), _LINEAR),
}
