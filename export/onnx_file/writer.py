"""One ONNX model in the making: its nodes, constants and types."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.export.ir.ensemble import Ensemble
from hyperfusion_rt.export.ir.graph import Graph, Node, Shape
from hyperfusion_rt.export.ir.typed import Typed

OPSET = 20
IR_VERSION = 9  # what ONNX Runtime 1.18 reads


BF16_OPSET, BF16_IR_VERSION = 22, 10  # the first in which convolutions may be bfloat16


EACH = ".boxes"


def onnx_type(precision: str) -> int:
    """ONNX's number for fp32, fp16 or bf16."""
    from onnx import TensorProto

    types = {
        "fp32": TensorProto.FLOAT,
        "fp16": TensorProto.FLOAT16,
        "bf16": TensorProto.BFLOAT16,
    }
    return int(types[precision])


def numpy_type(precision: str) -> np.dtype[Any]:
    """NumPy's type for fp32, fp16 or bf16."""
    from onnx import helper

    found: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(onnx_type(precision))
    return found


class Writer:
    """Collects the nodes and constants of one model. `writers`: how each operation is written."""

    def __init__(self, typed: Typed, writers: Mapping[str, Callable[[Writer, Node], None]]) -> None:
        self.typed = typed
        self.writers = writers
        self.graph = Graph({}, [], [], {})  # the one whose nodes are being written
        self.type = "fp32"  # of the node that is being written
        self.types: dict[str, str] = {}  # of every value that is not fp32
        self.nodes: list[Any] = []
        self.constants: dict[bytes, Any] = {}  # by content: equal ones are kept once

    def add(self, graph: Graph) -> None:
        """Write the nodes of `graph`."""
        self.graph = Graph(graph.inputs, graph.nodes, graph.outputs, dict(graph.shapes))
        for node in graph.nodes:
            narrow = node.output.removesuffix(EACH) in self.typed.narrow
            self.type = self.typed.precision if narrow else "fp32"
            if not self.typed.narrow:
                self.writers[node.op](self, node)
                continue
            # A strongly typed network: every cast is written, and every value has one type.
            output = node.output
            if narrow and output in graph.outputs:
                output = f"{output}.{self.type}"
                self.graph.shapes[output] = self.graph.shapes[node.output]
            inputs = [self.cast(name, self.type) for name in node.inputs]
            self.writers[node.op](self, replace(node, inputs=inputs, output=output))
            if narrow:
                self.types[output] = self.type
            if output != node.output:
                self.op("Cast", [output], node.output, to=onnx_type("fp32"))
        self.type = "fp32"

    def cast(self, name: str, wanted: str) -> str:
        """`name` as a value of the type `wanted`."""
        if self.types.get(name, "fp32") == wanted:
            return name
        made = f"{name}.as_{wanted}"
        if made not in self.types:
            self.op("Cast", [name], made, to=onnx_type(wanted))
            self.types[made] = wanted
            self.graph.shapes[made] = self.graph.shapes[name]
        return made

    def trunk(self, ensemble: Ensemble, outputs: Sequence[str] = ()) -> None:
        """The trunk: from a batch of cases, on a batch of boxes, to a batch of cases.

        `outputs`: features that leave the model, hence in float32.
        """
        trunk = ensemble.trunk
        if ensemble.boxes == 1 or not trunk.nodes:
            self.add(replace(trunk, outputs=list(outputs)))
            return

        def each(value: str) -> str:
            return value + EACH  # the same value with a batch of boxes

        nodes = [
            Node(n.op, [each(v) for v in n.inputs], each(n.output), n.attrs, n.arrays, n.layer)
            for n in trunk.nodes
        ]
        for name, shape in trunk.inputs.items():
            self.rebatch(name, shape, each(name))
        left = [each(name) for name in outputs]
        self.add(Graph({}, nodes, left, {each(v): shape for v, shape in trunk.shapes.items()}))
        for name in trunk.outputs:
            if name not in trunk.inputs:
                self.rebatch(each(name), ensemble.head.inputs[name], name)

    def rebatch(self, x: str, shape: Sequence[int], output: str) -> None:
        """`x` with `shape` per sample; the batch is what is left."""
        target = self.constant(f"{output}.shape", np.array([-1, *shape], np.int64))
        self.op("Reshape", [x, target], output)
        if x in self.types:
            self.types[output] = self.types[x]

    def model(
        self,
        inputs: dict[str, Shape],
        outputs: Sequence[str],
        shapes: dict[str, Shape],
        raw: Mapping[str, int] | None = None,
    ) -> Any:
        """The model. `raw`: more inputs `[B, 1]`, name → type."""
        from onnx import TensorProto, helper

        def info(name: str, shape: Sequence[int]) -> Any:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

        targets = []
        for name in outputs:
            # An output may be an input or be named twice; ONNX wants a node for each.
            target = f"{name}_out" if name in inputs else name
            if name in inputs:
                self.op("Identity", [name], target)
            targets.append(info(target, shapes[name]))
        body = helper.make_graph(
            self.nodes,
            "hyperfusion",
            [
                *(info(name, shape) for name, shape in inputs.items()),
                *(
                    helper.make_tensor_value_info(name, kind, ["batch", 1])
                    for name, kind in (raw or {}).items()
                ),
            ],
            targets,
            list(self.constants.values()),
        )
        bf16 = self.typed.precision == "bf16"
        return helper.make_model(
            body,
            opset_imports=[helper.make_opsetid("", BF16_OPSET if bf16 else OPSET)],
            ir_version=BF16_IR_VERSION if bf16 else IR_VERSION,
            producer_name="hyperfusion_rt",
        )

    def op(self, kind: str, inputs: Sequence[str], output: str, **attrs: Any) -> str:
        """Write one ONNX node; returns its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attrs))
        return output

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Integers as int64, numbers in the type of the node."""
        kind = np.dtype(np.int64) if array.dtype.kind == "i" else numpy_type(self.type)
        return self.typed_constant(name, np.ascontiguousarray(array).astype(kind))

    def typed_constant(self, name: str, wanted: NDArray[Any]) -> str:
        """An array as it is; texts are of dtype object."""
        from onnx import numpy_helper

        key = hashlib.sha256(repr((wanted.dtype, wanted.shape)).encode())
        key.update(repr(wanted.tolist()).encode() if wanted.dtype == object else wanted.tobytes())
        if key.digest() not in self.constants:
            self.constants[key.digest()] = numpy_helper.from_array(wanted, name)
        return str(self.constants[key.digest()].name)

    def weight(self, node: Node, role: str, array: NDArray[Any] | None = None) -> str:
        """An array of `node`, or `array` in its place."""
        return self.constant(f"{node.output}.{role}", node.arrays[role] if array is None else array)

    def per_channel(self, node: Node, role: str) -> str:
        """An array `[C]`, shaped to meet the node's input."""
        dims = len(self.graph.shapes[node.inputs[0]]) - 1
        array = node.arrays[role]
        return self.weight(node, role, array.reshape(len(array), *(1,) * dims))

    def reshape(self, x: str, shape: Sequence[int], output: str) -> str:
        """`shape` without the batch, of which ONNX copies the size (0)."""
        target = self.constant(f"{output}.shape", np.array([0, *shape], np.int64))
        return self.op("Reshape", [x, target], output)

    def mix(self, parts: str, e: str, k: int, rest: Sequence[int], output: str) -> None:
        """`Σ_k e[b, k] parts[b, k, ...]`, parts `[B, K, *rest]`."""
        factor = self.reshape(e, [k, *(1,) * len(rest)], f"{output}.e")
        weighted = self.op("Mul", [parts, factor], f"{output}.weighted")
        axis = self.constant(f"{output}.axis", np.array([1], np.int64))
        self.op("ReduceSum", [weighted, axis], output, keepdims=0)
