"""Figures group by group: of each sex, of each band of age."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from hyperfusion_rt.metrics.bootstrap import Array

# Fewer cases than this are too few for a figure.
FEWEST = 10
_WIDTH = 10  # years of a band


def age_bands(ages: Sequence[float | None]) -> list[str]:
    """`60 to 69` for an age of 65.3; `` where it is not known."""
    found = []
    for age in ages:
        low = None if age is None else _WIDTH * int(np.floor(age / _WIDTH))
        found.append("" if low is None else f"{low} to {low + _WIDTH - 1}")
    return found


def by_group(
    groups: Sequence[str], measure: Callable[[Array], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The figures of every group, in the order of the names; of `` (not known) last.

    Args:
        groups: the group of each case.
        measure: figures of the cases with these indices.

    Returns:
        By group: `cases` and its figures, or `cases` and `too_few` where there are less than
        `FEWEST`.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in in_order(groups):
        index = np.flatnonzero([group == name for group in groups])
        few = {"cases": len(index), "too_few": True}
        found[name] = few if len(index) < FEWEST else measure(index)
    return found


def in_order(groups: Iterable[str]) -> list[str]:
    """The name of each group once: bands by their age, others as they are written, `` last."""
    names = set(groups)
    return sorted(names - {""}, key=_in_order) + [""] * ("" in names)


def _in_order(name: str) -> tuple[float, str]:
    """Bands by their age, other names as they are written."""
    start = name.split(" ")[0]
    try:
        return float(start), name
    except ValueError:
        return float("inf"), name
