"""From a row of the table to the numbers that a network reads.

    encode(row) = [(impute(x) - mean) / std | one-hot | missing?]      float32 [T]

in the order of the table's features, each followed by its 0/1 missing indicator if it had gaps in
training. All statistics come from the training rows. Fitting the iterative imputer needs
scikit-learn; encoding needs NumPy alone.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, model_validator

from hyperfusion_rt.config import Feature, Frozen, TableSpec
from hyperfusion_rt.data.table_file import (
    LARGEST,
    Row,
    Table,
    is_missing,
    read_category,
    read_cell,
    read_number,
    suggest,
    where,
)
from hyperfusion_rt.errors import ConfigError, MissingExtraError, TableError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_SMALLEST_STD = 1e-20
_ROUNDS = 10
_NOTHING_KNOWN = "column {!r}: none of the {} training rows has a value; drop the feature"


class _Fitted(Frozen):
    """Stored in manifests: every number is finite, so that JSON keeps it exactly."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NumericColumn(_Fitted):
    """A number. `fill` is the training median; without one, a gap is an error.

    `low` and `high` span the values seen in training; mean and std are taken after imputation.
    """

    kind: Literal["numeric", "censored"]
    name: str
    fill: float | None = None
    mean: float = 0.0
    std: float = Field(1.0, ge=_SMALLEST_STD)
    low: float = -LARGEST
    high: float = LARGEST
    missing_rate: float = Field(0.0, ge=0, lt=1)


class CategoricalColumn(_Fitted):
    """One input per category; `mode`, the most frequent one in training, fills gaps."""

    kind: Literal["categorical"]
    name: str
    categories: tuple[str, ...] = Field(min_length=1)
    mode: str
    missing_rate: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> CategoricalColumn:
        if self.mode not in self.categories:
            raise ValueError(f"mode {self.mode!r} of {self.name!r} is not among its categories")
        return self


Column = Annotated[NumericColumn | CategoricalColumn, Field(discriminator="kind")]


class ImputerStep(_Fitted):
    """Where column `target` is missing: `clip(x @ coefficients + intercept, low, high)`.

    `coefficients` covers all C columns; the target's own is 0.
    """

    target: int = Field(ge=0)
    coefficients: tuple[float, ...]
    intercept: float
    low: float
    high: float


class TabularEncoder(_Fitted):
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
        numeric = [isinstance(owner, NumericColumn) for owner in _owners(self.columns)]
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
            raise TableError("there are no training rows to fit the table's encoder on")
        names = [feature.name for feature in spec.features]
        if len(set(names)) < len(names):
            raise ConfigError(f"tabular: a feature is listed twice in {', '.join(names)}")
        columns: tuple[Column, ...] = tuple(_fit_column(f, rows) for f in spec.features)
        draft = cls(columns=columns)
        x = np.stack([draft._read(row)[0] for row in rows])
        steps, rounds = _fit_steps(x, columns) if spec.imputer == "iterative" else ((), 0)
        draft = cls(columns=columns, steps=steps, rounds=rounds)
        columns = _standardised(columns, np.stack([draft._impute(row) for row in x]))
        return cls(columns=columns, steps=steps, rounds=rounds, training_rows=len(rows))

    @classmethod
    def passthrough(cls, width: int) -> TabularEncoder:
        """Columns `x0` ... `x{width-1}` hold encoded numbers already; a gap is an error."""
        return cls(columns=tuple(NumericColumn(kind="numeric", name=f"x{i}") for i in range(width)))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the T inputs: `AGE`, `AGE:missing`, `SEX=Female`, ..."""
        gaps = tuple(f"{column.name}:missing" for column in self.columns)
        names = (*(part for column in self.columns for part in _parts(column)), *gaps)
        return tuple(names[position] for position in self.order)

    @property
    def width(self) -> int:
        """T, the number of inputs."""
        return len(self.names)

    def check_columns(self, table: Table) -> None:
        """Check that the table has every column that encoding reads.

        Raises:
            TableError: naming the missing columns, and close ones that the table has.
        """
        absent = [c.name for c in self.columns if c.name not in table.columns]
        if absent:
            named = ", ".join(f"{name!r}{suggest(name, table.columns)}" for name in absent)
            raise TableError(
                f"{table.path}: missing columns: {named} (the columns are "
                f"{', '.join(table.columns)}); add them, empty where nothing is known"
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
        x, gaps = self._read(row)
        _, mean, std = self.affine
        scaled = (self._impute(x) - mean) / std
        return np.concatenate([scaled, gaps])[self.order].astype(np.float32)

    def warnings(self, row: Row) -> list[str]:
        """What a reader should know of this row: unusual gaps, values outside training's range.

        Raises:
            TableError: as `encode_row`.
        """
        x, gaps = self._read(row)
        values = dict(zip((owner.name for owner in _owners(self.columns)), x, strict=True))
        found = []
        for column, gap in zip(self.columns, gaps, strict=True):
            if gap and column.missing_rate == 0:
                found.append(f"{column.name} is missing and was imputed; training had no such gap")
            elif isinstance(column, NumericColumn) and not gap:
                value, low, high = values[column.name], column.low, column.high
                if not low <= value <= high:
                    found.append(
                        f"{column.name} {value:g} is outside the training range {low:g} to {high:g}"
                    )
        return found

    @cached_property
    def owners(self) -> list[Column]:
        """`[C]`: the column of the table that each column of the imputer comes from."""
        return _owners(self.columns)

    @cached_property
    def affine(self) -> Float64:
        """`[3, C]`: fill, mean and std; one-hot inputs are never missing and stay as they are."""
        numbers = [
            (owner.fill or 0.0, owner.mean, owner.std)
            if isinstance(owner, NumericColumn)
            else (0.0, 0.0, 1.0)
            for owner in _owners(self.columns)
        ]
        affine: Float64 = np.array(numbers, np.float64).reshape(-1, 3).T
        return affine

    @cached_property
    def order(self) -> npt.NDArray[np.intp]:
        """`[T]`: where each input stands in the C columns followed by one gap flag a feature."""
        flags = len(_owners(self.columns))
        order: list[int] = []
        at = 0
        for index, column in enumerate(self.columns):
            inputs = range(at, at + len(_parts(column)))
            order += inputs
            at = inputs.stop
            if column.missing_rate > 0:
                order.append(flags + index)
        return np.array(order, np.intp)

    @cached_property
    def _coefficients(self) -> list[Float64]:
        return [np.array(step.coefficients, np.float64) for step in self.steps]

    def _read(self, row: Row) -> tuple[Float64, Float64]:
        """The C columns, NaN where a number is missing, and one 0/1 gap flag per feature."""
        values: list[float] = []
        gaps = []
        for column in self.columns:
            if isinstance(column, CategoricalColumn):
                category = read_category(row, column.name, column.categories)
                chosen = column.mode if category is None else category
                values += [float(name == chosen) for name in column.categories]
                gaps.append(float(category is None))
                continue
            number = read_number(row, column.name, censored=column.kind == "censored")
            if number is None and column.fill is None:
                raise TableError(
                    f"{where(row, column.name)}: is empty, and this model has nothing to put "
                    "in its place; give a number"
                )
            values.append(math.nan if number is None else number)
            gaps.append(float(number is None))
        return np.array(values, np.float64), np.array(gaps, np.float64)

    def _impute(self, x: Float64) -> Float64:
        """`[C]` without NaN. One row at a time, so that a row's result never depends on others."""
        missing = np.isnan(x)
        if not missing.any():
            return x
        filled = np.where(missing, self.affine[0], x)
        for step, coefficients in zip(self.steps, self._coefficients, strict=True):
            if missing[step.target]:
                value = float(filled @ coefficients) + step.intercept
                filled[step.target] = min(max(value, step.low), step.high)
        return filled


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
            raise ConfigError(f"tabular.classes: two classes mean {value!r}")
    found = read_category(row, spec.target, [value for value, _ in meanings])
    return None if found is None else list(spec.classes).index(meaning[found.casefold()])


def _parts(column: Column) -> tuple[str, ...]:
    """Names of a column's inputs, without the indicator."""
    if isinstance(column, NumericColumn):
        return (column.name,)
    return tuple(f"{column.name}={category}" for category in column.categories)


def _owners(columns: Sequence[Column]) -> list[Column]:
    """`[C]`: the column of the table that each column of the imputer comes from."""
    return [column for column in columns for _ in _parts(column)]


def _fit_column(feature: Feature, rows: Sequence[Row]) -> NumericColumn | CategoricalColumn:
    if feature.kind == "categorical":
        return _fit_categorical(feature, rows)
    name = feature.name
    read = [read_number(row, name, censored=feature.kind == "censored") for row in rows]
    known = [value for value in read if value is not None]
    if not known:
        raise TableError(_NOTHING_KNOWN.format(name, len(rows)))
    return NumericColumn(
        kind=feature.kind,
        name=name,
        fill=float(np.median(known)),
        low=min(known),
        high=max(known),
        missing_rate=1 - len(known) / len(rows),
    )


def _fit_categorical(feature: Feature, rows: Sequence[Row]) -> CategoricalColumn:
    name, categories = feature.name, feature.categories
    if not categories:
        # The sort before folding makes the spelling that is kept independent of the rows' order.
        texts = sorted({read_cell(row, name) for row in rows}, reverse=True)
        learned = {text.casefold(): text for text in texts if not is_missing(text)}
        categories = tuple(learned[key] for key in sorted(learned))
    if len({category.casefold() for category in categories}) < len(categories):
        raise ConfigError(f"tabular: feature {name!r} lists a category twice: {categories}")
    found = [read_category(row, name, categories) for row in rows]
    counts = Counter(category for category in found if category is not None)
    if not counts:
        raise TableError(_NOTHING_KNOWN.format(name, len(rows)))
    return CategoricalColumn(
        kind="categorical",
        name=name,
        categories=categories,
        mode=max(categories, key=lambda category: counts[category]),
        missing_rate=found.count(None) / len(rows),
    )


def _standardised(columns: Sequence[Column], filled: Float64) -> tuple[Column, ...]:
    """The columns with the mean and population std of `filled [N, C]`."""
    mean, std = filled.mean(axis=0), filled.std(axis=0)
    rounding = len(filled) * np.finfo(np.float64).eps * np.abs(mean)
    std[std <= np.maximum(rounding, _SMALLEST_STD)] = 1.0  # constant, but for rounding
    statistics = {
        owner.name: {"mean": m, "std": s}
        for owner, m, s in zip(_owners(columns), mean.tolist(), std.tolist(), strict=True)
        if isinstance(owner, NumericColumn)
    }
    return tuple(column.model_copy(update=statistics.get(column.name)) for column in columns)


def _fit_steps(x: Float64, columns: Sequence[Column]) -> tuple[tuple[ImputerStep, ...], int]:
    """Steps and rounds of scikit-learn's IterativeImputer, fitted on `x [N, C]`."""
    if x.shape[1] < 2:  # nothing to predict from
        return (), 0
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.experimental import enable_iterative_imputer  # noqa: F401
        from sklearn.impute import IterativeImputer
    except ImportError:
        raise MissingExtraError("scikit-learn", "train", "fitting the iterative imputer") from None
    low, high = np.nanmin(x, axis=0), np.nanmax(x, axis=0)
    # An imputed value stays within the training range. A constant column, too, needs low < high.
    high = np.maximum(high, np.nextafter(low, np.inf))
    # Its default estimator is BayesianRidge.
    imputer = IterativeImputer(
        initial_strategy="median", max_iter=_ROUNDS, min_value=low, max_value=high
    )
    with warnings.catch_warnings():
        # The number of rounds is part of the protocol; stopping there is no fault of the table.
        warnings.simplefilter("ignore", ConvergenceWarning)
        imputer.fit(x)
    steps = []
    for target, others, regression in imputer.imputation_sequence_:
        if isinstance(_owners(columns)[target], NumericColumn):  # the others have no gaps left
            coefficients = np.zeros(x.shape[1])
            coefficients[others] = regression.coef_
            step = ImputerStep(
                target=int(target),
                coefficients=tuple(coefficients.tolist()),
                intercept=float(regression.intercept_),
                low=float(low[target]),
                high=float(high[target]),
            )
            steps.append(step)
    return tuple(steps), int(imputer.n_iter_)
