"""Finding scans: subject and session from where a file lies and how it is called."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from hyperfusion_rt.data.bids_dataset import (
    NOT_SEARCHED,
    Skip,
    dataset_of,
    not_searched,
    without_dots,
)
from hyperfusion_rt.data.bids_filter import BidsFilter
from hyperfusion_rt.data.bids_name import NAME, named_by
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_file import (
    EXTENSIONS,
    broken_link,
    foreign,
    is_scan,
    not_a_file,
    stem,
)
from hyperfusion_rt.data.scan_kind import T1W, may_stand_in, settle_kinds
from hyperfusion_rt.data.scan_space import PASSED_OVER, Source, settle_spaces
from hyperfusion_rt.data.table_file import normalise_id
from hyperfusion_rt.errors import CohortError

# The code of a folder that `walk` could not read.
UNREADABLE = "scan-folder-unreadable"
# Kinds of image that lie beside the T1-weighted one in BIDS-like folders.
_OTHER_KIND = re.compile(
    "angio|asl|bold|dseg|dwi|epi|flair|inplanet[12]|m0scan|mask|mp2rage|pdt2|pdw|pet|probseg|sbref|"
    "t[12]map|t2star|t2starw|t2w",
    re.IGNORECASE,
)
_SESSION = re.compile(r"_ses-([^_]+)", re.IGNORECASE)
_RUN = re.compile(r"_run-([^_]+)", re.IGNORECASE)
_BIDS = re.compile(r"sub-([^/]+)/(?:ses-([^/]+)/)?anat/[^/]+", re.IGNORECASE)
_BIDS_ANY = re.compile(
    r"sub-([^/]+)/(?:ses-([^/]+)/)?(?:anat|dwi|fmap|func|perf|pet)/[^/]+", re.IGNORECASE
)


class FindChosen(Protocol):
    """`find_scans` or `find_raw_scans`."""

    def __call__(self, path: str | Path, *, choose: BidsFilter | None = None) -> list[Scan]:
        """The scans under `path`."""


# Whether a file is of a channel, and what of its path names the subject.
Matches = Callable[[Path], bool]
Named = Callable[[Sequence[str]], Sequence[str]]


def find_scans(
    path: str | Path,
    source: Source = "registered",
    *,
    choose: BidsFilter | None = None,
    matches: Matches | None = None,
    named: Named | None = None,
) -> list[Scan]:
    """The scans under `path`, sorted by path.

    A file; a flat folder (the file's name is the subject); a folder per subject; or BIDS
    (`sub-*/[ses-*/]anat/*_T1w`), where everything else is ignored. Names of the BIDS kind
    (`sub-01_ses-02_T1w`) are understood anywhere. Links are followed, hidden files ignored; in a
    BIDS dataset also what its `.bidsignore` lists, `derivatives/`, `sourcedata/` and the like.

    `choose` chooses by what the names say; a scan that it does not choose is passed over. One
    inversion of MP2RAGE, or a phase image (`part-phase`) alone, is no scan. MP2RAGE's uniform image
    (`UNIT1`) is one, raw or in MNI space by its name, where its subject and session have no T1w.

    With `matches`, the files that it takes, whatever kind of image they are, none included; `named`
    makes of a path's parts (below `path`) those that name the subject.

    What is no file (a broken link, a pipe), of a format that is not read, or not of the space that
    is wanted (`source`), is a scan with a defect. No file is opened.

    Raises:
        CohortError: no such path, no permission to read it, a `.bidsignore` that cannot be used,
            or no scan found.
    """
    root = Path(path)
    try:
        if root.is_dir():
            entries = list(walk(root, not_searched(root)))
        elif root.exists():
            return _settled([_single(root)], source, choose)
        else:
            raise CohortError(
                f"{root}: {broken_link(root) or 'no such file or folder'}", code="cohort-not-found"
            )
    except OSError as error:
        raise CohortError(
            f"{root}: cannot be read: {error.strerror or error}; "
            "check its permissions or choose another folder",
            code="cohort-unreadable",
        ) from None

    files = [f for _, inside, _ in entries for f in inside if is_scan(f) or foreign(f)]
    files += _empty_folders([folder for folder, _, _ in entries if folder != root], files)
    if matches is not None:
        files = [file for file in files if matches(file)]
    above, place = _of_subject(root), _BIDS if matches is None else _BIDS_ANY
    in_bids = [(file, _bids(root, above, file, place)) for file in files]
    if matches is not None:
        scans = [scan or _by_name_or_folder(root, file, named) for file, scan in in_bids]
    elif any(scan for _, scan in in_bids):
        scans = [s for f, s in in_bids if s and _is_candidate(f, source, choose)]
    else:
        of_kind = [f for f in files if not _is_other_kind(f) or (choose and choose.takes_suffix(f))]
        scans = [_by_name_or_folder(root, file) for file in of_kind]
    unreadable = [
        Scan(
            folder, normalise_id(folder.relative_to(root).parts[0]), defect=defect, code=UNREADABLE
        )
        for folder, _, defect in entries
        if defect is not None
    ]
    if not scans and not unreadable and matches is None:
        raise CohortError(_nothing_found(root, files), code="cohort-no-scan")
    if matches is None:
        settled = _settled(scans, source, choose)
    else:
        settled = _first_runs(settle_spaces(_with_what_they_are(scans), source))
    return sorted([*settled, *unreadable], key=lambda scan: scan.path)


def _is_candidate(file: Path, source: Source, choose: BidsFilter | None) -> bool:
    """Whether a file below `anat/` may be a scan."""
    if stem(named_by(file)).lower().endswith(f"_{T1W}") or may_stand_in(file, source):
        return True
    return choose is not None and choose.takes_suffix(file)


def _settled(scans: Sequence[Scan], source: Source, choose: BidsFilter | None) -> list[Scan]:
    """What becomes of T1-weighted scans: used, passed over, or with a defect."""
    scans = _with_what_they_are(scans)
    if choose is not None:
        scans = [choose.settle(scan) for scan in scans]
    scans = settle_kinds(scans, choose.named if choose is not None else ())
    return _first_runs(settle_spaces(scans, source))


def find_all(paths: Iterable[str | Path], find: Callable[[str | Path], list[Scan]]) -> list[Scan]:
    """The scans under several paths, each once, though it may be given with its folder, too.

    Scans are the same if their paths are: two links to one file are two scans.

    Raises:
        CohortError: as `find`.
    """
    found: dict[Path, Scan] = {}
    for path in paths:
        for scan in find(path):
            place = without_dots(scan.path)
            known = found.setdefault(place, scan)
            if (known.subject, known.session) != (scan.subject, scan.session):
                names = [f"{s.subject!r}" + (f" ({s.session})" if s.session else "")
                         for s in (known, scan)]  # fmt: skip
                found[place] = replace(
                    known,
                    defect=f"found twice, as subject {' and as '.join(names)}; name one folder",
                    code="scan-name-conflict",
                )
    # A further run that was named itself is a scan of its own.
    return [
        replace(scan, others=tuple(o for o in scan.others if without_dots(o) not in found))
        for scan in found.values()
    ]


def find_chosen(
    paths: Iterable[str | Path], find: FindChosen, choose: BidsFilter | None
) -> list[Scan]:
    """As `find_all`, with a filter that must choose one scan of all.

    Raises:
        CohortError: as `find`; the filter chooses none.
    """
    paths = list(paths)
    found = find_all(paths, lambda path: find(path, choose=choose))
    if choose is not None:
        choose.require(found, paths)
    return found


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
    folder = file.parent
    return _bids(folder, _of_subject(folder), file) or _by_name_or_folder(folder, file)


def _empty_folders(folders: Sequence[Path], files: Sequence[Path]) -> list[Path]:
    """Folders that are called as a scan is, and hold none."""
    empty = [folder for folder in folders if is_scan(folder)]
    full = {parent for file in files for parent in file.parents} if empty else set()
    return [folder for folder in empty if folder not in full]


def _with_what_they_are(scans: Sequence[Scan]) -> list[Scan]:
    """Scans that are no files, or of formats that are not read, with their defect."""
    checked = []
    usable: dict[tuple[Path, str], Path] = {}
    for scan in scans:
        if scan.defect is None and (wrong := not_a_file(scan.path)):
            scan = replace(scan, defect=wrong, code="scan-unreadable")
        elif scan.path.is_dir():
            text = "is a folder that holds no scan, though it is called as one"
            scan = replace(scan, defect=text, code="scan-unreadable")
        elif scan.defect is None and not foreign(scan.path):
            usable[scan.path.parent, stem(scan.path)] = scan.path
        checked.append(scan)
    found = []
    for scan in checked:
        wrong = foreign(scan.path) if scan.defect is None else None
        other = usable.get((scan.path.parent, stem(scan.path)))
        if wrong and other:
            scan = replace(scan, defect=f"{other.name} is used instead", code=PASSED_OVER)
        elif wrong:
            scan = replace(scan, defect=wrong, code="scan-format-unknown")
        found.append(scan)
    return found


def _bids(
    root: Path, above: tuple[str, ...], file: Path, place: re.Pattern[str] = _BIDS
) -> Scan | None:
    """The scan at `place` (`sub-*/[ses-*/]anat/`), also if `root` lies in a subject's folder.

    `above`: what of `root` is a subject's (`_of_subject`).
    """
    called = named_by(file)
    below = called.relative_to(root).as_posix()
    match = place.fullmatch(below) or place.fullmatch("/".join((*above, below)))
    if match is None:
        return None
    subject, session = normalise_id(match[1]), match[2] and normalise_id(match[2])
    name = NAME.fullmatch(stem(called))
    named = _ids(name) if name else (subject, session)
    scan = Scan(file, subject, session or named[1])
    if named[0] == subject and not (named[1] and session and named[1] != session):
        return scan
    defect = "the folder and the file's name disagree about subject or session; rename one"
    return replace(scan, defect=defect, code="scan-name-conflict")


def _of_subject(root: Path) -> tuple[str, ...]:
    """What of a folder's path is a subject's: `sub-*` and what follows; nothing without."""
    above = root.absolute().parts
    inside = [n for n, part in enumerate(above) if part.lower().startswith("sub-")]
    return above[inside[-1] :] if inside else ()


def _by_name_or_folder(root: Path, file: Path, named: Named | None = None) -> Scan:
    called = named_by(file)
    name = NAME.fullmatch(stem(called))
    if named is not None:
        called = root.joinpath(*named(called.relative_to(root).parts))
    folders = called.relative_to(root).parts[:-1]
    if name:
        subject, session = _ids(name)
    else:
        subject, session = normalise_id(folders[0] if folders else stem(called)), None
    bearing = (normalise_id(part) for part in folders if part.lower().startswith("ses-"))
    return Scan(file, subject, session or next(bearing, None))


def _ids(name: re.Match[str]) -> tuple[str, str | None]:
    session = _SESSION.search(name["entities"])
    return normalise_id(name["subject"]), normalise_id(session[1]) if session else None


def _is_other_kind(file: Path) -> bool:
    name = NAME.fullmatch(stem(named_by(file)))
    return name is not None and _OTHER_KIND.fullmatch(name["suffix"] or "") is not None


def _first_runs(scans: Sequence[Scan]) -> list[Scan]:
    """One scan for all runs of it, the first; the rest becomes `others`."""
    groups: dict[tuple[Path, str], list[Scan]] = {}
    first = [scan for scan in scans if scan.code == PASSED_OVER]
    for scan in scans:
        if scan.code == PASSED_OVER:
            continue
        name = scan.path.name
        named = NAME.fullmatch(stem(scan.path))
        same = _RUN.sub("", name) if named else name
        groups.setdefault((scan.path.parent, same), []).append(scan)
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
