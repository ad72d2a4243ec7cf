"""Whether the scans of a BIDS dataset are raw or registered, where nobody says it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.data.bids_dataset import DESCRIPTION, dataset_type
from hyperfusion_rt.data.bids_filter import BidsFilter
from hyperfusion_rt.data.raw.sidecar import read_sidecar
from hyperfusion_rt.data.scan_search import find_chosen, find_scans
from hyperfusion_rt.data.scan_space import PASSED_OVER, is_in_mni
from hyperfusion_rt.errors import CohortError
from hyperfusion_rt.runtime.options import Source


def source_of(
    bids_dir: Path, folders: Sequence[Path], manifest: Manifest, choose: BidsFilter | None
) -> tuple[Source, str]:
    """What the scans are taken for where nobody says it, and why.

    Raises:
        CohortError: `dataset_description.json` cannot be read.
    """
    channels = manifest.preprocessing.channels
    if len(channels) > 1 or not channels[0].t1_weighted:
        return "registered", "the artifact reads other than one T1-weighted image"
    if dataset_type(bids_dir) == "derivative":
        return "registered", f"{DESCRIPTION} says that the dataset is a derivative"
    try:
        scans = find_chosen(folders, find_scans, choose)
    except CohortError:  # DICOM folders, or nothing, which is said later
        scans = []
    for scan in scans:
        if scan.code == PASSED_OVER:
            continue
        if is_in_mni(scan.path):
            return "registered", f"the name of {scan.path.name} says MNI space"
        if read_sidecar(scan.path):
            return "registered", f"hfrt preprocess made {scan.path.name}"
    return "raw", f"neither {DESCRIPTION} nor a scan's name says that they are registered"
