"""What a scan's name says of the image, as BIDS writes it: its part, inversion, contrast agent.

Of one subject and session, T1-weighted images are wanted. A phase image (`part-phase`) or one
inversion of MP2RAGE (`inv-1`) is none. MP2RAGE's uniform image (`UNIT1`) stands in where there is
no other. Of several parts nobody guesses: a filter chooses, as among acquisitions and echoes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from hyperfusion_rt.data.bids_name import SUFFIX, entities_of, suffix_of
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_space import PASSED_OVER, Source, is_in_mni

T1W, UNIFORM = "t1w", "unit1"

_NOT_MAGNITUDE = ("phase", "real", "imag")
_NO_AGENT = ("no", "none", "na")  # labels that say that there is none
_UNIFORM_WARNING = (
    "an MP2RAGE uniform image (UNIT1) stands in for a T1w: outside of the head it is "
    "salt-and-pepper noise, which may disturb its registration; look at the result"
)


def may_stand_in(file: Path, source: Source) -> bool:
    """Whether it is a uniform image that may be used where there is no T1w.

    Registered ones have no such noise any more, and say MNI space by their names.
    """
    return suffix_of(file) == UNIFORM and (source == "raw" or is_in_mni(file))


def with_agent(agent: str, by: str) -> str:
    """The warning of a scan with a contrast agent; `by` says where it stands."""
    return (
        f"with contrast agent {agent!r} by its {by}: the network was not trained on such scans "
        "unless the study was"
    )


def agent_in_name(file: Path) -> str | None:
    """The contrast agent that the name says (`ce-gadolinium`)."""
    label = (entities_of(file) or {}).get("ce", "")
    return None if label.lower() in ("", *_NO_AGENT) else label


def settle_kinds(scans: Sequence[Scan], chosen_by: Collection[str] = ()) -> list[Scan]:
    """Every scan: what is no T1-weighted image passed over or with a defect, others with warnings.

    `chosen_by`: the entities (`part`, `inv`, `suffix`) that a filter has chosen by, which are as
    they are wanted then.
    """
    odd = {scan: _no_t1(scan.path, chosen_by) for scan in scans if scan.code != PASSED_OVER}
    groups: dict[tuple[str, str | None], list[Scan]] = {}
    for scan, why in odd.items():
        if why is None:
            groups.setdefault((scan.subject, scan.session), []).append(scan)
    found = []
    for scan in scans:
        if scan.code == PASSED_OVER:
            found.append(scan)
            continue
        group = groups.get((scan.subject, scan.session), [])
        first = next((one for one in group if suffix_of(one.path) != UNIFORM), None)
        why = odd[scan]
        if why is not None and group and "part" in (entities_of(scan.path) or {}):
            found.append(scan)  # one of several images, which is ambiguous
        elif why is not None:
            found.append(_not_used(scan, why, first or next(iter(group), None)))
        elif suffix_of(scan.path) == UNIFORM and first and SUFFIX not in chosen_by:
            found.append(_not_used(scan, "an MP2RAGE uniform image", first))
        else:
            found.append(_with_warnings(scan))
    return found


def _no_t1(file: Path, chosen_by: Collection[str]) -> str | None:
    said = entities_of(file) or {}
    part, inversion = said.get("part", ""), said.get("inv")
    if part.lower() in _NOT_MAGNITUDE and "part" not in chosen_by:
        return f"the {part} of a complex image, not its magnitude"
    if inversion and "inv" not in chosen_by:
        return f"inversion {inversion} of MP2RAGE alone"
    return None


def _not_used(scan: Scan, why: str, other: Scan | None) -> Scan:
    if other is not None:
        return replace(scan, defect=f"{why}: {other.path.name} is used", code=PASSED_OVER)
    if scan.defect is not None:
        return scan
    return replace(
        scan, defect=f"by its name {why}, which is no T1-weighted image", code="scan-not-t1"
    )


def _with_warnings(scan: Scan) -> Scan:
    said = [_UNIFORM_WARNING] if suffix_of(scan.path) == UNIFORM else []
    if agent := agent_in_name(scan.path):
        said.append(with_agent(agent, "name"))
    return replace(scan, warnings=(*scan.warnings, *said)) if said else scan
