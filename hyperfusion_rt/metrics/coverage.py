"""Means with intervals: how often sets hold the truth, how large they are, how many are odd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperfusion_rt.metrics.bootstrap import Array, Statistic, index_of, with_intervals


def means(values: dict[str, Array], subjects: Sequence[str]) -> dict[str, Any]:
    """The mean of each of `values [N]`, with a 95 % interval: a bootstrap over `subjects [N]`.

    `NAME_95` is the interval, None with its reason in `reasons`. Without a case there is no figure
    but `cases`.
    """
    if not len(subjects):
        return {"cases": 0}
    subject = index_of(subjects)

    def mean(of: Array) -> Statistic:
        numbers = np.asarray(of, np.float64)
        return lambda counts: counts @ numbers / counts.sum(1)

    statistics = {name: mean(of) for name, of in values.items()}
    figures, intervals, reasons = with_intervals(statistics, subject, np.zeros(len(subject)))
    found: dict[str, Any] = {"cases": len(subject), "subjects": int(subject.max()) + 1}
    for name in values:
        found |= {name: figures[name], f"{name}_95": intervals[name]}
    return found | {"reasons": reasons}
