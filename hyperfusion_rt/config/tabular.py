"""The section `tabular`: from a row of the table to the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

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


class MappedColumn(Frozen):
    """A column that stands for one of the model's, in tables that lack the model's own."""

    column: str = Field(min_length=1, description="the column's name in those tables' header")
    values: dict[str, str] = Field(
        {},
        description="cells of that column, each with what it means to the model (case does not "
        "matter; `''`: not known); all other cells are read as they are",
    )

    @model_validator(mode="after")
    def _check(self) -> MappedColumn:
        meanings: dict[str, str] = {}
        for cell, value in self.values.items():
            if not cell.strip():
                raise ValueError(f"an empty cell is not known, and cannot be {value!r}; drop it")
            first = meanings.setdefault(cell.strip().casefold(), value)
            if first.strip().casefold() != value.strip().casefold():
                raise ValueError(
                    f"{cell!r} is both {first!r} and {value!r} (case does not matter); keep one"
                )
        return self


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

    map: dict[str, MappedColumn] = Field(
        {},
        description="features, or the target, each with the column that is read in its place "
        "where a table does not have it, in training and at inference",
    )

    @model_validator(mode="after")
    def _check_map(self) -> TableSpec:
        listed = {feature.name: feature.categories for feature in self.features}
        listed.setdefault(self.target, self.class_values)
        for name, mapped in self.map.items():
            if name not in listed:
                raise ValueError(
                    f"map: {name!r} is no feature and not the target; choose from "
                    f"{', '.join(listed)}"
                )
            if mapped.column in listed and mapped.column != name:
                raise ValueError(
                    f"map: {name!r} is read from {mapped.column!r}, which is a column of its own; "
                    "name another"
                )
            allowed = [value.casefold() for value in ("", *listed[name])]
            for value in mapped.values.values():
                if listed[name] and value.strip().casefold() not in allowed:
                    raise ValueError(
                        f"map: {value!r} is not a value of {name!r}; choose from "
                        f"{', '.join(listed[name])}, or '' for not known"
                    )
        return self

    @property
    def class_values(self) -> tuple[str, ...]:
        """The values of the target column that mean a class; none of a target that is a number."""
        return tuple(v for name, values in self.classes.items() for v in values or (name,))

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
