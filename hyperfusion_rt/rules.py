"""From the raw outputs of members and boxes to one prediction.

The NumPy definition of what an exported ensemble computes in its own graph. Both sides use it:
validation during training, the comparison at export.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.config import Rule

Float = NDArray[np.float64]


def softmax(logits: NDArray[np.floating]) -> Float:
    """Softmax over the last axis, in float64."""
    shifted = np.asarray(logits, np.float64)
    shifted = np.exp(shifted - shifted.max(-1, keepdims=True))
    result: Float = shifted / shifted.sum(-1, keepdims=True)
    return result


def confidences(probabilities: Float) -> Float:
    """`[M]`, the inverse of the entropy (in nats) of each member's `probabilities [M, C]`."""
    safe = np.clip(probabilities, 1e-12, 1.0)
    entropy = -(safe * np.log(safe)).sum(-1)
    result: Float = 1.0 / np.maximum(entropy, 1e-6)
    return result


def per_member(outputs: NDArray[np.floating], classes: bool) -> Float:
    """Raw `outputs [M, N, C]` of M members on N boxes → `[M, C]`, averaged over the boxes.

    With `classes`: logits become probabilities; otherwise outputs are numbers.
    """
    values = softmax(outputs) if classes else np.asarray(outputs, np.float64)
    result: Float = values.mean(1)
    return result


def spread(outputs: NDArray[np.floating], classes: bool, index: int) -> float | None:
    """Standard deviation over the members of output `index` (a class's probability, or the number).

    `outputs [M, N, C]` as in `combine`. None for a single member.
    """
    members = per_member(outputs, classes)
    return None if len(members) == 1 else float(members[:, index].std())


def mixture(outputs: NDArray[np.floating]) -> Float:
    """`[2]`: mean and standard deviation of the even mixture of `outputs [M, N, 2]`.

    Each of M members on N boxes answers the mean and the standard deviation of a normal
    distribution. The variance is the mean variance and the variance of the means (the law of total
    variance).
    """
    means, deviations = np.moveaxis(np.asarray(outputs, np.float64), -1, 0)
    return np.array([means.mean(), np.sqrt(np.square(deviations).mean() + means.var())])


def combine(outputs: NDArray[np.floating], classes: bool, how: Rule) -> Float:
    """Combine raw `outputs [M, N, C]` of M members on N boxes into `[C]`.

    With `classes`: logits become probabilities, averaged over the boxes (the two
    hippocampi), then combined:

    - `mean`: the plain average;
    - `confidence_weighted`: weights inverse to each member's entropy;
    - `weighted_voting`: each member votes for its most probable class with that weight; the result
      is each class's share of the votes;
    - `most_confident`: the member of the smallest entropy alone.

    Without: numbers, averaged over both; `how` must be `mean`. So are standard deviations here, as
    engines do it; what they are together says `mixture`.
    """
    members = per_member(outputs, classes)
    if how == "mean":
        combined: Float = members.mean(0)
        return combined
    if not classes:
        raise ValueError(f"{how} needs classes, not numbers")
    weights = confidences(members)
    if how == "most_confident":
        best: Float = members[int(weights.argmax())]
        return best
    if how == "weighted_voting":
        members = np.eye(members.shape[1])[members.argmax(1)]
    weighted: Float = weights @ members / weights.sum()
    return weighted
