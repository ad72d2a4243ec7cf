"""Any network as a native CPU engine: a torch module, or an ONNX file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.export.fuse.fuser import plan_network
from hyperfusion_rt.export.ir.graph import Shape
from hyperfusion_rt.runtime.engines.compiled import CompiledNetwork

# Largest difference from the module itself, of the outputs' scale.
_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}


def compile(
    network: Any,
    example: Any = None,
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
    threads: int | None = None,
) -> CompiledNetwork:
    """A network that runs on the native CPU engine, called as before.

    Args:
        network: an `nn.Module`, which is taken in eval mode, or the path of an ONNX file.
        example: what the network takes: a tensor or array `[B, ...]`, or several in a tuple, or by
            name in a dictionary. An ONNX file whose inputs have shapes needs none.
        precision: bf16 stores volumes and multiplies in bfloat16.
        threads: of the engine; None uses every core that the process may use.

    A module's outputs on the example are compared with the engine's.

    Raises:
        MissingExtraError: torch or onnx is not installed.
        HyperFusionError: the network does something that the engine cannot do (the message names
            it, and where), the example does not fit, or the engine's outputs are not the network's.
    """
    if precision not in _TOLERANCE:
        raise HyperFusionError(
            f"`precision` is fp32 or bf16, not {precision!r}", code="export-precision-unknown"
        )
    if isinstance(network, str | Path):
        from hyperfusion_rt.export.onnx_import.read import read_onnx

        graph = read_onnx(Path(network), _shapes(example, None))
        return CompiledNetwork(plan_network(graph, precision=precision), threads)
    from hyperfusion_rt.export.ir.lower import lower

    names = _parameters(network)
    inputs = _shapes(example, names)
    made = CompiledNetwork(plan_network(lower(network, inputs), precision=precision), threads)
    _compare(network, made, example, _TOLERANCE[precision])
    return made


def _parameters(module: Any) -> list[str]:
    """The names of what `forward` takes; `x0`, `x1`, ... stand for `*inputs`."""
    names = []
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"x{index}" for index in range(8)]
        elif parameter.kind is not parameter.VAR_KEYWORD:
            names.append(parameter.name)
    return names


def _several(example: Any) -> Sequence[Any]:
    return example if isinstance(example, tuple | list) else (example,)


def _shapes(example: Any, names: Sequence[str] | None) -> dict[str, Shape]:
    if example is None and names is None:
        return {}
    if isinstance(example, Mapping):
        return {str(name): _shape(name, value) for name, value in example.items()}
    given = _several(example)
    if names is None:
        raise HyperFusionError(
            "the example of an ONNX file is a dictionary, name of the input → array `[B, ...]`",
            code="export-example",
        )
    if example is None or len(given) > len(names):
        raise HyperFusionError(
            f"the example: the network takes {', '.join(names)}; give an array `[B, ...]` for each",
            code="export-example",
        )
    return {name: _shape(name, value) for name, value in zip(names, given, strict=False)}


def _shape(name: Any, value: Any) -> Shape:
    shape = tuple(np.shape(value))
    if len(shape) < 2 or min(shape) < 1:
        raise HyperFusionError(
            f"the example: {name} has the shape {list(shape)}; it needs a batch and more axes",
            code="export-example",
        )
    return tuple(int(n) for n in shape[1:])


def _compare(network: Any, made: CompiledNetwork, example: Any, limit: float) -> None:
    import torch
    from torch.utils._pytree import tree_leaves

    named = isinstance(example, Mapping)
    values = [
        v.detach().cpu().float() if isinstance(v, torch.Tensor) else torch.as_tensor(np.asarray(v))
        for v in (example.values() if named else _several(example))
    ]
    was_training = network.training
    network.eval()
    try:
        first = next((p for p in network.parameters()), None)
        placed = [v.to(first) if first is not None else v for v in values]
        with torch.inference_mode():
            if named:
                expected = network(**dict(zip(example, placed, strict=True)))
            else:
                expected = network(*placed)
    finally:
        network.train(was_training)
    found = made(*values) if not named else made(**dict(zip(made.inputs, values, strict=True)))
    found = found if isinstance(found, tuple) else (found,)
    for name, have, want in zip(made.outputs, found, tree_leaves(expected), strict=True):
        want = want.float().cpu()
        scale = float(want.abs().max())
        off = float((have - want).abs().max()) / max(scale, 1e-6)
        if not off <= limit and bool(torch.isfinite(want).all()):
            raise HyperFusionError(
                f"the engine's {name} differs from the network's by {off:.1e} of its scale; no "
                "engine was made",
                code="export-differs",
            )
