"""Damaged ONNX files, each from a number: bytes, or what a network's parts say, are changed."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import onnx
from onnx import helper

from .seeds import SEEDS

NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    5,
    7,
    -2,
    255,
    1 << 16,
    1 << 20,
    1 << 31,
    -(1 << 31),
    (1 << 63) - 1,
    -(1 << 63),
]
FLOATS = [0.0, -1.0, 1.0, 0.5, 1e-45, 1e30, -1e30, math.inf, -math.inf, math.nan]


def damaged_file(number: int) -> bytes:
    """The content of file `number`."""
    rng = np.random.default_rng(number)
    model = SEEDS[rng.integers(len(SEEDS))]()
    kind = rng.random()
    if kind < 0.75:
        for _ in range(rng.geometric(0.6)):
            with contextlib.suppress(ValueError, IndexError, TypeError):
                MUTATIONS[rng.integers(len(MUTATIONS))](model, rng)
        return model.SerializeToString()
    content = bytearray(model.SerializeToString())
    if kind < 0.8:
        return bytes(content[: rng.integers(len(content))])
    for _ in range(rng.integers(1, 9)):
        at = rng.integers(len(content))
        match rng.integers(4):
            case 0:
                content[at] = rng.integers(256)
            case 1:
                content[at] ^= 1 << rng.integers(8)
            case 2:
                del content[at : at + rng.integers(1, 9)]
            case 3:
                content[at:at] = rng.bytes(rng.integers(1, 9))
    return bytes(content)


def _one(items, rng):
    return items[int(rng.integers(len(items)))]


def _number(rng, old: int = 0) -> int:
    return int(old + rng.integers(-2, 3)) if rng.random() < 0.5 else _one(NUMBERS, rng)


def _names(model) -> list[str]:
    made = [name for node in model.graph.node for name in node.output]
    given = [item.name for item in [*model.graph.input, *model.graph.initializer]]
    return [*made, *given, "", "gone"]


def _attribute_values(model, rng) -> None:
    attribute = _one([a for n in model.graph.node for a in n.attribute], rng)
    match attribute.type:
        case 1:
            attribute.f = _one(FLOATS, rng)
        case 2:
            attribute.i = _number(rng, attribute.i)
        case 3:
            attribute.s = _one(
                [b"", b"\xff", b"SAME_UPPER", b"VALID", b"linear", b"edge", b"ceil"], rng
            )
        case 4:
            _tensor(attribute.t, rng)
        case 6:
            attribute.floats[rng.integers(len(attribute.floats))] = _one(FLOATS, rng)
        case 7:
            attribute.ints[rng.integers(len(attribute.ints))] = _number(rng)


def _attribute_lengths(model, rng) -> None:
    attribute = _one([a for n in model.graph.node for a in n.attribute if a.type == 7], rng)
    if rng.random() < 0.5:
        del attribute.ints[-1]
    else:
        attribute.ints.append(_number(rng))


def _attribute_kinds(model, rng) -> None:
    node = _one([n for n in model.graph.node if n.attribute], rng)
    attribute = _one(node.attribute, rng)
    match rng.integers(4):
        case 0:
            node.attribute.remove(attribute)
        case 1:
            attribute.type = int(rng.integers(0, 15))
        case 2:
            attribute.name = _one([a.name for n in model.graph.node for a in n.attribute], rng)
        case 3:
            node.attribute.add().CopyFrom(attribute)


def _attribute_added(model, rng) -> None:
    donor = _one([a for seed in SEEDS for n in seed().graph.node for a in n.attribute], rng)
    _one(model.graph.node, rng).attribute.add().CopyFrom(donor)


def _operations(model, rng) -> None:
    known = sorted({n.op_type for seed in SEEDS for n in seed().graph.node})
    other = ["If", "Loop", "Gru", "Einsum", "", "Upsample", "MaxUnpool", "Unknown"]
    _one(model.graph.node, rng).op_type = _one([*known, *other], rng)


def _wires(model, rng) -> None:
    node = _one(model.graph.node, rng)
    name = _one(_names(model), rng)
    match rng.integers(6):
        case 0:
            node.input.append(name)
        case 1:
            del node.input[-1]
        case 2:
            node.output[int(rng.integers(len(node.output)))] = name
        case 3:
            node.output.append(name)
        case _:
            node.input[int(rng.integers(len(node.input)))] = name


def _order(model, rng) -> None:
    nodes = list(model.graph.node)
    i, j = rng.integers(len(nodes), size=2)
    match rng.integers(3):
        case 0:
            nodes[i], nodes[j] = nodes[j], nodes[i]
        case 1:
            del nodes[i]
        case 2:
            nodes.insert(j, nodes[i])
    copied = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copied)


def _tensor(tensor, rng) -> None:
    size = len(tensor.raw_data)
    match rng.integers(8):
        case 0:
            tensor.dims[rng.integers(len(tensor.dims))] = _number(rng)
        case 1:
            tensor.dims.append(_one([1, 1, 2, 0, -1, 1 << 40], rng))
        case 2:
            del tensor.dims[-1]
        case 3:
            tensor.data_type = int(rng.integers(0, 30))
        case 4:
            tensor.raw_data = tensor.raw_data[: rng.integers(size + 1)]
        case 5:
            tensor.raw_data += rng.bytes(int(rng.integers(1, 64)))
        case _:
            try:
                dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            except KeyError:  # it is damaged already
                return
            array = np.frombuffer(tensor.raw_data, dtype).copy()
            chosen = NUMBERS if dtype.kind in "iu" else FLOATS
            with np.errstate(all="ignore"):
                value = np.asarray(_one(chosen, rng)).astype(dtype)
            array[rng.integers(array.size)] = value
            tensor.raw_data = array.tobytes()


def _weights(model, rng) -> None:
    _tensor(_one(model.graph.initializer, rng), rng)


def _external(model, rng) -> None:
    tensor = _one(model.graph.initializer, rng)
    tensor.data_location = 1
    for key, values in {
        "location": ["x.onnx", "../x", "/etc/passwd", "", "gone"],
        "offset": ["0", "-1", "99999999999", "x"],
        "length": ["0", "4", "99999999999", "-1"],
    }.items():
        if rng.random() < 0.7:
            tensor.external_data.add(key=key, value=_one(values, rng))


def _ends(model, rng) -> None:
    item = _one([*model.graph.input, *model.graph.output], rng)
    kind = item.type.tensor_type
    match rng.integers(5):
        case 0:
            item.name = _one(_names(model), rng)
        case 1:
            kind.elem_type = int(rng.integers(0, 25))
        case 2:
            kind.shape.dim[rng.integers(len(kind.shape.dim))].dim_value = _number(rng, 4)
        case 3:
            kind.shape.dim.add(dim_value=_number(rng, 4))
        case 4:
            del kind.shape.dim[-1]


def _extent(model, rng) -> None:
    """Another size of the image: what follows may fit or not."""
    item = _one(model.graph.input, rng)
    item.type.tensor_type.shape.dim[-1 - int(rng.integers(3))].dim_value = int(rng.integers(1, 12))


def _versions(model, rng) -> None:
    one = _one(model.opset_import, rng)
    one.version = int(rng.integers(9, 26)) if rng.random() < 0.9 else _number(rng)


def _domains(model, rng) -> None:
    _one(model.graph.node, rng).domain = _one(["ai.onnx", "own", "com.microsoft", "x"], rng)


def _functions(model, rng) -> None:
    body = _one(_one(model.functions, rng).node, rng)
    if rng.random() < 0.5:
        body.op_type, body.domain = "Gate", "own"
    else:
        body.input[0] = _one(["a", "b", "s", "x"], rng)


MUTATIONS = (
    _attribute_values, _attribute_values, _attribute_values, _attribute_lengths, _attribute_kinds,
    _attribute_added, _operations, _operations, _wires, _wires, _order, _weights, _weights,
    _weights, _external, _ends, _extent, _extent, _versions, _domains, _functions,
)  # fmt: skip
