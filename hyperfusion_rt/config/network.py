"""The section `network`: which network, and how large."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from hyperfusion_rt.config.base import Frozen, no_truth_value

# The published studies: their networks, presets, and what is simulated.
Published = Literal["ad", "brain-age"]
Fusion = Literal["hyper", "image", "tabular", "concat", "film", "daft"]

# Three stages of two 3x3x3 convolutions leave one voxel of so many.
BRAIN_AGE_VOXELS = 36


def named_now(network: Any) -> Any:
    """The section `network` with `architecture` for `task`, as older versions called it."""
    if isinstance(network, dict) and "task" in network and "architecture" not in network:
        return {("architecture" if k == "task" else k): v for k, v in network.items()}
    return network


class NetworkConfig(Frozen):
    """Which network, and how large."""

    _numbers = field_validator("*", mode="before")(no_truth_value)

    architecture: Published = Field(
        description="which of the published networks: `ad`, a residual network whose features are "
        "averaged over the box, for boxes of any size; or `brain-age`, a plain one with dense "
        "layers over the whole box, which has at least 36 voxels along each axis"
    )
    fusion: Fusion = Field(
        "hyper",
        description="how the table meets the image: `hyper` generates weights; `concat`, `film` "
        "and `daft` are baselines with both, `image` and `tabular` with one of them",
    )
    features: int = Field(
        16, ge=1, description="channels after the first convolution; later layers have multiples"
    )
    embedding: int = Field(
        8,
        ge=1,
        description="length of the table's embedding in the AD network and the tabular baseline",
    )
    bn_momentum: float = Field(
        0.05,
        gt=0,
        le=1,
        description="weight of the newest batch in batch norm's running statistics",
    )
    dropout: float = Field(
        1.0, ge=0, le=1.5, description="factor of every published dropout rate; 0: no dropout"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_before(cls, given: Any) -> Any:
        """`task`, as older versions called the architecture."""
        return named_now(given)
