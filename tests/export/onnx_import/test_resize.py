"""Resizing: every mode, coordinate and rounding, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from .models import BATCH, agrees, built, single

V = (4, 7, 6, 5)
P = (4, 7, 6)
S = (4, 9)
COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def whole(*n):
    return np.array(n, np.int64)


def resized(shape, *, scales=None, sizes=None, opset=13, **attributes):
    more = [np.float32(scales)] if scales is not None else [None, whole(*sizes)]
    none = np.zeros(0, np.float32)
    if opset == 11:  # what is not used is empty
        more = more if scales is not None else [none, more[1]]
    roi = none if opset == 11 else None
    return single("Resize", shape, roi, *more, opset=opset, batch=BATCH, **attributes)


@pytest.mark.parametrize("opset", [11, 13, 18, 19])
@pytest.mark.parametrize("where", COORDINATES)
def test_resizing_linearly(where, opset, tmp_path):
    more = {"mode": "linear", "coordinate_transformation_mode": where, "opset": opset}
    agrees(resized(V, scales=[1, 1, 2, 2, 2], **more), tmp_path)
    agrees(resized(V, scales=[1, 1, 1.7, 0.6, 1], **more), tmp_path)
    agrees(resized(V, sizes=[BATCH, 4, 9, 12, 4], **more), tmp_path)
    agrees(resized(P, scales=[1, 1, 2, 1.5], **more), tmp_path)
    agrees(resized(S, sizes=[BATCH, 4, 13], **more), tmp_path)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("where", COORDINATES)
def test_resizing_to_the_nearest(where, rounding, tmp_path):
    for opset in (11, 18):
        more = {"coordinate_transformation_mode": where, "nearest_mode": rounding, "opset": opset}
        agrees(resized(V, scales=[1, 1, 2, 3, 2], **more), tmp_path)
        agrees(resized(V, scales=[1, 1, 1.7, 0.6, 1], **more), tmp_path)
        agrees(resized(V, sizes=[BATCH, 4, 9, 12, 4], **more), tmp_path)
        agrees(resized(P, scales=[1, 1, 2, 0.5], **more), tmp_path)


def test_resizing_of_some_axes(tmp_path):
    more = {"mode": "linear", "opset": 18}
    agrees(resized(V, scales=[2, 1.5, 1], axes=[2, 3, 4], **more), tmp_path)
    agrees(resized(V, sizes=[9, 12], axes=[-1, 2], **more), tmp_path)
    agrees(resized(V, sizes=[9, 12, 3], axes=[2, 3, 4], opset=18), tmp_path)


def test_resizing_by_computed_sizes(tmp_path):
    """As torch writes an upsampling to the size of another value."""
    nodes = [
        helper.make_node("Shape", ["image"], ["all"]),
        helper.make_node("Slice", ["all", "two", "five"], ["voxels"]),
        helper.make_node("MaxPool", ["image"], ["small"], kernel_shape=[2] * 3, strides=[2] * 3),
        helper.make_node("Shape", ["small"], ["all small"]),
        helper.make_node("Slice", ["all small", "zero", "two"], ["channels"]),
        helper.make_node("Concat", ["channels", "voxels"], ["size"], axis=0),
        helper.make_node("Resize", ["small", "", "", "size"], ["large"], mode="linear"),
        helper.make_node("Concat", ["image", "large"], ["y"], axis=1),
    ]
    constants = {"zero": whole(0), "two": whole(2), "five": whole(5)}
    agrees(built(nodes, {"image": V}, constants=constants, opset=13), tmp_path)
