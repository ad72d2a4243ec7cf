"""The exact algebra that takes normalisation and the table out of the volume.

Each rule looks for one place where it applies, changes the graph there, and says whether it did.
`fold` repeats them until none applies. All of it in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from hyperfusion_rt.artifact.operations import Margins, Subsampling
from hyperfusion_rt.export.ir.graph import TABLE, Array, Convolution, Graph, Node, run

_LINEAR_MAPS = ("conv", "linear", "hyper_conv", "hyper_linear")
_HYPER = ("hyper_conv", "hyper_linear")


def fold(graph: Graph, states: Array | None = None) -> Graph:
    """A copy of `graph`, folded as far as the rules go.

    Args:
        states: `[S, T]`, if these are all the rows that the table can hold (the one-hot codes of a
            categorical column).
    """
    graph = graph.copy()
    graph.remove_dead()
    while any(rule(graph) for rule in RULES) or (states is not None and fold_states(graph, states)):
        graph.remove_dead()
    graph.remove_dead()
    graph.sort()
    return graph


def _channels(weight: Array, factor: Array, axis: int) -> Array:
    """`weight` with its axis scaled by `factor`."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    return weight * factor.reshape(shape)


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
        hyper = first.op in _HYPER
        if hyper and t.any() and not _starts_with_one(graph, first.inputs[1]):
            continue
        first.arrays["weight"] = _channels(first.arrays["weight"], s, 1 if hyper else 0)
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
            weight, hyper = user.arrays["weight"], user.op in _HYPER
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
        if margins.before != margins.after:
            continue
        user = graph.only_user(pad.output)
        if user is None or user.op not in ("conv", "hyper_conv"):
            continue
        window = user.given(Convolution)
        d, h, w = (p + q for p, q in zip(window.padding, margins.before, strict=True))
        user.attrs = replace(window, padding=(d, h, w))
        user.inputs[0] = pad.inputs[0]
        graph.nodes.remove(pad)
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


def embedding_tail(graph: Graph) -> bool:
    """`Σ_k [1, L z + c]_k G̃_k = Σ_j [1, z]_j G̃'_j` with `G̃' = [[1, c], [0, Lᵀ]] G̃`, if [1, z] is
    not longer than [1, L z + c].
    """
    for tail in graph.nodes:
        one = graph.only_user(tail.output)
        if tail.op != "linear" or one is None or one.op != "one_and":
            continue
        weight = tail.arrays["weight"]
        users = graph.users(one.output)
        if (
            one.output in graph.outputs
            or weight.shape[1] > weight.shape[0]
            or not all(
                u.op in _HYPER and u.inputs[1] == one.output and u.inputs[0] != one.output
                for u in users
            )
        ):
            continue
        mix = np.zeros((weight.shape[1] + 1, weight.shape[0] + 1))
        mix[0, 0] = 1
        mix[0, 1:] = tail.arrays["bias"]
        mix[1:, 1:] = weight.T
        for user in users:
            for key in ("weight", "bias"):
                user.arrays[key] = np.tensordot(mix, user.arrays[key], 1)
        one.inputs = list(tail.inputs)
        graph.shapes[one.output] = (weight.shape[1] + 1,)
        graph.nodes.remove(tail)
        return True
    return False


def pool_before_add(graph: Graph) -> bool:
    """`GAP(a + b) = GAP(a) + GAP(b)` where one side is a generated 1x1x1 convolution (through
    further additions).
    """
    for pool in graph.nodes:
        if pool.op != "global_avg_pool":
            continue
        add = graph.producer(pool.inputs[0])
        if add is None or add.op != "add" or graph.only_user(add.output) is not pool:
            continue
        shapes = [graph.shapes[v] for v in add.inputs]
        if shapes[0] != shapes[1] or not _leads_to_hyper(graph, add):
            continue
        parts = [
            graph.add(
                "global_avg_pool",
                [v],
                graph.shapes[pool.output],
                before=pool,
                like=pool,
                attrs=pool.attrs,
            )
            for v in add.inputs
        ]
        pool.op, pool.inputs, pool.attrs = "add", parts, None
        graph.nodes.remove(add)
        return True
    return False


def _leads_to_hyper(graph: Graph, add: Node) -> bool:
    for value in add.inputs:
        made = graph.producer(value)
        if made is None or graph.only_user(value) is None:
            continue
        if _pointwise_hyper(made) or (made.op == "add" and _leads_to_hyper(graph, made)):
            return True
    return False


def _pointwise_hyper(node: Node) -> bool:
    return (
        node.op == "hyper_conv"
        and node.arrays["weight"].shape[3:] == (1, 1, 1)
        and not any(node.given(Convolution).padding)
        and node.given(Convolution).groups == 1
    )


def pool_before_hyper(graph: Graph) -> bool:
    """`GAP(W(e) · x) = W(e) · GAP(x)`: a generated 1x1x1 convolution with stride s becomes a
    generated linear layer of the average over every s-th voxel.
    """
    for pool in graph.nodes:
        if pool.op != "global_avg_pool" or pool.given(Subsampling) != Subsampling():
            continue
        hyper = graph.producer(pool.inputs[0])
        if (
            hyper is None
            or not _pointwise_hyper(hyper)
            or graph.only_user(hyper.output) is not pool
        ):
            continue
        x, e = hyper.inputs
        mean = graph.add(
            "global_avg_pool",
            [x],
            graph.shapes[x][:1],
            before=pool,
            like=pool,
            attrs=Subsampling(stride=hyper.given(Convolution).stride),
        )
        pool.op, pool.inputs, pool.attrs = "hyper_linear", [mean, e], None
        pool.arrays = {"weight": hyper.arrays["weight"][..., 0, 0, 0], "bias": hyper.arrays["bias"]}
        pool.layer = hyper.layer
        graph.nodes.remove(hyper)
        return True
    return False


def trunk_emits_products(graph: Graph) -> bool:
    """`Σ_k ẽ_k (G̃_k x + h̃_k)`: where x does not depend on the table, the trunk computes all K
    products, and the head only combines them.
    """
    late = graph.depends_on(TABLE)
    for node in graph.nodes:
        if node.op != "hyper_linear" or node.inputs[0] in late:
            continue
        k, cout, cin = node.arrays["weight"].shape
        x, e = node.inputs
        products = graph.add(
            "linear",
            [x],
            (k * cout,),
            before=node,
            like=node,
            arrays={
                "weight": node.arrays["weight"].reshape(k * cout, cin),
                "bias": node.arrays["bias"].reshape(-1),
            },
        )
        node.op, node.inputs, node.arrays = "combine", [products, e], {}
        return True
    return False


def linear_into_combine(graph: Graph) -> bool:
    """`W (Σ_k ẽ_k p_k + m) + b = Σ_k ẽ_k (W p_k) + (W m + b)`: a linear layer of the head moves
    into the trunk, where p and m come from, if the head then multiplies less.
    """
    late = graph.depends_on(TABLE)
    for linear in graph.nodes:
        if linear.op != "linear":
            continue
        add = graph.producer(linear.inputs[0])
        if add is None or graph.only_user(add.output) is not linear:
            continue
        combine, other = add, None
        if add.op == "add":
            sides = [graph.producer(v) for v in add.inputs]
            which = next(
                (i for i, n in enumerate(sides) if n is not None and n.op == "combine"), -1
            )
            if which < 0 or add.inputs[1 - which] in late or add.inputs[0] == add.inputs[1]:
                continue
            found = sides[which]
            assert found is not None
            combine, other = found, add.inputs[1 - which]
            if graph.only_user(combine.output) is not add:
                continue
        if combine.op != "combine":
            continue
        products = graph.producer(combine.inputs[0])
        if products is None or products.op != "linear" or products.output in late:
            continue
        if graph.only_user(products.output) is not combine:
            continue
        weight = linear.arrays["weight"]  # [O, C]
        k = graph.shapes[combine.inputs[1]][0]
        if k * weight.shape[0] > k * weight.shape[1] + weight.size:
            continue
        inner = products.arrays["weight"].reshape(k, weight.shape[1], -1)
        moved = np.einsum("oc,kci->koi", weight, inner)
        products.arrays = {
            "weight": moved.reshape(-1, inner.shape[-1]),
            "bias": (products.arrays["bias"].reshape(k, -1) @ weight.T).reshape(-1),
        }
        graph.shapes[products.output] = (k * weight.shape[0],)
        graph.shapes[combine.output] = (weight.shape[0],)
        if other is None:
            linear.op, linear.inputs = "affine", [combine.output]
            linear.arrays = {"scale": np.ones(weight.shape[0]), "shift": linear.arrays["bias"]}
        else:
            m = graph.add(
                "linear",
                [other],
                (weight.shape[0],),
                before=linear,
                like=linear,
                arrays=linear.arrays,
            )
            linear.op, linear.inputs, linear.arrays = "add", [combine.output, m], {}
            graph.nodes.remove(add)
        return True
    return False


def fold_states(graph: Graph, states: Array) -> bool:
    """A table that can only hold S one-hot rows: `W_s = Σ_k ẽ_k(s) G̃_k` for each row s, and
    `W(row) = Σ_s row_s W_s`. The embedding is gone; K becomes S. Only where S is no more than K.
    """
    if TABLE not in graph.inputs or states.shape != (graph.inputs[TABLE][0],) * 2:
        return False
    if not np.array_equal(states, np.eye(len(states))):
        return False
    image_free = {TABLE}
    for node in graph.nodes:
        if set(node.inputs) <= image_free:
            image_free.add(node.output)
    for node in graph.nodes:
        if node.op not in (*_HYPER, "combine"):
            continue
        e = node.inputs[1]
        if e == TABLE or e not in image_free or graph.shapes[e][0] < len(states):
            continue
        rows = torch.from_numpy(states)
        part = Graph({TABLE: graph.inputs[TABLE]}, graph.nodes, [e], dict(graph.shapes)).copy()
        part.remove_dead()
        mix = run(part, {TABLE: rows})[0].numpy()  # [S, K]
        if node.op == "combine":
            products = graph.producer(node.inputs[0])
            if products is None or products.op != "linear":
                continue
            if graph.only_user(products.output) is not node:
                continue
            k = mix.shape[1]
            for key, array in products.arrays.items():
                split = array.reshape(k, -1, *array.shape[1:])
                products.arrays[key] = np.tensordot(mix, split, 1).reshape(-1, *array.shape[1:])
            graph.shapes[products.output] = products.arrays["bias"].shape
        else:
            for key in ("weight", "bias"):
                node.arrays[key] = np.tensordot(mix, node.arrays[key], 1)
        node.inputs[1] = TABLE
        return True
    return False


RULES: tuple[Callable[[Graph], bool], ...] = (
    compose_affine,
    absorb_affine_back,
    merge_reshapes,
    pad_into_window,
    absorb_affine_forward,
    affine_after_reshape,
    compose_linear,
    embedding_tail,
    pool_before_add,
    pool_before_hyper,
    trunk_emits_products,
    linear_into_combine,
)
