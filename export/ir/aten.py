"""What each ATen operation on shapes and numbers becomes in a `Graph`, in `HANDLERS`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hyperfusion_rt.export.ir import layers, tensors
from hyperfusion_rt.export.ir.aten_layers import LAYERS
from hyperfusion_rt.export.ir.builder import Builder, UnsupportedError, Value


def _add(c: Builder, a: Any, b: Any, alpha: float = 1) -> Value:
    return tensors.pairwise(c, "add", a, b if alpha == 1 else _mul(c, b, alpha))


def _sub(c: Builder, a: Any, b: Any, alpha: float = 1) -> Value:
    return tensors.pairwise(c, "sub", a, b if alpha == 1 else _mul(c, b, alpha))


def _mul(c: Builder, a: Any, b: Any) -> Any:
    if not isinstance(a, Value) and not isinstance(b, Value):
        return np.asarray(a) * np.asarray(b)
    return tensors.pairwise(c, "mul", a, b)


def _div(c: Builder, a: Any, b: Any) -> Value:
    return tensors.pairwise(c, "div", a, b)


def _pow(c: Builder, x: Any, exponent: Any) -> Value:
    if not isinstance(x, Value) or isinstance(exponent, Value) or np.size(exponent) != 1:
        raise UnsupportedError("with an exponent that is not one number")
    return tensors.power(c, x, float(np.asarray(exponent)))


def _cat(c: Builder, values: Sequence[Any], dim: int = 0) -> Value:
    return tensors.concat(c, values, dim)


def _slice(
    c: Builder, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    return tensors.part(c, x, dim, start, end, step)


def _split(c: Builder, x: Value, size: Any, dim: int = 0) -> list[Value]:
    return tensors.split(c, x, size, dim)


def _chunk(c: Builder, x: Value, chunks: int, dim: int = 0) -> list[Value]:
    return tensors.split(c, x, math.ceil(x.shape[dim % len(x.shape)] / chunks), dim)


def _unbind(c: Builder, x: Value, dim: int = 0) -> list[Value]:
    return [tensors.select(c, x, dim, i) for i in range(x.shape[dim % len(x.shape)])]


def _squeeze(c: Builder, x: Value, dim: Any = None) -> Value:
    return tensors.squeeze(c, x, [dim] if isinstance(dim, int) else dim)


def _transpose(c: Builder, x: Value, a: int, b: int) -> Value:
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return tensors.permute(c, x, order)


def _movedim(c: Builder, x: Value, source: Any, target: Any) -> Value:
    n = len(x.shape)
    sources, targets = ([v] if isinstance(v, int) else v for v in (source, target))
    order: list[int] = [axis for axis in range(n) if axis not in {a % n for a in sources}]
    for to, of in sorted((t % n, s % n) for s, t in zip(sources, targets, strict=True)):
        order.insert(to, of)
    return tensors.permute(c, x, order)


def _pad(c: Builder, x: Value, widths: Any, mode: Any = "constant", value: Any = 0.0) -> Value:
    if isinstance(mode, (int, float)):  # constant_pad_nd has no mode
        mode, value = "constant", mode
    modes = {"constant": "constant", "replicate": "edge", "reflect": "reflect"}
    if mode not in modes:
        raise UnsupportedError(f"{mode}: only {', '.join(modes)}")
    pairs = list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    axes = len(x.shape) - 2
    if len(pairs) > axes:
        if any(n for pair in pairs[: len(pairs) - axes] for n in pair):
            raise UnsupportedError(f"by {list(widths)}: only around D, H, W")
        pairs = pairs[len(pairs) - axes :]
    full = [(0, 0)] * (axes - len(pairs)) + pairs
    return layers.pad(c, x, full, modes[mode], float(value or 0.0))


def _reduction(kind: Any) -> Callable[..., Value]:
    def handler(
        c: Builder, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None
    ) -> Value:
        dims = range(len(x.shape)) if dim is None or dim == [] else dim
        axes = [d % len(x.shape) for d in ([dims] if isinstance(dims, int) else dims)]
        return tensors.reduce(c, x, kind, axes, keep=keepdim)

    return handler


def _norm(c: Builder, x: Value, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Value:
    if p not in (2, None):
        raise UnsupportedError(f"of order {p}: only 2")
    return _reduction("l2")(c, x, dim, keepdim)


def _softmax(c: Builder, x: Value, dim: int, dtype: Any = None) -> Value:
    return tensors.softmax(c, x, dim)


def _log_softmax(c: Builder, x: Value, dim: int, dtype: Any = None) -> Value:
    return tensors.softmax(c, x, dim, log=True)


def _matmul(c: Builder, a: Any, b: Any) -> Value:
    if isinstance(b, Value) or not isinstance(a, Value) or np.ndim(b) != 2:
        raise UnsupportedError("of two computed values")
    return layers.linear(c, a, np.asarray(b).T)


def _same(c: Builder, x: Value, *args: Any, **kwargs: Any) -> Value:
    return x


def _dropout(c: Builder, x: Value, p: float, train: bool) -> Value:
    if train:
        raise UnsupportedError("that is on during inference")
    return x


def _getitem(c: Builder, values: Any, index: Any) -> Any:
    return values[index]


# With these off, as they must be, torch returns their input itself.
ITSELF = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
HANDLERS: dict[str, Callable[..., Any]] = {
    **LAYERS,
    "add": _add,
    "add_": _add,
    "sub": _sub,
    "sub_": _sub,
    "rsub": lambda c, a, b, alpha=1: _sub(c, b, a, alpha),
    "mul": _mul,
    "mul_": _mul,
    "div": _div,
    "div_": _div,
    "pow": _pow,
    "square": lambda c, x: tensors.power(c, x, 2.0),
    "reciprocal": lambda c, x: tensors.power(c, x, -1.0),
    "rsqrt": lambda c, x: tensors.power(c, x, -0.5),
    "neg": lambda c, x: _mul(c, x, -1.0),
    "maximum": lambda c, a, b: tensors.pairwise(c, "maximum", a, b),
    "minimum": lambda c, a, b: tensors.pairwise(c, "minimum", a, b),
    "matmul": _matmul,
    "mm": _matmul,
    "cat": _cat,
    "concat": _cat,
    "slice": _slice,
    "select": tensors.select,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _chunk,
    "unbind": _unbind,
    "getitem": _getitem,
    "flatten": tensors.flatten,
    "view": tensors.reshape,
    "reshape": tensors.reshape,
    "_unsafe_view": tensors.reshape,
    "unflatten": lambda c, x, dim, sizes: tensors.reshape(
        c, x, [*x.shape[: dim % len(x.shape)], *sizes, *x.shape[dim % len(x.shape) + 1 :]]
    ),
    "permute": tensors.permute,
    "transpose": _transpose,
    "movedim": _movedim,
    "expand": tensors.expand,
    "unsqueeze": lambda c, x, dim: tensors.unsqueeze(c, x, [dim]),
    "squeeze": _squeeze,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "mean": _reduction("mean"),
    "sum": _reduction("sum"),
    "amax": _reduction("maximum"),
    "norm": _norm,
    "linalg_vector_norm": lambda c, x, ord=2, dim=None, keepdim=False, dtype=None: _norm(
        c, x, ord, dim, keepdim
    ),
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    **dict.fromkeys((*ITSELF, "dropout_"), _dropout),
    "contiguous": _same,
    "clone": _same,
    "detach": _same,
    "alias": _same,
    "to": _same,
    "_assert_tensor_metadata": lambda c, *a, **k: None,
}


def operation(target: Any) -> str:
    """What `HANDLERS` calls that which a node of a program calls."""
    return (
        str(target).removeprefix("aten.").rsplit(".", 1)[0]
        if not callable(target) or hasattr(target, "overloadpacket") or hasattr(target, "_schema")
        else target.__name__
    )
