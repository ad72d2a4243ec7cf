"""Finding scans, and joining them with the rows of a table.

`find_scans` tells subject and session from where a file lies and how it is called; `join` pairs
scans with rows. Whatever cannot be paired without doubt is listed as a problem, never guessed.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hyperfusion_rt.data.bids import NOT_SEARCHED, Skip, dataset_of, not_searched
from hyperfusion_rt.data.table import Problem as LeftOut
from hyperfusion_rt.data.table import Row, Table, normalise_id
from hyperfusion_rt.errors import CohortError

EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh")

# Kinds of image that lie beside the T1-weighted one in BIDS-like folders.
_OTHER_KIND = re.compile(
    "angio|asl|bold|dseg|dwi|epi|flair|inplanet[12]|m0scan|mask|pdt2|pdw|pet|probseg|sbref|"
    "t[12]map|t2star|t2starw|t2w",
    re.IGNORECASE,
)

# Strict, so that 'sub-002_S_0413_T1w' is not taken for subject 002.
_NAME = re.compile(
    r"sub-(?P<subject>[A-Za-z0-9]+)(?P<entities>(?:_[A-Za-z]+-[A-Za-z0-9+]+)*)"
    r"(?:_(?P<suffix>[A-Za-z][A-Za-z0-9]*))?"
)
_SESSION = re.compile(r"_ses-([^_]+)")
_RUN = re.compile(r"_run-([^_]+)")
_BIDS = re.compile(r"sub-([^/]+)/(?:ses-([^/]+)/)?anat/[^/]+")


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan; `subject` and `session` are normalised ids.

    `others` are further runs, which are not used. `defect` says why a folder gave no scan.
    """

    path: Path
    subject: str
    session: str | None = None
    others: tuple[Path, ...] = ()
    defect: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A scan and its row. `session` is the scan's, or else the row's."""

    subject: str
    session: str | None
    scan: Path
    row: Row


# `passed-over`: nothing is wrong, another file was used instead. `defect`: everything else.
ProblemKind = Literal["scan-without-row", "row-without-scan", "passed-over", "defect"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A scan or a row that is in no case, and why; `where` is its file (and line).

    Source `list`: an id that was asked for (`restrict`) and that neither has.
    """

    subject: str
    session: str | None
    source: Literal["scan", "row", "list"]
    where: str
    reason: str
    kind: ProblemKind = "defect"


@dataclass(frozen=True, slots=True)
class Cohort:
    """What can be used, in the scans' order, and what cannot: scans first, then rows by line."""

    cases: list[Case]
    problems: list[Problem]


def find_scans(path: str | Path) -> list[Scan]:
    """The scans under `path`, sorted by path.

    A file; a flat folder (the file's name is the subject); a folder per subject; or BIDS
    (`sub-*/[ses-*/]anat/*_T1w`), where everything else is ignored. Names of the BIDS kind
    (`sub-01_ses-02_T1w`) are understood anywhere. Links are followed, hidden files ignored; in a
    BIDS dataset also what its `.bidsignore` lists, `derivatives/`, `sourcedata/` and the like.

    Raises:
        CohortError: no such path, no permission to read it, a `.bidsignore` that cannot be used,
            or no scan found.
    """
    root = Path(path)
    try:
        if root.is_dir():
            entries = list(walk(root, not_searched(root)))
        elif root.exists():
            return [_single(root)]
        else:
            raise CohortError(f"{root}: no such file or folder")
    except OSError as error:
        raise CohortError(
            f"{root}: cannot be read: {error.strerror or error}; "
            "check its permissions or choose another folder"
        ) from None

    files = [file for _, inside, _ in entries for file in inside if is_scan(file)]
    in_bids = [(file, _bids(root, file)) for file in files]
    if any(scan for _, scan in in_bids):
        scans = [s for file, s in in_bids if s and stem(file).lower().endswith("_t1w")]
    else:
        scans = [_by_name_or_folder(root, file) for file in files if not _is_other_kind(file)]
    unreadable = [
        Scan(folder, normalise_id(folder.relative_to(root).parts[0]), defect=defect)
        for folder, _, defect in entries
        if defect is not None
    ]
    if not scans and not unreadable:
        raise CohortError(_nothing_found(root, files))
    return sorted(_first_runs(scans) + unreadable, key=lambda scan: scan.path)


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
    for scan in scans:
        for other in scan.others:
            reason = f"another run of the same scan: {scan.path.name} is used"
            where = str(other)
            problems.append(
                Problem(scan.subject, scan.session, "scan", where, reason, "passed-over")
            )
        subject, rest = index.split(scan)
        match = scan.defect or index.row_of(scan, subject, rest)
        if isinstance(match, str):
            kind: ProblemKind = "defect" if scan.defect else "scan-without-row"
            where = str(scan.path)
            problems.append(Problem(subject, scan.session, "scan", where, match, kind))
            continue
        used.add(match.line)
        case = Case(subject, scan.session or match.session, scan.path, match)
        found.setdefault((subject, case.session), []).append(case)

    cases = [group[0] for group in found.values() if len(group) == 1]
    for group in found.values():
        for case in group if len(group) > 1 else ():
            others = ", ".join(str(other.scan) for other in group if other is not case)
            reason = (
                f"several scans of this subject and session: also {others}; which of them is meant "
                "is unclear: keep one (in BIDS, list the others in .bidsignore)"
            )
            problems.append(Problem(case.subject, case.session, "scan", str(case.scan), reason))
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
        Problem(subject, None, "list", text, reason)
        for subject, text in asked.items()
        if subject not in seen
    ]
    return Cohort(cases, problems + unknown)


def is_scan(file: Path) -> bool:
    """Whether a file's name ends as a scan's does."""
    return file.name.lower().endswith(EXTENSIONS)


def stem(path: Path) -> str:
    """A file's name without what it ends in as a scan."""
    lower = path.name.lower()
    extension = next((e for e in EXTENSIONS if lower.endswith(e)), "")
    return path.name[: len(path.name) - len(extension)]


def walk(
    folder: Path, skip: Skip, chain: tuple[str, ...] = ()
) -> Iterator[tuple[Path, list[Path], str | None]]:
    """(folder, its files, None) for `folder` and each below; (folder, [], defect) if not readable.

    Hidden files and folders and what `skip` names are left out; links are followed. `chain` holds
    the real paths from the root to here: a link back to one of them is a loop.

    Raises:
        OSError: `folder` itself cannot be read.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    chain = (*chain, os.path.realpath(folder))
    kinds = [(path, path.is_dir()) for path in (folder / name for name in names)]
    inside = [(path, is_folder) for path, is_folder in kinds if not skip(path, is_folder)]
    yield folder, [path for path, is_folder in inside if not is_folder], None
    for path, is_folder in inside:
        if not is_folder or os.path.realpath(path) in chain:
            continue
        try:
            yield from list(walk(path, skip, chain))
        except OSError as error:
            yield path, [], f"the folder cannot be read: {error.strerror or error}"


def _single(file: Path) -> Scan:
    if not is_scan(file):
        raise CohortError(f"{file}: is no scan; its name must end in {', '.join(EXTENSIONS)}")
    return _bids(file.parent, file) or _by_name_or_folder(file.parent, file)


def _bids(root: Path, file: Path) -> Scan | None:
    """The scan at `sub-*/[ses-*/]anat/`, also if `root` lies within a subject's folder."""
    below = file.relative_to(root).as_posix()
    above = root.absolute().parts
    start = max((n for n, part in enumerate(above) if part.startswith("sub-")), default=len(above))
    match = _BIDS.fullmatch(below) or _BIDS.fullmatch("/".join((*above[start:], below)))
    if match is None:
        return None
    subject, session = normalise_id(match[1]), match[2] and normalise_id(match[2])
    name = _NAME.fullmatch(stem(file))
    named = _ids(name) if name else (subject, session)
    defect = None
    if named[0] != subject or (named[1] and session and named[1] != session):
        defect = "the folder and the file's name disagree about subject or session; rename one"
    return Scan(file, subject, session or named[1], defect=defect)


def _by_name_or_folder(root: Path, file: Path) -> Scan:
    name = _NAME.fullmatch(stem(file))
    folders = file.relative_to(root).parts[:-1]
    if name:
        subject, session = _ids(name)
    else:
        subject, session = normalise_id(folders[0] if folders else stem(file)), None
    bearing = (normalise_id(part) for part in folders if part.lower().startswith("ses-"))
    return Scan(file, subject, session or next(bearing, None))


def _ids(name: re.Match[str]) -> tuple[str, str | None]:
    session = _SESSION.search(name["entities"])
    return normalise_id(name["subject"]), normalise_id(session[1]) if session else None


def _is_other_kind(file: Path) -> bool:
    name = _NAME.fullmatch(stem(file))
    return name is not None and _OTHER_KIND.fullmatch(name["suffix"] or "") is not None


def _nothing_found(root: Path, files: Sequence[Path]) -> str:
    ignored = f" ({len(files)} images of another kind were ignored)" if files else ""
    if dataset_of(root):
        folders = "/, ".join(NOT_SEARCHED)
        ignored += f"; a BIDS dataset's {folders}/ and what .bidsignore lists are not searched"
    return (
        f"{root}: no scan found{ignored}; looked for files that end in {', '.join(EXTENSIONS)}: "
        "SUBJECT.nii.gz, SUBJECT/**/*.nii.gz, sub-*/[ses-*/]anat/*_T1w.nii.gz"
    )


def _run(scan: Scan) -> tuple[int, str]:
    run = _RUN.search(stem(scan.path))
    if run is None:
        return 0, ""
    return (int(run[1]), "") if run[1].isdecimal() else (sys.maxsize, run[1])


def _first_runs(scans: Sequence[Scan]) -> list[Scan]:
    """One scan for all runs of it, the first; the rest becomes `others`."""
    groups: dict[tuple[Path, str], list[Scan]] = {}
    for scan in scans:
        name = scan.path.name
        named = _NAME.fullmatch(stem(scan.path))
        same = _RUN.sub("", name) if named else name
        groups.setdefault((scan.path.parent, same), []).append(scan)
    first = []
    for group in groups.values():
        group.sort(key=_run)
        first.append(replace(group[0], others=tuple(scan.path for scan in group[1:])))
    return first


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

    def row_of(self, scan: Scan, subject: str, rest: str) -> Row | str:
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
            return f"its row (line {left_out[session]}) was left out of the table"
        listed = ", ".join(sorted(s or "(none)" for s in sessions))
        if session is not None and set(sessions) != {None}:
            return f"no row for session {session!r}; the table has {listed}"
        if len(sessions) == 1:
            return next(iter(rows.values()))
        return (
            f"the scan's session is unknown and the table has several ({listed}); "
            "put it into a folder 'ses-NAME'"
        )

    def _no_row(self, subject: str, left_out: dict[str | None, int]) -> str:
        if left_out:
            return f"its row (line {min(left_out.values())}) was left out of the table"
        near = self.unpadded.get(subject.lstrip("0"))
        hint = f"; is it {near!r} there? Leading zeros count" if near else ""
        return f"no row for subject {subject!r} in the table{hint}"


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


def _row_problems(table: Table, used: set[int]) -> list[Problem]:
    found: list[tuple[Row | LeftOut, str, ProblemKind]] = [
        (problem, problem.reason, "defect") for problem in table.problems
    ]
    unused = [row for row in table.rows if row.line not in used]
    found += [(r, "no scan was found for this row", "row-without-scan") for r in unused]
    return [
        Problem(item.subject, item.session, "row", f"{table.path}, line {item.line}", reason, kind)
        for item, reason, kind in sorted(found, key=lambda entry: entry[0].line)
    ]
