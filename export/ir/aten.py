"""What each ATen operation becomes in a `Graph`: one small handler each, in `HANDLERS`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hyperfusion_rt.artifact.operations import Margins, Span
from hyperfusion_rt.export.ir.aten_layers import LAYERS
from hyperfusion_rt.export.ir.builder import Builder, UnsupportedError, Value, expect_axes
from hyperfusion_rt.export.ir.graph import Shape


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
    expect_axes(x, 5)
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
    expect_axes(x, 2)
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


# Their results share memory with their input.
VIEWS = {"slice", "split", "split_with_sizes", "chunk", "getitem", "flatten", "view", "reshape"}
VIEWS |= {"unsqueeze", "squeeze"}
HANDLERS: dict[str, Callable[..., Any]] = {
    **LAYERS,
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
