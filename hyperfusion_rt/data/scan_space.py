"""The space that a file's name says, as BIDS writes it: `space-MNI152NLin2009cAsym`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from hyperfusion_rt.data.bids_dataset import DESCRIPTION, dataset_type
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_file import stem
from hyperfusion_rt.errors import CohortError

Source = Literal["registered", "raw"]

# What is passed over since another file was used instead; nothing is wrong with it.
PASSED_OVER = "scan-passed-over"

_SPACE = re.compile(r"(?:^|_)space-([A-Za-z0-9+]+)")
_DESC = re.compile(r"(?:^|_)desc-([A-Za-z0-9+]+)")
# All that differs between one scan's copies in several spaces.
_COPY = re.compile(r"_(?:space|res|den|desc)-[A-Za-z0-9+]+")
_UNIFORM = re.compile("_UNIT1$", re.IGNORECASE)
# MNI152NLin2009cAsym, MNI305, MNIColin27, ICBM452AirSpace, IXI549Space, ...
_MNI = re.compile("MNI|ICBM|IXI549", re.IGNORECASE)


def is_in_mni(path: Path) -> bool:
    """Whether a file's name says that it is in MNI space."""
    space = _SPACE.search(stem(path))
    return space is not None and _MNI.search(space[1]) is not None


def named_in(space: str, name: str) -> str:
    """`name` for a copy in an MNI `space`: changed only where it says, or means, another space.

    A `UNIT1` that says no space is one as the scanner made it.
    """
    found, desc = _SPACE.search(name), _DESC.search(name)
    if found is not None:
        start, end = found.span(1)
        return name if _MNI.search(found[1]) else f"{name[:start]}{space}{name[end:]}"
    if desc is None:
        uniform = _UNIFORM.search(name)
        return f"{name[: uniform.start()]}_space-{space}{uniform[0]}" if uniform else name
    at = desc.start() + name[desc.start()].startswith("_")
    return f"{name[:at]}space-{space}_{name[at:]}"


def settle_spaces(scans: Sequence[Scan], source: Source) -> list[Scan]:
    """Every scan, those in the wrong space with a defect.

    Of one scan's copies in several spaces, a registered one is wanted in MNI space, a raw one in
    its own; the others are passed over. A scan that has no copy in MNI space, and says so by its
    name, cannot be used as registered. Several copies in MNI space all stay. What was passed over
    before has no say.
    """
    copies: dict[tuple[Path, str], list[Scan]] = {}
    left = [scan for scan in scans if scan.code == PASSED_OVER]
    for scan in scans:
        if scan.code == PASSED_OVER:
            continue
        key = scan.path.parent, _COPY.sub("", stem(scan.path))
        copies.setdefault(key, []).append(scan)
    seen: dict[Path, bool] = {}
    settled = [
        _raw(group) if source == "raw" else _registered(group, seen) for group in copies.values()
    ]
    return [*left, *(scan for group in settled for scan in group)]


def _raw(group: Sequence[Scan]) -> list[Scan]:
    own = [scan for scan in group if not is_in_mni(scan.path)]
    if not own:
        return list(group)
    reason = f"in MNI space by its name, and raw scans are asked for: {own[0].path.name} is one"
    return [scan if scan in own else _pass_over(scan, reason) for scan in group]


def _registered(group: Sequence[Scan], seen: dict[Path, bool]) -> list[Scan]:
    in_mni = [scan for scan in group if is_in_mni(scan.path)]
    if in_mni:
        reason = f"not in MNI space by its name: {in_mni[0].path.name} is"
        return [scan if scan in in_mni else _pass_over(scan, reason) for scan in group]
    return [_in_its_own_space(scan, seen) for scan in group]


def _pass_over(scan: Scan, reason: str) -> Scan:
    return replace(scan, defect=reason, code=PASSED_OVER)


def _in_its_own_space(scan: Scan, seen: dict[Path, bool]) -> Scan:
    if scan.defect is not None:
        return scan
    name = stem(scan.path)
    space, desc = _SPACE.search(name), _DESC.search(name)
    advice = "use a copy in MNI space, or the raw scans with `source` raw"
    if space is not None:
        text = f"its name says space {space[1]!r}, which is not MNI space; {advice}"
        return replace(scan, defect=text, code="scan-space-not-mni")
    if desc is not None and desc[1] == "preproc":
        text = f"'desc-preproc' without 'space-' means the scanner's own space; {advice}"
        return replace(scan, defect=text, code="scan-space-not-mni")
    if desc is not None or _is_derivative(scan.path.parent, seen):
        where = f"{desc[0].strip('_')!r}" if desc is not None else "in a derivative dataset"
        text = (
            f"file name {name!r}: {where} without 'space-' means the scanner's own space; check "
            "that the scan is in MNI space"
        )
        return replace(scan, warnings=(*scan.warnings, text))
    return scan


def _is_derivative(folder: Path, seen: dict[Path, bool]) -> bool:
    """Whether the dataset that `folder` lies in calls itself a derivative.

    `seen`: what is known of folders already; many scans lie in one, or below one.
    """
    if folder not in seen:
        seen[folder] = _calls_itself_derivative(folder.absolute(), seen)
    return seen[folder]


def _calls_itself_derivative(folder: Path, seen: dict[Path, bool]) -> bool:
    if (folder / DESCRIPTION).is_file():
        try:
            return dataset_type(folder) == "derivative"
        except CohortError:
            return False
    return folder != folder.parent and _is_derivative(folder.parent, seen)
