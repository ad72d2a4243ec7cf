"""What a file is, whatever it does: inputs, outputs, names, types, other files, functions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.onnx_import.read import read_onnx

from .models import (
    agrees,
    built,
    by_onnxruntime,
    chain,
    difference,
    in_float64,
    natively,
    noise,
    saved,
    single,
)

V = (2, 5, 6, 4)
CONV = noise(3, 2, 3, 3, 3)
node = helper.make_node


def small(*, opset=18, weight=CONV, **more):
    """A convolution whose weight is the constant `w`."""
    nodes = [node("Conv", ["image", "w"], ["y"], name="first")]
    return built(nodes, {"image": V}, constants={"w": weight}, opset=opset, **more)


@pytest.mark.parametrize("opset", range(11, 24))
def test_every_opset(opset, tmp_path):
    graph = agrees(small(opset=opset), tmp_path)
    assert [n.op for n in graph.nodes] == ["conv"]
    assert graph.nodes[0].layer == "first"
    assert graph.inputs == {"image": V}


def test_a_batch_that_is_fixed_is_free_afterwards(tmp_path):
    """As torch writes it without dynamic axes; the graph takes any."""
    model = chain(V, ("Relu",), ("Reshape", [np.array([1, -1])]), ("MatMul", [noise(240, 2)]))
    for item in model.graph.input:
        item.type.tensor_type.shape.dim[0].dim_value = 1
    graph = read_onnx(saved(model, tmp_path))
    x = noise(3, *V)
    expected = np.concatenate([by_onnxruntime(model, {"image": row[None]})[0] for row in x])
    for found in (in_float64(graph, {"image": x}), natively(graph, {"image": x})):
        assert difference(found[0], expected) < 5e-6


def test_open_shapes_are_given(tmp_path):
    model = small()
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "dhw", strict=True):
        dim.dim_param = name
    graph = agrees(model, tmp_path, shapes={"image": V})
    assert graph.inputs == {"image": V}
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert agrees(model, tmp_path, shapes={"image": V}).inputs == {"image": V}


def test_several_inputs_and_outputs_with_names_of_any_kind(tmp_path):
    """Some look like those that the graph gives to what has no name for it."""
    nodes = [
        node("Conv", ["v1", "w"], ["v0"]),
        node("Sigmoid", ["v0"], ["v2/out:0"]),
        node("MatMul", ["a table", "m"], ["v3"]),
        node("Unsqueeze", ["v3", "axes"], ["v4"]),
        node("Mul", ["v0", "v4"], ["v5"]),
        node("Relu", ["v5"], ["v6"]),
    ]
    constants = {"w": CONV, "m": noise(4, 3), "axes": np.array([2, 3, 4])}
    outputs = ["v6", "v0", "v2/out:0", "v3"]
    graph = agrees(built(nodes, {"v1": V, "a table": (4,)}, outputs, constants), tmp_path)
    assert graph.outputs == outputs
    assert list(graph.inputs) == ["v1", "a table"]


def test_one_value_under_several_names(tmp_path):
    nodes = [
        node("Relu", ["image"], ["r"]),
        node("Identity", ["r"], ["a"]),
        node("Identity", ["r"], ["b"]),
        node("Flatten", ["r"], ["c"]),
        node("Transpose", ["r"], ["d"], perm=[0, 2, 3, 4, 1]),
        node("Identity", ["image"], ["e"]),
    ]
    agrees(built(nodes, {"image": V}, list("abcde")), tmp_path)


def test_channels_last(tmp_path):
    """As Keras has them: nothing is moved, and callers keep their order."""
    front, back = [0, 4, 1, 2, 3], [0, 2, 3, 4, 1]
    nodes = [
        node("Transpose", ["x"], ["first"], perm=front),
        node("Conv", ["first", "w"], ["c"], pads=[1] * 6),
        node("Transpose", ["c"], ["last"], perm=back),
        node("Add", ["last", "bias"], ["biased"]),
        node("Relu", ["biased"], ["y"]),
        node("ReduceMean", ["y"], ["z"], axes=[1, 2, 3], keepdims=0),
    ]
    constants = {"w": CONV, "bias": noise(3)}
    graph = agrees(built(nodes, {"x": (5, 6, 4, 2)}, ["y", "z"], constants, 13), tmp_path)
    assert graph.last == {"x", "y"}
    assert not {"transpose"} & {n.op for n in graph.nodes}


def test_channels_last_of_images(tmp_path):
    nodes = [
        node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2]),
        node("Conv", ["first", "w"], ["c"]),
        node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 1]),
    ]
    graph = agrees(built(nodes, {"x": (5, 6, 2)}, constants={"w": noise(3, 2, 3, 3)}), tmp_path)
    assert graph.last == {"x", "y"}


def test_an_input_that_is_read_as_it_is_too(tmp_path):
    nodes = [
        node("Transpose", ["x"], ["first"], perm=[0, 4, 1, 2, 3]),
        node("Relu", ["x"], ["r"]),
        node("Transpose", ["r"], ["second"], perm=[0, 4, 1, 2, 3]),
        node("Add", ["first", "second"], ["y"]),
    ]
    agrees(built(nodes, {"x": (5, 6, 4, 2)}), tmp_path)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_narrow_and_wide_weights(kind, tmp_path):
    """The engines compute in float32, whatever the file says."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weight = CONV.astype(dtype)
    narrow = small(weight=numpy_helper.from_array(weight, "w"), kind=kind, opset=22)
    plain = small(weight=weight.astype(np.float32), opset=22)
    agrees(narrow, tmp_path, reference=lambda model, feeds: by_onnxruntime(plain, feeds))


def test_weights_in_every_field(tmp_path):
    for weight in (
        helper.make_tensor("w", TensorProto.FLOAT, CONV.shape, CONV.ravel()),
        helper.make_tensor("w", TensorProto.FLOAT, CONV.shape, CONV.tobytes(), raw=True),
    ):
        agrees(small(weight=weight), tmp_path)
    half = CONV.astype(np.float16)
    weight = helper.make_tensor("w", TensorProto.FLOAT16, CONV.shape, half.ravel())
    cast = [node("Cast", ["w"], ["s"], to=1), node("Conv", ["image", "s"], ["y"])]
    agrees(built(cast, {"image": V}, constants={"w": weight}), tmp_path)


def test_external_data(tmp_path):
    plain = small()
    path = tmp_path / "x.onnx"
    model = small()
    convert_model_to_external_data(model, location="x.data", size_threshold=0)
    onnx.save(model, path)
    assert (tmp_path / "x.data").stat().st_size >= CONV.nbytes
    graph = read_onnx(path)
    x = {"image": noise(3, *V)}
    assert difference(in_float64(graph, x)[0], by_onnxruntime(plain, x)[0]) < 5e-6


def test_initializers_that_are_listed_as_inputs(tmp_path):
    model = small(opset=11)
    info = helper.make_tensor_value_info("w", TensorProto.FLOAT, CONV.shape)
    model.graph.input.append(info)
    model.ir_version = 3
    assert list(read_onnx(saved(model, tmp_path)).inputs) == ["image"]


def test_functions_are_written_out(tmp_path):
    body = [node("Sigmoid", ["a"], ["b"]), node("Mul", ["a", "b"], ["c"])]
    own = helper.make_opsetid("own", 1)
    imports = [helper.make_opsetid("", 18), own]
    gate = helper.make_function("own", "Gate", ["a"], ["c"], body, imports)
    inner = [node("Gate", ["a"], ["b"], domain="own"), node("Gate", ["b"], ["c"], domain="own")]
    twice = helper.make_function("own", "Twice", ["a"], ["c"], inner, imports)
    nodes = [node("Twice", ["image"], ["y"], domain="own")]
    model = built(nodes, {"image": V}, functions=[gate, twice])
    model.opset_import.append(own)
    graph = agrees(model, tmp_path)
    assert [n.op for n in fold(graph).nodes] == ["activation"] * 2


def test_the_long_name_of_onnx_own_operations(tmp_path):
    model = chain(V, ("Relu",), ("GlobalMaxPool",), ("Flatten",))
    model.graph.node[1].domain = "ai.onnx"
    agrees(model, tmp_path)


def test_an_output_without_a_name_is_not_read(tmp_path):
    """Although some operation has an input without one, too."""
    nodes = [
        node("MaxPool", ["image"], ["p", ""], kernel_shape=[2, 2, 2]),
        node("Clip", ["p", "", "high"], ["y"]),
    ]
    agrees(built(nodes, {"image": V}, constants={"high": np.float32(1)}), tmp_path)


def test_what_nothing_reads_does_no_harm(tmp_path):
    """Neither a part of the network nor a constant of a type that is not read."""
    model = small()
    model.graph.node.extend([node("Relu", ["y"], ["unused"])])
    texts = helper.make_tensor("labels", TensorProto.STRING, [2], [b"a", b"b"])
    model.graph.initializer.append(texts)
    graph = agrees(model, tmp_path)
    assert len(graph.nodes) == 1


def test_windows_that_onnx_counts_and_onnxruntime_does_not(tmp_path):
    """Shapes behind such a pool are still known."""
    up = {"kernel_shape": [1, 1, 1], "strides": [2, 2, 2], "ceil_mode": 1}
    agrees(chain((2, 6, 5, 4), ("MaxPool", [], up), ("Relu",), ("Flatten",), opset=13), tmp_path)
    agrees(single("MaxPool", (2, 6, 5, 4), opset=22, **up), tmp_path)


def test_what_is_behind_an_operation_without_a_rule_for_shapes(tmp_path):
    """ONNX's inference knows no type behind a GroupNormalization, and says so as of an error."""
    norm = ("GroupNormalization", [noise(2), noise(2)], {"num_groups": 1})
    last = ("Transpose", [], {"perm": [0, 2, 3, 4, 1]})
    agrees(chain(V, norm, ("Relu",), last, ("Relu",), opset=21), tmp_path)


def test_dense_layers_of_voxels_as_rows(tmp_path):
    """As Keras has them: all axes but the last become one, with the batch, and are parted again."""
    last, rows = ("Transpose", [], {"perm": [0, 2, 3, 4, 1]}), ("Reshape", [np.array([-1, 2])])
    dense = [("MatMul", [noise(2, 7)]), ("Add", [noise(7)]), ("Relu",), ("Gemm", [noise(7, 3)])]
    back = ("Reshape", [np.array([-1, 5, 6, 4, 3])])
    graph = agrees(chain(V, last, rows, *dense, back), tmp_path)
    assert [n.op for n in fold(graph).nodes] == ["conv", "activation", "conv"]


def test_voxels_that_are_repeated_by_tiling(tmp_path):
    """As Keras makes an image larger; it becomes one step."""
    steps = [("Transpose", [], {"perm": [0, 2, 3, 4, 1]})]
    for axis in (2, 4, 6):
        steps.append(("Unsqueeze", [np.array([axis])]))
    steps.append(("Tile", [np.array([1, 1, 2, 1, 3, 1, 2, 1])]))
    steps.append(("Reshape", [np.array([-1, 10, 18, 8, 2])]))
    graph = agrees(chain(V, *steps), tmp_path)
    assert [n.op for n in fold(graph).nodes] == ["resize"]


def test_a_constant_that_makes_channels_of_one(tmp_path):
    agrees(single("Mul", (1, 5, 6, 4), noise(3, 1, 1, 1)), tmp_path)
    agrees(single("Add", (1, 5, 6, 4), noise(1, 3, 1, 1, 1)), tmp_path)


def test_margins_where_channels_come_last(tmp_path):
    last, widths = ("Transpose", [], {"perm": [0, 2, 3, 4, 1]}), [0, 1, 0, 2, 0, 0, 2, 1, 0, 0]
    for mode in ("constant", "edge", "reflect"):
        agrees(chain(V, last, ("Pad", [np.array(widths)], {"mode": mode})), tmp_path)


def test_one_channel_that_comes_last(tmp_path):
    """Turned by a reshape, which is the same; nothing moves."""
    turned = ("Reshape", [np.array([-1, 1, 5, 6, 4])])
    conv = ("Conv", [noise(3, 1, 3, 3, 3)])
    graph = agrees(chain((5, 6, 4, 1), turned, conv), tmp_path)
    assert graph.last == {"image"}
    assert [n.op for n in graph.nodes] == ["conv"]
