"""The cohort of a comparison: looked at once, split once for all models."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hyperfusion_rt
from hyperfusion_rt.compare.job import external_dataset
from hyperfusion_rt.compare.options import CompareOptions
from hyperfusion_rt.compare.plan import Comparison, External, Plan, check_sources, models_of
from hyperfusion_rt.config import Config
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.data.fingerprint import TrainingCases
from hyperfusion_rt.errors import CohortError, ConfigError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.runtime.evaluation import ages_of, cases_of, columns_of_groups, sexes_of
from hyperfusion_rt.training.dataset import Dataset, gather, inputs_of, inputs_text
from hyperfusion_rt.training.own_network import check_network, keep_network
from hyperfusion_rt.training.parts import parts_of
from hyperfusion_rt.training.train import Callbacks

CASES, EXTERNAL_CASES, INPUTS = "cases.csv", "external_cases.csv", "inputs.json"
_Parts = list[NDArray[np.int64]]


def begin(root: Path, base: Config, options: CompareOptions, callbacks: Callbacks) -> Comparison:
    """Look at the cohort, split it, and make the comparison's folder.

    Raises:
        HyperFusionError: what is wrong with the cohort, the models or the parts.
    """
    given = base.training.split_column or base.training.split_file
    if not given:
        training = {"parts": options.folds or base.training.parts, "test_part": None}
        base = base.model_copy(update={"training": base.training.model_copy(update=training)})
    models = models_of(base, options.models, options.ablate)
    check_sources(models)
    _refuse_unknown(options.against, [model.name for model in models])
    for model in models:
        check_network(model.config, root, callbacks.on_network)
    dataset = _gather(base, root, callbacks)
    if dataset.parts.named:
        raise ConfigError(
            f"{root}: a comparison takes every part as test set in turn, and the study names its "
            "test part: number the parts, or leave out the split",
            code="split-invalid",
        )
    folds = sorted({int(part) for part in dataset.parts.of})
    if given and options.folds not in (None, len(folds)):
        raise ConfigError(
            f"`folds` {options.folds}: the study itself gives {len(folds)} parts; leave it out",
            code="option-conflict",
        )
    _refuse_small(base, dataset, len(folds))
    parts = _splits(base, dataset, options.seeds)
    plan = Plan(
        program=f"hyperfusion_rt {hyperfusion_rt.__version__}",
        root=str(root),
        base=base,
        models=tuple(models),
        folds=tuple(folds),
        seeds=options.seeds,
        external=_external(options),
        notes=tuple(_notes(base, dataset, parts, folds)),
    )
    other = _external_text(plan, dataset)
    made = Comparison.create(root / "compare", plan, options.name)
    _write(made, dataset, parts, other)
    return made


def go_on(root: Path, options: CompareOptions, callbacks: Callbacks) -> Comparison:
    """The comparison to go on with; it takes further models, seeds and an external test set.

    Raises:
        ConfigError: there is none, or the cohort is not what it was.
        HyperFusionError: as `begin`.
    """
    parent = root / "compare"
    old = Comparison.open(parent / options.name) if options.name else Comparison.latest(parent)
    plan = old.plan
    base, known = plan.base, {model.name for model in plan.models}
    new = models_of(base, options.models) if options.models else []
    models = (*plan.models, *(model for model in new if model.name not in known))
    check_sources(models)
    _refuse_unknown(options.against, [model.name for model in models])
    for model in models[len(plan.models) :]:
        check_network(model.config, Path(plan.root), callbacks.on_network)
    dataset = _gather(base, Path(plan.root), callbacks)
    seeds = max(plan.seeds, options.seeds)
    parts = _splits(base, dataset, seeds)
    content = inputs_text(inputs_of(dataset, base))
    same = _read(old.folder / INPUTS) == content
    for seed in range(plan.seeds):
        same &= _read(old.split(seed)) == _split_text(dataset, parts[seed])
    if not same:
        raise ConfigError(
            f"{old.folder}: the cohort has changed since this comparison began, so it cannot go "
            "on; begin anew without `resume`",
            code="run-cohort-changed",
        )
    external = _external(options) or plan.external
    if plan.external is not None and external != plan.external:
        raise ConfigError(
            f"{old.folder}: has another external test set already; begin anew without `resume`",
            code="option-conflict",
        )
    change: dict[str, Any] = {
        "models": models,
        "seeds": seeds,
        "external": external,
        "notes": tuple(_notes(base, dataset, parts, plan.folds)),
    }
    made = Comparison(old.folder, plan.model_copy(update=change))
    other = _external_text(made.plan, dataset)
    made.keep()
    _write(made, dataset, parts, other)
    return made


def _refuse_unknown(name: str | None, models: Sequence[str]) -> None:
    if name is not None and name not in models:
        raise ConfigError(
            f"`against` {name}: is none of the models {', '.join(models)}", code="option-wrong"
        )


def _gather(base: Config, root: Path, callbacks: Callbacks) -> Dataset:
    dataset = gather(base, root, callbacks.on_scan)
    if callbacks.on_check is not None:
        callbacks.on_check(dataset.check)
    return dataset


def _refuse_small(base: Config, dataset: Dataset, folds: int) -> None:
    """Every part shall have a case of every class."""
    for index, name in enumerate(base.tabular.classes):
        of_class = zip(dataset.cases, dataset.targets, strict=True)
        count = len({case.subject for case, target in of_class if target == index})
        if count < folds:
            raise CohortError(
                f"{folds} parts, but class {name} has {count} subject{'s' if count > 1 else ''}: "
                "some part would have none of them; lower `folds`, add subjects, or take the "
                "class out of tabular.classes",
                code="cohort-too-small",
            )


def _splits(base: Config, dataset: Dataset, seeds: int) -> _Parts:
    """The part of every case [N] under each seed; those of the study itself are always the same."""
    if base.training.split_column or base.training.split_file:
        return [dataset.parts.of] * seeds
    found = []
    for seed in range(seeds):
        numbered = {"seed": base.training.seed + seed}
        training = base.training.model_copy(update=numbered)
        config = base.model_copy(update={"training": training})
        found.append(parts_of(config, dataset.cases, dataset.targets, None).of)
    return found


def _external(options: CompareOptions) -> External | None:
    if options.test is None or options.test_table is None:
        return None
    return External(scans=str(options.test.resolve()), table=str(options.test_table.resolve()))


# ---- what a reader should know


def _notes(base: Config, dataset: Dataset, parts: _Parts, folds: Sequence[int]) -> list[str]:
    notes = [f"left out: {cases_of(len(dataset.check.left_out))}"] * bool(dataset.check.left_out)
    if base.training.split_column or base.training.split_file:
        notes.append("the study itself gives the parts: under each seed they are the same")
    else:
        alike = ", ".join([base.tabular.target, *base.tabular.stratify])
        notes.append(f"the parts are alike in {alike}; all scans of a subject are in one part")
    for index, name in enumerate(base.tabular.classes):
        own = dataset.targets == index
        lacking = [
            f"{fold} under seed {seed}"
            for seed, of in enumerate(parts)
            for fold in folds
            if not np.any(own & (of == fold))
        ]
        if lacking:
            notes.append(f"no case of {name} is in part {', '.join(lacking)}")
    return notes + _twins(dataset, parts)


def _twins(dataset: Dataset, parts: _Parts) -> list[str]:
    """Images that stand under several subjects: one may be trained on, the other the test."""
    places: dict[str, list[int]] = {}
    for index, case in enumerate(dataset.cases):
        for content in set(dataset.cache.figures(case.files).content) - {""}:
            places.setdefault(content, []).append(index)
    twins = [at for at in places.values() if len({dataset.cases[i].subject for i in at}) > 1]
    apart = [at for at in twins if any(len(set(of[at])) > 1 for of in parts)]
    if not twins:
        return []
    return [
        f"images that stand under more than one subject: {len(twins)}; in two parts: {len(apart)}, "
        "so that what is trained on is also tested on. 'hfrt check' with `scans` names them"
    ]


# ---- what is written


def _write(made: Comparison, dataset: Dataset, parts: _Parts, external: str) -> None:
    base = made.plan.base
    for model in made.plan.models:
        if model.kind == "network":
            keep_network(made.network(model), model.config, Path(made.plan.root))
    content = inputs_text(inputs_of(dataset, base))
    write_text(made.folder / INPUTS, content, private=True)
    for seed, of in enumerate(parts):
        write_text(made.split(seed), _split_text(dataset, of), private=True)
    seeds = {f"seed_{seed}": of.tolist() for seed, of in enumerate(parts)}
    write_text(made.folder / CASES, _cases_text(base, dataset, seeds), private=True)
    if external:
        write_text(made.folder / EXTERNAL_CASES, external, private=True)


def _external_text(plan: Plan, dataset: Dataset) -> str:
    """The external cases; those that are in the cohort, too, by id or scan, are marked."""
    if plan.external is None:
        return ""
    other = external_dataset(plan.external, plan.base, Path(plan.root))
    known = TrainingCases.of([case.subject for case in dataset.cases], _contents(dataset))
    seen = [
        known.seen(case.subject, other.cache.figures(case.files).content) for case in other.cases
    ]
    if all(seen):
        raise CohortError(
            f"`test` {plan.external.scans}: all {len(seen)} cases are in the cohort, too, by their "
            "ids or scans: they are no external test set",
            code="evaluation-all-seen",
        )
    return _cases_text(plan.base, other, {"seen": seen})


def _contents(dataset: Dataset) -> list[str]:
    figures = (dataset.cache.figures(case.files) for case in dataset.cases)
    return [text for found in figures for text in found.content]


def _cases_text(base: Config, dataset: Dataset, more: dict[str, list[Any]]) -> str:
    """Subject, session, truth, sex and age of every case, and further columns."""
    spec, rows = base.tabular, dataset.rows
    sex, age = columns_of_groups(spec, list(rows[0].values))
    sexes = sexes_of(rows, sex) if sex else [""] * len(rows)
    ages = ages_of(rows, age) if age else [None] * len(rows)
    classes = list(spec.classes)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["subject", "session", "truth", "sex", "age", *more])
    for i, case in enumerate(dataset.cases):
        target = dataset.targets[i]
        truth = classes[int(target)] if classes else f"{target:.9g}"
        years = ages[i]
        about = [*_key(case), truth, sexes[i], "" if years is None else f"{years:g}"]
        writer.writerow([*about, *(values[i] for values in more.values())])
    return stream.getvalue()


def _key(case: Case) -> tuple[str, str]:
    return case.subject, case.session or ""


def _split_text(dataset: Dataset, of: NDArray[np.int64]) -> str:
    """The part of every subject: a `training.split_file`."""
    found = {case.subject: int(part) for case, part in zip(dataset.cases, of, strict=True)}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([("subject", "part"), *found.items()])
    return stream.getvalue()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
