"""Cross-validation: every part of the cohort is the test set once.

runs/NAME/
  cross_validation.json  the configuration, and which parts there are
  fold-0/, fold-1/, ...  a run each (`run_folder`), with that part as test set
  predictions.csv        every case as it was predicted when its part was the test set
  metrics.json           figures of all these predictions, and of each fold; written last
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hyperfusion_rt.config import SD, Config
from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.training.dataset import check_parts_rotate
from hyperfusion_rt.training.group import place_given
from hyperfusion_rt.training.members import train_members
from hyperfusion_rt.training.options import TrainOptions
from hyperfusion_rt.training.own_network import check_network, keep_network
from hyperfusion_rt.training.results import ALL, TABLE, figures, write_table
from hyperfusion_rt.training.run_folder import (
    FOLDS,
    NETWORK,
    Run,
    new_folder,
    newest_with,
    read_plan,
)
from hyperfusion_rt.training.train import (
    INPUTS,
    Callbacks,
    dataset_again,
    device_here,
    finish,
    prepare,
    train,
)

# Told of a fold: (fold, folds), from 1.
OnFold = Callable[[int, int], None]


@dataclass(frozen=True)
class CrossValidation:
    """The folder of a cross-validation."""

    folder: Path
    config: Config
    parts: tuple[int, ...]

    @classmethod
    def create(
        cls, parent: Path, config: Config, parts: tuple[int, ...], name: str | None
    ) -> CrossValidation:
        """Make the folder `parent/NAME`.

        Raises:
            ConfigError: it exists.
        """
        folder = new_folder(parent, f"{config.preset}-folds", name)
        content = {"parts": list(parts), "config": config.model_dump(mode="json")}
        write_text(folder / FOLDS, json.dumps(content, indent=2) + "\n")
        return cls(folder, config, parts)

    @classmethod
    def open(cls, folder: Path) -> CrossValidation:
        """Open the folder.

        Raises:
            ConfigError: it holds no readable `cross_validation.json`.
        """

        def read(text: str) -> CrossValidation:
            content = json.loads(text)
            config = Config.model_validate(content["config"])
            return cls(folder, config, tuple(int(part) for part in content["parts"]))

        return read_plan(folder / FOLDS, read, f"is no cross-validation (no {FOLDS})")

    @classmethod
    def latest(cls, parent: Path) -> CrossValidation:
        """The newest under `parent`.

        Raises:
            ConfigError: there is none.
        """
        missing = "no cross-validation here; train one with 'hfrt train'"
        return cls.open(newest_with(parent, FOLDS, missing))

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured; empty while it has not finished."""
        path = self.folder / "metrics.json"
        if not path.exists():
            return {}
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def fold(self, part: int) -> Path:
        """The run whose test set is `part`."""
        return self.folder / f"fold-{part}"


def cross_validate(
    config: Config,
    root: Path,
    *,
    name: str | None = None,
    resume: CrossValidation | None = None,
    options: TrainOptions | None = None,
    callbacks: Callbacks | None = None,
    on_fold: OnFold | None = None,
) -> CrossValidation:
    """Train `config` on the cohort under `root` once for each part, which is the test set then.

    With `resume`, finished folds are kept and those that were interrupted go on.

    Args:
        on_fold: told (fold, folds), from 1, before what is told of that fold.

    Raises:
        HyperFusionError: as `train`; or the parts that the study gives have no numbers.
    """
    if place_given() is not None:
        raise ConfigError(
            "a launcher's processes train one network together, and a cross-validation is many: "
            "start it without torchrun or srun, with `devices`",
            code="option-conflict",
        )
    root = root.resolve()
    if resume is None:
        check_network(config, root, callbacks.on_network if callbacks else None)
        parts = check_parts_rotate(config, root)
        made = CrossValidation.create(root / "runs", config, parts, name)
    else:
        made = resume
    keep_network(made.folder / NETWORK, config, root)
    options, callbacks = options or TrainOptions(), callbacks or Callbacks()
    try:
        if options.elsewhere:
            runs = _folds_elsewhere(made, root, options, callbacks, on_fold)
        else:
            runs = _folds_here(made, root, options, callbacks, on_fold)
    except HyperFusionError as error:
        if error.code != "training-diverged":
            raise
        # All folds have one configuration, so it cannot change for the rest of them.
        raise HyperFusionError(
            f"{error}. Do so in hfrt.yaml and begin another cross-validation, without `resume`; "
            "the finished folds of this one are kept",
            code=error.code,
        ) from error
    rows = [row for run in runs for row in _tested(run)]
    write_table(made.folder / TABLE, config.tabular, rows)
    metrics = {
        "task": config.task,
        "target": {"name": config.tabular.target, "unit": config.tabular.unit},
        "cases": {"test": len(rows), "left_out": runs[0].metrics["cases"]["left_out"]},
        "test": _pooled(config, rows),
        "parts": list(made.parts),
        "folds": [run.metrics["test"] for run in runs],
    }
    write_text(made.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return made


def _folds_here(
    made: CrossValidation,
    root: Path,
    options: TrainOptions,
    callbacks: Callbacks,
    on_fold: OnFold | None,
) -> list[Run]:
    """The runs of all folds, trained one after the other in this process."""
    begin = partial(train, options=options, callbacks=callbacks)
    runs = []
    for index, part in enumerate(made.parts):
        if on_fold is not None:
            on_fold(index + 1, len(made.parts))
        runs.append(_fold(made, part, root, begin))
    return runs


def _folds_elsewhere(
    made: CrossValidation,
    root: Path,
    options: TrainOptions,
    callbacks: Callbacks,
    on_fold: OnFold | None,
) -> list[Run]:
    """The runs of all folds, whose members are trained in processes of their own."""
    device, tell_epoch = device_here(options), callbacks.on_epoch
    runs: list[Run] = []
    shown = -1

    def prepared() -> Iterator[Run]:
        for part in made.parts:
            runs.append(_fold(made, part, root, _prepare(options, callbacks)))
            if not runs[-1].metrics:
                yield runs[-1]

    def on_trained(run: Run) -> None:
        finish(run, dataset_again(run), device)

    def on_epoch(run: Run, member: int, epoch: int, row: dict[str, Any]) -> None:
        nonlocal shown
        index = runs.index(run)
        if on_fold is not None and index != shown:
            on_fold(index + 1, len(made.parts))
        shown = index
        if tell_epoch is not None:
            tell_epoch(member, epoch, row)

    train_members(prepared(), options, on_trained, on_epoch)
    return runs


def _prepare(options: TrainOptions, callbacks: Callbacks) -> Callable[..., Run]:
    return lambda *given, **more: prepare(*given, **more, options=options, callbacks=callbacks)[0]


def _fold(made: CrossValidation, part: int, root: Path, begin: Callable[..., Run]) -> Run:
    """The run of a fold: a finished one, or what `begin` makes of it.

    Raises:
        ConfigError: the fold is damaged, or the cohort is another than that of the other folds.
    """
    training = made.config.training.model_copy(update={"test_part": part})
    config = made.config.model_copy(update={"training": training})
    folder = made.fold(part)
    if folder.exists() and not (folder / "config.json").exists():
        raise _damaged(folder, "it has no config.json")
    old = Run.open(folder) if folder.exists() else None
    if old is not None and old.metrics:
        return old
    return begin(
        config,
        root,
        name=folder.name,
        parent=made.folder,
        resume=old,
        network=made.folder / NETWORK,
        like=next((made.fold(p) for p in made.parts if (made.fold(p) / INPUTS).exists()), None),
    )


def _damaged(folder: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{folder}: {what}; delete this folder, and continue with `resume`: the fold is trained "
        "again",
        code="run-unreadable",
    )


def test_rows(run: Run) -> list[dict[str, str]]:
    """The rows of a run's test set, as its members said it together; none if it has no table."""
    who = ALL if run.config.training.members > 1 else "0"
    try:
        with open(run.folder / TABLE, newline="", encoding="utf-8") as file:
            return [r for r in csv.DictReader(file) if (r["split"], r["member"]) == ("test", who)]
    except (OSError, KeyError, ValueError):
        return []


def _tested(run: Run) -> list[dict[str, str]]:
    """The rows of a run's test set.

    Raises:
        ConfigError: they are not there, or not all of them.
    """
    rows = test_rows(run)
    if len(rows) != run.metrics["test"]["cases"]:
        raise _damaged(run.folder, f"{TABLE} does not hold all cases of its test set")
    return rows


def _pooled(config: Config, rows: list[dict[str, str]]) -> dict[str, Any]:
    """The figures of all test predictions together."""
    spec = config.tabular
    names = [*spec.answers, *([SD] if rows and SD in rows[0] else [])]
    values = np.array([[float(row[name]) for name in names] for row in rows])
    values = values.reshape(len(rows), len(names))
    classes = list(spec.classes)
    truth = [classes.index(row["truth"]) if classes else float(row["truth"]) for row in rows]
    subjects = [row["subject"] for row in rows]
    return figures(spec, np.array(truth, np.float64), values, subjects)
