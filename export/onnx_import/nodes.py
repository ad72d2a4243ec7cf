"""What ONNX's operations on shapes and numbers become in a graph, in `HANDLERS`.

A handler gets the builder, the node's attributes and its inputs: values, constants as arrays, or
None where an optional one is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from hyperfusion_rt.artifact.operations import Kind, Pairwise
from hyperfusion_rt.export.ir import layers, tensors
from hyperfusion_rt.export.ir.builder import Builder, UnsupportedError, Value
from hyperfusion_rt.export.onnx_import.given import Array, Given, Rows, axis_of, number, numbers


def _value(x: Any) -> Value:
    if not isinstance(x, Value):
        raise UnsupportedError("of a constant")
    return x


def _widened(c: Builder, x: Any, constant: Any) -> Any:
    """`x [B, 1, ...]` once for each of the numbers of `constant [1, C, 1, ...]`."""
    shape = np.shape(constant) if isinstance(constant, np.ndarray) else ()
    if not isinstance(x, Value) or len(x.shape) < 3 or x.shape[1] != 1:
        return x
    full = (1,) * (len(x.shape) - len(shape)) + shape
    if len(full) != len(x.shape) or full[1] == 1 or math.prod(full) != full[1]:
        return x
    ones = np.ones((full[1], 1, *(1,) * (len(x.shape) - 2)))
    return layers.convolution(c, x, ones)


def _pairwise(op: Pairwise) -> Callable[..., Value]:
    def handler(c: Builder, g: Given, *xs: Any) -> Value:
        xs = (_widened(c, xs[0], xs[1]), _widened(c, xs[1], xs[0]), *xs[2:]) if xs[1:] else xs
        found = xs[0]
        for x in xs[1:]:
            found = tensors.pairwise(c, op, found, x)
        return _value(found)

    return handler


def _mean(c: Builder, g: Given, *xs: Any) -> Value:
    return c.affine(_pairwise("add")(c, g, *xs), 1 / len(xs), 0.0)


def _pow(c: Builder, g: Given, x: Any, exponent: Any) -> Value:
    return tensors.power(c, _value(x), number(exponent, "exponent"))


# --- activations ----------------------------------------------------------------------------------


def _activation(kind: Kind) -> Callable[..., Value]:
    return lambda c, g, x: layers.activation(c, _value(x), kind)


def _leaky(c: Builder, g: Given, x: Any) -> Value:
    return layers.activation(c, _value(x), "leaky_relu", g.get("alpha", 0.01))


def _elu(c: Builder, g: Given, x: Any) -> Value:
    return layers.activation(c, _value(x), "elu", g.get("alpha", 1.0))


def _selu(c: Builder, g: Given, x: Any) -> Value:
    y = layers.activation(c, _value(x), "elu", g.get("alpha", 1.6732631921768188))
    return c.affine(y, g.get("gamma", 1.0507010221481323), 0.0)


def _celu(c: Builder, g: Given, x: Any) -> Value:
    return layers.celu(c, _value(x), g.get("alpha", 1.0))


def _hard_sigmoid(c: Builder, g: Given, x: Any) -> Value:
    alpha, beta = g.get("alpha", 0.2), g.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return layers.activation(c, _value(x), "hardsigmoid")
    return layers.clip(c, c.affine(_value(x), alpha, beta), 0.0, 1.0)


def _clip(c: Builder, g: Given, x: Any, low: Any = None, high: Any = None) -> Value:
    bounds = [
        None if b is None or (np.size(b) == 1 and b == none) else number(b, "bound")
        for b, none in ((low, -math.inf), (high, math.inf))
    ]
    return layers.clip(c, _value(x), *bounds)


def _gelu(c: Builder, g: Given, x: Any) -> Value:
    approximate = g.get("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise UnsupportedError(f"with approximate {approximate}")
    return layers.activation(c, _value(x), "gelu" if approximate == "none" else "gelu_tanh")


def _prelu(c: Builder, g: Given, x: Any, slope: Any) -> Value:
    if isinstance(slope, Value):
        raise UnsupportedError("with a computed slope")
    # It meets x from behind, as any constant.
    x = c.flat(_value(x))
    return layers.activation(c, x, "prelu", slope=c.per_channel(x, slope))


def _softmax(*, log: bool) -> Callable[..., Value]:
    def handler(c: Builder, g: Given, x: Any) -> Value:
        x = _value(x)
        axis = axis_of(g.get("axis", -1 if g.opset >= 13 else 1), len(x.shape))
        if g.opset >= 13 or math.prod(x.shape[axis + 1 :]) == 1:
            return tensors.softmax(c, x, axis, log=log)
        # Older versions flatten what comes behind the axis.
        flat = tensors.flatten(c, x, axis)
        return tensors.reshape(c, tensors.softmax(c, flat, axis, log=log), x.shape)

    return handler


# --- shapes ---------------------------------------------------------------------------------------


def _reshape(c: Builder, g: Given, x: Any, shape: Any) -> Value | Rows:
    seen = x.shape if isinstance(x, Rows) else _value(x).shape
    wanted = numbers(shape, "a shape's numbers")
    if not g.get("allowzero"):
        wanted = [seen[i] if n == 0 and i < len(seen) else n for i, n in enumerate(wanted)]
    if isinstance(x, Rows):
        return tensors.reshape(c, x.value, wanted)
    rows = Rows(x)
    if len(seen) > 2 and wanted in ([n, seen[-1]] for n in (-1, rows.shape[0])):
        return rows
    return tensors.reshape(c, x, wanted)


def _flatten(c: Builder, g: Given, x: Any) -> Value:
    axis = g.get("axis", 1)
    if axis not in (1, 1 - len(_value(x).shape)):
        raise UnsupportedError(f"at axis {axis}: it mixes the samples of a batch")
    return tensors.flatten(c, x, 1)


def _transpose(c: Builder, g: Given, x: Any) -> Value:
    x = _value(x)
    return tensors.permute(c, x, g.get("perm", list(range(len(x.shape)))[::-1]))


def _axes(g: Given, axes: Any, ndim: int) -> list[int] | None:
    """Those of the attribute or of the input, each once, counted from the front."""
    given = g.get("axes") if axes is None else numbers(axes, "axes")
    if given is None:
        return None
    found = [axis_of(axis, ndim) for axis in given]
    if len(set(found)) < len(found):
        raise UnsupportedError(f"along the axes {given}")
    return found


def _squeeze(c: Builder, g: Given, x: Any, axes: Any = None) -> Value:
    x = _value(x)
    found = _axes(g, axes, len(x.shape))
    if x.batch == 1 and (found is None or 0 in found):
        raise UnsupportedError("of the batch")
    if found is not None and any(x.shape[axis] != 1 for axis in found):
        raise UnsupportedError(f"of the axes {found} of {x.shape}")
    return tensors.squeeze(c, x, found)


def _unsqueeze(c: Builder, g: Given, x: Any, axes: Any = None) -> Value:
    x = _value(x)
    added = np.size(g.get("axes", []) if axes is None else axes)
    return tensors.unsqueeze(c, x, _axes(g, axes, len(x.shape) + added) or [])


def _expand(c: Builder, g: Given, x: Any, shape: Any) -> Value:
    x = _value(x)
    wanted = numbers(shape, "a shape's numbers")
    full = np.broadcast_shapes(x.shape, tuple(wanted))
    return tensors.expand(c, x, [int(n) for n in full])


def _tile(c: Builder, g: Given, x: Any, repeats: Any) -> Value:
    found = _value(x)
    times = numbers(repeats, "repeats")
    if len(times) != len(found.shape) or min(times) < 1:
        raise UnsupportedError(f"of {found.shape} by {times}")
    if times[0] > 1:
        raise UnsupportedError("of the batch")
    for axis, n in enumerate(times):
        found = tensors.repeat(c, found, axis, n) if n > 1 else found
    return found


def _concat(c: Builder, g: Given, *xs: Any) -> Value:
    ndim = max(np.ndim(x) if isinstance(x, np.ndarray) else len(_value(x).shape) for x in xs)
    return tensors.concat(c, xs, axis_of(g.get("axis", 0), ndim))


def _split(c: Builder, g: Given, x: Any, sizes: Any = None) -> list[Value]:
    x = _value(x)
    axis = axis_of(g.get("axis", 0), len(x.shape))
    given = g.get("split") if sizes is None else numbers(sizes, "sizes")
    if given is None:
        given = -(-x.shape[axis] // g.outputs)
    return tensors.split(c, x, given, axis)


def _slice(
    c: Builder, g: Given, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None
) -> Value:
    found = _value(x)
    first, last = numbers(starts, "starts"), numbers(ends, "ends")
    along = list(range(len(first))) if axes is None else numbers(axes, "axes")
    by = [1] * len(first) if steps is None else numbers(steps, "steps")
    for axis, a, b, step in zip(along, first, last, by, strict=True):
        found = tensors.part(c, found, axis_of(axis, len(found.shape)), a, b, step)
    return found


def _gather(c: Builder, g: Given, x: Any, at: Any) -> Value:
    x, found = _value(x), numbers(at, "indices")
    axis = axis_of(g.get("axis", 0), len(x.shape))
    if axis == 0:
        raise UnsupportedError("of the batch")
    if np.ndim(at) == 0:
        return tensors.select(c, x, axis, found[0])
    size = x.shape[axis]
    found = [i % size if -size <= i < size else size for i in found]
    if found and found == list(range(found[0], found[0] + len(found))) and found[-1] < size:
        return tensors.part(c, x, axis, found[0], found[-1] + 1)
    raise UnsupportedError(f"of the indices {found[:8]} along an axis of {size}")


def _identity(c: Builder, g: Given, x: Any, *rest: Any) -> Value:
    return _value(x)


def _dropout(c: Builder, g: Given, x: Any, ratio: Any = None, training: Any = None) -> Value:
    if training is not None and (isinstance(training, Value) or np.any(training)):
        raise UnsupportedError("that is on during inference")
    return _value(x)


def _cast(c: Builder, g: Given, x: Any) -> Value:
    if g.get("to") not in (1, 10, 11, 16):
        raise UnsupportedError("to a type that is no floating-point number")
    return _value(x)


def _shape(c: Builder, g: Given, x: Any) -> Array:
    return np.array(_value(x).shape, np.int64)[g.get("start", 0) : g.get("end")]


def _reduce(kind: Any, *, squared: bool = False) -> Callable[..., Value]:
    def handler(c: Builder, g: Given, x: Any, axes: Any = None) -> Value:
        x = _value(x)
        along = _axes(g, axes, len(x.shape))
        if not along and g.get("noop_with_empty_axes"):
            if kind == "l2":
                raise UnsupportedError("over no axes")
            return _value(x)
        along = along or list(range(len(x.shape)))
        y: Value = tensors.reduce(c, x, kind, along, keep=g.get("keepdims", 1) == 1)
        return tensors.pairwise(c, "mul", y, y) if squared else y

    return handler


def _reduce_min(c: Builder, g: Given, x: Any, axes: Any = None) -> Value:
    least = _reduce("maximum")(c, g, c.affine(_value(x), -1.0, 0.0), axes)
    return c.affine(least, -1.0, 0.0)


def _reduce_l1(c: Builder, g: Given, x: Any, axes: Any = None) -> Value:
    return _reduce("sum")(c, g, layers.activation(c, _value(x), "abs"), axes)


HANDLERS: dict[str, Callable[..., Any]] = {
    "Add": _pairwise("add"),
    "Sub": _pairwise("sub"),
    "Mul": _pairwise("mul"),
    "Div": _pairwise("div"),
    "Max": _pairwise("maximum"),
    "Min": _pairwise("minimum"),
    "Sum": _pairwise("add"),
    "Mean": _mean,
    "Pow": _pow,
    "Neg": lambda c, g, x: c.affine(_value(x), -1.0, 0.0),
    "Reciprocal": lambda c, g, x: tensors.power(c, _value(x), -1.0),
    "Relu": _activation("relu"),
    "Sigmoid": _activation("sigmoid"),
    "Tanh": _activation("tanh"),
    "Softplus": _activation("softplus"),
    "Mish": _activation("mish"),
    "HardSwish": _activation("hardswish"),
    "Exp": _activation("exp"),
    "Log": _activation("log"),
    "Sqrt": _activation("sqrt"),
    "Abs": _activation("abs"),
    "Erf": _activation("erf"),
    "LeakyRelu": _leaky,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "HardSigmoid": _hard_sigmoid,
    "Clip": _clip,
    "Gelu": _gelu,
    "PRelu": _prelu,
    "Softmax": _softmax(log=False),
    "LogSoftmax": _softmax(log=True),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _identity,
    "Shape": _shape,
    "Size": lambda c, g, x: np.array(math.prod(_value(x).shape), np.int64),
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "ReduceMax": _reduce("maximum"),
    "ReduceMin": _reduce_min,
    "ReduceL1": _reduce_l1,
    "ReduceL2": _reduce("l2"),
    "ReduceSumSquare": _reduce("l2", squared=True),
}
