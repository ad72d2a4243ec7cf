"""What ONNX's own rules say of a model: what an operation takes, and which shapes there are."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from hyperfusion_rt.export.ir.builder import UnsupportedError
from hyperfusion_rt.export.ir.graph import Shape

# An attribute that is a larger number means nothing that a network could.
_LARGEST = 1 << 31
# Bytes of a constant whose numbers can say which shape something gets.
_SMALL = 4096


def check_node(node: Any, opset: int) -> None:
    """A node of ONNX's own operations has the inputs, outputs and attributes of its opset.

    Raises:
        UnsupportedError: it has not.
    """
    from onnx import defs

    try:
        schema = defs.get_schema(node.op_type, max_inclusive_version=opset, domain="")
    except defs.SchemaError:
        schema = None
    if schema is None:
        raise UnsupportedError(f"is no operation of opset {opset}")
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise UnsupportedError(f"with {len(node.input)} inputs")
    if not schema.min_output <= len(node.output) <= schema.max_output:
        raise UnsupportedError(f"with {len(node.output)} outputs")
    for i, name in enumerate(node.input):
        expected = schema.inputs[min(i, len(schema.inputs) - 1)]
        if not name and expected.option != defs.OpSchema.FormalParameterOption.Optional:
            raise UnsupportedError(f"without its input {expected.name}")
    _check_attributes(node, schema, opset)


def _check_attributes(node: Any, schema: Any, opset: int) -> None:
    given = [attribute.name for attribute in node.attribute]
    for name, expected in schema.attributes.items():
        if expected.required and name not in given:
            raise UnsupportedError(f"without its attribute {name}")
    for attribute in node.attribute:
        expected = schema.attributes.get(attribute.name)
        if expected is None:
            raise UnsupportedError(f"with an attribute {attribute.name}, unknown in opset {opset}")
        if attribute.type != expected.type.value or given.count(attribute.name) > 1:
            raise UnsupportedError(f"with an attribute {attribute.name} of another type, or twice")
        if not all(map(math.isfinite, [attribute.f, *attribute.floats])):
            raise UnsupportedError(f"with an attribute {attribute.name} that is not finite")
        # A constant may be any number: the last of all, as the end of a slice.
        if node.op_type != "Constant" and any(
            abs(n) >= _LARGEST for n in [attribute.i, *attribute.ints]
        ):
            raise UnsupportedError(f"with an attribute {attribute.name} that is too large")


class Known(NamedTuple):
    """What is known of a model's values: the shapes of its inputs with the batch, and constants."""

    inputs: Mapping[str, Shape]
    constants: Mapping[str, NDArray[Any]]


def inferred(model: Any, known: Known) -> tuple[dict[str, Shape], str]:
    """The shapes that ONNX's rules give the values of a model that has been read, where they give
    all of one; and what breaks the rules, empty if nothing does.
    """
    import onnx

    lean = _lean(model, known)
    found, wrong = lean, ""
    for strict in (True, False):
        try:
            found = onnx.shape_inference.infer_shapes(lean, strict_mode=strict)
            break
        except Exception as error:  # its errors have no common class
            wrong = wrong or _broken(str(error))
    return _complete(found), wrong


def inferred_apart(model: Any, known: Known) -> dict[str, Shape]:
    """The shapes of a model of which something is wrong, where ONNX's rules give them.

    In a process of its own: impossible sizes end the one in which they are inferred.
    """
    import onnx

    lean = _lean(model, known).SerializeToString()
    command = [sys.executable, "-I", "-c", _APART]
    try:
        ended = subprocess.run(command, input=lean, capture_output=True, timeout=60, check=True)
        return _complete(onnx.ModelProto.FromString(ended.stdout))
    except Exception:  # only fewer problems are found
        return {}


_APART = """
import sys, onnx
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
except (ImportError, OSError, ValueError):
    pass
model = onnx.ModelProto.FromString(sys.stdin.buffer.read())
sys.stdout.buffer.write(onnx.shape_inference.infer_shapes(model).SerializeToString())
"""


def _complete(model: Any) -> dict[str, Shape]:
    """The shapes of which every axis is known."""
    found = {}
    for item in [*model.graph.value_info, *model.graph.output]:
        tensor = item.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
        if tensor.HasField("shape") and min(dims, default=0) >= 0:
            found[item.name] = tuple(dims)
    return found


def _broken(said: str) -> str:
    """What breaks the rules, of what the strict inference says. Not what it says of types: some
    operations have no rule, and what is behind them has none then.
    """
    parts = [" ".join(part.split()) for part in said.split("(op_type:")]
    return "; ".join(p for p in parts[len(parts) > 1 :] if ": [ShapeInferenceError]" in p)


def _lean(model: Any, known: Known) -> Any:
    """A copy without large weights, whose shapes are enough, with constants in the place of the
    nodes that make them, and with the shapes of the inputs.
    """
    import onnx
    from onnx import helper, numpy_helper

    lean = onnx.ModelProto(ir_version=model.ir_version)
    lean.opset_import.extend(model.opset_import)
    graph = lean.graph
    graph.name = model.graph.name
    # One operation of a domain that the file does not name would end it all.
    unnamed = {node.domain for node in model.graph.node} - {o.domain for o in model.opset_import}
    for domain in sorted(unnamed - {"", "ai.onnx"}):
        lean.opset_import.add(domain=domain, version=1)
    graph.node.extend(n for n in model.graph.node if not known.constants.keys() & set(n.output))
    for node in graph.node:
        node.domain = "" if node.domain == "ai.onnx" else node.domain
    for tensor in model.graph.initializer:
        if tensor.data_location == 0 and tensor.ByteSize() <= _SMALL:
            graph.initializer.add().CopyFrom(tensor)
        else:
            graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    read = {name for node in graph.node for name in node.input}
    for name in sorted(read & known.constants.keys()):
        array = known.constants[name]
        if array.nbytes <= _SMALL:
            graph.initializer.append(numpy_helper.from_array(array, name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.initializer.add(name=name, data_type=kind, dims=array.shape)
    for item in model.graph.input:
        graph.input.add().CopyFrom(item)
        if item.name in known.inputs:
            shape = graph.input[-1].type.tensor_type.shape
            del shape.dim[:]
            for n in known.inputs[item.name]:
                shape.dim.add().dim_value = n
    for item in model.graph.output:
        graph.output.add().CopyFrom(item)
        graph.output[-1].type.tensor_type.ClearField("shape")
    return lean
