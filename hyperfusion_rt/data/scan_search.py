"""Finding scans: subject and session from where a file lies and how it is called."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperfusion_rt.data.bids_dataset import NOT_SEARCHED, Skip, dataset_of, not_searched
from hyperfusion_rt.data.table_file import normalise_id
from hyperfusion_rt.errors import CohortError

EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh")
# The code of a folder that `walk` could not read.
UNREADABLE = "scan-folder-unreadable"
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

    `others` are further runs, which are not used. `defect` says why this is no scan that can be
    used, and `code` is its code (one of `CODES`); None and empty otherwise.
    """

    path: Path
    subject: str
    session: str | None = None
    others: tuple[Path, ...] = ()
    defect: str | None = None
    code: str = ""


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
            raise CohortError(f"{root}: no such file or folder", code="cohort-not-found")
    except OSError as error:
        raise CohortError(
            f"{root}: cannot be read: {error.strerror or error}; "
            "check its permissions or choose another folder",
            code="cohort-unreadable",
        ) from None

    files = [file for _, inside, _ in entries for file in inside if is_scan(file)]
    in_bids = [(file, _bids(root, file)) for file in files]
    if any(scan for _, scan in in_bids):
        scans = [s for file, s in in_bids if s and stem(file).lower().endswith("_t1w")]
    else:
        scans = [_by_name_or_folder(root, file) for file in files if not _is_other_kind(file)]
    unreadable = [
        Scan(
            folder, normalise_id(folder.relative_to(root).parts[0]), defect=defect, code=UNREADABLE
        )
        for folder, _, defect in entries
        if defect is not None
    ]
    if not scans and not unreadable:
        raise CohortError(_nothing_found(root, files), code="cohort-no-scan")
    return sorted(_first_runs(scans) + unreadable, key=lambda scan: scan.path)


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
        raise CohortError(
            f"{file}: is no scan; its name must end in {', '.join(EXTENSIONS)}",
            code="scan-format-unknown",
        )
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
    scan = Scan(file, subject, session or named[1])
    if named[0] == subject and not (named[1] and session and named[1] != session):
        return scan
    defect = "the folder and the file's name disagree about subject or session; rename one"
    return replace(scan, defect=defect, code="scan-name-conflict")


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


def _run(scan: Scan) -> tuple[int, str]:
    run = _RUN.search(stem(scan.path))
    if run is None:
        return 0, ""
    return (int(run[1]), "") if run[1].isdecimal() else (sys.maxsize, run[1])


def _nothing_found(root: Path, files: Sequence[Path]) -> str:
    ignored = f" ({len(files)} images of another kind were ignored)" if files else ""
    if dataset_of(root):
        folders = "/, ".join(NOT_SEARCHED)
        ignored += f"; a BIDS dataset's {folders}/ and what .bidsignore lists are not searched"
    return (
        f"{root}: no scan found{ignored}; looked for files that end in {', '.join(EXTENSIONS)}: "
        "SUBJECT.nii.gz, SUBJECT/**/*.nii.gz, sub-*/[ses-*/]anat/*_T1w.nii.gz"
    )
