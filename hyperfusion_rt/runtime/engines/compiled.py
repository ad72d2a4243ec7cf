"""Any network on the native CPU engine, without torch: what `compile` makes and a file keeps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.plan import Plan, Side, fitting, read_plan, write_plan
from hyperfusion_rt.errors import EngineError
from hyperfusion_rt.machine import usable_cores
from hyperfusion_rt.runtime.engines.native import CompiledProgram

Floats = NDArray[np.float32]


class CompiledNetwork:
    """A network that runs on the CPU: `y = network(x)`, as its author called it.

    Calls take and give float32 arrays `[B, ...]` of any batch, or tensors if they are given any;
    several outputs are a tuple. Calls from several threads take turns.

    Args:
        source: a file that `save` wrote, or a plan.
        threads: None uses every core that the process may use.

    Attributes:
        inputs, outputs: name → shape without the batch.
        precision: fp32 or bf16.

    Raises:
        EngineError: the file cannot be read, is damaged, or is the engine of an artifact.
    """

    def __init__(self, source: Path | Plan, threads: int | None = None) -> None:
        plan = source if isinstance(source, Plan) else read_plan(source)
        if plan.sides is None:
            raise EngineError(
                f"{source}: the engine of an artifact, which takes scans: open its folder with "
                "`hyperfusion_rt.load`",
                code="engine-wrong-input",
            )
        self._plan, self._sides = plan, plan.sides
        threads = threads or usable_cores()
        self._program = CompiledProgram(plan.trunk, plan.tensors, threads, precision=plan.precision)

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Name → shape without the batch."""
        return {side.name: side.shape for side in self._sides.inputs}

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Name → shape without the batch."""
        return {side.name: side.shape for side in self._sides.outputs}

    @property
    def precision(self) -> str:
        """fp32, or bf16: volumes are stored so, and convolutions multiply such numbers."""
        return self._plan.precision

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """Run a batch: the inputs in their order, or by name, `[B, ...]` each.

        Raises:
            EngineError: an input is missing, unknown or of another shape.
        """
        names = [side.name for side in self._sides.inputs]
        given = dict(zip(names, arrays, strict=False))
        unknown = sorted(set(named) - set(names) | set(given) & set(named))
        if len(arrays) > len(names) or unknown:
            raise EngineError(
                f"the network has the inputs {', '.join(names)}; it was given {len(arrays)} in "
                f"their order and {', '.join(sorted(named)) or 'none'} by name",
                code="engine-wrong-input",
            )
        given |= named
        feeds = {s.name: self._fed(s, given.get(s.name)) for s in self._sides.inputs}
        batches = {len(array) for array in feeds.values()}
        if len(batches) != 1:
            raise EngineError(
                f"the inputs have batches of {sorted(batches)} samples", code="engine-wrong-input"
            )
        found = dict(zip(self._program.program.outputs, self._run(feeds), strict=True))
        outputs: tuple[Any, ...] = tuple(
            _as_given(side, found[side.name]) for side in self._sides.outputs
        )
        if any(hasattr(value, "detach") for value in given.values()):
            # The caller has torch.
            outputs = tuple(sys.modules["torch"].from_numpy(array) for array in outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _run(self, feeds: dict[str, Floats]) -> list[Floats]:
        program = self._program.program
        if not program.ops:
            return [feeds[name] for name in program.outputs]
        return self._program([feeds[name] for name in program.inputs])

    def _fed(self, side: Side, value: Any) -> Floats:
        value = value.detach().cpu().float().numpy() if hasattr(value, "detach") else value
        array = fitting(side.name, value, side.shape)
        if side.last:
            array = np.ascontiguousarray(np.moveaxis(array, -1, 1))
        return array.reshape(len(array), *self._plan.trunk.inputs[side.name])

    def save(self, path: str | Path) -> None:
        """Write the network to a file, which `load_network` reads.

        Raises:
            HyperFusionError: it cannot be written.
        """
        write_plan(self._plan, Path(path))


def _as_given(side: Side, array: Floats) -> Floats:
    if not side.last:
        return array.reshape(len(array), *side.shape)
    first = array.reshape(len(array), side.shape[-1], *side.shape[:-1])
    return np.ascontiguousarray(np.moveaxis(first, 1, -1))


def load_network(path: str | Path, threads: int | None = None) -> CompiledNetwork:
    """The network of a file that `CompiledNetwork.save` wrote; needs no torch.

    Args:
        threads: None uses every core that the process may use.

    Raises:
        EngineError: the file cannot be read, is damaged, or is the engine of an artifact.
    """
    return CompiledNetwork(Path(path), threads)
