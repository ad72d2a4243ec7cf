"""What a column of the table holds, and what is odd about it, before anything is learned from it.

What can only be a mistake is refused; what may be right is said. Nothing is changed: which number
or category was meant is for the owner of the table to say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hyperfusion_rt.config import Feature
from hyperfusion_rt.data import category_check, number_check
from hyperfusion_rt.data.finding import SHOWN, Finding, more
from hyperfusion_rt.data.number_check import are_years, impossible_age, means_age
from hyperfusion_rt.data.table_file import Row, is_missing, read_category, read_cell, read_number
from hyperfusion_rt.errors import TableError


@dataclass(frozen=True)
class Column:
    """A column in the rows of the cases.

    `known`, `missing` and `unusable` count cells; `unusable` ones hold what its kind does not
    allow, and their cases are left out. `low`, `high` and `median` are a number's, `values` the
    cells with each category.
    """

    name: str
    role: str
    kind: str
    known: int
    missing: int
    unusable: int = 0
    low: float | None = None
    high: float | None = None
    median: float | None = None
    values: dict[str, int] = field(default_factory=dict)
    years: bool = False
    findings: tuple[Finding, ...] = ()


def number_column(
    rows: Sequence[Row], name: str, role: str, kind: str, *, years: bool = False
) -> Column:
    """A column of numbers; `years`: they should be ages in years."""
    read: list[tuple[Row, float]] = []
    unusable: list[Row] = []
    for row in rows:
        try:
            value = read_number(row, name, censored=kind == "censored")
        except TableError:
            unusable.append(row)
            continue
        if value is not None:
            read.append((row, value))
    values = np.array([value for _, value in read], np.float64)
    texts = [read_cell(row, name) for row, _ in read]
    missing = len(rows) - len(read) - len(unusable)
    found = _gaps(name, role, len(read), missing)
    found += _unusable(name, role, unusable, "no usable number")
    if len(read):
        found += _constant(name, len(read), len(set(values.tolist())))
        found += number_check.ages(name, values) if years else []
        years = years and are_years(values)
        # What is no age at all is said, and needs no further word.
        possible = values if not years else values[[not impossible_age(v) for v in values]]
        found += number_check.codes_for_missing(name, possible)
        found += number_check.thousands(name, texts, values)
        found += number_check.outliers(name, read, values)
        found += number_check.ids(name) if role == "feature" else []
    low, high, median = (
        (float(values.min()), float(values.max()), float(np.median(values)))
        if len(read)
        else (None, None, None)
    )
    counts = len(read), missing, len(unusable)
    return Column(
        name, role, kind, *counts, low, high, median, {}, years and bool(read), tuple(found)
    )


def category_column(
    rows: Sequence[Row], name: str, role: str, kind: str, listed: Sequence[str] = ()
) -> Column:
    """A column of categories: the `listed` ones (and no others), or whatever the cells hold."""
    texts = [read_cell(row, name) for row in rows]
    unusable: list[Row] = []
    counts: Counter[str] = Counter()
    spelt: dict[str, Counter[str]] = {}
    for row, text in zip(rows, texts, strict=True):
        if listed:
            try:
                category = read_category(row, name, listed)
            except TableError:
                unusable.append(row)
                continue
        else:
            category = None if is_missing(text) else text.casefold()
        if category is not None:
            counts[category] += 1
            spelt.setdefault(category, Counter())[text] += 1
    known = counts.total()
    missing = len(rows) - known - len(unusable)
    found = _gaps(name, role, known, missing)
    found += _unusable(name, role, unusable, f"not in the list ({', '.join(listed)})")
    # One category is what its most frequent spelling says.
    values = {
        category if listed else max(sorted(spelt[category]), key=spelt[category].__getitem__): count
        for category, count in sorted(counts.items())
    }
    if known:
        found += _constant(name, known, len(values))
        if listed:
            found += category_check.never_seen(name, values, listed)
        else:
            found += category_check.spellings(name, values, spelt)
            found += category_check.ids(name, values)
            found += category_check.words_for_missing(name, values)
    return Column(
        name, role, kind, known, missing, len(unusable), values=values, findings=tuple(found)
    )


def feature_column(rows: Sequence[Row], feature: Feature) -> Column:
    """The column of a feature."""
    if feature.kind == "categorical":
        return category_column(rows, feature.name, "feature", feature.kind, feature.categories)
    years = means_age(feature.name)
    return number_column(rows, feature.name, "feature", feature.kind, years=years)


def _gaps(name: str, role: str, known: int, missing: int) -> list[Finding]:
    if not known:
        text = f"{name!r}: no case has a usable value; drop the column, or fill it"
        return [Finding(text, "table-feature-empty")]
    if 2 * missing > known + missing:
        share = missing / (known + missing)
        then = {"feature": "the imputer guesses most of it", "target": "those cases are left out"}
        text = f"{name!r} is empty in {share:.0%} of the rows"
        return [Finding("; ".join([text, *([then[role]] if role in then else [])]))]
    return []


def _constant(name: str, known: int, distinct: int) -> list[Finding]:
    if distinct > 1 or known < 2:
        return []
    return [Finding(f"{name!r} has one value in all rows: nothing can be learned from it")]


def _unusable(name: str, role: str, rows: Sequence[Row], what: str) -> list[Finding]:
    if not rows:
        return []
    shown = ", ".join(f"{read_cell(row, name)!r} (line {row.line})" for row in rows[:SHOWN])
    cells = "cell" if len(rows) == 1 else "cells"
    text = f"{name!r}: {len(rows)} {cells} {what}: {shown}{more(len(rows))}"
    if any(re.fullmatch(r"\d{1,3}([,'’ ]\d{3})+", read_cell(row, name)) for row in rows):
        text += "; write thousands without a separator"
    return [Finding(text if role == "stratify" else f"{text}; the cases are left out")]
