"""From an ONNX file to a `Graph`: node by node, every problem that there is in one message."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.export.ir import layout as at
from hyperfusion_rt.export.ir.builder import (
    BATCH,
    Builder,
    UnsupportedError,
    Value,
    as_volume,
)
from hyperfusion_rt.export.ir.graph import Attributes, Graph, Shape
from hyperfusion_rt.export.onnx_import.constants import EVALUATE, evaluate
from hyperfusion_rt.export.onnx_import.given import ROW_BY_ROW, Given, Rows
from hyperfusion_rt.export.onnx_import.layer_nodes import LAYERS
from hyperfusion_rt.export.onnx_import.model_file import (
    Weights,
    damaged,
    ends,
    open_model,
    opset_of,
)
from hyperfusion_rt.export.onnx_import.nodes import HANDLERS
from hyperfusion_rt.export.onnx_import.rules import Known, check_node, inferred, inferred_apart

OPERATIONS = {**HANDLERS, **LAYERS}
# Problems that a message names.
_NAMED = 20
# An axis of an input is not longer, a vector and a volume do not have more numbers.
_LONGEST, _MOST_OF_A_VECTOR, _MOST_OF_A_VOLUME = 1 << 16, 1 << 26, 1 << 33
# Numbers that may be made of the file's before there is an input, besides 8 for each of its own.
_ROOM = 1 << 26
# What NumPy and handlers raise where a file does not fit together.
_MISFITS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError)


# Of inputs by their names; or of the first.
Shapes = Mapping[str, Shape] | Shape


def read_onnx(path: Path, shapes: Shapes | None = None) -> Graph:
    """The network of an ONNX file of opset 11 to 23. Inputs and outputs keep their names.

    Args:
        shapes: of inputs without the batch, where the file leaves them open:
            `{"x": (1, 96, 96, 96)}`; or of the first input alone, `(1, 96, 96, 96)`.

    Raises:
        MissingExtraError: onnx is not installed.
        HyperFusionError: the file is damaged, an input's shape is open, or it does something that
            engines cannot do; the message names every such node.
    """
    try:
        return _read(path, shapes or {})
    except UnicodeDecodeError as error:  # protobuf looks at texts when they are asked for
        raise damaged(path, f"a text that is none: {error}") from None


def _read(path: Path, shapes: Shapes) -> Graph:
    model = open_model(path)
    found = _Reading(path, model, shapes, {})
    if found.problems:
        known = inferred_apart(model, found.facts()) if found.unseen else {}
        found = _Reading(path, model, shapes, known) if known else found
        found.refuse()
    found.check(*inferred(model, found.facts()))
    return found.graph


@dataclass(frozen=True)
class _Missing:
    """In the place of a value whose node failed."""


class _Reading(Builder):
    """A model's nodes, one after the other. `known`: shapes that ONNX's rules give its values, for
    what is behind a node that cannot be.
    """

    def __init__(self, path: Path, model: Any, shapes: Shapes, known: Mapping[str, Shape]) -> None:
        self.path, self.opset = path, opset_of(model)
        self.weights = Weights(path, model)
        self.room = _ROOM + 8 * self.weights.numbers
        outputs = [item.name for item in ends(path, model.graph.output, "outputs")]
        found, batch = self._inputs(model, shapes)
        turned = [n for n, shape in found.items() if self._turned_at_once(model, n, shape)]
        super().__init__(found, batch, turned, outputs)
        self.problems: list[str] = []
        self.unseen = False  # whether a node could not be looked at, for one before it
        self.values: dict[str, Any] = {n: self.input(n, shape) for n, shape in found.items()}
        self.given = {name: value.shape for name, value in self.values.items()}
        self.known, self.model = known, model
        self.read = {*outputs, *(name for node in model.graph.node for name in node.input)} - {""}
        for node in model.graph.node:
            self._node(node)
        for name in outputs:
            self._output(name)
        self.graph.remove_dead()

    # --- inputs and outputs ---

    def _inputs(self, model: Any, given: Shapes) -> tuple[dict[str, Shape], int]:
        """Shapes without the batch of the inputs, and the samples of the batch."""
        found: dict[str, Shape] = {}
        batches: set[int] = set()
        problems: list[str] = []
        items = [item for item in model.graph.input if item.name not in self.weights]
        named = {item.name: given for item in items[:1]} if isinstance(given, tuple) else given
        shapes = dict(named)
        for item in ends(self.path, items, "inputs"):
            dims: list[int | None] = [
                d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
                for d in item.type.tensor_type.shape.dim
            ]
            problem = _input_problem(item, dims, shapes.pop(item.name, None))
            if problem:
                problems.append(f"the input {item.name} {problem}")
                continue
            found[item.name] = tuple(n for n in dims[1:] if n is not None)
            batches.add(dims[0] or BATCH)
        if shapes:
            known = ", ".join(item.name for item in items) or "none"
            problems.append(f"there is no input {', '.join(map(str, shapes))}; it has {known}")
        if not problems and len(batches) != 1:
            problems.append(f"{len(found)} inputs with batches of {sorted(batches)} samples")
        if problems:
            raise HyperFusionError(f"{self.path}: {'; '.join(problems)}", code="onnx-input")
        return found, batches.pop()

    @staticmethod
    def _turned_at_once(model: Any, name: str, shape: Shape) -> bool:
        """Whether an input has its channels last: all that reads it brings them to the front, or
        it has one, and they reshape it, which is the same.
        """
        users = [node for node in model.graph.node if name in node.input]
        if len(shape) > 2 and shape[-1] == 1 and {n.op_type for n in users} == {"Reshape"}:
            return True
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

    def _output(self, name: str) -> None:
        value = self.values.get(name)
        if isinstance(value, _Missing):
            return
        try:
            if isinstance(value, Rows):
                raise UnsupportedError("mixes the samples of a batch")
            if not isinstance(value, Value):
                raise UnsupportedError("does not depend on an input")
            self.output(value, name)
        except UnsupportedError as error:
            self.problems.append(f"the output {name} {error}")

    # --- nodes ---

    def _node(self, node: Any) -> None:
        self.layer = node.name or next(iter(node.output), "")
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
        known = node.op_type in OPERATIONS or node.op_type in EVALUATE
        if not known and node.op_type != "Constant":
            raise UnsupportedError("is not known")
        check_node(node, self.opset)
        attributes = self._attributes(node)
        if node.op_type == "Constant":
            return [_constant(attributes)]
        inputs = [self._input(name) for name in node.input]
        if any(isinstance(x, _Missing) for x in inputs):
            self.unseen = True
            return [_Missing() for _ in node.output]
        count, rows = len(node.output), any(isinstance(x, Rows) for x in inputs)
        if rows and node.op_type != "Reshape":
            if node.op_type not in ROW_BY_ROW:
                raise UnsupportedError("of samples that are mixed with voxels")
            inputs = [x.value if isinstance(x, Rows) else x for x in inputs]
        if not rows and not any(isinstance(x, Value) for x in inputs):
            arrays = evaluate(node.op_type, attributes, inputs, count)
            self._spend(sum(array.size for array in arrays))
            return list(arrays)
        handler = OPERATIONS.get(node.op_type)
        if handler is None:
            raise UnsupportedError("of computed values")
        read = frozenset(i for i, name in enumerate(node.output) if name in self.read)
        given = Given(attributes, self.opset, count, read)
        try:
            inspect.signature(handler).bind(self, given, *inputs)
        except TypeError as error:
            raise UnsupportedError(f"with these inputs ({error})") from None
        try:
            made = handler(self, given, *inputs)
        except _MISFITS as error:
            raise UnsupportedError(f"that does not fit together: {error}") from None
        found = made if isinstance(made, list) else [made]
        if max(read, default=0) >= len(found):
            raise UnsupportedError(f"whose output {max(read) + 1} is read")
        return [Rows(y) for y in found] if rows and node.op_type != "Reshape" else found

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
            if attribute.type == 4:  # a tensor
                found[attribute.name] = self.weights.array(attribute.t)
                continue
            if attribute.type in (5, 10):  # graphs
                raise UnsupportedError("with a part that is a graph of its own")
            try:
                value = helper.get_attribute_value(attribute)
            except ValueError as error:
                raise UnsupportedError(f"with an attribute that cannot be read: {error}") from None
            found[attribute.name] = (
                value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            )
        return found

    def facts(self) -> Known:
        """What is known of the model's values."""
        constants = {n: x for n, x in self.values.items() if isinstance(x, np.ndarray)}
        return Known(self.given, constants)

    # --- errors ---

    def check(self, inferred: Mapping[str, Shape], wrong: str) -> None:
        """What came out has the shapes that ONNX's own rules give it.

        Raises:
            HyperFusionError: it has not, or something is `wrong`.
        """
        if wrong:
            raise damaged(self.path, f"it breaks ONNX's rules: {wrong}")
        for node in self.model.graph.node:
            if self._counts_too_many(node):
                return
            for name in node.output:
                value = self.values.get(name)
                shape = value.shape if isinstance(value, Value | Rows | np.ndarray) else ()
                expected = inferred.get(name, shape)
                if shape != expected:
                    layer = node.name or name
                    wrong = f"{node.op_type} makes {list(expected)}, not {list(shape)} ({layer})"
                    raise damaged(self.path, f"it breaks ONNX's rules: {wrong}")

    def _counts_too_many(self, node: Any) -> bool:
        """Before opset 22, ONNX's rules count a last window that starts behind the volume; what it
        means, and what ONNX Runtime does, is to leave it out. So shapes behind it are wrong.
        """
        up = any(a.name == "ceil_mode" and a.i for a in node.attribute)
        return up and self.opset < 22 and node.op_type in ("MaxPool", "AveragePool")

    def _stand_in(self, name: str) -> Any:
        """A value of the shape that ONNX's rules know, so that later problems are found, too."""
        shape = self.known.get(name, ())
        if not 2 <= len(shape) <= 5 or shape[0] != self.batch or min(shape) < 1:
            return _Missing()
        full = as_volume(shape[1:])
        try:
            return self.emit("unknown", [], full, layout=at.plain(full, len(shape) - 1))
        except UnsupportedError:
            return _Missing()

    # --- bounds ---

    def emit(
        self,
        op: str,
        inputs: Sequence[Value],
        shape: Shape,
        attrs: Attributes = None,
        layout: at.Layout | None = None,
        **arrays: Any,
    ) -> Value:
        """A node, unless a small file asks for more memory than there is."""
        most = _MOST_OF_A_VECTOR if len(shape) == 1 else _MOST_OF_A_VOLUME
        if math.prod(shape) > most:
            raise UnsupportedError(f"that makes {math.prod(shape)} numbers")
        self._spend(sum(np.size(array) for array in arrays.values()))
        return super().emit(op, inputs, shape, attrs, layout, **arrays)

    def _spend(self, numbers: int) -> None:
        self.room -= numbers
        if self.room < 0:
            raise UnsupportedError("that makes more constants than the file holds")

    def refuse(self) -> None:
        """Raise the error that names every problem."""
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


def _input_problem(item: Any, dims: list[int | None], given: Shape | None) -> str:
    """What is wrong with an input; empty if nothing is, and `dims` are those that are `given`."""
    if item.type.tensor_type.elem_type not in (1, 10, 11, 16):
        return "does not hold floating-point numbers"
    if given is not None:
        wanted = list(given)
        fits = not dims or (
            len(dims) == len(wanted) + 1
            and all(n in (None, m) for n, m in zip(dims[1:], wanted, strict=True))
        )
        if not fits or not all(isinstance(n, int) and n > 0 for n in wanted):
            return f"is {_text(dims)}, not {_text([None, *wanted])}"
        dims[:] = [dims[0] if dims else None, *wanted]
    if len(dims) < 2 or None in dims[1:]:
        return f"is {_text(dims)}: give it in `shapes`, without the batch"
    if len(dims) > 5:
        return f"is {_text(dims)}: images have up to three axes of voxels"
    sizes = [n or 1 for n in dims]
    if max(sizes) > _LONGEST or math.prod(sizes[1:]) > _MOST_OF_A_VOLUME:
        return f"is {_text(dims)}: too large"
    return ""


def _text(dims: Sequence[int | None]) -> str:
    return f"[{', '.join('?' if n is None else str(n) for n in dims)}]"
