"""The options of an import: what a network that others made reads, and what its numbers mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from hyperfusion_rt.config import Precision, ScanChecks
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.options import Options
from hyperfusion_rt.runtime.engines.registry import DEFAULT_ENGINES, check_name

Normalise = Literal["zscore", "minmax", "none"]


def _numbers(value: object) -> object:
    """Numbers, from `160,192,160` or `160x192x160`."""
    if not isinstance(value, str) or not value:
        return value or ()
    try:
        return tuple(float(part) for part in value.replace("x", ",").split(","))
    except ValueError:
        raise ValueError("write numbers with commas between them") from None


def _sizes(value: object) -> object:
    """Whole numbers, from the same texts."""
    if not isinstance(value, str):
        return value
    found = _numbers(value)
    if not isinstance(found, tuple) or any(n != int(n) for n in found):
        raise ValueError("write whole numbers with commas between them")
    return tuple(int(n) for n in found)


def _names(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


class ImportOptions(Options):
    """How scans become the network's input, and what its output means; see `import_network`.

    Raises:
        ConfigError: options do not go together.
    """

    out: Path | None = Field(None, description="The artifact; default: NAME.hfrt of NAME.onnx.")
    shape: Annotated[tuple[int, int, int] | None, BeforeValidator(_sizes)] = Field(
        None, description="Voxels of the image, D,H,W; default: those of the file."
    )
    spacing: float = Field(1.0, gt=0, description="Edge of a voxel in mm.")
    orientation: str = Field(
        "RAS", description="Where the image's axes point, such as RAS, LPS or SRA."
    )
    normalise: Normalise = Field(
        "zscore",
        description="zscore: the foreground gets mean 0 and deviation 1; minmax: the scan's least "
        "and largest value become 0 and 1; none.",
    )
    box: str = Field(
        "whole",
        description="whole: around the middle of the MNI template; hippocampi: two boxes, the "
        "right one mirrored; or its centre X,Y,Z in mm of MNI space.",
    )
    output: str | None = Field(
        None, description="Which of several outputs is the answer; default: the first."
    )
    classes: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (), description="The answer is one of these classes: CN,MCI,AD."
    )
    target: str = Field("value", description="The answer is a number: what it is called.")
    unit: str = Field("", description="Its unit, such as years.")
    bins: Annotated[tuple[float, ...], BeforeValidator(_numbers)] = Field(
        (),
        description="The answer is a number, as soft bins: the centres of the first and the last, "
        "42.5,81.5, or of all of them.",
    )
    engines: tuple[str, ...] = Field(
        DEFAULT_ENGINES, min_length=1, description="native, onnx or torch; repeatable."
    )
    precision: Precision = Field(
        "fp32", description="Of the engines that have it; the others stay fp32."
    )
    scan_checks: ScanChecks = Field(
        "refuse", description="Scans that are no T1-weighted brain in MNI space: refuse, warn, off."
    )
    force: bool = Field(False, description="Replace what exists.")

    @model_validator(mode="after")
    def _check(self) -> ImportOptions:
        for engine in self.engines:
            check_name(engine)
        if self.classes and (self.bins or self.unit or self.target != "value"):
            raise ConfigError(
                "`classes` and `bins`, `unit` or `target`: an answer is a class or a number",
                code="option-conflict",
            )
        if self.classes and len(set(self.classes)) < 2:
            raise ConfigError("`classes`: needs two different ones or more", code="option-wrong")
        if len(self.bins) == 1:
            raise ConfigError("`bins`: needs the first and the last centre", code="option-wrong")
        return self
