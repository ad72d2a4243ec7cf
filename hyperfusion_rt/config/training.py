"""The section `training`: the optimiser and the protocol."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from hyperfusion_rt.config.base import Finite, no_truth_value

Rule = Literal["mean", "confidence_weighted", "weighted_voting", "most_confident"]


class TrainingConfig(Finite):
    """The optimiser and the protocol."""

    _numbers = field_validator("*", mode="before")(no_truth_value)

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
