"""What an artifact says of the people that its network was trained and tested on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.population import (
    FEWEST_PEOPLE,
    QUANTILES,
    Bin,
    Counts,
    GroupFigures,
    PartCounts,
    Performance,
    Population,
    told,
)
from hyperfusion_rt.config import SD, Config, TableSpec
from hyperfusion_rt.data.acquisition import scanner_of
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.data.imports import import_nibabel
from hyperfusion_rt.data.table_file import Row, is_missing
from hyperfusion_rt.metrics.classification import reliability
from hyperfusion_rt.metrics.groups import age_bands, in_order
from hyperfusion_rt.runtime.evaluation import (
    EvaluatedCase,
    ages_of,
    columns_of_groups,
    figures_by_group,
    sexes_of,
)
from hyperfusion_rt.runtime.prediction import Prediction
from hyperfusion_rt.training.check import check_leaks
from hyperfusion_rt.training.cross_validation import test_rows
from hyperfusion_rt.training.dataset import Dataset
from hyperfusion_rt.training.results import figures
from hyperfusion_rt.training.run_folder import Run

# What the figures of a group hold beside these, such as its confusion, counts few people.
_WITHOUT = ("confusion", "recall", "recall_95", "subjects")
Floats = NDArray[np.float64]
Index = NDArray[np.intp]


def population_of(run: Run, dataset: Dataset) -> Population:
    """Counts of `dataset`, on which `run` was trained, and how its test part was predicted.

    The parts are those of the first member. Without the run's table of predictions there is no
    `performance`.
    """
    config, cases, rows = run.config, dataset.cases, dataset.rows
    sex, age = columns_of_groups(config.tabular, list(rows[0].values))
    sexes = sexes_of(rows, sex) if sex else [""] * len(rows)
    ages = ages_of(rows, age) if age else [None] * len(rows)
    names = dataset.parts.names(0)
    parts = [
        _part(name, np.flatnonzero(names == name), dataset, config, sexes, ages)
        for name in ("train", "validation", "test")
    ]
    leaks = check_leaks(config.tabular, rows, dataset.targets)
    left = Counter(item.code for item in dataset.left_out)
    return Population(
        cases=len(cases),
        people=len({case.subject for case in cases}),
        parts=tuple(parts),
        sex_column=sex,
        age_column=age,
        missing=_missing(rows, config.tabular),
        spacing=_spacings(config, dataset),
        scanners=_scanners(cases),
        left_out=told(left),
        findings=tuple(finding.text for finding in leaks),
        more_findings=len(set(dataset.check.findings) - set(leaks)),
        performance=_performance(run, dataset, sexes, ages, sex, age),
    )


def how_trained(run: Run) -> dict[str, dict[str, Any]]:
    """Of the provenance `training` and `augmentation`; nothing of an imported network.

    A file that gives the split is not named: its path is of this machine.
    """
    if "imported_from" in run.metrics:
        return {}
    training = run.config.training.model_dump(mode="json")
    if training["split_file"] is not None:
        training["split_file"] = "given"
    changes = run.config.augmentation
    used = changes.moves or changes.changes_values or changes.drop_columns
    every = changes.model_dump(mode="json") if used else {}
    return {"training": training, "augmentation": {n: v for n, v in every.items() if v}}


def _part(
    name: str,
    index: Index,
    dataset: Dataset,
    config: Config,
    sexes: Sequence[str],
    ages: Sequence[float | None],
) -> PartCounts:
    """What the part `name` holds: the cases at `index`."""
    first: dict[str, int] = {}
    for i in index:
        first.setdefault(dataset.cases[i].subject, int(i))
    people = list(first.values())
    targets = dataset.targets[index]
    quantiles: tuple[float, ...] = ()
    if not config.tabular.classes and len(people) >= FEWEST_PEOPLE:
        quantiles = tuple(float(f"{value:.6g}") for value in np.quantile(targets, QUANTILES))
    of_class = {c: index[targets == i] for i, c in enumerate(config.tabular.classes)}
    return PartCounts(
        name=name,
        cases=len(index),
        people=len(people),
        sex=_told(sexes[i] for i in people) if any(sexes) else {},
        age=_told(age_bands([ages[i] for i in people])) if any(a is not None for a in ages) else {},
        classes=told(
            {c: len(found) for c, found in of_class.items()},
            {c: len({dataset.cases[i].subject for i in found}) for c, found in of_class.items()},
        ),
        quantiles=quantiles,
    )


def _told(groups: Iterable[str]) -> Counts:
    """How many persons each group has, where that is told."""
    counts = Counter(groups)
    return told({name: counts[name] for name in in_order(counts)})


def _missing(rows: Sequence[Row], spec: TableSpec) -> dict[str, float]:
    """The part of the rows in which a feature or the target is empty."""
    names = dict.fromkeys([*(feature.name for feature in spec.features), spec.target])
    return {
        name: float(np.mean([is_missing(row.values.get(name, "")) for row in rows]))
        for name in names
    }


def _spacings(config: Config, dataset: Dataset) -> dict[str, tuple[float, float, float]]:
    """Of each channel the smallest, median and largest edge of a voxel, in mm."""
    nibabel = import_nibabel()
    found = {}
    for at, channel in enumerate(config.preprocessing.channels):
        edges = [
            np.linalg.norm(nibabel.load(case.files[at]).affine[:3, :3], axis=0)
            for case in dataset.cases
        ]
        low, middle, high = np.quantile(edges, (0, 0.5, 1))
        found[channel.name] = (round(low, 3), round(middle, 3), round(high, 3))
    return found


def _scanners(cases: Sequence[Case]) -> Counts:
    """How many cases come from each scanner, where a file beside the scan names it."""
    of = [(scanner_of(case.files[0]), case.subject) for case in cases]
    people = {name: len({who for other, who in of if other == name}) for name, _ in of if name}
    return told({name: sum(other == name for other, _ in of) for name in people}, people)


def _performance(
    run: Run,
    dataset: Dataset,
    sexes: Sequence[str],
    ages: Sequence[float | None],
    sex: str | None,
    age: str | None,
) -> Performance | None:
    """The figures by group of the predictions that the run keeps of its test part."""
    spec = run.config.tabular
    said = {(row["subject"], row["session"]): row for row in test_rows(run)}
    cases = []
    for i, case in enumerate(dataset.cases):
        row = said.get((case.subject, case.session or ""))
        if row is not None:
            numbers = tuple(float(row[name]) for name in spec.answers)
            sd = float(row[SD]) if SD in row else None
            answer = Prediction(case.subject, case.session, "ok", values=numbers, sd=sd)
            cases.append(EvaluatedCase(answer, float(dataset.targets[i]), sexes[i], ages[i]))
    if not cases:
        return None
    groups, notes = figures_by_group(cases, lambda some: _figures(spec, some), sex, age)
    truth, values, subjects = _arrays(cases)
    return Performance(
        cases=len(cases),
        people=len(set(subjects)),
        sex=_groups(groups.get("sex"), [(case.sex, case) for case in cases]),
        age=_groups(
            groups.get("age"),
            list(zip(age_bands([case.age for case in cases]), cases, strict=True)),
        ),
        reliability=_reliability(truth, values) if spec.classes else (),
        notes=tuple(notes),
    )


def _arrays(cases: Sequence[EvaluatedCase]) -> tuple[Floats, Floats, list[str]]:
    """Truth `[N]`, answers `[N, C]` (a number perhaps with its deviation) and subjects `[N]`."""
    truth = np.array([case.truth for case in cases], np.float64)
    said = [case.prediction for case in cases]
    values = [(*p.values, *([] if p.sd is None else [p.sd])) for p in said]
    return truth, np.array(values, np.float64), [p.subject for p in said]


def _figures(spec: TableSpec, cases: Sequence[EvaluatedCase]) -> dict[str, Any]:
    """As of the whole test part, without what counts few people."""
    found = figures(spec, *_arrays(cases))
    reasons = {n: why for n, why in found["reasons"].items() if not n.startswith("recall of ")}
    return {n: value for n, value in found.items() if n not in _WITHOUT} | {"reasons": reasons}


def _groups(
    found: dict[str, Any] | None, members: Sequence[tuple[str, EvaluatedCase]]
) -> tuple[GroupFigures, ...]:
    """The figures of each group, as far as its size is told."""
    if found is None:
        return ()
    by_name: dict[str, dict[str, Any]] = found["figures"]
    people = {
        name: len({case.prediction.subject for group, case in members if group == name})
        for name in by_name
    }
    counts = told({name: figures["cases"] for name, figures in by_name.items()}, people)
    return tuple(
        GroupFigures(
            name=name,
            cases=counts[name],
            figures={} if counts[name] is None or "too_few" in figures else figures,
        )
        for name, figures in by_name.items()
    )


def _reliability(truth: Floats, probabilities: Floats) -> tuple[Bin, ...]:
    """The bins of the calibration error, joined until each holds `FEWEST_PEOPLE` cases."""
    bins = [Bin(**found) for found in reliability(truth, probabilities)]
    joined: list[Bin] = []
    for one in bins:
        if joined and min(joined[-1].cases, one.cases) < FEWEST_PEOPLE:
            joined[-1] = _join(joined[-1], one)
        else:
            joined.append(one)
    return tuple(joined)


def _join(a: Bin, b: Bin) -> Bin:
    cases = a.cases + b.cases
    return Bin(
        cases=cases,
        probability=(a.cases * a.probability + b.cases * b.probability) / cases,
        accuracy=(a.cases * a.accuracy + b.cases * b.accuracy) / cases,
    )
