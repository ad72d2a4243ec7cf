"""From an ONNX file to a `Graph`: node by node, every problem that there is in one message."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.export.ir import layout as at
from hyperfusion_rt.export.ir.builder import BATCH, Builder, UnsupportedError, Value
from hyperfusion_rt.export.ir.graph import Graph, Shape
from hyperfusion_rt.export.onnx_import.constants import EVALUATE, evaluate
from hyperfusion_rt.export.onnx_import.layer_nodes import LAYERS
from hyperfusion_rt.export.onnx_import.model_file import Weights, damaged, open_model, opset_of
from hyperfusion_rt.export.onnx_import.nodes import HANDLERS, Given

OPERATIONS = {**HANDLERS, **LAYERS}
# Problems that a message names.
_NAMED = 20


def read_onnx(path: Path, shapes: Mapping[str, Shape] | None = None) -> Graph:
    """The network of an ONNX file of opset 11 to 23. Inputs and outputs keep their names.

    Args:
        shapes: of inputs without the batch, where the file leaves them open:
            `{"x": (1, 96, 96, 96)}`.

    Raises:
        HyperFusionError: the file is damaged, an input's shape is open, or it does something that
            engines cannot do; the message names every such node.
    """
    model = open_model(path)
    return _Reading(path, model, dict(shapes or {})).graph


@dataclass(frozen=True)
class _Missing:
    """In the place of a value whose node failed."""


class _Reading(Builder):
    def __init__(self, path: Path, model: Any, shapes: dict[str, Shape]) -> None:
        self.path, self.opset = path, opset_of(model)
        self.weights = Weights(path, model)
        found, batch = self._inputs(model, shapes)
        turned = [name for name in found if self._turned_at_once(model, name)]
        super().__init__(found, batch, turned)
        self.problems: list[str] = []
        self.values: dict[str, Any] = {n: self.input(n, shape) for n, shape in found.items()}
        self.inferred = _inferred(path, model, self.values)
        self.read = {name for node in model.graph.node for name in node.input}
        self.read |= {output.name for output in model.graph.output}
        for node in model.graph.node:
            self._node(node)
        self._outputs(model)
        if self.problems:
            self._refuse()
        self.graph.remove_dead()

    # --- inputs and outputs ---

    def _inputs(self, model: Any, shapes: dict[str, Shape]) -> tuple[dict[str, Shape], int]:
        """Shapes without the batch of the inputs, and the samples of the batch."""
        found: dict[str, Shape] = {}
        batches: set[int] = set()
        for item in model.graph.input:
            if item.name in self.weights:
                continue
            dims = [
                d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
                for d in item.type.tensor_type.shape.dim
            ]
            if item.type.tensor_type.elem_type not in (1, 10, 11, 16):
                raise HyperFusionError(
                    f"{self.path}: the input {item.name} does not hold floating-point numbers",
                    code="onnx-input",
                )
            if item.name in shapes:
                given = shapes.pop(item.name)
                fits = not dims or (
                    len(dims) == len(given) + 1
                    and all(n in (None, m) for n, m in zip(dims[1:], given, strict=True))
                )
                if not fits:
                    raise HyperFusionError(
                        f"{self.path}: the input {item.name} is {_text(dims)}, not [batch, "
                        f"{', '.join(map(str, given))}]",
                        code="onnx-input",
                    )
                dims = [dims[0] if dims else None, *given]
            if len(dims) < 2 or None in dims[1:]:
                raise HyperFusionError(
                    f"{self.path}: the input {item.name} is {_text(dims)}; give its `shape` "
                    "without the batch",
                    code="onnx-input",
                )
            if max(n for n in dims[1:] if n is not None) > 1 << 16 or len(dims) > 5:
                raise HyperFusionError(
                    f"{self.path}: the input {item.name} is {_text(dims)}: images have up to three "
                    "axes of voxels",
                    code="onnx-input",
                )
            found[item.name] = tuple(n for n in dims[1:] if n is not None)
            batches.add(dims[0] or BATCH)
        if shapes:
            raise HyperFusionError(
                f"{self.path}: there is no input {', '.join(sorted(shapes))}; it has "
                f"{', '.join(found) or 'none'}",
                code="onnx-input",
            )
        if not found or len(batches) != 1:
            raise HyperFusionError(
                f"{self.path}: {len(found)} inputs with batches of {sorted(batches)} samples",
                code="onnx-input",
            )
        return found, batches.pop()

    @staticmethod
    def _turned_at_once(model: Any, name: str) -> bool:
        """Whether an input has its channels last: all that reads it brings them to the front."""
        users = [node for node in model.graph.node if name in node.input]
        orders = [
            list(a.ints) for node in users for a in node.attribute if node.op_type == "Transpose"
        ]
        return (
            bool(users)
            and len(orders) == len(users)
            and all(
                order == [0, len(order) - 1, *range(1, len(order) - 1)] and len(order) > 2
                for order in orders
            )
        )

    def _outputs(self, model: Any) -> None:
        for output in model.graph.output:
            value = self.values.get(output.name)
            if isinstance(value, Value):
                try:
                    self.output(value, output.name)
                except UnsupportedError as error:
                    self.problems.append(f"the output {output.name} {error}")
            elif not isinstance(value, _Missing):
                self.problems.append(f"the output {output.name} does not depend on an input")

    # --- nodes ---

    def _node(self, node: Any) -> None:
        self.layer = node.name or (node.output[0] if node.output else "")
        try:
            made = self._made(node)
        except UnsupportedError as error:
            self.problems.append(f"{node.op_type} {error} ({self.layer})")
            made = [self._stand_in(name) for name in node.output]
        for name, value in zip(node.output, made, strict=False):
            if name in self.values or name in self.weights:
                raise damaged(self.path, f"{name} is made twice")
            if name:
                self.values[name] = value

    def _made(self, node: Any) -> list[Any]:
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedError(f"of the domain {node.domain}")
        attributes = self._attributes(node)
        if node.op_type == "Constant":
            return [_constant(attributes)]
        inputs = [self._input(name) for name in node.input]
        if any(isinstance(x, _Missing) for x in inputs):
            return [_Missing() for _ in node.output]
        if node.op_type not in OPERATIONS and node.op_type not in EVALUATE:
            raise UnsupportedError("is not known")
        count = len(node.output)
        if not any(isinstance(x, Value) for x in inputs):
            return list(evaluate(node.op_type, attributes, inputs, count))
        handler = OPERATIONS.get(node.op_type)
        if handler is None:
            raise UnsupportedError("of computed values")
        given = Given(
            attributes,
            self.opset,
            count,
            frozenset(i for i, name in enumerate(node.output) if name in self.read),
        )
        try:
            inspect.signature(handler).bind(self, given, *inputs)
        except TypeError as error:
            raise UnsupportedError(f"with these inputs ({error})") from None
        try:
            made = handler(self, given, *inputs)
        except (ValueError, TypeError, IndexError, AttributeError, OverflowError) as error:
            raise UnsupportedError(f"that does not fit together: {error}") from None
        found = made if isinstance(made, list) else [made]
        self._agree(node, found)
        return found

    def _input(self, name: str) -> Any:
        if not name:
            return None
        if name in self.values:
            return self.values[name]
        if name in self.weights:
            return self.weights[name]
        raise damaged(self.path, f"{self.layer} reads {name}, which nothing makes before it")

    def _attributes(self, node: Any) -> dict[str, Any]:
        from onnx import helper

        found: dict[str, Any] = {}
        for attribute in node.attribute:
            if attribute.type in (4, 9):  # a tensor, tensors
                tensors = [attribute.t] if attribute.type == 4 else list(attribute.tensors)
                arrays = [self.weights.array(t) for t in tensors]
                found[attribute.name] = arrays[0] if attribute.type == 4 else arrays
                continue
            if attribute.type in (5, 10, 11, 12):  # graphs, sparse tensors
                raise UnsupportedError("with a part that is a graph of its own")
            try:
                value = helper.get_attribute_value(attribute)
            except ValueError as error:
                raise UnsupportedError(f"with an attribute that cannot be read: {error}") from None
            found[attribute.name] = (
                value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            )
        return found

    def _agree(self, node: Any, made: list[Any]) -> None:
        """What came out has the shape that ONNX's own rules give it."""
        for name, value in zip(node.output, made, strict=False):
            expected = self.inferred.get(name)
            shape = value.shape if isinstance(value, Value | np.ndarray) else None
            if expected is not None and shape is not None and tuple(shape) != expected:
                if self._counts_too_many(node):
                    self.inferred = {}
                    return
                raise UnsupportedError(f"that makes {list(expected)}, not {list(shape)}")

    def _counts_too_many(self, node: Any) -> bool:
        """Before opset 22, ONNX's rules count a last window that starts behind the volume; what it
        means, and what ONNX Runtime does, is to leave it out.
        """
        up = any(a.name == "ceil_mode" and a.i for a in node.attribute)
        return up and self.opset < 22 and node.op_type in ("MaxPool", "AveragePool")

    def _stand_in(self, name: str) -> Any:
        """A value of the shape that ONNX's rules know, so that later problems are found, too."""
        shape = self.inferred.get(name)
        if shape is None or len(shape) not in (2, 5) or shape[0] != self.batch or min(shape) < 1:
            return _Missing()
        self.graph.inputs[name] = self.graph.shapes[name] = shape[1:]
        return Value(name, at.plain(shape[1:]), self.batch)

    def _refuse(self) -> None:
        found = list(dict.fromkeys(self.problems))
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise HyperFusionError(
            f"{self.path}: engines cannot do this: {'; '.join(found[:_NAMED])}{more}. They know: "
            f"{', '.join(sorted(OPERATIONS))}",
            code="onnx-unsupported",
        )


def _constant(attributes: dict[str, Any]) -> Any:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in attributes:
            kind = np.float32 if "float" in name else np.int64 if "int" in name else None
            return np.asarray(attributes[name], dtype=kind)
    raise UnsupportedError("that holds no numbers")


def _text(dims: list[int | None]) -> str:
    return f"[{', '.join('?' if n is None else str(n) for n in dims)}]"


def _inferred(path: Path, model: Any, inputs: Mapping[str, Value]) -> dict[str, Shape]:
    """The shapes that ONNX's own rules give the values, where they give all of one.

    On a copy without the large weights, whose shapes are enough.
    """
    import onnx

    lean = onnx.ModelProto()
    lean.CopyFrom(model)
    for tensor in lean.graph.initializer:
        if len(tensor.raw_data) > 4096 or tensor.data_location == 1:
            for name in ("raw_data", "float_data", "external_data"):
                tensor.ClearField(name)
            tensor.data_location = 0
    del lean.graph.value_info[:]
    for item in lean.graph.input:
        if item.name in inputs:
            shape = item.type.tensor_type.shape
            del shape.dim[:]
            for n in inputs[item.name].shape:
                shape.dim.add().dim_value = n
    for item in lean.graph.output:
        item.type.tensor_type.ClearField("shape")
    try:
        known = onnx.shape_inference.infer_shapes(lean, data_prop=True)
    except Exception as error:  # its errors have no common class
        raise damaged(path, f"its shapes do not fit together: {error}") from None
    found = {}
    for item in [*known.graph.value_info, *known.graph.output]:
        tensor = item.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
        if tensor.HasField("shape") and -1 not in dims:
            found[item.name] = tuple(dims)
    return found
