"""From a row of the table to the numbers that a network reads.

    encode(row) = [(impute(x) - mean) / std | one-hot | missing?]      float32 [T]

in the order of the table's features, each followed by its 0/1 missing indicator if it had gaps in
training. All statistics come from the training rows. Fitting the iterative imputer needs
scikit-learn; encoding needs NumPy alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from hyperfusion_rt.config import TableSpec
from hyperfusion_rt.data.encoder_columns import (
    CategoricalColumn,
    Column,
    Fitted,
    ImputerStep,
    InputColumn,
    NumericColumn,
    owners_of,
    parts,
)
from hyperfusion_rt.data.encoder_fit import Float64, fit_column, fit_steps, standardised
from hyperfusion_rt.data.table_file import (
    Row,
    Table,
    read_category,
    read_number,
    suggest,
    where,
)
from hyperfusion_rt.errors import ConfigError, TableError

Float32 = npt.NDArray[np.float32]


class TabularEncoder(Fitted):
    """A fitted encoder; `model_dump_json` and `model_validate_json` keep it bit for bit.

    The imputer sees C columns, the numbers and the one-hot inputs in feature order. It starts from
    the medians and applies `steps` in turn (chained equations: van Buuren & Groothuis-Oudshoorn,
    J. Stat. Softw. 2011). Without steps the medians stay.
    """

    columns: tuple[Column, ...]
    steps: tuple[ImputerStep, ...] = ()
    rounds: int = Field(0, ge=0)
    training_rows: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> TabularEncoder:
        numeric = [isinstance(owner, NumericColumn) for owner in owners_of(self.columns)]
        for step in self.steps:
            if len(step.coefficients) != len(numeric):
                raise ValueError(f"an imputer step needs {len(numeric)} coefficients")
            if step.target >= len(numeric) or not numeric[step.target]:
                raise ValueError(f"column {step.target} is no number that can be imputed")
        return self

    @classmethod
    def fit(cls, rows: Sequence[Row], spec: TableSpec) -> TabularEncoder:
        """Learn categories, fills, imputer, mean and std from `rows`: training rows only.

        Raises:
            TableError: no rows, a bad cell, or a feature without any value.
            ConfigError: a feature or a category is listed twice.
            MissingExtraError: `spec.imputer` is iterative and scikit-learn is not installed.
        """
        if not rows:
            raise TableError(
                "there are no training rows to fit the table's encoder on", code="table-empty"
            )
        names = [feature.name for feature in spec.features]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"tabular: a feature is listed twice in {', '.join(names)}", code="config-invalid"
            )
        columns: tuple[Column, ...] = tuple(fit_column(f, rows) for f in spec.features)
        draft = cls(columns=columns)
        x = draft.numbers(rows)
        steps, rounds = fit_steps(x, columns) if spec.imputer == "iterative" else ((), 0)
        draft = cls(columns=columns, steps=steps, rounds=rounds)
        columns = standardised(columns, draft.impute(x))
        return cls(columns=columns, steps=steps, rounds=rounds, training_rows=len(rows))

    @classmethod
    def passthrough(cls, width: int) -> TabularEncoder:
        """Columns `x0` ... `x{width-1}` hold encoded numbers already; a gap is an error."""
        return cls(columns=tuple(NumericColumn(kind="numeric", name=f"x{i}") for i in range(width)))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the T inputs: `AGE`, `AGE:missing`, `SEX=Female`, ..."""
        gaps = tuple(f"{column.name}:missing" for column in self.columns)
        names = (*(part for column in self.columns for part in parts(column)), *gaps)
        return tuple(names[position] for position in self.order)

    @property
    def width(self) -> int:
        """T, the number of inputs."""
        return len(self.names)

    @property
    def input_columns(self) -> tuple[InputColumn, ...]:
        """Where each column of the table stands among the T inputs."""
        found = []
        at = 0
        for column in self.columns:
            inputs = range(at, at + len(parts(column)))
            gap = inputs.stop if column.missing_rate > 0 else None
            found.append(InputColumn(tuple(inputs), gap))
            at = inputs.stop + (gap is not None)
        return tuple(found)

    def check_columns(self, table: Table, instead: Mapping[str, str] | None = None) -> None:
        """Check that the table has every column that encoding reads.

        Args:
            instead: for absent columns, what would read another column in their place.

        Raises:
            TableError: naming the missing columns, and close ones that the table has.
        """
        absent = [c.name for c in self.columns if c.name not in table.columns]
        if absent:
            named = ", ".join(f"{name!r}{suggest(name, table.columns)}" for name in absent)
            maps = [instead[name] for name in absent if name in instead] if instead else []
            advice = f"; or read others in their place: {'; '.join(maps)}" if maps else ""
            own = [name for name in table.columns if name not in table.sources]
            raise TableError(
                f"{table.path}: missing columns: {named} (the columns are "
                f"{', '.join(own)}); add them, empty where nothing is known{advice}",
                code="table-missing-column",
            )

    def encode(self, rows: Sequence[Row]) -> Float32:
        """`float32 [N, T]`; row n is `encode_row(rows[n])`, bit for bit.

        Raises:
            TableError: as `encode_row`, for the first bad row.
        """
        encoded = np.array([self.encode_row(row) for row in rows], np.float32)
        return encoded.reshape(len(rows), self.width)

    def encode_row(self, row: Row) -> Float32:
        """`float32 [T]`.

        Raises:
            TableError: an unknown category, text in a number, a number that is not finite, or an
                absent column; with the line, the column, the value and what is allowed.
        """
        encoded: Float32 = self.encode_cells(self.cells(row)[None])[0]
        return encoded

    def cells(self, row: Row) -> Float64:
        """`float64 [K]`: a row's cells, one per column of the table.

        A number, or the place of a category among its column's; NaN for a gap.

        Raises:
            TableError: as `encode_row`.
        """
        found: list[float | None] = []
        for column in self.columns:
            if isinstance(column, CategoricalColumn):
                category = read_category(row, column.name, column.categories)
                found.append(None if category is None else column.categories.index(category))
            else:
                found.append(self._number(row, column))
        return np.array([math.nan if value is None else value for value in found], np.float64)

    def encode_cells(self, cells: Float64) -> Float32:
        """`cells [N, K]`, as `cells` gives them, → `float32 [N, T]`.

        Many rows at once: a row's numbers are those of `encode_row`, bit for bit.
        """
        _, mean, std = self.affine
        scaled = (self.impute(self._expanded(cells)) - mean) / std
        gaps = np.isnan(cells)
        encoded: Float32 = np.concatenate([scaled, gaps], 1, dtype=np.float32, casting="same_kind")
        return encoded.take(self.order, 1)

    def _expanded(self, cells: Float64) -> Float64:
        """`cells [N, K]` → the C columns `[N, C]`: NaN where a number is missing."""
        found = np.empty((len(cells), len(self.owners)))
        at = 0
        for column, values in zip(self.columns, cells.T, strict=True):
            if isinstance(column, CategoricalColumn):
                count = len(column.categories)
                mode = column.categories.index(column.mode)
                chosen = np.where(np.isnan(values), mode, values)
                found[:, at : at + count] = chosen[:, None] == np.arange(count)
                at += count
            else:
                found[:, at] = values
                at += 1
        return found

    def numbers(self, rows: Sequence[Row]) -> Float64:
        """`float64 [N, C]`: the columns that the imputer sees, with NaN where a number is missing.

        Raises:
            TableError: as `encode_row`, for the first bad row.
        """
        cells = np.array([self.cells(row) for row in rows], np.float64)
        return self._expanded(cells.reshape(len(rows), len(self.columns)))

    def warnings(self, row: Row) -> list[str]:
        """What a reader should know of this row: unusual gaps, values that training had not.

        Raises:
            TableError: as `encode_row`.
        """
        pairs = zip(self.columns, self.cells(row).tolist(), strict=True)
        return [text for column, value in pairs if (text := unlike_training(column, value))]

    def stand_ins(self, row: Row) -> dict[str, float | str]:
        """What is put in the place of each gap of a row, by column: a number, or a category.

        Raises:
            TableError: as `encode_row`.
        """
        cells = self.cells(row)
        numbers = self.impute(self._expanded(cells[None]))[0]
        full = dict(zip((owner.name for owner in self.owners), numbers, strict=True))
        return {
            column.name: column.mode
            if isinstance(column, CategoricalColumn)
            else float(full[column.name])
            for column, cell in zip(self.columns, cells, strict=True)
            if math.isnan(cell)
        }

    @cached_property
    def owners(self) -> list[Column]:
        """`[C]`: the column of the table that each column of the imputer comes from."""
        return owners_of(self.columns)

    @cached_property
    def affine(self) -> Float64:
        """`[3, C]`: fill, mean and std; one-hot inputs are never missing and stay as they are."""
        numbers = [
            (owner.fill or 0.0, owner.mean, owner.std)
            if isinstance(owner, NumericColumn)
            else (0.0, 0.0, 1.0)
            for owner in self.owners
        ]
        affine: Float64 = np.array(numbers, np.float64).reshape(-1, 3).T
        return affine

    @cached_property
    def order(self) -> npt.NDArray[np.intp]:
        """`[T]`: where each input stands in the C columns followed by one gap flag a feature."""
        flags = len(self.owners)
        order: list[int] = []
        at = 0
        for index, column in enumerate(self.columns):
            inputs = range(at, at + len(parts(column)))
            order += inputs
            at = inputs.stop
            if column.missing_rate > 0:
                order.append(flags + index)
        return np.array(order, np.intp)

    @cached_property
    def _coefficients(self) -> list[Float64]:
        return [np.array(step.coefficients, np.float64) for step in self.steps]

    @staticmethod
    def _number(row: Row, column: NumericColumn) -> float | None:
        number = read_number(row, column.name, censored=column.kind == "censored")
        if number is None and column.fill is None:
            raise TableError(
                f"{where(row, column.name)}: is empty, and this model has nothing to put "
                "in its place; give a number",
                code="table-missing-value",
            )
        return number

    def impute(self, x: Float64) -> Float64:
        """`x [N, C]`, as `numbers` gives it, without NaN; a row never depends on the others."""
        missing = np.isnan(x)
        if not missing.any():
            return x
        filled = np.where(missing, self.affine[0], x)
        for pattern, rows in by_pattern(missing):
            block = filled[rows]
            for step, coefficients in zip(self.steps, self._coefficients, strict=True):
                if pattern[step.target]:
                    # Not a matrix product: that may add up in another order for another N.
                    values = (block * coefficients).sum(1) + step.intercept
                    block[:, step.target] = np.minimum(np.maximum(values, step.low), step.high)
            filled[rows] = block
        return filled


def unlike_training(column: Column, cell: float) -> str:
    """What a reader should know of a cell (as `TabularEncoder.cells` has it): nothing of most."""
    name = column.name
    if math.isnan(cell):
        rare = column.missing_rate == 0
        return f"{name} is missing and was imputed; training had no such gap" if rare else ""
    if isinstance(column, CategoricalColumn):
        category = column.categories[int(cell)]
        return f"{name} {category}: no training row had it" if category in column.unseen else ""
    low, high = column.low, column.high
    if low <= cell <= high:
        return ""
    return f"{name} {cell:g} is outside the training range {low:g} to {high:g}"


def by_pattern(
    missing: npt.NDArray[np.bool_],
) -> list[tuple[npt.NDArray[np.bool_], npt.NDArray[np.intp] | slice]]:
    """The different rows of `missing [N, C]`, each with the places where it stands."""
    if len(missing) == 1 or (missing[1:] == missing[0]).all():
        return [(missing[0], slice(None))]
    codes = np.packbits(missing, axis=1)
    _, first, of = np.unique(codes.view(f"V{codes.shape[1]}"), True, True)
    return [(missing[i], np.flatnonzero(of.reshape(-1) == n)) for n, i in enumerate(first)]


def read_target(row: Row, spec: TableSpec) -> int | float | None:
    """The class index (in `spec.classes` order), or the number if there are no classes.

    None when the cell is missing. A class without listed values means its own name.

    Raises:
        TableError: an unknown label, no number, or no such column.
        ConfigError: two classes list the same value.
    """
    if not spec.classes:
        return read_number(row, spec.target)
    meanings = [(v, c) for c, values in spec.classes.items() for v in values or (c,)]
    meaning: dict[str, str] = {}
    for value, name in meanings:
        if meaning.setdefault(value.casefold(), name) != name:
            raise ConfigError(f"tabular.classes: two classes mean {value!r}", code="config-invalid")
    found = read_category(row, spec.target, [value for value, _ in meanings])
    return None if found is None else list(spec.classes).index(meaning[found.casefold()])
