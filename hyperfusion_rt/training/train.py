"""`train`: from a configuration and a folder with a cohort to a finished run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from hyperfusion_rt.config import Config
from hyperfusion_rt.data.raw.landmarks import template_landmarks
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.training.check import Check
from hyperfusion_rt.training.curve import learning_curve
from hyperfusion_rt.training.dataset import Dataset, gather, inputs_of, splits_csv
from hyperfusion_rt.training.loop import Trainer, split_of
from hyperfusion_rt.training.options import TrainOptions
from hyperfusion_rt.training.own_network import OnNetwork, check_network, keep_network
from hyperfusion_rt.training.results import evaluate
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.scan_reference import keep_reference, reference_of
from hyperfusion_rt.training.training_cases import keep_training_cases

INPUTS = "inputs.json"
SPLITS = "splits.csv"


@dataclass(frozen=True)
class Callbacks:
    """What the caller wants to be told. Counts start at 1 except `epoch`.

    `on_check` gets what is odd about the cohort, before the first epoch; `on_network` a network of
    the study's own, before scans are decoded, and may refuse it; `on_features` counts scans that
    frozen layers have run on.
    """

    on_scan: Callable[[int, int], None] | None = None
    on_check: Callable[[Check], None] | None = None
    on_epoch: Callable[[int, int, dict[str, Any]], None] | None = None
    on_network: OnNetwork | None = None
    on_features: Callable[[int, int], None] | None = None


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
    parent: Path | None = None,
    resume: Run | None = None,
    like: Path | None = None,
    network: Path | None = None,
    options: TrainOptions | None = None,
    callbacks: Callbacks | None = None,
) -> Run:
    """Train every member of `config` on the cohort under `root` and write `parent/NAME`.

    `parent`: default `root/runs`. With `resume`, continue that run where it stopped; `config` must
    be the run's own. `like`: a run that must have the same cases in the same parts. `network`: a
    folder that keeps a network of the study's own (`keep_network`), which has been looked at; by
    default it is the study's, and is looked at first.

    Raises:
        HyperFusionError: what is wrong with the cohort, the configuration, or the disk.
    """
    calls = callbacks or Callbacks()
    chosen = options or TrainOptions()
    where = choose_device(chosen.device)
    root = root.resolve()
    if resume is not None:
        keep_network(resume.network, config, network or root)
    elif network is None:
        check_network(config, root, calls.on_network)
    dataset = gather(config, root, calls.on_scan)
    if calls.on_check is not None:
        calls.on_check(dataset.check)
    if like is not None:
        _refuse_another_cohort(like, dataset, config, root)
    run = resume or Run.create(parent or root / "runs", config, name)
    run.write_study(root)
    keep_network(run.network, config, network or root)
    _write_cohort(run, dataset, root)
    for index in range(config.training.members):
        trainer = Trainer(config, dataset, run.member(index), index, where)

        def on_epoch(epoch: int, row: dict[str, Any], index: int = index) -> None:
            if calls.on_epoch is not None:
                calls.on_epoch(index, epoch, row)

        trainer.train(
            on_epoch,
            resume=resume is not None,
            on_features=calls.on_features,
            trackers=chosen.trackers,
        )
    # Without the test part: it stays as new to the network as any scan to come.
    seen = split_of(dataset, config, 0)
    scans = [dataset.cases[i].files for i in (*seen.train, *seen.validation)]
    landmarks = dataset.cache.landmarks or template_landmarks()
    keep_reference(run.folder, reference_of(dataset.cache, scans, landmarks))
    keep_training_cases(run.folder, dataset, config)
    metrics = evaluate(run, dataset, where)
    learning_curve(run, metrics)
    run.write_metrics(metrics)
    return run


def dataset_again(run: Run, on_scan: Callable[[int, int], None] | None = None) -> Dataset:
    """The cases that `run` was trained on, in their parts, from its study's folder.

    Boxes come from the study's cache, as far as it still has them.

    Raises:
        HyperFusionError: the study is not where it was, or its cases are other ones now.
    """
    root = run.study
    dataset = gather(run.config, root, on_scan)
    _refuse_another_cohort(run.folder, dataset, run.config, root)
    return dataset


def _write_cohort(run: Run, dataset: Dataset, root: Path) -> None:
    """Keep what the run is trained on; a run that is resumed must find the same."""
    splits, inputs = run.folder / SPLITS, run.folder / INPUTS
    text, content = splits_csv(dataset, run.config, root), inputs_of(dataset, run.config)
    if splits.exists() and splits.read_text(encoding="utf-8") != text:
        _refuse_resume(splits, "the cohort has changed")
    changed = _changed(_kept_inputs(inputs), content)
    if changed:
        _refuse_resume(inputs, f"{changed} changed")
    write_text(splits, text, private=True)
    write_text(inputs, json.dumps(content, indent=1) + "\n", private=True)
    check = json.dumps(asdict(dataset.check), indent=2) + "\n"
    write_text(run.folder / "check.json", check, private=True)
    left = [astuple(item) for item in dataset.left_out]
    write_text(run.folder / "left_out.json", json.dumps(left, indent=2) + "\n", private=True)


def _refuse_another_cohort(like: Path, dataset: Dataset, config: Config, root: Path) -> None:
    """Refuse to train on other cases, or other parts, than the run `like` was trained on.

    Raises:
        ConfigError: what is different.
    """
    splits = (like / SPLITS, splits_csv(dataset, config, root))
    if _parts_in(splits[0].read_text(encoding="utf-8")) != _parts_in(splits[1]):
        _refuse_resume(splits[0], "the cohort has changed")
    changed = _changed(_kept_inputs(like / INPUTS), inputs_of(dataset, config))
    if changed:
        _refuse_resume(like / INPUTS, f"{changed} changed")


def _parts_in(text: str) -> list[list[str]]:
    """Subject, session, scan and part of each case, whatever each member's split is."""
    return [line[:4] for line in csv.reader(io.StringIO(text))]


def _kept_inputs(path: Path) -> list[dict[str, str]]:
    """What `inputs.json` holds; nothing in a new run and in those of older versions."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [{str(name): str(value) for name, value in item.items()} for item in found]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", code="run-unreadable") from None


def _changed(old: list[dict[str, str]], new: list[dict[str, str]]) -> str:
    """Which scan or row is another one than when the run began; "" if none is."""
    found = [
        f"the {what} of {b['subject']}"
        for a, b in zip(old, new, strict=False)
        for what in ("scan", "row")
        if a.get(what) != b[what]
    ]
    more = (
        f" and {len(found) - 3} more have" if len(found) > 3 else " have" if found[1:] else " has"
    )
    return ", ".join(found[:3]) + more if found else ""


def _refuse_resume(path: Path, what: str) -> None:
    raise ConfigError(
        f"{path}: {what} since this run began, so it cannot be resumed; "
        "train anew without `resume`",
        code="run-cohort-changed",
    )
