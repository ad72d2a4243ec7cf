"""The options of a benchmark."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from hyperfusion_rt.options import Options, Threads


class BenchOptions(Options):
    """What is timed, and how; see `hyperfusion_rt.bench.measure.bench`."""

    artifact: Path | None = Field(None, description="Default: the only *.hfrt here.")
    run: Path | None = Field(
        None,
        description="Its run, default: by name in runs/; or the ONNX file that was imported, "
        "default: by name beside it.",
    )
    preset_name: str | None = Field(
        None, description="Time this preset with random weights instead."
    )
    features: int | None = Field(None, ge=1, description="With a preset: f.")
    batches: tuple[int, ...] = Field((1, 4), description="Batch sizes; may be repeated.")
    threads: Threads = None
    rounds: int = Field(9, ge=2, description="Timings of each; the median counts.")
    only: tuple[str, ...] = Field((), description="Contenders whose names begin so; repeatable.")
    scans: Path | None = Field(None, description="Scans for the time per scan from the file.")
    tabular: Path | None = Field(None, description="Their table.")
    out: Path = Field(Path("bench"), description="Writes OUT.json and OUT.png.")

    @field_validator("batches")
    @classmethod
    def _at_least_one(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if min(batches, default=0) < 1:
            raise ValueError("a batch has one case or more")
        return batches
