"""What scans are compared with, as a run and an artifact keep it: arrays in a file, and JSON."""

from __future__ import annotations

from pathlib import Path

from hyperfusion_rt.artifact.arrays import read_arrays, write_arrays
from hyperfusion_rt.config import Frozen, ScanChecks
from hyperfusion_rt.data.scan_check import BoxUsual, Landmarks, Reference

FILE = "scans.safetensors"


class ScanReference(Frozen):
    """The file beside this, and what training's boxes usually are; see `data.scan_check`."""

    file: str
    sha256: str
    stride: int
    boxes: tuple[BoxUsual, ...]
    checks: ScanChecks


def write_reference(folder: Path, reference: Reference) -> ScanReference:
    """Write the arrays of `reference` into `folder`; returns the rest."""
    arrays = {"points": reference.landmarks.points, "values": reference.landmarks.values}
    if reference.means is not None:
        arrays["means"] = reference.means
    return ScanReference(
        file=FILE,
        sha256=write_arrays(folder / FILE, arrays),
        stride=reference.stride,
        boxes=reference.boxes,
        checks=reference.checks,
    )


def read_reference(folder: Path, stored: ScanReference) -> Reference:
    """What `write_reference` wrote.

    Raises:
        ArtifactError: the file is missing, changed, or no such file.
    """
    arrays = read_arrays(folder, stored.file, stored.sha256, ("points", "values"))
    landmarks = Landmarks(arrays["points"], arrays["values"])
    return Reference(landmarks, stored.boxes, arrays.get("means"), stored.stride, stored.checks)
