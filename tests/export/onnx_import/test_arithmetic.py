"""Arithmetic, activations, reductions and softmax: every variant, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from .models import agrees, built, chain, noise, single

V = (4, 7, 6, 5)
P = (4, 7, 6)
S = (4, 9)
F = (6,)
SHAPES = (V, P, S, F)
ODD = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38, 88.8, -104.0, 1.0], np.float32
)


def positive(op):
    """Numbers whose logarithms, roots and powers are finite."""
    return chain(V, ("Abs",), ("Add", [np.float32(0.1)]), op)


ACTIVATIONS = {
    "Relu": {}, "Sigmoid": {}, "Tanh": {}, "Softplus": {}, "Exp": {}, "Abs": {}, "Neg": {},
    "Erf": {}, "Identity": {}, "LeakyRelu": {"alpha": 0.2}, "Elu": {"alpha": 0.7},
    "Celu": {"alpha": 0.7}, "Selu": {"alpha": 1.5, "gamma": 1.2},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4}, "HardSwish": {}, "Mish": {},
}  # fmt: skip
FIRST = {"Celu": 12, "HardSwish": 14, "Mish": 18}


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_activations(op, tmp_path):
    for opset in {FIRST.get(op, 11), 18, 22}:
        agrees(single(op, V, opset=opset, **ACTIVATIONS[op]), tmp_path)
    if ACTIVATIONS[op]:
        agrees(single(op, F, opset=18), tmp_path)
    steps = ("MatMul", [noise(6, 8)]), (op, [], ACTIVATIONS[op])
    agrees(chain(F, *steps), tmp_path)


def test_activations_of_later_opsets(tmp_path):
    for approximate in ("none", "tanh"):
        agrees(single("Gelu", V, opset=20, approximate=approximate), tmp_path)
    agrees(single("Gelu", F, opset=20), tmp_path)


@pytest.mark.parametrize("op", ["Log", "Sqrt", "Reciprocal"])
def test_functions_of_positive_numbers(op, tmp_path):
    agrees(positive((op,)), tmp_path)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.7, 2.0, 3.0, -0.5, -1.0, -2.0])
def test_powers(exponent, tmp_path):
    agrees(positive(("Pow", [np.float32(exponent)])), tmp_path)
    agrees(positive(("Pow", [np.float32([exponent])])), tmp_path)
    if exponent == int(exponent):
        agrees(positive(("Pow", [np.int64(exponent)])), tmp_path)
        agrees(single("Pow", V, np.float32(exponent)), tmp_path)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Relu", {}), ("LeakyRelu", {"alpha": 0.2}), ("Sigmoid", {}), ("Tanh", {}), ("Abs", {}),
        ("Exp", {}), ("Neg", {}), ("Elu", {}), ("HardSigmoid", {}), ("Identity", {}), ("Erf", {}),
    ],
)  # fmt: skip
def test_special_numbers(op, attributes, tmp_path):
    model = single(op, (12,), **attributes)
    agrees(model, tmp_path, feeds={"image": ODD[None].copy()})


def test_clip(tmp_path):
    low, high = np.float32(-0.5), np.float32(0.7)
    for shape in (V, F):
        agrees(single("Clip", shape, low, high, opset=11), tmp_path)
        agrees(single("Clip", shape, None, high, opset=12), tmp_path)
        agrees(single("Clip", shape, low, opset=13), tmp_path)
        agrees(single("Clip", shape, opset=13), tmp_path)
        agrees(single("Clip", shape, np.float32(0), np.float32(6), opset=13), tmp_path)
        agrees(single("Clip", shape, np.float32(0), opset=13), tmp_path)
    endless = single("Clip", V, np.float32(-np.inf), np.float32(np.inf))
    agrees(endless, tmp_path)
    crossed = single("Clip", V, np.float32(1), np.float32(-1))
    agrees(crossed, tmp_path)
    agrees(single("Clip", (12,), low, high), tmp_path, feeds={"image": ODD[None].copy()})
    # A bound that is left out lets infinity through; ONNX Runtime's is the largest finite number.
    above = single("Clip", (12,), np.float32(0))
    wanted = np.where(ODD < 0, 0, ODD)[None]
    agrees(above, tmp_path, feeds={"image": ODD[None].copy()}, reference=lambda m, f: [wanted])


@pytest.mark.parametrize("shape", [V, P, S])
def test_prelu(shape, tmp_path):
    ones = (1,) * (len(shape) - 1)
    agrees(single("PRelu", shape, noise(4, *ones)), tmp_path)
    agrees(single("PRelu", shape, noise(1)), tmp_path)
    agrees(single("PRelu", shape, noise(*(1,) * len(shape))), tmp_path)
    agrees(single("PRelu", shape, noise(1, 4, *ones)), tmp_path)
    agrees(single("PRelu", F, noise(6)), tmp_path)


@pytest.mark.parametrize("opset", [11, 13, 14])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_arithmetic_with_constants(op, opset, tmp_path):
    for shape in SHAPES:
        ones = (1,) * (len(shape) - 1)
        for constant in (
            np.float32(1.5),
            noise(1),
            noise(shape[0], *ones),
            noise(1, shape[0], *ones),
        ):
            agrees(single(op, shape, constant, opset=opset), tmp_path)
    node = helper.make_node(op, ["c", "image"], ["y"])
    for constant in (np.float32(1.5), noise(4, 1, 1, 1)):
        agrees(built([node], {"image": V}, constants={"c": constant}, opset=opset), tmp_path)


def test_a_constant_that_is_the_same_everywhere(tmp_path):
    everywhere = np.broadcast_to(noise(4, 1, 1, 1), V).copy()
    agrees(single("Add", V, everywhere), tmp_path)
    agrees(single("Mul", V, np.full((1, *V), 0.3, np.float32)), tmp_path)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
def test_arithmetic_of_two_values(op, tmp_path):
    shapes = [(V, V), (V, (4, 1, 1, 1)), ((4, 1, 1, 1), V), (V, (1, 7, 6, 5)), (V, (1, 1, 1, 1)),
              (V, (4, 7, 1, 5)), ((4, 1, 6, 1), V), (P, P), (P, (4, 1, 1)), (S, (4, 1)), (F, F),
              (F, (1,)), ((1, 7, 1, 5), (4, 1, 6, 1))]  # fmt: skip
    for a, b in shapes:
        model = built([helper.make_node(op, ["a", "b"], ["y"])], {"a": a, "b": b})
        agrees(model, tmp_path)


@pytest.mark.parametrize("axes", [[2], [3, 4], [1, 2], [1], [2, 3, 4], [1, 4]])
def test_arithmetic_of_a_value_and_a_part_of_it(axes, tmp_path):
    """The native engine meets all voxels or one; others are repeated."""
    starts, ends = np.zeros(len(axes), np.int64), np.ones(len(axes), np.int64)
    nodes = [
        helper.make_node("Slice", ["image", "starts", "ends", "axes"], ["part"]),
        helper.make_node("Sub", ["part", "image"], ["y"]),
    ]
    constants = {"starts": starts, "ends": ends, "axes": np.array(axes)}
    agrees(built(nodes, {"image": V}, constants=constants), tmp_path)


def test_more_than_two_and_one(tmp_path):
    inputs = {"a": V, "b": (4, 1, 1, 1), "c": V}
    for op in ("Sum", "Mean", "Max", "Min"):
        agrees(built([helper.make_node(op, ["a", "b", "c"], ["y"])], inputs), tmp_path)
        agrees(built([helper.make_node(op, ["image"], ["y"])], {"image": V}), tmp_path)
        model = built(
            [helper.make_node(op, ["image", "k", "image"], ["y"])],
            {"image": V},
            constants={"k": np.float32(0.5)},
        )
        agrees(model, tmp_path)


def test_gates_of_channels_and_voxels(tmp_path):
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Sigmoid", ["mean"], ["channels"]),
        helper.make_node("ReduceMax", ["image"], ["most"], axes=[1]),
        helper.make_node("Mul", ["image", "channels"], ["one"]),
        helper.make_node("Mul", ["most", "one"], ["y"]),
    ]
    agrees(built(nodes, {"image": V}, opset=13), tmp_path)


REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare")
OLD = {"ReduceSum": 11}  # axes became an input in opset 13; in 18 elsewhere
AXES = ([2, 3, 4], [-1, -2, -3], [1], [1, 2, 3, 4], [2], [-1], [2, 4], [])


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions(op, keepdims, tmp_path):
    for axes in AXES:
        if not axes or (keepdims == 0 and len(axes) == 4):
            continue
        agrees(single(op, V, np.array(axes), keepdims=keepdims, opset=18), tmp_path)
        old = single(op, V, axes=axes, keepdims=keepdims, opset=OLD.get(op, 13))
        agrees(old, tmp_path)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2"])
def test_reductions_of_fewer_axes(op, tmp_path):
    for shape, axes in ((P, [2, 3]), (P, [-1]), (S, [2]), (S, [1]), (F, [1]), (P, [1])):
        agrees(single(op, shape, np.array(axes)), tmp_path)
        agrees(single(op, shape, np.array(axes), keepdims=0), tmp_path)
    agrees(single(op, (1, 4, 5, 6), np.array([1]), keepdims=0), tmp_path)


@pytest.mark.parametrize("op", [*REDUCTIONS, "ReduceL1"])
def test_reductions_over_an_axis_of_one_number(op, tmp_path):
    for shape in ((1, 4, 5, 6), (4, 1, 5, 6), (1, 4, 5), (1, 6), (1,)):
        axis = np.array([shape.index(1) + 1])
        for keepdims in (0, 1):
            agrees(single(op, shape, axis, keepdims=keepdims), tmp_path)


def test_axes_are_kept_by_1_alone(tmp_path):
    agrees(single("ReduceMean", V, np.array([1]), keepdims=2), tmp_path)


def test_reductions_of_nothing(tmp_path):
    agrees(single("ReduceMean", V, np.array([], np.int64), noop_with_empty_axes=1), tmp_path)
    agrees(single("ReduceSum", V, None, noop_with_empty_axes=1, opset=13), tmp_path)


def test_the_axes_of_a_reduction_are_counted_from_behind(tmp_path):
    """As a network with the channels last does."""
    steps = [
        ("Transpose", [], {"perm": [0, 2, 3, 4, 1]}),
        ("ReduceMean", [np.array([1, 2, 3])], {"keepdims": 0}),
        ("MatMul", [noise(4, 3)]),
    ]
    agrees(chain(V, *steps), tmp_path)
    steps[1] = ("ReduceMax", [np.array([-1])], {"keepdims": 1})
    agrees(chain(V, *steps[:2], ("Transpose", [], {"perm": [0, 4, 1, 2, 3]})), tmp_path)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax(op, tmp_path):
    for opset in (11, 12):  # axis 1 is the usual one, and all behind it are one
        agrees(single(op, F, opset=opset), tmp_path)
        agrees(single(op, V, opset=opset), tmp_path)
        agrees(single(op, V, opset=opset, axis=1), tmp_path)
        agrees(single(op, (4, 1, 1, 1), opset=opset, axis=1), tmp_path)
        agrees(single(op, (4, 5, 1), opset=opset, axis=-3), tmp_path)
    for opset in (13, 23):  # -1 is the usual one
        agrees(single(op, F, opset=opset), tmp_path)
        agrees(single(op, V, opset=opset, axis=1), tmp_path)
        agrees(single(op, V, opset=opset, axis=-4), tmp_path)
        agrees(single(op, P, opset=opset, axis=1), tmp_path)
        agrees(single(op, (1, 4, 5, 6), opset=opset, axis=1), tmp_path)
        agrees(single(op, (4, 1, 5, 6), opset=opset, axis=2), tmp_path)
        last = ("Transpose", [], {"perm": [0, 2, 3, 4, 1]})
        agrees(chain(V, last, (op,), opset=opset), tmp_path)


def test_softmax_of_special_numbers(tmp_path):
    x = noise(2, 3, 2, 2, 2) * 100
    x[0, 0, 0, 0, 0], x[0, 1, 1, 1, 1], x[1, :, 0, 0, 0] = -np.inf, np.nan, -1e4
    agrees(single("Softmax", x.shape[1:], axis=1), tmp_path, feeds={"image": x})
    one = x[:, :1]
    one[1, 0, 1, 0, 1] = np.inf
    for op in ("Softmax", "LogSoftmax"):
        agrees(single(op, one.shape[1:], axis=1), tmp_path, feeds={"image": one})


def test_activations_spelt_out(tmp_path):
    """As exporters write them; each becomes one node."""
    half, one, root = np.float32(0.5), np.float32(1), np.float32(np.sqrt(2))
    spelt = {
        "silu": [("Sigmoid", ["x"], "s"), ("Mul", ["x", "s"], "y")],
        "mish": [("Softplus", ["x"], "s"), ("Tanh", ["s"], "t"), ("Mul", ["x", "t"], "y")],
        "hardswish": [("HardSigmoid", ["x"], "s"), ("Mul", ["s", "x"], "y")],
        "gelu": [
            ("Div", ["x", "root"], "a"), ("Erf", ["a"], "b"), ("Add", ["b", "one"], "c"),
            ("Mul", ["x", "c"], "d"), ("Mul", ["d", "half"], "y"),
        ],
    }  # fmt: skip
    from hyperfusion_rt.artifact.operations import Activation
    from hyperfusion_rt.export.ir.fold import fold

    for kind, steps in spelt.items():
        more = {"alpha": 1 / 6, "beta": 0.5}
        nodes = [
            helper.make_node(op, i, [o], **(more if op == "HardSigmoid" else {}))
            for op, i, o in [("Relu", ["image"], "r"), ("Sub", ["r", "one"], "x"), *steps]
        ]
        constants = {"half": half, "one": one, "root": root}
        graph = agrees(built(nodes, {"image": V}, constants=constants), tmp_path)
        kinds = [n.given(Activation).kind for n in fold(graph).nodes if n.op == "activation"]
        assert kinds == ["relu", kind]
