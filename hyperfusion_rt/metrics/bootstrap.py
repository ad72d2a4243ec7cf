"""The percentile bootstrap over subjects, for statistics of many samples at once.

A sample draws subjects with replacement; all rows of a subject come with it. It is written as
counts `[S, N]`: how often sample s holds row n. A statistic takes counts and gives `[S]`, so that
`statistic(ones [1, N])` is the figure itself: figure and interval have one definition.

Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
# From counts `[S, N]` to a figure of each sample `[S]`; NaN where it has none.
Statistic = Callable[[Floats], Floats]

SAMPLES = 2000
_SEED = 0
# Numbers of one block of counts: some tens of megabytes.
_BLOCK = 1 << 21


def index_of(names: Sequence[object] | Array) -> NDArray[np.intp]:
    """`[N]`: equal names get equal numbers, from 0."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.intp)


def strata_of(subject: NDArray[np.intp], label: Array) -> NDArray[np.intp]:
    """The stratum of each subject, `[number of subjects]`: its label, where that helps.

    Subjects are drawn label by label if each has one label and each label has two subjects at
    least: a label of one subject would never vary. Otherwise all are one stratum.
    """
    count = int(subject.max()) + 1
    values = index_of(label.tolist())
    first = np.zeros(count, np.intp)
    first[subject] = values
    one_each = bool((first[subject] == values).all())
    if one_each and np.bincount(first).min() > 1:
        return first
    return np.zeros(count, np.intp)


def resample(
    subject: NDArray[np.intp], strata: NDArray[np.intp], samples: int, seed: int
) -> Iterator[Floats]:
    """Counts `[s, N]` in blocks that add up to `samples`."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(strata == value) for value in np.unique(strata)]
    size = max(1, _BLOCK // max(len(subject), 1))
    for start in range(0, samples, size):
        block = min(size, samples - start)
        times = np.zeros((block, len(strata)))
        offset = np.arange(block)[:, None]
        for group in groups:
            drawn = rng.integers(len(group), size=(block, len(group))) + offset * len(group)
            found = np.bincount(drawn.ravel(), minlength=block * len(group))
            times[:, group] = found.reshape(block, len(group))
        yield times[:, subject]


def repetitions(answers: Floats, alone: int) -> list[tuple[NDArray[np.intp], Floats]]:
    """The answers of each repetition, with the cases `[n]` that they are of.

    Args:
        answers: one answer a case, with `alone` axes; or one axis more in front, the repetitions,
            with NaN where a repetition has no answer.
        alone: the number of axes of one repetition.
    """
    if answers.ndim == alone:
        return [(np.arange(len(answers)), answers)]
    found = []
    for values in answers:
        index = np.flatnonzero(np.isfinite(values).reshape(len(values), -1).all(1))
        if len(index):
            found.append((index, values[index]))
    return found


def mean_over(parts: Sequence[tuple[NDArray[np.intp], Statistic]]) -> Statistic:
    """The mean of the statistics of several repetitions, each of the cases with its indices."""

    def mean(counts: Floats) -> Floats:
        made = []
        with np.errstate(invalid="ignore"):  # a sample may hold no case of a repetition
            for index, of in parts:
                whole = len(index) == counts.shape[1]
                made.append(of(counts if whole else counts[:, index]))
        found = np.stack(made)
        there = np.isfinite(found)
        total = np.where(there, found, 0.0).sum(0)
        nothing = np.full(len(counts), np.nan)
        result: Floats = np.divide(total, there.sum(0), out=nothing, where=there.any(0))
        return result

    return mean


def with_intervals(
    statistics: Mapping[str, Statistic],
    subject: NDArray[np.intp],
    label: Array,
) -> tuple[dict[str, float | None], dict[str, list[float] | None], dict[str, str]]:
    """Every figure with its 95 % interval.

    Args:
        statistics: by name.
        subject: `[N]`, which rows are of one subject.
        label: `[N]`, of the strata (`strata_of`).

    Returns:
        The figures; their intervals (low, high); and by name why one is None.
    """
    whole = np.ones((1, len(subject)))
    values = {name: float(of(whole)[0]) for name, of in statistics.items()}
    figures = {name: value if np.isfinite(value) else None for name, value in values.items()}
    made: dict[str, list[Floats]] = {name: [] for name in statistics}
    if subject.max() > 0:
        for counts in resample(subject, strata_of(subject, label), SAMPLES, _SEED):
            for name, of in statistics.items():
                made[name].append(of(counts))
    intervals: dict[str, list[float] | None] = {}
    reasons = {}
    for name, blocks in made.items():
        intervals[name], reason = _interval(np.concatenate(blocks) if blocks else None)
        if figures[name] is None:
            intervals[name] = None
        elif reason:
            reasons[name] = reason
    return figures, intervals, reasons


def _interval(values: Floats | None) -> tuple[list[float] | None, str]:
    """The middle 95 % of `values [S]`, or why there is none."""
    if values is None:
        return None, "no interval: one subject only"
    finite = values[np.isfinite(values)]
    if len(finite) < 0.95 * len(values):
        return None, "no interval: too few subjects"
    low, high = np.percentile(finite, [2.5, 97.5])
    if np.ptp(finite) < 1e-12:
        return None, "no interval: the same in every resample"
    return [float(low), float(high)], ""
