"""`train`: from a configuration and a folder with a cohort to a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperfusion_rt.config import Config
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.files import replacing, write_text
from hyperfusion_rt.models import network_of
from hyperfusion_rt.models.checkpoint import read_state
from hyperfusion_rt.training.curve import learning_curve
from hyperfusion_rt.training.dataset import Dataset, gather, splits_csv
from hyperfusion_rt.training.loop import (
    Trainer,
    predict,
    split_of,
    summarise,
)
from hyperfusion_rt.training.metrics import classification, regression
from hyperfusion_rt.training.run_folder import Member, Run

# As many real cases as the largest batch of the comparison made at export.
EXPORT_CASES = 7


@dataclass(frozen=True)
class Callbacks:
    """What the caller wants to be told. Counts start at 1 except `epoch`."""

    on_scan: Callable[[int, int], None] | None = None
    on_epoch: Callable[[int, int, dict[str, Any]], None] | None = None


def choose_device(name: str | None = None) -> torch.device:
    """`name`, or CUDA where there is one, or the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"device {name!r} is unknown: cpu, cuda or cuda:N", code="device-unavailable"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {name!r}: this machine (or this torch) has no CUDA", code="device-unavailable"
        )
    return device


def train(
    config: Config,
    root: Path,
    *,
    name: str | None = None,
    resume: Run | None = None,
    device: str | None = None,
    callbacks: Callbacks | None = None,
) -> Run:
    """Train every member of `config` on the cohort under `root` and write `root/runs/NAME`.

    With `resume`, continue that run where it stopped; `config` must be the run's own.

    Raises:
        HyperFusionError: what is wrong with the cohort, the configuration, or the disk.
    """
    calls = callbacks or Callbacks()
    where = choose_device(device)
    root = root.resolve()
    dataset = gather(config, root, calls.on_scan)
    run = resume or Run.create(root / "runs", config, name)
    _write_cohort(run, dataset, root)
    for index in range(config.training.members):
        trainer = Trainer(config, dataset, run.member(index), index, where)

        def on_epoch(epoch: int, row: dict[str, Any], index: int = index) -> None:
            if calls.on_epoch is not None:
                calls.on_epoch(index, epoch, row)

        trainer.train(on_epoch, resume=resume is not None)
    learning_curve(run)
    run.write_metrics(evaluate(run, dataset, where))
    return run


def _write_cohort(run: Run, dataset: Dataset, root: Path) -> None:
    splits = run.folder / "splits.csv"
    text = splits_csv(dataset, run.config, root)
    if splits.exists() and splits.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{splits}: the cohort has changed since this run began, so it cannot be resumed; "
            "train anew without `resume`",
            code="run-cohort-changed",
        )
    write_text(splits, text, private=True)
    left = [astuple(item) for item in dataset.left_out]
    write_text(run.folder / "left_out.json", json.dumps(left, indent=2) + "\n", private=True)


def load_member(run: Run, member: Member) -> torch.nn.Module:
    """The trained network of `member`, in eval mode, on the CPU."""
    config = run.config
    network = network_of(config, member.encoder.width)
    network.load_state_dict(read_state(member.weights))
    return network.eval()


def evaluate(run: Run, dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """Figures of every member on its validation set, and of the ensemble on the test set."""
    config = run.config
    validation: list[dict[str, Any]] = []
    test: list[Any] = []
    for index, member in enumerate(run.members):
        network = load_member(run, member).to(device)
        split = split_of(dataset, config, index)
        outputs = predict(network, dataset, split, split.validation, 16)
        validation.append(_figures(config, dataset, split.validation, outputs[None]))
        test.append(predict(network, dataset, split, split.test, 16))
    _keep_cases(run, dataset)
    split = split_of(dataset, config, 0)
    return {
        "task": config.task,
        "cases": {
            "train": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
            "left_out": len(dataset.left_out),
        },
        "validation": validation,
        "test": _figures(config, dataset, split.test, np.stack(test)),
    }


def _figures(config: Config, dataset: Dataset, indices: Any, outputs: Any) -> dict[str, Any]:
    values, truth = summarise(config, outputs), dataset.targets[indices]
    if config.tabular.classes:
        return classification(truth.astype(int), values, list(config.tabular.classes))
    return regression(truth, values[:, 0])


def _keep_cases(run: Run, dataset: Dataset) -> None:
    """Keep a few real inputs in the run: the comparison at export needs them."""
    from safetensors.numpy import save_file

    splits = [split_of(dataset, run.config, index) for index in range(len(run.members))]
    chosen = np.concatenate([splits[0].test, splits[0].validation, splits[0].train])[:EXPORT_CASES]
    content = {"image": np.ascontiguousarray(dataset.images(chosen)[:, :, 0])}
    for index, split in enumerate(splits):
        content[f"tabular_{index}"] = np.ascontiguousarray(split.tabular[chosen])
    with replacing(run.folder / "cases.safetensors", private=True) as temporary:
        save_file(content, temporary)
