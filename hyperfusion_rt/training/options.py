"""The options of a training that are of a machine, and so in no configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hyperfusion_rt.options import Options, Threads
from hyperfusion_rt.training.trackers import Tracker

Trackers = Annotated[
    tuple[Tracker, ...],
    Field(
        description="Where the figures of each epoch are written, too, beside TensorBoard: mlflow, "
        "into mlflow.db beside the runs, or where MLFLOW_TRACKING_URI says; wandb, into the run's "
        "folder, and sent if WANDB_MODE is online."
    ),
]


class TrainOptions(Options):
    """Where and how a training runs: nothing here is meant to change its numbers."""

    device: str | None = Field(None, description="cpu, cuda, cuda:N.")
    threads: Threads = None
    trackers: Trackers = ()
