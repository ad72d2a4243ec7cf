"""The age and the sex of participants, as BIDS writes them, for a model that calls them otherwise.

BIDS has columns `age`, in years, where `89+` hides older ages, and `sex`, with male (`M`), female
(`F`) and other (`O`), each in several spellings:
https://bids-specification.readthedocs.io/en/stable/modality-agnostic-files/data-summary-files.html
Only what cannot be mistaken is read so; codes such as 1 and 2 are never guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hyperfusion_rt.config import MappedColumn
from hyperfusion_rt.data.column_map import ModelColumn, Reading, as_text
from hyperfusion_rt.data.table_file import Table, is_missing, plain, read_number
from hyperfusion_rt.errors import TableError

# What a model may call them, without case, spaces, `_` and `-`.
_NAMES = {"age": ("age", "ptage"), "sex": ("sex", "gender", "ptgender", "ptsex")}
_WORDS = {
    "male": ("m", "male", "man"),
    "female": ("f", "female", "woman"),
    "other": ("o", "other"),
}
_YEARS = ("year", "years", "yr", "yrs", "y", "a")
_OLDEST = 125.0  # years
_WHY = "as BIDS writes it"
_SHOWN = 6  # cells in a suggestion

# A JSON file's name, and its content or what it says of a column.
_Sidecar = tuple[str, dict[str, Any]]


def bids_readings(
    table: Table, columns: Mapping[str, ModelColumn], taken: Mapping[str, Reading]
) -> tuple[dict[str, Reading], dict[str, str]]:
    """How features that are an age or a sex are read from a `participants.tsv`.

    A column of the model's own name is read in BIDS's spellings where it is BIDS's own, too (`sex`,
    with `M` for the model's `male`); under another name it is left as it is.

    Args:
        taken: columns that are read in another way already.

    Returns:
        The readings, and for columns that are not read though BIDS has them, why.
    """
    found: dict[str, Reading] = {}
    doubts: dict[str, str] = {}
    sidecars: list[_Sidecar] | None = None
    for kind, names in _NAMES.items():
        called = [c for c in columns.values() if plain(c.name) in names and not c.is_target]
        sources = [name for name in table.columns if name.casefold() == kind]
        for column in called:
            own = column.name in table.columns
            if column.name in taken or not sources or (own and column.name not in sources):
                continue
            source = column.name if own else sources[0]
            alike = [name for name in table.columns if plain(name) in names]
            doubt = ""
            if len(called) > 1:
                doubt = f"the model has {' and '.join(repr(c.name) for c in called)}"
            elif len(alike) > 1 and not own:
                doubt = f"the table has {' and '.join(map(repr, alike))}"
            if sidecars is None:
                sidecars = _sidecars(table)
            said = _said_of(source, sidecars)
            doubt = doubt or (_doubt_of_age if kind == "age" else _doubt_of_sex)(
                table, column, source, said
            )
            if not doubt:
                found[column.name] = _reading(kind, column, source)
            elif not own:
                doubts[column.name] = doubt
    return found, doubts


def suggestions(
    table: Table, columns: Mapping[str, ModelColumn], doubts: Mapping[str, str]
) -> dict[str, str]:
    """For columns of the model that the table lacks: the maps that would read others for them."""
    found = {}
    for column in columns.values():
        if column.name in table.columns:
            continue
        names = next((n for n in _NAMES.values() if plain(column.name) in n), None)
        alike = [name for name in table.columns if plain(name) in (names or (plain(column.name),))]
        maps = " or ".join(f"`map` {_suggested(table, column, name)}" for name in alike)
        if maps:
            doubt = doubts.get(column.name)
            text = maps + (", with the model's value for each ?" if "=?" in maps else "")
            found[column.name] = text + (f" (not done unasked: {doubt})" if doubt else "")
    return found


def _suggested(table: Table, column: ModelColumn, source: str) -> str:
    known = [c.casefold() for c in column.categories]
    values: dict[str, str] = {}
    if column.kind == "categorical" or plain(column.name) in _NAMES["sex"]:
        named = _by_meaning(column)
        cells = {row.values[source].strip().casefold(): row.values[source] for row in table.rows}
        for key, cell in cells.items():
            if key in known or is_missing(cell):
                continue
            meaning = _meaning(key)
            other = "" if meaning == "other" and named else "?"
            value = named.get(meaning, other)
            if value != "?" or not column.is_target:  # a truth that is no class is not counted
                values[cell] = value
    elif plain(column.name) in _NAMES["age"]:
        reading = Reading(source, "", capped=True)
        for cell in (row.values[source] for row in table.rows):
            if reading.read(cell)[1]:
                values[cell] = reading.read(cell)[0]
    if len(values) > _SHOWN:
        values = {}
    text = as_text(column.name, MappedColumn(column=source, values=values))
    return f"'{text}'" if re.search(r"[\s?]", text) else text


def _meaning(word: str) -> str:
    return next((name for name, words in _WORDS.items() if word.strip().casefold() in words), "")


def _by_meaning(column: ModelColumn) -> dict[str, str]:
    """The category of each sex; empty where it is not clear which are male and female."""
    found: dict[str, str] = {}
    for category in column.categories:
        meaning = _meaning(category)
        if meaning in found:
            return {}
        if meaning:
            found[meaning] = category
    return found if {"male", "female"} <= found.keys() else {}


def _reading(kind: str, column: ModelColumn, source: str) -> Reading:
    if kind == "age":
        return Reading(source, _WHY, capped=True)
    named, known = _by_meaning(column), [c.casefold() for c in column.categories]
    cells = {
        word: named.get(meaning, "")
        for meaning, words in _WORDS.items()
        for word in words
        if word not in known
    }
    doubtful = frozenset(word for word, category in cells.items() if not category)
    return Reading(source, _WHY, cells, doubtful)


def _doubt_of_sex(
    table: Table, column: ModelColumn, source: str, sidecars: Sequence[_Sidecar]
) -> str:
    """Why a column cannot be read as BIDS's sex, if so."""
    if column.kind != "categorical":
        return f"{column.name!r} is a number to the model"
    if not _by_meaning(column):
        listed = ", ".join(column.categories)
        return f"which of {listed} is male and which female is not clear"
    for file, said in sidecars:
        for cell, meaning in _levels(said).items():
            told = {_meaning(word) for word in re.findall(r"\w+", meaning)} - {""}
            if _meaning(cell) and told != {_meaning(cell)}:
                return f"{file} says that {cell!r} in column {source!r} means {meaning!r}"
    cells = [row.values[source] for row in table.rows if not is_missing(row.values[source])]
    known = [c.casefold() for c in column.categories]
    for cell in cells:
        if not _meaning(cell) and cell.strip().casefold() not in known:
            return f"{cell!r} in column {source!r} is no sex as BIDS writes it"
    return ""


def _doubt_of_age(
    table: Table, column: ModelColumn, source: str, sidecars: Sequence[_Sidecar]
) -> str:
    """Why a column cannot be read as an age in years, if so."""
    if column.kind == "categorical":
        return f"{column.name!r} has categories to the model"
    low, high = column.low, column.high
    if not 0 <= low <= high <= _OLDEST:
        return f"{column.name!r} was {low:g} to {high:g} in the training, which are no ages"
    if unit := _unit(sidecars):
        return f"the table's sidecar says that column {source!r} is in {unit!r}"
    reading = Reading(source, _WHY, capped=True)
    ages = []
    for row in table.rows:
        cells = {source: reading.read(row.values[source])[0]}
        try:
            age = read_number(replace(row, values=cells), source)
        except TableError:
            continue  # an error of its case
        if age is not None:
            ages.append(age)
    if ages and not any(low / 2 <= age <= 2 * high for age in ages):
        return (
            f"column {source!r} holds {min(ages):g} to {max(ages):g}, and {column.name!r} was "
            f"{low:g} to {high:g} in the training: is it another unit?"
        )
    return ""


def _unit(sidecars: Sequence[_Sidecar]) -> str:
    """The unit of a column, if a JSON file beside the table gives one that is not years."""
    for _, said in sidecars:
        units = said.get("Units") or ""
        for unit in units if isinstance(units, list) else [units]:
            words = re.findall(r"\w+", str(unit).casefold())
            if words and not any(word in _YEARS for word in words):
                return str(unit).strip()
    return ""


def _levels(said: Mapping[str, Any]) -> dict[str, str]:
    """What a column's cells mean, in words."""
    levels = said.get("Levels")
    if not isinstance(levels, dict):
        return {}
    return {
        str(cell): str(text.get("Description", "")) if isinstance(text, dict) else str(text)
        for cell, text in levels.items()
    }


def _sidecars(table: Table) -> list[_Sidecar]:
    """The JSON files of the table and of its sessions: name and content."""
    folder = table.path.parent
    beside = [folder / "participants.json", folder / "sessions.json"]
    subjects = {f"sub-{row.subject}" for row in table.rows}
    beside += [folder / name / f"{name}_sessions.json" for name in sorted(subjects)]
    found = []
    for path in beside:
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            found.append((path.name, content))
    return found


def _said_of(column: str, sidecars: Sequence[_Sidecar]) -> list[_Sidecar]:
    """What each file says of a column."""
    return [
        (file, said)
        for file, content in sidecars
        for name, said in content.items()
        if name.casefold() == column.casefold() and isinstance(said, dict)
    ]
