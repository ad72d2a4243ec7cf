"""The options of an import: what a network that others made reads, and what its numbers mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from hyperfusion_rt.config import Precision, ScanChecks
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.options import Options
from hyperfusion_rt.runtime.engines.registry import DEFAULT_ENGINES, check_name

_LABELS = 256  # that a byte can tell apart
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
    recipe: Path | None = Field(
        None,
        description="Spacing, orientation, normalisation and boxes from a YAML file in the place "
        "of these options, as the section `preprocessing` of hfrt.yaml; also for several images.",
    )
    output: str | None = Field(
        None, description="Which of several outputs is the answer; default: the first."
    )
    classes: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (), description="The answer is one of these classes: CN,MCI,AD."
    )
    segmentation: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (),
        description="The answer is a label for every voxel: what the channels are, the background "
        "first: background,lesion.",
    )
    target: str = Field("value", description="The answer is a number: what it is called.")
    unit: str = Field("", description="Its unit, such as years.")
    bins: Annotated[tuple[float, ...], BeforeValidator(_numbers)] = Field(
        (),
        description="The answer is a number, as soft bins: the centres of the first and the last, "
        "42.5,81.5, or of all of them.",
    )
    engines: tuple[str, ...] = Field(
        DEFAULT_ENGINES,
        min_length=1,
        description="native, onnx, torch, trt or trt-rtx; repeatable.",
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
        own = ("spacing", "orientation", "normalise")
        given = [n for n in own if getattr(self, n) != type(self).model_fields[n].default]
        if self.recipe is not None and given:
            raise ConfigError(
                f"`recipe` and `{given[0]}`: the file says it; leave one out",
                code="option-conflict",
            )
        number = bool(self.bins or self.unit or self.target != "value")
        if bool(self.classes) + bool(self.segmentation) + number > 1:
            raise ConfigError(
                "`classes`, `segmentation`, and `bins`, `unit` or `target`: an answer is a class, "
                "labels of voxels, or a number",
                code="option-conflict",
            )
        for name in ("classes", "segmentation"):
            names = getattr(self, name)
            if names and len(set(names)) < max(2, len(names)):
                raise ConfigError(
                    f"`{name}`: needs two or more, all different", code="option-wrong"
                )
        if len(self.segmentation) > _LABELS:
            raise ConfigError(
                f"`segmentation`: has more than {_LABELS} labels", code="option-wrong"
            )
        if len(self.bins) == 1:
            raise ConfigError("`bins`: needs the first and the last centre", code="option-wrong")
        return self
