"""What a trained run is worth: figures of its parts, and the prediction of every case."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hyperfusion_rt.config import SD, Config, TableSpec
from hyperfusion_rt.files import replacing, write_text
from hyperfusion_rt.metrics import classification, deviation, regression
from hyperfusion_rt.models import network_of
from hyperfusion_rt.models.checkpoint import read_state
from hyperfusion_rt.training.dataset import Dataset
from hyperfusion_rt.training.group import Group
from hyperfusion_rt.training.loop import Split, diverged, predict, split_of, summarise
from hyperfusion_rt.training.own_network import check_kept
from hyperfusion_rt.training.run_folder import Member, Run

# As many real cases as the largest batch of the comparison made at export.
EXPORT_CASES = 7
TABLE = "predictions.csv"
ALL = "all"  # the members together
_BATCH = 16

Floats = NDArray[np.float64]


def load_member(run: Run, member: Member) -> torch.nn.Module:
    """The trained network of `member`, in eval mode, on the CPU.

    Raises:
        ConfigError: it is the study's own, and cannot be made as it was.
    """
    config = run.config
    encoder = member.encoder
    check_kept(run.network, config)
    network = network_of(config, encoder.width, encoder.input_columns, run.network)
    network.load_state_dict(read_state(member.weights))
    return network.eval()


def answers_of(
    run: Run, dataset: Dataset, device: torch.device, group: Group | None = None
) -> Floats:
    """Raw outputs of every member for every case, `[M, cases, N boxes, C]`.

    NaN of a case with a category that a member has not learned. Each process of `group` runs its
    part of the cases.

    Raises:
        HyperFusionError: a member's answer is not finite.
    """
    config = run.config
    outputs = []
    for index, member in enumerate(run.members):
        split = split_of(dataset, config, index)
        known = np.flatnonzero(np.isfinite(split.tabular).all(1))
        network = load_member(run, member).to(device)
        found = predict(network, dataset, split, known, _BATCH, group)
        if not np.isfinite(found).all():
            bad = int(np.sum(~np.isfinite(found).all((1, 2))))
            raise diverged(
                f"no finite answer to {bad} of {len(known)} cases ({member.folder})",
                config.training.lr,
            )
        every = np.full((len(dataset.cases), *found.shape[1:]), np.nan)
        every[known] = found
        outputs.append(every)
    return np.stack(outputs)


def evaluate(run: Run, dataset: Dataset, raw: Floats) -> dict[str, Any]:
    """Figures of every member on its validation set, and of the ensemble on the test set.

    `raw`: of `answers_of`. A case with a category that a member has not learned is not counted:
    `not_evaluated`. Writes `predictions.csv`, and keeps a few cases for the comparison at export.
    """
    config = run.config
    splits = [split_of(dataset, config, index) for index in range(len(run.members))]
    values = [summarise(config, one[None]) for one in raw]
    together = summarise(config, raw)
    _keep_cases(run, dataset, splits)
    rows = _rows(config, dataset, splits, values, together)
    write_table(run.folder / TABLE, config.tabular, list(rows))
    test_set = reduce(np.intersect1d, [split.test for split in splits])
    cases = {
        "train": len(splits[0].train),
        "validation": len(splits[0].validation),
        "test": len(test_set),
        "left_out": len(dataset.left_out),
    }
    in_test = int(np.sum(dataset.parts.of == dataset.parts.test))
    if in_test > len(test_set):
        cases["not_evaluated"] = in_test - len(test_set)
    trained = dataset.targets[splits[0].train]
    spread = None if config.tabular.classes else float(trained.std())
    target = {"name": config.tabular.target, "unit": config.tabular.unit, "spread": spread}

    def measured(chosen: NDArray[np.int64], found: Floats) -> dict[str, Any]:
        subjects = [dataset.cases[i].subject for i in chosen]
        return figures(config.tabular, dataset.targets[chosen], found[chosen], subjects)

    return {
        "task": config.task,
        "target": target,
        "cases": cases,
        "validation": [
            measured(split.validation, found) for split, found in zip(splits, values, strict=True)
        ],
        "test": measured(test_set, together),
    }


def figures(
    spec: TableSpec, truth: Floats, values: Floats, subjects: Sequence[str]
) -> dict[str, Any]:
    """The figures of answers `values [N, C]` against `truth [N]`, of `subjects [N]`."""
    if spec.classes:
        return classification(truth.astype(int), values, list(spec.classes), subjects)
    found = regression(truth, values[:, 0], spec.unit, subjects)
    return found | (deviation(truth, values[:, 0], values[:, 1]) if values.shape[1] == 2 else {})


def _rows(
    config: Config,
    dataset: Dataset,
    splits: Sequence[Split],
    values: Sequence[Floats],
    together: Floats,
) -> Iterator[dict[str, Any]]:
    """A line for every case and member, and one for the members together."""
    names = [dataset.parts.names(member) for member in range(len(splits))]
    spec = config.tabular
    for index, case in enumerate(dataset.cases):
        target = dataset.targets[index]
        truth = list(spec.classes)[int(target)] if spec.classes else f"{target:.6g}"
        about = {
            "subject": case.subject,
            "session": case.session or "",
            "part": int(dataset.parts.of[index]),
        }
        answers = [(str(m), str(names[m][index]), v[index]) for m, v in enumerate(values)]
        if len(splits) > 1:
            seen = "test" if names[0][index] == "test" else "train"
            answers.append((ALL, seen, together[index]))
        for member, split, answer in answers:
            if np.isfinite(answer).all():
                yield {
                    **about,
                    "member": member,
                    "split": split,
                    "truth": truth,
                    **answered(spec, answer),
                }


def columns_of_answer(spec: TableSpec, count: int) -> tuple[str, ...]:
    """What the columns of an answer of `count` numbers are called."""
    return (*spec.answers, SD) if count > len(spec.answers) else spec.answers


def answered(spec: TableSpec, answer: Floats) -> dict[str, str]:
    """One answer `[C]`, a number perhaps with its standard deviation, as cells of a table."""
    names = columns_of_answer(spec, len(answer))
    cells = dict(zip(names, (f"{value:.6g}" for value in answer), strict=True))
    if spec.classes:
        cells = {"prediction": list(spec.classes)[int(answer.argmax())], **cells}
    return cells


def write_table(path: Path, spec: TableSpec, rows: Sequence[dict[str, Any]]) -> None:
    """Write predictions as a table."""
    columns = ["subject", "session", "part", "member", "split", "truth"]
    columns += [*(["prediction"] if spec.classes else []), *spec.answers]
    columns += [SD] if any(SD in row for row in rows) else []
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, stream.getvalue(), private=True)


def _keep_cases(run: Run, dataset: Dataset, splits: Sequence[Split]) -> None:
    """Keep a few real inputs in the run: the comparison at export needs them."""
    from safetensors.numpy import save_file

    first = splits[0]
    order = np.concatenate([first.test, first.validation, first.train])
    # A case that a member cannot read has no inputs for it.
    read = np.logical_and.reduce([np.isfinite(split.tabular[order]).all(1) for split in splits])
    chosen = order[read][:EXPORT_CASES]
    content = {"image": np.ascontiguousarray(dataset.images(chosen))}
    for index, split in enumerate(splits):
        content[f"tabular_{index}"] = np.ascontiguousarray(split.tabular[chosen])
    with replacing(run.folder / "cases.safetensors", private=True) as temporary:
        save_file(content, temporary)
