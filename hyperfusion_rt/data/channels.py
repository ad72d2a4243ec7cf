"""The images of a case: one file per channel, found by their names and put together."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath

from hyperfusion_rt.config import Channel
from hyperfusion_rt.data.bids_filter import BidsFilter
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_file import stem
from hyperfusion_rt.data.scan_search import find_all, find_chosen, find_scans
from hyperfusion_rt.data.scan_space import PASSED_OVER
from hyperfusion_rt.errors import CohortError, ConfigError

MISSING = "scan-channel-missing"
_MARKS = "*?["  # of a glob
Key = tuple[str, str | None]


def find_cases(
    paths: Sequence[Path], channels: Sequence[Channel], choose: BidsFilter | None = None
) -> list[Scan]:
    """The scans under `paths` (files or folders), each with the files of its further channels.

    One channel that is every scan: as `find_scans`, with `choose`. Otherwise each channel's files
    are those that its glob names; a file that is given stands for its case, whose other channels
    are looked for where its folder lies. Images belong together if subject and session are the
    same. What has no partner, or several, is a scan with a defect.

    Raises:
        CohortError: as `find_scans`; a channel has no file at all, or, without a glob, those of
            another.
        ConfigError: `choose` is given, and the channels say themselves which files they are.
    """
    if not any(channel.files for channel in channels):
        scans = find_chosen(paths, find_scans, choose)
        _refuse_t1(scans, channels[0])
        return scans
    if choose is not None:
        names = ", ".join(f"{channel.name} ({channel.files})" for channel in channels)
        raise ConfigError(
            f"`bids_filter` {choose.path}: chooses T1-weighted scans, and here the channels say "
            f"by their globs which files they are: {names}; leave the filter out",
            code="option-conflict",
        )
    files = {path for path in paths if path.is_file()}
    roots = dict.fromkeys(_root(path, channels) if path in files else path for path in paths)
    images = [
        find_all(
            roots, partial(find_scans, matches=partial(_matches, channel), named=_name(channel))
        )
        for channel in channels
    ]
    for channel, found in zip(channels, images, strict=True):
        if not found:
            raise CohortError(
                f"{', '.join(map(str, paths))}: no file is called as channel {channel.name!r} is "
                f"({channel.files}); check preprocessing.channels",
                code="cohort-no-scan",
            )
    cases = _together(images, channels)
    if not files:
        return cases
    asked = {path.absolute() for path in paths}

    def is_asked(file: Path) -> bool:
        return not asked.isdisjoint((file.absolute(), *file.absolute().parents))

    return [scan for scan in cases if any(map(is_asked, (scan.path, *scan.more)))]


def _refuse_t1(scans: Sequence[Scan], channel: Channel) -> None:
    """Without a glob, T1-weighted scans are found: they must not pass for another channel."""
    named = [scan.path for scan in scans if stem(scan.path).lower().endswith("_t1w")]
    if named and not channel.t1_weighted and channel.name.lower() not in ("t1", "t1w"):
        raise CohortError(
            f"{named[0]}: is called as a T1-weighted image is, and the only channel "
            f"{channel.name!r} is none: say which files it is with 'files' in "
            "preprocessing.channels",
            code="cohort-no-scan",
        )


def _together(images: Sequence[Sequence[Scan]], channels: Sequence[Channel]) -> list[Scan]:
    """One scan per image of the first channel, with its partners; and what has no first."""
    first, *others = channels
    partners = []
    for found in images[1:]:
        by_key: dict[Key, list[Scan]] = {}
        for scan in found:
            if scan.code != PASSED_OVER:
                by_key.setdefault((scan.subject, scan.session), []).append(scan)
        partners.append(by_key)
    cases = []
    for scan in images[0]:
        if scan.code == PASSED_OVER:
            cases.append(scan)
            continue
        key = scan.subject, scan.session
        for channel, by_key in zip(others, partners, strict=True):
            scan = _with(scan, by_key.get(key, []), channel)
        cases.append(scan)
    known = {(scan.subject, scan.session) for scan in images[0]}
    for channel, by_key in zip(others, partners, strict=True):
        for key, found in by_key.items():
            if key not in known:
                text = f"an image of channel {channel.name!r} without one of {first.name!r}"
                cases += [_defect(scan, f"{text} ({first.files})", MISSING) for scan in found]
    return sorted(cases, key=lambda scan: scan.path)


def _with(scan: Scan, found: Sequence[Scan], channel: Channel) -> Scan:
    """`scan` with its image of one more channel."""
    if not found:
        text = f"has no image of channel {channel.name!r}: no file {channel.files} of this subject"
        text += " and session" if scan.session else ""
        return _defect(scan, text, MISSING)
    if len(found) > 1:
        names = ", ".join(str(other.path) for other in found)
        return _defect(
            scan, f"has several images of channel {channel.name!r}: {names}", "scan-ambiguous"
        )
    other = found[0]
    scan = replace(scan, more=(*scan.more, other.path), warnings=(*scan.warnings, *other.warnings))
    if other.defect is not None:
        return _defect(scan, f"{other.path}: {other.defect}", other.code)
    return scan


def _defect(scan: Scan, text: str, code: str) -> Scan:
    """`scan` with this defect, unless it has one."""
    return scan if scan.defect is not None else replace(scan, defect=text, code=code)


def _matches(channel: Channel, file: Path) -> bool:
    return not channel.files or PurePath(file).match(channel.files)


def _root(file: Path, channels: Sequence[Channel]) -> Path:
    """Where the other channels of the case of `file` are looked for."""
    for folder in file.parents:
        if folder.name.lower().startswith("sub-"):
            return folder
    globs = [PurePath(channel.files).parts for channel in channels if channel.files]
    # Where the file's name is always the same, a folder above names the subject.
    depth = max(len(parts) + (not any(m in parts[-1] for m in _MARKS)) for parts in globs)
    above = file.parents if len(file.parents) >= depth else file.absolute().parents
    return above[min(depth, len(above)) - 1]


def _name(channel: Channel) -> Callable[[Sequence[str]], Sequence[str]]:
    """What names a subject: a file's path without what the channel's glob itself says.

    `FLAIR/*` of `FLAIR/S1.nii.gz`: `S1.nii.gz`; `*_T1w.nii.gz` of `S1_T1w.nii.gz`: `S1`.
    """
    *folders, last = PurePath(channel.files).parts
    *before, end = (re.escape(piece) for piece in re.split(r"\*+", last))
    pattern = re.compile("(.*?)".join(before) + "(.*)" + end if before else end)

    def named(parts: Sequence[str]) -> Sequence[str]:
        *above, name = parts
        start = len(above) - len(folders)
        above = [
            part
            for n, part in enumerate(above)
            if n < start or any(mark in folders[n - start] for mark in _MARKS)
        ]
        found = pattern.fullmatch(name)
        kept = next(filter(None, found.groups()), "") if found else ""
        return [*above, kept.rstrip("_-. ") or name]

    return named
