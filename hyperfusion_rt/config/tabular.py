"""The section `tabular`: from a row of the table to the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from hyperfusion_rt.config.base import Frozen


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


SD = "sd"  # the column of a number's standard deviation, where the network answers one


def answer_columns(classes: Sequence[str], target: str, unit: str) -> tuple[str, ...]:
    """`p_` and each class; of a number `years`, or `predicted_` and its column in the table."""
    if classes:
        return tuple(f"p_{name}" for name in classes)
    return ("years" if unit == "years" else f"predicted_{target}",)
