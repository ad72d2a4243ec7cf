"""What a benchmark found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Timing:
    """One contender at one batch size: ms per batch, `spread_ms` the interquartile range.

    `low_ms`, `high_ms`: the quartiles; None of results of older versions.
    `difference`: from float64, relative to the outputs' scale.
    """

    contender: str
    precision: str
    batch: int
    median_ms: float
    spread_ms: float
    ms_per_box: float
    gflops: float
    difference: float
    correct: bool
    low_ms: float | None = None
    high_ms: float | None = None


@dataclass
class Benchmark:
    """All timings of one network, beside the limits of the machine in the same run.

    `artifact`: its label, empty for a preset. `left_out`: contender → why. `end_to_end`: ms of one
    scan from its file, in parts.
    """

    network: str
    gflop_per_box: float
    threads: int
    rounds: int
    limit_gflops: float
    limit_gbs: float
    machine: dict[str, str]
    artifact: str = ""
    timings: list[Timing] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    end_to_end: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Benchmark:
        """What `as_dict` made."""
        return cls(**{**content, "timings": [Timing(**timing) for timing in content["timings"]]})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
