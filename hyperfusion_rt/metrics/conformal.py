"""Split conformal prediction: sets and intervals that hold the truth as often as they say.

Of n cases whose truth was known and whose network did not learn from them, the scores say how far
the truth was from the answer. Of a new case of the same population, the truth has a score of at
most `threshold(scores, level)` with probability `level` at least (Vovk et al., 2005; Lei et al.,
JASA 2018), whatever the network is.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TEMPERATURES = (0.05, 20.0)
_STEPS = 60


def highest_level(cases: int) -> float:
    """The highest level that the scores of so many cases can give: n / (n + 1)."""
    return cases / (cases + 1)


def threshold(scores: Floats, level: float) -> float:
    """The ⌈(n + 1) · level⌉-th smallest of `scores [n]`.

    Raises:
        ValueError: n is too small for this level.
    """
    # 1e-9: (n + 1) · 0.9 is 9.000000000000002 for some n.
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    if rank > len(scores):
        raise ValueError(f"{len(scores)} scores give a level of {highest_level(len(scores)):.3g}")
    return float(np.sort(scores)[max(rank, 1) - 1])


def before(probabilities: Floats) -> Floats:
    """`[N, C]`: of each class, the probability of all classes that are more probable.

    The score of adaptive prediction sets (Romano et al., NeurIPS 2020) without its random part: 0
    for the most probable class, so that no set is empty. Among equals the first class comes first.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, 1)
    found = np.empty_like(probabilities)
    np.put_along_axis(found, order, np.cumsum(ordered, 1) - ordered, 1)
    return found


def class_scores(probabilities: Floats, truth: NDArray[np.intp]) -> Floats:
    """`[N]`: the score of each true class."""
    found: Floats = before(probabilities)[np.arange(len(truth)), truth]
    return found


def scaled(probabilities: Floats, temperature: float) -> Floats:
    """`[N, C]`: p^(1/T), normalised: what dividing the logits by T does."""
    logs = np.log(np.maximum(probabilities, 1e-30)) / temperature
    powers = np.exp(logs - logs.max(-1, keepdims=True))
    found: Floats = powers / powers.sum(-1, keepdims=True)
    return found


def temperature_of(probabilities: Floats, truth: NDArray[np.intp]) -> float:
    """The temperature of the least negative log likelihood (Guo et al., ICML 2017).

    That is a convex function of 1/T: a golden-section search finds it.
    """
    place = np.arange(len(truth))

    def cost(inverse: float) -> float:
        found = scaled(probabilities, 1 / inverse)[place, truth]
        return -float(np.log(np.maximum(found, 1e-300)).mean())

    low, high = 1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(_STEPS):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if cost(a) <= cost(b) else (a, high)
    return 2 / (low + high)


def line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and intercept of the least squares line of y on x; slope 0 where x is constant."""
    spread = x - x.mean()
    square = float(spread @ spread)
    slope = float(spread @ y) / square if square > 0 else 0.0
    return slope, float(y.mean() - slope * x.mean())


def rank_of(value: float, sorted_values: Floats) -> float:
    """The share of a population that lies below `value`: (below + ties / 2 + 1/2) / (n + 1)."""
    below = np.searchsorted(sorted_values, value, "left")
    ties = np.searchsorted(sorted_values, value, "right") - below
    return float(below + ties / 2 + 0.5) / (len(sorted_values) + 1)
