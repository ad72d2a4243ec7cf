"""What the encoder keeps of each column of the table, and of the imputer's steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field, model_validator

from hyperfusion_rt.config import Frozen
from hyperfusion_rt.data.table_file import LARGEST

SMALLEST_STD = 1e-20


class Fitted(Frozen):
    """Stored in manifests: every number is finite, so that JSON keeps it exactly."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NumericColumn(Fitted):
    """A number. `fill` is the training median; without one, a gap is an error.

    `low` and `high` span the values seen in training; mean and std are taken after imputation.
    """

    kind: Literal["numeric", "censored"]
    name: str
    fill: float | None = None
    mean: float = 0.0
    std: float = Field(1.0, ge=SMALLEST_STD)
    low: float = -LARGEST
    high: float = LARGEST
    missing_rate: float = Field(0.0, ge=0, lt=1)


class CategoricalColumn(Fitted):
    """One input per category; `mode`, the most frequent one in training, fills gaps.

    `unseen`: listed categories that no training row has, so that their inputs were never learned.
    """

    kind: Literal["categorical"]
    name: str
    categories: tuple[str, ...] = Field(min_length=1)
    mode: str
    unseen: tuple[str, ...] = ()
    missing_rate: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> CategoricalColumn:
        if self.mode not in self.categories:
            raise ValueError(f"mode {self.mode!r} of {self.name!r} is not among its categories")
        return self


Column = Annotated[NumericColumn | CategoricalColumn, Field(discriminator="kind")]


class InputColumn(NamedTuple):
    """Which inputs of a network a column of the table has: its values, and its gap flag if any."""

    inputs: tuple[int, ...]
    gap: int | None

    @property
    def positions(self) -> tuple[int, ...]:
        """All of them."""
        return self.inputs if self.gap is None else (*self.inputs, self.gap)


def width_of(columns: Sequence[InputColumn]) -> int:
    """T, the number of inputs of all columns."""
    return sum(len(column.positions) for column in columns)


class ImputerStep(Fitted):
    """Where column `target` is missing: `clip(x @ coefficients + intercept, low, high)`.

    `coefficients` covers all C columns; the target's own is 0.
    """

    target: int = Field(ge=0)
    coefficients: tuple[float, ...]
    intercept: float
    low: float
    high: float


def parts(column: Column) -> tuple[str, ...]:
    """Names of a column's inputs, without the indicator."""
    if isinstance(column, NumericColumn):
        return (column.name,)
    return tuple(f"{column.name}={category}" for category in column.categories)


def owners_of(columns: Sequence[Column]) -> list[Column]:
    """`[C]`: the column of the table that each column of the imputer comes from."""
    return [column for column in columns for _ in parts(column)]
