"""From a `torch.nn.Module` to a `Graph`, by way of `torch.export`.

Every operation of ATen that is understood has one small handler here, in `_HANDLERS`. What depends
on parameters alone is computed at once.
"""

from __future__ import annotations

import copy
import itertools
import math
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.export.graph import Array, Graph, Node, Shape
from hyperfusion_rt.kernels.ops import whole_ops

__all__ = ["lower"]
_BATCH = 2


class Value:
    """A value of the graph that is being built; the shape counts the batch."""

    def __init__(self, name: str, shape: Shape) -> None:
        self.name, self.shape = name, (_BATCH, *shape)


def lower(module: nn.Module, inputs: dict[str, Shape]) -> Graph:
    """Lower `module` in eval mode; its forward takes `inputs` in this order, with a batch axis.

    Args:
        inputs: the names and the shapes without the batch axis: `{"image": (1, 64, 96, 64)}`.

    One output is called `output`.

    Raises:
        HyperFusionError: torch.export cannot trace the module, or it does something that engines
            cannot do; the message names the operation and the layer.
    """
    module = copy.deepcopy(module).double().eval()
    examples = tuple(torch.zeros(_BATCH, *shape, dtype=torch.float64) for shape in inputs.values())
    try:
        with warnings.catch_warnings(), torch.no_grad(), whole_ops():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, examples)
    except Exception as error:
        raise HyperFusionError(
            f"{type(module).__name__} cannot be exported: torch.export says: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    return _Lowering(program, inputs).graph


class _Lowering:
    def __init__(self, program: torch.export.ExportedProgram, inputs: dict[str, Shape]) -> None:
        self.graph = Graph(dict(inputs), [], [], dict(inputs))
        self.layer = ""
        self.target = ""
        signature = program.graph_signature
        constants: dict[str, Any] = {
            **{n: program.state_dict[t] for n, t in signature.inputs_to_parameters.items()},
            **{
                n: program.state_dict.get(t, program.constants.get(t))
                for n, t in signature.inputs_to_buffers.items()
            },
            **{
                n: program.constants[t]
                for n, t in signature.inputs_to_lifted_tensor_constants.items()
            },
        }
        names = iter(inputs)
        values: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for node in program.graph.nodes:
                if node.op == "placeholder":
                    if node.name in constants:
                        values[node] = constants[node.name].detach()
                    else:
                        name = next(names)
                        values[node] = Value(name, inputs[name])
                elif node.op == "call_function":
                    values[node] = self._call(node, values)
                elif node.op == "output":
                    self._output(node, values)
                else:
                    self._refuse(node, f"{node.op} {node.target}")
        self.graph.remove_dead()

    def _output(self, node: fx.Node, values: dict[fx.Node, Any]) -> None:
        found = fx.node.map_arg(node.args[0], lambda n: values[n])
        for value in found if isinstance(found, (list, tuple)) else [found]:
            if not isinstance(value, Value):
                raise HyperFusionError("the network's output does not depend on its input")
            self.graph.outputs.append(value.name)
        if len(self.graph.outputs) == 1 and self.graph.outputs[0] not in self.graph.inputs:
            self._rename(self.graph.outputs[0], "output")

    def _rename(self, old: str, new: str) -> None:
        self.graph.shapes[new] = self.graph.shapes.pop(old)
        self.graph.replace(old, new)
        for node in self.graph.nodes:
            node.output = new if node.output == old else node.output

    def _refuse(self, node: fx.Node, what: str) -> None:
        raise HyperFusionError(
            f"{what} in {_layer(node) or 'the network'}: engines cannot do this. They know: "
            f"{', '.join(sorted(supported()))}"
        )

    def _call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args = fx.node.map_arg(node.args, lambda n: values[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: values[n])
        self.layer, self.target = _layer(node), _name(node.target)
        depends = any(isinstance(x, Value) for x in torch.utils._pytree.tree_leaves((args, kwargs)))
        if not depends:
            assert callable(node.target)
            return node.target(*args, **kwargs)
        handler = _HANDLERS.get(self.target)
        if handler is None:
            self._refuse(node, self.target)
            raise AssertionError
        try:
            return handler(self, *args, **kwargs)
        except _UnsupportedError as error:
            self._refuse(node, f"{self.target} {error}")

    # --- for the handlers --------------------------------------------------------------------

    def emit(
        self,
        op: str,
        inputs: Sequence[Value],
        shape: Shape,
        attrs: dict[str, Any] | None = None,
        **arrays: Tensor | Array,
    ) -> Value:
        """Add a node; `shape` without the batch."""
        name = f"v{len(self.graph.nodes)}"
        kept = {key: np.asarray(a, dtype=np.float64) for key, a in arrays.items()}
        self.graph.nodes.append(
            Node(op, [v.name for v in inputs], name, attrs or {}, kept, self.layer)
        )
        self.graph.shapes[name] = tuple(int(n) for n in shape)
        return Value(name, self.graph.shapes[name])

    def affine(self, x: Value, scale: Any, shift: Any) -> Value:
        """`x * scale + shift`, each a number or one per channel."""

        def per_channel(v: Any) -> Array:
            flat = np.asarray(v, dtype=np.float64).reshape(-1)
            if flat.size not in (1, x.shape[1]):
                raise _UnsupportedError(f"with a constant of shape {np.shape(v)}")
            spread: Array = np.broadcast_to(flat, (x.shape[1],)).copy()
            return spread

        if len(x.shape) not in (2, 5):
            raise _UnsupportedError(f"on a tensor of shape {x.shape}")
        return self.emit(
            "affine", [x], x.shape[1:], scale=per_channel(scale), shift=per_channel(shift)
        )


class _UnsupportedError(Exception):
    pass


def _layer(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("", None))[0] if stack else ""
    return str(path).removeprefix("L['self'].")


def _name(target: Any) -> str:
    return (
        str(target).removeprefix("aten.").rsplit(".", 1)[0]
        if not callable(target) or hasattr(target, "overloadpacket") or hasattr(target, "_schema")
        else target.__name__
    )


def supported() -> set[str]:
    """The names of the ATen operations that can be lowered."""
    return set(_HANDLERS)


def _triple(value: Any) -> tuple[int, int, int]:
    if isinstance(value, int):
        return value, value, value
    found = [int(v) for v in value]
    found = found * 3 if len(found) == 1 else found
    if len(found) != 3:
        raise _UnsupportedError(f"along {len(found)} axes: only three")
    return found[0], found[1], found[2]


def _is(x: Value, dims: int) -> None:
    if len(x.shape) != dims:
        raise _UnsupportedError(f"on a tensor of shape {x.shape}")


def _window(size: int, k: int, s: int, p: int, d: int, ceil: bool = False) -> int:
    room = size + 2 * p - d * (k - 1) - 1
    n = -(-room // s) + 1 if ceil else room // s + 1
    return n - 1 if ceil and (n - 1) * s >= size + p else n


def _windows(x: Value, k: Any, s: Any, p: Any, d: Any, ceil: bool = False) -> Shape:
    return tuple(_window(*args, ceil) for args in zip(x.shape[2:], k, s, p, d, strict=True))


def _conv3d(
    c: _Lowering,
    x: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    if not isinstance(x, Value) or not isinstance(weight, Tensor):
        raise _UnsupportedError("with a computed weight: use hyperfusion_rt.kernels.hyper_conv3d")
    _is(x, 5)
    stride, dilation = _triple(stride), _triple(dilation)
    kernel = tuple(weight.shape[2:])
    if isinstance(padding, str):
        padding = (
            [0] * 3
            if padding == "valid"
            else [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
        )
        if any((k - 1) * d % 2 for k, d in zip(kernel, dilation, strict=True)):
            raise _UnsupportedError("with padding='same' and an even kernel")
    padding = _triple(padding)
    if bias is None:
        bias = torch.zeros(weight.shape[0])
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    shape = (weight.shape[0], *_windows(x, kernel, stride, padding, dilation))
    return c.emit("conv", [x], shape, attrs, weight=weight, bias=bias)


def _condition(c: _Lowering, e: Value, *arrays: tuple[Any, Any]) -> tuple[Value, list[Array]]:
    """ẽ = [1, e] and G̃ = [g0, G] for each pair (G, g0)."""
    full = c.emit("one_and", [e], (e.shape[1] + 1,))
    stacked = []
    for g, g0 in arrays:
        if not isinstance(g, Tensor):
            raise _UnsupportedError("with generators that are computed from the input")
        first = np.zeros(tuple(g.shape[1:])) if g0 is None else np.asarray(g0)
        stacked.append(np.concatenate([first[None], np.asarray(g)]))
    return full, stacked


def _hyper_conv(
    c: _Lowering,
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
    stride, padding, dilation = _triple(stride), _triple(padding), _triple(dilation)
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    shape = (weight.shape[1], *_windows(x, weight.shape[3:], stride, padding, dilation))
    return c.emit("hyper_conv", [x, full], shape, attrs, weight=weight, bias=bias)


def _hyper_linear(
    c: _Lowering, x: Value, e: Value, G: Any, h: Any, g0: Any = None, h0: Any = None
) -> Value:
    full, (weight, bias) = _condition(c, e, (G, g0), (h, h0))
    return c.emit("hyper_linear", [x, full], (weight.shape[1],), weight=weight, bias=bias)


def _linear(c: _Lowering, x: Value, weight: Any, bias: Any = None) -> Value:
    if not isinstance(weight, Tensor):
        raise _UnsupportedError("with a computed weight")
    _is(x, 2)
    return c.emit(
        "linear",
        [x],
        (weight.shape[0],),
        weight=weight,
        bias=torch.zeros(weight.shape[0]) if bias is None else bias,
    )


def _addmm(c: _Lowering, bias: Any, x: Value, weight: Any) -> Value:
    return _linear(c, x, weight.t(), bias)


def _batch_norm(
    c: _Lowering,
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
        raise _UnsupportedError("without running statistics")
    scale = 1 / torch.sqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    return c.affine(x, scale, shift if bias is None else shift + bias)


def _instance_norm(
    c: _Lowering,
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
        {"eps": float(eps)},
        scale=torch.ones(n) if weight is None else weight,
        shift=torch.zeros(n) if bias is None else bias,
    )


def _activation(kind: str, **defaults: Any) -> Callable[..., Value]:
    def handler(c: _Lowering, x: Value, *args: Any, **kwargs: Any) -> Value:
        attrs: dict[str, Any] = {"kind": kind}
        if "alpha" in defaults:
            attrs["alpha"] = float(args[0] if args else kwargs.get("alpha", defaults["alpha"]))
            args = args[1:]
        if any(a not in (1, 1.0, 20, 20.0) for a in args):
            raise _UnsupportedError(f"with the parameters {args}")
        return c.emit("activation", [x], x.shape[1:], attrs)

    return handler


def _gelu(c: _Lowering, x: Value, approximate: str = "none") -> Value:
    kind = "gelu" if approximate == "none" else "gelu_tanh"
    return c.emit("activation", [x], x.shape[1:], {"kind": kind})


def _prelu(c: _Lowering, x: Value, weight: Any) -> Value:
    slope = np.broadcast_to(np.asarray(weight).reshape(-1), (x.shape[1],)).copy()
    return c.emit("activation", [x], x.shape[1:], {"kind": "prelu"}, slope=slope)


def _hardtanh(c: _Lowering, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    if (low, high) != (0, 6):
        raise _UnsupportedError(f"between {low} and {high}: only relu6")
    return c.emit("activation", [x], x.shape[1:], {"kind": "relu6"})


def _clamp(c: _Lowering, x: Value, low: Any = None, high: Any = None) -> Value:
    if low == 0 and high is None:
        return c.emit("activation", [x], x.shape[1:], {"kind": "relu"})
    return _hardtanh(c, x, low, high)


def _max_pool(
    c: _Lowering,
    x: Value,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Value:
    _is(x, 5)
    k, p, d = _triple(kernel), _triple(padding), _triple(dilation)
    s = _triple(stride) if stride else k
    attrs = {"kernel": k, "stride": s, "padding": p, "dilation": d, "ceil_mode": ceil_mode}
    return c.emit("max_pool", [x], (x.shape[1], *_windows(x, k, s, p, d, ceil_mode)), attrs)


def _avg_pool(
    c: _Lowering,
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
        raise _UnsupportedError("with a divisor of its own")
    k, p = _triple(kernel), _triple(padding)
    s = _triple(stride) if stride else k
    attrs = {
        "kernel": k,
        "stride": s,
        "padding": p,
        "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad,
    }
    return c.emit("avg_pool", [x], (x.shape[1], *_windows(x, k, s, p, (1, 1, 1), ceil_mode)), attrs)


def _adaptive(kind: str) -> Callable[..., Any]:
    def handler(c: _Lowering, x: Value, size: Any) -> Any:
        _is(x, 5)
        wanted = [n if n is not None else f for n, f in zip(_sizes(size), x.shape[2:], strict=True)]
        if wanted == [1, 1, 1]:
            pooled = c.emit(f"global_{kind}_pool", [x], x.shape[1:2])
            return c.emit(
                "reshape", [pooled], (x.shape[1], 1, 1, 1), {"shape": (x.shape[1], 1, 1, 1)}
            )
        if any(f % n for f, n in zip(x.shape[2:], wanted, strict=True)):
            raise _UnsupportedError(f"from {x.shape[2:]} to {wanted}: not a whole multiple")
        return c.emit(f"adaptive_{kind}_pool", [x], (x.shape[1], *wanted), {"size": tuple(wanted)})

    return handler


def _sizes(size: Any) -> list[Any]:
    found = [size] * 3 if isinstance(size, int) else list(size)
    return found * 3 if len(found) == 1 else found


def _adaptive_max(c: _Lowering, x: Value, size: Any) -> Any:
    # The indices are not made: what reads them finds None.
    return _adaptive("max")(c, x, size), None


def _mean(
    c: _Lowering, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Value:
    axes = sorted(d % len(x.shape) for d in dim or ())
    if len(x.shape) != 5 or axes != [2, 3, 4]:
        raise _UnsupportedError(f"over the axes {axes} of {x.shape}: only over all of D, H, W")
    y = c.emit("global_avg_pool", [x], x.shape[1:2])
    shape = (x.shape[1], 1, 1, 1)
    return c.emit("reshape", [y], shape, {"shape": shape}) if keepdim else y


def _is_channelwise(x: Value, other: Any) -> bool:
    """Whether a constant has one number per channel when it meets `x`."""
    shape = tuple(np.shape(other))
    full = (1,) * (len(x.shape) - len(shape)) + shape
    return len(full) == len(x.shape) and all(
        n == 1 or (i == 1 and n == x.shape[1]) for i, n in enumerate(full)
    )


def _meet(c: _Lowering, op: str, a: Value, b: Value) -> Value:
    if len(a.shape) != len(b.shape):
        raise _UnsupportedError(f"of shapes {a.shape} and {b.shape}")
    shape = tuple(max(m, n) for m, n in zip(a.shape[1:], b.shape[1:], strict=True))
    for v in (a, b):
        if v.shape[1:] != shape and v.shape[1:] != (shape[0], 1, 1, 1):
            raise _UnsupportedError(f"of shapes {a.shape} and {b.shape}")
    return c.emit(op, [a, b], shape)


def _add(c: _Lowering, a: Any, b: Any, alpha: float = 1, *, sign: float = 1.0) -> Value:
    factor = sign * float(alpha)
    if isinstance(a, Value) and isinstance(b, Value):
        return _meet(c, "add", a, b if factor == 1 else c.affine(b, factor, 0.0))
    if isinstance(a, Value) and _is_channelwise(a, b):
        return c.affine(a, 1.0, factor * np.asarray(b))
    if isinstance(b, Value) and _is_channelwise(b, a):
        return c.affine(b, factor, a)
    raise _UnsupportedError("with a constant that is not one number per channel")


def _sub(c: _Lowering, a: Any, b: Any, alpha: float = 1) -> Value:
    return _add(c, a, b, alpha, sign=-1.0)


def _mul(c: _Lowering, a: Any, b: Any) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        return _meet(c, "mul", a, b)
    x, factor = (a, b) if isinstance(a, Value) else (b, a)
    if not _is_channelwise(x, factor):
        raise _UnsupportedError("with a constant that is not one number per channel")
    return c.affine(x, factor, 0.0)


def _div(c: _Lowering, a: Any, b: Any) -> Value:
    if isinstance(b, Value):
        raise _UnsupportedError("by a computed value")
    return _mul(c, a, 1.0 / np.asarray(b, dtype=np.float64))


def _cat(c: _Lowering, values: Sequence[Any], dim: int = 0) -> Value:
    if not all(isinstance(v, Value) for v in values) or dim % len(values[0].shape) != 1:
        raise _UnsupportedError(f"along axis {dim}: only computed values, along the channels")
    if len(values) == 1:
        return values[0]  # type: ignore[no-any-return]
    first = values[0].shape
    if any(v.shape[2:] != first[2:] for v in values):
        raise _UnsupportedError(f"of shapes {[v.shape for v in values]}")
    channels = sum(v.shape[1] for v in values)
    return c.emit("concat", list(values), (channels, *first[2:]))


def _slice(
    c: _Lowering, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    size = x.shape[dim % len(x.shape)]
    first, last, _ = slice(start, end).indices(size)
    if (first, last, step) == (0, size, 1):
        return x
    if dim % len(x.shape) != 1 or step != 1:
        raise _UnsupportedError(f"along axis {dim} with step {step}: only along the channels")
    return c.emit("slice", [x], (last - first, *x.shape[2:]), {"start": first, "stop": last})


def _split(c: _Lowering, x: Value, size: Any, dim: int = 0) -> list[Value]:
    total = x.shape[dim % len(x.shape)]
    sizes = (
        [size] * (total // size) + [total % size] * (total % size > 0)
        if isinstance(size, int)
        else list(size)
    )
    starts = np.cumsum([0, *sizes]).tolist()
    return [_slice(c, x, dim, a, b) for a, b in itertools.pairwise(starts)]


def _chunk(c: _Lowering, x: Value, chunks: int, dim: int = 0) -> list[Value]:
    return _split(c, x, math.ceil(x.shape[dim % len(x.shape)] / chunks), dim)


def _to_shape(c: _Lowering, x: Value, shape: Sequence[int]) -> Value:
    total = math.prod(x.shape)
    known = math.prod(n for n in shape if n != -1)
    full = tuple(total // known if n == -1 else int(n) for n in shape)
    if full == x.shape:
        return x
    if not full or full[0] != x.shape[0]:
        raise _UnsupportedError(f"from {x.shape} to {full}: it mixes the samples of a batch")
    one = (x.shape[1], 1, 1, 1)
    if len(full) == 2 or (len(x.shape) == 2 and full[1:] == one):
        return c.emit("reshape", [x], full[1:], {"shape": full[1:]})
    raise _UnsupportedError(f"from {x.shape} to {full}")


def _flatten(c: _Lowering, x: Value, start: int = 0, end: int = -1) -> Value:
    n = len(x.shape)
    start, end = start % n, end % n
    return _to_shape(
        c, x, [*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]]
    )


def _unsqueeze(c: _Lowering, x: Value, dim: int) -> Value:
    """`[F]` on its way to `[F, 1, 1, 1]`: in between, a shape that no node has."""
    shape = list(x.shape)
    shape.insert(dim % (len(shape) + 1), 1)
    return _partial(c, x, tuple(shape))


def _squeeze(c: _Lowering, x: Value, dim: Any = None) -> Value:
    n = len(x.shape)
    axes = range(1, n) if dim is None else [d % n for d in ([dim] if isinstance(dim, int) else dim)]
    return _partial(c, x, tuple(s for i, s in enumerate(x.shape) if i not in axes or s != 1))


def _partial(c: _Lowering, x: Value, shape: Shape) -> Value:
    if math.prod(shape[2:]) != 1:
        raise _UnsupportedError(f"from {x.shape} to {shape}")
    if len(shape) in (2, 5):
        origin = Value(x.name, c.graph.shapes[x.name])
        return _to_shape(c, origin, shape)
    y = Value(x.name, ())
    y.shape = shape
    return y


def _pad(c: _Lowering, x: Value, widths: Any, mode: Any = "constant", value: Any = 0.0) -> Value:
    _is(x, 5)
    if isinstance(mode, (int, float)):  # constant_pad_nd has no mode
        mode, value = "constant", mode
    if mode != "constant" or value not in (0, 0.0, None) or len(widths) > 6 or min(widths) < 0:
        raise _UnsupportedError(f"{mode} by {list(widths)} with {value}: only zeros around D, H, W")
    both = [*widths, *[0] * (6 - len(widths))]
    before, after = (both[4], both[2], both[0]), (both[5], both[3], both[1])
    if not any(both):
        return x
    shape = [n + b + a for n, b, a in zip(x.shape[2:], before, after, strict=True)]
    return c.emit("pad", [x], (x.shape[1], *shape), {"before": before, "after": after})


def _softmax(c: _Lowering, x: Value, dim: int, dtype: Any = None) -> Value:
    _is(x, 2)
    if dim % 2 != 1:
        raise _UnsupportedError("over the batch")
    return c.emit("softmax", [x], x.shape[1:])


def _same(c: _Lowering, x: Value, *args: Any, **kwargs: Any) -> Value:
    return x


def _dropout(c: _Lowering, x: Value, p: float, train: bool) -> Value:
    if train:
        raise _UnsupportedError("that is on during inference")
    return x


def _getitem(c: _Lowering, values: Any, index: Any) -> Any:
    return values[index]


_relu, _silu, _sigmoid = _activation("relu"), _activation("silu"), _activation("sigmoid")
_HANDLERS: dict[str, Callable[..., Any]] = {
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
    "leaky_relu": _activation("leaky_relu", alpha=0.01),
    "leaky_relu_": _activation("leaky_relu", alpha=0.01),
    "elu": _activation("elu", alpha=1.0),
    "elu_": _activation("elu", alpha=1.0),
    "hardswish": _activation("hardswish"),
    "hardswish_": _activation("hardswish"),
    "hardsigmoid": _activation("hardsigmoid"),
    "softplus": _activation("softplus"),
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
assert operator.getitem.__name__ in _HANDLERS
