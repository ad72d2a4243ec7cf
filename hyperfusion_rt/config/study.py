"""A whole configuration, and what its sections must agree on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from hyperfusion_rt.config.augmentation import Augmentation
from hyperfusion_rt.config.base import Frozen
from hyperfusion_rt.config.network import BRAIN_AGE_VOXELS, NetworkConfig
from hyperfusion_rt.config.preprocessing import Preprocessing
from hyperfusion_rt.config.tabular import TableSpec
from hyperfusion_rt.config.training import TrainingConfig

Task = Literal["classification", "regression"]
Precision = Literal["fp32", "fp16", "bf16"]
ScanChecks = Literal["refuse", "warn", "off"]

# How older versions called the task and the network, in one field.
OLDER_TASKS: dict[str, Task] = {"ad": "classification", "brain-age": "regression"}


class Config(Frozen):
    """Everything that training needs, and nothing about a machine."""

    preset: str = Field(description="the preset that the other fields change")
    task: Task = Field(
        description="what is predicted: the probabilities of `tabular.classes` "
        "(`classification`), or a number in `tabular.unit` (`regression`)"
    )
    scans: str = Field("scans", description="the scans, seen from the cohort's folder")
    table: str = Field("data.csv", description="the table, seen from the cohort's folder")
    bids_filter: str | None = Field(
        None,
        description="which T1-weighted files of a BIDS dataset are scans: a JSON file as "
        "fMRIPrep's filters, seen from the cohort's folder",
    )
    preprocessing: Preprocessing = Field(description="from a scan to the network's input")
    tabular: TableSpec = Field(description="from a row of the table to the network's input")
    network: NetworkConfig = Field(description="the network")
    training: TrainingConfig = Field(description="how it is trained")
    augmentation: Augmentation = Field(
        Augmentation(), description="how training samples are changed at random"
    )
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
        if self.network.own and not table.features:
            raise ValueError(
                "tabular.features is empty: a network of network.import needs a column, such as "
                "the age; with network.fusion image it does not read it, but an artifact has a "
                "table"
            )
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
        if training.sampling == "balanced" and not table.classes:
            raise ValueError("training.sampling balanced needs classes; use shuffled")
        if training.label_smoothing and not table.classes:
            raise ValueError("training.label_smoothing needs classes; drop it")
        if training.loss != "mse" and table.classes:
            raise ValueError(
                f"training.loss {training.loss} is of a number, not of classes; drop it"
            )
        changed = self.augmentation.moves or self.augmentation.changes_values
        if network.keeps_features and changed:
            raise ValueError(
                "network.freeze keeps what frozen layers make of each scan, and augmentation "
                "changes scans in every epoch: leave out augmentation, or set "
                "network.keep_features to false"
            )
        if training.loss in ("bins", "gaussian") and not training.standardise_target:
            raise ValueError(
                f"training.loss {training.loss} needs training.standardise_target: true"
            )
        if self.augmentation.flip:
            aside = [b.name for b in self.preprocessing.boxes if b.mirror or b.center[0] != 0]
            if aside:
                raise ValueError(
                    "augmentation.flip is for boxes around the midline (x = 0 mm), where left and "
                    f"right look alike; not for {', '.join(aside)}"
                )
        given = training.split_column or training.split_file
        if not given and training.test_part is not None and training.test_part >= training.parts:
            raise ValueError(
                f"training.test_part is {training.test_part}, but {training.parts} parts count "
                f"from 0 to {training.parts - 1}"
            )
        if training.split_column and training.split_file:
            raise ValueError("training.split_column and training.split_file: give one of them")
        return self
