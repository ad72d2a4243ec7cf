"""Narrow types in a graph: which operations can have them, and what they cost, emulated on the CPU.

Volumes are kept in float16 or bfloat16, vectors (the table, the head, pooled features) in float32:
all the memory and time is in the volumes. An operation whose numbers do not fit the type's range
stays float32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperfusion_rt.artifact.operations import Activation
from hyperfusion_rt.artifact.plan import join_boxes, split_boxes
from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.export.compare import Expected
from hyperfusion_rt.export.ir.ensemble import IMAGE, Ensemble
from hyperfusion_rt.export.ir.graph import TABLE, Graph, Node, run
from hyperfusion_rt.export.ir.typed import Typed

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# A scan may be this much more extreme than the calibration scans.
HEADROOM = 8.0
# Statistics over a volume: sums of very many numbers, and their squares.
_EXACT = ("group_norm", "channel_norm", "global_norm", "reduce")
# TensorRT has these activations, and transposed convolutions, in float16 only.
_NO_BF16 = ("hardswish", "mish")


def could_be_narrow(graph: Graph, node: Node, precision: str) -> bool:
    """Whether `node` reads a volume and makes a volume, and engines have it in `precision`."""
    act = node.attrs
    if precision == "bf16" and isinstance(act, Activation) and act.kind in _NO_BF16:
        return False
    if precision == "bf16" and node.op.endswith("conv_transpose"):
        return False
    read, made = graph.shapes[node.inputs[0]], graph.shapes[node.output]
    return len(read) == 4 and len(made) == 4 and node.op not in _EXACT


def label(graph: Graph, node: Node) -> str:
    """Where `node` is, for people; one that belongs to no layer stands after one."""
    before = {other.output: other for other in graph.nodes}
    found: Node | None = node
    while found is not None and not found.layer:
        found = before.get(found.inputs[0])
    if found is node:
        return f"{node.layer} ({node.op})"
    return f"{node.op} after {found.layer}" if found else f"{node.output} ({node.op})"


def run_ensemble(
    ensemble: Ensemble,
    image: Tensor,
    tabular: Tensor,
    before: Callable[[Node, Tensor], Tensor],
    after: Callable[[Node, Tensor], Tensor],
) -> dict[str, Tensor]:
    """The head's outputs by name, in plain torch, in the inputs' dtype.

    `before` maps what a node reads (inputs and weights), `after` what it makes.
    """
    trunk, head, boxes = ensemble.trunk, ensemble.head, ensemble.boxes
    feed = {IMAGE: image, TABLE: tabular}
    if trunk.nodes:
        made = run(trunk, {IMAGE: split_boxes(image, boxes)}, before=before, after=after)
        features = [join_boxes(x, boxes) for x in made]
        feed |= dict(zip(trunk.outputs, features, strict=True))
    wanted = {name: feed[name] for name in head.inputs}
    return dict(zip(head.outputs, run(head, wanted, before=before, after=after), strict=True))


def choose(ensemble: Ensemble, precision: str, expected: Expected) -> Typed:
    """Which operations of `ensemble` take `precision`, by their numbers on the cases."""
    if precision == "fp32":
        return Typed(precision)
    largest: dict[str, float] = {}

    def note(node: Node, x: Tensor) -> Tensor:
        found = float(x.abs().max()) if x.numel() else 0.0
        largest[node.output] = max(largest.get(node.output, 0.0), found)
        return x

    tabular = torch.from_numpy(np.concatenate(expected.rows, 1))
    with torch.inference_mode():
        run_ensemble(ensemble, torch.from_numpy(expected.image), tabular, note, note)
    limit = torch.finfo(TYPES[precision]).max / HEADROOM
    narrow, kept = set(), {}
    for graph in (ensemble.trunk, ensemble.head):
        for node in graph.nodes:
            if not could_be_narrow(graph, node, precision) or node.output in ensemble.head.outputs:
                continue  # what is answered is float32
            if largest[node.output] <= limit:
                narrow.add(node.output)
            else:
                kept[label(graph, node)] = largest[node.output]
    return Typed(precision, frozenset(narrow), kept)


class Emulated:
    """The typed network as an engine: numbers are rounded before and after every narrow operation.

    Sums inside an operation are float32. See `hyperfusion_rt.runtime.engines.choose.Engine`.
    """

    def __init__(self, ensemble: Ensemble, precision: str, narrow: Collection[str]) -> None:
        self.ensemble, self.narrow, self.dtype = ensemble, narrow, TYPES.get(precision)

    def _rounded(self, node: Node, x: Tensor) -> Tensor:
        if self.dtype is None or node.output not in self.narrow:
            return x
        return x.to(self.dtype).to(x.dtype)

    def run(
        self, image: NDArray[np.float32], tabular: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float32]]:
        """Run one batch of cases."""
        with torch.inference_mode():
            found = run_ensemble(
                self.ensemble,
                torch.from_numpy(image),
                torch.from_numpy(tabular),
                after=self._rounded,
                before=self._rounded,
            )
        return {name: value.numpy() for name, value in found.items()}


def drifts(ensemble: Ensemble, typed: Typed, expected: Expected) -> NDArray[np.float64]:
    """Each case's largest change of a result (probability, number) by the narrow type, emulated."""
    found = Emulated(ensemble, typed.precision, typed.narrow).run(
        expected.image, np.concatenate(expected.rows, 1)
    )
    change = expected.drifts(found, np.arange(len(expected.image)))
    return np.where(np.isfinite(change), change, np.inf)


def drift(ensemble: Ensemble, typed: Typed, expected: Expected) -> float:
    """The largest of `drifts`."""
    return float(drifts(ensemble, typed, expected).max())


def blame(ensemble: Ensemble, typed: Typed, expected: Expected) -> tuple[str, float]:
    """The layer that alone makes the largest drift of the case that drifts most, and that drift."""
    case = expected.case(int(drifts(ensemble, typed, expected).argmax()))
    layers: dict[str, set[str]] = {}
    for graph in (ensemble.trunk, ensemble.head):
        for node in graph.nodes:
            if node.output in typed.narrow:
                layers.setdefault(label(graph, node), set()).add(node.output)
    alone = {
        layer: drift(ensemble, Typed(typed.precision, frozenset(names)), case)
        for layer, names in layers.items()
    }
    if not alone:
        return "float32 itself", drift(ensemble, typed, case)
    worst = max(alone, key=lambda layer: alone[layer])
    return worst, alone[worst]


def check_drift(ensemble: Ensemble, typed: Typed, expected: Expected) -> float:
    """The emulated drift.

    Raises:
        HyperFusionError: it is more than `expected.drift`; names the layer that causes most of it.
    """
    found = drift(ensemble, typed, expected)
    limit = expected.drift
    if not found <= limit:
        layer, part = blame(ensemble, typed, expected)
        raise HyperFusionError(
            f"{typed.precision} (emulated): the result drifts by {found:.2g}, more than the "
            f"tolerance {limit:g}; '{layer}' alone causes {part:.2g}. Export with another "
            "`precision`; nothing was exported",
            code="export-precision-drifts",
        )
    return found
