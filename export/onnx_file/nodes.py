"""How each operation of a graph is written in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.operations import (
    Activation,
    Combination,
    Cropping,
    Grid,
    Margins,
    Normalisation,
    Pooling,
    Probabilities,
    Reduction,
    Resizing,
    Span,
    Subsampling,
    Transposed,
    Transposition,
    Window,
)
from hyperfusion_rt.artifact.voxels import bounds
from hyperfusion_rt.export.ir.graph import Convolution, Node
from hyperfusion_rt.export.onnx_file.writer import Writer


def _window(window: Window) -> dict[str, Sequence[int]]:
    return {
        "kernel_shape": window.kernel,
        "pads": (*window.padding, *(window.padding if window.behind is None else window.behind)),
        "strides": window.stride,
    }


def _conv(w: Writer, node: Node) -> None:
    window = node.given(Convolution)
    inputs = [node.inputs[0], w.weight(node, "weight"), w.weight(node, "bias")]
    attrs = {"group": window.groups, "dilations": window.dilation, **_window(window)}
    w.op("Conv", inputs, node.output, **attrs)


def _hyper_conv(w: Writer, node: Node) -> None:
    weight, bias, window = node.arrays["weight"], node.arrays["bias"], node.given(Convolution)
    groups = window.groups
    k, cout = weight.shape[:2]
    each = cout // groups

    def grouped(array: NDArray[Any]) -> NDArray[Any]:
        # Channels ordered group, k, channel: a grouped convolution keeps its outputs together.
        split = array.reshape(k, groups, each, *array.shape[2:])
        ordered: NDArray[Any] = np.moveaxis(split, 0, 1).reshape(k * cout, *array.shape[2:])
        return ordered

    inputs = [
        node.inputs[0],
        w.weight(node, "weight", grouped(weight)),
        w.weight(node, "bias", grouped(bias)),
    ]
    attrs = {"group": groups, "dilations": window.dilation, **_window(window)}
    made = w.op("Conv", inputs, f"{node.output}.all", **attrs)
    _mixed(w, node, made, k, groups)


def _mixed(w: Writer, node: Node, made: str, k: int, groups: int) -> None:
    """From channels ordered group, k, channel to their sum over k, weighted by the condition."""
    cout, *volume = w.graph.shapes[node.output]
    made = w.reshape(made, [groups, k, cout // groups, *volume], f"{node.output}.split")
    order = [0, 2, 1, 3, *range(4, 4 + len(volume))]
    made = w.op("Transpose", [made], f"{node.output}.turned", perm=order)
    made = w.reshape(made, [k, cout, *volume], f"{node.output}.parts")
    w.mix(made, node.inputs[1], k, [cout, *volume], node.output)


def _backwards(node: Node) -> dict[str, Any]:
    window = node.given(Transposed)
    attrs = {"group": window.groups, "dilations": window.dilation, **_window(window)}
    return {**attrs, "output_padding": window.extra}


def _transposed(w: Writer, node: Node) -> None:
    inputs = [node.inputs[0], w.weight(node, "weight"), w.weight(node, "bias")]
    w.op("ConvTranspose", inputs, node.output, **_backwards(node))


def _hyper_transposed(w: Writer, node: Node) -> None:
    weight, bias, groups = node.arrays["weight"], node.arrays["bias"], node.given(Transposed).groups
    k, cin, each = weight.shape[:3]
    turned = np.moveaxis(weight, 0, 1).reshape(cin, k * each, *weight.shape[3:])
    biases = np.moveaxis(bias.reshape(k, groups, each), 0, 1).reshape(-1)
    inputs = [node.inputs[0], w.weight(node, "weight", turned), w.weight(node, "bias", biases)]
    made = w.op("ConvTranspose", inputs, f"{node.output}.all", **_backwards(node))
    _mixed(w, node, made, k, groups)


def _linear(w: Writer, node: Node) -> None:
    inputs = [node.inputs[0], w.weight(node, "weight"), w.weight(node, "bias")]
    w.op("Gemm", inputs, node.output, transB=1)


def _hyper_linear(w: Writer, node: Node) -> None:
    k, cout, cin = node.arrays["weight"].shape
    inputs = [
        node.inputs[0],
        w.weight(node, "weight", node.arrays["weight"].reshape(k * cout, cin)),
        w.weight(node, "bias", node.arrays["bias"].reshape(-1)),
    ]
    made = w.op("Gemm", inputs, f"{node.output}.all", transB=1)
    made = w.reshape(made, [k, cout], f"{node.output}.parts")
    w.mix(made, node.inputs[1], k, [cout], node.output)


def _combine(w: Writer, node: Node) -> None:
    k, (cout,) = w.graph.shapes[node.inputs[1]][0], w.graph.shapes[node.output]
    made = w.reshape(node.inputs[0], [k, cout], f"{node.output}.parts")
    w.mix(made, node.inputs[1], k, [cout], node.output)


def _one_and(w: Writer, node: Node) -> None:
    pads = w.constant(f"{node.output}.pads", np.array([0, 1, 0, 0], np.int64))
    one = w.constant(f"{node.output}.one", np.array(1.0))
    w.op("Pad", [node.inputs[0], pads, one], node.output)


def _affine(w: Writer, node: Node) -> None:
    scaled = node.inputs[0]
    if np.any(node.arrays["scale"] != 1):
        scaled = w.op("Mul", [scaled, w.per_channel(node, "scale")], f"{node.output}.scaled")
    w.op("Add", [scaled, w.per_channel(node, "shift")], node.output)


def _activation(w: Writer, node: Node) -> None:
    act, x = node.given(Activation), list(node.inputs)
    kind = act.kind
    alpha = {"alpha": act.alpha} if kind in ("leaky_relu", "elu") else {}
    simple = {
        "relu": "Relu",
        "leaky_relu": "LeakyRelu",
        "elu": "Elu",
        "sigmoid": "Sigmoid",
        "tanh": "Tanh",
        "hardswish": "HardSwish",
        "softplus": "Softplus",
        "mish": "Mish",
        "exp": "Exp",
        "log": "Log",
        "sqrt": "Sqrt",
        "abs": "Abs",
        "erf": "Erf",
    }
    if kind in simple:
        w.op(simple[kind], x, node.output, **alpha)
    elif kind == "prelu":
        w.op("PRelu", [*x, w.per_channel(node, "slope")], node.output)
    elif kind in ("gelu", "gelu_tanh"):
        w.op("Gelu", x, node.output, approximate="none" if kind == "gelu" else "tanh")
    elif kind == "silu":
        w.op("Mul", [x[0], w.op("Sigmoid", x, f"{node.output}.gate")], node.output)
    elif kind == "hardsigmoid":
        w.op("HardSigmoid", x, node.output, alpha=1 / 6, beta=0.5)
    elif kind == "power":
        exponent = w.constant(f"{node.output}.exponent", np.array(act.alpha))
        w.op("Pow", [*x, exponent], node.output)
    else:
        assert kind in ("relu6", "clip"), kind
        limits = (0.0, 6.0) if kind == "relu6" else bounds(act)
        named = [
            w.constant(f"{node.output}.bound{i}", np.array(n)) if np.isfinite(n) else ""
            for i, n in enumerate(limits)
        ]
        w.op("Clip", [*x, *named], node.output)


def _max_pool(w: Writer, node: Node) -> None:
    _pool(w, "MaxPool", node, dilations=node.given(Pooling).dilation)


def _avg_pool(w: Writer, node: Node) -> None:
    _pool(w, "AveragePool", node, count_include_pad=int(node.given(Pooling).count_include_pad))


def _pool(w: Writer, kind: str, node: Node, **attrs: int | Sequence[int]) -> None:
    """PyTorch drops a last window that would start in the padding behind; ONNX's ceil_mode keeps
    it. Where that concerns some axes only, it is cut off after the pooling.
    """
    rounds_up, drops = False, False
    window = node.given(Pooling)
    geometry = window.kernel, window.stride, window.padding, window.dilation
    sizes, made = w.graph.shapes[node.inputs[0]][1:], w.graph.shapes[node.output][1:]
    for n, m, k, s, p, d in zip(sizes, made, *geometry, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        rounds_up |= m > room // s + 1
        drops |= m < -(-room // s) + 1
    attrs |= {"ceil_mode": int(rounds_up), **_window(window)}
    if not (rounds_up and drops):
        w.op(kind, node.inputs, node.output, **attrs)
        return
    pooled = w.op(kind, node.inputs, f"{node.output}.whole", **attrs)
    _slice(w, pooled, node.output, [2, 3, 4], [0, 0, 0], list(made), [1, 1, 1])


def _adaptive(kind: str) -> Callable[[Writer, Node], None]:
    def write(w: Writer, node: Node) -> None:
        sizes = zip(w.graph.shapes[node.inputs[0]][1:], node.given(Grid).size, strict=True)
        kernel = [n // m for n, m in sizes]
        w.op(kind, node.inputs, node.output, kernel_shape=kernel, strides=kernel)

    return write


def _slice(
    w: Writer,
    x: str,
    output: str,
    axes: list[int],
    starts: list[int],
    ends: list[int],
    steps: list[int],
) -> str:
    parts = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    constants = [w.constant(f"{output}.{key}", np.array(v, np.int64)) for key, v in parts.items()]
    return w.op("Slice", [x, *constants], output)


def _global(kind: str) -> Callable[[Writer, Node], None]:
    def write(w: Writer, node: Node) -> None:
        x, stride = node.inputs[0], list(node.given(Subsampling).stride)
        if stride != [1, 1, 1]:
            shape = w.graph.shapes[x]
            x = _slice(w, x, f"{node.output}.every", [2, 3, 4], [0, 0, 0], list(shape[1:]), stride)
        pooled = w.op(kind, [x], f"{node.output}.pooled")
        w.reshape(pooled, w.graph.shapes[node.output], node.output)

    return write


def _pad(w: Writer, node: Node) -> None:
    margins = node.given(Margins)
    widths = [0, 0, *margins.before, 0, 0, *margins.after]
    inputs = [node.inputs[0], w.constant(f"{node.output}.pads", np.array(widths, np.int64))]
    if margins.mode == "constant":
        inputs.append(w.constant(f"{node.output}.value", np.array(margins.value)))
    w.op("Pad", inputs, node.output, mode=margins.mode)


def _crop(w: Writer, node: Node) -> None:
    t = node.given(Cropping)
    ends = [a + s * (n - 1) + 1 for a, s, n in zip(t.start, t.step, t.size, strict=True)]
    _slice(w, node.inputs[0], node.output, [2, 3, 4], list(t.start), ends, list(t.step))


def _resize(w: Writer, node: Node) -> None:
    t = node.given(Resizing)
    extent = w.graph.shapes[node.inputs[0]][1:]
    attrs: dict[str, Any] = {
        "mode": "linear" if t.linear else "nearest",
        "coordinate_transformation_mode": t.coordinates,
    }
    if not t.linear:
        attrs["nearest_mode"] = t.rounding
    factors = [1.0, 1.0]
    for n, m, step in zip(extent, t.size, t.step, strict=True):
        # The size is n · factor, rounded down: float32 must not fall short of it.
        factor = np.float32(m / n if t.coordinates == "align_corners" else 1 / step)
        while int(n * float(factor)) < m:
            factor = np.nextafter(factor, np.float32(np.inf))
        factors.append(float(factor))
    scales = w.typed_constant(f"{node.output}.scales", np.array(factors, np.float32))
    w.op("Resize", [node.inputs[0], "", scales], node.output, **attrs)


def _reduce(w: Writer, node: Node) -> None:
    kinds = {"mean": "ReduceMean", "sum": "ReduceSum", "maximum": "ReduceMax", "l2": "ReduceL2"}
    axes = w.constant(f"{node.output}.axes", np.array([1], np.int64))
    w.op(kinds[node.given(Reduction).kind], [node.inputs[0], axes], node.output, keepdims=1)


def _global_norm(w: Writer, node: Node) -> None:
    axes = w.constant(f"{node.output}.axes", np.array([2, 3, 4], np.int64))
    w.op("ReduceL2", [node.inputs[0], axes], node.output, keepdims=0)


def _softmax(w: Writer, node: Node) -> None:
    kind = "LogSoftmax" if node.given(Probabilities).log else "Softmax"
    w.op(kind, node.inputs, node.output, axis=1)


def _transpose(w: Writer, node: Node) -> None:
    t = node.given(Transposition)
    split = w.reshape(node.inputs[0], list(t.sizes), f"{node.output}.split")
    order = [0, *(axis + 1 for axis in t.order)]
    turned = w.op("Transpose", [split], f"{node.output}.turned", perm=order)
    w.reshape(turned, w.graph.shapes[node.output], node.output)


def _ensemble(w: Writer, node: Node) -> None:
    name, x, a = node.output, node.inputs[0], node.given(Combination)
    (n,) = w.graph.shapes[name]

    def axis(which: int) -> str:
        return w.constant(f"{name}.axis{which}", np.array([which], np.int64))

    def number(value: float) -> str:
        return w.constant(f"{name}.{value:g}", np.array(value))

    each = w.reshape(x, [a.members, a.boxes, n], f"{name}.outputs")
    if a.classes:
        each = w.op("Softmax", [each], f"{name}.probabilities", axis=3)
    each = w.op("ReduceMean", [each, axis(2)], f"{name}.members", keepdims=0)
    if a.rule == "mean":
        w.op("ReduceMean", [each, axis(1)], name, keepdims=0)
        return

    def one_hot(index: str, count: int, axis: int, output: str) -> str:
        depth = w.constant(f"{output}.depth", np.array([count], np.int64))
        values = w.constant(f"{output}.values", np.array([0.0, 1.0]))
        return w.op("OneHot", [index, depth, values], output, axis=axis)

    first = w.op("ArgMax", [each], f"{name}.first", axis=2, keepdims=0)
    votes = one_hot(first, n, 2, f"{name}.votes")
    # p log p of a p near 1 has no digits left in float32: that term is made of the others' sum s.
    rest = w.op("Sub", [number(1.0), votes], f"{name}.not_first")
    safe = w.op("Clip", [each, number(1e-12), number(1.0)], f"{name}.safe")
    terms = w.op("Mul", [safe, w.op("Log", [safe], f"{name}.log")], f"{name}.terms")
    others = w.op("Mul", [terms, rest], f"{name}.others")
    others = w.op("Neg", [w.op("ReduceSum", [others, axis(2)], f"{name}.sum")], f"{name}.entropies")
    small = w.op("Mul", [each, rest], f"{name}.small")
    s = w.op("ReduceSum", [small, axis(2)], f"{name}.s", keepdims=1)
    top = w.op("Mul", [terms, votes], f"{name}.top")
    top = w.op("Neg", [w.op("ReduceSum", [top, axis(2)], f"{name}.top_sum")], f"{name}.plain")
    # -(1-s) log(1-s) = s - s²/2 - s³/6 - s⁴/12 - s⁵/20 - s⁶/30 - ..., below 0.1 to 3e-8 of itself
    series = w.op("Mul", [s, number(1 / 30)], f"{name}.series6")
    for k in (5, 4, 3, 2):
        series = w.op("Add", [series, number(1 / (k * (k - 1)))], f"{name}.add{k}")
        series = w.op("Mul", [series, s], f"{name}.series{k}")
    series = w.op("Mul", [s, w.op("Sub", [number(1.0), series], f"{name}.one_less")], f"{name}.g")
    tiny = w.op("Less", [s, number(0.1)], f"{name}.tiny")
    top = w.op("Where", [tiny, series, top], f"{name}.top_entropy")
    entropy = w.op("Add", [others, top], f"{name}.both")
    entropy = w.op("Max", [entropy, number(1e-6)], f"{name}.entropy")

    if a.rule == "most_confident":
        best = w.op("ArgMin", [entropy], f"{name}.best", axis=1, keepdims=0)
        weights = one_hot(best, a.members, 1, f"{name}.weights")
    else:
        weights = w.op("Reciprocal", [entropy], f"{name}.confidence")
        total = w.op("ReduceSum", [weights, axis(1)], f"{name}.total", keepdims=1)
        weights = w.op("Div", [weights, total], f"{name}.weights")
    if a.rule == "weighted_voting":
        each = votes
    weighted = w.op("Mul", [weights, each], f"{name}.weighted")
    w.op("ReduceSum", [weighted, axis(1)], name, keepdims=0)


def _group_norm(w: Writer, node: Node) -> None:
    t, x, name = node.given(Normalisation), node.inputs[0], node.output
    shape = w.graph.shapes[x]
    if t.groups is None and len(shape) == 4:
        inputs = [x, w.weight(node, "scale"), w.weight(node, "shift")]
        w.op("InstanceNormalization", inputs, name, epsilon=t.eps)
        return
    groups = t.groups or shape[0]
    split = w.reshape(x, [groups, -1, 1], f"{name}.groups")
    ones, zeros = (w.constant(f"{name}.{n}", np.full(groups, float(n))) for n in (1, 0))
    normed = w.op("InstanceNormalization", [split, ones, zeros], f"{name}.normed", epsilon=t.eps)
    normed = w.reshape(normed, shape, f"{name}.joined")
    scaled = w.op("Mul", [normed, w.per_channel(node, "scale")], f"{name}.scaled")
    w.op("Add", [scaled, w.per_channel(node, "shift")], name)


def _channel_norm(w: Writer, node: Node) -> None:
    name, axes = node.output, len(w.graph.shapes[node.output])
    last = [0, *range(2, axes + 1), 1]
    turned = w.op("Transpose", node.inputs, f"{name}.last", perm=last)
    inputs = [turned, w.weight(node, "scale"), w.weight(node, "shift")]
    eps = node.given(Normalisation).eps
    normed = w.op("LayerNormalization", inputs, f"{name}.normed", axis=-1, epsilon=eps)
    w.op("Transpose", [normed], name, perm=[0, axes, *range(1, axes)])


def _reshape(w: Writer, node: Node) -> None:
    w.reshape(node.inputs[0], w.graph.shapes[node.output], node.output)


def _channels(w: Writer, node: Node) -> None:
    span = node.given(Span)
    _slice(w, node.inputs[0], node.output, [1], [span.start], [span.stop], [1])


PAIRS = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "maximum": "Max",
    "minimum": "Min",
}


def _pairwise(kind: str) -> Callable[[Writer, Node], Any]:
    return lambda w, n: w.op(kind, n.inputs, n.output)


WRITERS: dict[str, Callable[[Writer, Node], Any]] = {
    "conv": _conv,
    "hyper_conv": _hyper_conv,
    "conv_transpose": _transposed,
    "hyper_conv_transpose": _hyper_transposed,
    "linear": _linear,
    "hyper_linear": _hyper_linear,
    "one_and": _one_and,
    "combine": _combine,
    "affine": _affine,
    "activation": _activation,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": _adaptive("AveragePool"),
    "adaptive_max_pool": _adaptive("MaxPool"),
    "global_avg_pool": _global("GlobalAveragePool"),
    "global_max_pool": _global("GlobalMaxPool"),
    "global_norm": _global_norm,
    "reduce": _reduce,
    **{name: _pairwise(kind) for name, kind in PAIRS.items()},
    "concat": lambda w, n: w.op("Concat", n.inputs, n.output, axis=1),
    "slice": _channels,
    "pad": _pad,
    "reshape": _reshape,
    "crop": _crop,
    "resize": _resize,
    "softmax": _softmax,
    "group_norm": _group_norm,
    "channel_norm": _channel_norm,
    "transpose": _transpose,
    "ensemble": _ensemble,
}
