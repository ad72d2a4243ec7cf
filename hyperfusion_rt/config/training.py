"""The section `training`: the optimiser and the protocol."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from hyperfusion_rt.config.base import Finite, no_truth_value

Rule = Literal["mean", "confidence_weighted", "weighted_voting", "most_confident"]


class TrainingConfig(Finite):
    """The optimiser and the protocol."""

    _numbers = field_validator("*", mode="before")(no_truth_value)

    optimizer: Literal["adam", "adamw"] = Field(
        "adam",
        description="`adam`: with an L2 penalty on every parameter, as published; `adamw`: weights "
        "decay apart from the gradient, and biases and batch norm do not decay",
    )
    lr: float = Field(gt=0, description="the highest learning rate")
    weight_decay: float = Field(
        ge=0, description="Adam's L2 penalty, or AdamW's decay, of which a step takes lr times this"
    )
    generator_decay: float | None = Field(
        None,
        ge=0,
        description="AdamW's decay of the layers that generate weights; default: `weight_decay`",
    )
    embedding_decay: float | None = Field(
        None,
        ge=0,
        description="AdamW's decay of the table's embedding, also while it is trained before; "
        "default: `weight_decay`",
    )
    batch_size: int = Field(ge=2, description="samples of one step; batch norm needs two at least")
    epochs: int = Field(ge=1, description="the most epochs; one reads every training case once")
    patience: int = Field(
        0, ge=0, description="stop after this many epochs without a better one; 0: never"
    )
    class_weights: tuple[float, ...] = Field(
        (), description="the loss's weight of each class, in their order; empty: all alike"
    )
    schedule: Literal["constant", "cosine", "one-cycle"] = Field(
        "constant",
        description="the learning rate over the steps: as it is; along a cosine to 0; or from a "
        "twenty-fifth up to `lr` in three tenths of the steps, and down again",
    )
    warmup_epochs: float = Field(
        0, ge=0, description="the rate rises from 0 for so long, beside `constant` and `cosine`"
    )
    ema: float = Field(
        0,
        ge=0,
        lt=1,
        description="the network that is kept is a moving average of the weights, in which the "
        "older ones have this weight at each step, such as 0.99; 0: the weights themselves",
    )
    clip_gradient: float = Field(
        0, ge=0, description="the largest norm of the gradient; longer ones are cut; 0: any"
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="which epoch's weights are kept: the `best` on the validation part, as "
        "published, or the `last`: the best of many on a small validation part is luck",
    )
    sampling: Literal["shuffled", "balanced"] = Field(
        "shuffled",
        description="each training case once an epoch, or as many of each class (`class_weights` "
        "then weigh twice)",
    )
    label_smoothing: float = Field(
        0, ge=0, lt=1, description="the part of a class's weight that all classes share"
    )
    loss: Literal["mse", "l1", "huber", "bins", "gaussian"] = Field(
        "mse",
        description="of a number: the mean squared error; the mean absolute error; between, "
        "squared up to one standard deviation; `bins`: the network answers a distribution, "
        "whose mean is the answer, within 3 standard deviations of the training part's mean; or "
        "`gaussian`, the negative log likelihood: the network answers a number and its standard "
        "deviation (column `sd`), how far off it expects to be for this case",
    )
    bins: int = Field(40, ge=4, description="with `loss: bins`: how many")
    embedding_epochs: int = Field(
        100,
        ge=0,
        description="epochs of the table's own network: the baseline `tabular`, and what the "
        "embedding of the AD network may start from; 0: none",
    )
    embedding_lr: float = Field(1e-2, gt=0, description="the learning rate of these epochs")
    embedding_start: Literal["table", "random"] = Field(
        "table",
        description="what the embedding of the AD network starts from: the table's own network, as "
        "published, which is blind to a column that says nothing without the image; or random "
        "weights",
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
    accumulate: int = Field(
        1,
        ge=1,
        description="a step's samples go through the network in so many parts, one after the "
        "other, which takes less memory; batch norm then sees a part at a time",
    )
    sync_batch_norm: bool = Field(
        True,
        description="with several processes: batch norm over the samples of all of them, so that "
        "their number changes nothing; else each over its own, which is faster and gives others",
    )
    amp: bool = Field(
        True, description="on CUDA: compute in bfloat16, or in float16 with a scaled loss"
    )
    cuda_graph: bool = Field(
        False, description="on CUDA: replay forward and backward as captured graphs"
    )

    @property
    def decay_of_generators(self) -> float:
        """`generator_decay`, or that of all."""
        return self.weight_decay if self.generator_decay is None else self.generator_decay

    @property
    def decay_of_embedding(self) -> float:
        """`embedding_decay`, or that of all."""
        return self.weight_decay if self.embedding_decay is None else self.embedding_decay
