"""Each rule of the folding on random networks in float64, and where it must keep off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hyperfusion_rt.artifact.operations import Activation, Margins, Subsampling
from hyperfusion_rt.export.ir import fold as rules
from hyperfusion_rt.export.ir.cut import cut
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.graph import Convolution, Graph, Node, run
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.models import HyperConv3d

from ..networks import (
    FUSIONS,
    SHAPES,
    MidTrunk,
    difference,
    exact,
    inputs,
    outcome,
    published,
    shaken,
)
from ..rtx import INSTALLED, builds

TOLERANCE = 1e-10


def rng(seed=0):
    return np.random.default_rng(seed)


class Builder:
    """A graph, node by node, with random weights."""

    def __init__(self, **shapes):
        self.graph = Graph(dict(shapes), [], [], dict(shapes))
        self.random = rng()

    def add(self, op, inputs, shape, attrs=None, **arrays):
        name = f"n{len(self.graph.nodes)}"
        made = {k: self.random.standard_normal(v) for k, v in arrays.items()}
        self.graph.nodes.append(Node(op, list(inputs), name, attrs, made, name))
        self.graph.shapes[name] = tuple(shape)
        return name

    def conv(self, x, cout, kernel=3, padding=0, groups=1, stride=1, condition=None):
        cin, *extent = self.graph.shapes[x]
        attrs = Convolution(
            kernel=(kernel,) * 3, stride=(stride,) * 3, padding=(padding,) * 3, groups=groups
        )
        size = [(n + 2 * padding - kernel) // stride + 1 for n in extent]
        shape = (cout, cin // groups, kernel, kernel, kernel)
        if condition is None:
            return self.add("conv", [x], (cout, *size), attrs, weight=shape, bias=(cout,))
        k = self.graph.shapes[condition][0]
        return self.add(
            "hyper_conv", [x, condition], (cout, *size), attrs, weight=(k, *shape), bias=(k, cout)
        )

    def linear(self, x, out, condition=None):
        (count,) = self.graph.shapes[x]
        if condition is None:
            return self.add("linear", [x], (out,), weight=(out, count), bias=(out,))
        (k,) = self.graph.shapes[condition]
        return self.add(
            "hyper_linear", [x, condition], (out,), weight=(k, out, count), bias=(k, out)
        )

    def affine(self, x):
        c = self.graph.shapes[x][0]
        return self.add("affine", [x], self.graph.shapes[x], scale=(c,), shift=(c,))

    def same(self, op, *xs, attrs=None):
        return self.add(op, xs, self.graph.shapes[xs[0]], attrs)

    def relu(self, x):
        return self.same("activation", x, attrs=Activation(kind="relu"))

    def one_and(self, x):
        return self.add("one_and", [x], (self.graph.shapes[x][0] + 1,))

    def pool(self, x):
        return self.add("global_avg_pool", [x], self.graph.shapes[x][:1], Subsampling())

    def done(self, *outputs):
        self.graph.outputs = list(outputs)
        return self.graph


def apply(rule, graph, expected=True, **options):
    """Run one rule; the graph computes the same before and after, whether or not it fired."""
    feeds = inputs(graph)
    before = run(graph, feeds)
    changed = graph.copy()
    assert rule(changed, **options) is expected
    changed.remove_dead()
    changed.sort()
    for a, b in zip(run(changed, feeds), before, strict=True):
        assert difference(a, b) <= TOLERANCE
    for form in (graph, changed):
        if form.nodes:
            builds(form)
    return changed


@pytest.mark.skipif(not INSTALLED, reason="tensorrt_rtx is not installed: rules NOT built with it")
def test_every_rule_is_built_with_tensorrt_rtx():
    """`apply` builds what every test below gives it, before and after the rule."""
    b = Builder(image=V)
    assert builds(b.done(b.conv("image", 6))) is not None


def ops(graph):
    return [n.op for n in graph.nodes]


V = (4, 5, 6, 7)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
def test_conv_then_affine(groups, padding):
    b = Builder(image=V)
    graph = b.done(b.affine(b.conv("image", 6, padding=padding, groups=groups)))
    assert ops(apply(rules.absorb_affine_back, graph)) == ["conv"]


def test_linear_then_affine():
    b = Builder(image=(5,))
    assert ops(apply(rules.absorb_affine_back, b.done(b.affine(b.linear("image", 3))))) == [
        "linear"
    ]


def test_a_conv_that_others_read_keeps_its_scale():
    b = Builder(image=V)
    x = b.conv("image", 6)
    graph = b.done(b.same("add", b.affine(x), x))
    apply(rules.absorb_affine_back, graph, expected=False)


@pytest.mark.parametrize("groups", [1, 2])
def test_affine_then_conv_without_padding(groups):
    b = Builder(image=V)
    graph = b.done(b.conv(b.affine("image"), 6, groups=groups))
    assert ops(apply(rules.absorb_affine_forward, graph)) == ["conv"]


def test_affine_then_conv_with_padding_stays():
    b = Builder(image=V)
    apply(rules.absorb_affine_forward, b.done(b.conv(b.affine("image"), 6, padding=1)), False)


def test_affine_goes_forward_only_if_all_take_it():
    b = Builder(image=V)
    x = b.affine("image")
    graph = b.done(b.conv(x, 6, kernel=1), b.conv(x, 3))
    assert ops(apply(rules.absorb_affine_forward, graph)) == ["conv", "conv"]
    b = Builder(image=V)
    x = b.affine("image")
    apply(rules.absorb_affine_forward, b.done(b.conv(x, 6, kernel=1), b.relu(x)), False)


def test_affine_then_generated_layers():
    b = Builder(image=V, tabular=(3,))
    graph = b.done(b.conv(b.affine("image"), 6, groups=2, condition=b.one_and("tabular")))
    assert "affine" not in ops(apply(rules.absorb_affine_forward, graph))
    b = Builder(image=(5,), tabular=(3,))
    graph = b.done(b.linear(b.affine("image"), 6, b.one_and("tabular")))
    assert "affine" not in ops(apply(rules.absorb_affine_forward, graph))


def test_affine_flatten_linear():
    b = Builder(image=V)
    x = b.affine("image")
    x = b.add("reshape", [x], (840,))
    graph = b.done(b.linear(x, 3))
    moved = apply(rules.affine_after_reshape, graph)
    assert ops(moved) == ["reshape", "affine", "linear"]
    assert ops(apply(rules.absorb_affine_forward, moved)) == ["reshape", "linear"]


def test_reshapes_merge():
    b = Builder(image=V)
    x = b.add("reshape", [b.pool("image")], (4, 1, 1, 1))
    x = b.add("reshape", [x], (4,))
    graph = apply(rules.merge_reshapes, b.done(b.linear(x, 3)))
    assert ops(graph) == ["global_avg_pool", "reshape", "linear"]
    assert ops(apply(rules.merge_reshapes, graph)) == ["global_avg_pool", "linear"]


def test_an_output_keeps_its_name():
    b = Builder(image=(5,))
    graph = b.done(b.add("reshape", ["image"], (5,)))
    assert apply(rules.merge_reshapes, graph, expected=False).outputs == graph.outputs


def test_two_affine_maps_become_one():
    b = Builder(image=V)
    assert ops(apply(rules.compose_affine, b.done(b.affine(b.affine("image"))))) == ["affine"]


def test_padding_joins_the_convolution():
    for after in ((1, 0, 2), (1, 1, 2)):
        b = Builder(image=V)
        shape = (4, 5 + 1 + after[0], 6 + after[1], 7 + 2 + after[2])
        x = b.add("pad", ["image"], shape, Margins(before=(1, 0, 2), after=after))
        graph = b.done(b.conv(x, 3))
        assert ops(apply(rules.pad_into_window, graph)) == ["conv"]


@pytest.mark.parametrize("volume", [True, False])
def test_generated_then_affine(volume):
    b = Builder(image=V if volume else (5,), tabular=(3,))
    e = b.one_and("tabular")
    x = b.conv("image", 6, condition=e) if volume else b.linear("image", 6, e)
    assert "affine" not in ops(apply(rules.absorb_affine_back, b.done(b.affine(x))))


def test_a_shift_needs_a_constant_generator():
    b = Builder(image=V, tabular=(3,))
    graph = b.done(b.affine(b.conv("image", 6, condition="tabular")))
    apply(rules.absorb_affine_back, graph, expected=False)
    graph.nodes[-1].arrays["shift"][:] = 0
    assert ops(apply(rules.absorb_affine_back, graph)) == ["hyper_conv"]


@pytest.mark.parametrize("generated", [True, False])
@pytest.mark.parametrize("volume", [True, False])
def test_an_affine_map_goes_through_a_sum_of_linear_maps(volume, generated):
    b = Builder(image=V if volume else (5,), tabular=(3,))
    add = b.conv if volume else b.linear
    first = add("image", 6, condition="tabular" if generated else None)
    graph = b.done(b.affine(b.same("add", first, add("image", 6))))
    changed = apply(rules.affine_before_add, graph)
    assert changed.outputs == graph.outputs
    while rules.absorb_affine_back(changed):
        pass
    assert "affine" not in ops(changed)
    assert changed.nodes[-1].op == "add"


def test_an_affine_map_stays_behind_other_sums():
    for case in ("the image", "read twice", "itself", "of a vector"):
        b = Builder(image=V)
        x, y = b.conv("image", 6), b.conv("image", 6)
        if case == "of a vector":
            y = b.conv(b.add("reshape", [b.pool(y)], (6, 1, 1, 1)), 6, kernel=1)
        z = b.same("add", x, {"the image": b.relu(y), "itself": x}.get(case, y))
        graph = b.done(b.affine(z), *([x] if case == "read twice" else []))
        apply(rules.affine_before_add, graph, expected=False)


@pytest.mark.parametrize(("width", "size", "expected"), [(3, 5, True), (3, 3, True), (5, 3, False)])
def test_linear_tail_of_the_embedding(width, size, expected):
    b = Builder(image=V, tabular=(width,))
    e = b.one_and(b.linear("tabular", size))
    graph = b.done(b.conv("image", 2, condition=e), b.linear(b.pool("image"), 3, e))
    found = apply(rules.embedding_tail, graph, expected)
    assert ("linear" in ops(found)) is not expected
    if expected:
        assert found.shapes[e] == (width + 1,)


def test_an_embedding_that_is_an_output_keeps_its_tail():
    b = Builder(image=V, tabular=(3,))
    e = b.one_and(b.linear("tabular", 5))
    apply(rules.embedding_tail, b.done(b.conv("image", 2, condition=e), e), expected=False)


@pytest.mark.parametrize("stride", [1, 2])
def test_linear_commute(stride):
    b = Builder(image=V, tabular=(3,))
    e = b.one_and("tabular")
    main = b.conv("image", 6, kernel=3, padding=1, stride=stride)
    short = b.conv("image", 6, kernel=1, stride=stride, condition=e)
    graph = b.done(b.pool(b.same("add", b.same("add", main, short), main)))
    graph = apply(rules.pool_before_add, graph)
    graph = apply(rules.pool_before_add, graph)
    graph = apply(rules.pool_before_hyper, graph)
    assert "hyper_conv" not in ops(graph)
    assert ops(graph).count("hyper_linear") == 1


def test_linear_commute_keeps_off():
    for kernel, act in ((3, False), (1, True)):
        b = Builder(image=V, tabular=(3,))
        short = b.conv("image", 6, kernel, padding=kernel // 2, condition=b.one_and("tabular"))
        x = b.same("add", b.conv("image", 6, padding=1), short)
        graph = b.done(b.pool(b.relu(x) if act else x))
        apply(rules.pool_before_add, graph, expected=False)
        apply(rules.pool_before_hyper, graph, expected=False)


def test_the_trunk_emits_products():
    b = Builder(image=(5,), tabular=(3,))
    graph = apply(rules.trunk_emits_products, b.done(b.linear("image", 4, b.one_and("tabular"))))
    assert ops(graph) == ["one_and", "linear", "combine"]
    b = Builder(image=(5,), tabular=(3,))
    late = b.same("mul", "image", b.linear("tabular", 5))
    graph = b.done(b.linear(late, 4, b.one_and("tabular")))
    apply(rules.trunk_emits_products, graph, expected=False)


@pytest.mark.parametrize("with_sum", [True, False])
@pytest.mark.parametrize(("width", "outputs", "expected"), [(2, 3, True), (10, 40, False)])
def test_linear_moves_through_the_combination(with_sum, width, outputs, expected):
    """The head multiplies K·C + C·O times before, K·O times after."""
    b = Builder(image=(5,), tabular=(width,))
    p = b.add("combine", [b.linear("image", 2 * (width + 1)), b.one_and("tabular")], (2,))
    x = b.same("add", p, b.linear("image", 2)) if with_sum else p
    graph = apply(rules.linear_into_combine, b.done(b.linear(x, outputs)), expected)
    if expected:
        assert graph.shapes[p] == (outputs,)
        assert cut(fold(graph))[1].nodes[-1].op != "linear"


def test_a_combination_added_to_itself_stays():
    b = Builder(image=(5,))
    p = b.add("combine", [b.linear("image", 6), b.linear("image", 3)], (2,))
    graph = b.done(b.linear(b.same("add", p, p), 2))
    apply(rules.linear_into_combine, graph, expected=False)


def test_linear_after_linear():
    for middle, expected in ((9, True), (1, False)):
        b = Builder(image=(5,))
        graph = b.done(b.linear(b.linear("image", middle), 6))
        assert len(apply(rules.compose_linear, graph, expected).nodes) == (1 if expected else 2)


def test_categorical_states():
    b = Builder(image=V, tabular=(2,))
    e = b.one_and(b.relu(b.linear("tabular", 4)))
    conv = b.conv("image", 3, condition=e)
    vector = b.linear(b.pool("image"), 3, e)
    products = b.linear(b.pool("image"), 15)
    combined = b.add("combine", [products, e], (3,))
    graph = b.done(conv, b.same("add", vector, combined))
    states = np.eye(2)
    feeds = {**inputs(graph, batch=4), "tabular": torch.eye(2).double()[[0, 1, 1, 0]]}
    before = run(graph, feeds)
    folded = fold(graph, states)
    assert "one_and" not in ops(folded)
    for a, c in zip(run(folded, feeds), before, strict=True):
        assert difference(a, c) <= TOLERANCE
    # More states than generators: a table of weights would only be larger.
    b = Builder(image=V, tabular=(4,))
    graph = b.done(b.conv("image", 3, condition=b.one_and(b.relu(b.linear("tabular", 1)))))
    assert not rules.fold_states(graph.copy(), np.eye(4))


@pytest.mark.parametrize("task", SHAPES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_published_networks(task, fusion):
    network = published(task, fusion)
    width = 5 if task == "ad" else 2
    graph = lower(network, {"image": (1, *SHAPES[task]), "tabular": (width,)})
    folded = fold(graph, np.eye(2) if width == 2 else None)
    feeds = inputs(graph)
    if width == 2:
        feeds["tabular"] = torch.eye(2).double()[[0, 1, 0]]
    expected = exact(network, feeds)
    assert difference(outcome(folded, feeds), expected) <= TOLERANCE
    trunk, head = cut(folded)
    features = run(trunk, {name: feeds[name] for name in trunk.inputs if trunk.nodes})
    given = {**dict(zip(trunk.outputs, features, strict=True)), "tabular": feeds["tabular"]}
    found = run(head, {name: given[name] for name in head.inputs})[0]
    assert difference(found, expected) <= TOLERANCE
    if fusion == "hyper":
        # The table has left the volume.
        assert all(len(shape) == 1 for shape in (head.shapes[n.output] for n in head.nodes))
        sizes = [trunk.shapes[v][0] for v in trunk.outputs]
        assert sorted(sizes) == ([2 * 16] if task == "brain-age" else [16, 9 * 16])
    if fusion == "image":
        assert not head.nodes
    if fusion == "tabular":
        assert not trunk.nodes


def test_a_generated_layer_in_the_middle_folds_as_far_as_it_can():
    network = shaken(MidTrunk())
    graph = lower(network, {"image": (1, 9, 10, 11), "tabular": (5,)})
    folded = fold(graph)
    feeds = inputs(graph)
    assert difference(outcome(folded, feeds), exact(network, feeds)) <= TOLERANCE
    assert "affine" not in ops(folded)
    trunk, head = cut(folded)
    assert ops(trunk) == ["conv", "activation"]
    assert "hyper_conv" in ops(head)


class Pooled(nn.Module):
    """A generated shortcut, pooled in the ways that networks are written."""

    def __init__(self, pool):
        super().__init__()
        torch.manual_seed(5)
        self.main = nn.Conv3d(4, 6, 3, stride=2, padding=1)
        self.short = HyperConv3d(4, 6, 1, stride=2, condition_features=3, embedding_features=2)
        self.norm, self.pool, self.linear = nn.BatchNorm3d(6), pool, nn.Linear(6, 2)

    def forward(self, image, tabular):
        y = self.main(image) + self.norm(self.short(image, tabular))
        return self.linear(self.pool(y))


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3, 4), keepdim=True).flatten(1)


@pytest.mark.parametrize(
    "pool", [nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten()), Mean()], ids=["adaptive", "mean"]
)
def test_a_pool_that_keeps_its_axes(pool):
    network = shaken(Pooled(pool))
    graph = lower(network, {"image": V, "tabular": (3,)})
    folded, feeds = fold(graph), inputs(graph)
    assert difference(outcome(folded, feeds), exact(network, feeds)) <= TOLERANCE
    trunk, head = cut(folded)
    assert ops(head) == ["linear", "one_and", "combine", "add"]
    # The last linear layer is in the trunk: K + 1 products of 2 numbers, and the main path's 2.
    assert sorted(trunk.shapes[v] for v in trunk.outputs) == [(2,), (6,)]


def test_the_given_graph_is_left_alone():
    graph = lower(shaken(nn.Sequential(nn.Conv3d(4, 4, 3), nn.BatchNorm3d(4))), {"image": V})
    before = [(n.op, n.output, {k: a.copy() for k, a in n.arrays.items()}) for n in graph.nodes]
    assert len(fold(graph).nodes) == 1
    for node, (op, output, arrays) in zip(graph.nodes, before, strict=True):
        assert (node.op, node.output) == (op, output)
        for key, array in arrays.items():
            np.testing.assert_array_equal(node.arrays[key], array)
