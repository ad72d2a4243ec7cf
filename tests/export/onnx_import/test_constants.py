"""What does not depend on an input, against ONNX's own reference."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from hyperfusion_rt.export.ir.builder import UnsupportedError
from hyperfusion_rt.export.onnx_import.constants import EVALUATE, evaluate

from .models import agrees, built, by_onnx, noise

X = noise(3, 4, 5)
WHOLE = np.array([7, -7, 8, -8, 2**62 + 1], np.int64)
BY = np.array([2, 2, -3, -3, 3], np.int64)
TRUTHS = np.array([True, False, True])


def whole(*n):
    return np.array(n, np.int64)


CASES = [
    ("Add", [X, noise(5)]), ("Sub", [X, noise(4, 1)]), ("Mul", [WHOLE, BY]), ("Div", [X, noise(5)]),
    ("Div", [WHOLE, BY]), ("Mod", [WHOLE, BY]), ("Mod", [WHOLE, BY], {"fmod": 1}),
    ("Mod", [X, noise(5)], {"fmod": 1}), ("Pow", [np.abs(X), np.float32(1.5)]),
    ("Pow", [whole(2, 3), whole(3)]), ("Max", [X, noise(5), noise(4, 5)]), ("Min", [X, noise(5)]),
    ("Sum", [X, noise(5), noise(1)]), ("Equal", [WHOLE, BY]), ("Greater", [WHOLE, BY]),
    ("Less", [WHOLE, BY]), ("GreaterOrEqual", [WHOLE, BY]), ("LessOrEqual", [WHOLE, BY]),
    ("And", [TRUTHS, ~TRUTHS]), ("Or", [TRUTHS, ~TRUTHS]), ("Not", [TRUTHS]), ("Neg", [X]),
    ("Abs", [X]), ("Exp", [X]), ("Log", [np.abs(X)]), ("Sqrt", [np.abs(X)]), ("Reciprocal", [X]),
    ("Floor", [X]), ("Ceil", [X]), ("Round", [np.float32([0.5, 1.5, -0.5])]), ("Identity", [X]),
    ("Cast", [X], {"to": TensorProto.INT64}), ("Cast", [WHOLE], {"to": TensorProto.FLOAT}),
    ("Cast", [X], {"to": TensorProto.BOOL}), ("CastLike", [X, WHOLE]), ("Shape", [X]),
    ("Shape", [X], {"start": -2}), ("Shape", [X], {"start": 1, "end": 2}), ("Size", [X]),
    ("Gather", [X, whole(2, 0)], {"axis": 1}), ("Gather", [X, np.int64(-1)]),
    ("Gather", [X, np.array([[0, 1], [2, 0]])], {"axis": -1}), ("Concat", [X, X], {"axis": -1}),
    ("Split", [X, whole(1, 3)], {"axis": 1}, 2), ("Split", [X], {"axis": 2, "num_outputs": 2}, 2),
    ("Slice", [X, whole(1), whole(-1), whole(-1)]),
    ("Slice", [X, whole(-1), whole(-(2**63)), whole(2), whole(-1)]),
    ("Slice", [X, whole(3, 0), whole(0, 2), whole(1, 0), whole(-2, 1)]),
    ("Slice", [WHOLE, whole(1), whole(2**63 - 1)]),
    ("Squeeze", [X[None, :, None], whole(0, -3)]), ("Squeeze", [X[None]]),
    ("Unsqueeze", [X, whole(0, -1)]), ("Reshape", [X, whole(0, -1)]), ("Flatten", [X], {"axis": 2}),
    ("Flatten", [X], {"axis": -1}), ("Flatten", [X], {"axis": 0}), ("Transpose", [X]),
    ("Transpose", [X], {"perm": [1, 2, 0]}), ("Expand", [noise(4, 1), whole(2, 1, 3)]),
    ("Tile", [noise(2, 3), whole(2, 3)]), ("Range", [np.int64(1), np.int64(9), np.int64(3)]),
    ("Range", [np.float32(5), np.float32(1), np.float32(-1.5)]), ("ConstantOfShape", [whole(2, 3)]),
    ("ConstantOfShape", [whole(2)], {"value": numpy_helper.from_array(np.array([7]))}),
    ("Where", [TRUTHS, noise(3), noise(2, 1)]), ("ReduceProd", [BY]),
    ("ReduceSum", [X, whole(0, 2)], {"keepdims": 0}), ("ReduceMax", [X, whole(-1)]),
    ("ReduceMin", [X]), ("ReduceMean", [X, whole(1)]), ("ReduceSum", [X, whole()]),
    ("ReduceSum", [X, whole()], {"noop_with_empty_axes": 1}),
    ("DequantizeLinear", [np.arange(8, dtype=np.int8).reshape(2, 4), noise(4), np.int8([1] * 4)]),
    ("DequantizeLinear", [np.arange(8, dtype=np.uint8).reshape(2, 4), noise(2)], {"axis": 0}),
    ("DequantizeLinear", [np.arange(8, dtype=np.uint8), np.float32(0.5), np.uint8(3)]),
]  # fmt: skip
NAMES = [f"{case[0]} {i}" for i, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_constants(case):
    op, inputs, attributes, count = (*case, *({}, 1)[len(case) - 2 :])
    names = [f"x{i}" for i in range(len(inputs))]
    outputs = [f"y{i}" for i in range(count)]
    node = helper.make_node(op, names, outputs, **attributes)
    info = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in zip(names, map(np.asarray, inputs), strict=True)
    ]
    made = [helper.make_tensor_value_info(n, 0, None) for n in outputs]
    model = helper.make_model(
        helper.make_graph([node], "g", info, made), opset_imports=[helper.make_opsetid("", 19)]
    )
    expected = by_onnx(model, dict(zip(names, inputs, strict=True)))
    if "value" in attributes:
        attributes = {"value": numpy_helper.to_array(attributes["value"])}
    for found, wanted in zip(evaluate(op, attributes, list(inputs), count), expected, strict=True):
        wanted = np.asarray(wanted)
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_every_operation_is_tried():
    assert {case[0] for case in CASES} == set(EVALUATE)


def test_what_cannot_be(tmp_path):
    huge = whole(1 << 40)
    for op, inputs, attributes in (
        ("ConstantOfShape", [huge], {}), ("Expand", [X, whole(1 << 20, 1 << 20, 1, 1, 1)], {}),
        ("Tile", [X, whole(1 << 20, 1 << 20, 1)], {}), ("Tile", [X, whole(2)], {}),
        ("Range", [np.int64(0), np.int64(1 << 60), np.int64(1)], {}),
        ("Range", [np.int64(0), np.int64(1), np.int64(0)], {}), ("Div", [WHOLE, WHOLE * 0], {}),
        ("Mod", [WHOLE, WHOLE * 0], {}), ("Reshape", [X, whole(7, -1)], {}),
        ("Gather", [X, huge], {}),
        ("Add", [X, noise(7)], {}), ("Cast", [X], {"to": TensorProto.STRING}), ("Gelu", [X], {}),
        ("ConstantOfShape", [whole(-1)], {}), ("Concat", [X, noise(2)], {"axis": 9}),
        ("Add", [np.zeros((1 << 14, 1)), np.zeros((1, 1 << 14))], {}),
        ("Pow", [whole(2), whole(-1)], {}), ("Squeeze", [X, whole(0)], {}),
    ):  # fmt: skip
        with pytest.raises(UnsupportedError):
            evaluate(op, attributes, inputs, 1)


def test_quantised_weights(tmp_path):
    """A weight that is kept as whole numbers becomes what they stand for."""
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"], axis=0),
        helper.make_node("Conv", ["image", "w"], ["y"]),
    ]
    q = np.random.default_rng(0).integers(-127, 127, (3, 2, 3, 3, 3)).astype(np.int8)
    scale = np.float32([0.01, 0.02, 0.03])
    constants = {"q": q, "scale": scale, "zero": np.int8([0, 1, -1])}
    agrees(built(nodes, {"image": (2, 5, 5, 5)}, constants=constants), tmp_path)
