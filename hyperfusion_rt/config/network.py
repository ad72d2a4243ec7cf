"""The section `network`: which network, how large, and where the table enters it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hyperfusion_rt.config.base import Finite, no_truth_value

# The published studies: their networks, presets, and what is simulated.
Published = Literal["ad", "brain-age"]
# `own`: a network that the study brings, `network.import`.
Architecture = Literal["ad", "brain-age", "own"]
Fusion = Literal["hyper", "image", "tabular", "concat", "film", "daft", "tabmixer", "attention"]

# Every convolution and linear layer of a network, by its place in it, and which of them the
# published networks generate.
LAYERS: dict[Architecture, tuple[str, ...]] = {
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
GENERATED: dict[Architecture, tuple[str, ...]] = {
    "ad": ("block4.downsample.0",),
    "brain-age": ("linear1", "linear2", "linear3", "final_layer"),
}

# Where a network's features meet the table under the fusions that have one such place, and where
# they do unless told.
PLACES: dict[Architecture, tuple[str, ...]] = {
    "ad": ("block1", "block2", "block3", "block4", "features"),
    "brain-age": ("stage2", "stage3", "features", "linear2"),
}
MEETS: dict[Architecture, dict[str, str]] = {
    "ad": {
        **dict.fromkeys(("film", "daft", "tabmixer"), "block4"),
        **dict.fromkeys(("concat", "attention"), "features"),
    },
    "brain-age": {
        **dict.fromkeys(("film", "daft", "tabmixer"), "stage3"),
        **dict.fromkeys(("concat", "attention"), "linear2"),
    },
}

# What `network.import` may be fused by: a network of one's own is told what to do with a row of the
# table at its layers, by their names.
OWN_FUSIONS: tuple[Fusion, ...] = ("hyper", "concat", "image", "tabular")
# Fields that say something of a published network, or of one's own.
_OF_PUBLISHED = (
    *("bottleneck", "features", "embedding_dropout", "generated_part", "bn_momentum", "dropout"),
)
_OF_OWN = ("arguments", "weights", "weights_except", "init", "freeze", "train", "keep_features")

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

    architecture: Architecture = Field(
        description="which of the published networks: `ad`, a residual network whose features are "
        "averaged over the box, for boxes of any size; or `brain-age`, a plain one with dense "
        "layers over the whole box, which has at least 36 voxels along each axis. `own` is what "
        "`import` brings, and follows from it"
    )
    # `import` is a word of Python, which no line of a class can begin with.
    __annotations__["import"] = "str | None"
    locals()["import"] = Field(
        None,
        description="a network of your own instead of a published one: what makes it, as "
        "`package.module:callable` of an installed package, or as `file.py:callable`, seen from "
        "the cohort's folder. Training, comparing and exporting run that code",
    )
    arguments: dict[str, Any] = Field(
        {},
        description="of `import`: arguments of the callable, by name; the values `$channels`, "
        "`$outputs` and `$shape` stand for what the study needs, and arguments called `channels`, "
        "`outputs` and `shape` get them unasked",
    )
    weights: str | None = Field(
        None,
        description="of `import`: what its layers start from, `.safetensors` or a torch file of "
        "tensors alone, seen from the cohort's folder",
    )
    weights_except: tuple[str, ...] = Field(
        (),
        description="of `weights`: patterns of names, of the file or of the network, that are not "
        "loaded: such layers start anew (`fc.*`)",
    )
    fusion: Fusion = Field(
        "hyper",
        description="how the table meets the image: `hyper` generates weights; `concat`, `film`, "
        "`daft`, `tabmixer` and `attention` are baselines with both, `image` and `tabular` with "
        "one of them. A network of `import` takes `hyper`, `concat`, `image` and `tabular`",
    )
    hyper_layers: tuple[str, ...] = Field(
        (),
        description="which layers the fusion `hyper` generates: names of convolutions and linear "
        "layers, or patterns (`block4.*`, `*conv1`, `fc1`); empty: those of the published network, "
        "`block4.downsample.0` of `ad`, the four linear layers of `brain-age`. Of `import`: its "
        "own layers, as `hyperfy` takes them; none of them is usual",
    )
    fusion_at: str | None = Field(
        None,
        description="which input the fusions `film`, `daft`, `tabmixer`, `concat` and `attention` "
        "change: of a block or stage, `features` (those of the whole box, before the first linear "
        "layer) or `linear2`; empty: `block4` or `stage3`, and for `concat` and `attention` "
        "`features` or `linear2`. In front of a block or stage, `concat` adds a linear map of the "
        "row to the channels. Of `import`: the linear layer whose input `concat` joins with the "
        "row's embedding; it must be named",
    )
    init: Literal["principled", "zero"] | None = Field(
        None,
        description="of `import`: what the row adds to its layers at first: a tenth of what is "
        "there (`principled`), or nothing (`zero`); empty: `zero` with `weights`, else "
        "`principled`",
    )
    freeze: bool = Field(
        False,
        description="of `import`: train only what the fusion added, and what `train` names",
    )
    train: tuple[str, ...] = Field(
        (), description="with `freeze`: patterns of further modules to train (`fc`)"
    )
    keep_features: bool = Field(
        True,
        description="with `freeze`: what comes before the first layer that is trained runs once "
        "for each scan, and is kept in `.hfrt_cache/features`. Needs samples that "
        "`augmentation` does not change; `false`: it runs in each epoch",
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
        description="length of the table's embedding in the AD network, the tabular baseline and "
        "a network of `import`",
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

    @model_validator(mode="after")
    def _of_one_kind(self) -> NetworkConfig:
        """Fields that go with `import`, or without it."""
        imported, usual = self.imported, type(self).model_fields
        if (imported is None) != (self.architecture != "own"):
            raise ValueError(
                "architecture own needs import: name what makes the network"
                if imported is None
                else f"import brings a network; leave out architecture {self.architecture}"
            )
        for name in _OF_OWN if imported is None else _OF_PUBLISHED:
            if getattr(self, name) != usual[name].get_default():
                whose = "goes with import" if imported is None else "is of the published networks"
                raise ValueError(f"{name} {whose}; leave it out")
        if imported is None:
            return self
        left, _, right = imported.partition(":")
        if not left.strip() or not right.strip().isidentifier():
            raise ValueError(
                f"import {imported!r}: write it as package.module:callable, or file.py:callable"
            )
        if self.fusion not in OWN_FUSIONS:
            raise ValueError(
                f"fusion {self.fusion} is of the published networks; a network of import takes "
                f"{', '.join(OWN_FUSIONS)}"
            )
        if self.fusion == "hyper" and not self.hyper_layers:
            raise ValueError(
                "hyper_layers is empty: name the layers of import that the table generates, or "
                "choose fusion concat or image"
            )
        if self.fusion == "concat" and self.fusion_at is None:
            raise ValueError(
                "fusion concat needs fusion_at: the linear layer of import whose input is joined "
                "with the row"
            )
        if self.weights_except and self.weights is None:
            raise ValueError("weights_except goes with weights; leave it out")
        if self.train and not self.freeze:
            raise ValueError("train says what is trained of a frozen network: set freeze")
        if self.freeze and self.fusion == "image" and not self.train:
            raise ValueError("freeze leaves nothing to train with fusion image: name it in train")
        return self

    @property
    def imported(self) -> str | None:
        """The field `import`."""
        found: str | None = getattr(self, "import")
        return found

    def described(self) -> dict[str, Any]:
        """Its fields, as far as they say something of this network; of paths, the last name."""
        if self.imported is None:
            return self.model_dump(exclude={"import", *_OF_OWN})
        found = self.model_dump(exclude=set(_OF_PUBLISHED))
        found["import"] = PurePath(self.imported).name
        found["weights"] = self.weights and PurePath(self.weights).name
        return found

    @property
    def own(self) -> bool:
        """Whether it is a network that the study brings."""
        return self.imported is not None and self.fusion != "tabular"

    @property
    def keeps_features(self) -> bool:
        """Whether what frozen layers make of scans is kept."""
        return self.own and self.freeze and self.keep_features

    @property
    def place(self) -> str | None:
        """Where features meet the table; None for the fusions that have no such place."""
        usual = MEETS.get(self.architecture, {}).get(self.fusion)
        return usual and (self.fusion_at or usual)

    @property
    def generated(self) -> tuple[str, ...]:
        """The layers whose weights the table generates, in the network's order."""
        if self.fusion != "hyper":
            return ()
        if not self.hyper_layers:
            return GENERATED.get(self.architecture, ())
        return tuple(
            name
            for name in LAYERS.get(self.architecture, ())
            if any(fnmatchcase(name, pattern) for pattern in self.hyper_layers)
        )
