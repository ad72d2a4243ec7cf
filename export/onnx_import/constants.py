"""What does not depend on the network's input, computed with NumPy: sizes, axes, folded weights.

Only what files of networks hold; every result is bounded, so that a damaged file cannot ask for
more memory than there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.export.ir.builder import UnsupportedError

Array = NDArray[Any]
# Numbers of one result that is more than its inputs.
_MOST = 1 << 26


def bounded(shape: Any) -> tuple[int, ...]:
    """A shape whose array can be made."""
    found = tuple(int(n) for n in np.asarray(shape, dtype=np.int64).reshape(-1))
    if any(n < 0 for n in found) or math.prod(found) > _MOST:
        raise UnsupportedError(f"a constant of shape {list(found)}")
    return found


def _pairwise(of: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def call(a: dict[str, Any], x: Array, y: Array) -> Array:
        bounded(np.broadcast_shapes(x.shape, y.shape))
        with np.errstate(all="ignore"):
            return np.asarray(of(x, y))

    return call


def _divide(x: Array, y: Array) -> Array:
    if x.dtype.kind == "f" or y.dtype.kind == "f":
        return x / y
    _not_by_zero(y)
    return np.asarray((x - np.fmod(x, y)) // y, dtype=x.dtype)  # towards 0


def _not_by_zero(y: Array) -> None:
    if not y.all():
        raise UnsupportedError("a division of whole numbers by 0")


def _mod(a: dict[str, Any], x: Array, y: Array) -> Array:
    if x.dtype.kind != "f":
        _not_by_zero(y)
    return _pairwise(np.fmod if a.get("fmod") else np.mod)(a, x, y)


def _many(of: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def call(a: dict[str, Any], *xs: Array) -> Array:
        found = xs[0]
        for x in xs[1:]:
            found = _pairwise(of)(a, found, x)
        return found

    return call


def _each(of: Callable[[Array], Array]) -> Callable[..., Array]:
    def call(a: dict[str, Any], x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(of(x))

    return call


def _axes(a: dict[str, Any], axes: Array | None) -> tuple[int, ...] | None:
    found = a.get("axes") if axes is None else axes
    return None if found is None else tuple(int(i) for i in np.asarray(found).reshape(-1))


def _squeeze(a: dict[str, Any], x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, _axes(a, axes))


def _unsqueeze(a: dict[str, Any], x: Array, axes: Array | None = None) -> Array:
    return np.expand_dims(x, _axes(a, axes) or ())


def _slice(
    a: dict[str, Any],
    x: Array,
    starts: Array,
    ends: Array,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    along = range(len(starts)) if axes is None else axes
    by = np.ones(len(starts), int) if steps is None else steps
    parts = [slice(None)] * x.ndim
    for axis, start, end, step in zip(along, starts, ends, by, strict=True):
        parts[int(axis)] = slice(int(start), int(end) if end > -(1 << 62) else None, int(step))
    return x[tuple(parts)]


def _split(
    a: dict[str, Any], x: Array, sizes: Array | None = None, *, count: int = 1
) -> list[Array]:
    given = a.get("split") if sizes is None else sizes
    axis = int(a.get("axis", 0))
    if given is None:
        each = -(-x.shape[axis] // count)
        return np.split(x, range(each, x.shape[axis], each), axis)
    return np.split(x, np.cumsum(given)[:-1], axis)


def _reshape(a: dict[str, Any], x: Array, shape: Array) -> Array:
    kept = [x.shape[i] if n == 0 and not a.get("allowzero") else n for i, n in enumerate(shape)]
    return np.reshape(x, [int(n) for n in kept])


def _expand(a: dict[str, Any], x: Array, shape: Array) -> Array:
    wanted = np.broadcast_shapes(x.shape, tuple(int(n) for n in shape))
    return np.array(np.broadcast_to(x, bounded(wanted)))


def _tile(a: dict[str, Any], x: Array, repeats: Array) -> Array:
    bounded([n * int(r) for n, r in zip(x.shape, repeats, strict=True)])
    return np.tile(x, [int(r) for r in repeats])


def _range(a: dict[str, Any], start: Array, limit: Array, delta: Array) -> Array:
    if not delta:
        raise UnsupportedError("a range in steps of 0")
    first, last, step = (v.reshape(-1)[0].item() for v in (start, limit, delta))
    (count,) = bounded([max(0, math.ceil((last - first) / step))])
    return np.asarray(first + step * np.arange(count), dtype=start.dtype)


def _filled(a: dict[str, Any], shape: Array) -> Array:
    value = a.get("value")
    value = np.zeros(1, np.float32) if value is None else np.asarray(value)
    return np.full(bounded(shape), value.reshape(-1)[0], value.dtype)


def _reduce(of: Callable[..., Array]) -> Callable[..., Array]:
    def call(a: dict[str, Any], x: Array, axes: Array | None = None) -> Array:
        along = _axes(a, axes)
        if not along and not a.get("noop_with_empty_axes"):
            along = None  # all of them
        return np.asarray(of(x, axis=along, keepdims=a.get("keepdims", 1) == 1))

    return call


def _dequantised(a: dict[str, Any], x: Array, scale: Array, zero: Array | None = None) -> Array:
    axis = int(a.get("axis", 1))
    if a.get("block_size"):
        raise UnsupportedError("in blocks")
    shape = [1] * x.ndim
    if scale.size > 1:
        shape[axis] = -1
    shift = 0 if zero is None else zero.astype(np.float32).reshape(shape if zero.size > 1 else ())
    return np.asarray(
        (x.astype(np.float32) - shift) * scale.reshape(shape if scale.size > 1 else ())
    )


def _gather(a: dict[str, Any], x: Array, at: Array) -> Array:
    axis = int(a.get("axis", 0))
    rest = [n for i, n in enumerate(x.shape) if i != axis % max(x.ndim, 1)]
    bounded([*rest, *at.shape])
    return np.take(x, at.astype(np.int64), axis)


def _where(a: dict[str, Any], chosen: Array, x: Array, y: Array) -> Array:
    bounded(np.broadcast_shapes(chosen.shape, x.shape, y.shape))
    return np.where(chosen, x, y)


# ONNX's number of a type → NumPy's.
_TYPES = {1: "f4", 10: "f4", 16: "f4", 11: "f8", 2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4",
          7: "i8", 9: "?", 12: "u4", 13: "u8"}  # fmt: skip


def _cast(a: dict[str, Any], x: Array) -> Array:
    kind = _TYPES.get(int(a.get("to", 0)))
    if kind is None:
        raise UnsupportedError(f"to the type {a.get('to')}")
    with np.errstate(all="ignore"):
        return x.astype(kind)


EVALUATE: dict[str, Callable[..., Any]] = {
    "Add": _pairwise(np.add),
    "Sub": _pairwise(np.subtract),
    "Mul": _pairwise(np.multiply),
    "Div": _pairwise(_divide),
    "Mod": _mod,
    "Pow": _pairwise(lambda x, y: np.asarray(np.power(x, y), dtype=x.dtype)),
    "Max": _many(np.maximum),
    "Min": _many(np.minimum),
    "Sum": _many(np.add),
    "Equal": _pairwise(np.equal),
    "Greater": _pairwise(np.greater),
    "Less": _pairwise(np.less),
    "GreaterOrEqual": _pairwise(np.greater_equal),
    "LessOrEqual": _pairwise(np.less_equal),
    "And": _pairwise(np.logical_and),
    "Or": _pairwise(np.logical_or),
    "Not": _each(np.logical_not),
    "Neg": _each(np.negative),
    "Abs": _each(np.abs),
    "Exp": _each(np.exp),
    "Log": _each(np.log),
    "Sqrt": _each(np.sqrt),
    "Reciprocal": _each(lambda x: 1 / x),
    "Floor": _each(np.floor),
    "Ceil": _each(np.ceil),
    "Round": _each(np.round),
    "Identity": _each(lambda x: x),
    "Cast": _cast,
    "CastLike": lambda a, x, like: x.astype(like.dtype),
    "Shape": lambda a, x: np.array(x.shape, np.int64)[a.get("start", 0) : a.get("end")],
    "Size": lambda a, x: np.array(x.size, np.int64),
    "Gather": _gather,
    "Concat": lambda a, *xs: np.concatenate(xs, int(a.get("axis", 0))),
    "Split": _split,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": lambda a, x: x.reshape(math.prod(x.shape[: a.get("axis", 1)]), -1),
    "Transpose": lambda a, x: np.transpose(x, a.get("perm")),
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "ConstantOfShape": _filled,
    "Where": _where,
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceMean": _reduce(np.mean),
    "DequantizeLinear": _dequantised,
}


def evaluate(kind: str, attributes: dict[str, Any], inputs: list[Any], count: int) -> list[Array]:
    """The outputs of a node whose inputs are constants; one that is left out is None.

    Raises:
        UnsupportedError: the operation is not known here, or its inputs do not fit.
    """
    of = EVALUATE.get(kind)
    if of is None:
        raise UnsupportedError("of constants alone")
    while inputs and inputs[-1] is None:
        inputs = inputs[:-1]
    more = {"count": count} if kind == "Split" else {}
    try:
        made = of(attributes, *inputs, **more)
    except UnsupportedError:
        raise
    except (
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        MemoryError,
    ) as error:
        raise UnsupportedError(f"of constants that do not fit: {error}") from None
    return [np.asarray(m) for m in made] if isinstance(made, list) else [np.asarray(made)]
