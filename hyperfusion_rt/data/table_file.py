"""Reading the table: CSV, TSV or semicolon text into rows that know their subject and line.

A file that is no table raises `TableError`. A row that is no row is left out and listed in
`Table.problems`, so that one bad line never ends a run.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hyperfusion_rt.data.table_text import read_records
from hyperfusion_rt.errors import TableError

# What stands for "not known", whatever its case.
MISSING = ("", "NA", "N/A", "nan", "null", "None")

# Larger than any measurement, small enough that no statistic overflows.
LARGEST = 1e15

# The usual names in order of preference; case does not matter, nor does space, `-` or `_`.
# ADNI's PTID comes before its RID because scans are named after the former.
SUBJECT_COLUMNS = (
    "participant_id",
    "subject_id",
    "subject",
    "sub_id",
    "sub",
    "PTID",
    "patient_id",
    "eid",
    "IXI_ID",
    "CCID",
    "ID",
    "RID",
)
SESSION_COLUMNS = ("session_id", "session", "ses", "VISCODE", "visit_id", "visit", "timepoint")

_MISSING = frozenset(marker.casefold() for marker in MISSING)
_PREFIX = re.compile(r"(?i)^(?:(?:sub|ses)-\s*)+(?=.)")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_BOUND = re.compile(r"^(?:[<>]=?|=[<>]|≤|≥)\s*")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

# Of several rows for one (subject, session): leave out all, or keep the first.
Duplicates = Literal["refuse", "first"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row; `subject` and `session` are normalised ids, `values` maps a column to its text."""

    subject: str
    session: str | None
    line: int
    values: dict[str, str]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that was left out, or a second row that was passed over; `code`: one of `CODES`."""

    subject: str
    session: str | None
    line: int
    reason: str
    code: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table as read. `columns` are in file order; `problems` lists the rows left out."""

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]
    separator: str
    id_column: str
    session_column: str | None = None
    problems: list[LeftOut] = field(default_factory=list)


def normalise_id(text: str) -> str:
    """The id that scans and rows are matched on: trimmed, without `sub-` or `ses-`.

    Unicode is composed (NFC), since macOS stores file names decomposed. Applying it twice
    changes nothing.
    """
    return _PREFIX.sub("", unicodedata.normalize("NFC", text).strip())


def is_missing(text: str) -> bool:
    """Whether a cell stands for "not known" (see `MISSING`)."""
    return text.strip().casefold() in _MISSING


def suggest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'AGE'?"`, or nothing when no known name is close."""
    folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.6)
    names = " or ".join(repr(folded[match]) for match in close)
    return f"; did you mean {names}?" if names else ""


def where(row: Row, column: str) -> str:
    """The start of a message about one cell."""
    return f"line {row.line}, column {column!r}"


def read_cell(row: Row, column: str) -> str:
    """The trimmed text of a cell.

    Raises:
        TableError: the row has no such column.
    """
    try:
        return row.values[column].strip()
    except KeyError:
        raise TableError(
            f"line {row.line}: there is no column {column!r}{suggest(column, row.values)}",
            code="table-missing-column",
        ) from None


def read_number(row: Row, column: str, *, censored: bool = False) -> float | None:
    """The number in a cell, None if missing; a censored one (`>1700`, `<8`) reads as its bound.

    Raises:
        TableError: text, or a number that is not finite or larger than `LARGEST`.
    """
    text = read_cell(row, column)
    if is_missing(text):
        return None
    bound = _BOUND.match(text)
    digits = text[bound.end() :] if bound and censored else text
    value = float(digits) if _NUMBER.fullmatch(digits) else math.nan
    if abs(value) <= LARGEST:
        return value
    if bound and not censored:
        advice = "a bound needs a feature of kind 'censored'"
    elif not math.isnan(value) or text.casefold().strip("+-") in ("inf", "infinity"):
        advice = f"it must be finite and at most {LARGEST:g} in size"
    else:
        advice = "allowed: " + ("71.5 or >71.5" if censored else "71.5") + ", or empty"
    raise TableError(
        f"{where(row, column)}: {text!r} is no usable number; {advice}", code="table-not-a-number"
    )


def read_category(row: Row, column: str, categories: Sequence[str]) -> str | None:
    """The category as spelt in `categories` (case does not matter), None if missing.

    A listed category wins over a marker for missing: `None` may be a real answer.

    Raises:
        TableError: any other text.
    """
    text = read_cell(row, column)
    for category in categories:
        if category.casefold() == text.casefold():
            return category
    if is_missing(text):
        return None
    allowed = ", ".join(categories)
    raise TableError(
        f"{where(row, column)}: {text!r} is not a known value; allowed: {allowed}, or empty",
        code="table-unknown-category",
    )


def read_table(
    path: str | Path,
    *,
    id_column: str | None = None,
    session_column: str | None = None,
    on_duplicate: Duplicates = "refuse",
) -> Table:
    """Read a table with a header; the separator is a comma, a tab or a semicolon.

    Cells are trimmed and blank lines skipped. Columns without a name (a written-out index, a
    trailing separator) are ignored. In a file with semicolons, numbers may have a decimal comma:
    `values` holds them with a point.

    Args:
        path: the file; UTF-8 with or without BOM, or Windows-1252.
        id_column: the column of subjects; the first of `SUBJECT_COLUMNS` by default.
        session_column: the column of sessions; the first of `SESSION_COLUMNS`, if any, by default.
        on_duplicate: of several rows for one (subject, session), leave out all, or keep the first.

    Raises:
        TableError: unreadable, not text, empty, no header, duplicate column names, broken
            quoting, no row, or no such column.
    """
    path = Path(path)
    separator, records = read_records(path)
    if not records:
        raise TableError(
            f"{path}: the file is empty; it needs a header line and one line per scan",
            code="table-empty",
        )

    line, header = records[0]
    names = [name.strip() for name in header]
    columns = tuple(name for name in names if name)
    _check_duplicate_names(path, line, columns)
    subject_name = _find_column(path, names, SUBJECT_COLUMNS, id_column)
    if subject_name is None:
        raise TableError(_no_subject_column(path, line, columns), code="table-no-subject-column")
    session_name = _find_column(path, names, SESSION_COLUMNS, session_column)
    if len(records) == 1:
        raise TableError(f"{path}: there is a header but no row below it", code="table-empty")

    table = Table(path, columns, [], separator, subject_name, session_name)
    for line, cells in records[1:]:
        if len(cells) == len(names):
            values = {n: c.strip() for n, c in zip(names, cells, strict=True) if n}
            _add(table, line, values)
        else:
            reason = (
                f"the row has {len(cells)} fields, the header has {len(names)}: "
                "check its separators and quotes"
            )
            subject, session = _ids_of(table, names, cells)
            table.problems.append(LeftOut(subject, session, line, reason, "table-ragged-row"))
    if separator == ";":
        _accept_decimal_commas(table)
    _settle_duplicates(table, on_duplicate)
    table.problems.sort(key=lambda problem: problem.line)
    return table


def _check_duplicate_names(path: Path, line: int, columns: Sequence[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        names = ", ".join(map(repr, twice))
        raise TableError(
            f"{path}, line {line}: duplicate column names {names}; rename or drop one",
            code="table-duplicate-column",
        )


def _no_subject_column(path: Path, line: int, columns: Sequence[str]) -> str:
    if any(_NUMBER.fullmatch(name) for name in columns):
        return (
            f"{path}, line {line}: there is no header: the first line holds data "
            f"({', '.join(columns[:4])}, ...); add a line with the names of the columns"
        )
    return (
        f"{path}, line {line}: no column of subjects; the columns are {', '.join(columns)}. "
        "Rename one to 'subject', or name it in the configuration (tabular: id_column)"
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _find_column(
    path: Path, names: Sequence[str], usual: Sequence[str], given: str | None
) -> str | None:
    if given is not None:
        if given in names:
            return given
        found = [name for name in names if name.casefold() == given.casefold()]
        if len(found) == 1:
            return found[0]
        columns = ", ".join(name for name in names if name)
        raise TableError(
            f"{path}: there is no column {given!r}{suggest(given, names)} "
            f"(the columns are {columns})",
            code="table-missing-column",
        )
    by_plain = {_plain(name): name for name in reversed(names) if name}
    return next((by_plain[_plain(name)] for name in usual if _plain(name) in by_plain), None)


def _ids_of(table: Table, names: Sequence[str], cells: Sequence[str]) -> tuple[str, str | None]:
    """Subject and session of a ragged row, as far as it goes; only names the row in a report."""
    values = dict(zip(names, cells, strict=False))
    subject = normalise_id(values.get(table.id_column, ""))
    session = normalise_id(values.get(table.session_column or "", "")) or None
    return subject, session


def _add(table: Table, line: int, values: dict[str, str]) -> None:
    subject = values[table.id_column]
    session = values[table.session_column] if table.session_column else ""
    session_id = None if is_missing(session) else normalise_id(session)
    if is_missing(subject):
        reason = f"column {table.id_column!r} is empty: the row needs a subject id"
        code = "table-row-without-subject"
        table.problems.append(LeftOut("", session_id, line, reason, code))
    else:
        table.rows.append(Row(normalise_id(subject), session_id, line, values))


def _accept_decimal_commas(table: Table) -> None:
    """Write `1,5` as `1.5`, but not in a column that also has `1.5`: there, `,` is unclear."""
    for column in table.columns:
        if column in (table.id_column, table.session_column):
            continue
        numbers = [_BOUND.sub("", row.values[column], count=1) for row in table.rows]
        if any("." in number and _NUMBER.fullmatch(number) for number in numbers):
            continue
        for row, number in zip(table.rows, numbers, strict=True):
            if _DECIMAL_COMMA.fullmatch(number):
                row.values[column] = row.values[column].replace(",", ".")


def _settle_duplicates(table: Table, policy: Duplicates) -> None:
    lines: dict[tuple[str, str | None], list[int]] = {}
    for row in table.rows:
        lines.setdefault((row.subject, row.session), []).append(row.line)
    kept = []
    for row in table.rows:
        same = lines[row.subject, row.session]
        if len(same) == 1 or (policy == "first" and row.line == same[0]):
            kept.append(row)
            continue
        others = ", ".join(str(line) for line in same if line != row.line)
        what = "subject and session" if row.session is not None else "subject"
        reason = (
            f"duplicate: line {same[0]} has the same {what} and is used"
            if policy == "first"
            else f"duplicate: line {others} has the same {what}; keep one of them"
        )
        code = "table-duplicate-row"
        table.problems.append(LeftOut(row.subject, row.session, row.line, reason, code))
    table.rows[:] = kept
