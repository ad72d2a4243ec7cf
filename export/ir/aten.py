"""What each ATen operation becomes in a `Graph`: one small handler each, in `HANDLERS`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperfusion_rt.artifact.operations import (
    Activation,
    Grid,
    Kind,
    Margins,
    Normalisation,
    Pooling,
    Span,
    Subsampling,
    Window,
)
from hyperfusion_rt.export.ir.graph import Array, Attributes, Convolution, Graph, Node, Shape

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


def _triple(value: Any) -> tuple[int, int, int]:
    if isinstance(value, int):
        return value, value, value
    found = [int(v) for v in value]
    found = found * 3 if len(found) == 1 else found
    if len(found) != 3:
        raise UnsupportedError(f"along {len(found)} axes: only three")
    return found[0], found[1], found[2]


def _is(x: Value, dims: int) -> None:
    if len(x.shape) != dims:
        raise UnsupportedError(f"on a tensor of shape {x.shape}")


def _window(size: int, k: int, s: int, p: int, d: int, ceil: bool = False) -> int:
    room = size + 2 * p - d * (k - 1) - 1
    n = -(-room // s) + 1 if ceil else room // s + 1
    return n - 1 if ceil and (n - 1) * s >= size + p else n


def _windows(x: Value, w: Window, ceil: bool = False) -> Shape:
    along = zip(x.shape[2:], w.kernel, w.stride, w.padding, w.dilation, strict=True)
    return tuple(_window(*axis, ceil) for axis in along)


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
    _is(x, 5)
    stride, dilation = _triple(stride), _triple(dilation)
    kernel = _triple(weight.shape[2:])
    if isinstance(padding, str):
        padding = (
            [0] * 3
            if padding == "valid"
            else [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
        )
        if any((k - 1) * d % 2 for k, d in zip(kernel, dilation, strict=True)):
            raise UnsupportedError("with padding='same' and an even kernel")
    padding = _triple(padding)
    if bias is None:
        bias = torch.zeros(weight.shape[0])
    window = Convolution(
        kernel=kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    shape = (weight.shape[0], *_windows(x, window))
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
        kernel=_triple(weight.shape[3:]),
        stride=_triple(stride),
        padding=_triple(padding),
        dilation=_triple(dilation),
        groups=groups,
    )
    shape = (weight.shape[1], *_windows(x, window))
    return c.emit("hyper_conv", [x, full], shape, window, weight=weight, bias=bias)


def _hyper_linear(
    c: Builder, x: Value, e: Value, G: Any, h: Any, g0: Any = None, h0: Any = None
) -> Value:
    full, (weight, bias) = _condition(c, e, (G, g0), (h, h0))
    return c.emit("hyper_linear", [x, full], (weight.shape[1],), weight=weight, bias=bias)


def _linear(c: Builder, x: Value, weight: Any, bias: Any = None) -> Value:
    if not isinstance(weight, Tensor):
        raise UnsupportedError("with a computed weight")
    _is(x, 2)
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
    _is(x, 5)
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
    _is(x, 5)
    window = Pooling(
        kernel=_triple(kernel),
        stride=_triple(stride or kernel),
        padding=_triple(padding),
        dilation=_triple(dilation),
        ceil_mode=ceil_mode,
    )
    return c.emit("max_pool", [x], (x.shape[1], *_windows(x, window, ceil_mode)), window)


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
    _is(x, 5)
    if divisor is not None:
        raise UnsupportedError("with a divisor of its own")
    window = Pooling(
        kernel=_triple(kernel),
        stride=_triple(stride or kernel),
        padding=_triple(padding),
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
    )
    return c.emit("avg_pool", [x], (x.shape[1], *_windows(x, window, ceil_mode)), window)


def _adaptive(kind: str) -> Callable[..., Any]:
    def handler(c: Builder, x: Value, size: Any) -> Any:
        _is(x, 5)
        wanted = [n if n is not None else f for n, f in zip(_sizes(size), x.shape[2:], strict=True)]
        if wanted == [1, 1, 1]:
            pooled = c.emit(f"global_{kind}_pool", [x], x.shape[1:2], Subsampling())
            return c.emit("reshape", [pooled], (x.shape[1], 1, 1, 1))
        if any(f % n for f, n in zip(x.shape[2:], wanted, strict=True)):
            raise UnsupportedError(f"from {x.shape[2:]} to {wanted}: not a whole multiple")
        grid = Grid(size=_triple(wanted))
        return c.emit(f"adaptive_{kind}_pool", [x], (x.shape[1], *grid.size), grid)

    return handler


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


def _is_channelwise(x: Value, other: Any) -> bool:
    """Whether a constant has one number per channel when it meets `x`."""
    shape = tuple(np.shape(other))
    full = (1,) * (len(x.shape) - len(shape)) + shape
    return len(full) == len(x.shape) and all(
        n == 1 or (i == 1 and n == x.shape[1]) for i, n in enumerate(full)
    )


def _meet(c: Builder, op: str, a: Value, b: Value) -> Value:
    if len(a.shape) != len(b.shape):
        raise UnsupportedError(f"of shapes {a.shape} and {b.shape}")
    shape = tuple(max(m, n) for m, n in zip(a.shape[1:], b.shape[1:], strict=True))
    for v in (a, b):
        if v.shape[1:] != shape and v.shape[1:] != (shape[0], 1, 1, 1):
            raise UnsupportedError(f"of shapes {a.shape} and {b.shape}")
    return c.emit(op, [a, b], shape)


def _add(c: Builder, a: Any, b: Any, alpha: float = 1, *, sign: float = 1.0) -> Value:
    factor = sign * float(alpha)
    if isinstance(a, Value) and isinstance(b, Value):
        return _meet(c, "add", a, b if factor == 1 else c.affine(b, factor, 0.0))
    if isinstance(a, Value) and _is_channelwise(a, b):
        return c.affine(a, 1.0, factor * np.asarray(b))
    if isinstance(b, Value) and _is_channelwise(b, a):
        return c.affine(b, factor, a)
    raise UnsupportedError("with a constant that is not one number per channel")


def _sub(c: Builder, a: Any, b: Any, alpha: float = 1) -> Value:
    return _add(c, a, b, alpha, sign=-1.0)


def _mul(c: Builder, a: Any, b: Any) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        return _meet(c, "mul", a, b)
    x, factor = (a, b) if isinstance(a, Value) else (b, a)
    if not _is_channelwise(x, factor):
        raise UnsupportedError("with a constant that is not one number per channel")
    return c.affine(x, factor, 0.0)


def _div(c: Builder, a: Any, b: Any) -> Value:
    if isinstance(b, Value):
        raise UnsupportedError("by a computed value")
    return _mul(c, a, 1.0 / np.asarray(b, dtype=np.float64))


def _cat(c: Builder, values: Sequence[Any], dim: int = 0) -> Value:
    if not all(isinstance(v, Value) for v in values) or dim % len(values[0].shape) != 1:
        raise UnsupportedError(f"along axis {dim}: only computed values, along the channels")
    if len(values) == 1:
        return values[0]  # type: ignore[no-any-return]
    first = values[0].shape
    if any(v.shape[2:] != first[2:] for v in values):
        raise UnsupportedError(f"of shapes {[v.shape for v in values]}")
    channels = sum(v.shape[1] for v in values)
    return c.emit("concat", list(values), (channels, *first[2:]))


def _slice(
    c: Builder, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    size = x.shape[dim % len(x.shape)]
    first, last, _ = slice(start, end).indices(size)
    if (first, last, step) == (0, size, 1):
        return x
    if dim % len(x.shape) != 1 or step != 1:
        raise UnsupportedError(f"along axis {dim} with step {step}: only along the channels")
    return c.emit("slice", [x], (last - first, *x.shape[2:]), Span(start=first, stop=last))


def _split(c: Builder, x: Value, size: Any, dim: int = 0) -> list[Value]:
    total = x.shape[dim % len(x.shape)]
    sizes = (
        [size] * (total // size) + [total % size] * (total % size > 0)
        if isinstance(size, int)
        else list(size)
    )
    starts = np.cumsum([0, *sizes]).tolist()
    return [_slice(c, x, dim, a, b) for a, b in itertools.pairwise(starts)]


def _chunk(c: Builder, x: Value, chunks: int, dim: int = 0) -> list[Value]:
    return _split(c, x, math.ceil(x.shape[dim % len(x.shape)] / chunks), dim)


def _to_shape(c: Builder, x: Value, shape: Sequence[int]) -> Value:
    total = math.prod(x.shape)
    known = math.prod(n for n in shape if n != -1)
    full = tuple(total // known if n == -1 else int(n) for n in shape)
    if full == x.shape:
        return x
    if not full or full[0] != x.shape[0]:
        raise UnsupportedError(f"from {x.shape} to {full}: it mixes the samples of a batch")
    one = (x.shape[1], 1, 1, 1)
    if len(full) == 2 or (len(x.shape) == 2 and full[1:] == one):
        return c.emit("reshape", [x], full[1:])
    raise UnsupportedError(f"from {x.shape} to {full}")


def _flatten(c: Builder, x: Value, start: int = 0, end: int = -1) -> Value:
    n = len(x.shape)
    start, end = start % n, end % n
    return _to_shape(
        c, x, [*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]]
    )


def _unsqueeze(c: Builder, x: Value, dim: int) -> Value:
    """`[F]` on its way to `[F, 1, 1, 1]`: in between, a shape that no node has."""
    shape = list(x.shape)
    shape.insert(dim % (len(shape) + 1), 1)
    return _partial(c, x, tuple(shape))


def _squeeze(c: Builder, x: Value, dim: Any = None) -> Value:
    n = len(x.shape)
    axes = range(1, n) if dim is None else [d % n for d in ([dim] if isinstance(dim, int) else dim)]
    return _partial(c, x, tuple(s for i, s in enumerate(x.shape) if i not in axes or s != 1))


def _partial(c: Builder, x: Value, shape: Shape) -> Value:
    if math.prod(shape[2:]) != 1:
        raise UnsupportedError(f"from {x.shape} to {shape}")
    if len(shape) in (2, 5):
        origin = Value(x.name, c.graph.shapes[x.name])
        return _to_shape(c, origin, shape)
    y = Value(x.name, ())
    y.shape = shape
    return y


def _pad(c: Builder, x: Value, widths: Any, mode: Any = "constant", value: Any = 0.0) -> Value:
    _is(x, 5)
    if isinstance(mode, (int, float)):  # constant_pad_nd has no mode
        mode, value = "constant", mode
    if mode != "constant" or value not in (0, 0.0, None) or len(widths) > 6 or min(widths) < 0:
        raise UnsupportedError(f"{mode} by {list(widths)} with {value}: only zeros around D, H, W")
    both = [*widths, *[0] * (6 - len(widths))]
    before, after = (both[4], both[2], both[0]), (both[5], both[3], both[1])
    if not any(both):
        return x
    shape = [n + b + a for n, b, a in zip(x.shape[2:], before, after, strict=True)]
    return c.emit("pad", [x], (x.shape[1], *shape), Margins(before=before, after=after))


def _softmax(c: Builder, x: Value, dim: int, dtype: Any = None) -> Value:
    _is(x, 2)
    if dim % 2 != 1:
        raise UnsupportedError("over the batch")
    return c.emit("softmax", [x], x.shape[1:])


def _same(c: Builder, x: Value, *args: Any, **kwargs: Any) -> Value:
    return x


def _dropout(c: Builder, x: Value, p: float, train: bool) -> Value:
    if train:
        raise UnsupportedError("that is on during inference")
    return x


def _getitem(c: Builder, values: Any, index: Any) -> Any:
    return values[index]


_relu, _silu, _sigmoid = _activation("relu"), _activation("silu"), _activation("sigmoid")
# Their results share memory with their input.
VIEWS = {"slice", "split", "split_with_sizes", "chunk", "getitem", "flatten", "view", "reshape"}
VIEWS |= {"unsqueeze", "squeeze"}
HANDLERS: dict[str, Callable[..., Any]] = {
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
    "add": _add,
    "add_": _add,
    "sub": _sub,
    "rsub": lambda c, a, b: _sub(c, b, a),
    "mul": _mul,
    "mul_": _mul,
    "div": _div,
    "cat": _cat,
    "concat": _cat,
    "slice": _slice,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _chunk,
    "getitem": _getitem,
    "flatten": _flatten,
    "view": _to_shape,
    "reshape": _to_shape,
    "_unsafe_view": _to_shape,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "softmax": _softmax,
    "dropout": _dropout,
    "dropout_": _dropout,
    "feature_dropout": _dropout,
    "alpha_dropout": _dropout,
    "contiguous": _same,
    "clone": _same,
    "detach": _same,
    "alias": _same,
    "to": _same,
    "_assert_tensor_metadata": lambda c, *a, **k: None,
}
