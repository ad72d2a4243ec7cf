"""How well a raw scan lies on the template, and whether that is good enough."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data.raw.alignment import (
    TISSUE,
    Fit,
    Image,
    Matrix,
    Template,
    to_mm,
)
from hyperfusion_rt.data.scan_check import pearson
from hyperfusion_rt.data.volumes import sampling_matrix
from hyperfusion_rt.errors import ScanError


@dataclass(frozen=True)
class Quality:
    """How well a scan lies on the template.

    correlation: Pearson's r of the bias-corrected scan and the template inside the brain mask, at
        2 mm.
    overlap: Dice coefficient of the template's grey and white matter (probability above 0.5) and
        what is brighter than CSF (0.65 of the brain's median) within 4 mm of the brain mask, at
        2 mm. Skull and scalp lie farther away, so it means the same with and without them.
    snr: signal to noise in white matter: the median over the standard deviation of the noise, taken
        from second differences of neighbouring voxels of the raw scan (median absolute deviation).
        Interpolated or filtered scans have less noise than was measured, and a higher figure.
    coverage: for every box of the preprocessing, the part of it inside the raw scan.
    rotation: of the head against the template, degrees.
    scale: volume of the scan's brain relative to the template's, det T.
    stripped: the skull was removed before.
    """

    correlation: float
    overlap: float
    snr: float
    coverage: dict[str, float]
    rotation: float
    scale: float
    stripped: bool

    def figures(self) -> dict[str, float]:
        """The figures as columns of a table."""
        named = {f"coverage_{name}": part for name, part in self.coverage.items()}
        names = ("correlation", "overlap", "snr", "rotation", "scale")
        return {**{name: getattr(self, name) for name in names}, **named}


@dataclass(frozen=True)
class Thresholds:
    """Below `refuse_*` a scan is an error, below `flag_*` it carries a warning.

    Coverage is refused below `Preprocessing.min_coverage`. `scale` gives the smallest and largest
    volume factor. The defaults' reasons are the tables of benchmarks/raw.md.
    """

    refuse_correlation: float = 0.6
    flag_correlation: float = 0.75
    refuse_overlap: float = 0.75
    flag_overlap: float = 0.85
    refuse_snr: float = 3.0
    flag_snr: float = 8.0
    flag_coverage: float = 0.9
    refuse_scale: tuple[float, float] = (0.4, 1.8)
    flag_scale: tuple[float, float] = (0.55, 1.3)
    flag_rotation: float = 45.0


THRESHOLDS = Thresholds()


def _noise(scan: Image, template: Template, transform: Matrix) -> float:
    """The signal to noise ratio in white matter; 0 where it cannot be told."""
    at = np.rint(to_mm(np.linalg.inv(scan.affine) @ transform, template.white)).astype(np.intp)
    size = np.asarray(scan.voxels.shape)[:, None]
    at = np.unique(at[:, ((at > 0) & (at < size - 1)).all(0)], axis=1)
    if at.shape[1] < 100:
        return 0.0
    middle = scan.voxels[tuple(at)].astype(np.float64)
    seconds = []
    for axis in range(3):
        one = np.eye(3, dtype=np.intp)[axis][:, None]
        seconds.append(scan.voxels[tuple(at - one)] + scan.voxels[tuple(at + one)] - 2 * middle)
    # The variance of a - 2b + c is six times the noise's; 0.6745: from the MAD to sigma.
    noise = float(np.median(np.abs(np.concatenate(seconds)))) / 0.6745 / np.sqrt(6)
    signal = float(np.median(middle))
    return min(signal / noise, 1000.0) if noise > 0 else 1000.0


def _coverage(
    scan: Image, transform: Matrix, preprocessing: Preprocessing | None
) -> dict[str, float]:
    """The part of each box whose voxels lie inside the scan."""
    if preprocessing is None:
        return {}
    found = {}
    affine = np.linalg.inv(transform) @ scan.affine
    index = np.indices(preprocessing.shape).reshape(3, -1).astype(np.float64)
    size = np.asarray(scan.voxels.shape)[:, None]
    for box in preprocessing.boxes:
        matrix = sampling_matrix(affine, box, preprocessing)
        at = to_mm(matrix, index)
        found[box.name] = float(((at >= -0.5) & (at <= size - 0.5)).all(0).mean())
    return found


def measure(
    scan: Image,
    template: Template,
    fit: Fit,
    transform: Matrix,
    preprocessing: Preprocessing | None,
    stripped: bool,
) -> Quality:
    """The figures of a scan that was registered by `transform`, template mm to scan mm.

    `fit`: of the even scan at 2 mm. `preprocessing`: of the boxes whose coverage is measured.
    """
    warped = fit.warp(transform)
    level = template.levels[2]
    brain = level.away == 0
    inside = warped[brain]
    tissue = (warped > TISSUE * np.median(inside)) & (level.away < 4)
    both = np.count_nonzero(tissue & template.tissue)
    turn, _, other = np.linalg.svd(transform[:3, :3])
    cosine = (np.trace(turn @ other) - 1) / 2
    return Quality(
        correlation=pearson(level.image[brain], inside),
        overlap=2 * both / int(np.count_nonzero(tissue) + np.count_nonzero(template.tissue)),
        snr=_noise(scan, template, transform),
        coverage=_coverage(scan, transform, preprocessing),
        rotation=float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
        scale=float(np.linalg.det(transform[:3, :3])),
        stripped=stripped,
    )


def judge(
    path: Path,
    quality: Quality,
    preprocessing: Preprocessing | None,
    limits: Thresholds,
) -> list[str]:
    """Warnings for a reader.

    Raises:
        ScanError: a figure is below its refuse level.
    """
    look = "is it a T1 scan of a whole head, and does its header give the right orientation?"
    warnings = []
    for name, what, value, refuse, flag in (
        ("correlation", "with the template", quality.correlation, limits.refuse_correlation,
         limits.flag_correlation),
        ("overlap", "with the template's tissue", quality.overlap, limits.refuse_overlap,
         limits.flag_overlap),
    ):  # fmt: skip
        if value < refuse:
            raise ScanError(
                f"{path}: not registered: {name} {what} {value:.2f}, at least {refuse:.2f} is "
                f"needed; {look}",
                code="scan-not-registered",
            )
        if value < flag:
            warnings.append(
                f"{name} {what} only {value:.2f} (below {flag:.2f}); look at the result"
            )
    low, high = limits.refuse_scale
    if not low <= quality.scale <= high:
        raise ScanError(
            f"{path}: not registered: the brain would have {quality.scale:.2f} of the template's "
            f"volume ({low:.2f} to {high:.2f} is accepted); are its header's voxel sizes right?",
            code="scan-not-registered",
        )
    low, high = limits.flag_scale
    if not low <= quality.scale <= high:
        warnings.append(f"brain of {quality.scale:.2f} of the template's volume")
    if quality.snr < limits.refuse_snr:
        raise ScanError(
            f"{path}: signal to noise ratio {quality.snr:.1f} in white matter, at least "
            f"{limits.refuse_snr:.1f} is needed; use another scan",
            code="scan-noisy",
        )
    if quality.snr < limits.flag_snr:
        warnings.append(f"signal to noise ratio only {quality.snr:.1f}")
    if quality.rotation > limits.flag_rotation:
        warnings.append(f"head turned by {quality.rotation:.0f} degrees")
    for name, part in quality.coverage.items():
        assert preprocessing is not None
        if part < preprocessing.min_coverage:
            raise ScanError(
                f"{path}: {name} box: only {part:.0%} of it lies inside the scan (at least "
                f"{preprocessing.min_coverage:.0%} is needed); use a scan of the whole brain",
                code="scan-box-outside",
            )
        if part < limits.flag_coverage:
            warnings.append(f"{name} box: {part:.0%} inside the scan")
    return warnings
