"""The section `network`: which network, how large, and where the table enters it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hyperfusion_rt.config.base import Finite, no_truth_value

# The published studies: their networks, presets, and what is simulated.
Published = Literal["ad", "brain-age"]
Fusion = Literal["hyper", "image", "tabular", "concat", "film", "daft", "tabmixer", "attention"]

# Every convolution and linear layer of a network, by its place in it, and which of them the
# published networks generate.
LAYERS: dict[Published, tuple[str, ...]] = {
    "ad": (
        "conv_bn_relu.0",
        *(f"block{n}.{part}" for n in (1, 2, 3) for part in ("conv1", "conv2", "downsample.1")),
        *(f"block4.{part}" for part in ("conv1", "conv2", "downsample.0")),
        *("fc1", "fc2"),
    ),
    "brain-age": (
        *(f"conv{n}_{part}" for n in (1, 2, 3) for part in ("a", "b")),
        *("linear1", "linear2", "linear3", "final_layer"),
    ),
}
GENERATED: dict[Published, tuple[str, ...]] = {
    "ad": ("block4.downsample.0",),
    "brain-age": ("linear1", "linear2", "linear3", "final_layer"),
}

# Where a network's features meet the table under the fusions that have one such place, and where
# they do unless told.
PLACES: dict[Published, tuple[str, ...]] = {
    "ad": ("block1", "block2", "block3", "block4", "features"),
    "brain-age": ("stage2", "stage3", "features", "linear2"),
}
MEETS: dict[Published, dict[str, str]] = {
    "ad": {
        **dict.fromkeys(("film", "daft", "tabmixer"), "block4"),
        **dict.fromkeys(("concat", "attention"), "features"),
    },
    "brain-age": {
        **dict.fromkeys(("film", "daft", "tabmixer"), "stage3"),
        **dict.fromkeys(("concat", "attention"), "linear2"),
    },
}

# Three stages of two 3x3x3 convolutions leave one voxel of so many.
BRAIN_AGE_VOXELS = 36


def named_now(network: Any) -> Any:
    """The section `network` with `architecture` for `task`, as older versions called it."""
    if isinstance(network, dict) and "task" in network and "architecture" not in network:
        return {("architecture" if k == "task" else k): v for k, v in network.items()}
    return network


class NetworkConfig(Finite):
    """Which network, and how large."""

    _numbers = field_validator("*", mode="before")(no_truth_value)

    architecture: Published = Field(
        description="which of the published networks: `ad`, a residual network whose features are "
        "averaged over the box, for boxes of any size; or `brain-age`, a plain one with dense "
        "layers over the whole box, which has at least 36 voxels along each axis"
    )
    fusion: Fusion = Field(
        "hyper",
        description="how the table meets the image: `hyper` generates weights; `concat`, `film`, "
        "`daft`, `tabmixer` and `attention` are baselines with both, `image` and `tabular` with "
        "one of them",
    )
    hyper_layers: tuple[str, ...] = Field(
        (),
        description="which layers the fusion `hyper` generates: names of convolutions and linear "
        "layers, or patterns (`block4.*`, `*conv1`, `fc1`); empty: those of the published network, "
        "`block4.downsample.0` of `ad`, the four linear layers of `brain-age`",
    )
    fusion_at: str | None = Field(
        None,
        description="which input the fusions `film`, `daft`, `tabmixer`, `concat` and `attention` "
        "change: of a block or stage, `features` (those of the whole box, before the first linear "
        "layer) or `linear2`; empty: `block4` or `stage3`, and for `concat` and `attention` "
        "`features` or `linear2`. In front of a block or stage, `concat` adds a linear map of the "
        "row to the channels",
    )
    bottleneck: int = Field(
        7,
        ge=1,
        description="of the fusions `film` and `daft`: length of what they make of the row before "
        "it scales and shifts channels; 7 is that of the published comparison",
    )
    features: int = Field(
        16, ge=1, description="channels after the first convolution; later layers have multiples"
    )
    embedding: int = Field(
        8,
        ge=1,
        description="length of the table's embedding in the AD network and the tabular baseline",
    )
    embedding_slope: float = Field(
        0.25,
        description="of the embedding's PReLU for negative numbers, at first; with 1 the embedding "
        "starts as a linear map of the row",
    )
    embedding_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="dropout of the embedding's numbers in front of the generators; `brain-age` "
        "has one number per layer, so that this is for a `generated_part` below 1",
    )
    generated_part: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of the initial variance of a generated layer's output that the table "
        "makes; the rest is that of ordinary weights, to which the generated ones are added",
    )
    generator_rank: int | None = Field(
        None,
        ge=1,
        description="of what the table adds to a layer's weights as a matrix: so many filters that "
        "all rows share, mixed by the table; with a `generated_part` of 1 the layer starts with no "
        "other weights; empty: any rank",
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

    @field_validator("hyper_layers")
    @classmethod
    def _there_are_such(cls, given: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        layers = LAYERS.get(info.data.get("architecture", ""), ())
        for pattern in given:
            if layers and not any(fnmatchcase(name, pattern) for name in layers):
                raise ValueError(
                    f"{pattern!r} is no layer of {info.data['architecture']}, which has "
                    f"{', '.join(layers)}"
                )
        return given

    @field_validator("fusion_at")
    @classmethod
    def _there_is_such(cls, given: str | None, info: ValidationInfo) -> str | None:
        places = PLACES.get(info.data.get("architecture", ""), ())
        if given is not None and places and given not in places:
            raise ValueError(
                f"{given!r} is no place of {info.data['architecture']}, which has "
                f"{', '.join(places)}"
            )
        return given

    @property
    def place(self) -> str | None:
        """Where features meet the table; None for the fusions that have no such place."""
        usual = MEETS[self.architecture].get(self.fusion)
        return usual and (self.fusion_at or usual)

    @property
    def generated(self) -> tuple[str, ...]:
        """The layers whose weights the table generates, in the network's order."""
        if self.fusion != "hyper":
            return ()
        if not self.hyper_layers:
            return GENERATED[self.architecture]
        return tuple(
            name
            for name in LAYERS[self.architecture]
            if any(fnmatchcase(name, pattern) for pattern in self.hyper_layers)
        )
