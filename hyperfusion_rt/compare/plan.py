"""What is compared: the models, the parts of the cohort, and the folder that keeps it all.

compare/NAME/
  comparison.json        the plan: every model with its configuration, the parts, the seeds
  cases.csv              every case: its truth, sex and age, and its part under each seed
  inputs.json            keys of each case's scan and row: it only goes on with the same
  splits/seed-0.csv      the part of every subject: the same for all models
  networks/MODEL/        of a network of the study's own: what it is made of
  jobs/MODEL-seed0-fold1/  a run each (`training.run_folder`), with that part as test set
  jobs/MODEL-seed0-fold1.failed.json   why it has no result
  predictions.csv, comparison.csv, .md, .tex, .json, .html, pairs.csv, groups.csv
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from hyperfusion_rt.config import LAYERS, Config, Frozen, Fusion
from hyperfusion_rt.config.merge import merge
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.training.run_folder import new_folder, newest_with, read_plan
from hyperfusion_rt.yaml_text import explain, read_yaml

PLAN = "comparison.json"
Kind = Literal["network", "logistic", "ridge", "boosting", "late"]
_OF_CLASSES = {"logistic": True, "ridge": False}  # which answer classes, and which numbers
_HYPER_LAYERS = "network.hyper_layers"
IMAGE = "image"  # the model whose answers `late` reads
_ALIAS = {"table": "tabular"}  # what a value of network.fusion is called here
# What all models of a comparison have alike.
_ALIKE = (
    *("scans", "bids_filter", "table", "task", "preset"),
    *(f"tabular.{name}" for name in ("target", "classes", "unit", "id_column", "session_column")),
    *(f"training.{n}" for n in ("parts", "test_part", "split_column", "split_file", "seed")),
)


class Model(Frozen):
    """One side of the comparison, with its whole configuration."""

    name: str
    kind: Kind
    config: Config

    @property
    def folder(self) -> str:
        """Its name as a file may have it."""
        return re.sub(r"[^\w.=+-]+", "_", self.name)


class External(Frozen):
    """An external test set: paths of its scans and its table."""

    scans: str
    table: str


class Job(Frozen):
    """One training: a model, a seed, and the part that is the test set."""

    model: str
    seed: int
    fold: int


class Plan(Frozen):
    """What `comparison.json` holds.

    `root`: the cohort's folder; `base`: the configuration that the models' own differ from;
    `notes`: what a reader should know of the parts.
    """

    program: str
    root: str
    base: Config
    models: tuple[Model, ...]
    folds: tuple[int, ...]
    seeds: int
    external: External | None = None
    notes: tuple[str, ...] = ()

    def model(self, name: str) -> Model:
        """The model of this name."""
        return next(model for model in self.models if model.name == name)

    def jobs(self) -> Iterator[Job]:
        """Every training: seed by seed, and in each fold by fold, so that models can be compared
        early."""
        for seed in range(self.seeds):
            for fold in self.folds:
                for model in self.models:
                    yield Job(model=model.name, seed=seed, fold=fold)


@dataclass(frozen=True)
class Comparison:
    """The folder of a comparison."""

    folder: Path
    plan: Plan

    @classmethod
    def create(cls, parent: Path, plan: Plan, name: str | None) -> Comparison:
        """Make the folder `parent/NAME`.

        Raises:
            ConfigError: it exists.
        """
        made = cls(new_folder(parent, "compare", name), plan)
        made.keep()
        return made

    @classmethod
    def open(cls, folder: Path) -> Comparison:
        """Open the folder.

        Raises:
            ConfigError: it holds no readable plan.
        """
        missing = f"is no comparison (no {PLAN}); begin one without `resume`"
        return cls(folder, read_plan(folder / PLAN, Plan.model_validate_json, missing))

    @classmethod
    def latest(cls, parent: Path) -> Comparison:
        """The newest under `parent`.

        Raises:
            ConfigError: there is none.
        """
        missing = "no comparison here; begin one without `resume`"
        return cls.open(newest_with(parent, PLAN, missing))

    def keep(self) -> None:
        """Write the plan."""
        write_text(self.folder / PLAN, self.plan.model_dump_json(indent=1) + "\n")

    def split(self, seed: int) -> Path:
        """The file with the part of every subject under a seed."""
        return self.folder / "splits" / f"seed-{seed}.csv"

    def network(self, model: Model) -> Path:
        """The folder that keeps what a model's network is made of, if it is the study's own."""
        return self.folder / "networks" / model.folder

    @property
    def jobs(self) -> Path:
        """The folder of the trainings."""
        return self.folder / "jobs"

    def place(self, job: Job) -> Path:
        """The run folder of a training."""
        model = self.plan.model(job.model)
        return self.jobs / f"{model.folder}-seed{job.seed}-fold{job.fold}"

    def config(self, job: Job) -> Config:
        """The configuration of a training: its model's, with the seed, the split and the part."""
        config = self.plan.model(job.model).config
        split: dict[str, Any] = {
            "seed": config.training.seed + job.seed,
            "test_part": job.fold,
            "split_file": str(self.split(job.seed).resolve()),
            "split_column": None,
        }
        training = config.training.model_copy(update=split)
        return config.model_copy(update={"training": training})

    def done(self, job: Job) -> bool:
        """Whether it is trained and, where there is an external test set, has predicted that."""
        place = self.place(job)
        if self.failure(job) is not None:
            return False
        external = self.plan.external is None or (place / EXTERNAL).exists()
        return (place / "metrics.json").exists() and external

    def failure(self, job: Job) -> tuple[str, str] | None:
        """(code, reason) of a training that failed, until it is tried again."""
        try:
            found = json.loads(self._failed(job).read_text(encoding="utf-8"))
            return str(found["code"]), str(found["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def fail(self, job: Job, code: str, reason: str) -> None:
        """Keep why a training failed."""
        write_text(
            self._failed(job),
            json.dumps({"code": code, "reason": reason}, indent=1) + "\n",
            private=True,
        )

    def forget_failure(self, job: Job) -> None:
        """Before it is tried again."""
        self._failed(job).unlink(missing_ok=True)

    def _failed(self, job: Job) -> Path:
        place = self.place(job)
        return place.with_name(f"{place.name}.failed.json")


EXTERNAL = "external.csv"  # in a job's folder: its predictions of the external test set


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table that a comparison wrote.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", code="run-unreadable") from None


def models_of(base: Config, names: Sequence[str] | None, ablate: str | None = None) -> list[Model]:
    """The models of these names, each with its configuration.

    Args:
        base: what they have in common.
        names, ablate: as of `CompareOptions`.

    Raises:
        ConfigError: an unknown or repeated name, or a configuration that is wrong.
    """
    unchanged: list[tuple[str, dict[str, Any]]] = [("", {})]
    variants = _variants(ablate, base) if ablate else unchanged
    of_hyper = ablate is not None and _field(ablate) == _HYPER_LAYERS
    found: list[Model] = []
    names, varied = names or _usual(base), not ablate
    for given in names:
        name = next((short for short, fusion in _ALIAS.items() if given == fusion), given)
        kind = _kind(name, base)
        if kind != "network":
            found.append(Model(name=name, kind=kind, config=_alone(base)))
            continue
        fusion = {"network": {"fusion": _ALIAS.get(name, name)}}
        # The other networks have no generated layer: their variants would all be the same.
        for text, change in unchanged if of_hyper and name != "hyper" else variants:
            config = _changed(base, merge(fusion, change), f"{name}{text}")
            found.append(Model(name=f"{name}{text}", kind="network", config=config))
            varied |= bool(text)
    if not varied:
        raise ConfigError(
            f"`ablate` {ablate}: changes none of {', '.join(names)}; name "
            f"{'hyper' if of_hyper else 'a network'} among `models`",
            code="option-conflict",
        )
    seen: set[str] = set()
    for model in found:
        if model.folder.casefold() in seen:
            raise ConfigError(f"`models`: {model.name} stands there twice", code="option-wrong")
        seen.add(model.folder.casefold())
    return found


def check_sources(models: Sequence[Model]) -> None:
    """`late` reads what `image` answers.

    Raises:
        ConfigError: there is no such model.
    """
    if any(m.kind == "late" for m in models) and all(m.name != IMAGE for m in models):
        raise ConfigError(
            f"`models`: late reads what {IMAGE} answers; name {IMAGE}, too, and leave out `ablate`",
            code="option-conflict",
        )


def _changed(base: Config, change: dict[str, Any], name: str) -> Config:
    try:
        return Config.model_validate(merge(base.model_dump(mode="json"), change))
    except ValidationError as error:
        raise ConfigError(
            f"model {name}: {explain(error, Config)}", code="config-invalid"
        ) from None


def _usual(base: Config) -> list[str]:
    rivals = ["logistic" if base.tabular.classes else "ridge", "boosting"]
    fusion = base.network.fusion
    own = [] if fusion in ("image", "tabular") else [fusion]
    return ["image", "table", *rivals, *own]


def _kind(name: str, base: Config) -> Kind:
    if _ALIAS.get(name, name) in get_args(Fusion):
        return "network"
    kinds = get_args(Kind)
    if name not in kinds or name == "network":
        known = [*get_args(Fusion), *(kind for kind in kinds if kind != "network")]
        raise ConfigError(
            f"`models`: there is no model {name!r}; choose from {', '.join(known)}",
            code="option-wrong",
        )
    of_classes = _OF_CLASSES.get(name)
    if of_classes is not None and of_classes != bool(base.tabular.classes):
        other = next(k for k, v in _OF_CLASSES.items() if v != of_classes)
        raise ConfigError(
            f"`models`: {name} predicts {'classes' if of_classes else 'a number'}, and "
            f"{base.tabular.target} is {'a number' if of_classes else 'classes'}: take {other}",
            code="option-wrong",
        )
    kind: Kind = name  # type: ignore[assignment]
    return kind


def _alone(base: Config) -> Config:
    """The configuration of a model without a network: one member."""
    return base.model_copy(update={"training": base.training.model_copy(update={"members": 1})})


def _field(ablate: str) -> str:
    """The name in `FIELD=VALUE;VALUE`."""
    return ablate.partition("=")[0].strip()


def _variants(text: str, base: Config) -> list[tuple[str, dict[str, Any]]]:
    """(what is added to the name, change) of each value of `FIELD=VALUE;VALUE`.

    `network.hyper_layers` without values: each layer of a published architecture alone.

    Raises:
        ConfigError: it is written another way, or all models must have the field alike.
    """
    name, (_, equals, values) = _field(text), text.partition("=")
    texts = [value.strip() for value in values.split(";")]
    if name == _HYPER_LAYERS and not equals and base.network.imported is None:
        texts = [f"[{layer}]" for layer in LAYERS[base.network.architecture]]
    elif not equals or not name or not all(texts):
        raise ConfigError(
            f"`ablate` {text}: write it as section.field=value;value (only {_HYPER_LAYERS} of a "
            "published network has values of its own: each layer alone)",
            code="option-wrong",
        )
    if any(name == fixed or fixed.startswith(f"{name}.") for fixed in _ALIKE):
        raise ConfigError(
            f"`ablate` {name}: all models of a comparison have this alike", code="option-wrong"
        )
    found = []
    for value in texts:
        change: Any = read_yaml(value, f"`ablate` {name}")
        for part in reversed(name.split(".")):
            change = {part: change}
        found.append((f" {name.rpartition('.')[2]}={value}", change))
    return found
