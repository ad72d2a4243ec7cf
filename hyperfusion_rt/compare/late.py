"""Late fusion: what the image network answered, as further columns beside the table.

Gradient boosting may only learn from answers that the network gave to cases it had not learned
from: those of each member to its own validation part. With one member that is one part of the
cohort; with one fewer than there are parts, every training case once. The test cases have the
answer of all members together.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.compare.plan import EXTERNAL, IMAGE, Comparison, Job, rows_of
from hyperfusion_rt.config import TableSpec
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.training.cross_validation import test_rows
from hyperfusion_rt.training.dataset import Dataset
from hyperfusion_rt.training.results import TABLE
from hyperfusion_rt.training.run_folder import Run

_SMALLEST = 1e-12
Floats = NDArray[np.float64]


def image_answers(comparison: Comparison, job: Job, dataset: Dataset) -> Floats:
    """What the image network of the same seed and fold says of cases it has not learned from.

    Returns:
        `[cases, C]`: log probabilities, or the number; NaN of a case without such an answer. Of a
        case that several members validate: the mean.

    Raises:
        ConfigError: that network is not trained.
    """
    run = Run.open(_image_run(comparison, job))
    rows = [row for row in rows_of(run.folder / TABLE) if row["split"] == "validation"]
    return _columns([*rows, *test_rows(run)], comparison.plan.base.tabular, dataset)


def external_answers(comparison: Comparison, job: Job, dataset: Dataset) -> Floats:
    """As `image_answers`, of the cases of the external test set.

    Raises:
        ConfigError: that network has not predicted them.
    """
    rows = rows_of(_image_run(comparison, job) / EXTERNAL)
    return _columns(rows, comparison.plan.base.tabular, dataset)


def _image_run(comparison: Comparison, job: Job) -> Path:
    image = job.model_copy(update={"model": IMAGE})
    if not comparison.done(image):
        raise ConfigError(
            f"{job.model}, seed {job.seed}, fold {job.fold}: reads what {IMAGE} answers there, "
            "which has no result; see why, and try both again with `resume`",
            code="run-not-found",
        )
    return comparison.place(image)


def _columns(rows: Iterable[dict[str, str]], spec: TableSpec, dataset: Dataset) -> Floats:
    at = {(case.subject, case.session or ""): i for i, case in enumerate(dataset.cases)}
    sums = np.zeros((len(at), len(spec.answers)))
    counts = np.zeros((len(at), 1))
    for row in rows:
        index = at.get((row["subject"], row["session"]))
        if index is not None:
            sums[index] += [float(row[name]) for name in spec.answers]
            counts[index] += 1
    with np.errstate(invalid="ignore"):
        found: Floats = sums / counts
    return np.log(np.maximum(found, _SMALLEST)) if spec.classes else found
