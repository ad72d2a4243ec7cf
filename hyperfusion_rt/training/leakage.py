"""Whether a feature tells the target: a network would copy it, and fail on new cases."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.config import Feature
from hyperfusion_rt.data.finding import Finding
from hyperfusion_rt.data.table_file import Row, is_missing, read_cell, read_number

# Fewer agreements may be chance.
_ENOUGH = 12


def plain(name: str) -> str:
    """A column's name without case, blanks, `_` and `-`."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def leak(
    feature: Feature, rows: Sequence[Row], target: str, targets: NDArray[np.float64], classes: bool
) -> Finding | None:
    """What `feature` tells of the `targets [N]` (class indices or numbers) of the N `rows`.

    The rows can be read: no cell of the feature is unusable.
    """
    if classes:
        return _tells_class(feature, rows, target, targets)
    return _tells_number(feature, rows, target, targets)


def _tells_class(
    feature: Feature, rows: Sequence[Row], target: str, targets: NDArray[np.float64]
) -> Finding | None:
    cells = [read_cell(row, feature.name) for row in rows]
    truth = [read_cell(row, target).casefold() for row in rows]
    known = np.array([not is_missing(cell) for cell in cells], bool)
    same = [cell.casefold() == text for cell, text in zip(cells, truth, strict=True)]
    if known.sum() >= _ENOUGH and np.array(same)[known].all():
        text = (
            f"feature {feature.name!r} holds the target {target!r} in every row; drop the feature"
        )
        return Finding(text, "config-target-is-feature")
    if len(np.unique(targets)) < 2:
        return None
    if _separates(known, targets):
        return Finding(
            f"feature {feature.name!r}: whether it is known tells the class of {target!r} in all "
            f"{len(rows)} cases; was it measured because of the diagnosis?"
        )
    values = _codes_of(feature, rows, cells)[known]
    if _determines(values, targets[known], ordered=feature.kind != "categorical"):
        return Finding(
            f"feature {feature.name!r} tells the class of {target!r} in all {known.sum()} cases "
            "that have it; drop the feature if it was derived from the diagnosis"
        )
    return None


def _codes_of(feature: Feature, rows: Sequence[Row], cells: Sequence[str]) -> NDArray[np.float64]:
    """A number for each cell; NaN where it is missing."""
    if feature.kind == "categorical":
        index = {text: float(i) for i, text in enumerate(sorted({c.casefold() for c in cells}))}
        return np.array([index[cell.casefold()] for cell in cells])
    return _numbers(feature, rows)


def _numbers(feature: Feature, rows: Sequence[Row]) -> NDArray[np.float64]:
    read = [read_number(row, feature.name, censored=feature.kind == "censored") for row in rows]
    return np.array([np.nan if value is None else value for value in read])


def _separates(known: NDArray[np.bool_], targets: NDArray[np.float64]) -> bool:
    """No class has both cases with a value and cases without one."""
    few = min(known.sum(), (~known).sum())
    return few >= _ENOUGH // 2 and not set(targets[known]) & set(targets[~known])


def _determines(
    values: NDArray[np.float64], targets: NDArray[np.float64], *, ordered: bool
) -> bool:
    """Each value goes with one class only, more often than chance would have it.

    An `ordered` value may also do it by thresholds.
    """
    classes = np.unique(targets)
    if len(classes) < 2:
        return False
    distinct, index = np.unique(values, return_inverse=True)
    of_value = [np.unique(targets[index == i]) for i in range(len(distinct))]
    repeated = len(values) - len(distinct)
    if all(len(found) == 1 for found in of_value) and repeated >= _ENOUGH:
        return True
    # From the smallest to the largest the class changes once per further class.
    if not ordered or len(values) < 2 * _ENOUGH or any(len(found) > 1 for found in of_value):
        return False
    changes = np.count_nonzero(np.diff([found[0] for found in of_value]))
    return bool(changes == len(classes) - 1)


def _tells_number(
    feature: Feature, rows: Sequence[Row], target: str, targets: NDArray[np.float64]
) -> Finding | None:
    if feature.kind == "categorical":
        return None
    values = _numbers(feature, rows)
    known = np.isfinite(values)
    values, truth = values[known], targets[known]
    if len(values) < _ENOUGH or np.ptp(values) == 0 or np.ptp(truth) == 0:
        return None
    if np.array_equal(values, truth):
        text = (
            f"feature {feature.name!r} holds the target {target!r} in every row; drop the feature"
        )
        return Finding(text, "config-target-is-feature")
    correlation = float(np.corrcoef(values, truth)[0, 1])
    # A target that is rounded, in another unit, or counted backwards.
    if abs(correlation) > 0.995:
        return Finding(
            f"feature {feature.name!r} and the target {target!r} correlate by {correlation:.4f}: "
            "is it the target in another unit? Drop the feature if so"
        )
    return None
