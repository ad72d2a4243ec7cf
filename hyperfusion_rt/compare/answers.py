"""The predictions of a comparison, read from its folder into arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.compare.plan import EXTERNAL, Comparison, Job, Model, rows_of
from hyperfusion_rt.compare.prepare import CASES, EXTERNAL_CASES
from hyperfusion_rt.config import TableSpec
from hyperfusion_rt.training.cross_validation import test_rows
from hyperfusion_rt.training.run_folder import Run

Floats = NDArray[np.float64]
_Key = tuple[str, str]


@dataclass(frozen=True)
class Cases:
    """N cases. `truth [N]`: class indices or numbers; `parts [seeds, N]`: empty of external ones.

    `seen [N]`: how an external case is known to be in the cohort, too; empty where it is not.
    """

    keys: list[_Key]
    truth: Floats
    sex: list[str]
    age: list[float | None]
    parts: NDArray[np.int64]
    seen: list[str]

    @property
    def subjects(self) -> list[str]:
        """Of each case."""
        return [subject for subject, _ in self.keys]

    def select(self, index: NDArray[np.intp]) -> Cases:
        """Some of the cases."""
        return Cases(
            [self.keys[i] for i in index],
            self.truth[index],
            [self.sex[i] for i in index],
            [self.age[i] for i in index],
            self.parts[:, index],
            [self.seen[i] for i in index],
        )


@dataclass(frozen=True)
class Answers:
    """What a model says of N cases: `values [R, N, C]`, NaN where it says nothing.

    R: the seeds, each with the answers of all its folds; of an external test set, the trainings.
    `jobs`: those that are done; `failed`: code and reason of each other one.
    """

    model: Model
    values: Floats
    jobs: list[Job]
    failed: dict[Job, tuple[str, str]]


def read_cases(comparison: Comparison, *, external: bool = False) -> Cases:
    """The cohort, or the external test set, as it was written.

    Raises:
        ConfigError: it cannot be read.
    """
    path = comparison.folder / (EXTERNAL_CASES if external else CASES)
    spec = comparison.plan.base.tabular
    rows = rows_of(path)
    seeds = [] if external else [f"seed_{seed}" for seed in range(comparison.plan.seeds)]
    parts = np.array([[int(row[name]) for row in rows] for name in seeds], np.int64)
    return Cases(
        [(row["subject"], row["session"]) for row in rows],
        np.array([_truth(spec, row["truth"]) for row in rows], np.float64),
        [row["sex"] for row in rows],
        [float(row["age"]) if row["age"] else None for row in rows],
        parts.reshape(len(seeds), len(rows)),
        [row.get("seen", "") for row in rows],
    )


def read_answers(comparison: Comparison, cases: Cases) -> list[Answers]:
    """What every model says of each case of the cohort, when it is in the test part."""
    plan, at = comparison.plan, {key: i for i, key in enumerate(cases.keys)}
    spec = plan.base.tabular
    found = []
    for model in plan.models:
        values = np.full((plan.seeds, len(cases.keys), len(spec.answers)), np.nan)
        jobs, failed = _jobs_of(comparison, model)
        for job in jobs:
            _fill(values[job.seed], test_rows(Run.open(comparison.place(job))), spec, at)
        found.append(Answers(model, values, jobs, failed))
    return found


def read_external(comparison: Comparison, cases: Cases) -> list[Answers]:
    """What every training of each model says of each external case."""
    at = {key: i for i, key in enumerate(cases.keys)}
    spec = comparison.plan.base.tabular
    found = []
    for model in comparison.plan.models:
        jobs, failed = _jobs_of(comparison, model)
        values = np.full((len(jobs), len(cases.keys), len(spec.answers)), np.nan)
        for one, job in zip(values, jobs, strict=True):
            _fill(one, rows_of(comparison.place(job) / EXTERNAL), spec, at)
        found.append(Answers(model, values, jobs, failed))
    return found


def _jobs_of(comparison: Comparison, model: Model) -> tuple[list[Job], dict[Job, tuple[str, str]]]:
    jobs = [job for job in comparison.plan.jobs() if job.model == model.name]
    done = [job for job in jobs if comparison.done(job)]
    left = [job for job in jobs if job not in done]
    not_tried = ("not-tried", "the comparison ended before it")
    return done, {job: comparison.failure(job) or not_tried for job in left}


def _fill(
    values: Floats, rows: Sequence[dict[str, str]], spec: TableSpec, at: dict[_Key, int]
) -> None:
    for row in rows:
        index = at.get((row["subject"], row["session"]))
        if index is not None:
            values[index] = [float(row[name]) for name in spec.answers]


def _truth(spec: TableSpec, text: str) -> float:
    return float(list(spec.classes).index(text)) if spec.classes else float(text)
