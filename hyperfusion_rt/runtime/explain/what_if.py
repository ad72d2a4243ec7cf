"""What the model would answer to the same scan with another row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.data.encoder import by_pattern, unlike_training
from hyperfusion_rt.data.encoder_columns import CategoricalColumn, Column, NumericColumn
from hyperfusion_rt.data.table_file import LARGEST, Row, is_missing, read_number
from hyperfusion_rt.errors import TableError
from hyperfusion_rt.runtime.explain.answers import Cell, WhatIf
from hyperfusion_rt.runtime.explain.question import Question, column_index, shown

Floats = NDArray[np.float64]
Vary = Mapping[str, Sequence[Cell]]

MOST_POINTS = 1_000_000
# So many values are drawn for what is missing, and fewer where there are many points; none beyond.
_DRAWS, _FEWEST_DRAWS, _ALL_DRAWS = 200, 20, 400_000
_BAND = (0.05, 0.95)


def parse_vary(texts: Sequence[str]) -> dict[str, list[Cell]]:
    """Columns with their values, from `AGE=55:90:1` (the last included) and `APOE4=0,1,2`.

    An empty value, or `NA`, is a gap.

    Raises:
        TableError: it is not written so, or a range is empty.
    """
    found: dict[str, list[Cell]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not (equals and name.strip() and values.strip()):
            raise _wrong(text, "write it as COLUMN=FROM:TO:STEP or COLUMN=VALUE,VALUE")
        if name.strip() in found:
            raise _wrong(text, f"{name.strip()} is varied twice; name each column once")
        parts = values.split(":")
        if len(parts) in (2, 3) and all(_number(part) is not None for part in parts):
            found[name.strip()] = _range(text, [float(part) for part in parts])
        else:
            cells = [value.strip() for value in values.split(",")]
            found[name.strip()] = [None if is_missing(cell) else cell for cell in cells]
    return found


def _range(text: str, limits: list[float]) -> list[Cell]:
    low, high, step = (*limits, 1.0)[:3]
    if not step > 0:
        raise _wrong(text, f"the step is {step:g}; it must be above 0")
    if low > high:
        raise _wrong(text, f"the range is empty: {low:g} is above {high:g}; write {high:g}:{low:g}")
    count = int((high - low) / step + 1e-9) + 1
    if count > MOST_POINTS:
        raise _wrong(text, f"these are {count:,} values; take a larger step")
    return [low + step * i for i in range(count)]


def _number(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if abs(value) <= LARGEST else None


def _wrong(text: str, why: str) -> TableError:
    return TableError(f"`vary` {text}: {why}", code="what-if-wrong-values")


def what_if(question: Question, vary: Vary) -> WhatIf:
    """The answers to every combination of the values in `vary`.

    Raises:
        TableError: a column or a value that the model does not know, or too many points.
        EngineError: an answer is not finite.
    """
    if not isinstance(vary, Mapping):
        raise TableError(
            "`vary`: give a mapping of columns to their values", code="what-if-wrong-values"
        )
    if not vary:
        raise TableError("`vary`: name a column to vary", code="what-if-wrong-values")
    places = [column_index(question.columns, name, "vary") for name in vary]
    if len(set(places)) < len(places):
        raise TableError("`vary`: a column is named twice", code="what-if-wrong-values")
    values = [
        values_of(question.columns[place], cells)
        for place, cells in zip(places, vary.values(), strict=True)
    ]
    shown = [
        _shown(question.columns[place], column)
        for place, column in zip(places, values, strict=True)
    ]
    count = math.prod(len(column) for column in values)
    if count > MOST_POINTS:
        raise TableError(
            f"`vary`: these are {count:,} points, and at most {MOST_POINTS:,} are answered; vary "
            "fewer columns, or take larger steps",
            code="what-if-wrong-values",
        )
    points = np.array(list(itertools.product(*values)))
    cells = np.repeat(question.cells[None], count, 0)
    cells[:, places] = points
    answer, given = question.answers(question.cells[None])[0], question.answers(cells)
    low, high = _band(question, cells, _DRAWS)
    varied = np.isin(np.arange(len(question.cells)), places)
    return WhatIf(
        tuple(question.columns[place].name for place in places),
        tuple(itertools.product(*shown)),
        given,
        low,
        high,
        tuple(unusual(question, cells, np.broadcast_to(varied, cells.shape))),
        tuple(question.shown(place, question.cells[place]) for place in places),
        answer,
    )


def values_of(column: Column, cells: Sequence[Cell]) -> list[float]:
    """Cells as the encoder's numbers; NaN for a gap.

    Raises:
        TableError: no number, no category of the column, or a gap that nothing can fill.
    """
    if isinstance(cells, str | bytes) or not isinstance(cells, Iterable):
        raise TableError(
            f"`vary` {column.name}: give a list of values, not {cells!r}",
            code="what-if-wrong-values",
        )
    cells = list(cells)
    if not cells:
        raise TableError(f"`vary` {column.name}: has no value", code="what-if-wrong-values")
    return [_value(column, cell) for cell in cells]


def _value(column: Column, cell: Cell) -> float:
    if isinstance(cell, float | np.floating) and math.isnan(cell):
        cell = None
    if isinstance(column, CategoricalColumn):
        folded = [name.casefold() for name in column.categories]
        if cell is None:
            return math.nan
        text = f"{cell:g}" if isinstance(cell, (int, float)) else str(cell)
        if text.casefold() in folded:
            return float(folded.index(text.casefold()))
        raise TableError(
            f"`vary` {column.name}={text}: is not a known value; allowed: "
            f"{', '.join(column.categories)}",
            code="table-unknown-category",
        )
    if cell is None:
        if column.fill is None:
            raise TableError(
                f"`vary` {column.name}: a gap, and this model has nothing to put in its place",
                code="table-missing-value",
            )
        return math.nan
    number = _number(cell)
    if number is None and column.kind == "censored":
        number = _bound(column.name, str(cell))
    if number is None:
        raise TableError(
            f"`vary` {column.name}={cell}: is no usable number", code="table-not-a-number"
        )
    return number


def _bound(name: str, text: str) -> float | None:
    """Of `>1700`, as a table may have it."""
    try:
        return read_number(Row(name, None, 1, {name: text}), name, censored=True)
    except TableError:
        return None


class Curves:
    """Asks many cases of one model about each column by itself; what is the same for all is made
    once: the column's training range in `points`, or its categories."""

    def __init__(self, columns: Sequence[Column], points: int = 25, draws: int = 20) -> None:
        self._columns, self._draws = columns, draws
        self._grids = [_grid(column, points) for column in columns]
        ends = np.cumsum([len(grid) for grid in self._grids])
        self._parts = [slice(e - len(g), e) for e, g in zip(ends, self._grids, strict=True)]
        self._varied = np.zeros((ends[-1], len(columns)), bool)
        for place, part in enumerate(self._parts):
            self._varied[part, place] = True
        self._texts = [
            tuple(zip(_shown(column, grid), strict=True))
            for column, grid in zip(columns, self._grids, strict=True)
        ]

    def of(self, question: Question) -> list[WhatIf]:
        """One `WhatIf` for each column, in their order.

        Raises:
            EngineError: an answer is not finite.
        """
        together = np.repeat(question.cells[None], 1 + len(self._varied), 0)
        for place, (part, grid) in enumerate(zip(self._parts, self._grids, strict=True)):
            together[1:][part, place] = grid
        answers = question.answers(together)
        own, values = answers[0], answers[1:]
        low, high = _band(question, together[1:], self._draws)
        odd = unusual(question, together[1:], self._varied)
        return [
            WhatIf(
                (column.name,),
                texts,
                values[part],
                None if low is None else low[part],
                None if high is None else high[part],
                tuple(odd[part]),
                (question.shown(place, question.cells[place]),),
                own,
            )
            for place, (column, texts, part) in enumerate(
                zip(self._columns, self._texts, self._parts, strict=True)
            )
        ]


def _grid(column: Column, points: int) -> Floats:
    if isinstance(column, CategoricalColumn):
        return np.arange(len(column.categories), dtype=np.float64)
    if column.low == column.high:
        return np.array([column.low])
    return np.linspace(column.low, column.high, points)


def _shown(column: Column, values: Sequence[float] | Floats) -> list[Cell]:
    """The cells of a column as a person writes them."""
    return [shown(column, float(value)) for value in values]


def _band(question: Question, cells: Floats, most: int) -> tuple[Floats | None, Floats | None]:
    """The 5th and 95th percentile of the answers if what is missing had been measured.

    As the network reads a measured value: without its gap flag.
    """
    summary = question.summary
    draws = min(most, _ALL_DRAWS // len(cells))
    if summary is None or not np.isnan(cells).any() or draws < _FEWEST_DRAWS:
        return None, None
    edges = np.empty((2, len(cells), question.answers(cells[:1]).shape[1]))
    for pattern, rows in by_pattern(np.isnan(cells)):
        drawn = summary.draw(cells[rows], draws if pattern.any() else 1)
        answers = question.answers(drawn.reshape(-1, drawn.shape[-1]))
        answers = answers.reshape(*drawn.shape[:2], -1)
        edges[:, rows] = np.quantile(answers, _BAND, axis=1)
    return edges[0], edges[1]


def unusual(question: Question, cells: Floats, varied: NDArray[np.bool_]) -> list[str]:
    """Why each of the rows `cells [P, K]` is unlike the training table; empty where it is not.

    Args:
        varied: `[P, K]`: the cells that are not the row's own.
    """
    summary = question.summary
    texts = [""] * len(cells) if summary is None else summary.unusual(cells, varied)
    for place, column in enumerate(question.columns):
        rows = np.flatnonzero(varied[:, place])
        values = cells[rows, place]
        if isinstance(column, NumericColumn):
            inside = (column.low <= values) & (values <= column.high)
            rows, values = rows[~inside], values[~inside]
        for row, value in zip(rows.tolist(), values.tolist(), strict=True):
            if text := unlike_training(column, value):
                texts[row] = f"{text}; {texts[row]}" if texts[row] else text
    return texts
