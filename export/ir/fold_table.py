"""Folding that takes the table out of the volume, and work out of the head.

A rule looks for one place where it applies, changes the graph there, and says whether it did.
"""

from __future__ import annotations

import numpy as np
import torch

from hyperfusion_rt.artifact.operations import Subsampling
from hyperfusion_rt.export.ir.graph import HYPER, TABLE, Array, Convolution, Graph, Node, run


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
                u.op in HYPER and u.inputs[1] == one.output and u.inputs[0] != one.output
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
        and node.given(Convolution).behind is None
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
        if node.op not in (*HYPER, "combine"):
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
