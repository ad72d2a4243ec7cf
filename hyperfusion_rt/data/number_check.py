"""What is odd about the numbers of a column."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.data.finding import (
    CODE,
    EMPTY_ADVICE,
    MANY,
    SHOWN,
    Finding,
    counted,
    more,
)
from hyperfusion_rt.data.table_file import SUBJECT_COLUMNS, Row, Table
from hyperfusion_rt.data.table_text import read_records

# An age in years that a person can have.
YOUNGEST, OLDEST = 0.0, 125.0

_BOUND = r"(?:[<>]=?|=[<>]|≤|≥)?\s*"
_GROUPS = re.compile(_BOUND + r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+")
_WHOLE = re.compile(_BOUND + r"[+-]?\d+")
_POINT = re.compile(_BOUND + r"[+-]?\d*\.\d+")
_COMMA = re.compile(_BOUND + r"[+-]?\d*,\d+")
# Ages in another unit, or no ages: differences, groups, scores.
_NO_YEARS = frozenset(
    ("month", "months", "day", "days", "week", "weeks", "gap", "delta", "diff", "difference",
     "change", "group", "bin", "class", "score", "squared", "sq", "log", "z", "scaled", "std",
     "centred", "centered")
)  # fmt: skip


def words_of(name: str) -> set[str]:
    """The words of a column's name, in lower case: `AgeAtScan_1` has `age`, `at`, `scan`."""
    return {part.casefold() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def means_age(name: str) -> bool:
    """Whether a column is called an age in years: `AGE`, `age_at_scan`, `AgeYears`, `PTAGE`."""
    words = words_of(name)
    return bool(words & {"age", "ages", "ptage"}) and not words & _NO_YEARS


def are_years(values: NDArray[np.float64]) -> bool:
    """Whether these numbers `[N]` are years on the whole (not months, not standard scores)."""
    if not values.size or not 0 < float(np.median(values)) <= OLDEST:
        return False
    # Codes for "not known" are few different numbers; scores below 0 are many.
    impossible = {value for value in values.tolist() if impossible_age(value)}
    return len(impossible) <= max(4, len(values) // 10)


def impossible_age(value: float) -> bool:
    """Whether nobody is this many years old."""
    return not YOUNGEST <= value <= OLDEST


def ages(name: str, role: str, values: NDArray[np.float64]) -> list[Finding]:
    """A column of ages in which some are none, or all seem to be in another unit."""
    if not are_years(values):
        text = (
            f"{name!r} should be ages in years, but holds {values.min():g} to {values.max():g}, "
            f"median {np.median(values):g}: months, birth years, standard scores and codes for "
            "'not known' are no ages"
        )
        # A network whose answers are called years must not learn something else.
        refused = role == "target" and means_age(name)
        return [Finding(text, "table-impossible-value" if refused else None)]
    wrong = Counter(float(value) for value in values if impossible_age(value))
    if not wrong:
        return []
    text = (
        f"{name!r}: {counted(wrong)} is no age in years "
        f"({YOUNGEST:g} to {OLDEST:g}); {EMPTY_ADVICE}"
    )
    return [Finding(text)]


def missing_codes(values: NDArray[np.float64]) -> dict[float, int]:
    """The numbers of `values [N]` that seem to stand for "not known", each with its count.

    They are codes that lie far from all other numbers, or are far more frequent.
    """
    counts = Counter(values.tolist())
    codes = {value for value in counts if CODE.fullmatch(f"{value:.15g}")}
    rest = [value for value in counts if value not in codes]
    if len(rest) < 2:
        return {}
    low, high = min(rest), max(rest)
    negative = [value for value in codes if value < 0]
    # A column that holds other negative numbers, or many of them, is measured that way.
    far = set(negative) if low >= 0 and len(negative) <= 4 else set()
    margin = (high - low) / 2
    far |= {value for value in codes if value > high + margin or value < min(low, 0) - margin}
    usual = max(counts[value] for value in rest)
    spikes = {value for value in codes - far if value >= 99 and counts[value] >= max(3, 3 * usual)}
    return {value: counts[value] for value in sorted(far | spikes)}


def codes_for_missing(name: str, values: NDArray[np.float64]) -> list[Finding]:
    """Numbers that stand for "not known"."""
    found = missing_codes(values)
    if not found:
        return []
    rest = [value for value in values.tolist() if value not in found]
    text = (
        f"{name!r} has {counted(found)}: does it stand for 'not known'? All other values are "
        f"{min(rest):g} to {max(rest):g}. It is learned as a number; {EMPTY_ADVICE}"
    )
    return [Finding(text)]


def thousands(name: str, texts: Sequence[str], values: NDArray[np.float64]) -> list[Finding]:
    """`1.017` among `845`: the point separates thousands, and the number is read as 1.017."""
    groups = [i for i, text in enumerate(texts) if _GROUPS.fullmatch(text)]
    whole = [i for i, text in enumerate(texts) if _WHOLE.fullmatch(text)]
    if not groups or not whole or len(groups) + len(whole) < len(texts):
        return []
    if np.median(np.abs(values[whole])) < 10 * np.median(np.abs(values[groups])):
        return []
    first = texts[groups[0]]
    text = (
        f"{name!r} holds {first!r} beside {texts[whole[0]]!r}: a point (or comma) that separates "
        f"thousands is read as a decimal one, in {len(groups)} rows; write {_joined(first)!r}"
    )
    return [Finding(text, "table-number-unclear")]


def mixed_points(table: Table, names: Sequence[str]) -> dict[str, Finding]:
    """Columns with decimal points in a table whose other numbers have decimal commas.

    The file is read again: `Table.values` hold a point where the file has a comma.
    """
    if table.separator != ";":
        return {}
    _, records = read_records(table.path)
    header = [name.strip() for name in records[0][1]]
    columns = {
        name: [cells[i].strip() for _, cells in records[1:] if len(cells) == len(header)]
        for i, name in enumerate(header)
        if name and name not in (table.id_column, table.session_column)
    }
    commas = [name for name, cells in columns.items() if any(map(_COMMA.fullmatch, cells))]
    found = {}
    for name in names:
        source = table.sources.get(name, name)
        points = [cell for cell in columns.get(source, ()) if _POINT.fullmatch(cell)]
        others = [other for other in commas if other != source]
        if not points or not others:
            continue
        example = next(cell for cell in columns[others[0]] if _COMMA.fullmatch(cell))
        start = (
            f"{name!r} has a point in {len(points)} rows ({points[0]!r}), and {others[0]!r} "
            f"decimal commas ({example!r})"
        )
        if all(map(_GROUPS.fullmatch, points)):
            text = (
                f"{start}: the point may separate thousands, but is read as a decimal one; "
                f"write {_joined(points[0])!r} or {points[0].replace('.', ',')!r}"
            )
            found[name] = Finding(text, "table-number-unclear")
        else:
            found[name] = Finding(f"{start}: both are read as decimal; write one of them only")
    return found


def outliers(
    name: str, read: Sequence[tuple[Row, float]], values: NDArray[np.float64]
) -> list[Finding]:
    """Single values many times further out than the others: a lost decimal point, another unit."""
    if len(values) < MANY:
        return []
    low, middle, high = np.percentile(values, [25, 50, 75])
    far = np.abs(values - middle) > 15 * (high - low)
    if high == low or not far.any() or far.sum() > max(3, len(values) // 20):
        return []
    which = [(row, value) for (row, value), out in zip(read, far, strict=True) if out]
    if all(CODE.fullmatch(f"{value:.15g}") for _, value in which):
        return []  # said as a code
    shown = ", ".join(f"{value:g} (line {row.line})" for row, value in which[:SHOWN])
    text = (
        f"{name!r}: {shown}{more(len(which))} is far from all others (half of them are "
        f"{low:g} to {high:g}); is a decimal point lost, or the unit another one?"
    )
    return [Finding(text)]


def ids(name: str) -> list[Finding]:
    """A column that is called as subjects' ids are."""
    named = re.sub(r"[\s_-]+", "", name).casefold()
    if named not in {re.sub("_", "", known).casefold() for known in SUBJECT_COLUMNS}:
        return []
    text = f"{name!r} is the name of an id, which says nothing about a new case; drop the feature"
    return [Finding(text)]


def _joined(text: str) -> str:
    return text.replace(".", "")
