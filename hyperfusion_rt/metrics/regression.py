"""The figures of predicted numbers against true ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.metrics.bootstrap import (
    Array,
    Floats,
    Statistic,
    index_of,
    mean_over,
    repetitions,
    with_intervals,
)

_FIGURES = ("mae", "r", "bias", "bias_slope")


def regression(
    truth: Array, predicted: Array, unit: str = "", subjects: Sequence[str] | None = None
) -> dict[str, Any]:
    """Figures of predicted numbers `[N]` against true ones `[N]`, in their `unit`.

    `mae`, the mean absolute error; `bias`, the mean of predicted - true; `r`, Pearson's
    correlation; `bias_slope`, the slope of (predicted - true) against the truth: 0 is unbiased, a
    negative one means that low ones are predicted too high and high ones too low. `chance` is the
    mean absolute error of always guessing the median of the truth.

    `NAME_95` is the 95 % interval, a bootstrap over `subjects [N]` (default: each case is one).
    What has no value is None, and `reasons` says why: a chance level needs two cases, a slope and
    `r` three. Without a case there is no figure but `cases`.

    `predicted` may also be `[R, N]`, of R repetitions, as in `classification`.
    """
    if not len(truth):
        return {"cases": 0, "unit": unit}
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    subject = np.arange(len(truth)) if subjects is None else index_of(subjects)
    statistics = number_statistics(truth, predicted)
    figures, intervals, reasons = with_intervals(statistics, subject, np.zeros(len(truth)))
    for name in ("r", "bias_slope"):
        # Two points always lie on a line.
        why = "needs three cases" if len(truth) < 3 else ""
        why = why or ("the truth is constant" if np.ptp(truth) == 0 else "")
        why = why or ("the prediction is constant" if figures[name] is None else "")
        if why:
            figures[name] = intervals[name] = None
            reasons[name] = why
    several = len(truth) > 1
    if not several:
        reasons["chance"] = "needs two cases"
    found: dict[str, Any] = {"cases": len(truth), "subjects": int(subject.max()) + 1, "unit": unit}
    for name in _FIGURES:
        found |= {name: figures[name], f"{name}_95": intervals[name]}
    chance = float(np.abs(truth - np.median(truth)).mean()) if several else None
    return found | {"chance": chance, "reasons": reasons}


def deviation(truth: Array, predicted: Array, sd: Array) -> dict[str, Any]:
    """How well predicted standard deviations `sd [N]` fit the errors; all in one unit.

    `coverage_68`, `coverage_95`: the share of cases whose truth lies within 1 and within 1.96 `sd`
    of the prediction, 0.683 and 0.95 where the errors are normal and `sd` is right. `nll`: the mean
    negative log likelihood, natural logarithm. Nothing without a case.
    """
    if not len(truth):
        return {}
    sd = np.asarray(sd, np.float64)
    away = np.abs(np.asarray(predicted, np.float64) - np.asarray(truth, np.float64)) / sd
    return {
        "coverage_68": float(np.mean(away <= 1)),
        "coverage_95": float(np.mean(away <= 1.96)),
        "nll": float(np.mean(np.log(sd) + 0.5 * away**2) + 0.5 * np.log(2 * np.pi)),
    }


def number_statistics(truth: Array, predicted: Array) -> dict[str, Statistic]:
    """The statistics behind the figures of `regression`, by name, with its arguments."""
    truth = np.asarray(truth, np.float64)
    parts: dict[str, list[tuple[NDArray[np.intp], Statistic]]] = {}
    for index, values in repetitions(np.asarray(predicted, np.float64), 1):
        for name, of in _statistics(truth[index], values).items():
            parts.setdefault(name, []).append((index, of))
    return {name: mean_over(of) for name, of in parts.items()}


def _statistics(truth: Floats, predicted: Floats) -> dict[str, Statistic]:
    """Of one repetition."""
    error = predicted - truth
    return {
        "mae": lambda counts: counts @ np.abs(error) / counts.sum(1),
        "r": lambda counts: _line(counts, truth, predicted)[1],
        "bias": lambda counts: counts @ error / counts.sum(1),
        "bias_slope": lambda counts: _line(counts, truth, error)[0],
    }


def _line(counts: Floats, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Slope of y on x and their correlation in each sample `[S]`; NaN where one is constant."""
    x, y = x - x.mean(), y - y.mean()
    moments = counts @ np.stack([x, y, x * x, y * y, x * y], 1) / counts.sum(1)[:, None]
    mx, my, xx, yy, xy = moments.T
    vx, vy, both = xx - mx * mx, yy - my * my, xy - mx * my
    # What rounding leaves of a constant.
    flat_x, flat_y = (v <= 1e-12 * np.square(z).max(initial=0) for v, z in ((vx, x), (vy, y)))
    vx = np.where(flat_x, np.nan, vx)
    slope = both / vx
    r = both / np.sqrt(vx * np.where(flat_y, np.nan, vy))
    return slope, np.clip(r, -1, 1)
