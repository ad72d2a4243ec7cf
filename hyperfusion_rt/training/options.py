"""The options of a training that are of a machine, and so in no configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.options import Options, Threads


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
