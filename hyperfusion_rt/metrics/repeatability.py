"""How well predictions of the same subjects repeat, from scan to scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.metrics.bootstrap import Array, Floats, Statistic, index_of, with_intervals

_FIGURES = ("icc_agreement", "icc_consistency", "within_sd")


def repeatability(
    values: Array | Sequence[float], subjects: Sequence[str], sessions: Sequence[str | None]
) -> dict[str, Any]:
    """Figures of predicted numbers `[N]`, each of one subject and session.

    Intraclass correlations of a single prediction, Shrout & Fleiss, Psychological Bulletin 1979:
    `icc_agreement` is ICC(2,1), in which sessions that differ in their mean agree less;
    `icc_consistency` is ICC(3,1), in which they do not. With k sessions of n subjects, and the mean
    squares of subjects (R), sessions (C) and the rest (E),

        ICC(2,1) = (R - E) / (R + (k - 1) E + k (C - E) / n)
        ICC(3,1) = (R - E) / (R + (k - 1) E)

    Both depend on how much the subjects differ. `within_sd` does not: the standard deviation of
    the predictions of one subject, in the unit of `values`.

    `NAME_95` is the 95 % interval, a bootstrap over subjects. Subjects without a finite value in
    each of the `sessions` that occur are left out. What has no value is None, and `reasons` says
    why.

    Raises:
        HyperFusionError: two values are of one subject and session.
    """
    subject, session = index_of(subjects), index_of(sessions)
    count, k = int(subject.max(initial=-1)) + 1, int(session.max(initial=-1)) + 1
    cell = subject * k + session
    _, first, times = np.unique(cell, return_index=True, return_counts=True)
    if (times > 1).any():
        twice = first[np.argmax(times > 1)]
        raise HyperFusionError(
            f"subject {subjects[twice]!r}, session {sessions[twice]!r}: has several values; "
            "keep one of them",
            code="table-duplicate-row",
        )
    table = np.full((count, k), np.nan)
    table[subject, session] = np.asarray(values, np.float64)
    table = table[np.isfinite(table).all(1)]
    found: dict[str, Any] = {
        "subjects": len(table),
        "sessions": k,
        "left_out": count - len(table),
    }
    if len(table) < 2 or k < 2:
        why = "needs two sessions" if k < 2 else "needs two subjects with every session"
        nothing = {f"{name}{end}": None for name in _FIGURES for end in ("", "_95")}
        return found | nothing | {"reasons": dict.fromkeys(_FIGURES, why)}
    statistics: dict[str, Statistic] = {
        "icc_agreement": lambda counts: _correlation(counts, table, agreement=True),
        "icc_consistency": lambda counts: _correlation(counts, table, agreement=False),
        "within_sd": lambda counts: np.sqrt(counts @ table.var(1, ddof=1) / counts.sum(1)),
    }
    whole = np.arange(len(table))
    figures, intervals, reasons = with_intervals(statistics, whole, np.zeros(len(table)))
    for name in _FIGURES:
        if figures[name] is None:
            reasons[name] = "all values are equal"
        found |= {name: figures[name], f"{name}_95": intervals[name]}
    return found | {"reasons": reasons}


def _correlation(counts: Floats, table: Floats, *, agreement: bool) -> Floats:
    """The intraclass correlation of each sample `[S]` of `table [n, k]`, by `counts [S, n]`."""
    n, k = counts.sum(1), table.shape[1]
    table = table - table.mean()
    of_subject = table.mean(1)
    of_session = counts @ table / n[:, None]
    mean = of_session.mean(1)
    rows = k * (counts @ of_subject**2 - n * mean**2)
    columns = n * ((of_session - mean[:, None]) ** 2).sum(1)
    whole = counts @ (table**2).sum(1) - n * k * mean**2
    # What rounding leaves of nothing is nothing.
    tiny = 1e-12 * (table**2).sum()
    subjects, sessions, rest = (
        np.where(squares <= tiny, 0.0, squares) / freedom
        for squares, freedom in (
            (rows, n - 1),
            (columns, k - 1),
            (whole - rows - columns, (n - 1) * (k - 1)),
        )
    )
    below = subjects + (k - 1) * rest
    if agreement:
        below = below + k * (sessions - rest) / n
    result: Floats = (subjects - rest) / np.where(below == 0, np.nan, below)
    return result
