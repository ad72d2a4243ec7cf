"""What the scans of training look like, so that inference can tell one that does not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.scan_reference import ScanReference, write_reference
from hyperfusion_rt.data.scan_check import (
    BoxUsual,
    Landmarks,
    Reference,
    Usual,
    box_correlation,
    fisher,
)
from hyperfusion_rt.data.volume_cache import Images, VolumeCache
from hyperfusion_rt.files import write_text

NAME = "scans.json"
# Of the shortest side of a box, so many voxels are kept.
_KEPT = 16


def reference_of(cache: VolumeCache, scans: Iterable[Images], landmarks: Landmarks) -> Reference:
    """The mean boxes of the cases' `scans`, and what is usual of each."""
    scans = list(scans)
    stride = max(1, round(min(cache.preprocessing.shape) / _KEPT))
    total: NDArray[np.float64] | float = 0.0
    for scan in scans:
        kept = cache.get(scan)[:, :, ::stride, ::stride, ::stride]
        total = total + kept.reshape(-1, *kept.shape[2:]).astype(np.float64)
    means = np.asarray(total / len(scans), np.float32)
    boxes = []
    figures = [cache.figures(scan) for scan in scans]
    for index, mean in enumerate(means):
        place = divmod(index, len(cache.preprocessing.channels))
        r = [box_correlation(cache.get(scan)[place], mean, stride) for scan in scans]
        boxes.append(
            BoxUsual(
                fill=Usual.of("fill", [f.fill[index] for f in figures]),
                contrast=Usual.of("contrast", [f.contrast[index] for f in figures]),
                correlation=Usual.of("correlation", [fisher(x) for x in r]),
            )
        )
    return Reference(landmarks, tuple(boxes), means, stride, cache.checks)


def keep_reference(folder: Path, reference: Reference) -> None:
    """Write `reference` into a run's folder."""
    stored = write_reference(folder, reference)
    write_text(folder / NAME, stored.model_dump_json(indent=2) + "\n")


def kept_reference(folder: Path) -> ScanReference | None:
    """What a run's folder keeps; None of an imported or an older run."""
    path = folder / NAME
    if not path.is_file():
        return None
    return ScanReference.model_validate_json(path.read_text(encoding="utf-8"))
