"""What of a BIDS dataset is not searched, and the columns that its sessions add to the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hyperfusion_rt.data.table_file import (
    LeftOut,
    Row,
    Table,
    is_missing,
    normalise_id,
    plain,
    read_table,
)
from hyperfusion_rt.errors import CohortError, TableError

DESCRIPTION = "dataset_description.json"
IGNORE = ".bidsignore"

# Folders beside the subjects' that hold anything but the dataset's own scans.
NOT_SEARCHED = ("code", "derivatives", "docs", "logs", "sourcedata", "stimuli")

# (path, whether it is a folder) -> whether it is left out.
Skip = Callable[[Path, bool], bool]


def dataset_of(folder: Path) -> Path | None:
    """The BIDS dataset that `folder` is, or in one of whose subjects' folders it lies; else None.

    A dataset has a `dataset_description.json`, a `.bidsignore`, or folders `sub-*`.
    """
    folder = without_dots(folder)
    for root in (folder, *folder.parents):
        below = folder.relative_to(root).parts
        if below and not below[0].lower().startswith("sub-"):
            continue
        if (root / DESCRIPTION).is_file() or (root / IGNORE).is_file():
            return root
    return folder if subject_folders(folder) else None


def dataset_type(folder: Path) -> str:
    """What the dataset's own description says that it is, in lower case; empty where it has none.

    Raises:
        CohortError: the description cannot be read.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return ""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        content, why = None, str(error)
    else:
        why = "it is no JSON object"
    if not isinstance(content, dict):
        raise CohortError(
            f"{path}: cannot be read: {why}; mend it, or give `source`, raw or registered",
            code="bids-description-unreadable",
        )
    return str(content.get("DatasetType", "")).lower()


def subject_folders(folder: Path) -> list[Path]:
    """The folders `sub-*` right below `folder`, sorted."""
    return sorted(
        path for path in folder.iterdir() if path.name.lower().startswith("sub-") and path.is_dir()
    )


def not_searched(folder: Path) -> Skip:
    """Which files and folders below `folder` its dataset leaves out.

    These are the folders of `NOT_SEARCHED`, and what `.bidsignore` lists (in the syntax of
    `.gitignore`). Outside a BIDS dataset nothing is left out.

    Raises:
        CohortError: `.bidsignore` cannot be read, or a line of it is no pattern.
    """
    root = dataset_of(folder)
    if root is None:
        return lambda path, is_folder: False
    listed = _bidsignore(root / IGNORE)
    prefix = without_dots(folder).relative_to(root)

    def skip(path: Path, is_folder: bool) -> bool:
        below = prefix / path.relative_to(folder)
        if is_folder and below.as_posix() in NOT_SEARCHED:
            return True
        return listed(below.as_posix() + ("/" if is_folder else ""))

    return skip


def without_dots(path: Path) -> Path:
    """The absolute path. Links are kept, since names are what counts; only a `..` resolves them."""
    path = path.absolute()
    if ".." not in path.parts:
        return path
    last = len(path.parts) - path.parts[::-1].index("..")
    return Path(*path.parts[:last]).resolve().joinpath(*path.parts[last:])


def _bidsignore(path: Path) -> Callable[[str], bool]:
    if not path.is_file():
        return lambda name: False
    from pathspec import GitIgnoreSpec

    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise CohortError(
            f"{path}: cannot be read: {error.strerror or error}", code="cohort-unreadable"
        ) from None
    for number, line in enumerate(lines, 1):
        try:
            GitIgnoreSpec.from_lines([line])
        except ValueError:
            raise CohortError(
                f"{path}, line {number}: {line!r} is no pattern; write it as in a .gitignore",
                code="cohort-bidsignore-invalid",
            ) from None
    spec = GitIgnoreSpec.from_lines(lines)
    return lambda name: bool(spec.match_file(name))


@dataclass
class _Sessions:
    """What the `sessions.tsv` of all participants say.

    `cells`: by subject and session, those of `columns`. `defects`: (reason, code) by subject.
    """

    columns: tuple[str, ...] = ()
    cells: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    defects: dict[str, tuple[str, str]] = field(default_factory=dict)


def _read_sessions(bids_dir: Path, subjects: Iterable[str]) -> _Sessions:
    sessions = _Sessions()
    for subject in dict.fromkeys(subjects):
        path = bids_dir / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
        if not path.is_file():
            continue
        try:
            found = read_table(path, id_column="session_id")
        except TableError as error:
            sessions.defects[subject] = str(error), error.code
            continue
        if found.problems:
            first = found.problems[0]
            reason = f"{path}, line {first.line}: {first.reason}"
            sessions.defects[subject] = reason, first.code
            continue
        added = [name for name in found.columns if name != found.id_column]
        sessions.columns = tuple(dict.fromkeys((*sessions.columns, *added)))
        # The column of ids is that of the sessions here.
        sessions.cells[subject] = {
            row.subject: {name: row.values[name] for name in added} for row in found.rows
        }
    return sessions


def session_rows(bids_dir: Path, table: Table) -> Table:
    """`table` (of `participants.tsv`) with what `sub-*/sub-*_sessions.tsv` say of each session.

    A participant with such a file gets one row per session that is listed there. Its cells are the
    participant's; those of columns that `sessions.tsv` has, too, are the session's, also where
    they are `n/a`: an age at another session is not this one's. Where `table` has a row for the
    very session, that row is the one that is changed, and rows of other sessions stay.
    Columns that differ in case, spaces, `_` or `-` alone (`age`, `AGE`) are one: each of them has
    the session's value then. Participants without the file keep their rows. A row's `line` is the
    table's, so that the
    sessions of one participant share it.

    A file that cannot be used leaves its participant out, with a problem that names it. The given
    table is not changed; without any such file it is returned.
    """
    sessions = _read_sessions(bids_dir, (row.subject for row in table.rows))
    if not sessions.cells and not sessions.defects:
        return table

    session_column = table.session_column or "session_id"
    columns = tuple(dict.fromkeys((*table.columns, *sessions.columns, session_column)))
    known = {(row.subject, row.session) for row in table.rows}
    rows: list[Row] = []
    problems = list(table.problems)
    for row in table.rows:
        if row.subject in sessions.defects:
            reason, code = sessions.defects[row.subject]
            problems.append(LeftOut(row.subject, row.session, row.line, reason, code))
            continue
        # Every row has every column: a column that only others' sessions have is not known.
        values = {name: _cell(row.values, name, "n/a") for name in columns}
        of_subject = {
            session: {name: _cell(cells, name, values[name]) for name in columns}
            for session, cells in sessions.cells.get(row.subject, {}).items()
        }
        if row.session is not None:
            rows.append(replace(row, values=of_subject.get(row.session, values)))
        elif not of_subject:
            rows.append(replace(row, values=values))
        else:
            rows += [
                Row(row.subject, session, row.line, cells | {session_column: session})
                for session, cells in of_subject.items()
                if (row.subject, session) not in known
            ]
    problems.sort(key=lambda problem: problem.line)
    return replace(
        table, columns=columns, rows=rows, session_column=session_column, problems=problems
    )


def _cell(cells: Mapping[str, str], name: str, default: str) -> str:
    """The cell of column `name`, or of one that is spelt nearly so."""
    if name in cells:
        return cells[name]
    return next((cell for other, cell in cells.items() if plain(other) == plain(name)), default)


def participants(bids_dir: Path, table: Table | None) -> list[str]:
    """The ids, without `sub-`, of all that have a folder in the dataset or a row, where there is a
    table; sorted.
    """
    skip = not_searched(bids_dir)
    folders = [path for path in subject_folders(bids_dir) if not skip(path, True)]
    rows = [row.subject for row in table.rows] if table else []
    problems = table.problems if table else ()
    left_out = [problem.subject for problem in problems if not is_missing(problem.subject)]
    return sorted({*(normalise_id(path.name) for path in folders), *rows, *left_out})
