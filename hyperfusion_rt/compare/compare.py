"""`compare`: from a study and names of models to tables, tests and a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyperfusion_rt.compare import tables
from hyperfusion_rt.compare.answers import (
    Answers,
    Cases,
    read_answers,
    read_cases,
    read_external,
)
from hyperfusion_rt.compare.executor import run
from hyperfusion_rt.compare.options import CompareOptions
from hyperfusion_rt.compare.page import comparison_page
from hyperfusion_rt.compare.plan import Comparison, Job
from hyperfusion_rt.compare.prepare import begin, go_on
from hyperfusion_rt.compare.summary import Pair, Result, pairs, results
from hyperfusion_rt.config import load_config
from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.training.train import Callbacks

# Told of each training that is done: (done, all, the training, why it failed or "").
OnJob = Callable[[int, int, Job, str], None]


@dataclass(frozen=True)
class Compared:
    """What a comparison came to. `external`: figures and pairs of the external test set."""

    comparison: Comparison
    models: list[Result]
    pairs: list[Pair]
    external: list[Result]
    external_pairs: list[Pair]
    notes: tuple[str, ...]

    @property
    def failed(self) -> int:
        """How many trainings have no result."""
        return sum(item.jobs - item.done for item in self.models)


def compare(
    path: Path,
    options: CompareOptions | None = None,
    changes: dict[str, Any] | None = None,
    *,
    callbacks: Callbacks | None = None,
    on_job: OnJob | None = None,
) -> Compared:
    """Train every model on the same parts of the cohort of `path` and compare what they predict.

    Writes `compare/NAME` beside `path`. A training that fails is listed and does not stop the
    others; with `options.resume` it is tried again.

    Args:
        path: `hfrt.yaml`; its folder is the cohort's.
        changes: what overrules it, as nested as it.

    Raises:
        HyperFusionError: what is wrong with the study, the models or the parts; or nothing could
            be trained.
    """
    options, calls = options or CompareOptions(), callbacks or Callbacks()
    root = path.parent.resolve()
    if options.resume:
        comparison = go_on(root, options, calls)
    else:
        comparison = begin(root, load_config(path, changes), options, calls)
    left = [job for job in comparison.plan.jobs() if not comparison.done(job)]
    done = 0

    def told(job: Job, reason: str) -> None:
        nonlocal done
        done += 1
        if on_job is not None:
            on_job(done, len(left), job, reason)

    late = [job for job in left if comparison.plan.model(job.model).kind == "late"]
    # Those that run at the same time do not wait for each other.
    for jobs in ([job for job in left if job not in late], late):
        if jobs:
            run(comparison, jobs, options, told, calls)
    return summarise(comparison, options.against)


def summarise(comparison: Comparison, against: str | None = None) -> Compared:
    """What the trainings that are done come to; writes all tables.

    Raises:
        HyperFusionError: none is done.
    """
    plan = comparison.plan
    spec = plan.base.tabular
    cases = read_cases(comparison)
    answers = read_answers(comparison, cases)
    if not any(item.jobs for item in answers):
        reasons = [reason for item in answers for _, reason in item.failed.values()]
        raise HyperFusionError(
            f"{comparison.folder}: no training has a result; the first: {reasons[0]}",
            code="comparison-no-result",
        )
    ratio = _ratio(comparison, cases, answers)
    external: list[Result] = []
    external_pairs: list[Pair] = []
    notes = list(plan.notes)
    if plan.external is not None:
        others = read_cases(comparison, external=True)
        new = np.flatnonzero([not seen for seen in others.seen])
        if len(new) < len(others.keys):
            notes.append(
                f"{len(others.keys) - len(new)} external cases are in the cohort, too, by their "
                "ids or scans: they are not counted"
            )
        other_answers = read_external(comparison, others)
        chosen = others.select(new)
        picked = [
            Answers(item.model, item.values[:, new], item.jobs, item.failed)
            for item in other_answers
        ]
        external = results(spec, chosen, picked)
        external_pairs = pairs(spec, chosen, picked, 0.0, against)
    found = Compared(
        comparison,
        results(spec, cases, answers),
        pairs(spec, cases, answers, ratio, against),
        external,
        external_pairs,
        tuple(notes),
    )
    _write(found, cases, answers)
    return found


def _ratio(comparison: Comparison, cases: Cases, answers: Sequence[Answers]) -> float:
    """Cases of a test part over those of its training part, of all parts together."""
    test, train = 0, 0
    for item in answers:
        for job in item.jobs:
            metrics = json.loads(
                (comparison.place(job) / "metrics.json").read_text(encoding="utf-8")
            )
            test, train = test + metrics["cases"]["test"], train + metrics["cases"]["train"]
    return test / train


def as_dict(found: Compared) -> dict[str, Any]:
    """What `comparison.json`'s results and `--json` hold."""
    plan = found.comparison.plan
    return {
        "comparison": str(found.comparison.folder),
        "target": plan.base.tabular.target,
        "classes": list(plan.base.tabular.classes),
        "unit": plan.base.tabular.unit,
        "folds": list(plan.folds),
        "seeds": plan.seeds,
        "models": [_result(item) for item in found.models],
        "pairs": [asdict(pair) for pair in found.pairs],
        "external": [_result(item) for item in found.external],
        "external_pairs": [asdict(pair) for pair in found.external_pairs],
        "notes": list(found.notes),
    }


def _result(item: Result) -> dict[str, Any]:
    content = asdict(item)
    content["folds"] = [
        {"seed": seed, "fold": fold, "value": value} for (seed, fold), value in item.folds.items()
    ]
    return content


def _write(found: Compared, cases: Cases, answers: Sequence[Answers]) -> None:
    folder, plan = found.comparison.folder, found.comparison.plan
    spec = plan.base.tabular
    texts = {
        "comparison.csv": tables.comparison_csv(spec, found.models, found.external),
        "comparison.md": tables.markdown(
            plan, found.models, found.pairs, found.external, found.external_pairs
        ),
        "comparison.tex": tables.latex(plan, found.models, found.pairs, found.external),
        "pairs.csv": tables.pairs_csv(found.pairs, found.external_pairs),
        "groups.csv": tables.groups_csv(spec, found.models),
        "results.json": json.dumps(as_dict(found), indent=1) + "\n",
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    write_text(
        folder / "predictions.csv", tables.predictions_csv(spec, cases, answers), private=True
    )
    comparison_page(found, cases, answers).write(folder / "comparison.html")
