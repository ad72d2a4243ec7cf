"""From a `torch.nn.Module` to a `Graph`, by way of `torch.export`.

The handlers of single operations are in `aten.py` and `aten_layers.py`. What depends on parameters
alone is computed at once.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.export.ir.aten import HANDLERS, operation
from hyperfusion_rt.export.ir.builder import BATCH, Builder, UnsupportedError, Value
from hyperfusion_rt.export.ir.graph import Graph, Shape
from hyperfusion_rt.export.ir.memory import Memory, written
from hyperfusion_rt.kernels.ops import whole_ops


def lower(module: nn.Module, inputs: dict[str, Shape]) -> Graph:
    """Lower `module` in eval mode; its forward takes `inputs` in this order, with a batch axis.

    Args:
        inputs: the names and the shapes without the batch axis: `{"image": (1, 64, 96, 64)}`.

    One output is called `output`, several `output0`, `output1`, ...; those in lists and
    dictionaries come in torch's order.

    Raises:
        HyperFusionError: torch.export cannot trace the module, or it does something that engines
            cannot do; the message names the operation and the layer.
    """
    module = copy.deepcopy(module).double().eval()
    examples = tuple(torch.zeros(BATCH, *shape, dtype=torch.float64) for shape in inputs.values())
    try:
        with warnings.catch_warnings(), torch.no_grad(), whole_ops():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, examples)
    except Exception as error:
        raise HyperFusionError(
            f"{type(module).__name__} cannot be exported: torch.export says: "
            f"{str(error).strip().splitlines()[0]}",
            code="export-network-untraceable",
        ) from error
    return _Lowering(program, inputs).graph


class _Lowering(Builder):
    def __init__(self, program: torch.export.ExportedProgram, inputs: dict[str, Shape]) -> None:
        super().__init__(inputs)
        self.target = ""
        self.memory = Memory(program.graph)
        signature = program.graph_signature
        constants: dict[str, Any] = {
            **{n: program.state_dict[t] for n, t in signature.inputs_to_parameters.items()},
            **{
                n: program.state_dict.get(t, program.constants.get(t))
                for n, t in signature.inputs_to_buffers.items()
            },
            **{
                n: program.constants[t]
                for n, t in signature.inputs_to_lifted_tensor_constants.items()
            },
        }
        names = iter(inputs)
        values: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for node in program.graph.nodes:
                if node.op == "placeholder":
                    if node.name in constants:
                        values[node] = constants[node.name].detach()
                    else:
                        name = next(names)
                        values[node] = self.input(name, inputs[name])
                elif node.op == "call_function":
                    values[node] = self._call(node, values)
                    if isinstance(values[node], Value):
                        self._written(node, values)
                elif node.op == "output":
                    self._output(node, values)
                else:
                    self._refuse(node, f"{node.op} {node.target}")
        self.graph.remove_dead()

    def _output(self, node: fx.Node, values: dict[fx.Node, Any]) -> None:
        found = fx.node.map_arg(node.args[0], lambda n: values[n])
        made = torch.utils._pytree.tree_leaves(found)
        for index, value in enumerate(made):
            if not isinstance(value, Value):
                raise HyperFusionError(
                    "the network's output does not depend on its input",
                    code="export-unsupported-operation",
                )
            try:
                self.output(value, "output" if len(made) == 1 else f"output{index}")
            except UnsupportedError as error:
                self._refuse(node, f"an output {error}")

    def _refuse(self, node: fx.Node, what: str) -> None:
        raise HyperFusionError(
            f"{what} in {_layer(node) or 'the network'}: engines cannot do this. They know: "
            f"{', '.join(sorted(supported()))}",
            code="export-unsupported-operation",
        )

    def _written(self, node: fx.Node, values: dict[fx.Node, Any]) -> None:
        """After an operation in place, all that reads what it has written finds its output."""
        for source in written(node):
            try:
                names = self.memory.names(source, node)
            except UnsupportedError as error:
                self._refuse(node, f"{self.target} {error}")
            for name in names:
                values[name] = values[node]

    def _keep(self, constant: Tensor) -> None:
        """Before a constant is written in place: the nodes that have read it keep its numbers."""
        if constant.dtype != torch.float64:
            return  # they have a copy
        numbers = constant.detach().numpy()
        for node in self.graph.nodes:
            for key, array in node.arrays.items():
                if np.may_share_memory(array, numbers):
                    node.arrays[key] = array.copy()

    def _call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args = fx.node.map_arg(node.args, lambda n: values[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: values[n])
        self.layer, self.target = _layer(node), operation(node.target)
        depends = any(isinstance(x, Value) for x in torch.utils._pytree.tree_leaves((args, kwargs)))
        if not depends:
            assert callable(node.target)
            for source in written(node):
                self._keep(values[source])
            return node.target(*args, **kwargs)
        handler = HANDLERS.get(self.target)
        if handler is None:
            self._refuse(node, self.target)
            raise AssertionError
        made = node.meta.get("val")
        indices = self.target == "getitem"  # of a pooling: they fail where they are read
        if isinstance(made, torch.Tensor) and not (made.is_floating_point() or indices):
            self._refuse(node, f"{self.target} that makes {made.dtype}")
        try:
            inspect.signature(handler).bind(self, *args, **kwargs)
        except TypeError as error:
            self._refuse(node, f"{self.target} with these arguments ({error})")
        try:
            return handler(self, *args, **kwargs)
        except UnsupportedError as error:
            self._refuse(node, f"{self.target} {error}")


def _layer(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("", None))[0] if stack else ""
    return str(path).removeprefix("L['self'].")


def supported() -> set[str]:
    """The names of the ATen operations that can be lowered."""
    return set(HANDLERS)
