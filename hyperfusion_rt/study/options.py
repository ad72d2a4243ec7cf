"""The options of a draft, each declared and documented once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hyperfusion_rt.config import Task
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.options import Options

Boxes = Literal["hippocampi", "whole-brain"]


class DraftOptions(Options):
    """What is known of a study before its table is read; the rest is found out."""

    target: str | None = Field(
        None, description="The column to predict; default: the one that looks like a diagnosis, "
        "or else an age."
    )  # fmt: skip
    task: Task | None = Field(
        None, description="Classes or a number; default: what the target's values are."
    )
    unit: str | None = Field(
        None, description="The unit of a target that is a number, such as ml; default: what the "
        "column's name or the table's JSON sidecar says."
    )  # fmt: skip
    boxes: Boxes | None = Field(
        None, description="What the network sees; default: the whole brain for an age, else the "
        "hippocampi."
    )  # fmt: skip
    preset_name: str | None = Field(
        None, description="The preset to start from; default: the small one for these boxes."
    )
    id_column: str | None = Field(
        None, description="The column of subjects; default: the one that holds the scans' ids."
    )

    @model_validator(mode="after")
    def _check(self) -> DraftOptions:
        if self.task == "classification" and self.unit:
            raise ConfigError(
                "`unit` goes with numbers, but `task` is classification: leave one out",
                code="option-conflict",
            )
        return self
