"""What is refused: all that is wrong in one message, each time with a code."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.export.onnx_import.read import read_onnx

from .models import built, chain, noise, saved, single
from .test_read import CONV, V, small

node = helper.make_node
I64 = np.int64


def refused(model, folder, code, message, shapes=None):
    path = model if not isinstance(model, onnx.ModelProto) else saved(model, folder)
    with pytest.raises(HyperFusionError, match=message) as error:
        read_onnx(path, shapes)
    assert error.value.code == f"onnx-{code}"
    assert str(path.name) in str(error.value)
    return str(error.value)


# --- files ----------------------------------------------------------------------------------------


def test_no_file(tmp_path):
    refused(tmp_path / "none.onnx", tmp_path, "unreadable", "No such file")
    refused(tmp_path, tmp_path, "unreadable", "directory")


@pytest.mark.parametrize("content", [b"", b"\x00", b"PK\x03\x04" + bytes(100), b"\xff" * 1000])
def test_no_onnx_file(content, tmp_path):
    (tmp_path / "x.onnx").write_bytes(content)
    refused(tmp_path / "x.onnx", tmp_path, "damaged", "damaged")


def test_a_file_that_is_cut_off(tmp_path):
    whole = small().SerializeToString()
    (tmp_path / "x.onnx").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "x.onnx", tmp_path, "damaged", "damaged")


@pytest.mark.parametrize("opset", [1, 10, 24, 2**40])
def test_opsets(opset, tmp_path):
    refused(small(opset=opset), tmp_path, "opset", f"opset {opset}, but 11 to 23 are read")


def test_no_opset_or_two(tmp_path):
    model = small()
    model.opset_import.append(helper.make_opsetid("ai.onnx", 13))
    refused(model, tmp_path, "opset", "opset 13, 18, but")
    del model.opset_import[:]
    refused(model, tmp_path, "opset", "opset unknown")


def test_an_empty_graph(tmp_path):
    model = small()
    del model.graph.node[:]
    refused(model, tmp_path, "damaged", "no node")
    model = small()
    del model.graph.output[:]
    refused(model, tmp_path, "damaged", "no output")


# --- weights --------------------------------------------------------------------------------------


def external(folder):
    model = small()
    convert_model_to_external_data(model, location="x.data", size_threshold=0)
    onnx.save(model, folder / "x.onnx")
    return folder / "x.onnx"


def test_weights_that_are_not_there(tmp_path):
    path = external(tmp_path)
    (tmp_path / "x.data").unlink()
    refused(path, tmp_path, "unreadable", "x.data: not there, but x.onnx keeps weights in it")


def test_weights_that_end_too_early(tmp_path):
    path = external(tmp_path)
    data = (tmp_path / "x.data").read_bytes()
    (tmp_path / "x.data").write_bytes(data[: CONV.nbytes - 1])
    refused(path, tmp_path, "damaged", "too short for the constant w")


@pytest.mark.parametrize(
    ("key", "value", "code", "message"),
    [
        ("location", "../x.data", "damaged", "not beside it"),
        ("location", "/etc/hostname", "damaged", "not beside it"),
        ("location", "a/../../x.data", "damaged", "not beside it"),
        ("location", "", "damaged", "not beside it"),
        ("location", "other.data", "unreadable", "not there"),
        ("offset", "-4", "damaged", "needs"),
        ("offset", "many", "damaged", "many"),
        ("offset", str(2**70), "damaged", "too short"),
        ("length", "4", "damaged", "needs 648 bytes"),
        ("location", "x\0.data", "damaged", "null"),
    ],
)
def test_where_weights_are(key, value, code, message, tmp_path):
    path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    (tensor,) = model.graph.initializer
    entries = {entry.key: entry.value for entry in tensor.external_data} | {key: value}
    del tensor.external_data[:]
    for name, text in entries.items():
        tensor.external_data.add(key=name, value=text)
    refused(model, tmp_path, code, message)


def test_a_link_to_weights_elsewhere(tmp_path):
    (tmp_path / "in").mkdir()
    path = external(tmp_path / "in")
    (tmp_path / "in" / "x.data").rename(tmp_path / "x.data")
    (tmp_path / "in" / "x.data").symlink_to(tmp_path / "x.data")
    refused(path, tmp_path, "damaged", "not beside it")


def changed(**fields):
    """`small` with other fields of its weight."""
    model = small()
    (tensor,) = model.graph.initializer
    for name, value in fields.items():
        if name == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)
        else:
            setattr(tensor, name, value)
    return model


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"raw_data": b""}, "the constant w"),
        ({"raw_data": CONV.tobytes()[:-2]}, "the constant w"),
        ({"raw_data": CONV.tobytes() * 2}, "the constant w"),
        ({"dims": [3, 2, 3, 3, 4]}, "the constant w"),
        ({"dims": [-3, 2, 3, 3, -3]}, r"shape \[-3, 2, 3, 3, -3\]"),
        ({"dims": [2**40, 2**40]}, "shape"),
        ({"data_type": 0}, "type 0"),
        ({"data_type": 99}, "type 99"),
        ({"data_type": TensorProto.STRING}, "texts"),
        ({"data_type": TensorProto.COMPLEX64}, "complex"),
    ],
)
def test_weights_that_are_damaged(fields, message, tmp_path):
    refused(changed(**fields), tmp_path, "damaged", message)


def test_sparse_weights(tmp_path):
    model = small()
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    sparse = helper.make_sparse_tensor(values, indices, [4])
    model.graph.sparse_initializer.append(sparse)
    refused(model, tmp_path, "unsupported", "sparse initializers")


# --- names and order ------------------------------------------------------------------------------


def test_names(tmp_path):
    def damaged(nodes, message, inputs=("image",), outputs=("y",), constants=None):
        model = built(nodes, dict.fromkeys(inputs, V), outputs, constants)
        refused(model, tmp_path, "damaged", message)

    relu = node("Relu", ["image"], ["y"])
    damaged([relu, relu], "y is made twice")
    damaged([node("Relu", ["image"], ["image"])], "image is made twice", outputs=["image"])
    damaged([relu, node("Relu", ["image"], ["w"])], "w is made twice", constants={"w": noise(1)})
    damaged(
        [node("Relu", ["gone"], ["y"], name="n")], "n reads gone, which nothing makes before it"
    )
    later = [node("Relu", ["r"], ["y"]), node("Relu", ["image"], ["r"])]
    damaged(later, "reads r, which nothing makes before it")
    cycle = [
        node("Add", ["image", "b"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("Relu", ["b"], ["y"]),
    ]
    damaged(cycle, "reads b, which nothing makes before it")
    damaged([relu], "2 outputs with 1 names", outputs=["y", "y"])
    model = built([relu], {"image": V})
    model.graph.input.append(model.graph.input[0])
    refused(model, tmp_path, "damaged", "2 inputs with 1 names")
    model = small()
    model.graph.initializer.append(model.graph.initializer[0])
    refused(model, tmp_path, "damaged", "one name")
    model = built([relu], {f"x{i}": V for i in range(300)} | {"image": V})
    refused(model, tmp_path, "damaged", "301 inputs")


def test_functions_without_end(tmp_path):
    own = helper.make_opsetid("own", 1)
    imports = [helper.make_opsetid("", 18), own]

    def function(name, *called):
        nodes = [node(c, ["a"], ["b"], domain="own") for c in called]
        return helper.make_function("own", name, ["a"], ["b"], nodes, imports)

    def model(*functions):
        made = built([node("f", ["image"], ["y"], domain="own")], {"image": V}, functions=functions)
        made.opset_import.append(own)
        return made

    refused(model(function("f", "g"), function("g", "f")), tmp_path, "damaged", "calls itself")
    names = ["f", *"abcdefghijkl"]
    many = [function(a, *[b] * 10) for a, b in zip(names, [*names[1:], "none"], strict=True)]
    refused(model(*many), tmp_path, "damaged", "too many nodes")


# --- inputs ---------------------------------------------------------------------------------------


def shaped(*dims, kind=TensorProto.FLOAT):
    model = built([node("Relu", ["image"], ["y"])], {"image": V})
    info = helper.make_tensor_value_info("image", kind, list(dims))
    model.graph.input[0].CopyFrom(info)
    return model


def test_inputs(tmp_path):
    def wrong(model, message, shapes=None):
        refused(model, tmp_path, "input", message, shapes)

    wrong(
        shaped("b", 1, "d", "h", 8), r"the input image is \[\?, 1, \?, \?, 8\]: give it in `shapes`"
    )
    wrong(shaped("b"), r"is \[\?\]: give")
    wrong(shaped("b", 1, 0, 4, 4), r"is \[\?, 1, \?, 4, 4\]: give")
    wrong(shaped("b", 1, -5, 4, 4), "give")
    wrong(shaped("b", 1, 2, 3, 4, 5), "up to three axes")
    wrong(shaped("b", 1, 2**20, 4, 4), "too large")
    wrong(shaped("b", 2**16, 2**16, 2**16), "too large")
    wrong(shaped("b", 1, 4, kind=TensorProto.INT64), "does not hold floating-point numbers")
    wrong(shaped("b", 1, 4, kind=TensorProto.STRING), "does not hold floating-point numbers")
    open_ = shaped("b", 1, "d", 4, 4)
    for shape in ((2, 4, 4, 4), (1, 4, 4, 5), (1, 4, 4), (1, 0, 4, 4), (1, "4", 4, 4)):
        wrong(open_, r"the input image is \[\?, 1, \?, 4, 4\], not", {"image": shape})
    wrong(open_, "there is no input x; it has image", {"x": V, "image": (1, 4, 4, 4)})
    two = built([node("Add", ["a", "b"], ["y"])], {"a": V, "b": V})
    two.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
    wrong(two, r"batches of \[2, 5\]")
    message = r"the input a is .*; the input b is .*; there is no input c"
    both = built([node("Add", ["a", "b"], ["y"])], {"a": ("n", 3), "b": ("m", 3)})
    wrong(both, message, {"c": V})


# --- operations -----------------------------------------------------------------------------------


def test_every_problem_is_named_at_once(tmp_path):
    """Those behind a node that failed, too, as far as ONNX knows its shape."""
    nodes = [
        node("Conv", ["image", "w"], ["a"], name="enc/conv", auto_pad="SAME_UPPER"),
        node("Softmax", ["a"], ["b"], name="enc/softmax", axis=2),
        node("CumSum", ["b", "axis"], ["c"], name="enc/cumsum"),
        node("Relu", ["c"], ["d"]),
        node("Fancy", ["d"], ["e"], name="enc/fancy", domain="other"),
        node("Tan", ["e"], ["f"], name="dec/tan"),
        node("Slice", ["d", "axis", "axis", "axis"], ["g"], name="dec/slice"),
        node("Gelu", ["d"], ["h"], name="dec/gelu"),
    ]
    constants = {"w": CONV, "axis": np.array([0], I64)}
    model = built(nodes, {"image": V}, ["f", "g", "h"], constants)
    found = refused(model, tmp_path, "unsupported", "engines cannot do this")
    for part in (
        r"Softmax along axis 2 .* \(enc/softmax\)", r"CumSum is not known \(enc/cumsum\)",
        r"Fancy of the domain other \(enc/fancy\)", r"Tan is not known \(dec/tan\)",
        r"Slice .*batch.* \(dec/slice\)", r"Gelu is no operation of opset 18 \(dec/gelu\)",
        "They know: Abs, Add",
    ):  # fmt: skip
        assert re.search(part, found), part


def test_a_message_ends(tmp_path):
    nodes = [node("Tan", ["image"], [f"y{i}"], name=f"n{i}") for i in range(50)]
    model = built(nodes, {"image": V}, ["y0"])
    assert "; and 30 more. They know" in refused(model, tmp_path, "unsupported", r"\(n19\)")


def control_flow():
    body = helper.make_graph([node("Relu", ["image"], ["z"])], "body", [], [
        helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])  # fmt: skip
    nodes = [node("If", ["true"], ["y"], name="n", then_branch=body, else_branch=body)]
    return built(nodes, {"image": V}, constants={"true": np.array(True)})


UNSUPPORTED = [
    (control_flow(), "If"),
    (single("Tan", V), "Tan is not known"),
    (single("Relu", V, alpha=1.0), "attribute alpha, unknown in opset 18"),
    (single("LeakyRelu", V, alpha=1), "attribute alpha of another type"),
    (single("LeakyRelu", V, alpha=float("nan")), "alpha that is not finite"),
    (single("Conv", V, CONV, strides=[2**31, 1, 1]), "strides that is too large"),
    (single("Conv", V), "with 1 inputs"),
    (single("Conv", V, None), "without its input W"),
    (single("Conv", V, CONV, group=0), "0 groups"),
    (single("Conv", V, CONV, group=-1), "-1 groups"),
    (single("Conv", V, CONV, noise(4)), "bias"),
    (single("Conv", V, CONV, kernel_shape=[3, 3]), "kernel_shape|weights"),
    (single("Conv", V, CONV, strides=[0, 1, 1]), "strides"),
    (single("Conv", V, CONV, pads=[1, 1, 1]), "pads"),
    (single("Conv", V, CONV, pads=[-1] * 6), "pads"),
    (single("Conv", (4, 5, 5, 5), CONV), "channels"),
    (single("Conv", (2, 2, 2, 2), CONV), "makes|from"),
    (single("ConvTranspose", (3, 5, 5, 5), CONV, output_padding=[1, 1, 1]), "output_padding"),
    (single("ConvTranspose", (3, 5, 5, 5), CONV, output_shape=[50, 50, 50]), "output_shape"),
    (single("MaxPool", V, kernel_shape=[2] * 3, outputs=("y", "i")), "indices|with 2 outputs"),
    (single("MaxPool", V), "without its attribute kernel_shape"),
    (single("AveragePool", V, opset=19, kernel_shape=[2] * 3, dilations=[2] * 3), "dilation"),
    (single("AveragePool", V, kernel_shape=[3] * 3, pads=[2, 2, 2, 0, 0, 0]), "padding"),
    (single("MaxPool", V, kernel_shape=[1, 1, 1], pads=[1] * 6), "padding"),
    (single("GroupNormalization", V, noise(3), noise(3), num_groups=3), "3 groups"),
    (single("GroupNormalization", V, noise(2), noise(2), num_groups=0), "0 groups"),
    (single("BatchNormalization", V, *[noise(3)] * 4), "numbers"),
    (single("InstanceNormalization", V, noise(3), noise(3)), "numbers"),
    (single("LayerNormalization", V, np.ones(4, "f4"), axis=-1), "over the last 1 axes"),
    (single("LayerNormalization", (4, 2, 2), np.ones(4, "f4"), axis=0), "over the batch"),
    (single("Squeeze", V, np.array([0]), batch=1), "of the batch"),
    (single("Squeeze", (2, 1, 4), batch=1), "of the batch"),
    (single("Gather", V, np.array(0), batch=1), "of the batch"),
    (single("Gemm", (4,), noise(4, 3), noise(4, 3)), "third input"),
    (single("MatMul", (4,), noise(2, 4, 3)), "more than one matrix"),
    (single("MatMul", V, noise(4, 3)), "not the channels"),
    (single("Softmax", V, axis=2), "only along the channels"),
    (single("Softmax", V, axis=7), "axis 7"),
    (single("Reshape", V, np.array([-1, 10])), "mixes the samples"),
    (single("Reshape", V, np.array([2, 7, -1])), "from"),
    (single("Transpose", V, perm=[1, 0, 2, 3, 4]), "the batch must stay"),
    (single("Transpose", V, perm=[0, 1]), "each axis once|perm"),
    (single("Squeeze", V, np.array([2])), "axes"),
    (single("Unsqueeze", V, np.array([2, 2])), "axes"),
    (single("Unsqueeze", V, np.array([0])), "in front of the batch"),
    (single("Slice", V, np.array([0]), np.array([1]), np.array([0])), "of the batch"),
    (single("Slice", V, np.array([3]), np.array([1]), np.array([2])), "from 3 to 1"),
    (single("Slice", V, np.array([3]), np.array([1]), np.array([2]), np.array([-1])), "by -1"),
    (single("Pad", V, np.array([0, 1, 0, 0, 0] * 2)), "only around D, H and W"),
    (single("Pad", V, np.array([0, 0, 9, 0, 0] * 2), mode="reflect"), "more than there is"),
    (single("Pad", V, np.array([0, 0, 1, 0, 0] * 2), opset=19, mode="wrap"), "mode wrap"),
    (single("Pad", V, np.array([0] * 10), np.float32(np.inf)), "inf"),
    (single("Resize", V, None, np.float32([1, 1, 2, 2, 2]), mode="cubic"), "cubic"),
    (single("Resize", V, None, np.float32([1, 2, 2, 2, 2])), "only along D, H and W"),
    (single("Resize", V, None, np.float32([1, 1, np.inf, 2, 2])), "fit|factors"),
    (single("Clip", V, np.float32(np.nan)), "bound that is nan"),
    (single("Pow", V, noise(2, 1, 1, 1)), "exponent"),
    (single("Max", V, noise(2, 1, 1, 1)), "not one number"),
    (single("Add", V, noise(4)[:, None] * noise(4)), "constant"),
    (single("Gather", V, np.array([0, 2]), axis=2), "indices"),
    (single("Cast", V, to=TensorProto.INT64), "no floating-point"),
    (single("Equal", V, np.float32(0)), "computed values"),
    (single("Dropout", V, np.float32(0.5), np.array(True)), "during inference"),
    (single("Concat", V, noise(2, 1, 6, 4), axis=1), "constants"),
    (single("ReduceMean", V, np.array([1, 3])), "over the axes"),
    (single("ReduceMean", V, np.array([0])), "over the batch"),
    (single("ReduceMean", V, np.array([9])), "axis 9"),
    (single("Expand", V, np.array([2, 2, 2, 5, 6, 4])), "from"),
    (single("Flatten", V, axis=2), "mixes the samples"),
    (
        chain(
            V, ("Transpose", [], {"perm": [0, 2, 3, 4, 1]}),
            ("Reshape", [np.array([-1, 5, 6, 8, 1])]), ("Tile", [np.array([1, 1, 1, 1, 2])]),
        ),
        "only behind an axis of voxels",
    ),
]  # fmt: skip


NAMES = [f"{model.graph.node[-1].op_type}-{text}" for model, text in UNSUPPORTED]


@pytest.mark.parametrize(("model", "message"), UNSUPPORTED, ids=NAMES)
def test_what_engines_cannot_do(model, message, tmp_path):
    found = refused(model, tmp_path, "unsupported", message)
    assert re.search(r"\((node\d?|n)\)", found)


def test_outputs(tmp_path):
    model = built([node("Relu", ["image"], ["a"])], {"image": V}, ["a", "w"], {"w": noise(1)})
    refused(model, tmp_path, "unsupported", "the output w does not depend on an input")
    shape = [node("Relu", ["image"], ["a"]), node("Shape", ["a"], ["s"])]
    model = built(shape, {"image": V}, ["a", "s"])
    refused(model, tmp_path, "unsupported", "the output s does not depend on an input")
    model = built([node("Relu", ["image"], ["a"])], {"image": V}, ["a", "image"])
    refused(model, tmp_path, "unsupported", "the output image is an input, too")
    mask = [node("Dropout", ["image"], ["a", "m"]), node("Cast", ["m"], ["b"], to=1)]
    model = built(mask, {"image": V}, ["a", "b"], opset=13)
    refused(model, tmp_path, "unsupported", "Dropout whose output 2 is read")
    model = single("Reshape", V, np.array([-1, 4]))
    refused(model, tmp_path, "unsupported", "the output y mixes the samples")
    model = built([node("Relu", ["image"], ["a"])], {"image": V}, ["a", "none"])
    refused(model, tmp_path, "unsupported", "the output none does not depend on an input")


def test_what_breaks_the_rules_of_onnx(tmp_path):
    """Although engines could do something with it."""
    both = np.float32([1, 1, 2, 2, 2]), np.array([2, 2, 10, 12, 8])
    model = single("Resize", V, None, *both, opset=13)
    refused(model, tmp_path, "damaged", "it breaks ONNX's rules")


def test_small_files_do_not_make_large_constants(tmp_path):
    """Each constant is bounded, and all of them are; so are volumes, and numbers per channel."""
    shape = np.array([1 << 13, 1 << 13])
    many = [node("ConstantOfShape", ["shape"], [f"c{i}"]) for i in range(9)]
    nodes = [*many, node("Relu", ["image"], ["y"])]
    model = built(nodes, {"image": V}, constants={"shape": shape})
    refused(model, tmp_path, "unsupported", "more constants than the file holds")
    wide = np.array([0, 0, 1 << 16, 1 << 16, 1 << 16] * 2)
    refused(single("Pad", V, wide), tmp_path, "unsupported", "numbers")
    longer = chain(V, ("Pad", [wide // 64]), ("Flatten",), ("Add", [np.float32(1)]))
    refused(longer, tmp_path, "unsupported", "Flatten|Add")
