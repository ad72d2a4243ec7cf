"""The options of a search, each declared and documented once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.options import Options, Threads
from hyperfusion_rt.training.options import Trackers

Metric = Literal["figure", "loss"]
Pruner = Literal["median", "hyperband", "none"]


class TuneOptions(Options):
    """How many trainings are tried, of which settings, and how the work is done."""

    trials: int = Field(
        20, ge=1, description="Trainings in all; those of a search that goes on count, too."
    )
    space: Path | None = Field(
        None,
        description="A YAML file of fields of the configuration and what to try, as in "
        "training.lr: {low: 1.0e-4, high: 1.0e-2, log: true} or network.embedding: [8, 16, 32]. "
        "Default: the preset's.",
    )
    metric: Metric | None = Field(
        None,
        description="What shall be best on the validation part: its figure (balanced accuracy, of "
        "equal ones the smaller loss; or mean absolute error), or its loss. Default: figure.",
    )
    pruner: Pruner | None = Field(
        None,
        description="Which trainings end early: those that are worse than the median of the "
        "others at the same epoch, those that Hyperband gives up, or none. Default: median.",
    )
    seed: int | None = Field(
        None, description="Of what is tried. Default: 0. Trainings have training.seed."
    )
    name: str | None = Field(None, description="The search's name; default: of the time.")
    resume: bool = Field(
        False,
        description="Go on with the newest search, or that with the given name, also while "
        "another command works on it; a training that was interrupted goes on from its last epoch.",
    )
    timeout: float | None = Field(
        None, gt=0, description="Minutes after which no further training begins."
    )
    jobs: int | None = Field(
        None,
        ge=1,
        description="Trainings at a time, each a process of its own; default: 1, in this one.",
    )
    threads: Threads = None
    device: str | None = Field(None, description="cpu, cuda, cuda:N.")
    trackers: Trackers = ()

    @model_validator(mode="after")
    def _check(self) -> TuneOptions:
        given = [n for n in ("space", "metric", "pruner", "seed") if getattr(self, n) is not None]
        if self.resume and given:
            raise ConfigError(
                f"`resume` keeps what the search began with: leave out `{given[0]}`",
                code="option-conflict",
            )
        return self
