"""The comparison that every export makes: the engine against torch in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hyperfusion_rt.artifact.manifest import Comparison
from hyperfusion_rt.artifact.plan import join_boxes
from hyperfusion_rt.config import Rule
from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.export.ir.ensemble import MEMBERS, OUTPUT
from hyperfusion_rt.rules import combine
from hyperfusion_rt.runtime.engines.choose import Engine

Outputs = Mapping[str, NDArray[np.floating]]  # of an engine, by name
BATCHES = (1, 2, 7)
# Of the outputs' scale; float16 has three bits more than bfloat16.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2.5e-3}
# Of a result: of a probability, or of a number in units of the target's standard deviation.
DRIFT = 0.01
RULE_TOLERANCE = 1e-5  # of a result made of the same outputs


def reference_outputs(
    network: nn.Module, image: NDArray[np.float32], tabular: NDArray[np.float32]
) -> NDArray[np.float64]:
    """`network` in eval mode and float64, one case at a time: `[N, C]`."""
    exact = copy.deepcopy(network).double().eval()
    with torch.inference_mode():
        found = [
            exact(torch.from_numpy(i[None]).double(), torch.from_numpy(t[None]).double())
            for i, t in zip(image, tabular, strict=True)
        ]
    result: NDArray[np.float64] = torch.cat(found).numpy()
    return result


@dataclass(frozen=True)
class Expected:
    """K cases with every member's raw output in float64.

    `image [K, N·C, D, H, W]` as engines take it, `rows`: each member's encoded rows `[K, T]`,
    `outputs [K, M, N, C]`. `drift`: how much a result may differ, a probability or a number in
    `unit`.
    """

    answered: ClassVar[str] = MEMBERS  # which output of an engine `outputs` is
    batches: ClassVar[tuple[int, ...]] = BATCHES  # at which sizes engines are compared

    image: NDArray[np.float32]
    rows: Sequence[NDArray[np.float32]]
    outputs: NDArray[np.float64]
    real: bool
    classes: bool
    rule: Rule
    drift: float
    unit: str

    @classmethod
    def of(
        cls,
        networks: Sequence[nn.Module],
        image: NDArray[np.float32],
        rows: Sequence[NDArray[np.float32]],
        *,
        real: bool,
        classes: bool,
        rule: Rule,
        spread: float = 1.0,
        unit: str = "",
    ) -> Expected:
        """Run `networks` one box at a time on `image [K, N, C, D, H, W]`.

        `spread`: the target's standard deviation.
        """
        boxes = range(image.shape[1])
        outputs = [
            np.stack([reference_outputs(network, image[:, n], row) for n in boxes], 1)
            for network, row in zip(networks, rows, strict=True)
        ]
        cases = join_boxes(image.reshape(-1, *image.shape[2:]), image.shape[1])
        found = np.stack(outputs, 1)
        return cls(cases, rows, found, real, classes, rule, DRIFT * spread, unit)

    def case(self, index: int) -> Expected:
        """One of the cases alone."""
        one = slice(index, index + 1)
        rows = [row[one] for row in self.rows]
        return replace(self, image=self.image[one], rows=rows, outputs=self.outputs[one])

    @property
    def drift_in(self) -> str:
        """In what `drifts` are."""
        return "in probability" if self.classes else self.unit or "in the target's unit"

    @cached_property
    def results(self) -> NDArray[np.floating]:
        """`[K, C]`: probabilities, or numbers."""
        return self._made(self.outputs)

    def raw(self, found: Outputs) -> NDArray[np.float64]:
        """What an engine found of B cases, as `outputs`: `[B, M, N, C]`."""
        return self._shaped(found[self.answered]).astype(np.float64)

    def _shaped(self, answers: NDArray[np.floating]) -> NDArray[np.floating]:
        return answers.reshape(len(answers), *self.outputs.shape[1:])

    def drifts(self, found: Outputs, index: NDArray[np.intp]) -> NDArray[np.float64]:
        """`[B]`: how much each result of an engine differs from those of the cases `index`."""
        difference: NDArray[np.float64] = np.abs(found[OUTPUT] - self.results[index]).max(1)
        return difference

    def off_rule(self, found: Outputs, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far results are from what the rule makes of the outputs that an engine found."""
        made = self._made(raw)
        return (found[OUTPUT] - made) / max(1.0, float(np.abs(made).max()))

    def _made(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([combine(o, self.classes, self.rule) for o in outputs])


class ExpectedLabels(Expected):
    """Of one network that segments: `outputs [K, 1, N, L, D, H, W]`, a score of each of L labels.

    A result is the label of every voxel; `drift`: how large a part of them may differ.
    """

    answered: ClassVar[str] = OUTPUT  # the scores are all that such a network answers
    # The volumes of seven cases would take seven times the memory of one.
    batches: ClassVar[tuple[int, ...]] = BATCHES[:2]

    @property
    def drift_in(self) -> str:
        """As `Expected.drift_in`."""
        return "of the voxels' labels"

    @cached_property
    def results(self) -> NDArray[np.floating]:
        """`[K, 1, N, D, H, W]`."""
        labels: NDArray[np.floating] = self.outputs.argmax(3)
        return labels

    def drifts(self, found: Outputs, index: NDArray[np.intp]) -> NDArray[np.float64]:
        """As `Expected.drifts`: the part of the voxels that have another label."""
        other = self._shaped(found[OUTPUT]).argmax(3) != self.results[index]
        part: NDArray[np.float64] = other.reshape(len(other), -1).mean(1)
        return part

    def off_rule(self, found: Outputs, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """There is no rule."""
        return np.zeros(1)


def compare(
    engine: Engine, expected: Expected, *, name: str, precision: str = "fp32"
) -> Comparison:
    """Run `engine` on the cases at batch 1, 2 and 7 and compare with float64.

    Each member's raw outputs, relative to its largest one, and the result that they make.

    Raises:
        HyperFusionError: they exceed the precision's `TOLERANCE` or the result's, or the
            result is not what the rule makes of the outputs, or a number is not finite.
    """
    tolerance, most = TOLERANCE[precision], expected.drift
    image, tabular = expected.image, np.concatenate(expected.rows, 1)
    sizes = np.abs(expected.outputs).max((0, *range(2, expected.outputs.ndim)), keepdims=True)
    scale = np.maximum(sizes, 1e-12)
    largest = drift = off_rule = 0.0
    for batch in expected.batches:
        for start in range(0, len(image), batch):
            # A last, smaller batch is filled up with the first cases: the batch size is the point.
            index = np.arange(start, start + batch) % len(image)
            found = engine.run(image[index], tabular[index])
            raw = expected.raw(found)
            largest = _worse(largest, (raw - expected.outputs[index]) / scale)
            drift = _worse(drift, expected.drifts(found, index))
            off_rule = _worse(off_rule, expected.off_rule(found, raw))
    unit = expected.drift_in
    for value, limit, what in (
        (largest, tolerance, "of the outputs' scale"),
        (drift, most, unit),
        (off_rule, RULE_TOLERANCE, f"{unit} from '{expected.rule}' of its members"),
    ):
        if not value <= limit:
            raise HyperFusionError(
                f"{name}: differs from torch in float64 by {value:.2e} {what}, more than the "
                f"tolerance {limit:.0e}; nothing was exported",
                code="export-differs",
            )
    return Comparison(
        against="torch float64",
        cases=len(image),
        real_cases=expected.real,
        batches=expected.batches,
        largest_difference=largest,
        tolerance=tolerance,
        drift=drift,
        drift_tolerance=most,
    )


def _worse(so_far: float, difference: NDArray[np.floating]) -> float:
    found = float(np.abs(difference).max())
    return max(so_far, found) if np.isfinite(found) else float("inf")
