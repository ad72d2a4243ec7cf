"""Which operations of a network have a narrow type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Typed:
    """A network with a narrow type.

    Attributes:
        narrow: the outputs of the nodes that have the type; all others are float32.
        kept: what could have it but does not fit: layer → largest number on the calibration scans.
    """

    precision: str
    narrow: frozenset[str] = frozenset()
    kept: Mapping[str, float] = field(default_factory=dict)
