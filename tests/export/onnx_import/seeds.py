"""Small networks that together hold every operation: what the fuzzer starts from."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .models import built, noise

node = helper.make_node
V = (2, 6, 5, 4)


def whole(*n):
    return np.array(n, np.int64)


def segmentation() -> onnx.ModelProto:
    """Down and up again, with what lies beside; normalised, and a class for each voxel."""
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], pads=[1] * 6),
        node("BatchNormalization", ["c1", "b1", "b1", "b1", "var"], ["n1"], epsilon=1e-3),
        node("LeakyRelu", ["n1"], ["r1"], alpha=0.1),
        node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2, 2], strides=[2, 2, 2], ceil_mode=1),
        node("Conv", ["p1", "w2"], ["c2"], auto_pad="SAME_UPPER", group=2),
        node("PRelu", ["c2", "slope"], ["r2"]),
        node("ConvTranspose", ["r2", "w3"], ["u"], strides=[2, 2, 2]),
        node("Slice", ["u", "zero3", "ends", "voxels"], ["cut"]),
        node("Concat", ["cut", "r1"], ["both"], axis=1),
        node("Conv", ["both", "w4"], ["c4"]),
        node("Softmax", ["c4"], ["y"], axis=1),
    ]
    constants = {
        "w1": noise(4, 2, 3, 3, 3), "b1": noise(4), "var": np.abs(noise(4)) + 0.1,
        "w2": noise(4, 2, 3, 1, 3), "slope": noise(4, 1, 1, 1), "w3": noise(4, 3, 2, 2, 2),
        "zero3": whole(0, 0, 0), "ends": whole(*V[1:]), "voxels": whole(2, 3, 4),
        "w4": 0.1 * noise(3, 7, 1, 1, 1),
    }  # fmt: skip
    return built(nodes, {"image": V}, ["y"], constants, 13)


def classification() -> onnx.ModelProto:
    """A gate of channels, pooling, a head with a table beside the image."""
    nodes = [
        node("Conv", ["image", "w1"], ["c1"], strides=[1, 2, 1], dilations=[2, 1, 1]),
        node("GlobalAveragePool", ["c1"], ["g"]),
        node("HardSigmoid", ["g"], ["s"], alpha=1 / 6, beta=0.5),
        node("Mul", ["c1", "s"], ["m"]),
        node("AveragePool", ["m"], ["p"], kernel_shape=[2] * 3, pads=[0, 0, 0, 1, 1, 1]),
        node("GlobalMaxPool", ["p"], ["most"]),
        node("Flatten", ["most"], ["f"]),
        node("Concat", ["f", "table"], ["joined"], axis=-1),
        node("Gemm", ["joined", "w2", "b2"], ["h"], transB=1, alpha=0.5),
        node("Clip", ["h", "low", "high"], ["k"]),
        node("MatMul", ["k", "w3"], ["l"]),
        node("LogSoftmax", ["l"], ["y"]),
    ]
    constants = {
        "w1": noise(4, 2, 2, 3, 3), "w2": noise(6, 7), "b2": noise(6), "low": np.float32(-1),
        "high": np.float32(2), "w3": noise(6, 3),
    }  # fmt: skip
    return built(nodes, {"image": V, "table": (3,)}, ["y"], constants, 13)


def norms() -> onnx.ModelProto:
    """Every normalisation, and channels last in between."""
    nodes = [
        node("InstanceNormalization", ["image", "six", "six"], ["a"]),
        node("GroupNormalization", ["a", "six", "six"], ["b"], num_groups=2),
        node("Transpose", ["b"], ["t"], perm=[0, 2, 3, 4, 1]),
        node("LayerNormalization", ["t", "six", "six"], ["c"], axis=-1),
        node("MatMul", ["c", "w"], ["d"]),
        node("Gelu", ["d"], ["e"], approximate="tanh"),
        node("Transpose", ["e"], ["y"], perm=[0, 4, 1, 2, 3]),
    ]
    return built(nodes, {"image": (6, 3, 5, 4)}, ["y"], {"six": noise(6), "w": noise(6, 3)}, 21)


def shapes() -> onnx.ModelProto:
    """Shapes that are computed, and parts."""
    nodes = [
        node("Relu", ["image"], ["r"]),
        node("Shape", ["r"], ["s"]),
        node("Gather", ["s", "zero"], ["b"], axis=0),
        node("Unsqueeze", ["b", "first"], ["bs"]),
        node("Concat", ["bs", "rest"], ["shape"], axis=0),
        node("Reshape", ["r", "shape"], ["split"]),
        node("Transpose", ["split"], ["turned"], perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "back"], ["again"], allowzero=0),
        node("Pad", ["again", "widths", "value"], ["padded"]),
        node("Pad", ["padded", "more", "", "along"], ["edges"], mode="reflect"),
        node("Split", ["edges", "sizes"], ["one", "two"], axis=1),
        node("Slice", ["two", "from", "to", "along", "by"], ["part"]),
        node("Unsqueeze", ["part", "along"], ["wide"]),
        node("Squeeze", ["wide", "along"], ["narrow"]),
        node("Gather", ["one", "zero"], ["plane"], axis=4),
        node("Expand", ["plane", "grown"], ["z"]),
        node("Flatten", ["narrow"], ["y"]),
    ]
    constants = {
        "zero": np.int64(0), "first": whole(0), "rest": whole(1, 2, -1), "back": whole(0, *V),
        "widths": whole(0, 0, 1, 0, -1, 0, 0, 2, 1, 0), "value": np.float32(0.5),
        "more": whole(1, 1), "along": whole(3), "sizes": whole(1, 1), "from": whole(1),
        "to": whole(2**63 - 1), "by": whole(2), "grown": whole(1, 1, 1, 1),
    }  # fmt: skip
    return built(nodes, {"image": V}, ["y", "z"], constants, 18)


def resizes() -> onnx.ModelProto:
    """By factors and to sizes."""
    nodes = [
        node("Resize", ["image", "", "factors"], ["a"], mode="linear"),
        node("Resize", ["a", "", "", "sizes"], ["b"], axes=[2, 3, 4], nearest_mode="floor",
             coordinate_transformation_mode="asymmetric"),
        node("Resize", ["b", "", "halves"], ["y"], mode="linear", axes=[3],
             coordinate_transformation_mode="align_corners"),
    ]  # fmt: skip
    constants = {
        "factors": np.float32([1, 1, 2, 1.5, 1]), "sizes": whole(5, 9, 7),
        "halves": np.float32([0.5]),
    }  # fmt: skip
    return built(nodes, {"image": V}, ["y"], constants, 19)


def arithmetic() -> onnx.ModelProto:
    """Of values and constants, number by number."""
    steps = [
        "Relu", "Sigmoid", "Tanh", "Softplus", "Mish", "HardSwish", "Abs", "Erf", "Elu", "Selu",
        "Celu", "Neg", "Identity",
    ]  # fmt: skip
    nodes = [node(op, [f"x{i}" if i else "image"], [f"x{i + 1}"]) for i, op in enumerate(steps)]
    last = f"x{len(steps)}"
    nodes += [
        node("Add", [last, "each"], ["a"]), node("Sub", ["a", "image"], ["b"]),
        node("Mul", ["b", "half"], ["c"]), node("Exp", ["c"], ["d"]), node("Log", ["d"], ["e"]),
        node("Sqrt", ["d"], ["f"]), node("Reciprocal", ["d"], ["g"]),
        node("Div", ["e", "d"], ["h"]),
        node("Max", ["h", "f", "half"], ["i"]), node("Min", ["i", "g"], ["j"]),
        node("Pow", ["d", "half"], ["k"]), node("Sum", ["j", "k", "b"], ["l"]),
        node("Mean", ["l", "a"], ["y"]),
    ]  # fmt: skip
    constants = {"each": noise(2, 1, 1, 1), "half": np.float32(0.5)}
    return built(nodes, {"image": V}, ["y"], constants, 18)


def reductions() -> onnx.ModelProto:
    """Over voxels, channels, and everything."""
    nodes = [
        node("ReduceMean", ["image", "voxels"], ["a"], keepdims=1),
        node("ReduceMax", ["image", "channels"], ["b"]),
        node("ReduceSum", ["image", "along"], ["c"]),
        node("ReduceL2", ["image", "voxels"], ["d"]),
        node("ReduceMin", ["image", "channels"], ["e"]),
        node("ReduceL1", ["image", "voxels"], ["f"]),
        node("ReduceSumSquare", ["image", "channels"], ["g"]),
        node("Add", ["a", "b"], ["h"]), node("Add", ["h", "c"], ["i"]),
        node("Add", ["i", "d"], ["j"]), node("Add", ["j", "e"], ["k"]),
        node("Add", ["k", "f"], ["l"]), node("Add", ["l", "g"], ["y"]),
        node("ReduceMean", ["y", "all"], ["z"], keepdims=0),
    ]  # fmt: skip
    constants = {
        "voxels": whole(2, 3, 4), "channels": whole(1), "along": whole(-1),
        "all": whole(1, 2, 3, 4),
    }  # fmt: skip
    return built(nodes, {"image": V}, ["y", "z"], constants, 18)


def channels_last() -> onnx.ModelProto:
    """An image, as Keras has it."""
    nodes = [
        node("Transpose", ["image"], ["first"], perm=[0, 3, 1, 2]),
        node("Conv", ["first", "w"], ["c"], auto_pad="SAME_LOWER", strides=[2, 2]),
        node("ConvTranspose", ["c", "w2"], ["u"], auto_pad="SAME_UPPER", strides=[2, 1]),
        node("AveragePool", ["u"], ["p"], kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
        node("Transpose", ["p"], ["last"], perm=[0, 2, 3, 1]),
        node("Add", ["last", "b"], ["y"]),
        node("ReduceMean", ["y"], ["z"], axes=[1, 2], keepdims=0),
    ]
    constants = {"w": noise(3, 2, 3, 3), "w2": noise(3, 4, 2, 2), "b": noise(4)}
    return built(nodes, {"image": (7, 6, 2)}, ["y", "z"], constants, 13)


def functions() -> onnx.ModelProto:
    """A function of its own, constants in nodes, and what does nothing."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    body = [node("Sigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["b"])]
    gate = helper.make_function("own", "Gate", ["a"], ["b"], body, imports)
    nodes = [
        node("Gate", ["image"], ["g"], domain="own"),
        node("Constant", [], ["k"], value_floats=[0.5, 2.0]),
        node("Constant", [], ["ints"], value=numpy_helper.from_array(whole(1, 2, 1, 1, 1))),
        node("Reshape", ["k", "ints"], ["kk"]),
        node("Mul", ["g", "kk"], ["m"]),
        node("Dropout", ["m"], ["d"]),
        node("Cast", ["d"], ["e"], to=1),
        node("CastLike", ["e", "k"], ["y"]),
    ]
    model = built(nodes, {"image": V}, ["y"], None, 17, functions=[gate])
    model.opset_import.append(imports[1])
    return model


def constants() -> onnx.ModelProto:
    """Weights that are computed first, in every way."""
    nodes = [
        node("DequantizeLinear", ["q", "scale", "zero"], ["w0"], axis=0),
        node("Cast", ["half"], ["h"], to=1), node("Transpose", ["h"], ["ht"], perm=[4, 3, 2, 1, 0]),
        node("Add", ["w0", "ht"], ["w1"]), node("ConstantOfShape", ["n"], ["ones"]),
        node("Range", ["a", "b", "c"], ["r"]), node("Tile", ["r", "n1"], ["tiled"]),
        node("Cast", ["tiled"], ["f"], to=1), node("Add", ["f", "ones"], ["sum"]),
        node("Equal", ["r", "r"], ["same"]), node("Where", ["same", "sum", "ones"], ["chosen"]),
        node("ReduceProd", ["r"], ["p"], keepdims=0), node("Mod", ["p", "b"], ["mod"]),
        node("Cast", ["mod"], ["modf"], to=1), node("Div", ["chosen", "two"], ["halved"]),
        node("Add", ["halved", "modf"], ["bias"]), node("Size", ["bias"], ["size"]),
        node("Expand", ["w1", "shape"], ["w2"]), node("Floor", ["w2"], ["w3"]),
        node("Max", ["w3", "w2", "w1"], ["w"]), node("Conv", ["image", "w", "bias"], ["y"]),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    held = {
        "q": rng.integers(-127, 127, (3, 2, 1, 2, 2)).astype(np.int8), "n": whole(3),
        "scale": np.float32([0.01, 0.02, 0.03]), "zero": np.int8([0, 1, -1]), "n1": whole(1),
        "half": rng.standard_normal((2, 2, 1, 2, 3)).astype(np.float16), "a": np.int64(1),
        "b": np.int64(4), "c": np.int64(1), "two": np.float32(2), "shape": whole(3, 2, 1, 2, 2),
    }  # fmt: skip
    return built(nodes, {"image": V}, ["y"], held, 13)


SEEDS = (
    segmentation, classification, norms, shapes, resizes, arithmetic, reductions, channels_last,
    functions, constants,
)  # fmt: skip
