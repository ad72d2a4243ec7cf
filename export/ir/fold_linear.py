"""Folding what is linear anyhow: normalisation into layers, layers into layers, zeros into padding.

A rule looks for one place where it applies, changes the graph there, and says whether it did.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from hyperfusion_rt.artifact.operations import Margins, Resizing, Transposed
from hyperfusion_rt.export.ir.graph import HYPER, Array, Convolution, Graph, Node

_LINEAR_MAPS = ("conv", "conv_transpose", "linear", *HYPER)


def _channels(weight: Array, factor: Array, axis: int) -> Array:
    """`weight` with its axis scaled by `factor`."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    return weight * factor.reshape(shape)


def _scaled(node: Node, factor: Array) -> Array:
    """The weights of a linear map whose outputs are scaled."""
    weight, hyper = node.arrays["weight"], node.op in HYPER
    if not node.op.endswith("transpose"):
        return _channels(weight, factor, 1 if hyper else 0)
    # [..., Cin, Cout / groups, k, k, k]: input channels of a group make its outputs.
    groups = node.given(Transposed).groups
    cin, each = weight.shape[-5:-3]
    seen = factor.reshape(groups, 1, each).repeat(cin // groups, 1).reshape(cin, each)
    return weight * seen[..., None, None, None]


def _starts_with_one(graph: Graph, e: str) -> bool:
    made = graph.producer(e)
    return made is not None and made.op == "one_and"


def compose_affine(graph: Graph) -> bool:
    """`(x s + t) s' + t' = x (s s') + (t s' + t')`."""
    for first in graph.nodes:
        second = graph.only_user(first.output)
        if first.op == "affine" and second is not None and second.op == "affine":
            s, t = second.arrays["scale"], second.arrays["shift"]
            second.arrays = {
                "scale": first.arrays["scale"] * s,
                "shift": first.arrays["shift"] * s + t,
            }
            second.inputs = list(first.inputs)
            return True
    return False


def absorb_affine_back(graph: Graph) -> bool:
    """`s (W x + b) + t = (s W) x + (s b + t)`: conv, linear → BN. Generated: every G̃_k is scaled,
    and t goes to the constant generator, which must be there (ẽ_0 = 1) unless t = 0.
    """
    for first in graph.nodes:
        second = graph.only_user(first.output)
        if first.op not in _LINEAR_MAPS or second is None or second.op != "affine":
            continue
        s, t = second.arrays["scale"], second.arrays["shift"]
        hyper = first.op in HYPER
        if hyper and t.any() and not _starts_with_one(graph, first.inputs[1]):
            continue
        first.arrays["weight"] = _scaled(first, s)
        bias = first.arrays["bias"] * s
        if hyper:
            bias[0] += t if t.any() else 0.0
        else:
            bias = bias + t
        first.arrays["bias"] = bias
        graph.nodes.remove(second)
        first.output = _keep_name(graph, first.output, second.output)
        return True
    return False


def affine_into_norm(graph: Graph) -> bool:
    """`s (n a + b) + t = n (s a) + (s b + t)` of what is normalised, n."""
    for norm in graph.nodes:
        affine = graph.only_user(norm.output)
        if norm.op not in ("group_norm", "channel_norm") or affine is None:
            continue
        if affine.op != "affine":
            continue
        s, t = affine.arrays["scale"], affine.arrays["shift"]
        norm.arrays = {"scale": norm.arrays["scale"] * s, "shift": norm.arrays["shift"] * s + t}
        graph.nodes.remove(affine)
        norm.output = _keep_name(graph, norm.output, affine.output)
        return True
    return False


def transposed_is_conv(graph: Graph) -> bool:
    """A transposed convolution of stride 1 is a convolution with its taps in reverse."""
    for node in graph.nodes:
        if node.op not in ("conv_transpose", "hyper_conv_transpose"):
            continue
        t = node.given(Transposed)
        reach = [d * (k - 1) for k, d in zip(t.kernel, t.dilation, strict=True)]
        around = [r - p for r, p in zip(reach, t.padding, strict=True)]
        if t.stride != (1, 1, 1) or any(t.extra) or min(around) < 0:
            continue
        weight = node.arrays["weight"][..., ::-1, ::-1, ::-1]
        *lead, cin, each = weight.shape[:-3]
        split = weight.reshape(*lead, t.groups, cin // t.groups, each, *t.kernel)
        turned = split.swapaxes(-5, -4).reshape(*lead, t.groups * each, cin // t.groups, *t.kernel)
        node.arrays = {**node.arrays, "weight": turned}
        node.attrs = Convolution(
            kernel=t.kernel,
            stride=t.stride,
            padding=(around[0], around[1], around[2]),
            dilation=t.dilation,
            groups=t.groups,
        )
        node.op = node.op.removesuffix("_transpose")
        return True
    return False


def affine_before_add(graph: Graph) -> bool:
    """`s (a + b) + t = s a + (s b + t)` where a and b are linear maps, which then absorb that."""
    for add in graph.nodes:
        affine = graph.only_user(add.output)
        if add.op != "add" or affine is None or affine.op != "affine":
            continue
        if add.inputs[0] == add.inputs[1]:
            continue
        made = [graph.producer(value) for value in add.inputs]
        # One that is generated takes no shift.
        made.sort(key=lambda node: node is not None and node.op in HYPER)
        if not all(
            node is not None
            and node.op in _LINEAR_MAPS
            and graph.only_user(node.output) is add
            and graph.shapes[node.output] == graph.shapes[add.output]
            for node in made
        ):
            continue
        scale, shift = affine.arrays["scale"], affine.arrays["shift"]
        parts = []
        for node, t in zip(made, (shift, np.zeros_like(shift)), strict=True):
            assert node is not None
            shape, arrays = graph.shapes[add.output], {"scale": scale, "shift": t}
            parts.append(
                graph.add("affine", [node.output], shape, before=add, like=affine, arrays=arrays)
            )
        add.inputs = parts
        graph.nodes.remove(affine)
        add.output = _keep_name(graph, add.output, affine.output)
        return True
    return False


def _keep_name(graph: Graph, made: str, name: str) -> str:
    """Let the value `made` take the place and the name of `name`, whose node is gone."""
    graph.shapes[name] = graph.shapes.pop(made)
    graph.replace(made, name)
    return name


def _takes_affine(graph: Graph, node: Node, value: str) -> bool:
    if node.op in ("linear", "hyper_linear") and node.inputs[0] == value:
        return node.op == "linear" or node.inputs[1] != value
    return (
        node.op in ("conv", "hyper_conv")
        and node.inputs[0] == value
        and not any(node.given(Convolution).padding)
        and node.given(Convolution).behind is None
    )


def absorb_affine_forward(graph: Graph) -> bool:
    """`W (s x + t) + b = (W s) x + (W t + b)`: BN → conv without padding, BN → linear.

    Zero padding would come after the shift, and then it does not commute. Only if all that read
    the affine map can take it in.
    """
    for affine in graph.nodes:
        if affine.op != "affine" or affine.output in graph.outputs:
            continue
        users = graph.users(affine.output)
        if not users or not all(_takes_affine(graph, u, affine.output) for u in users):
            continue
        for user in users:
            s, t = affine.arrays["scale"], affine.arrays["shift"]
            weight, hyper = user.arrays["weight"], user.op in HYPER
            axis = 2 if hyper else 1  # of the input channels
            if user.op.endswith("conv"):
                groups, cout = user.given(Convolution).groups, weight.shape[axis - 1]
                each, per_group = cout // groups, weight.shape[axis]
                # The input channels that each output channel sees.
                seen = np.arange(cout)[:, None] // each * per_group + np.arange(per_group)
                shape = (*weight.shape[axis - 1 : axis + 1], 1, 1, 1)
                full = (1, *shape) if hyper else shape
                user.arrays["bias"] = user.arrays["bias"] + (weight * t[seen].reshape(full)).sum(
                    (-4, -3, -2, -1)
                )
                user.arrays["weight"] = weight * s[seen].reshape(full)
            else:
                user.arrays["bias"] = user.arrays["bias"] + weight @ t
                user.arrays["weight"] = weight * s
            user.inputs[0] = affine.inputs[0]
        graph.nodes.remove(affine)
        return True
    return False


def affine_after_reshape(graph: Graph) -> bool:
    """`flatten(s x + t) = s' flatten(x) + t'`, each channel's numbers repeated for its voxels."""
    for affine in graph.nodes:
        reshape = graph.only_user(affine.output)
        if affine.op != "affine" or reshape is None or reshape.op != "reshape":
            continue
        times = math.prod(graph.shapes[reshape.output]) // len(affine.arrays["scale"])
        if graph.shapes[reshape.output][0] not in (
            len(affine.arrays["scale"]),
            len(affine.arrays["scale"]) * times,
        ):
            continue
        grown = graph.shapes[reshape.output][0] // len(affine.arrays["scale"])
        arrays = {key: np.repeat(a, grown) for key, a in affine.arrays.items()}
        x = graph.add(
            "reshape",
            list(affine.inputs),
            graph.shapes[reshape.output],
            before=affine,
            like=reshape,
        )
        affine.inputs, affine.arrays = [x], arrays
        graph.nodes.remove(reshape)
        graph.shapes[affine.output] = graph.shapes[x]
        affine.output = _keep_name(graph, affine.output, reshape.output)
        return True
    return False


def merge_reshapes(graph: Graph) -> bool:
    """`reshape(reshape(x)) = reshape(x)`; one that changes nothing goes, unless it names an output.

    A pool that keeps its axes, then a flatten: what follows sees the pooled vector itself.
    """
    for node in graph.nodes:
        if node.op != "reshape":
            continue
        (x,) = node.inputs
        first = graph.producer(x)
        if first is not None and first.op == "reshape":
            node.inputs = list(first.inputs)
            return True
        if graph.shapes[x] == graph.shapes[node.output] and node.output not in graph.outputs:
            graph.replace(node.output, x)
            graph.nodes.remove(node)
            return True
    return False


def pad_into_window(graph: Graph) -> bool:
    """Zeros around a volume become the padding of the convolution that reads them."""
    for pad in graph.nodes:
        if pad.op != "pad":
            continue
        margins = pad.given(Margins)
        if margins.mode != "constant" or margins.value:
            continue
        user = graph.only_user(pad.output)
        if user is None or user.op not in ("conv", "hyper_conv"):
            continue
        window = user.given(Convolution)
        front, behind = (
            tuple(p + q for p, q in zip(of, more, strict=True))
            for of, more in (
                (window.padding, margins.before),
                (window.padding if window.behind is None else window.behind, margins.after),
            )
        )
        user.attrs = replace(
            window,
            padding=(front[0], front[1], front[2]),
            behind=None if front == behind else (behind[0], behind[1], behind[2]),
        )
        user.inputs[0] = pad.inputs[0]
        graph.nodes.remove(pad)
        return True
    return False


def merge_resizes(graph: Graph) -> bool:
    """Two steps to the nearest voxels, along different axes, are one."""
    for first in graph.nodes:
        second = graph.only_user(first.output)
        if first.op != "resize" or second is None or second.op != "resize":
            continue
        one, two = first.given(Resizing), second.given(Resizing)
        alike = replace(one, size=two.size, step=two.step) == two
        between = zip(graph.shapes[first.inputs[0]][1:], one.size, two.size, strict=True)
        if one.linear or not alike or any(n != m != k for n, m, k in between):
            continue
        x, shape = first.inputs, graph.shapes[first.inputs[0]][1:]
        d, h, w = (
            s if n != m else t
            for n, m, s, t in zip(shape, one.size, one.step, two.step, strict=True)
        )
        second.attrs, second.inputs = replace(two, step=(d, h, w)), list(x)
        graph.nodes.remove(first)
        return True
    return False


def compose_linear(graph: Graph) -> bool:
    """`W' (W x + b) + b' = (W' W) x + (W' b + b')`, if it does not need more multiplications."""
    for first in graph.nodes:
        second = graph.only_user(first.output)
        if first.op != "linear" or second is None or second.op != "linear":
            continue
        w, v = first.arrays["weight"], second.arrays["weight"]
        if v.shape[0] * w.shape[1] > w.size + v.size:
            continue
        second.arrays = {"weight": v @ w, "bias": v @ first.arrays["bias"] + second.arrays["bias"]}
        second.inputs = list(first.inputs)
        graph.nodes.remove(first)
        return True
    return False
