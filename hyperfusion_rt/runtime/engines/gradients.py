"""Gradients of an answer: integrated ones, by captum, through the torch engine.

    IG(x) = (x - x') · ∫_0^1 ∂answer(x' + a (x - x')) / ∂x da

Their sum is answer(x) - answer(x'), but for the error of the sum that stands for the integral
(Sundararajan, Taly and Yan, ICML 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import EngineError, MissingExtraError
from hyperfusion_rt.runtime.engines.eager import TorchEngine

Floats = NDArray[np.float32]

# Points of the Gauss-Legendre rule, and how many of them are held at once.
_STEPS, _HELD = 64, 2


@dataclass(frozen=True)
class Integrated:
    """`values float32 [N, C, D, H, W]`: what each voxel adds. `answer`, `baseline`: their sum is
    the difference of these, up to `gap`, the error of the integral."""

    values: Floats
    answer: float
    baseline: float

    @property
    def gap(self) -> float:
        """How far the sum of the values is from what it must be."""
        return float(self.values.sum(dtype=np.float64)) - (self.answer - self.baseline)


def integrated_gradients(
    source: Path | Any,
    images: Floats,
    baseline: Floats,
    row: Floats,
    of: int,
    *,
    threads: int | None = None,
    steps: int = _STEPS,
) -> Integrated:
    """Integrated gradients of number `of` of the answer, from `baseline` to `images`.

    Args:
        source: a plan, or the file of one (the native or the torch engine's).
        images: `[N, C, D, H, W]`, as the baseline.
        row: the encoded rows of all members, `[ΣT]`.
        steps: points at which the gradient is taken.

    Raises:
        MissingExtraError: captum is not installed.
        EngineError: an answer or a gradient is not finite.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise MissingExtraError("captum", "explain", "the method gradients") from None
    engine = TorchEngine(source, threads, gradients=True)
    rows = engine.tensor(np.ascontiguousarray(row[None]))

    def answer(x: Any) -> Any:
        many = {"image": x, "tabular": rows.expand(len(x), -1)}
        return engine.forward(many)["output"][:, of]

    case, start = (
        engine.tensor(np.ascontiguousarray(x.reshape(1, -1, *x.shape[2:])))
        for x in (images, baseline)
    )
    found = IntegratedGradients(answer).attribute(
        case, start, n_steps=steps, method="gausslegendre", internal_batch_size=_HELD
    )
    values = found.detach().float().cpu().numpy().reshape(images.shape)
    ends = [float(answer(x).detach()[0]) for x in (case, start)]
    if not (np.isfinite(values).all() and np.isfinite(ends).all()):
        raise EngineError(
            "the network's output, or its gradient, is not finite; are the inputs plausible?",
            code="engine-output-not-finite",
        )
    return Integrated(values, *ends)
