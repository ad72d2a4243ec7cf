"""A table's rows by subject and session: which of them belongs to a scan."""

from __future__ import annotations

from dataclasses import dataclass

from hyperfusion_rt.data.id_match import (
    is_usual_ending,
    near,
    plain_id,
    rival,
    session_of,
    shorter,
    split,
)
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_file import stem
from hyperfusion_rt.data.table_file import Row, Table, normalise_id


@dataclass(frozen=True)
class Match:
    """The row of a scan, and what a reader should know of how it was found."""

    row: Row
    session: str | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class NoRow:
    """Why a scan has no row; `doubt`: it may have one, but which of two."""

    reason: str
    code: str
    doubt: bool = False


class TableIndex:
    """The table's rows by subject, and those left out of it: they, too, claim their scans."""

    def __init__(self, table: Table) -> None:
        self.session_column = table.session_column
        self.rows: dict[str, list[Row]] = {}
        self.left_out: dict[str, dict[str | None, int]] = {}
        for row in table.rows:
            self.rows.setdefault(row.subject, []).append(row)
        for problem in table.problems:
            if problem.subject and not problem.passed_over:
                lines = self.left_out.setdefault(problem.subject, {})
                lines.setdefault(problem.session, problem.line)
        # A left-out id counts: the scan of '01_2' must not fall to '01'.
        self.ids = self.rows.keys() | self.left_out.keys()
        # What people and spreadsheets write in another way: worth a hint, too little for a match.
        self.plain: dict[tuple[str, ...], list[str]] = {}
        for name in sorted(self.ids):
            self.plain.setdefault(plain_id(name), []).append(name)

    def subject_of(self, scan: Scan) -> str:
        """The subject that a scan belongs to."""
        return split(scan, self.ids)[0]

    def find(self, scan: Scan) -> Match | NoRow:
        """The scan's row, or why there is none."""
        subject, rest = split(scan, self.ids)
        rows = {row.session: row for row in self.rows.get(subject, [])}
        left_out = self.left_out.get(subject, {})
        if not (rows or left_out):
            flat = normalise_id(stem(scan.path)) == scan.subject
            hint = near(subject, self.plain, flat=flat)
            return NoRow(f"no row for subject {subject!r} in the table{hint}", "scan-without-row")
        other = self._also_meant(scan, subject, rest)
        if other is not None:
            return NoRow(
                f"file name {scan.subject!r}: subject {subject!r} or {other!r} of the table? "
                "Rename the file",
                "scan-name-conflict",
                doubt=True,
            )
        if not rows:
            return _row_left_out(min(left_out.values()))
        sessions = rows.keys() | left_out.keys()
        session, ending = session_of(scan, subject, rest, sessions)
        found = self._row(session, rows, left_out)
        if isinstance(found, NoRow):
            return found
        return Match(found, session or found.session, _doubt(scan, subject, ending))

    def _row(
        self,
        session: str | None,
        rows: dict[str | None, Row],
        left_out: dict[str | None, int],
    ) -> Row | NoRow:
        if self.session_column is None:
            return next(iter(rows.values()))
        sessions = rows.keys() | left_out.keys()
        if session in rows:
            return rows[session]
        if session in left_out:
            return _row_left_out(left_out[session])
        listed = ", ".join(sorted(s or "(none)" for s in sessions))
        if session is not None and sessions != {None}:
            spelt = {plain_id(s): s for s in sessions if s}
            close = spelt.get(plain_id(session))
            hint = f"; {close!r} is not spelt alike" if close else ""
            reason = f"no row for session {session!r}; the table has {listed}{hint}"
            return NoRow(reason, "scan-without-row")
        if len(sessions) == 1:
            return next(iter(rows.values()))
        return NoRow(
            f"the scan's session is unknown and the table has several ({listed}); "
            "put it into a folder 'ses-NAME'",
            "scan-session-unknown",
        )

    def _also_meant(self, scan: Scan, subject: str, rest: str) -> str | None:
        """Another subject that a flat file's name may mean."""
        other = rival(scan.subject, subject, self.plain) if rest else None
        if other is not None:
            return other
        for name, after in shorter(scan, subject, self.ids):
            lines = self.left_out.get(name, {})
            sessions = {row.session for row in self.rows.get(name, [])} | lines.keys()
            if session_of(scan, name, after, sessions)[0] in sessions - {None}:
                return name
        return None


def _row_left_out(line: int) -> NoRow:
    return NoRow(f"its row (line {line}) was left out of the table", "scan-row-left-out")


def _doubt(scan: Scan, subject: str, ending: str) -> tuple[str, ...]:
    """A warning where a flat file's name says more than the subject and what is usual behind it."""
    if is_usual_ending(ending):
        return ()
    return (
        f"file name {scan.subject!r}: taken for subject {subject!r}, since no row has an id with "
        f"{ending!r} in it; if it is somebody else, rename the file or add a row",
    )
