"""What a comparison comes to: the figures of each model, and the tests of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.compare.answers import Answers, Cases
from hyperfusion_rt.compare.plan import Job
from hyperfusion_rt.compare.statistics import auc_parts, delong, holm, permutation, resampled_t
from hyperfusion_rt.config import TableSpec
from hyperfusion_rt.metrics import age_bands, by_group, classification, regression
from hyperfusion_rt.metrics.bootstrap import Statistic, index_of, with_intervals
from hyperfusion_rt.metrics.classification import class_statistics
from hyperfusion_rt.metrics.regression import number_statistics

Floats = NDArray[np.float64]
Index = NDArray[np.intp]
# Of what pairs are tested, the first being the main figure.
_TESTED = ("balanced_accuracy", "auc")
_TESTED_NUMBERS = ("mae",)


@dataclass(frozen=True)
class Result:
    """A model. `figures`: of all test parts, the mean over the seeds; `folds`: of each training,
    the main figure by (seed, fold); `groups`: figures by sex and by age."""

    name: str
    done: int
    jobs: int
    failures: dict[str, int]
    figures: dict[str, Any]
    groups: dict[str, dict[str, Any]]
    folds: dict[tuple[int, int], float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Two models: `difference`, a's figure minus b's on the cases that both answer.

    `interval`: 95 %, a bootstrap over subjects that draws both models alike. `p_folds`: the
    corrected resampled t-test over `folds` trainings; `p_cases`: by `test`, over the subjects.
    `..._holm`: corrected for all pairs of the figure.
    """

    figure: str
    a: str
    b: str
    difference: float | None
    interval: list[float] | None
    folds: int
    p_folds: float | None
    test: str
    p_cases: float | None
    p_folds_holm: float | None = None
    p_cases_holm: float | None = None


def _said(values: Floats) -> NDArray[np.bool_]:
    """Which cases `values [..., C]` are an answer to."""
    found: NDArray[np.bool_] = np.all(np.isfinite(values), -1)
    return found


def results(spec: TableSpec, cases: Cases, answers: Sequence[Answers]) -> list[Result]:
    """The figures of every model."""
    return [_result(spec, cases, item) for item in answers]


def _result(spec: TableSpec, cases: Cases, answers: Answers) -> Result:
    known = np.flatnonzero(_said(answers.values).any(0))
    chosen, values = cases.select(known), answers.values[:, known]

    def measured(index: Index) -> dict[str, Any]:
        subjects = [chosen.subjects[i] for i in index]
        truth, own = chosen.truth[index], values[:, index]
        own = own[_said(own).any(1)]
        if spec.classes:
            return classification(truth.astype(int), own, list(spec.classes), subjects)
        return regression(truth, own[:, :, 0], spec.unit, subjects)

    groups = {"sex": chosen.sex, "age": age_bands(chosen.age)}
    folds = {}
    if cases.parts.size:
        for job in answers.jobs:
            own = _said(answers.values[job.seed])
            main = tested_figures(spec)[0]
            folds[job.seed, job.fold] = _fold_figure(spec, cases, answers, job, own, main)
    return Result(
        answers.model.name,
        len(answers.jobs),
        len(answers.jobs) + len(answers.failed),
        dict(Counter(f"{code}: {reason}" for code, reason in answers.failed.values())),
        measured(np.arange(len(known))),
        {by: by_group(names, measured) for by, names in groups.items() if any(names)},
        folds,
    )


def _fold_figure(
    spec: TableSpec,
    cases: Cases,
    answers: Answers,
    job: Job,
    among: NDArray[np.bool_],
    figure: str,
) -> float | None:
    """A figure of one training on the cases of its test part that are `among [N]`."""
    index = np.flatnonzero(among & (cases.parts[job.seed] == job.fold))
    if not len(index):
        return None
    of = _statistics(spec, cases.truth[index], answers.values[None, job.seed, index])[figure]
    value = float(of(np.ones((1, len(index))))[0])
    return value if np.isfinite(value) else None


def _statistics(spec: TableSpec, truth: Floats, values: Floats) -> dict[str, Statistic]:
    """Of `values [R, N, C]`."""
    if spec.classes:
        return class_statistics(truth.astype(int), values, list(spec.classes))
    return number_statistics(truth, values[:, :, 0])


def tested_figures(spec: TableSpec) -> tuple[str, ...]:
    """The figures that pairs are tested by."""
    return _TESTED if spec.classes else _TESTED_NUMBERS


def pairs(
    spec: TableSpec,
    cases: Cases,
    answers: Sequence[Answers],
    ratio: float,
    against: str | None = None,
) -> list[Pair]:
    """Every two models, or each and the one called `against`.

    Args:
        ratio: cases of a test part over those that are trained on.
    """
    named = [item for item in answers if item.jobs]
    chosen = [
        (a, b) for a, b in combinations(named, 2) if against in (None, a.model.name, b.model.name)
    ]
    # The one that others are tested against stands second.
    chosen = [(b, a) if against == a.model.name else (a, b) for a, b in chosen]
    found: list[Pair] = []
    for figure in tested_figures(spec):
        made = [_pair(spec, cases, a, b, figure, ratio) for a, b in chosen]
        folds, over = (holm([getattr(p, n) for p in made]) for n in ("p_folds", "p_cases"))
        found += [
            replace(pair, p_folds_holm=f, p_cases_holm=c)
            for pair, f, c in zip(made, folds, over, strict=True)
        ]
    return found


def _pair(spec: TableSpec, cases: Cases, a: Answers, b: Answers, figure: str, ratio: float) -> Pair:
    both = _said(a.values) & _said(b.values)  # [R, N]
    known = np.flatnonzero(both.any(0))
    test = "DeLong" if figure == "auc" else "permutation"
    if not len(known):
        return Pair(figure, a.model.name, b.model.name, None, None, 0, None, test, None)
    runs = np.flatnonzero(both.any(1))
    left, right = (
        np.where(both[..., None], item.values, np.nan)[runs][:, known] for item in (a, b)
    )
    truth = cases.truth[known]
    subject = index_of([cases.subjects[i] for i in known])
    of_a, of_b = (_statistics(spec, truth, values)[figure] for values in (left, right))
    label = truth if spec.classes else np.zeros(len(truth))
    difference: Statistic = lambda counts: of_a(counts) - of_b(counts)  # noqa: E731
    figures, intervals, _ = with_intervals({"difference": difference}, subject, label)
    trainings = _differences(spec, cases, a, b, figure) if cases.parts.size else np.empty(0)
    if figure == "auc":
        p = _delong(truth.astype(int), left, right, subject, len(spec.classes))
    else:
        shares = (_shares(spec, truth, values, subject) for values in (left, right))
        p = permutation(*shares)
    return Pair(
        figure,
        a.model.name,
        b.model.name,
        figures["difference"],
        intervals["difference"],
        len(trainings),
        resampled_t(trainings, ratio),
        test,
        p,
    )


def _differences(spec: TableSpec, cases: Cases, a: Answers, b: Answers, figure: str) -> Floats:
    """a's figure minus b's of every training that both have."""
    others = {(job.seed, job.fold) for job in b.jobs}
    found = []
    for job in a.jobs:
        if (job.seed, job.fold) not in others:
            continue
        both = _said(a.values[job.seed]) & _said(b.values[job.seed])
        one, other = (_fold_figure(spec, cases, item, job, both, figure) for item in (a, b))
        if one is not None and other is not None:
            found.append(one - other)
    return np.array(found)


def _shares(spec: TableSpec, truth: Floats, values: Floats, subject: Index) -> Floats:
    """What each subject adds to the balanced accuracy, or to the mean absolute error."""
    total = np.zeros(int(subject.max()) + 1)
    for one in values:
        known = np.flatnonzero(_said(one))
        true = truth[known]
        if spec.classes:
            names, classes, counts = np.unique(true, return_inverse=True, return_counts=True)
            each = (one[known].argmax(1) == true) / counts[classes] / len(names)
        else:
            each = np.abs(one[known, 0] - true) / len(known)
        total += np.bincount(subject[known], each, len(total)) / len(values)
    return total


def _delong(
    truth: NDArray[np.int64], a: Floats, b: Floats, subject: Index, classes: int
) -> float | None:
    """Of the mean over the classes and the repetitions of the areas."""
    differences, errors = [], np.zeros(len(truth))
    for one, other in zip(a, b, strict=True):
        known = np.flatnonzero(_said(one))
        true = truth[known]
        counts = np.bincount(true, minlength=classes)
        present = [c for c in range(classes) if counts[c]]
        drawn = [1] if classes == 2 else present
        if len(present) < 2 or any(min(counts[c], len(true) - counts[c]) < 2 for c in drawn):
            return None
        difference = 0.0
        for c in drawn:
            area_a, part_a = auc_parts(true == c, one[known, c])
            area_b, part_b = auc_parts(true == c, other[known, c])
            difference += (area_a - area_b) / len(drawn)
            errors[known] += (part_a - part_b) / len(drawn) / len(a)
        differences.append(difference)
    return delong(np.array(differences), errors, subject)
