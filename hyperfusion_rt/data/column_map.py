"""Reading a table whose columns and cells are not called as in the training.

A map says of a column of the model which column of the table stands for it, and what its cells
mean. As text:

    PTGENDER=sex:M=Male,F=Female,O=     COLUMN_OF_THE_MODEL=COLUMN_OF_THE_TABLE[:CELL=VALUE,...]

Cells that it does not name are read as they are, and judged as in the model's own column.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import ValidationError

from hyperfusion_rt.config import MappedColumn, TableSpec
from hyperfusion_rt.data.encoder_columns import CategoricalColumn, Column
from hyperfusion_rt.data.table_file import (
    LARGEST,
    Row,
    Table,
    read_category,
    read_number,
    suggest,
)
from hyperfusion_rt.errors import ConfigError, TableError

GRAMMAR = "write it as PTGENDER=sex:M=Male,F=Female (the model's column first), or as AGE=age"
_CAPPED = re.compile(r"(\d+(?:\.\d+)?)\s*\+", re.ASCII)
_SHOWN = 8  # cells in a note


@dataclass(frozen=True)
class ModelColumn:
    """A column that a model reads, or its target.

    `categories`: of a categorical one; empty where they are still to be learnt. `low`, `high`: the
    numbers of the training.
    """

    name: str
    kind: Literal["numeric", "censored", "categorical"]
    categories: tuple[str, ...] = ()
    low: float = -LARGEST
    high: float = LARGEST
    is_target: bool = False


@dataclass(frozen=True)
class Reading:
    """How a column of the model is read from the table's column `column`.

    `cells`: what cells mean, by their text in small letters; `doubtful`: those of them that are a
    warning. `capped`: `89+` is read as 89, with a warning. `why`: who says so.
    """

    column: str
    why: str
    cells: Mapping[str, str] = field(default_factory=dict)
    doubtful: frozenset[str] = frozenset()
    capped: bool = False

    def read(self, cell: str) -> tuple[str, str]:
        """What a cell means, and what is to be said of it."""
        key = cell.strip().casefold()
        capped = _CAPPED.fullmatch(key) if self.capped else None
        value = capped[1] if capped else self.cells.get(key, cell)
        if not capped and key not in self.doubtful:
            return value, ""
        meaning = value or "missing: the model does not know it"
        return value, f"column {self.column!r} says {cell!r}, which is read as {meaning}"


# ---- what a model reads


def columns_of_spec(spec: TableSpec) -> dict[str, ModelColumn]:
    """The columns that a configuration names, by name."""
    found = [ModelColumn(f.name, f.kind, f.categories) for f in spec.features]
    return {column.name: column for column in (*found, _target(spec))}


def columns_of_members(
    members: Sequence[Sequence[Column]], spec: TableSpec
) -> dict[str, ModelColumn]:
    """The columns that an artifact's members were fitted on, and its target, by name.

    A category counts where all members know it; the range is that of all.
    """
    found: dict[str, ModelColumn] = {}
    for same in zip(*members, strict=True):
        first = same[0]
        if isinstance(first, CategoricalColumn):
            others = [c.categories for c in same if isinstance(c, CategoricalColumn)]
            known = tuple(c for c in first.categories if all(c in other for other in others))
            found[first.name] = ModelColumn(first.name, first.kind, known)
        else:
            numbers = [c for c in same if not isinstance(c, CategoricalColumn)]
            low, high = min(c.low for c in numbers), max(c.high for c in numbers)
            found[first.name] = ModelColumn(first.name, first.kind, (), low, high)
    found.setdefault(spec.target, _target(spec))
    return found


def _target(spec: TableSpec) -> ModelColumn:
    kind: Literal["categorical", "numeric"] = "categorical" if spec.classes else "numeric"
    return ModelColumn(spec.target, kind, spec.class_values, is_target=True)


# ---- maps as text


def parse_map(texts: Iterable[str]) -> dict[str, MappedColumn]:
    """Maps by the model's column.

    Raises:
        ConfigError: a text that is no map, two maps of one column, a cell with two meanings.
    """
    found: dict[str, MappedColumn] = {}
    for text in texts:
        name, mapped = _parse(text)
        if name in found:
            raise ConfigError(
                f"`map` {text}: there is another map of {name!r}; give one for each column",
                code="option-wrong",
            )
        found[name] = mapped
    return found


def _parse(text: str) -> tuple[str, MappedColumn]:
    name, _, rest = (part.strip() for part in text.partition("="))
    column, colon, cells = (part.strip() for part in rest.partition(":"))
    pairs = [[part.strip() for part in pair.split("=")] for pair in cells.split(",")]
    good = not colon or all(len(pair) == 2 and pair[0] for pair in pairs)
    if not (name and column and good) or "=" in column:
        raise ConfigError(f"`map` {text}: is no map; {GRAMMAR}", code="option-wrong")
    values: dict[str, str] = {}
    for cell, value in pairs if colon else []:
        if values.setdefault(cell, value) != value:
            raise ConfigError(
                f"`map` {text}: {cell!r} is both {values[cell]!r} and {value!r}; keep one",
                code="option-wrong",
            )
    try:
        return name, MappedColumn(column=column, values=values)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"`map` {text}: {message}", code="option-wrong") from None


def as_text(name: str, mapped: MappedColumn) -> str:
    """A map as `parse_map` reads it."""
    cells = ",".join(f"{cell}={value}" for cell, value in mapped.values.items())
    return f"{name}={mapped.column}" + (f":{cells}" if cells else "")


# ---- maps and a table


def asked_readings(
    table: Table, columns: Mapping[str, ModelColumn], maps: Mapping[str, MappedColumn]
) -> dict[str, Reading]:
    """Of maps that somebody has given with this table: they go before the table's own columns.

    Raises:
        ConfigError: the model has no such column.
        TableError: the table has no such column, or the model has no such category.
    """
    found = {}
    for name, mapped in maps.items():
        said = f"`map` {as_text(name, mapped)}"
        if name not in columns:
            raise ConfigError(
                f"{said}: the model has no column {name!r}{suggest(name, columns)} "
                f"(it has {', '.join(columns)})",
                code="option-wrong",
            )
        column = find_column(table.columns, mapped.column)
        if column is None:
            raise TableError(
                f"{table.path}: {said}: there is no column {mapped.column!r}"
                f"{suggest(mapped.column, table.columns)} "
                f"(the columns are {', '.join(table.columns)})",
                code="table-missing-column",
            )
        _check_values(said, columns[name], mapped)
        found[name] = _reading(column, mapped, "as asked for")
    return found


def own_readings(
    table: Table, columns: Mapping[str, ModelColumn], maps: Mapping[str, MappedColumn], why: str
) -> dict[str, Reading]:
    """Of `tabular.map`, for columns that the table lacks.

    Raises:
        TableError: the model has no such category.
    """
    found = {}
    for name, mapped in maps.items():
        column = find_column(table.columns, mapped.column)
        if name not in columns or name in table.columns or column is None:
            continue
        _check_values(f"tabular.map {as_text(name, mapped)}", columns[name], mapped)
        found[name] = _reading(column, mapped, why)
    return found


def find_column(columns: Iterable[str], name: str) -> str | None:
    """The column `name`, or the only one that differs from it in case alone."""
    alike = [column for column in columns if column.casefold() == name.casefold()]
    return name if name in alike else alike[0] if len(alike) == 1 else None


def _reading(column: str, mapped: MappedColumn, why: str) -> Reading:
    cells = {cell.strip().casefold(): value.strip() for cell, value in mapped.values.items()}
    return Reading(column, why, cells)


def _check_values(said: str, column: ModelColumn, mapped: MappedColumn) -> None:
    """That every cell means something that the model knows, or nothing."""
    for value in mapped.values.values():
        row = Row("", None, 0, {column.name: value})
        try:
            if column.kind != "categorical":
                read_number(row, column.name, censored=column.kind == "censored")
            elif column.categories:
                read_category(row, column.name, column.categories)
        except TableError as error:
            allowed = ", ".join(column.categories) or "numbers"
            raise TableError(
                f"{said}: {value!r} is not a known value of {column.name!r}; allowed: {allowed}, "
                "or empty",
                code=error.code,
            ) from None


def read_through(table: Table, readings: Mapping[str, Reading]) -> Table:
    """`table` with the columns of `readings`, by the model's names; its notes say what was read.

    The given table is not changed.
    """
    if not readings:
        return table
    changed: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in readings}
    sources = {name: r.column for name, r in readings.items() if r.column != name}
    rows = []
    for row in table.rows:
        values, warnings = dict(row.values), list(row.warnings)
        for name, reading in readings.items():
            cell = row.values[reading.column]
            values[name], warning = reading.read(cell)
            if values[name] != cell:
                changed[name][cell, values[name]] += 1
            if warning:
                warnings.append(warning)
        rows.append(
            replace(row, values=values, sources=sources, warnings=tuple(dict.fromkeys(warnings)))
        )
    notes = [
        f"{table.path.name}: {note}"
        for name, reading in readings.items()
        for note in _notes(name, reading, changed[name], table)
    ]
    columns = tuple(dict.fromkeys((*table.columns, *readings)))
    return replace(table, columns=columns, rows=rows, notes=(*table.notes, *notes), sources=sources)


def _notes(
    name: str, reading: Reading, changed: Counter[tuple[str, str]], table: Table
) -> list[str]:
    own = reading.column == name
    shown = [
        f"{cell!r} as {repr(value) if value else 'missing'} in {count} row{'s' * (count > 1)}"
        for (cell, value), count in changed.most_common(_SHOWN)
    ]
    if len(changed) > _SHOWN:
        shown.append(f"{len(changed) - _SHOWN} more values")
    if own and not shown:
        return []
    text = f"{name!r} is read from column {reading.column!r}, {reading.why}"
    if own:
        text = f"column {name!r} is read {reading.why}"
    elif name in table.columns:
        text += f", and not from the table's own column {name!r}"
    return [": ".join(filter(None, (text, ", ".join(shown))))]
