"""The comparison that every export makes: the engine against torch in float64."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.runtime.artifact import Comparison
from hyperfusion_rt.runtime.engines import Engine

BATCHES = (1, 2, 7)
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # of the outputs' scale


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


def compare(
    engine: Engine,
    expected: NDArray[np.float64],
    image: NDArray[np.float32],
    tabular: NDArray[np.float32],
    *,
    real_cases: bool,
    name: str,
    precision: str = "fp32",
) -> Comparison:
    """Run `engine` on the cases at batch 1, 2 and 7 and compare with float64.

    The difference is relative to the largest output. `expected [N, C]` as `reference_outputs`
    makes it, `image [N, 1, D, H, W]`, `tabular [N, T]`.

    Raises:
        HyperFusionError: it exceeds the precision's `TOLERANCE` or is not a number.
    """
    tolerance = TOLERANCE[precision]
    scale = max(float(np.abs(expected).max()), 1e-12)
    largest = 0.0
    for batch in BATCHES:
        for start in range(0, len(image), batch):
            # A last, smaller batch is filled up with the first cases: the batch size is the point.
            index = np.arange(start, start + batch) % len(image)
            found = engine(image[index], tabular[index])
            difference = float(np.abs(found - expected[index]).max()) / scale
            largest = max(largest, difference) if np.isfinite(difference) else float("inf")
    if not largest <= tolerance:
        raise HyperFusionError(
            f"{name}: its outputs differ from torch in float64 by {largest:.2e} of the outputs' "
            f"scale, more than the tolerance {tolerance:.0e}; nothing was exported"
        )
    return Comparison(
        against="torch float64",
        cases=len(image),
        real_cases=real_cases,
        batches=BATCHES,
        largest_difference=largest,
        tolerance=tolerance,
    )
