"""The options of a training that are of a machine, and so in no configuration."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from hyperfusion_rt.options import Options, Size, Threads


class TrainOptions(Options):
    """Where and how a training runs: nothing here is meant to change its numbers."""

    device: str | None = Field(None, description="cpu, cuda, cuda:N.")
    threads: Threads = None
    cache: Path | None = Field(
        None,
        description="The folder of decoded scans, which several studies may share; default: "
        "`.hfrt_cache` beside the configuration.",
    )
    cache_limit: Size = Field(
        None,
        gt=0,
        description="What decoded scans may take in the cache, in bytes or such as 40G; those that "
        "do not fit are decoded each time.",
    )
