"""Whether sets and intervals hold the truth as often as they say, of all and of groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.metrics import age_bands, by_group, regression
from hyperfusion_rt.metrics.bootstrap import Array
from hyperfusion_rt.metrics.coverage import means
from hyperfusion_rt.runtime.evaluation import MOST_SEXES, EvaluatedCase, holds
from hyperfusion_rt.runtime.prediction import Certainty

# How ways of grouping are called, for a reader.
GROUPS = {"classes": "true class", "sex": "sex", "age": "age", "sex_age": "sex and age"}
_AGE_FIGURES = ("mae", "mae_95", "bias", "bias_95", "bias_slope", "bias_slope_95", "reasons")


def certainty_figures(
    manifest: Manifest, cases: Sequence[EvaluatedCase]
) -> tuple[dict[str, Any] | None, list[str]]:
    """What of the counted `cases` was sure, and what is missing and why; None: all of it.

    `level`; `all`, and `groups` by `GROUPS`, each with `coverage`, how often sets or intervals hold
    the truth, `size`, the mean number of classes or width, and of classes `single`, the share of
    sets of one class; `no_set`: cases without any. `ages`: `uncorrected` and `corrected`, the
    mean absolute error and the slope of the error on the truth. `unlike`: the share of scans that
    are unlike the training's, beside `expected`, that of usual ones. Each with a 95 % interval.
    """
    notes = []
    found: dict[str, Any] = {}
    if manifest.calibration is None:
        notes.append(
            f"{manifest.name}: does not say how sure its answers are: no coverage of sets or "
            "intervals; export it again where its study is, or with `calibration` cases"
        )
    elif cases:
        with_set = [case for case in cases if _level(case) is not None]
        found["no_set"] = len(cases) - len(with_set)
        if with_set:
            found |= _coverage(manifest, with_set)
        else:
            notes.append("its calibration cases are too few for sets or intervals at this level")
        if (ages := _ages(manifest, cases)) is not None:
            found["ages"] = ages
    if manifest.typical_scans is not None:
        known = [case for case in cases if _sure(case).distance is not None]
        if known:
            far = np.array([(_sure(case).distance or 0.0) > 1 for case in known])
            expected = manifest.typical_scans.false_alarms
            found["unlike"] = {**means({"share": far}, _people(known)), "expected": expected}
    return found or None, notes


def _sure(case: EvaluatedCase) -> Certainty:
    return case.prediction.certainty or Certainty()


def _level(case: EvaluatedCase) -> float | None:
    return _sure(case).level


def _people(cases: Sequence[EvaluatedCase]) -> list[str]:
    return [case.prediction.subject for case in cases]


def _coverage(manifest: Manifest, cases: Sequence[EvaluatedCase]) -> dict[str, Any]:
    classes = manifest.classes
    values: dict[str, Array] = {
        "coverage": np.array(
            [holds(manifest, case.prediction, case.truth or 0.0) for case in cases]
        )
    }
    if classes:
        values["size"] = np.array([len(_sure(case).classes or ()) for case in cases])
        values["single"] = values["size"] == 1
    else:
        spans = [(_sure(case).high or 0.0) - (_sure(case).low or 0.0) for case in cases]
        values["size"] = np.array(spans)
    people = _people(cases)

    def of(index: Array) -> dict[str, Any]:
        chosen = {name: one[index] for name, one in values.items()}
        return means(chosen, [people[i] for i in index])

    bands = age_bands([case.age for case in cases])
    sexes = [case.sex for case in cases]
    if len(set(sexes)) > MOST_SEXES:
        sexes = [""] * len(cases)
    both = [f"{s} {b}" if s and b else "" for s, b in zip(sexes, bands, strict=True)]
    truth = [classes[int(case.truth or 0)] if classes else "" for case in cases]
    ways = {"classes": truth, "sex": sexes, "age": bands, "sex_age": both}
    groups = {name: by_group(names, of) for name, names in ways.items() if any(names)}
    if classes:
        made = groups["classes"]
        groups["classes"] = {name: made[name] for name in classes if name in made}
    return {"level": _level(cases[0]), "all": of(np.arange(len(cases))), "groups": groups}


def _ages(manifest: Manifest, cases: Sequence[EvaluatedCase]) -> dict[str, Any] | None:
    """Predicted ages as they are and without the bias of age; None where nothing is corrected."""
    pairs = [(case, _sure(case).corrected) for case in cases]
    known = [(case, corrected) for case, corrected in pairs if corrected is not None]
    if not known:
        return None
    truth = np.array([case.truth for case, _ in known], np.float64)
    people = _people([case for case, _ in known])
    found: dict[str, Any] = {"cases": len(known)}
    for name, predicted in (
        ("uncorrected", [case.prediction.values[0] for case, _ in known]),
        ("corrected", [corrected for _, corrected in known]),
    ):
        figures = regression(truth, np.array(predicted), manifest.unit, people)
        found[name] = {key: figures[key] for key in _AGE_FIGURES}
    return found
