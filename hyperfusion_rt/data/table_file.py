"""Reading the table: CSV, TSV or semicolon text into rows that know their subject and line.

A file that is no table raises `TableError`. A row that is no row is left out and listed in
`Table.problems`, so that one bad line never ends a run.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hyperfusion_rt.data.table_text import Record, read_records
from hyperfusion_rt.errors import TableError

# What stands for "not known", whatever its case: what people, pandas, R and Excel write for it.
MISSING = (
    "", "NA", "N/A", "nan", "-nan", "null", "None", "NaT", "<NA>",
    "#N/A", "#N/A N/A", "#NA", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN",
)  # fmt: skip

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
# What nobody sees: zero-width characters, marks of direction, soft hyphens, a stray BOM.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
# Spaces that look like one: no-break, narrow, of fixed width.
_SPACE = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
_PREFIX = re.compile(r"(?i)^(?:(?:sub|ses)-\s*)+(?=.)")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_BOUND = re.compile(r"^(?:[<>]=?|=[<>]|≤|≥)\s*")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

# Of several rows for one (subject, session): leave out all, or keep the first.
Duplicates = Literal["refuse", "first"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row; `subject` and `session` are normalised ids, `values` maps a column to its text.

    `sources`: columns that were read from others, with their names in the file. `warnings`: what a
    reader of its prediction should know of that.
    """

    subject: str
    session: str | None
    line: int
    values: dict[str, str]
    sources: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that was left out; `code`: one of `CODES`.

    `passed_over`: on request, since another row was used instead; nothing is wrong.
    """

    subject: str
    session: str | None
    line: int
    reason: str
    code: str
    passed_over: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table as read. `columns` are in file order; `problems` lists the rows left out.

    `notes`: which columns name subjects and sessions, where that had to be found out; which
    columns are read in the place of others. `sources`: as those of its rows.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]
    separator: str
    id_column: str
    session_column: str | None = None
    problems: list[LeftOut] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)


def normalise_id(text: str) -> str:
    """The id that scans and rows are matched on: trimmed, without `sub-` or `ses-`.

    Unicode is composed (NFC), since macOS stores file names decomposed. What nobody sees is taken
    out, and every kind of space is a space. Applying it twice changes nothing.
    """
    return _PREFIX.sub("", unicodedata.normalize("NFC", visible(text)).strip())


def visible(text: str) -> str:
    """`text` without characters of no width, and with plain spaces."""
    if text.isascii():  # most cells: there is nothing to take out
        return text
    return _SPACE.sub(" ", _INVISIBLE.sub("", text))


def is_missing(text: str) -> bool:
    """Whether a cell stands for "not known" (see `MISSING`)."""
    return visible(text).strip().casefold() in _MISSING


def suggest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'AGE'?"`, or nothing when no known name is close."""
    folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.6)
    names = " or ".join(repr(folded[match]) for match in close)
    return f"; did you mean {names}?" if names else ""


def where(row: Row, column: str) -> str:
    """The start of a message about one cell."""
    source = row.sources.get(column, column)
    read_as = "" if source == column else f" (read as {column!r})"
    return f"line {row.line}, column {source!r}{read_as}"


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
    if bound and not _NUMBER.fullmatch(text[bound.end() :]):
        bound = None
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
    trailing separator) are ignored. Excel's first line `sep=;` names the separator. In a file with
    semicolons, numbers may have a decimal comma: `values` holds them with a point.

    Args:
        path: the file; UTF-8, UTF-16 with a BOM, or Windows-1252.
        id_column: the column of subjects; the first of `SUBJECT_COLUMNS` by default.
        session_column: the column of sessions; the first of `SESSION_COLUMNS`, if any, by default.
        on_duplicate: of several rows for one (subject, session), leave out all, or keep the first.

    Raises:
        TableError: unreadable, not text, empty, no header, duplicate column names, broken
            quoting, no row, or no such column.
    """
    text = read_text(path)
    subject = text.find(SUBJECT_COLUMNS, id_column)
    if subject is None:
        raise text.no_subject_column()
    return text.table(subject, text.find(SESSION_COLUMNS, session_column), on_duplicate)


@dataclass(frozen=True)
class TableText:
    """The cells of a table of which it is not yet known which columns name subjects and sessions.

    `names`: of all columns, empty where the header has none; `line`: where the header stands.
    """

    path: Path
    separator: str
    line: int
    names: tuple[str, ...]
    records: list[Record]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that have a name."""
        return tuple(name for name in self.names if name)

    def usual(self, names: Sequence[str]) -> list[str]:
        """The columns that have one of these usual names, in the order of the usual names."""
        spelt = [plain(name) for name in names]
        found = [name for name in self.columns if plain(name) in spelt]
        return sorted(found, key=lambda name: spelt.index(plain(name)))

    def find(self, usual: Sequence[str], given: str | None) -> str | None:
        """The column `given`, whatever its case; without one, the first of the usual names.

        Raises:
            TableError: there is no column `given`.
        """
        if given is None:
            return next(iter(self.usual(usual)), None)
        if given in self.columns:
            return given
        found = [name for name in self.columns if name.casefold() == given.casefold()]
        if len(found) == 1:
            return found[0]
        raise TableError(
            f"{self.path}: there is no column {given!r}{suggest(given, self.columns)} "
            f"(the columns are {', '.join(self.columns)})",
            code="table-missing-column",
        )

    def column(self, name: str) -> Iterator[tuple[int, str]]:
        """(line, cell) of every row that is long enough."""
        at = self.names.index(name)
        return ((line, cells[at]) for line, cells in self.records if at < len(cells))

    def no_subject_column(self) -> TableError:
        """That no column has a usual name."""
        start = f"{self.path}, line {self.line}: "
        if any(_NUMBER.fullmatch(name) for name in self.columns):
            text = (
                "there is no header: the first line holds data "
                f"({', '.join(self.columns[:4])}, ...); add a line with the names of the columns"
            )
        else:
            text = (
                f"no column of subjects; the columns are {', '.join(self.columns)}. "
                "Rename one to 'subject', or name it with `id_column` (in the configuration: "
                "tabular.id_column)"
            )
        return TableError(start + text, code="table-no-subject-column")

    def table(
        self, id_column: str, session_column: str | None, on_duplicate: Duplicates = "refuse"
    ) -> Table:
        """The rows, with the subjects and sessions of these columns.

        Raises:
            TableError: there is no row.
        """
        if not self.records:
            raise TableError(
                f"{self.path}: there is a header but no row below it", code="table-empty"
            )
        table = Table(self.path, self.columns, [], self.separator, id_column, session_column)
        for line, cells in self.records:
            if len(cells) == len(self.names):
                values = {n: c.strip() for n, c in zip(self.names, cells, strict=True) if n}
                _add(table, line, values)
            else:
                reason = (
                    f"the row has {len(cells)} fields, the header has {len(self.names)}: "
                    "check its separators and quotes"
                )
                subject, session = _ids_of(table, self.names, cells)
                table.problems.append(LeftOut(subject, session, line, reason, "table-ragged-row"))
        if self.separator == ";":
            _accept_decimal_commas(table)
        _settle_duplicates(table, on_duplicate)
        table.problems.sort(key=lambda problem: problem.line)
        return table


def read_text(path: str | Path) -> TableText:
    """The cells of a table with a header.

    Raises:
        TableError: unreadable, not text, empty, duplicate column names, or broken quoting.
    """
    path = Path(path)
    separator, records = read_records(path)
    if not records:
        raise TableError(
            f"{path}: the file is empty; it needs a header line and one line per scan",
            code="table-empty",
        )
    line, header = records[0]
    text = TableText(
        path, separator, line, tuple(visible(name).strip() for name in header), records[1:]
    )
    _check_duplicate_names(path, line, text.columns)
    return text


def _check_duplicate_names(path: Path, line: int, columns: Sequence[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        names = ", ".join(map(repr, twice))
        raise TableError(
            f"{path}, line {line}: duplicate column names {names}; rename or drop one",
            code="table-duplicate-column",
        )


def plain(name: str) -> str:
    """A column's name without what people spell in several ways: case, spaces, `_` and `-`."""
    return re.sub(r"[\s_-]+", "", name).casefold()


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
        if normalise_id(subject):
            reason = (
                f"column {table.id_column!r}: {subject!r} reads as missing, and the row needs a "
                "subject id; if it is one, give the subject another"
            )
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
        left = LeftOut(row.subject, row.session, row.line, reason, code, policy == "first")
        table.problems.append(left)
    table.rows[:] = kept
