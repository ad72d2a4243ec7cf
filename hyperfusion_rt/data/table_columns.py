"""Which columns of a table name subjects and sessions, where the usual names leave a choice.

`SES` may be a session or the socio-economic status, and a table may have PTID and RID: the scans
decide. What is decided, and what is not taken, is in `Table.notes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperfusion_rt.data.id_match import session_of, split
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.table_file import (
    SESSION_COLUMNS,
    SUBJECT_COLUMNS,
    Duplicates,
    Row,
    Table,
    TableText,
    is_missing,
    normalise_id,
    plain,
    read_number,
    read_text,
)
from hyperfusion_rt.errors import TableError

# Usual names of a session's column that mean other things, too (socio-economic status).
_UNSURE = ("ses",)

_Lines = dict[str, set[int]]


def read_table_for(
    scans: Sequence[Scan],
    path: str | Path,
    *,
    id_column: str | None = None,
    session_column: str | None = None,
    on_duplicate: Duplicates = "refuse",
) -> Table:
    """As `read_table`; which columns name subjects and sessions is told by the scans' ids.

    Of several columns that may name subjects, the one that the most scans have their id in. A
    column of sessions where the scans' sessions are among its values, or where it tells apart
    several rows of a subject. Columns that are named here are taken as they are.

    Raises:
        TableError: as `read_table`; or two columns do equally well and mean different rows.
    """
    text = read_text(path)
    if id_column is None:
        subject, said = _subject_column(text, scans)
    else:
        subject, said = str(text.find((), id_column)), ""
    notes = [f"subjects: column {subject!r}{said}"]
    if session_column is None:
        session, note = _session_column(text, scans, subject)
        notes.append(note)
    else:
        session = text.find((), session_column)
        notes.append(f"sessions: column {session!r}")
    table = text.table(subject, session, on_duplicate)
    return replace(table, notes=tuple(f"{text.path.name}: {note}" for note in notes if note))


def scans_by_column(path: str | Path, scans: Sequence[Scan]) -> dict[str, int]:
    """How many scans have their id in each column of a table; columns with none are left out.

    Raises:
        TableError: as `read_table`.
    """
    text = read_text(path)
    found = {name: len(_rows_of(scans, _lines_by_id(text, name))) for name in text.columns}
    return {name: count for name, count in found.items() if count}


def lookalikes(columns: Iterable[str], read: Iterable[str]) -> list[tuple[str, str]]:
    """(a column that is read, another one that is spelt nearly as it is), for all such columns."""
    columns = list(columns)
    return [
        (name, other)
        for name in read
        if name in columns
        for other in columns
        if other != name and plain(other) == plain(name)
    ]


def disagreement(row: Row, name: str, other: str) -> str | None:
    """A warning if a row has another value in column `other` than in `name`, which is read."""
    here, there = row.values[name].strip(), row.values[other].strip()
    if here.casefold() == there.casefold() or (is_missing(here) and is_missing(there)):
        return None
    try:
        if read_number(row, name) == read_number(row, other):
            return None
    except TableError:
        pass
    return f"column {name!r} is read ({here!r}); column {other!r} says {there!r}"


# ---- subjects


def _subject_column(text: TableText, scans: Sequence[Scan]) -> tuple[str, str]:
    """The column of subjects, and what is to be said of the choice."""
    usual = text.usual(SUBJECT_COLUMNS)
    if not usual:
        raise text.no_subject_column()
    if len(usual) == 1:
        return usual[0], ""
    lines = {name: _lines_by_id(text, name) for name in usual}
    rows = {name: _rows_of(scans, lines[name]) for name in usual}
    best = max(usual, key=lambda name: len(rows[name]))  # the first of several
    for other in usual:
        apart = [p for p, found in rows[best].items() if not found & rows[other].get(p, found)]
        if other != best and apart and len(rows[other]) == len(rows[best]):
            raise TableError(
                f"{text.path}: columns {best!r} and {other!r} both have the scans' ids and mean "
                f"different rows (the first: {apart[0]}); name the right one with `id_column`, "
                "or rename the other",
                code="table-ambiguous-column",
            )
    counts = ", ".join(f"{name!r} {len(rows[name])}" for name in usual)
    return best, f" (of {len(scans)} scans, there are ids in {counts})"


def _lines_by_id(text: TableText, name: str) -> _Lines:
    found: _Lines = {}
    for line, cell in text.column(name):
        if not is_missing(cell):
            found.setdefault(normalise_id(cell), set()).add(line)
    return found


def _rows_of(scans: Sequence[Scan], lines: _Lines) -> dict[Path, set[int]]:
    """The lines that each scan's subject has, for scans that have any."""
    return {scan.path: found for scan in scans if (found := lines.get(split(scan, lines)[0]))}


# ---- sessions


@dataclass(frozen=True)
class _Judged:
    """What a column would be as that of sessions.

    `rows`: the lines of each scan whose session it has. `asked`: how many scans with a session
    belong to a subject of the table. `numbers`: nothing but plain numbers. `several`: a subject has
    several rows. `apart`: it tells all of them apart.
    """

    rows: dict[Path, tuple[int, ...]]
    asked: int
    numbers: bool
    several: bool
    apart: bool


def _session_column(text: TableText, scans: Sequence[Scan], subject: str) -> tuple[str | None, str]:
    """The column of sessions, and what is to be said of the choice."""
    usual = [name for name in text.usual(SESSION_COLUMNS) if name != subject]
    judged = {name: _judge(text, scans, subject, name) for name in usual}
    sure = [name for name in usual if plain(name) not in _UNSURE]
    best = max(sure, key=lambda name: len(judged[name].rows), default=None)
    if best is not None:
        for other in sure:
            _refuse_two(text, best, other, judged)
        has = judged[best]
        # Without sessions on either side there is nothing to take: none is invented.
        if not (has.rows or has.asked or has.several):
            best = None
    for name in usual:
        if name in sure or not _is_session(judged[name], alone=not sure):
            continue
        if best is None or len(judged[name].rows) > len(judged[best].rows):
            _refuse_rivals(text, scans, subject, name, judged[name])
            best = name
    others = [name for name in usual if name != best]
    not_taken = f"; not taken for sessions: {', '.join(map(repr, others))}" if others else ""
    if best is None:
        return None, f"no column of sessions{not_taken}" if usual else ""
    has = judged[best]
    return best, f"sessions: column {best!r} ({len(has.rows)} scans have theirs in it){not_taken}"


def _is_session(column: _Judged, *, alone: bool) -> bool:
    """Whether a column whose name is not enough is one of sessions.

    Labels of sessions (`m12`, `ses-1`, `01`) are. Plain numbers may be a status or a score that
    happens to be a session's number: they must tell a subject's rows apart and fit every scan.
    """
    if not column.rows:
        return False
    if not column.numbers:
        return True
    return alone and column.several and column.apart and len(column.rows) == column.asked


def _judge(text: TableText, scans: Sequence[Scan], subject: str, name: str) -> _Judged:
    ids, cells = dict(text.column(subject)), dict(text.column(name))
    lines: dict[str, dict[str | None, list[int]]] = {}
    for line in ids.keys() & cells.keys():
        if not is_missing(ids[line]):
            session = None if is_missing(cells[line]) else normalise_id(cells[line])
            lines.setdefault(normalise_id(ids[line]), {}).setdefault(session, []).append(line)
    rows: dict[Path, tuple[int, ...]] = {}
    asked = 0
    for scan in scans:
        owner, rest = split(scan, lines)
        sessions = lines.get(owner, {})
        session = session_of(scan, owner, rest, sessions)[0]
        asked += bool(sessions) and session is not None
        if session is not None and session in sessions:
            rows[scan.path] = tuple(sorted(sessions[session]))
    written = [cell.strip() for cell in cells.values() if not is_missing(cell)]
    of_subject = [found for sessions in lines.values() for found in sessions.values()]
    return _Judged(
        rows,
        asked,
        numbers=all(_is_plain_number(cell) for cell in written),
        several=any(sum(map(len, sessions.values())) > 1 for sessions in lines.values()),
        apart=all(len(found) == 1 for found in of_subject),
    )


def _is_plain_number(cell: str) -> bool:
    """`2` or `2.0`, but not `02`, which somebody has written as a label."""
    return cell.replace(".", "", 1).isdecimal() and not (len(cell) > 1 and cell.startswith("0"))


def _refuse_two(text: TableText, name: str, other: str, judged: Mapping[str, _Judged]) -> None:
    mine, theirs = judged[name].rows, judged[other].rows
    apart = [path for path in mine if theirs.get(path, mine[path]) != mine[path]]
    if other == name or len(mine) != len(theirs) or not apart:
        return
    raise TableError(
        f"{text.path}: columns {name!r} and {other!r} both have the scans' sessions and mean "
        f"different rows (the first: {apart[0]}); rename the one that does not name sessions",
        code="table-ambiguous-column",
    )


def _refuse_rivals(
    text: TableText, scans: Sequence[Scan], subject: str, name: str, judged: _Judged
) -> None:
    """A column of numbers with an unsure name must be the only one that fits."""
    if not judged.numbers:
        return
    for other in text.columns:
        if other in (subject, name):
            continue
        found = _judge(text, scans, subject, other)
        if found.apart:
            _refuse_two(text, name, other, {name: judged, other: found})
