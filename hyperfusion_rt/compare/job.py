"""One training of a comparison, from its plan to predictions of its test part.

`work` does all of it; `begin` and `end` what stands before and after the epochs of its members,
where each of them is a task of its own.
"""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.compare.late import external_answers, image_answers
from hyperfusion_rt.compare.plan import EXTERNAL, Comparison, External, Job
from hyperfusion_rt.compare.table_models import TableModel, train_table_model
from hyperfusion_rt.config import Config
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.training.dataset import Dataset, gather, gather_external
from hyperfusion_rt.training.loop import Split, predict, split_of, summarise
from hyperfusion_rt.training.options import TrainOptions
from hyperfusion_rt.training.results import answered, columns_of_answer, load_member
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.train import (
    Callbacks,
    choose_device,
    dataset_again,
    finish,
    prepare,
    train,
)

_BATCH = 16
Floats = NDArray[np.float64]


def work(
    folder: Path, job: Job, device: str | None = None, callbacks: Callbacks | None = None
) -> None:
    """Do a training of the comparison in `folder`, or what is left of it.

    Raises:
        HyperFusionError: why it has no result.
    """
    comparison = _open(folder, job)
    _train(comparison, job, device, callbacks)
    _predict_external(comparison, job, device)


def begin(folder: Path, job: Job, device: str | None = None) -> None:
    """Prepare the run of a network, whose members can be trained then.

    Raises:
        HyperFusionError: why they cannot.
    """
    comparison = _open(folder, job)
    root = Path(comparison.plan.root)
    options = TrainOptions(device=device)
    prepare(comparison.config(job), root, **_run(comparison, job), options=options)


def end(folder: Path, job: Job, device: str | None = None) -> None:
    """Make of the run of a network whose members are trained what `work` makes.

    Raises:
        HyperFusionError: why it has no result.
    """
    comparison = Comparison.open(folder)
    run = Run.open(comparison.place(job))
    if not run.metrics:
        finish(run, dataset_again(run), choose_device(device))
    _predict_external(comparison, job, device)


def _open(folder: Path, job: Job) -> Comparison:
    """The comparison, without what a try at `job` left that failed or was stopped at its start."""
    comparison = Comparison.open(folder)
    comparison.forget_failure(job)
    place = comparison.place(job)
    if place.exists() and not (place / "config.json").exists():
        shutil.rmtree(place)
    return comparison


def _run(comparison: Comparison, job: Job) -> dict[str, Any]:
    """Where the run of a network is, and what there is of it; arguments of `train`."""
    place = comparison.place(job)
    return {
        "name": place.name,
        "parent": comparison.jobs,
        "resume": Run.open(place) if place.exists() else None,
        "network": comparison.network(comparison.plan.model(job.model)),
    }


def _train(
    comparison: Comparison, job: Job, device: str | None, callbacks: Callbacks | None
) -> None:
    place, config = comparison.place(job), comparison.config(job)
    if (place / "metrics.json").exists():
        return
    root, kind = Path(comparison.plan.root), comparison.plan.model(job.model).kind
    if kind == "network":
        options = TrainOptions(device=device)
        train(config, root, **_run(comparison, job), options=options, callbacks=callbacks)
    else:
        dataset = gather(config, root)
        beside = image_answers(comparison, job, dataset) if kind == "late" else None
        train_table_model(place, kind, config, dataset, beside)


# ---- the external test set


def _predict_external(comparison: Comparison, job: Job, device: str | None) -> None:
    external, place = comparison.plan.external, comparison.place(job)
    if external is None or (place / EXTERNAL).exists():
        return
    config, root = comparison.config(job), Path(comparison.plan.root)
    dataset = external_dataset(external, config, root)
    kind = comparison.plan.model(job.model).kind
    if kind == "network":
        index, values = _of_network(Run.open(place), dataset, device)
    else:
        own = gather(config, root)
        split = split_of(own, config, 0)
        readable, beside, others = _encoded(dataset, split.encoder), None, None
        if kind == "late":
            beside = image_answers(comparison, job, own)
            others = external_answers(comparison, job, dataset)
            readable = np.hstack([readable, others])
        model = TableModel(kind, config, own, split, beside)
        index = np.flatnonzero(np.isfinite(readable).all(1))
        values = model(dataset, index, others)
    spec = config.tabular
    stream = io.StringIO()
    columns = ["subject", "session", *(["prediction"] if spec.classes else [])]
    columns += columns_of_answer(spec, values.shape[1])
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for i, answer in zip(index, values, strict=True):
        case = dataset.cases[i]
        about = {"subject": case.subject, "session": case.session or ""}
        writer.writerow({**about, **answered(spec, answer)})
    write_text(place / EXTERNAL, stream.getvalue(), private=True)


def external_dataset(external: External, config: Config, root: Path) -> Dataset:
    """The external test set as a network of `config` reads it."""
    return gather_external(config, Path(external.scans), Path(external.table), root)


def _of_network(run: Run, dataset: Dataset, device: str | None) -> tuple[NDArray[np.int64], Floats]:
    """Which cases every member can read, and what they say together `[n, C]`."""
    members = [(member, _encoded(dataset, member.encoder)) for member in run.members]
    known = np.logical_and.reduce([np.isfinite(rows).all(1) for _, rows in members])
    index = np.flatnonzero(known)
    nothing, where = np.empty(0, np.int64), choose_device(device)
    outputs = []
    for member, rows in members:
        split = Split(nothing, nothing, index, rows, member.encoder)
        network = load_member(run, member).to(where)
        outputs.append(predict(network, dataset, split, index, _BATCH))
    return index, summarise(run.config, np.stack(outputs))


def _encoded(dataset: Dataset, encoder: TabularEncoder) -> NDArray[np.float32]:
    """The encoded rows `[N, T]`; NaN where the encoder cannot read one."""
    rows = np.full((len(dataset.cases), encoder.width), np.nan, np.float32)
    for index, row in enumerate(dataset.rows):
        try:
            rows[index] = encoder.encode_row(row)
        except HyperFusionError:
            continue
    return rows
