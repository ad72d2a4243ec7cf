"""Typed configuration and the preset table.

A run is described by one `Config`. `hfrt.yaml` holds a preset's name and what differs from it;
`load_config` merges the two. Every field is validated, and an unknown one is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hyperfusion_rt.errors import ConfigError

Task = Literal["ad", "brain-age"]
Rule = Literal["mean", "confidence_weighted", "weighted_voting", "most_confident"]
Fusion = Literal["hyper", "image", "tabular", "concat", "film", "daft"]
Point = tuple[float, float, float]  # mm
Shape = tuple[int, int, int]


class Frozen(BaseModel):
    """Immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Box(Frozen):
    """A box in millimetres of template (MNI, RAS) space; `mirror` flips left and right."""

    name: str
    center: Point
    mirror: bool = False


class Preprocessing(Frozen):
    """From a scan to `float32 [1, D, H, W]` per box, the same in training and inference.

    `shape` counts voxels (left-right, posterior-anterior, inferior-superior); `spacing` is in mm.
    """

    boxes: tuple[Box, ...]
    shape: Shape
    spacing: float = Field(gt=0)
    orientation: Literal["RAS"] = "RAS"
    interpolation: Literal["trilinear"] = "trilinear"
    normalisation: Literal["zscore-nonzero"] = "zscore-nonzero"
    min_coverage: float = Field(0.5, ge=0, le=1)


class Feature(Frozen):
    """One column of the table. `censored` reads `>1700`, `<8` as their bound."""

    name: str
    kind: Literal["numeric", "censored", "categorical"]
    categories: tuple[str, ...] = ()


class TableSpec(Frozen):
    """Which columns are read, and how gaps are filled.

    `classes` maps a class to the values of the target column that mean it; empty: a number.
    """

    features: tuple[Feature, ...]
    target: str
    classes: dict[str, tuple[str, ...]] = {}
    stratify: tuple[str, ...] = ()
    imputer: Literal["median", "iterative"] = "median"
    id_column: str | None = None
    session_column: str | None = None


class NetworkConfig(Frozen):
    """Which network. `features` is f, the channels after the first convolution."""

    task: Task
    fusion: Fusion = "hyper"
    features: int = Field(16, ge=1)
    embedding: int = Field(8, ge=1)
    bn_momentum: float = Field(0.05, gt=0, le=1)
    dropout: float = Field(1.0, ge=0, le=1.5, description="scales every published dropout rate")


class TrainingConfig(Frozen):
    """The optimiser and the protocol. `lr` is Adam's; `patience` counts epochs (0: never stop)."""

    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    batch_size: int = Field(ge=1)
    epochs: int = Field(ge=1)
    patience: int = Field(0, ge=0)
    class_weights: tuple[float, ...] = ()
    schedule: Literal["constant", "cosine"] = "constant"
    embedding_epochs: int = Field(100, ge=0, description="of the tabular network trained before")
    parts: int = Field(5, ge=3)
    members: int = Field(1, ge=1)
    combine: Rule = "mean"
    seed: int = 0
    amp: bool = Field(True, description="CUDA: bfloat16, or float16 with a scaled loss")
    cuda_graph: bool = Field(False, description="CUDA: forward and backward captured as graphs")


class Config(Frozen):
    """Everything that training needs, and nothing about a machine."""

    preset: str
    task: Task
    scans: str = "scans"
    table: str = "data.csv"
    preprocessing: Preprocessing
    tabular: TableSpec
    network: NetworkConfig
    training: TrainingConfig

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.task == "brain-age" and self.training.combine != "mean":
            raise ValueError(f"training.combine {self.training.combine} needs classes; use mean")
        return self


# The hippocampus lies near (±26, -21, -15) mm in MNI space. The right box is mirrored, so that one
# network reads both. At half a millimetre an even number of 1 mm voxels falls on whole millimetres,
# which is the template's grid: such scans are cropped, not interpolated.
_HIPPOCAMPI = [
    {"name": "left", "center": (-26.5, -20.5, -14.5)},
    {"name": "right", "center": (26.5, -20.5, -14.5), "mirror": True},
]

_ADNI_TABLE: dict[str, Any] = {
    "features": [
        {"name": "AGE", "kind": "numeric"},
        {"name": "PTGENDER", "kind": "categorical", "categories": ("Female", "Male")},
        {"name": "PTEDUCAT", "kind": "numeric"},
        {"name": "APOE4", "kind": "numeric"},
        {"name": "ABETA", "kind": "censored"},
        {"name": "TAU", "kind": "censored"},
        {"name": "PTAU", "kind": "censored"},
        {"name": "FDG", "kind": "numeric"},
        {"name": "AV45", "kind": "numeric"},
    ],
    "target": "DX",
    "classes": {"CN": ("CN",), "MCI": ("MCI", "EMCI", "LMCI"), "AD": ("AD", "Dementia")},
    "stratify": ("PTGENDER", "AGE"),
    "imputer": "iterative",
}

_SEX_TABLE: dict[str, Any] = {
    "features": [{"name": "PTGENDER", "kind": "categorical", "categories": ("Female", "Male")}],
    "target": "AGE",
    "stratify": ("PTGENDER",),
}

_AD: dict[str, Any] = {
    "preset": "ad",
    "task": "ad",
    "preprocessing": {"boxes": _HIPPOCAMPI, "shape": (64, 96, 64), "spacing": 1.0},
    "tabular": _ADNI_TABLE,
    "network": {"task": "ad"},
    "training": {
        "lr": 1e-4,
        "weight_decay": 1e-5,
        "batch_size": 32,
        "epochs": 250,
        "class_weights": (1.1, 0.6962, 1.4),
    },
}

# The template's brain spans -72..72, -107..73, -72..82 mm. At 1.7 mm the published 90 x 120 x 99
# voxels are 153 x 204 x 168 mm: the brain and a margin of 4 mm or more on each side.
_BRAIN_AGE: dict[str, Any] = {
    "preset": "brain-age",
    "task": "brain-age",
    "preprocessing": {
        "boxes": [{"name": "brain", "center": (0.0, -17.0, 5.0)}],
        "shape": (90, 120, 99),
        "spacing": 1.7,
    },
    "tabular": _SEX_TABLE,
    "network": {"task": "brain-age"},
    "training": {
        "lr": 1.5e-4,
        "weight_decay": 0.05,
        "batch_size": 16,
        "epochs": 60,
        "parts": 10,
    },
}


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merge(old, value)
        merged[key] = value
    return merged


# `ad` and `brain-age` are the published protocols. `-small` ones read the same boxes at a coarser
# spacing with fewer channels: minutes on two CPU cores, for demonstrations and first looks.
PRESETS: dict[str, dict[str, Any]] = {
    "ad": _AD,
    "ad-small": _merge(
        _AD,
        {
            "preset": "ad-small",
            "preprocessing": {"shape": (32, 48, 32), "spacing": 2.0},
            "network": {"features": 8, "dropout": 0.5},
            "training": {
                "lr": 5e-4,
                "weight_decay": 1e-3,
                "batch_size": 16,
                "epochs": 18,
                "schedule": "cosine",
            },
        },
    ),
    "brain-age": _BRAIN_AGE,
    "brain-age-small": _merge(
        _BRAIN_AGE,
        {
            "preset": "brain-age-small",
            "preprocessing": {"shape": (48, 64, 53), "spacing": 3.2},
            "network": {"features": 8},
            "training": {"lr": 5e-4, "batch_size": 16, "epochs": 20, "schedule": "cosine"},
        },
    ),
}


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "the file"
        parts.append(f"{where}: {item['msg']}")
    return "; ".join(parts)


def preset(name: str, change: dict[str, Any] | None = None) -> Config:
    """The preset `name` with `change` merged into it.

    Raises:
        ConfigError: no such preset, or a field that is unknown or out of range.
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}: choose from {', '.join(PRESETS)}")
    try:
        return Config.model_validate(_merge(PRESETS[name], change or {}))
    except ValidationError as error:
        raise ConfigError(f"preset {name!r}: {_explain(error)}") from None


def load_config(path: Path, overrule: dict[str, Any] | None = None) -> Config:
    """Read `hfrt.yaml`: a preset's name under `preset`, and what differs from it.

    `overrule` is merged over both.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or a field is wrong.
    """
    import yaml

    try:
        change = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; write one, or make a cohort with 'hfrt simulate'"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
    if not isinstance(change, dict) or not isinstance(change.get("preset"), str):
        raise ConfigError(f"{path}: needs a line 'preset: NAME'; presets: {', '.join(PRESETS)}")
    try:
        return preset(change["preset"], _merge(change, overrule or {}))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
