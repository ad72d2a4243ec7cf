"""The options of a training that are of a machine, and so in no configuration."""

from __future__ import annotations

from pydantic import Field

from hyperfusion_rt.options import Options, Threads


class TrainOptions(Options):
    """Where and how a training runs: nothing here is meant to change its numbers."""

    device: str | None = Field(None, description="cpu, cuda, cuda:N.")
    threads: Threads = None
