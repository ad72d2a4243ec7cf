"""Shapes, parts, and margins: every variant, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from .models import agrees, built, chain, noise, single

V = (4, 7, 6, 5)
P = (4, 7, 6)
S = (4, 9)
LAST, FIRST = (
    ("Transpose", [], {"perm": [0, 2, 3, 4, 1]}),
    ("Transpose", [], {"perm": [0, 4, 1, 2, 3]}),
)


def whole(*n):
    return np.array(n, np.int64)


def test_reshape(tmp_path):
    for opset in (11, 14):
        agrees(single("Reshape", V, whole(0, -1), opset=opset), tmp_path)
        agrees(single("Reshape", V, whole(-1, 840), opset=opset), tmp_path)
        agrees(single("Reshape", V, whole(0, 0, -1), opset=opset), tmp_path)
        agrees(single("Reshape", V, whole(0, 2, 2, 7, 30), opset=opset), tmp_path)
        agrees(single("Reshape", (24,), whole(-1, 2, 3, 2, 2), opset=opset), tmp_path)
    agrees(single("Reshape", V, whole(-1, 840), allowzero=1), tmp_path)
    agrees(
        chain(V, ("Relu",), ("Reshape", [whole(0, 0, -1)]), ("Reshape", [whole(0, *V)])), tmp_path
    )


def test_flatten(tmp_path):
    for shape in (V, S, (4,), (4, 1, 1, 1)):
        agrees(single("Flatten", shape, opset=11), tmp_path)
        agrees(single("Flatten", shape, axis=1), tmp_path)
    agrees(single("Flatten", V, axis=-4), tmp_path)
    agrees(chain(V, LAST, ("Flatten",)), tmp_path)


def test_transpose(tmp_path):
    agrees(single("Transpose", V, perm=[0, 1, 4, 3, 2]), tmp_path)
    agrees(single("Transpose", V, perm=[0, 3, 2, 1, 4]), tmp_path)
    agrees(single("Transpose", P, perm=[0, 1, 3, 2]), tmp_path)
    agrees(single("Transpose", P, perm=[0, 2, 3, 1]), tmp_path)
    agrees(chain(V, LAST, ("Relu",), FIRST), tmp_path)
    # Channels that are shuffled between groups.
    shuffled = [
        ("Reshape", [whole(0, 2, 2, 7, 6, 5)]),
        ("Transpose", [], {"perm": [0, 2, 1, 3, 4, 5]}),
        ("Reshape", [whole(0, *V)]),
        ("Conv", [noise(3, 4, 1, 1, 1)]),
    ]
    agrees(chain(V, *shuffled), tmp_path)


def test_squeeze_and_unsqueeze(tmp_path):
    one = (4, 1, 6, 1)
    for model in (
        single("Squeeze", one, axes=[2], opset=11),
        single("Squeeze", one, axes=[-1, 2], opset=12),
        single("Squeeze", one, whole(2, 4), opset=13),
        single("Squeeze", one, whole(-1), opset=21),
        single("Unsqueeze", P, axes=[2], opset=11),
        single("Unsqueeze", S, axes=[4, 2], opset=12),
        single("Unsqueeze", P, whole(-1), opset=13),
        single("Unsqueeze", S, whole(-1, 2), opset=21),
        chain((4, 1, 1, 1), ("Squeeze", [whole(2, 3, 4)]), ("Gemm", [noise(4, 2)])),
        chain((4,), ("Unsqueeze", [whole(2, 3, 4)]), ("Conv", [noise(2, 4, 1, 1, 1)])),
    ):
        agrees(model, tmp_path)


def test_squeeze_of_all_axes_keeps_the_batch(tmp_path):
    agrees(single("Squeeze", (4, 1, 6, 1), opset=13), tmp_path)


def test_expand(tmp_path):
    agrees(single("Expand", (4, 1, 1, 1), whole(1, 4, 3, 5, 2)), tmp_path)
    agrees(single("Expand", (4, 1, 6, 1), whole(7, 1, 5)), tmp_path)
    agrees(single("Expand", V, whole(1)), tmp_path)


def test_concat(tmp_path):
    def joined(shapes, axis, opset=13):
        names = [f"x{i}" for i in range(len(shapes))]
        nodes = [helper.make_node("Concat", names, ["y"], axis=axis)]
        return built(nodes, dict(zip(names, shapes, strict=True)), opset=opset)

    agrees(joined([V, (3, 7, 6, 5)], 1), tmp_path)
    agrees(joined([V, V, (1, 7, 6, 5)], -4, 11), tmp_path)
    agrees(joined([P, P], 1), tmp_path)
    agrees(joined([(4,), (3,)], 1), tmp_path)
    agrees(joined([(4,), (3,)], -1), tmp_path)
    agrees(joined([V], 1), tmp_path)
    twice = [helper.make_node("Concat", ["image", "image"], ["y"], axis=1)]
    agrees(built(twice, {"image": V}), tmp_path)
    last = [
        helper.make_node("Transpose", ["image"], ["a"], perm=[0, 2, 3, 4, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["y"], axis=-1),
    ]
    agrees(built(last, {"image": V}), tmp_path)


SPLITS = [
    ("sizes, opset 11", 11, {"axis": 1, "split": [1, 3]}, None, 2),
    ("equal, opset 11", 11, {"axis": 1}, None, 2),
    ("sizes, opset 13", 13, {"axis": -4}, [3, 1], 2),
    ("equal, opset 13", 13, {"axis": 1}, None, 4),
    ("sizes, opset 18", 18, {"axis": 1}, [1, 1, 2], 3),
    ("equal, opset 18", 18, {"axis": 1, "num_outputs": 2}, None, 2),
    ("uneven, opset 18", 18, {"axis": 1, "num_outputs": 3}, None, 3),
    ("voxels", 13, {"axis": 2}, [3, 4], 2),
]


@pytest.mark.parametrize(("opset", "more", "sizes", "count"), [s[1:] for s in SPLITS],
                         ids=[s[0] for s in SPLITS])  # fmt: skip
def test_split(opset, more, sizes, count, tmp_path):
    constants = [] if sizes is None else [whole(*sizes)]
    names = [f"y{i}" for i in range(count)]
    shape = (5, 7, 6, 5) if "num_outputs" in more and count == 3 else V
    agrees(single("Split", shape, *constants, opset=opset, outputs=names, **more), tmp_path)


SLICES = {
    "channels": ([1], [3], [1], None),
    "from behind": ([-3], [-1], [1], None),
    "to the end": ([1], [2**63 - 1], [-4], None),
    "voxels": ([1, 0, 2], [-1, 4, 2**31], [2, 3, 4], None),
    "every second": ([1, 0], [7, 6], [2, 3], [2, 2]),
    "too far": ([-100], [100], [2], [1]),
    "everything": ([0, 0], [2**63 - 1, 2**63 - 1], [1, 4], [1, 1]),
    "one": ([2], [3], [3], None),
    "the batch, whole": ([0, 0], [2**63 - 1, 2], [0, 1], [1, 1]),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices(name, tmp_path):
    parts = [None if n is None else whole(*n) for n in SLICES[name]]
    agrees(single("Slice", V, *parts, opset=11), tmp_path)
    agrees(chain(V, ("Relu",), ("Slice", parts), opset=13), tmp_path)


def test_slices_without_axes_and_of_vectors(tmp_path):
    agrees(single("Slice", V, whole(0, 1), whole(100, 3)), tmp_path)
    agrees(single("Slice", (9,), whole(2), whole(7), whole(1)), tmp_path)
    agrees(single("Slice", S, np.int32([1]), np.int32([8]), np.int32([2]), np.int32([3])), tmp_path)


def test_gather(tmp_path):
    agrees(single("Gather", V, np.int64(2), axis=1), tmp_path)
    agrees(single("Gather", V, np.int64(-1), axis=-1), tmp_path)
    agrees(single("Gather", V, whole(1, 2), axis=1), tmp_path)
    agrees(single("Gather", (9,), whole(3), axis=1), tmp_path)


PADS = {
    "constant": ([0, 0, 1, 0, 2, 0, 0, 0, 3, 1], np.float32(2.5)),
    "zeros": ([0, 0, 1, 1, 1, 0, 0, 1, 1, 1], None),
    "cut off": ([0, 0, -1, 0, 2, 0, 0, 0, -2, 1], np.float32(-1)),
    "nothing": ([0] * 10, None),
}


@pytest.mark.parametrize("name", PADS)
def test_pads(name, tmp_path):
    widths, value = PADS[name]
    constants = [whole(*widths)] if value is None else [whole(*widths), value]
    for opset in (11, 13, 18):
        agrees(single("Pad", V, *constants, opset=opset), tmp_path)
    agrees(chain(V, ("Relu",), ("Pad", constants), ("Conv", [noise(2, 4, 3, 3, 3)])), tmp_path)


@pytest.mark.parametrize("mode", ["edge", "reflect"])
def test_pads_of_the_border(mode, tmp_path):
    agrees(single("Pad", V, whole(0, 0, 1, 0, 2, 0, 0, 3, 1, 0), mode=mode), tmp_path)
    agrees(single("Pad", P, whole(0, 0, 1, 2, 0, 0, 3, 0), mode=mode, opset=11), tmp_path)
    agrees(single("Pad", S, whole(0, 0, 1, 0, 0, 3), mode=mode), tmp_path)


def test_pads_of_some_axes(tmp_path):
    agrees(single("Pad", V, whole(1, 2, 0, 3), np.float32(1), whole(2, 4)), tmp_path)
    agrees(single("Pad", V, whole(1, 2), None, whole(-1)), tmp_path)
    agrees(single("Pad", V, whole(1, 2), None, whole(-2), mode="edge"), tmp_path)


def test_a_shape_in_the_middle_of_a_network(tmp_path):
    """As Keras and older torch write a flatten."""
    nodes = [
        helper.make_node("Relu", ["image"], ["r"]),
        helper.make_node("Shape", ["r"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["b"], axis=0),
        helper.make_node("Unsqueeze", ["b", "zeros"], ["bs"]),
        helper.make_node("Concat", ["bs", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["r", "shape"], ["y"]),
    ]
    constants = {"zero": np.int64(0), "zeros": whole(0), "rest": whole(-1)}
    agrees(built(nodes, {"image": V}, constants=constants), tmp_path)


def test_casts_that_change_nothing(tmp_path):
    agrees(chain(V, ("Cast", [], {"to": 1}), ("Dropout",), opset=13), tmp_path)
    agrees(chain(V, ("Dropout", [], {"ratio": 0.2}), ("Relu",), opset=11), tmp_path)
    agrees(single("Dropout", V, np.float32(0.5), np.array(False), opset=13), tmp_path)
    agrees(single("CastLike", V, np.float32(0.5), opset=15), tmp_path)


def test_special_numbers_stay_where_they_are(tmp_path):
    """What is moved, cut out, repeated or surrounded keeps NaN and infinities."""
    x = noise(3, 2, 4, 5, 3)
    x[0, 0, 1, 2, 0], x[1, 1, 3, 4, 2], x[2, 0, 0, 0, 0] = np.nan, np.inf, -np.inf
    for model in (
        single("Pad", x.shape[1:], whole(0, 0, 1, 0, 2, 0, 0, 1, 1, 0), mode="reflect"),
        single("Pad", x.shape[1:], whole(0, 0, 1, 0, -1, 0, 0, 1, 1, 0), np.float32(2)),
        single("Slice", x.shape[1:], whole(1, 0), whole(4, 5), whole(2, 3), whole(2, 2)),
        single("Resize", x.shape[1:], None, np.float32([1, 1, 2, 1.5, 0.5]), mode="nearest"),
        single("Expand", x.shape[1:], whole(1)),
        single("Transpose", x.shape[1:], perm=[0, 1, 4, 2, 3]),
        single("ReduceMax", x.shape[1:], whole(1)),
        single("GlobalAveragePool", x.shape[1:]),
    ):
        agrees(model, tmp_path, feeds={"image": x})
