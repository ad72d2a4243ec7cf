"""What each column of a table is: a feature of some kind, or nothing that a network should read.

The verdict is cautious. A column is a feature where nothing speaks against it; one that is left out
is named with the reason, and how it would be written, so that its owner can take it in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from hyperfusion_rt.config import Feature
from hyperfusion_rt.data.column_check import Column, feature_column
from hyperfusion_rt.data.finding import Finding, in_rows
from hyperfusion_rt.data.number_check import means_age, words_of
from hyperfusion_rt.data.table_file import (
    SESSION_COLUMNS,
    SUBJECT_COLUMNS,
    Row,
    Table,
    is_missing,
    plain,
    read_cell,
    read_number,
)
from hyperfusion_rt.errors import TableError

# More categories are hardly learned, and make the network's input wide.
MOST_CATEGORIES = 20
# Fewer rows per category (or class) on average: rather a text.
ROWS_PER_CATEGORY = 3
# Known in a smaller part of the rows: hardly worth an input.
LEAST_KNOWN = 0.1
# A larger part of cells that cannot be read costs too many cases.
MOST_UNUSABLE = 0.05

_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?:[T ]\d{1,2}:\d{2}.*)?|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})"
    r"(?: \d{1,2}:\d{2}.*)?|\d{1,2}:\d{2}(?::\d{2})?"
)
_DAY = re.compile(r"(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])")
_ID_WORDS = frozenset(
    ("id", "ids", "uid", "guid", "rid", "ptid", "eid", "iid", "fid", "mrn", "accession", "barcode")
)
# Whole numbers in such columns are names of something, not amounts.
_NOMINAL = frozenset(
    ("sex", "gender", "ptgender", "site", "scanner", "center", "centre", "race", "ethnicity",
     "handedness", "hand", "manufacturer", "vendor", "genotype", "marital", "batch", "cohort",
     "study", "protocol", "country", "language")
)  # fmt: skip
_SEX = frozenset(("sex", "gender", "ptgender"))
# A column called so beside a target that is called so may be the same in another coding.
_DIAGNOSIS = frozenset(
    ("dx", "dxbl", "dxchange", "dxgroup", "diagnosis", "diagnostic", "diag", "outcome", "converter",
     "conversion")
)  # fmt: skip
_WHOLE_NAMES = frozenset(("group", "label", "class", "status", "target", "researchgroup"))
_PARTS = frozenset(
    ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "holdout")
)

# Columns called so that hold a few whole numbers say the number of a part.
_FOLDS = frozenset(("fold", "folds", "kfold", "cvfold", "split", "splits", "partition", "part"))


@dataclass(frozen=True)
class Used:
    """A column that the network shall read, and what it holds in the rows of the cases."""

    feature: Feature
    column: Column

    @property
    def remarks(self) -> list[str]:
        """What is odd about it, but may be right."""
        return [finding.text for finding in self.column.findings]


@dataclass(frozen=True)
class Unused:
    """A column that is left out, and why; `feature`: how it would be written."""

    name: str
    reason: str
    feature: Feature | None = None


@dataclass(frozen=True)
class Cells:
    """The cells of a column that hold something, by what they can be read as."""

    known: list[str]
    numbers: list[Row]
    bounds: list[Row]
    texts: list[str]

    @property
    def spelt(self) -> dict[str, Counter[str]]:
        """The values, whatever their case, each with its spellings."""
        found: dict[str, Counter[str]] = {}
        for cell in self.known:
            found.setdefault(cell.casefold(), Counter())[cell] += 1
        return found

    @property
    def values(self) -> dict[str, int]:
        """Each value in its most frequent spelling, with its count; sorted."""
        return {
            max(sorted(ways), key=ways.__getitem__): ways.total()
            for _, ways in sorted(self.spelt.items())
        }

    @property
    def are_numbers(self) -> bool:
        """Whether (nearly) all of them are numbers or bounds."""
        read = len(self.numbers) + len(self.bounds)
        return bool(read) and len(self.texts) <= max(1, MOST_UNUSABLE * len(self.known)) < read


def cells_of(rows: Sequence[Row], name: str) -> Cells:
    """The cells of column `name`."""
    known, numbers, bounds, texts = [], [], [], []
    for row in rows:
        cell = read_cell(row, name)
        if is_missing(cell):
            continue
        known.append(cell)
        if _is_number(row, name, censored=False):
            numbers.append(row)
        elif _is_number(row, name, censored=True):
            bounds.append(row)
        else:
            texts.append(cell)
    return Cells(known, numbers, bounds, texts)


def is_sex(name: str) -> bool:
    """Whether a column is called `SEX`, `gender`, `PTGENDER`."""
    return bool(words_of(name) & _SEX)


def is_diagnosis(name: str) -> bool:
    """Whether a column is called as a diagnosis is: `DX`, `Group`, `DX_bl`."""
    return bool(words_of(name) & _DIAGNOSIS) or plain(name) in _WHOLE_NAMES


def judge(rows: Sequence[Row], name: str) -> Used | Unused:
    """What column `name` is in these rows, whatever the target is."""
    cells = cells_of(rows, name)
    if not cells.known:
        return Unused(name, "empty in all rows")
    if plain(name) in {plain(known) for known in SESSION_COLUMNS if known != "ses"}:
        return Unused(name, "names the visit", _feature(name, cells))
    lower = set(cells.spelt)
    numbered = plain(name) in _FOLDS and _whole(cells) and len(lower) <= MOST_CATEGORIES
    if (lower <= _PARTS and len(lower) > 1) or numbered:
        text = "says which part a row belongs to: training.split_column reads it"
        return Unused(name, text)
    reason = _no_measurement(name, cells)
    if reason:
        return Unused(name, reason)
    feature = _feature(name, cells)
    if feature is None:
        return Unused(name, _no_kind(cells))
    if len(lower) == 1 and len(cells.known) > 1:
        return Unused(name, f"one value ({cells.known[0]}) in all rows", feature)
    if len(cells.known) < LEAST_KNOWN * len(rows):
        text = f"nearly all missing: known in {len(cells.known)} of {len(rows)} rows"
        return Unused(name, text, feature)
    column = feature_column(rows, feature)
    refused = [finding.text for finding in column.findings if finding.code]
    if feature.kind == "categorical":
        # With its categories listed a column is not looked at for these.
        found = feature_column(rows, feature.model_copy(update={"categories": ()})).findings
        refused += [finding.text for finding in found if finding.code]
        column = _with(column, [finding for finding in found if not finding.code])
    if refused:
        return Unused(name, "; ".join(refused), feature)
    return Used(feature, column)


def echoes(name: str, target: str) -> str | None:
    """Why a column called `name` may be the target in another coding; None if it does not."""
    mine, theirs = words_of(name), words_of(target)
    if plain(name) == plain(target):
        return f"is spelt as the target {target!r} is"
    if is_diagnosis(target) and is_diagnosis(name):
        return f"is called like a diagnosis, as the target {target!r} is: it may tell it"
    if plain(target) in plain(name) and len(plain(target)) > 2 and theirs <= mine:
        return f"is called like the target {target!r}: it may be the same in another coding"
    return None


def twins(used: Sequence[Used], rows: Sequence[Row]) -> dict[str, str]:
    """Columns that hold what an earlier one holds, or are spelt as it is; with that one's name."""
    found: dict[str, str] = {}
    cells: dict[tuple[str, ...], str] = {}
    names: dict[str, str] = {}
    for one in used:
        name = one.feature.name
        key = tuple(read_cell(row, name).casefold() for row in rows)
        first = names.get(plain(name)) or cells.get(key)
        if first is not None:
            found[name] = first
        names.setdefault(plain(name), name)
        cells.setdefault(key, name)
    return found


def candidates(table: Table) -> list[str]:
    """The columns that are neither subjects nor sessions, in the table's order."""
    return [name for name in table.columns if name not in (table.id_column, table.session_column)]


def _is_number(row: Row, name: str, *, censored: bool) -> bool:
    try:
        return read_number(row, name, censored=censored) is not None
    except TableError:
        return False


def _whole(cells: Cells) -> list[int] | None:
    """The cells as whole numbers, if they all are some."""
    if not all(re.fullmatch(r"-?\d+(\.0*)?", cell) for cell in cells.known):
        return None
    return [int(float(cell)) for cell in cells.known]


def _no_measurement(name: str, cells: Cells) -> str | None:
    """Why a column says nothing about a new case: ids, dates, numbers of rows."""
    dates = sum(bool(_DATE.fullmatch(cell)) for cell in cells.known)
    whole = _whole(cells)
    if dates > 0.8 * len(cells.known) or (
        whole is not None and all(_DAY.fullmatch(str(value)) for value in whole)
    ):
        return "dates or times"
    usual = plain(name) in {plain(known) for known in SUBJECT_COLUMNS}
    if usual or words_of(name) & _ID_WORDS:
        return "an id: it says nothing about a new case"
    steps = {b - a for a, b in pairwise(whole)} if whole else set()
    if steps == {1} and len(cells.known) >= 8 and not means_age(name):
        return "numbers the rows"
    return None


def _feature(name: str, cells: Cells) -> Feature | None:
    """The feature that the cells make; None for texts that are no categories."""
    whole = _whole(cells)
    nominal = bool(words_of(name) & _NOMINAL) and whole is not None
    if cells.are_numbers and not (nominal and _are_categories(cells)):
        return Feature(name=name, kind="censored" if cells.bounds else "numeric")
    if _are_categories(cells) and not _mostly_numbers(cells):
        return Feature(name=name, kind="categorical", categories=tuple(cells.values))
    return None


def _are_categories(cells: Cells) -> bool:
    distinct = len(cells.spelt)
    if distinct > MOST_CATEGORIES:
        return False
    return distinct <= 3 or len(cells.known) >= ROWS_PER_CATEGORY * distinct


def _mostly_numbers(cells: Cells) -> bool:
    """Numbers with something else among them: more than a category or two."""
    return len({read for read in cells.spelt if _looks_number(read)}) > MOST_CATEGORIES // 2


def _looks_number(text: str) -> bool:
    return bool(re.fullmatch(r"[<>]?=?\s*[+-]?\d+(?:[.,]\d+)?", text))


def _no_kind(cells: Cells) -> str:
    distinct, known = len(cells.spelt), len(cells.known)
    numbers = len(cells.numbers) + len(cells.bounds)
    if 2 * numbers > known:
        others = Counter(cells.texts).most_common(3)
        shown = ", ".join(f"{text!r} in {in_rows(count)}" for text, count in others)
        return (
            f"numbers, but {len(cells.texts)} of {known} cells are none ({shown}), and their cases "
            "would be left out: empty these cells, then take the column in"
        )
    return f"free text, or an id: {distinct} different values in {known} rows"


def _with(column: Column, findings: Sequence[Finding]) -> Column:
    return replace(column, findings=tuple(dict.fromkeys((*column.findings, *findings))))
