"""How sure an answer is, from what the artifact says of cases with a known truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.calibration import LEVEL, Calibration, group_of
from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.data.number_check import impossible_age
from hyperfusion_rt.data.table_file import Row, is_missing, read_number
from hyperfusion_rt.errors import ConfigError, TableError
from hyperfusion_rt.metrics import conformal
from hyperfusion_rt.runtime.prediction import Certainty

Floats = NDArray[np.float64]


def check_level(manifest: Manifest, level: float | None) -> float:
    """The level of sets and intervals: the one that is asked for, or 0.9.

    Raises:
        ConfigError: the artifact's cases cannot give the level that is asked for.
    """
    if level is None:
        return LEVEL
    made = manifest.calibration
    if made is None:
        raise ConfigError(
            f"`level` {level:g}: the artifact says nothing of how sure its answers are; export it "
            "again where the study is, or with `calibration` cases",
            code="level-unknown",
        )
    if level > made.highest_level:
        raise ConfigError(
            f"`level` {level:g}: {made.cases} calibration cases give at most "
            f"{made.highest_level:.4g}; ask for less, or export with more `calibration` cases",
            code="level-too-high",
        )
    return level


def certainty(
    manifest: Manifest,
    values: Sequence[float],
    sd: float | None,
    row: Row,
    level: float,
    distance: float | None = None,
) -> Certainty | None:
    """Of one answer; None where the artifact says nothing of it.

    `values`: scaled probabilities, or a number with its `sd`, as a `Prediction` has them.
    """
    made = manifest.calibration
    if made is None:
        return None if distance is None else Certainty(distance=distance)
    sex, age = _sex(row, made.sex), _age(row, made.age)
    if manifest.classes:
        limit = made.scores.at(group_of(sex, age), level)
        if limit is None:
            return Certainty(distance=distance)
        chosen = conformal.before(np.array([values]))[0] <= limit
        names = [name for name, there in zip(manifest.classes, chosen, strict=True) if there]
        return Certainty(level=level, classes=tuple(names), distance=distance)
    predicted = values[0]
    limit = made.scores.at("", level)
    low, high = None, None
    if limit is not None:
        size = limit * (1.0 if sd is None else sd)
        centre = predicted
        if made.errors is not None:
            one = np.array([predicted])
            centre -= float(made.errors.centres(one, [sex])[0])
            size *= float(made.errors.sizes(one)[0])
        low, high = centre - size, centre + size
    found = Certainty(level=None if limit is None else level, low=low, high=high, distance=distance)
    true = _age(row, manifest.table.target) if made.age_bias is not None else None
    return _with_gap(found, made, predicted, sex, true, level)


def _with_gap(
    found: Certainty,
    made: Calibration,
    predicted: float,
    sex: str,
    true: float | None,
    level: float,
) -> Certainty:
    """With what a true age says of a predicted one."""
    bias = made.age_bias
    if bias is None or true is None:
        return found
    group = group_of(sex, true)
    corrected = bias.corrected(predicted, true)
    gap = corrected - true
    size = bias.sizes.at(group, level)
    return replace(
        found,
        corrected=corrected,
        gap=gap,
        gap_low=None if size is None else gap - size,
        gap_high=None if size is None else gap + size,
        p_positive=bias.gaps.rank(gap),
        percentile=100 * bias.gaps.rank(gap, group),
    )


def _sex(row: Row, column: str | None) -> str:
    text = row.values.get(column, "").strip() if column else ""
    return "" if is_missing(text) else text


def _age(row: Row, column: str | None) -> float | None:
    if column is None or column not in row.values:
        return None
    try:
        age = read_number(row, column, censored=True)
    except TableError:
        return None
    return None if age is None or impossible_age(age) else age
