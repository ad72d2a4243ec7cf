"""The options of a training that are of a machine, and so in no configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.options import Options, Size, Threads
from hyperfusion_rt.training.trackers import Tracker

Trackers = Annotated[
    tuple[Tracker, ...],
    Field(
        description="Where the figures of each epoch are written, too, beside TensorBoard: mlflow, "
        "into mlflow.db beside the runs, or where MLFLOW_TRACKING_URI says; wandb, into the run's "
        "folder, and sent if WANDB_MODE is online."
    ),
]


class WhereOptions(Options):
    """Where trainings run: in this process, in several, or on a Ray cluster."""

    device: str | None = Field(None, description="cpu, cuda, cuda:N.")
    threads: Threads = None
    jobs: int | None = Field(
        None, ge=1, description="Trainings at a time, each a process of its own; default: 1, in "
        "this one; with Ray, as many as fit."
    )  # fmt: skip
    executor: Literal["local", "ray"] = Field(
        "local", description="Where the trainings run: here, or on a Ray cluster, whose machines "
        "see the same paths."
    )  # fmt: skip
    address: str | None = Field(
        None, description="The Ray cluster's address; default: RAY_ADDRESS, or one on this machine."
    )

    @property
    def elsewhere(self) -> bool:
        """Whether trainings run in processes of their own."""
        return self.executor == "ray" or (self.jobs or 1) > 1

    @model_validator(mode="after")
    def _address_of_ray(self) -> WhereOptions:
        if self.address is not None and self.executor != "ray":
            raise ConfigError("`address` goes with `executor` ray", code="option-conflict")
        return self


class TrainOptions(WhereOptions):
    """Where and how a training runs: nothing here is meant to change its numbers."""

    trackers: Trackers = ()
    max_memory: Size = Field(
        None,
        description="What a process may take, in bytes or such as 4G: a training that needs more "
        "is refused before it begins.",
    )
    cache: Path | None = Field(
        None,
        description="The folder of decoded scans, which several studies may share; default: "
        "`.hfrt_cache` beside the configuration.",
    )
    cache_limit: Size = Field(
        None,
        description="What decoded scans may take in the cache, in bytes or such as 40G; those that "
        "do not fit are decoded each time.",
    )
    devices: int | None = Field(
        None,
        ge=1,
        description="Processes on this machine that train a network together, each on a GPU of "
        "its own or on its part of the cores; default: one.",
    )
    nodes: int = Field(1, ge=1, description="Machines that train a network together.")
    node_rank: int = Field(
        0, ge=0, description="Which of the machines this is, from 0; torchrun and srun say it."
    )
    rendezvous: str | None = Field(
        None, description="Where the first machine waits for the others, the same on each."
    )

    @property
    def processes(self) -> int:
        """How many train a network together, on all machines."""
        return (self.devices or 1) * self.nodes

    @field_validator("rendezvous")
    @classmethod
    def _place(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r".+:\d{1,5}", value):
            raise ValueError("write it as HOST:PORT")
        return value

    @model_validator(mode="after")
    def _machines(self) -> TrainOptions:
        if self.elsewhere and self.processes > 1:
            raise ConfigError(
                "`devices` and `nodes` train one network in several processes, `jobs` and "
                "`executor` several networks at a time: give one of them",
                code="option-conflict",
            )
        if self.node_rank >= self.nodes:
            raise ConfigError(
                f"`node_rank` {self.node_rank} is none of {self.nodes} machines: they count from 0",
                code="option-conflict",
            )
        return self
