"""The run folder: everything that training writes and that export reads.

runs/NAME/
  config.json            the whole configuration
  study.json             where the cohort lies, and its decoded scans
  splits.csv             subject, session, scan, part, split of each member
  inputs.json            keys of each case's scan and row: a run is only resumed on the same
  check.json             every column, the parts, and what is odd about them
  predictions.csv        every case of every part, as each member and all together predict it
  left_out.json          cases that could not be used, each with its reason
  training_cases.json    hashes of what was trained on, so that a case can be known again
  metrics.json           figures of validation and test set; written last
  resources.json         processes, seconds, peak memory, machine
  learning_curve.png
  network/               of a network of the study's own: what it was made of
    network.json         import, arguments, hashes of its code and of its weights, versions
    NAME.py              the file that makes it, if it is one
  member-0/              one per member of the ensemble
    encoder.json         tabular encoder, fitted on this member's training rows
    weights.safetensors  of the best epoch
    history.csv          one line per epoch
    checkpoint.pt        to resume from; tensors and numbers only
    tensorboard/
    training.log         what its process wrote, if it had one of its own and wrote anything
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from hyperfusion_rt.config import Config
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.files import write_text

STUDY = "study.json"
NETWORK = "network"  # also of a cross-validation and of a comparison: one network for all of it
FOLDS = "cross_validation.json"  # what makes a folder a cross-validation
T = TypeVar("T")


def new_folder(parent: Path, what: str, name: str | None) -> Path:
    """`parent/NAME` that does not exist yet; without a name, one of the time and of `what`.

    Raises:
        ConfigError: it exists.
    """
    stem = name or f"{datetime.now():%Y%m%d-%H%M%S}-{what}"
    folder, count = parent / stem, 1
    while folder.exists():
        if name is not None:
            raise ConfigError(
                f"{folder}: exists; choose another name, or continue it with `resume`",
                code="run-exists",
            )
        count += 1
        folder = parent / f"{stem}-{count}"
    return folder


def newest_of(folders: Sequence[Path]) -> Path:
    """The one that was written to last."""
    return max(folders, key=lambda folder: (folder.stat().st_mtime_ns, folder.name))


def newest_with(parent: Path, file: str, missing: str) -> Path:
    """The newest folder under `parent` that holds `file`; `missing`: what is said if none does.

    Raises:
        ConfigError: there is none.
    """
    found = [path.parent for path in parent.glob(f"*/{file}")]
    if not found:
        raise ConfigError(f"{parent}: {missing}", code="run-not-found")
    return newest_of(found)


def read_plan(path: Path, read: Callable[[str], T], missing: str) -> T:
    """What `read` makes of the file that says what a folder is; `missing`: if it has none.

    Raises:
        ConfigError: it is not there, or cannot be read.
    """
    try:
        return read(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path.parent}: {missing}", code="run-not-found") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", code="run-unreadable") from None


def _is_folds(folder: Path) -> ConfigError:
    return ConfigError(
        f"{folder}: is a cross-validation, and each of its folds is a run: name one with `run`, "
        f"such as {folder / 'fold-0'}, or a run beside it",
        code="run-not-found",
    )


@dataclass(frozen=True)
class Member:
    """One network of a run."""

    folder: Path

    @property
    def weights(self) -> Path:
        """The weights of the best epoch."""
        return self.folder / "weights.safetensors"

    @property
    def network(self) -> Path:
        """The folder of the run that keeps what a network of the study's own was made of."""
        return self.folder.parent / NETWORK

    @property
    def encoder(self) -> TabularEncoder:
        """The tabular encoder fitted on this member's training rows."""
        path = self.folder / "encoder.json"
        try:
            return TabularEncoder.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise ConfigError(
                f"{path}: cannot be read: {error}; train again", code="run-unreadable"
            ) from None


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path
    config: Config

    @classmethod
    def create(cls, parent: Path, config: Config, name: str | None = None) -> Run:
        """Make the folder `parent/NAME` and write its configuration."""
        folder = new_folder(parent, config.preset, name)
        write_text(folder / "config.json", config.model_dump_json(indent=2))
        return cls(folder, config)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open a run folder.

        Raises:
            ConfigError: it holds no readable `config.json`.
        """
        path = folder / "config.json"
        try:
            return cls(folder, Config.model_validate_json(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            if (folder / FOLDS).exists():
                raise _is_folds(folder) from None
            raise ConfigError(
                f"{folder}: is not a run folder (no config.json)", code="run-not-found"
            ) from None
        except (OSError, ValidationError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}", code="run-unreadable") from None

    @classmethod
    def latest(cls, parent: Path, *, finished: bool = True) -> Run:
        """The newest run under `parent`; only finished ones unless told otherwise.

        Raises:
            ConfigError: there is none, or the newest is a cross-validation.
        """
        folders = [path.parent for path in parent.glob("*/config.json")]
        if finished:
            folders = [folder for folder in folders if (folder / "metrics.json").exists()]
        folds = [path.parent for path in parent.glob(f"*/{FOLDS}")]
        if not folders and not folds:
            kind = "finished run" if finished else "run"
            raise ConfigError(
                f"{parent}: no {kind} here; train one with 'hfrt train'", code="run-not-found"
            )
        newest = newest_of([*folders, *folds])
        if newest in folds:
            raise _is_folds(newest)
        return cls.open(newest)

    @property
    def network(self) -> Path:
        """The folder that keeps what a network of the study's own was made of."""
        return self.folder / NETWORK

    def member(self, index: int) -> Member:
        """Member `index`, whose folder may not exist yet."""
        return Member(self.folder / f"member-{index}")

    @property
    def members(self) -> list[Member]:
        """The members that have weights, in order."""
        found = [self.member(index) for index in range(self.config.training.members)]
        return [member for member in found if member.weights.exists()]

    @property
    def metrics(self) -> dict[str, Any]:
        """What training measured; empty while it has not finished."""
        path = self.folder / "metrics.json"
        if not path.exists():
            return {}
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}", code="run-unreadable") from None
        return content

    @property
    def study(self) -> Path:
        """The folder of the study that it was trained on; as far as runs of older versions tell."""
        found = self._study()
        return Path(str(found["root"])) if found else self.folder.resolve().parent.parent

    @property
    def cache(self) -> tuple[Path | None, int | None]:
        """The folder of decoded scans that it was trained with, and what they may take there.

        None: the study's own folder; no limit.
        """
        found = self._study()
        folder, limit = found.get("cache"), found.get("cache_limit")
        return None if folder is None else Path(str(folder)), limit

    def _study(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / STUDY).read_text(encoding="utf-8"))
            return {"root": found["root"], **found}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.folder / STUDY}: cannot be read: {error}", code="run-unreadable"
            ) from None

    def write_study(
        self, root: Path, cache: Path | None = None, cache_limit: int | None = None
    ) -> None:
        """Write `study.json`."""
        content: dict[str, object] = {"root": str(root)}
        if cache is not None:
            content["cache"] = str(cache.resolve())
        if cache_limit is not None:
            content["cache_limit"] = cache_limit
        write_text(self.folder / STUDY, json.dumps(content) + "\n", private=True)

    @property
    def target_spread(self) -> float | None:
        """The standard deviation of a target that is a number, in the training part.

        None of classes, and where it is not known: of imported networks and of older runs.
        """
        found = self.metrics.get("target", {}).get("spread")
        return None if found is None else float(found)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write `metrics.json`, which marks the run as finished."""
        write_text(self.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
