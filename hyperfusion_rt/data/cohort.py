"""Joining scans with the rows of a table.

Whatever cannot be paired without doubt is listed as a problem, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_space import PASSED_OVER
from hyperfusion_rt.data.table_columns import disagreement, lookalikes
from hyperfusion_rt.data.table_file import LeftOut, Row, Table, normalise_id
from hyperfusion_rt.data.table_index import Match, TableIndex

# Defects that leave no doubt whose scan it is: its row is not looked for elsewhere.
_KNOWN_OWNER = (
    "scan-unreadable",
    "scan-format-unknown",
    "scan-space-not-mni",
    "scan-channel-missing",
    "scan-not-t1",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A scan and its row. `session` is the scan's, or else the row's.

    `more`: the files of its further channels, beside `scan`, which is the first's.
    `warnings`: what a reader of its prediction should know of how the two were matched.
    """

    subject: str
    session: str | None
    scan: Path
    row: Row
    warnings: tuple[str, ...] = ()
    more: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Of all channels, in their order."""
        return (self.scan, *self.more)


# `passed-over`: nothing is wrong, another file was used instead. `defect`: everything else.
ProblemKind = Literal["scan-without-row", "row-without-scan", "passed-over", "defect"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A scan or a row that is in no case, and why; `where` is its file (and line).

    Source `list`: an id that was asked for (`restrict`) and that neither has. `code`, one of
    `CODES`, says more than `kind`.
    """

    subject: str
    session: str | None
    source: Literal["scan", "row", "list"]
    where: str
    reason: str
    code: str
    kind: ProblemKind = "defect"


@dataclass(frozen=True, slots=True)
class Cohort:
    """What can be used, in the scans' order, and what cannot: scans first, then rows by line.

    `notes`: which columns were taken for what, and how many scans have a row.
    """

    cases: list[Case]
    problems: list[Problem]
    notes: tuple[str, ...] = ()


def join(scans: Sequence[Scan], table: Table, read: Sequence[str] = ()) -> Cohort:
    """Pair every scan with its row.

    Ids are matched as `normalise_id` writes them. A flat file's name may begin with the subject's
    id (the longest wins), followed by `_`, `-` or `.`; what is no usual ending behind it is a
    warning of the case, and a name that may mean two subjects has no row. Without sessions in the
    table, all sessions of a subject use its row. With them, a scan without one takes the session
    that a folder or its name bears, else the subject's only row. Scans that end up with the same
    subject and session are all left out: which of them is meant is not for the program to choose.

    Every scan and every row is in exactly one case or problem; a row may serve several scans, and
    the row of a scan that cannot be used is not listed beside it.

    Args:
        read: the columns that are read. Where a column that is spelt nearly so has another value,
            the case has a warning.
    """
    index = TableIndex(table)
    found: dict[tuple[str, str | None], list[Case]] = {}
    taken: dict[tuple[str, str | None], list[Path]] = {}
    problems: list[Problem] = []
    used: set[int] = set()
    matched = 0
    pairs = [
        (name, other)
        for name, other in lookalikes(table.columns, [table.sources.get(n, n) for n in read])
        if other not in table.sources
    ]

    def leave(
        subject: str, scan: Scan, path: Path, reason: str, code: str, kind: ProblemKind
    ) -> None:
        problems.append(Problem(subject, scan.session, "scan", str(path), reason, code, kind))

    for scan in scans:
        subject = index.subject_of(scan)
        for other in scan.others:
            comes = "is used" if scan.defect is None else "comes first"
            reason = f"another run of the same scan: {scan.path.name} {comes}"
            leave(subject, scan, other, reason, PASSED_OVER, "passed-over")
        if scan.code == PASSED_OVER:
            leave(subject, scan, scan.path, scan.defect or "", scan.code, "passed-over")
            continue
        match = index.find(scan) if scan.defect is None or scan.code in _KNOWN_OWNER else None
        if isinstance(match, Match):
            used.add(match.row.line)
            matched += 1
        if scan.defect is not None:
            leave(subject, scan, scan.path, scan.defect, scan.code, "defect")
            if isinstance(match, Match) and scan.code == "scan-unreadable":
                taken.setdefault((subject, match.session), []).append(scan.path)
        elif isinstance(match, Match):
            doubts = [disagreement(match.row, *pair) for pair in pairs]
            warnings = (*scan.warnings, *match.warnings, *match.row.warnings, *filter(None, doubts))
            case = Case(subject, match.session, scan.path, match.row, warnings, scan.more)
            found.setdefault((subject, case.session), []).append(case)
        elif match is not None:
            kind: ProblemKind = "defect" if match.doubt else "scan-without-row"
            leave(subject, scan, scan.path, match.reason, match.code, kind)

    cases = []
    for key, group in found.items():
        if len(group) == 1 and key not in taken:
            cases += group
        else:
            problems += _ambiguous(group, taken.get(key, []))
    problems.sort(key=lambda problem: problem.where)
    usable = sum(scan.code != PASSED_OVER for scan in scans)
    notes = [*table.notes, *_said_twice(table, pairs), f"{matched} of {usable} scans have a row"]
    return Cohort(cases, problems + _row_problems(table, used), tuple(notes))


def restrict(cohort: Cohort, subjects: Iterable[str]) -> Cohort:
    """Only the listed subjects' cases and problems; ids that are unknown become problems."""
    asked = {normalise_id(text): text for text in subjects}
    cases = [case for case in cohort.cases if case.subject in asked]
    problems = [problem for problem in cohort.problems if problem.subject in asked]
    seen = {case.subject for case in cases} | {problem.subject for problem in problems}
    reason = "neither a scan nor a row has this id; check its spelling"
    unknown = [
        Problem(subject, None, "list", text, reason, "cohort-unknown-id")
        for subject, text in asked.items()
        if subject not in seen
    ]
    return replace(cohort, cases=cases, problems=problems + unknown)


def _said_twice(table: Table, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The columns that are spelt nearly alike and have different values."""
    found = []
    for name, other in pairs:
        rows = sum(disagreement(row, name, other) is not None for row in table.rows)
        if rows:
            found.append(f"columns {name!r} and {other!r} differ in {rows} rows; {name!r} is read")
    return found


def _ambiguous(cases: Sequence[Case], unreadable: Sequence[Path]) -> list[Problem]:
    """Every one of several cases of a subject and session; there are `unreadable` ones, too."""
    found = []
    for case in cases:
        paths = [other.scan for other in cases if other is not case]
        others = ", ".join(map(str, [*paths, *unreadable]))
        reason = (
            f"several scans of this subject and session: also {others}; which of them is meant "
            "is unclear: keep one (in BIDS, choose it with `bids_filter`, or list the others in "
            ".bidsignore)"
        )
        where = str(case.scan)
        found.append(Problem(case.subject, case.session, "scan", where, reason, "scan-ambiguous"))
    return found


def _row_problems(table: Table, used: set[int]) -> list[Problem]:
    def problem(row: Row | LeftOut, reason: str, code: str, kind: ProblemKind) -> Problem:
        where = f"{table.path}, line {row.line}"
        return Problem(row.subject, row.session, "row", where, reason, code, kind)

    reason = "no scan was found for this row"
    found = [
        (p.line, problem(p, p.reason, p.code, "passed-over" if p.passed_over else "defect"))
        for p in table.problems
    ]
    found += [
        (row.line, problem(row, reason, "row-without-scan", "row-without-scan"))
        for row in table.rows
        if row.line not in used
    ]
    return [problem for _, problem in sorted(found, key=lambda entry: entry[0])]
