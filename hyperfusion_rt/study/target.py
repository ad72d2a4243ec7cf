"""What is to be predicted: which column, classes or a number, their names, the unit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyperfusion_rt.config import PRESETS, Task
from hyperfusion_rt.data.category_check import missing_words
from hyperfusion_rt.data.column_check import category_column, number_column
from hyperfusion_rt.data.finding import in_rows
from hyperfusion_rt.data.number_check import are_years, means_age, missing_codes, words_of
from hyperfusion_rt.data.table_file import Row, Table, plain, read_number, suggest
from hyperfusion_rt.errors import CohortError, ConfigError, TableError
from hyperfusion_rt.study.columns import Cells, candidates, cells_of, is_diagnosis
from hyperfusion_rt.training.check import FEW

# More different values are no classes, unless somebody says so.
MOST_CLASSES = 10
# So many different numbers may be codes of classes.
MOST_CODES = 5
# From here on the cases that fall away are worth a warning.
_GAPS = 0.1

_EXACT = ("dx", "diagnosis", "dxgroup", "group", "researchgroup", "label", "class", "target")
# Classes that come first: those without the disease.
_CONTROLS = frozenset(
    ("cn", "hc", "nc", "control", "controls", "ctrl", "healthy", "healthy control", "normal",
     "negative", "neg", "no", "false", "off", "absent", "stable")
)  # fmt: skip
# How units are written in the names of columns, and as what they are kept.
_UNITS = {
    "years": "years", "yrs": "years", "months": "months", "weeks": "weeks", "days": "days",
    "ml": "ml", "cc": "ml", "cm3": "cm3", "mm3": "mm3", "mm2": "mm2", "mm": "mm", "cm": "cm",
    "kg": "kg", "mg": "mg", "pg": "pg", "ng": "ng", "ms": "ms", "hz": "Hz", "mmhg": "mmHg",
    "percent": "%", "pct": "%", "suvr": "SUVR",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """The column to predict, in the rows of the cases.

    `classes` and `counts` are empty for a number. `left`: rows whose cell is empty or cannot be
    used. `why`: how it was chosen; `unit_from`: who says the unit. `warnings`: what its owner
    should look at.
    """

    name: str
    task: Task
    why: str
    rows: int
    left: int
    classes: dict[str, tuple[str, ...]]
    counts: dict[str, int]
    unit: str
    unit_from: str
    facts: str
    warnings: tuple[str, ...]

    @property
    def is_age(self) -> bool:
        """Whether it is an age in years."""
        return self.task == "regression" and self.unit == "years" and means_age(self.name)


def sidecar(table: Path) -> Mapping[str, Any]:
    """What the JSON file beside a table (`participants.json`) says of its columns; {} if nothing.

    Raises:
        ConfigError: it is no JSON object.
    """
    path = table.with_suffix(".json")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: the table's sidecar cannot be read as JSON: {error}; mend it or move it away",
            code="config-unreadable",
        ) from None
    return content if isinstance(content, dict) else {}


def choose(table: Table, rows: Sequence[Row], given: str | None) -> tuple[str, str]:
    """(the target's column, how it was chosen).

    Raises:
        TableError: there is no column `given`.
        ConfigError: none is given, and none or several look like one.
    """
    if given is not None:
        for name in table.columns:
            if name == given:
                return name, "as asked for"
        folded = [name for name in table.columns if name.casefold() == given.casefold()]
        if len(folded) == 1:
            return folded[0], "as asked for"
        raise TableError(
            f"{table.path}: `target` {given}: there is no such column"
            f"{suggest(given, table.columns)} (the columns are {', '.join(table.columns)})",
            code="table-missing-column",
        )
    names = candidates(table)
    kinds = (
        ([n for n in names if plain(n) in _EXACT], "the one column called like a diagnosis"),
        ([n for n in names if is_diagnosis(n)], "the one column called like a diagnosis"),
        ([n for n in names if means_age(n)], "an age; no column is called like a diagnosis"),
    )
    for alike, why in kinds:
        found = [name for name in alike if len(cells_of(rows, name).spelt) > 1]
        if len(found) == 1:
            return found[0], why
        if found:
            raise ConfigError(
                f"{table.path}: {' and '.join(map(repr, found))} may each be what is to be "
                "predicted; name it with `target`",
                code="config-invalid",
            )
    raise ConfigError(
        f"{table.path}: no column looks like a diagnosis or an age; name what is to be predicted "
        f"with `target` (the columns are {', '.join(names)})",
        code="config-invalid",
    )


def describe(
    rows: Sequence[Row],
    name: str,
    *,
    why: str,
    task: Task | None,
    unit: str | None,
    about: Mapping[str, Any],
) -> Target:
    """What the column `name` says is to be predicted; `about`: its entry in the sidecar.

    Raises:
        CohortError: it has no value, or one value in all rows.
        TableError: an age that is none in years.
        ConfigError: its values are neither classes nor numbers, or not those of `task`.
    """
    cells = cells_of(rows, name)
    if not cells.known:
        raise CohortError(
            f"`target` {name}: no case has a value; choose another column",
            code="cohort-no-usable-case",
        )
    if len(cells.spelt) == 1:
        raise CohortError(
            f"`target` {name}: has one value ({cells.known[0]}) in all {len(cells.known)} cases: "
            "there is nothing to learn; choose another column",
            code="cohort-target-constant",
        )
    if task is None:
        task = "regression" if unit else _task_of(name, cells)
    made = _classes if task == "classification" else _number
    return made(rows, name, cells, why, unit, about)


def _task_of(name: str, cells: Cells) -> Task:
    distinct, known = len(cells.spelt), len(cells.known)
    if cells.are_numbers:
        values = _values(cells, name)
        codes = len(set(values.tolist()) - set(missing_codes(values)))
        few = codes <= MOST_CODES and known >= 3 * codes
        return "classification" if few and not means_age(name) else "regression"
    if distinct > MOST_CLASSES and 2 * len(cells.numbers) < known:
        raise ConfigError(
            f"`target` {name}: {distinct} different texts in {known} rows are neither classes nor "
            "numbers; choose another column, or say that they are classes with `task`",
            code="config-invalid",
        )
    return "regression" if distinct > MOST_CLASSES else "classification"


def _values(cells: Cells, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([read_number(row, name) for row in cells.numbers], np.float64)


# ---- classes


def _classes(
    rows: Sequence[Row],
    name: str,
    cells: Cells,
    why: str,
    unit: str | None,
    about: Mapping[str, Any],
) -> Target:
    values = cells.values
    unknown = _unknown(name, cells)
    labels = {value: count for value, count in values.items() if value not in unknown}
    if len(labels) > max(MOST_CLASSES, len(cells.known) // 3):
        raise ConfigError(
            f"`target` {name}: {len(labels)} different values in {len(cells.known)} rows are no "
            "classes; leave out `task`, or choose another column",
            code="config-invalid",
        )
    classes = _named(name, labels, about)
    if len(classes) < 2:
        raise CohortError(
            f"`target` {name}: has one class only ({', '.join(classes) or 'none'}), but for what "
            "seems to stand for 'not known': there is nothing to learn",
            code="cohort-target-constant",
        )
    counts = {label: sum(labels[v] for v in found) for label, found in classes.items()}
    left = len(rows) - sum(counts.values())
    warnings = _left_warning(name, len(rows), left)
    if unknown:
        listed = ", ".join(f"{value!r} in {in_rows(count)}" for value, count in unknown.items())
        warnings.append(
            f"{name!r} has {listed}, which seems to stand for 'not known': no class is made of it, "
            "and these cases are left out"
        )
    for label, count in counts.items():
        if count < FEW:
            cases = "one case" if count == 1 else f"{count} cases"
            warnings.append(
                f"class {label!r} has {cases}, which is too few to be learned and measured: merge "
                "it with another class (list its values there), or delete its line"
            )
    spelt = category_column(rows, name, "target", "classes", list(labels)).findings
    warnings += [found.text for found in spelt if "not in the list" not in found.text]
    facts = f"{sum(counts.values())} of {len(rows)} cases have a class"
    return Target(
        name, "classification", why, len(rows), left, classes, counts, "", "", facts,
        tuple(dict.fromkeys(warnings)),
    )  # fmt: skip


def _unknown(name: str, cells: Cells) -> dict[str, int]:
    """The values that seem to stand for "not known", each with its count."""
    values = cells.values
    if cells.are_numbers:
        codes = missing_codes(_values(cells, name))
        return {v: count for v, count in values.items() if _as_float(v) in codes}
    return missing_words(values)


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _named(
    name: str, labels: Mapping[str, int], about: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """The classes in order, each with the values that mean it.

    Two or more of the preset `ad` are its classes, with all values that it lists for them.
    """
    named = _published(labels)
    own = {value for values in named.values() for value in values}
    groups: dict[object, list[str]] = {}
    for value in sorted(labels.keys() - own, key=lambda text: (len(text), text)):
        number = _as_float(value)
        alike = number if number is not None else " ".join(value.casefold().split())
        groups.setdefault(alike, []).append(value)
    levels = about.get("Levels")
    for values in sorted(groups.values(), key=lambda found: _order(found[0])):
        label = _label(name, values[0], levels if isinstance(levels, dict) else {})
        named[values[0] if label in named else label] = tuple(values)
    return named


def _published(labels: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """The classes of the preset `ad` that these labels have, if there are two or more."""
    known: dict[str, tuple[str, ...]] = PRESETS["ad"]["tabular"]["classes"]
    spelt = {label.casefold(): label for label in labels}
    classes = {
        name: tuple(spelt[v.casefold()] for v in values if v.casefold() in spelt)
        for name, values in known.items()
    }
    classes = {name: values for name, values in classes.items() if values}
    return classes if len(classes) > 1 else {}


def _order(value: str) -> tuple[bool, float, str]:
    """Numbers by size; of texts those without the disease first, then by the alphabet."""
    number = _as_float(value)
    folded = " ".join(value.casefold().replace("_", " ").split())
    return folded not in _CONTROLS, number if number is not None else np.inf, folded


def _label(name: str, value: str, levels: Mapping[str, Any]) -> str:
    """What a class is called: its value; of a number what the sidecar says, or `DX_1`."""
    number = _as_float(value)
    if number is None:
        return value
    whole = str(int(number)) if number == int(number) else value
    said = levels.get(value, levels.get(whole))
    text = said.get("Description") if isinstance(said, dict) else said
    if isinstance(text, str) and 0 < len(text.strip()) <= 24 and _as_float(text) is None:
        return text.strip()
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_') or 'class'}_{whole}"


# ---- numbers


def _number(
    rows: Sequence[Row],
    name: str,
    cells: Cells,
    why: str,
    unit: str | None,
    about: Mapping[str, Any],
) -> Target:
    if 2 * len(cells.numbers) < len(cells.known) or len(cells.numbers) < 2:
        raise ConfigError(
            f"`target` {name}: {len(cells.known) - len(cells.numbers)} of {len(cells.known)} "
            f"values are no numbers ({cells.texts[0] if cells.texts else cells.known[0]!r}, say); "
            "leave out `task` and `unit`, or choose another column",
            code="config-invalid",
        )
    values = _values(cells, name)
    years = means_age(name) and are_years(values)
    column = number_column(rows, name, "target", "numeric", years=means_age(name))
    for finding in column.findings:
        if finding.code:  # what a check would refuse
            kind = CohortError if finding.code.startswith("cohort") else TableError
            raise kind(f"`target` {name}: {finding.text}", code=finding.code)
    left = len(rows) - column.known
    warnings = _left_warning(name, len(rows), left)
    warnings += [found.text for found in column.findings]
    found, source = _unit(name, years=years, given=unit, about=about)
    facts = f"{column.low:g} to {column.high:g}, median {column.median:g}"
    return Target(
        name, "regression", why, len(rows), left, {}, {}, found, source, facts, tuple(warnings)
    )


def _unit(
    name: str, *, years: bool, given: str | None, about: Mapping[str, Any]
) -> tuple[str, str]:
    """The unit of a number, and who says so."""
    if given is not None:
        return given, "as asked for"
    if years:
        return "years", "an age"
    said = about.get("Units")
    if isinstance(said, str) and said.strip():
        return said.strip(), "says the table's JSON sidecar"
    last = re.split(r"[\s_\-.\[\](){}]+", name.strip(" )]}"))
    for part in (last[-1], *sorted(words_of(name))):
        if part.casefold() in _UNITS and len(last) > 1:
            return _UNITS[part.casefold()], "says the column's name"
    return "", "not known; write it here, such as ml"


def _left_warning(name: str, rows: int, left: int) -> list[str]:
    if left < _GAPS * rows:
        return []
    return [
        f"{name!r} has no usable value in {left} of {rows} cases ({left / rows:.0%}): "
        "they are left out of training"
    ]
