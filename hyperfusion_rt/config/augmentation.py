"""The section `augmentation`: how training samples are changed at random."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from hyperfusion_rt.config.base import Finite, no_truth_value

Policy = Literal["none", "light", "strong"]

# What a policy sets; every field can be given beside it. `light` is what another scan of the same
# head may differ by; `strong` also covers other scanners and tables with more gaps.
POLICIES: dict[Policy, dict[str, float]] = {
    "none": {},
    "light": {
        "rotation": 5,
        "scaling": 0.02,
        "shift": 2,
        "elastic": 0.5,
        "bias_field": 0.1,
        "gamma": 0.1,
        "noise": 0.1,
        "blur": 1,
    },
    "strong": {
        "rotation": 8,
        "scaling": 0.04,
        "shift": 3,
        "elastic": 1,
        "bias_field": 0.2,
        "gamma": 0.2,
        "contrast": 0.1,
        "noise": 0.15,
        "blur": 1.5,
        "resolution": 3,
        "drop_columns": 0.1,
    },
}


class Augmentation(Finite):
    """Random changes of each training sample, drawn anew in every epoch. 0 is never."""

    _numbers = field_validator("*", mode="before")(no_truth_value)

    policy: Policy = Field("none", description="what the other fields are where they are not given")
    rotation: float = Field(
        0, ge=0, le=180, description="the largest angle around each axis, in degrees"
    )
    scaling: float = Field(
        0, ge=0, lt=1, description="the largest change of size along each axis; 0.05 is 5 %"
    )
    shift: float = Field(0, ge=0, description="the largest shift along each axis, in mm")
    elastic: float = Field(
        0,
        ge=0,
        description="the standard deviation of a smooth displacement along each axis, in mm; "
        "control points lie 24 mm apart",
    )
    flip: bool = Field(
        False,
        description="flip left and right for every second sample; only for boxes around the "
        "midline, where it keeps its meaning",
    )
    bias_field: float = Field(
        0,
        ge=0,
        description="the standard deviation of a smooth field that brightens and darkens, as a "
        "logarithm",
    )
    gamma: float = Field(
        0, ge=0, description="the largest change of the logarithm of the exponent of the grey scale"
    )
    contrast: float = Field(
        0,
        ge=0,
        lt=1,
        description="the largest change of contrast, and of brightness in standard deviations, "
        "after the normalisation",
    )
    noise: float = Field(
        0, ge=0, description="the largest standard deviation of white noise, in those of the brain"
    )
    blur: float = Field(
        0, ge=0, description="the largest standard deviation of a Gaussian blur, in mm"
    )
    resolution: float = Field(0, ge=0, description="the thickest slices along one axis, in mm")
    probability: float = Field(
        0.5,
        ge=0,
        le=1,
        description="how often a sample meets each change of its values (bias field, gamma, "
        "contrast, noise, blur, resolution); its place always changes",
    )
    drop_columns: float = Field(
        0,
        ge=0,
        lt=1,
        description="how often a value of the table that is there is treated as missing, of those "
        "columns that have gaps",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_policy(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {**POLICIES.get(given.get("policy", "none"), {}), **given}

    @property
    def moves(self) -> bool:
        """Whether voxels change their place."""
        return bool(self.rotation or self.scaling or self.shift or self.elastic or self.flip)

    @property
    def changes_values(self) -> bool:
        """Whether grey values change where they are."""
        values = self.bias_field, self.gamma, self.contrast, self.noise, self.blur, self.resolution
        return self.probability > 0 and any(values)
