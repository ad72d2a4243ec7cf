"""From the raw outputs of members and boxes to one prediction. NumPy only: both sides use it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.config import Task

Float = NDArray[np.float64]


def softmax(logits: NDArray[np.floating]) -> Float:
    """Softmax over the last axis, in float64."""
    shifted = np.asarray(logits, np.float64)
    shifted = np.exp(shifted - shifted.max(-1, keepdims=True))
    result: Float = shifted / shifted.sum(-1, keepdims=True)
    return result


def confidence_weights(probabilities: Float) -> Float:
    """Weights [M] inverse to the entropy of each member's `probabilities [M, C]`; they sum to 1."""
    safe = np.clip(probabilities, 1e-12, 1.0)
    entropy = -(safe * np.log(safe)).sum(-1)
    weights = 1.0 / np.maximum(entropy, 1e-6)
    result: Float = weights / weights.sum()
    return result


def combine(
    outputs: NDArray[np.floating], task: Task, how: Literal["mean", "confidence_weighted"]
) -> tuple[Float, float | None]:
    """Combine `outputs [M, N, C]` of M members on N boxes into `[C]` and the members' spread.

    AD: logits become probabilities, averaged over the boxes (the two hippocampi), then over the
    members, plainly or weighted by confidence. Brain age: years, averaged over both. The spread is
    the standard deviation over the members of the predicted class's probability, or of the years;
    None for a single member.
    """
    values = np.asarray(outputs, np.float64) if task == "brain-age" else softmax(outputs)
    members = values.mean(1)
    if task == "ad" and how == "confidence_weighted":
        combined: Float = confidence_weights(members) @ members
    else:
        combined = members.mean(0)
    if len(members) == 1:
        return combined, None
    index = int(combined.argmax()) if task == "ad" else 0
    return combined, float(members[:, index].std())
