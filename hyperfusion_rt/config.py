"""Typed configuration and the preset table.

A run is described by one `Config`: which network (`network.architecture`, `network.fusion`), which
task (`task`: classes or a number), and what is read of a study (`preprocessing`, `tabular`).
`hfrt.yaml` holds a preset's name and what differs from it; `load_config` merges the two. Every
field is validated, and an unknown one is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hyperfusion_rt.errors import ConfigError

Task = Literal["classification", "regression"]
# The published studies: their networks, presets, and what is simulated.
Published = Literal["ad", "brain-age"]
Rule = Literal["mean", "confidence_weighted", "weighted_voting", "most_confident"]
Precision = Literal["fp32", "fp16", "bf16"]
ScanChecks = Literal["refuse", "warn", "off"]
Normalisation = Literal["zscore-foreground", "fixed-range", "zscore-nonzero"]
Fusion = Literal["hyper", "image", "tabular", "concat", "film", "daft"]
Point = tuple[float, float, float]  # mm
Shape = tuple[int, int, int]
Range = tuple[float, float]

# Three stages of two 3x3x3 convolutions leave one voxel of so many.
BRAIN_AGE_VOXELS = 36

# How older versions called the task and the network, in one field.
OLDER_TASKS: dict[str, Task] = {"ad": "classification", "brain-age": "regression"}


class Frozen(BaseModel):
    """Immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Finite(Frozen):
    """Whose numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _no_truth_value(cls: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """`yes` is no number: it would be read as 1."""
    field = cls.model_fields[str(info.field_name)]
    if isinstance(value, bool) and field.annotation in (int, float):
        raise ValueError(f"must be a number; YAML reads this as {str(value).lower()}")
    return value


class Box(_Finite):
    """A box in template (MNI, RAS) space. All boxes have the shape that `Preprocessing` gives."""

    name: str = Field(description="what the box is called in messages and tables")
    center: Point = Field(
        description="its centre in mm of MNI space: x to the right, y to the front, z upwards"
    )
    mirror: bool = Field(
        False, description="flip left and right, so that one network reads both hippocampi"
    )


class Channel(_Finite):
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


class Preprocessing(_Finite):
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
        description="voxels of every box: left to right, back to front, bottom to top"
    )
    spacing: float = Field(gt=0, description="edge of a voxel in mm")
    orientation: Literal["RAS"] = Field(
        "RAS", description="where the axes point: right, anterior, superior"
    )
    interpolation: Literal["trilinear"] = Field(
        "trilinear", description="how values between voxels are read, where the grids differ"
    )
    normalisation: Normalisation = Field(
        "zscore-foreground",
        description="the brain gets mean 0 and standard deviation 1 in each box: all but the "
        "background, which is what the scan's border shows and what is connected with it; "
        "`fixed-range`, for images whose values are quantities (PET SUVR, FA): `range` becomes 0 "
        "to 1 (`zscore-nonzero`, of older runs: all but what is exactly 0; a shift of the grid by "
        "up to half a voxel is not interpolated)",
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
    _numbers = field_validator("*", mode="before")(_no_truth_value)

    @model_validator(mode="after")
    def _check(self) -> Preprocessing:
        _distinct("boxes", [box.name for box in self.boxes])
        _distinct("channels", [channel.name for channel in self.channels])
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


class Feature(Frozen):
    """One column of the table that the network reads."""

    name: str = Field(description="the column's name in the table's header")
    kind: Literal["numeric", "censored", "categorical"] = Field(
        description="a number; a number or a bound (`>1700`, `<8`), read as the bound; one of "
        "several values"
    )
    categories: tuple[str, ...] = Field(
        (),
        description="the values of a categorical column (case does not matter); empty: those of "
        "the training rows",
    )


class TableSpec(Frozen):
    """Which columns are read, and how gaps are filled."""

    features: tuple[Feature, ...] = Field(description="the columns that the network reads")
    target: str = Field(description="the column that is to be predicted")
    classes: dict[str, tuple[str, ...]] = Field(
        {},
        description="each class with the values of the target column that mean it (none: its own "
        "name); empty: the target is a number",
    )
    unit: str = Field(
        "", description="the unit of a target that is a number, such as `years` or `ml`"
    )
    stratify: tuple[str, ...] = Field(
        (), description="columns that, beside the target, shall be alike in all parts of the cohort"
    )
    imputer: Literal["median", "iterative"] = Field(
        "median",
        description="what fills a gap of a number: the training median, or a regression on the "
        "other columns",
    )
    id_column: str | None = Field(
        None, description="the column of subjects; without one, the first that has a usual name"
    )
    session_column: str | None = Field(
        None, description="the column of sessions; without one, the first that has a usual name"
    )

    @property
    def answers(self) -> tuple[str, ...]:
        """What the columns of an answer are called."""
        return answer_columns(tuple(self.classes), self.target, self.unit)


def answer_columns(classes: Sequence[str], target: str, unit: str) -> tuple[str, ...]:
    """`p_` and each class; of a number `years`, or `predicted_` and its column in the table."""
    if classes:
        return tuple(f"p_{name}" for name in classes)
    return ("years" if unit == "years" else f"predicted_{target}",)


def _named_now(network: Any) -> Any:
    """The section `network` with `architecture` for `task`, as older versions called it."""
    if isinstance(network, dict) and "task" in network and "architecture" not in network:
        return {("architecture" if k == "task" else k): v for k, v in network.items()}
    return network


class NetworkConfig(Frozen):
    """Which network, and how large."""

    _numbers = field_validator("*", mode="before")(_no_truth_value)

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
        return _named_now(given)


class TrainingConfig(_Finite):
    """The optimiser and the protocol."""

    _numbers = field_validator("*", mode="before")(_no_truth_value)

    lr: float = Field(gt=0, description="Adam's learning rate, at first")
    weight_decay: float = Field(ge=0, description="Adam's L2 penalty")
    batch_size: int = Field(ge=2, description="samples of one step; batch norm needs two at least")
    epochs: int = Field(ge=1, description="the most epochs; one reads every training case once")
    patience: int = Field(
        0, ge=0, description="stop after this many epochs without a better one; 0: never"
    )
    class_weights: tuple[float, ...] = Field(
        (), description="the loss's weight of each class, in their order; empty: all alike"
    )
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="the learning rate over the epochs: as it is, or along a cosine to 0",
    )
    embedding_epochs: int = Field(
        100,
        ge=0,
        description="epochs of the tabular network that the AD network's embedding starts from",
    )
    standardise_target: bool = Field(
        True,
        description="a target that is a number is learned in units of its standard deviation from "
        "its mean, so that any unit trains alike; answers are in the target's unit either way",
    )
    parts: int = Field(
        5,
        ge=3,
        description="parts of the cohort: one is the test set, the others take turns as "
        "validation set",
    )
    test_part: int | None = Field(
        None, ge=0, description="which part is the test set, from 0; default: the last"
    )
    split_column: str | None = Field(
        None,
        description="a column of the table that says where a case belongs: `train`, `validation` "
        "or `test`, or the number of its part; instead of a random split",
    )
    split_file: str | None = Field(
        None,
        description="a table (seen from the cohort's folder) of subjects and where each belongs, "
        "as in `split_column`; its column is called split, part or fold",
    )
    members: int = Field(
        1, ge=1, description="networks of the ensemble; each takes the next part as validation set"
    )
    combine: Rule = Field(
        "mean", description="how the members' answers become one; all but `mean` need classes"
    )
    seed: int = Field(
        0,
        description="of all random numbers: same seed, same run (on one device and thread count)",
    )
    amp: bool = Field(
        True, description="on CUDA: compute in bfloat16, or in float16 with a scaled loss"
    )
    cuda_graph: bool = Field(
        False, description="on CUDA: replay forward and backward as captured graphs"
    )


class Config(Frozen):
    """Everything that training needs, and nothing about a machine."""

    preset: str = Field(description="the preset that the other fields change")
    task: Task = Field(
        description="what is predicted: the probabilities of `tabular.classes` "
        "(`classification`), or a number in `tabular.unit` (`regression`)"
    )
    scans: str = Field("scans", description="the scans, seen from the cohort's folder")
    table: str = Field("data.csv", description="the table, seen from the cohort's folder")
    preprocessing: Preprocessing = Field(description="from a scan to the network's input")
    tabular: TableSpec = Field(description="from a row of the table to the network's input")
    network: NetworkConfig = Field(description="the network")
    training: TrainingConfig = Field(description="how it is trained")
    scan_checks: ScanChecks = Field(
        "refuse",
        description="a scan that is no T1-weighted brain in MNI space, or unlike those of the "
        "training: `refuse` leaves it out; `warn` takes it and says so, also at inference; `off` "
        "does not look",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_before(cls, given: Any) -> Any:
        """`task: ad`, as older versions called both the network and the task."""
        if isinstance(given, dict) and given.get("task") in OLDER_TASKS:
            given = {**given, "task": OLDER_TASKS[given["task"]]}
            table, training = given.get("tabular"), given.get("training")
            if given["task"] == "regression" and isinstance(table, dict):
                given["tabular"] = {"unit": "years", **table}
            if isinstance(training, dict):
                given["training"] = {"standardise_target": False, **training}
        return given

    @model_validator(mode="after")
    def _check(self) -> Config:
        table, training = self.tabular, self.training
        if self.task == "regression" and table.classes:
            raise ValueError(
                "task regression predicts a number, but tabular.classes are given; drop one"
            )
        if self.task == "classification" and len(table.classes) < 2:
            raise ValueError(
                f"task classification needs two classes or more in tabular.classes, not "
                f"{len(table.classes)}"
            )
        if self.task == "classification" and table.unit:
            raise ValueError("tabular.unit: classes have no unit; drop it")
        shape, network = self.preprocessing.shape, self.network
        if (
            network.architecture == "brain-age"
            and network.fusion != "tabular"
            and min(shape) < BRAIN_AGE_VOXELS
        ):
            raise ValueError(
                f"network.architecture brain-age needs at least {BRAIN_AGE_VOXELS} voxels along "
                f"each axis of a box, and preprocessing.shape is {list(shape)}"
            )
        if not table.classes and training.combine != "mean":
            raise ValueError(f"training.combine {training.combine} needs classes; use mean")
        given = training.split_column or training.split_file
        if not given and training.test_part is not None and training.test_part >= training.parts:
            raise ValueError(
                f"training.test_part is {training.test_part}, but {training.parts} parts count "
                f"from 0 to {training.parts - 1}"
            )
        if training.split_column and training.split_file:
            raise ValueError("training.split_column and training.split_file: give one of them")
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
    "unit": "years",
    "stratify": ("PTGENDER",),
}

_AD: dict[str, Any] = {
    "preset": "ad",
    "task": "classification",
    "preprocessing": {"boxes": _HIPPOCAMPI, "shape": (64, 96, 64), "spacing": 1.0},
    "tabular": _ADNI_TABLE,
    "network": {"architecture": "ad"},
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
    "task": "regression",
    "preprocessing": {
        "boxes": [{"name": "brain", "center": (0.0, -17.0, 5.0)}],
        "shape": (90, 120, 99),
        "spacing": 1.7,
    },
    "tabular": _SEX_TABLE,
    "network": {"architecture": "brain-age"},
    "training": {
        "lr": 1.5e-4,
        "weight_decay": 0.05,
        "batch_size": 16,
        "epochs": 60,
        "parts": 10,
        "standardise_target": False,
    },
}


# What is replaced as a whole, as lists are: classes are never mixed with others.
_WHOLE = ("classes",)


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if key not in _WHOLE and isinstance(old, dict) and isinstance(value, dict):
            value = _merge(old, value)
        merged[key] = value
    return merged


def _changed(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The preset `base` with `change` merged into it.

    What belongs together is replaced together: the classes are the user's or the preset's, never
    both; the preset's class weights go with its classes, its unit and scale with its target.
    """
    if change.get("task") in OLDER_TASKS:
        change = {**change, "task": OLDER_TASKS[change["task"]]}
    if "network" in change:
        change = {**change, "network": _named_now(change["network"])}
    merged = _merge(base, change)
    table, training = merged["tabular"], merged["training"]
    if not (isinstance(table, dict) and isinstance(training, dict)):
        return merged  # a section that is none: validation says so
    table, training = dict(table), dict(training)
    given, trained = change.get("tabular", {}), change.get("training", {})
    if "classes" in given:
        if "task" not in change:
            merged["task"] = "classification" if given["classes"] else "regression"
    elif merged["task"] == "regression":
        table.pop("classes", None)
    if ("classes" in given or "classes" not in table) and "class_weights" not in trained:
        training.pop("class_weights", None)
    if table["target"] != base["tabular"]["target"] or merged["task"] != base["task"]:
        table["unit"] = given.get("unit", "")
        if "standardise_target" not in trained:
            training.pop("standardise_target", None)
    return {**merged, "tabular": table, "training": training}


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
            "training": {
                "lr": 5e-4,
                "batch_size": 16,
                "epochs": 20,
                "schedule": "cosine",
                "standardise_target": True,
            },
        },
    ),
}


def preset(name: str, change: dict[str, Any] | None = None) -> Config:
    """The preset `name` with `change` merged into it.

    Raises:
        ConfigError: no such preset, or a field that is unknown or out of range.
    """
    from hyperfusion_rt.yaml_text import explain

    if name not in PRESETS:
        raise ConfigError(
            f"there is no preset {name!r}: choose from {', '.join(PRESETS)}",
            code="config-unknown-preset",
        )
    try:
        return Config.model_validate(_changed(PRESETS[name], change or {}))
    except ValidationError as error:
        raise ConfigError(
            f"preset {name!r}: {explain(error, Config)}", code="config-invalid"
        ) from None


def load_config(path: Path, overrule: dict[str, Any] | None = None) -> Config:
    """Read `hfrt.yaml`: a preset's name under `preset`, and what differs from it.

    `overrule` is merged over both.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or a field is wrong.
    """
    from hyperfusion_rt.yaml_text import read_yaml

    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; draft one with 'hfrt init', or make a cohort with "
            "'hfrt simulate'",
            code="config-not-found",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as YAML: {error}", code="config-unreadable"
        ) from None
    change = read_yaml(text, path)
    if not isinstance(change, dict) or not isinstance(change.get("preset"), str):
        raise ConfigError(
            f"{path}: needs a line 'preset: NAME'; presets: {', '.join(PRESETS)}",
            code="config-no-preset",
        )
    try:
        return preset(change["preset"], _merge(change, overrule or {}))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", code=error.code) from None
