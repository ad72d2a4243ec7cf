"""What scans are compared with, as a run and an artifact keep it: arrays in a file, and JSON."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hyperfusion_rt.config import Frozen, ScanChecks
from hyperfusion_rt.data.scan_check import BoxUsual, Landmarks, Reference
from hyperfusion_rt.errors import ArtifactError
from hyperfusion_rt.files import replacing, sha256

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
    from safetensors.numpy import save_file

    arrays = {
        "points": np.ascontiguousarray(reference.landmarks.points, np.float32),
        "values": np.ascontiguousarray(reference.landmarks.values, np.float32),
    }
    if reference.means is not None:
        arrays["means"] = np.ascontiguousarray(reference.means, np.float32)
    path = folder / FILE
    with replacing(path) as temporary:
        save_file(arrays, temporary)
    return ScanReference(
        file=FILE,
        sha256=sha256(path),
        stride=reference.stride,
        boxes=reference.boxes,
        checks=reference.checks,
    )


def read_reference(folder: Path, stored: ScanReference) -> Reference:
    """What `write_reference` wrote.

    Raises:
        ArtifactError: the file is missing, changed, or no such file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / stored.file
    advice = "copy the whole folder again, or export again"
    if path.parent != folder or not path.is_file():
        raise ArtifactError(f"{path}: is missing; {advice}", code="artifact-incomplete")
    try:
        if sha256(path) != stored.sha256:
            raise ArtifactError(f"{path}: was changed; {advice}", code="artifact-damaged")
        arrays = load_file(path)
        landmarks = Landmarks(arrays["points"], arrays["values"])
    except (OSError, SafetensorError, KeyError) as error:
        raise ArtifactError(
            f"{path}: cannot be read: {error}; {advice}", code="artifact-damaged"
        ) from None
    return Reference(landmarks, stored.boxes, arrays.get("means"), stored.stride, stored.checks)
