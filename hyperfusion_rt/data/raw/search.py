"""Finding raw scans: files, and folders of DICOM files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hyperfusion_rt.data.bids_dataset import not_searched, without_dots
from hyperfusion_rt.data.bids_filter import BidsFilter
from hyperfusion_rt.data.dicom import is_dicom_folder
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_file import foreign, is_scan
from hyperfusion_rt.data.scan_search import UNREADABLE, find_scans, walk
from hyperfusion_rt.data.table_file import normalise_id


def find_raw_scans(path: str | Path, choose: BidsFilter | None = None) -> list[Scan]:
    """As `find_scans`, and every folder of DICOM files below `path` as one scan.

    A DICOM folder's subject is the folder `sub-*`, the first folder below `path`, or its own name.
    `choose` knows it by its own name, too.

    Raises:
        CohortError: no such path, no permission to read it, or no scan found.
    """
    root = Path(path)
    if not root.is_dir():
        return find_scans(root, "raw", choose=choose)
    found: list[Scan] = []
    others = False
    try:
        for folder, inside, defect in walk(root, not_searched(root)):
            others |= any(is_scan(file) or foreign(file) for file in inside)
            if defect is not None:
                found.append(replace(_as_scan(root, folder), defect=defect, code=UNREADABLE))
            elif is_dicom_folder(folder):
                found.append(_as_scan(root, folder))
    except OSError:
        return find_scans(root, "raw", choose=choose)  # says what is wrong
    files: list[Scan] = []
    if others or not found:
        found = [scan for scan in found if not scan.defect]
        files = find_scans(root, "raw", choose=choose)
    if choose is not None:
        found = [choose.settle(scan) for scan in found]
    series = {scan.path for scan in found}
    found += [scan for scan in files if scan.path not in series]
    return sorted(found, key=lambda scan: scan.path)


def _as_scan(root: Path, folder: Path) -> Scan:
    """Its subject: the folder `sub-*`, else the first below `root`, else its own name."""
    parts = (without_dots(root).name, *folder.relative_to(root).parts)
    labelled = [part for part in parts if part.lower().startswith("sub-")]
    subject = (labelled or [*parts[1:2], parts[0]])[0]
    session = next((normalise_id(p) for p in parts if p.lower().startswith("ses-")), None)
    return Scan(folder, normalise_id(subject), session)
