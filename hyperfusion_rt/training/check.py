"""What a study holds and what is odd about it: said before the first epoch, refused where it must.

`check_table` looks at the columns, before any scan is decoded; `check_parts` at what each member
trains on and is measured with. `Check` is what `hfrt check` prints.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.config import Config, Feature, TableSpec
from hyperfusion_rt.data.column_check import (
    Column,
    category_column,
    feature_column,
    number_column,
)
from hyperfusion_rt.data.finding import Finding
from hyperfusion_rt.data.number_check import means_age, mixed_points
from hyperfusion_rt.data.table_file import Row, Table, is_missing, read_cell, read_number, suggest
from hyperfusion_rt.errors import CODES, CohortError, ConfigError, HyperFusionError, TableError
from hyperfusion_rt.training.leakage import leak, plain
from hyperfusion_rt.training.splits import Parts

# Fewer training cases of a class are hardly learned from.
FEW = 5
# Fewer test cases (of a class) leave figures that say little.
FEW_TESTED = 10
_SHOWN = 3
_COLUMN = re.compile(r"column '([^']*)'")


@dataclass(frozen=True)
class Left:
    """A case that is left out of training, and why; `code`: one of `CODES`."""

    subject: str
    session: str | None
    reason: str
    code: str


@dataclass(frozen=True)
class Part:
    """The cases of one part in one member: `counts` by class, or the range of a number."""

    member: int
    part: str
    cases: int
    counts: dict[str, int]
    low: float | None
    high: float | None
    median: float | None


@dataclass(frozen=True)
class Check:
    """A study before training. `cases` can be used, as far as they were looked at.

    `notes`: how scans and rows were matched.
    """

    cases: int
    columns: tuple[Column, ...]
    parts: tuple[Part, ...]
    findings: tuple[Finding, ...]
    left_out: tuple[Left, ...]
    notes: tuple[str, ...] = ()

    @property
    def refused(self) -> list[Finding]:
        """What can only be a mistake."""
        return [finding for finding in self.findings if finding.code is not None]

    @property
    def warnings(self) -> list[Finding]:
        """What is odd, but may be right."""
        return [finding for finding in self.findings if finding.code is None]

    def error(self, where: object) -> HyperFusionError | None:
        """One error that lists all that is refused, or None."""
        if not self.refused:
            return None
        codes = {finding.code for finding in self.refused}
        code = codes.pop() if len(codes) == 1 else "study-refused"
        kind = {"config": ConfigError, "table": TableError}.get(
            str(code).split("-")[0], CohortError
        )
        text = "; ".join(finding.text for finding in self.refused)
        # Some say themselves where they were found.
        start = "" if text.startswith(str(where)) else f"{where}: "
        return kind(f"{start}{text}", code=str(code))


# ---- columns


def missing_columns(config: Config, table: Table) -> list[Finding]:
    """The columns that the configuration names and the table lacks."""
    spec = config.tabular
    wanted = [(f"feature {feature.name!r}", feature.name) for feature in spec.features]
    wanted += [(f"target {spec.target!r}", spec.target)]
    wanted += [(f"tabular.stratify {name!r}", name) for name in spec.stratify]
    if (column := config.training.split_column) is not None:
        wanted.append((f"training.split_column {column!r}", column))
    return [
        Finding(
            f"{what}: the table has no such column{suggest(name, table.columns)} "
            f"(the columns are {', '.join(table.columns)})",
            "table-missing-column",
        )
        for what, name in dict(wanted).items()
        if name not in table.columns
    ]


def wrong_features(config: Config, table: Table) -> list[Finding]:
    """Features that are the target, an id, the split, or listed twice, whatever their spelling."""
    spec = config.tabular
    found = []
    seen: dict[str, str] = {}
    for name in (feature.name for feature in spec.features):
        if plain(name) == plain(spec.target):
            text = (
                f"tabular.features: {name!r} is the target {spec.target!r}, which the network "
                "shall predict; drop the feature"
            )
            found.append(Finding(text, "config-target-is-feature"))
        if plain(name) in seen:
            text = (
                f"tabular.features: {seen[plain(name)]!r} and {name!r} are one column listed twice"
            )
            found.append(Finding(text, "config-invalid"))
        seen.setdefault(plain(name), name)
        if name == table.id_column:
            text = (
                f"tabular.features: {name!r} is the column of subjects, which says nothing about "
                "a new case; drop the feature"
            )
            found.append(Finding(text, "config-invalid"))
        if name == config.training.split_column:
            text = (
                f"tabular.features: {name!r} is training.split_column, which says nothing about a "
                "new case; drop the feature"
            )
            found.append(Finding(text, "config-invalid"))
    return found


def wrong_weights(config: Config) -> list[Finding]:
    """Class weights that do not go with the classes."""
    weights, classes = config.training.class_weights, config.tabular.classes
    if not weights or len(weights) == (len(classes) or 1):
        return []
    text = f"training.class_weights has {len(weights)} numbers for {len(classes) or 1} classes"
    return [Finding(text, "config-invalid")]


def check_columns(config: Config, table: Table, rows: Sequence[Row]) -> list[Column]:
    """The columns that training reads, in the `rows` of the cases."""
    spec = config.tabular
    columns = [feature_column(rows, feature) for feature in spec.features]
    columns.append(_target_column(config, rows))
    named = {column.name for column in columns}
    for name in dict.fromkeys(spec.stratify):
        if name not in named:
            number = holds_numbers([read_cell(row, name) for row in rows])
            columns.append(
                number_column(rows, name, "stratify", "numeric", years=means_age(name))
                if number
                else category_column(rows, name, "stratify", "categorical")
            )
    points = mixed_points(
        table, [column.name for column in columns if column.kind != "categorical"]
    )
    return [
        replace(column, findings=(points[column.name], *column.findings))
        if column.name in points
        else column
        for column in columns
    ]


def holds_numbers(cells: Sequence[str]) -> bool:
    """Whether all cells that hold something hold a number."""
    known = [cell for cell in cells if not is_missing(cell)]
    try:
        return all(np.isfinite(float(cell)) for cell in known)
    except ValueError:
        return False


def is_age(config: Config) -> bool:
    """Whether the target is an age in years."""
    spec = config.tabular
    return not spec.classes and means_age(spec.target)


def _target_column(config: Config, rows: Sequence[Row]) -> Column:
    spec = config.tabular
    if not spec.classes:
        return number_column(rows, spec.target, "target", "numeric", years=is_age(config))
    listed = [value for name, values in spec.classes.items() for value in values or (name,)]
    column = category_column(rows, spec.target, "target", "classes", listed)
    # Several values may mean one class: that not all of them occur is as it should be.
    findings = tuple(f for f in column.findings if "nothing is learned of it" not in f.text)
    return replace(column, findings=findings)


def check_leaks(
    spec: TableSpec, rows: Sequence[Row], targets: NDArray[np.float64]
) -> list[Finding]:
    """What single features tell of the target, in the cases that can be used."""
    found = []
    for feature in spec.features:
        if plain(feature.name) != plain(spec.target):
            finding = leak(feature, rows, spec.target, targets, bool(spec.classes))
            found += [finding] if finding else []
    return found


# ---- parts


def check_parts(
    config: Config,
    rows: Sequence[Row],
    targets: NDArray[np.float64],
    parts: Parts,
    subjects: Sequence[str],
) -> tuple[list[Part], list[Finding]]:
    """Each member's training, validation and test part, and what is odd about them."""
    found: list[Part] = []
    findings: list[Finding] = []
    for member in range(config.training.members):
        names = parts.names(member)
        for name in ("train", "validation", "test"):
            chosen = np.flatnonzero(names == name)
            part = _part(config, member, name, targets[chosen])
            if name != "test" or member == 0:
                found.append(part)
                findings += _check_part(config, part)
        train = np.flatnonzero(names == "train")
        for feature in config.tabular.features:
            findings += _check_feature(member, feature, rows, names, train, subjects)
    return found, list(dict.fromkeys(findings))


def _part(config: Config, member: int, name: str, targets: NDArray[np.float64]) -> Part:
    classes = list(config.tabular.classes)
    if classes:
        counts = {label: int(np.sum(targets == i)) for i, label in enumerate(classes)}
        return Part(member, name, len(targets), counts, None, None, None)
    if not len(targets):
        return Part(member, name, 0, {}, None, None, None)
    low, high, median = targets.min(), targets.max(), np.median(targets)
    return Part(member, name, len(targets), {}, float(low), float(high), float(median))


def _check_part(config: Config, part: Part) -> list[Finding]:
    what = _named(config, part)
    absent = [name for name, count in part.counts.items() if not count]
    few = [f"{name} ({n})" for name, n in part.counts.items() if 0 < n < FEW]
    if part.part == "train":
        if part.cases < 2:
            text = f"{what} has {part.cases} case; a step needs two: add cases"
            return [Finding(text, "cohort-too-small")]
        found = []
        if absent:
            text = (
                f"{what} has no case of class {', '.join(absent)}: this network can never answer "
                "that rightly; add cases, take the class out of tabular.classes, or try another "
                "training.seed"
            )
            found.append(Finding(text))
        if few:
            found.append(Finding(f"{what} has few cases of {', '.join(few)}"))
        return found
    if part.cases and absent:
        present = len(part.counts) - len(absent)
        text = (
            f"{what} has no case of {', '.join(absent)}: its figures say nothing of it, and "
            f"chance is 1/{present}"
        )
        return [Finding(text)]
    if part.cases < 2:
        text = f"{what} has {part.cases} case{'' if part.cases else 's'}: its figures say nothing; "
        given = config.training.split_column or config.training.split_file
        lower = f" or lower training.parts (now {config.training.parts})"
        return [Finding(f"{text}add cases{'' if given else lower}")]
    small = [f"{name} {n}" for name, n in part.counts.items() if n < FEW_TESTED]
    if part.part == "test" and (small or part.cases < FEW_TESTED):
        text = f"{what} is small ({', '.join(small) or part.cases}): its figures are uncertain; "
        return [Finding(text + "cross-validation tests on every case")]
    return []


def _named(config: Config, part: Part) -> str:
    whose = (
        "" if config.training.members == 1 or part.part == "test" else f" of member {part.member}"
    )
    return f"the {'training' if part.part == 'train' else part.part} part{whose}"


def _check_feature(
    member: int,
    feature: Feature,
    rows: Sequence[Row],
    names: NDArray[np.str_],
    train: NDArray[np.int64],
    subjects: Sequence[str],
) -> list[Finding]:
    """A feature that no training case has, and categories that only the others have."""
    cells = [read_cell(row, feature.name) for row in rows]
    known = {cells[i].casefold() for i in train if not is_missing(cells[i])}
    if feature.kind != "categorical":
        known = {"" for i in train if _has_number(rows[int(i)], feature)}
    if len(train) and not known:
        text = (
            f"{feature.name!r}: no training case of member {member} has a value; drop the feature"
        )
        return [Finding(text, "table-feature-empty")]
    if feature.kind != "categorical":
        return []
    unseen: dict[str, list[int]] = {}
    for i, cell in enumerate(cells):
        if not is_missing(cell) and cell.casefold() not in known:
            unseen.setdefault(cell.casefold(), []).append(i)
    found = []
    for indices in unseen.values():
        ids = _ids([subjects[i] for i in indices])
        which = f"{feature.name!r}: {cells[indices[0]]!r} is in no training case of member {member}"
        if feature.categories:
            text = f"{which}, so the network has not learned what it means; cases: {ids}"
        else:
            text = (
                f"{which}, so the network cannot read it: not counted in the figures of the "
                f"{names[indices[0]]} part: {ids}"
            )
        found.append(Finding(text))
    return found


def _has_number(row: Row, feature: Feature) -> bool:
    return read_number(row, feature.name, censored=feature.kind == "censored") is not None


# ---- text


def lines(check: Check, *, everything: bool) -> list[str]:
    """The check as text. Without `everything`: a line of counts, and what is odd."""
    found = []
    if everything:
        found += list(check.notes)
        width = max((len(column.name) for column in check.columns), default=0)
        found += [_column_line(column, width) for column in check.columns]
        found += [_part_line(part) for part in check.parts]
    else:
        sizes = ", ".join(f"{part.part} {part.cases}" for part in check.parts if part.member == 0)
        left = f", {len(check.left_out)} left out" if check.left_out else ""
        found += [f"checked: {check.cases} cases{left}; {sizes}", *check.notes]
    found += left_lines(check.left_out)
    found += [f"warning: {finding.text}" for finding in check.warnings]
    return found


def _column_line(column: Column, width: int) -> str:
    total = column.known + column.missing + column.unusable
    share = column.missing / total if total else 0
    text = f"{column.name:<{width}}  {column.role}, {column.kind}: {column.known} known"
    text += f", {share:.0%} missing"
    if column.unusable:
        text += f", {column.unusable} unusable"
    if column.values:
        shown = [f"{value} {count}" for value, count in column.values.items()]
        more = f", and {len(shown) - 12} more" if len(shown) > 12 else ""
        text += f"; {', '.join(shown[:12])}{more}"
    elif column.low is not None:
        text += f"; {column.low:g} to {column.high:g}, median {column.median:g}"
    return text


def _part_line(part: Part) -> str:
    start = "test" if part.part == "test" else f"member {part.member}, {part.part}"
    text = f"{start}: {part.cases} cases"
    if part.counts:
        text += "; " + ", ".join(f"{name} {count}" for name, count in part.counts.items())
    elif part.low is not None:
        text += f"; {part.low:g} to {part.high:g}, median {part.median:g}"
    return text


def left_lines(left_out: Sequence[Left]) -> list[str]:
    """The left-out cases, a line for each kind of reason (and column), the most frequent first."""
    groups: dict[tuple[str, str], list[Left]] = {}
    for left in left_out:
        place = _COLUMN.search(left.reason)
        groups.setdefault((left.code, place[1] if place else ""), []).append(left)
    found = []
    for (code, column), members in sorted(groups.items(), key=lambda item: -len(item[1])):
        where = f", column {column!r}" if column else ""
        ids = _ids([f"{left.subject or '(no id)'}" for left in members])
        found.append(
            f"left out: {len(members)} ({code}{where}: {CODES[code]}): {ids}; "
            f"the first: {members[0].reason}"
        )
    return found


def _ids(names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(names))
    more = f" and {len(distinct) - _SHOWN} more" if len(distinct) > _SHOWN else ""
    return ", ".join(distinct[:_SHOWN]) + more
