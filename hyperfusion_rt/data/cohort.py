"""Joining scans with the rows of a table.

Whatever cannot be paired without doubt is listed as a problem, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hyperfusion_rt.data.scan_search import Scan, stem
from hyperfusion_rt.data.table_file import LeftOut, Row, Table, normalise_id


@dataclass(frozen=True, slots=True)
class Case:
    """A scan and its row. `session` is the scan's, or else the row's.

    `warnings`: what a reader of its prediction should know of how the two were matched.
    """

    subject: str
    session: str | None
    scan: Path
    row: Row
    warnings: tuple[str, ...] = ()


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
    """What can be used, in the scans' order, and what cannot: scans first, then rows by line."""

    cases: list[Case]
    problems: list[Problem]


def join(scans: Sequence[Scan], table: Table) -> Cohort:
    """Pair every scan with its row.

    Ids are matched as `normalise_id` writes them. A flat file's name may begin with the subject's
    id (the longest wins), followed by `_`, `-` or `.`. Without sessions in the table, all sessions
    of a subject use its row. With them, a scan without one takes the session that a folder or its
    name bears, else the subject's only row. Scans that end up with the same subject and session
    are all left out: which of them is meant is not for the program to choose.
    """
    index = _Index(table)
    found: dict[tuple[str, str | None], list[Case]] = {}
    problems: list[Problem] = []
    used: set[int] = set()

    def leave(
        scan: Scan, subject: str, path: Path, reason: str, code: str, kind: ProblemKind
    ) -> None:
        problems.append(Problem(subject, scan.session, "scan", str(path), reason, code, kind))

    for scan in scans:
        for other in scan.others:
            reason = f"another run of the same scan: {scan.path.name} is used"
            leave(scan, scan.subject, other, reason, "scan-passed-over", "passed-over")
        subject, rest = index.split(scan)
        if scan.defect is not None:
            leave(scan, subject, scan.path, scan.defect, scan.code, "defect")
            continue
        match = index.row_of(scan, subject, rest)
        if isinstance(match, _NoRow):
            leave(scan, subject, scan.path, match.reason, match.code, "scan-without-row")
            continue
        used.add(match.line)
        case = Case(subject, scan.session or match.session, scan.path, match)
        found.setdefault((subject, case.session), []).append(case)

    cases = [group[0] for group in found.values() if len(group) == 1]
    for group in found.values():
        problems += _ambiguous(group)
    problems.sort(key=lambda problem: problem.where)
    return Cohort(cases, problems + _row_problems(table, used))


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
    return Cohort(cases, problems + unknown)


@dataclass(frozen=True)
class _NoRow:
    """Why a scan has no row."""

    reason: str
    code: str


class _Index:
    """The table's rows by subject, and those left out of it: they, too, claim their scans."""

    def __init__(self, table: Table) -> None:
        self.has_sessions = table.session_column is not None
        self.rows: dict[str, list[Row]] = {}
        self.left_out: dict[str, dict[str | None, int]] = {}
        for row in table.rows:
            self.rows.setdefault(row.subject, []).append(row)
        for problem in table.problems:
            if problem.subject:
                lines = self.left_out.setdefault(problem.subject, {})
                lines.setdefault(problem.session, problem.line)
        # Spreadsheets turn 007 into 7: worth a hint, too little for a match.
        self.unpadded = {subject.lstrip("0"): subject for subject in self.rows}

    def split(self, scan: Scan) -> tuple[str, str]:
        """The subject that a scan belongs to, and what follows it in a flat file's name."""
        name = scan.subject
        # A left-out id counts: the scan of '01_2' must not fall to '01'.
        if name in self.rows or name in self.left_out or normalise_id(stem(scan.path)) != name:
            return name, ""
        ends = [n for n, character in enumerate(name) if character in "_-."]
        for end in reversed(ends):
            if name[:end] in self.rows or name[:end] in self.left_out:
                return name[:end], name[end + 1 :]
        return name, ""

    def row_of(self, scan: Scan, subject: str, rest: str) -> Row | _NoRow:
        """The scan's row, or why there is none."""
        rows = {row.session: row for row in self.rows.get(subject, [])}
        left_out = self.left_out.get(subject, {})
        if not rows:
            return self._no_row(subject, left_out)
        if not self.has_sessions:
            return next(iter(rows.values()))
        sessions = rows.keys() | left_out.keys()
        session = scan.session or _session_borne(scan, subject, rest, sessions)
        if session in rows:
            return rows[session]
        if session in left_out:
            return _row_left_out(left_out[session])
        listed = ", ".join(sorted(s or "(none)" for s in sessions))
        if session is not None and set(sessions) != {None}:
            reason = f"no row for session {session!r}; the table has {listed}"
            return _NoRow(reason, "scan-without-row")
        if len(sessions) == 1:
            return next(iter(rows.values()))
        return _NoRow(
            f"the scan's session is unknown and the table has several ({listed}); "
            "put it into a folder 'ses-NAME'",
            "scan-session-unknown",
        )

    def _no_row(self, subject: str, left_out: dict[str | None, int]) -> _NoRow:
        if left_out:
            return _row_left_out(min(left_out.values()))
        near = self.unpadded.get(subject.lstrip("0"))
        hint = f"; is it {near!r} there? Leading zeros count" if near else ""
        reason = f"no row for subject {subject!r} in the table{hint}"
        return _NoRow(reason, "scan-without-row")


def _row_left_out(line: int) -> _NoRow:
    return _NoRow(f"its row (line {line}) was left out of the table", "scan-row-left-out")


def _session_borne(
    scan: Scan, subject: str, rest: str, sessions: Iterable[str | None]
) -> str | None:
    """The session that a folder below the subject's is called, or that follows it in the name."""
    known = {session for session in sessions if session}
    folders = [normalise_id(part) for part in scan.path.parts[:-1]]
    if subject in folders:
        below = folders[len(folders) - folders[::-1].index(subject) :]
        named = {part for part in below if part in known}
    else:
        ends = [n for n, character in enumerate(rest) if character in "_-."] + [len(rest)]
        named = set([rest[:n] for n in ends if rest[:n] in known][-1:])
    return named.pop() if len(named) == 1 else None


def _ambiguous(cases: Sequence[Case]) -> list[Problem]:
    """Every one of several cases of a subject and session; none of a single case."""
    found = []
    for case in cases if len(cases) > 1 else ():
        others = ", ".join(str(other.scan) for other in cases if other is not case)
        reason = (
            f"several scans of this subject and session: also {others}; which of them is meant "
            "is unclear: keep one (in BIDS, list the others in .bidsignore)"
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
        (item.line, problem(item, item.reason, item.code, "defect")) for item in table.problems
    ]
    found += [
        (row.line, problem(row, reason, "row-without-scan", "row-without-scan"))
        for row in table.rows
        if row.line not in used
    ]
    return [problem for _, problem in sorted(found, key=lambda entry: entry[0])]
