"""The options of a comparison, each declared and documented once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.training.options import WhereOptions


def _names(given: Any) -> Any:
    """`image,hyper` as a list."""
    if not isinstance(given, str):
        return given
    return tuple(name.strip() for name in given.split(",") if name.strip())


class CompareOptions(WhereOptions):
    """Which models are compared, on how many parts, and how the work is done."""

    models: Annotated[tuple[str, ...] | None, BeforeValidator(_names)] = Field(
        None,
        description="The models, with commas: values of network.fusion; of the table alone "
        "logistic (of a number: ridge) and boosting; late, boosting of the table and of what image "
        "answers. Default: image, table, network.fusion, and "
        "these two. With an older comparison that goes on: further models.",
    )
    folds: int | None = Field(
        None, ge=3, description="Parts of the cohort, each the test set once; default: "
        "training.parts, or those that the study itself gives."
    )  # fmt: skip
    seeds: int = Field(
        1, ge=1, description="How often the cohort is split anew and everything is trained again."
    )
    ablate: str | None = Field(
        None,
        description="A field of the configuration and its values, FIELD=VALUE;VALUE: each network "
        "is trained with each value, instead of with that of the configuration. "
        "`network.hyper_layers` alone: each layer of the network is generated alone.",
    )
    against: str | None = Field(
        None, description="Test each model against this one only; default: all pairs."
    )
    test: Path | None = Field(
        None, description="An external test set: a folder of scans that no model is trained on."
    )
    test_table: Path | None = Field(None, description="The table of the external test set.")
    name: str | None = Field(None, description="The comparison's name; default: of the time.")
    resume: bool = Field(
        False, description="Go on with the newest comparison, or that with the given name; what "
        "is done is kept, what failed is tried again."
    )  # fmt: skip

    @model_validator(mode="after")
    def _check(self) -> CompareOptions:
        if (self.test is None) != (self.test_table is None):
            raise ConfigError(
                "`test` and `test_table` go together: scans and their table", code="option-conflict"
            )
        if self.resume and (self.folds is not None or self.ablate is not None):
            raise ConfigError(
                "`resume` keeps the comparison's parts and models: leave out `folds` and `ablate`",
                code="option-conflict",
            )
        return self
