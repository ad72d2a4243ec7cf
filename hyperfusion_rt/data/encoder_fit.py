"""Fitting the encoder's columns and its imputer on the training rows."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hyperfusion_rt.config import Feature
from hyperfusion_rt.data.encoder_columns import (
    SMALLEST_STD,
    CategoricalColumn,
    Column,
    ImputerStep,
    NumericColumn,
    owners_of,
)
from hyperfusion_rt.data.table_file import (
    Row,
    is_missing,
    read_category,
    read_cell,
    read_number,
)
from hyperfusion_rt.errors import ConfigError, MissingExtraError, TableError

Float64 = npt.NDArray[np.float64]

_ROUNDS = 10
_NOTHING_KNOWN = "column {!r}: none of the {} training rows has a value; drop the feature"


def fit_column(feature: Feature, rows: Sequence[Row]) -> NumericColumn | CategoricalColumn:
    """The column as the training `rows` show it; mean and std are still those of `Column`.

    Raises:
        TableError: a bad cell, or no row has a value.
        ConfigError: a category is listed twice.
    """
    if feature.kind == "categorical":
        return _fit_categorical(feature, rows)
    name = feature.name
    read = [read_number(row, name, censored=feature.kind == "censored") for row in rows]
    known = [value for value in read if value is not None]
    if not known:
        raise TableError(_NOTHING_KNOWN.format(name, len(rows)), code="table-feature-empty")
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
        raise ConfigError(
            f"tabular: feature {name!r} lists a category twice: {categories}", code="config-invalid"
        )
    found = [read_category(row, name, categories) for row in rows]
    counts = Counter(category for category in found if category is not None)
    if not counts:
        raise TableError(_NOTHING_KNOWN.format(name, len(rows)), code="table-feature-empty")
    return CategoricalColumn(
        kind="categorical",
        name=name,
        categories=categories,
        mode=max(categories, key=lambda category: counts[category]),
        unseen=tuple(category for category in categories if not counts[category]),
        missing_rate=found.count(None) / len(rows),
    )


def standardised(columns: Sequence[Column], filled: Float64) -> tuple[Column, ...]:
    """The columns with the mean and population std of `filled [N, C]`."""
    mean, std = filled.mean(axis=0), filled.std(axis=0)
    rounding = len(filled) * np.finfo(np.float64).eps * np.abs(mean)
    std[std <= np.maximum(rounding, SMALLEST_STD)] = 1.0  # constant, but for rounding
    statistics = {
        owner.name: {"mean": m, "std": s}
        for owner, m, s in zip(owners_of(columns), mean.tolist(), std.tolist(), strict=True)
        if isinstance(owner, NumericColumn)
    }
    return tuple(column.model_copy(update=statistics.get(column.name)) for column in columns)


def fit_steps(x: Float64, columns: Sequence[Column]) -> tuple[tuple[ImputerStep, ...], int]:
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
        if isinstance(owners_of(columns)[target], NumericColumn):  # the others have no gaps left
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
