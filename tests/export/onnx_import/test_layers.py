"""Operations with weights, windows or statistics: every attribute, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from .models import agrees, built, by_onnx, by_onnxruntime, chain, noise, single

V = (4, 7, 6, 5)  # a volume, an image, a signal
P = (4, 7, 6)
S = (4, 9)
KERNELS = {
    "plain": (V, (6, 4, 3, 3, 3), {}),
    "asymmetric": (V, (6, 4, 3, 2, 1), {"pads": [1, 0, 0, 2, 1, 0]}),
    "padded, strided": (V, (6, 4, 3, 3, 3), {"pads": [1] * 6, "strides": [2, 1, 3]}),
    "dilated": (V, (6, 4, 3, 2, 2), {"dilations": [2, 3, 1], "pads": [2, 0, 1, 2, 0, 1]}),
    "in groups": (V, (6, 2, 3, 3, 3), {"group": 2, "pads": [1] * 6}),
    "depthwise": (V, (8, 1, 3, 3, 3), {"group": 4, "pads": [1] * 6}),
    "same upper": (V, (6, 4, 3, 2, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2, 1]}),
    "same lower": (V, (6, 4, 3, 2, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 3, 1]}),
    "valid": (V, (6, 4, 3, 2, 4), {"auto_pad": "VALID"}),
    "2D": (P, (6, 4, 3, 2), {"pads": [1, 0, 1, 1], "strides": [2, 1]}),
    "2D, same": (P, (6, 4, 3, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "1D": (S, (6, 4, 3), {"pads": [2, 0], "strides": [2]}),
    "1D, dilated": (S, (6, 4, 3), {"dilations": [3], "pads": [1, 2]}),
}


@pytest.mark.parametrize("name", KERNELS)
def test_convolutions(name, tmp_path):
    shape, weight, attributes = KERNELS[name]
    w, b = noise(*weight), noise(weight[0])
    agrees(single("Conv", shape, w, b, **attributes), tmp_path)
    agrees(single("Conv", shape, w, opset=11, kernel_shape=weight[2:], **attributes), tmp_path)


BACKWARDS = {
    "plain": (V, (4, 6, 3, 3, 3), {}),
    "twice": (V, (4, 6, 2, 2, 2), {"strides": [2, 2, 2]}),
    "padded": (V, (4, 6, 3, 4, 2), {"strides": [2, 2, 1], "pads": [1, 1, 0, 1, 1, 0]}),
    "asymmetric": (V, (4, 6, 3, 4, 3), {"strides": [2, 2, 1], "pads": [1, 0, 0, 0, 2, 1]}),
    "extra": (V, (4, 6, 3, 3, 3), {"strides": [2] * 3, "pads": [1] * 6, "output_padding": [1] * 3}),
    "in groups": (V, (4, 3, 3, 3, 3), {"group": 2, "strides": [2, 1, 2]}),
    "dilated": (V, (4, 2, 2, 3, 2), {"dilations": [2, 1, 3], "strides": [1, 2, 3]}),
    "to a size": (V, (4, 2, 3, 3, 3), {"strides": [2] * 3, "output_shape": [14, 12, 10]}),
    "to an odd size": (V, (4, 2, 4, 4, 4), {"strides": [2] * 3, "output_shape": [15, 13, 9]}),
    "to a size, lower": (V, (4, 2, 3, 3, 3), {
        "strides": [2] * 3, "output_shape": [14, 12, 10], "auto_pad": "SAME_LOWER"}),
    "to a size, upper": (V, (4, 2, 3, 3, 3), {
        "strides": [2] * 3, "output_shape": [14, 12, 10], "auto_pad": "SAME_UPPER"}),
    "same upper": (V, (4, 2, 4, 3, 3), {"strides": [2, 2, 3], "auto_pad": "SAME_UPPER"}),
    "same lower": (V, (4, 2, 4, 3, 3), {"strides": [2, 2, 3], "auto_pad": "SAME_LOWER"}),
    "valid": (V, (4, 2, 2, 3, 3), {"strides": [2, 2, 3], "auto_pad": "VALID"}),
    "2D": (P, (4, 6, 3, 2), {"strides": [2, 2], "pads": [1, 0, 0, 1]}),
    "1D": (S, (4, 6, 4), {"strides": [3], "pads": [1, 1]}),
}  # fmt: skip


@pytest.mark.parametrize("name", BACKWARDS)
def test_transposed_convolutions(name, tmp_path):
    shape, weight, attributes = BACKWARDS[name]
    w, b = noise(*weight), noise(weight[1] * attributes.get("group", 1))
    agrees(single("ConvTranspose", shape, w, b, **attributes), tmp_path)
    agrees(single("ConvTranspose", shape, w, opset=11, **attributes), tmp_path)


WINDOWS = {
    "plain": (V, {"kernel_shape": [2, 3, 1]}),
    "strided": (V, {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    "padded": (V, {"kernel_shape": [3, 3, 3], "strides": [2, 2, 1], "pads": [1] * 6}),
    "asymmetric": (
        V, {"kernel_shape": [3, 3, 3], "strides": [2, 1, 1], "pads": [1, 0, 0, 0, 1, 1]}),
    "one side": (V, {"kernel_shape": [3, 2, 3], "strides": [2, 2, 2], "pads": [0, 0, 1, 1, 1, 0]}),
    "same upper": (V, {"kernel_shape": [2, 3, 2], "strides": [2, 2, 2], "auto_pad": "SAME_UPPER"}),
    "same lower": (V, {"kernel_shape": [2, 3, 2], "strides": [2, 2, 2], "auto_pad": "SAME_LOWER"}),
    "valid": (V, {"kernel_shape": [2, 3, 2], "strides": [2, 2, 2], "auto_pad": "VALID"}),
    "rounded up": (V, {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2], "ceil_mode": 1}),
    "rounded up, padded": (
        V, {"kernel_shape": [3, 3, 3], "strides": [2, 2, 2], "pads": [1] * 6, "ceil_mode": 1}),
    "2D": (P, {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]}),
    "1D": (S, {"kernel_shape": [4], "strides": [3], "pads": [1, 1], "ceil_mode": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_pools(name, tmp_path):
    shape, attributes = WINDOWS[name]
    agrees(single("MaxPool", shape, opset=12, **attributes), tmp_path)
    agrees(single("AveragePool", shape, opset=11, **attributes), tmp_path)
    agrees(single("AveragePool", shape, opset=19, count_include_pad=1, **attributes), tmp_path)


def test_maxima_with_dilation(tmp_path):
    more = {"kernel_shape": [2, 3, 2], "dilations": [3, 2, 1], "strides": [1, 2, 2]}
    agrees(single("MaxPool", V, opset=11, **more), tmp_path)
    agrees(single("MaxPool", V, opset=22, pads=[1, 1, 0, 1, 1, 0], **more), tmp_path)


def test_a_pool_whose_last_window_starts_in_the_padding(tmp_path):
    """ONNX says that it counts, or not, by opset; ONNX Runtime leaves it out."""
    more = {"kernel_shape": [1, 1, 1], "strides": [2, 2, 2], "ceil_mode": 1}
    agrees(single("MaxPool", (2, 6, 5, 4), opset=12, **more), tmp_path)
    agrees(single("AveragePool", (2, 6, 5, 4), opset=19, **more), tmp_path)


@pytest.mark.parametrize("shape", [V, P, S])
@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pools(op, shape, tmp_path):
    agrees(single(op, shape, opset=11), tmp_path)
    agrees(chain(shape, ("Relu",), (op,), ("Flatten",)), tmp_path)


def test_special_numbers_in_windows(tmp_path):
    x = noise(2, 2, 5, 4, 6)
    x[0, 0, 1, 1, 2], x[0, 1, 2, 2, 2], x[1, 0, 4, 3, 5] = np.inf, -np.inf, -np.inf
    feeds = {"image": x}
    more = {"kernel_shape": [3, 3, 3], "pads": [1] * 6}
    agrees(single("MaxPool", x.shape[1:], **more), tmp_path, feeds=feeds)
    agrees(single("MaxPool", x.shape[1:], strides=[2, 2, 2], **more), tmp_path, feeds=feeds)
    agrees(single("AveragePool", x.shape[1:], **more), tmp_path, feeds=feeds)


def test_maxima_of_nothing_but_minus_infinity(tmp_path):
    """ONNX Runtime's are the lowest finite number."""
    feeds = {"image": np.full((1, 2, 3, 3, 3), -np.inf, np.float32)}
    uneven = {"kernel_shape": [2, 2, 2], "pads": [0, 0, 0, 1, 1, 1]}
    model = single("MaxPool", (2, 3, 3, 3), **uneven)
    agrees(model, tmp_path, feeds=feeds, reference=lambda model, feeds: [feeds["image"]])
    first = lambda model, feeds: [feeds["image"][:, :, :1, :1, :1]]  # noqa: E731
    agrees(single("GlobalMaxPool", (2, 3, 3, 3)), tmp_path, feeds=feeds, reference=first)


@pytest.mark.parametrize("opset", [11, 14, 15, 23])
@pytest.mark.parametrize("shape", [V, P, S, (4,)])
def test_batch_norm(opset, shape, tmp_path):
    arrays = [noise(4), noise(4), noise(4), np.abs(noise(4)) + 0.1]
    agrees(single("BatchNormalization", shape, *arrays, opset=opset, epsilon=1e-3), tmp_path)
    model = chain(shape, ("Relu",), ("BatchNormalization", arrays, {"momentum": 0.5}), opset=opset)
    agrees(model, tmp_path)


@pytest.mark.parametrize("shape", [V, P, S])
def test_instance_norm(shape, tmp_path):
    agrees(single("InstanceNormalization", shape, noise(4), noise(4), epsilon=1e-2), tmp_path)


@pytest.mark.parametrize("shape", [V, P, S])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm(groups, shape, tmp_path):
    scales = {18: groups, 21: 4, 23: 4}
    for opset, n in scales.items():
        model = single(
            "GroupNormalization", shape, noise(n), noise(n), opset=opset, num_groups=groups
        )
        # Before opset 21, ONNX Runtime has no kernel of its own.
        agrees(model, tmp_path, reference=by_onnx if opset < 21 else by_onnxruntime)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm_as_torch_writes_it(groups, tmp_path):
    steps = [
        ("Reshape", [np.array([0, groups, -1])]),
        ("InstanceNormalization", [np.ones(groups, np.float32), np.zeros(groups, np.float32)]),
        ("Reshape", [np.array([0, *V])]),
        ("Mul", [noise(4, 1, 1, 1)]),
        ("Add", [noise(4, 1, 1, 1)]),
    ]
    graph = agrees(chain(V, *steps, opset=13), tmp_path)
    assert "group_norm" in [node.op for node in graph.nodes]


@pytest.mark.parametrize("opset", [17, 23])
def test_layer_norm(opset, tmp_path):
    agrees(single("LayerNormalization", (6,), noise(6), noise(6), opset=opset), tmp_path)
    more = {"axis": -1, "epsilon": 1e-2}
    agrees(single("LayerNormalization", (6,), noise(6), opset=opset, **more), tmp_path)
    everything = np.ones(V, np.float32), np.zeros(V, np.float32)
    agrees(single("LayerNormalization", V, *everything, opset=opset, axis=1), tmp_path)
    last = [
        ("Transpose", [], {"perm": [0, 2, 3, 4, 1]}),
        ("LayerNormalization", [noise(4), noise(4)], {"axis": -1}),
        ("Transpose", [], {"perm": [0, 4, 1, 2, 3]}),
    ]
    agrees(chain(V, *last, opset=opset), tmp_path)
    ones = np.ones((4, 1, 1, 1), np.float32)
    agrees(single("LayerNormalization", (4, 1, 1, 1), ones, opset=opset, axis=-4), tmp_path)


@pytest.mark.parametrize("opset", [11, 13])
def test_gemm(opset, tmp_path):
    agrees(single("Gemm", (5,), noise(5, 3), noise(3), opset=opset), tmp_path)
    agrees(single("Gemm", (5,), noise(5, 3), opset=opset), tmp_path)
    turned = {"transB": 1, "alpha": 0.5, "beta": -2.0}
    agrees(single("Gemm", (5,), noise(3, 5), noise(3), opset=opset, **turned), tmp_path)
    agrees(single("Gemm", (5,), noise(5, 3), noise(1, 3), opset=opset), tmp_path)
    agrees(single("Gemm", (5,), noise(5, 3), noise(1), opset=opset), tmp_path)
    agrees(single("Gemm", (5,), noise(5, 3), np.float32(0.3), opset=opset), tmp_path)
    agrees(chain(V, ("Flatten",), ("Gemm", [noise(840, 3)]), opset=opset), tmp_path)


def test_matmul(tmp_path):
    agrees(single("MatMul", (5,), noise(5, 3)), tmp_path)
    agrees(chain((5,), ("MatMul", [noise(5, 3)]), ("Add", [noise(3)])), tmp_path)
    last = ("Transpose", [], {"perm": [0, 2, 3, 4, 1]})
    steps = [last, ("MatMul", [noise(4, 9)]), ("Add", [noise(9)]), ("MatMul", [noise(9, 2)])]
    agrees(chain(V, *steps), tmp_path)
    agrees(chain(V, last, ("Flatten",), ("MatMul", [noise(840, 2)])), tmp_path)


def test_layers_of_which_parts_are_computed(tmp_path):
    """A bias as a constant node, a weight behind a cast, an identity, a transposition."""
    w, b = noise(6, 4, 3, 3, 3), noise(6)
    nodes = [
        helper.make_node("Constant", [], ["b"], value_floats=b.tolist()),
        helper.make_node("Cast", ["half"], ["single"], to=1),
        helper.make_node("Transpose", ["single"], ["w"], perm=[4, 3, 0, 1, 2]),
        helper.make_node("Conv", ["image", "w", "b"], ["y"]),
    ]
    turned = np.transpose(w, (2, 3, 4, 1, 0)).astype(np.float16)
    agrees(built(nodes, {"image": V}, constants={"half": turned}), tmp_path)
