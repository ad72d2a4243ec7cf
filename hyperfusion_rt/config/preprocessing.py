"""The section `preprocessing`: from a scan to the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from hyperfusion_rt.config.base import Finite, no_truth_value

Normalisation = Literal["zscore-foreground", "fixed-range", "minmax", "none", "zscore-nonzero"]
Point = tuple[float, float, float]  # mm
Shape = tuple[int, int, int]
Range = tuple[float, float]


# The axis of MNI space that each letter means.
_AXES = {"R": "x", "L": "x", "A": "y", "P": "y", "S": "z", "I": "z"}


class Box(Finite):
    """A box in template (MNI, RAS) space. All boxes have the shape that `Preprocessing` gives."""

    name: str = Field(description="what the box is called in messages and tables")
    center: Point = Field(
        description="its centre in mm of MNI space: x to the right, y to the front, z upwards"
    )
    mirror: bool = Field(
        False, description="flip left and right, so that one network reads both hippocampi"
    )


class Channel(Finite):
    """One image (modality) of a case: a channel of the network's input."""

    name: str = Field(min_length=1, description="what the channel is called in messages")
    files: str = Field(
        "",
        description="which files are this channel: a glob that is matched from the right, such as "
        "`*_FLAIR.nii.gz` or `FLAIR/*`; empty: every scan",
    )
    t1_weighted: bool = Field(
        True,
        description="whether it is a T1-weighted brain, which is compared with the T1 template",
    )
    normalisation: Normalisation | None = Field(
        None, description="as in `preprocessing`, for this channel alone"
    )
    range: Range | None = Field(None, description="as in `preprocessing`, for this channel alone")


class Preprocessing(Finite):
    """From a scan to `float32 [C, D, H, W]` per box, the same in training and inference."""

    boxes: tuple[Box, ...] = Field(
        min_length=1, description="the boxes that are cut out of each scan"
    )
    channels: tuple[Channel, ...] = Field(
        (Channel(name="T1w"),),
        min_length=1,
        description="the images (modalities) of each case, all of them in MNI space; each on its "
        "own grid",
    )
    shape: Shape = Field(
        description="voxels of every box along its axes: in `RAS` left to right, back to front, "
        "bottom to top"
    )
    spacing: float = Field(gt=0, description="edge of a voxel in mm")
    orientation: str = Field(
        "RAS",
        description="where the box's axes point, a letter each: to the right or left (R, L), to "
        "the front or back (A, P), up or down (S, I)",
    )
    interpolation: Literal["trilinear"] = Field(
        "trilinear", description="how values between voxels are read, where the grids differ"
    )
    normalisation: Normalisation = Field(
        "zscore-foreground",
        description="the brain gets mean 0 and standard deviation 1 in each box: all but the "
        "background, which is what the scan's border shows and what is connected with it; "
        "`fixed-range`, for images whose values are quantities (PET SUVR, FA): `range` becomes 0 "
        "to 1; `minmax`: the scan's least and largest value become 0 and 1; `none`: values stay as "
        "they are (`zscore-nonzero`, of older runs: all but what is exactly 0; a shift of the grid "
        "by up to half a voxel is not interpolated)",
    )
    range: Range | None = Field(
        None,
        description="with `fixed-range`: the values that become 0 and 1; what lies beyond is cut",
    )
    min_coverage: float = Field(
        0.5,
        ge=0,
        le=1,
        description="the least part of each box that must lie inside the scan, from 0 to 1",
    )
    _numbers = field_validator("*", mode="before")(no_truth_value)

    @model_validator(mode="after")
    def _check(self) -> Preprocessing:
        _distinct("boxes", [box.name for box in self.boxes])
        _distinct("channels", [channel.name for channel in self.channels])
        if sorted("".join(_AXES.get(letter, "?") for letter in self.orientation)) != [
            "x",
            "y",
            "z",
        ]:
            raise ValueError(
                f"orientation {self.orientation!r}: needs one letter of R and L, one of A and P, "
                "one of S and I, such as RAS or LPS"
            )
        if min(self.shape) < 1:
            raise ValueError(f"shape {list(self.shape)}: needs one voxel or more along each axis")
        for channel in self.channels:
            if len(self.channels) > 1 and not channel.files:
                raise ValueError(
                    f"channel {channel.name!r}: with several channels each needs 'files', such as "
                    f"'*_{channel.name}.nii.gz'"
                )
            given = self.range_of(channel)
            fixed = self.normalisation_of(channel) == "fixed-range"
            if fixed and (given is None or not given[0] < given[1]):
                raise ValueError(
                    f"channel {channel.name!r}: normalisation fixed-range needs 'range', the lower "
                    "and the higher value, such as [0, 3]"
                )
            if not fixed and given is not None:
                raise ValueError(
                    f"channel {channel.name!r}: 'range' goes with normalisation fixed-range"
                )
            if channel.normalisation == "zscore-nonzero":
                raise ValueError(
                    "channels: zscore-nonzero is of older runs, for all channels alike"
                )
        return self

    @property
    def directions(self) -> tuple[tuple[int, int], ...]:
        """Of each of the box's axes: the axis of MNI space (0, 1, 2) and the way, 1 or -1."""
        return tuple(
            ("xyz".index(_AXES[letter]), 1 if letter in "RAS" else -1)
            for letter in self.orientation
        )

    @property
    def images_shape(self) -> tuple[int, int, int, int, int]:
        """Of a case's images: [N boxes, C channels, D, H, W]."""
        return len(self.boxes), len(self.channels), *self.shape

    def normalisation_of(self, channel: Channel) -> Normalisation:
        """The channel's own, or that of all."""
        return channel.normalisation or self.normalisation

    def range_of(self, channel: Channel) -> Range | None:
        """The channel's own, or, where it has no normalisation of its own, that of all."""
        if channel.range is not None or channel.normalisation is not None:
            return channel.range
        return self.range


def _distinct(what: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"{what}: each needs a name of its own, not {', '.join(names)}")
