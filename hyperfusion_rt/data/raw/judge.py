"""How well a raw scan lies on the template, and whether that is good enough."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data.raw.field import Field
from hyperfusion_rt.data.raw.image import Float, Image, Matrix, to_mm
from hyperfusion_rt.data.raw.pose import Fit
from hyperfusion_rt.data.raw.template import Template
from hyperfusion_rt.data.scan_check import pearson
from hyperfusion_rt.data.volumes import sampling_matrix
from hyperfusion_rt.errors import ScanError

# Grey matter is brighter than this part of the brain's median, CSF is darker.
_TISSUE = 0.65
# Of a logistic function: constant, by log disagreement (mm), log misfit, log part inside the scan;
# round numbers, chosen on three spoilt heads. benchmarks/trust.py measures them on three others.
DOUBT = (2.0, 2.0, 2.0, -7.0)
_UNEXPLAINED = "brightness that no tissue explains"
_BRAIN_STEP = 23  # every so many voxels of the brain at 2 mm say how far two poses are apart


@dataclass(frozen=True)
class Quality:
    """How well a scan lies on the template.

    doubt: the probability that the pose is more than 2 mm off (mean over the brain), of the three
        figures that follow; chosen on spoilt scans of real heads (benchmarks/trust.py).
    disagreement: how far the pose found in wide windows lies from the one found in narrow ones,
        mm, mean over the brain.
    misfit: the weighted mean square of the differences of local values of scan and template
        (`data.raw.pose`), 0 for the template itself.
    inside: the part of the brain, and of 4 mm around it, that lies in the scan.
    residual: the robust standard deviation of the logarithm of brightness that neither a bias field
        nor a contrast of tissues explains.
    csf, grey: brightness of CSF and grey matter over that of white matter.
    correlation: Pearson's r of the bias-corrected scan and the template inside the brain mask, at
        2 mm. It decides nothing.
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

    doubt: float
    disagreement: float
    misfit: float
    inside: float
    residual: float
    csf: float
    grey: float
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
        names = (
            "doubt", "disagreement", "misfit", "inside", "residual", "csf", "grey", "correlation",
            "overlap", "snr", "rotation", "scale",
        )  # fmt: skip
        return {**{name: getattr(self, name) for name in names}, **named}


@dataclass(frozen=True)
class Thresholds:
    """Beyond `refuse_*` a scan is an error, beyond `flag_*` it carries a warning.

    Doubt and residual are bounded from above, overlap and snr from below. Coverage is refused below
    `Preprocessing.min_coverage`. Pairs are the smallest and the largest value. The defaults'
    reasons are what benchmarks/raw.py, heads.py and trust.py measure.
    """

    refuse_doubt: float = 0.5
    flag_doubt: float = 0.1
    refuse_residual: float = 0.12
    flag_residual: float = 0.09
    refuse_csf: tuple[float, float] = (-0.5, 0.85)
    refuse_grey: tuple[float, float] = (0.45, 0.97)
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
    at = at[:, ((at > 0) & (at < size - 1)).all(0)]
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


def evidence(disagreement: float, misfit: float, inside: float) -> tuple[float, float, float]:
    """What doubt is a function of: logarithms of mm, of the misfit, of the part inside the scan."""
    bounded = (np.clip(disagreement, 0.05, 1e3), np.clip(misfit, 1e-3, 10), np.clip(inside, 0.1, 1))
    first, second, third = (float(np.log(value)) for value in bounded)
    return first, second, third


def doubt(disagreement: float, misfit: float, inside: float) -> float:
    """The probability that a pose is more than 2 mm off, mean over the brain."""
    constant, *weights = DOUBT
    found = evidence(disagreement, misfit, inside)
    return float(1 / (1 + np.exp(-(constant + float(np.dot(weights, found))))))


def distance(first: Matrix, second: Matrix, template: Template) -> float:
    """How far two poses `[4, 4]` are apart, mm of the template, mean over the brain."""
    level = template.levels[2]
    points = to_mm(level.affine, np.stack(np.nonzero(level.away == 0))[:, ::_BRAIN_STEP])
    apart = (first - second)[:3, :3] @ points + (first - second)[:3, 3:]
    scale = float(np.cbrt(abs(np.linalg.det(second[:3, :3]))))
    return float(np.linalg.norm(apart, axis=0).mean()) / max(scale, 1e-9)


def _over_white(field: Field) -> tuple[float, float]:
    """Brightness of CSF and of grey matter over white matter's."""
    csf, grey, white = field.tissues
    return (csf / white, grey / white) if white > 0 else (np.inf, np.inf)


def _contrast(residual: float, csf: float, grey: float, limits: Thresholds) -> list[str]:
    """What is unlike a T1 scan's contrast."""
    wrong = []
    if not residual <= limits.refuse_residual:
        most = f"at most {limits.refuse_residual:.2f} is accepted"
        wrong.append(f"{_UNEXPLAINED} {residual:.2f}, {most}")
    for tissue, value, (low, high) in (
        ("CSF", csf, limits.refuse_csf), ("grey matter", grey, limits.refuse_grey),
    ):  # fmt: skip
        if not low <= value <= high:
            what = f"{tissue} has {value:.2f} of white matter's brightness"
            wrong.append(f"{what}, {low:.2f} to {high:.2f} is a T1 scan's")
    return wrong


def is_no_t1(field: Field, limits: Thresholds) -> bool:
    """Whether a scan will be refused for its contrast, wherever it lies."""
    return bool(_contrast(field.residual, *_over_white(field), limits))


def measure(
    scan: Image,
    even: Float,
    template: Template,
    wide: Fit,
    fit: Fit,
    field: Field,
    preprocessing: Preprocessing | None,
    stripped: bool,
) -> Quality:
    """The figures of a scan.

    `even`: without its field, on the template's 2 mm grid, where that is brain or within 4 mm of
    it. `wide`: of the wide windows; `fit`: the answer.
    `preprocessing`: of the boxes whose coverage is measured.
    """
    transform = fit.transform
    level = template.levels[2]
    near, brain = level.away < 4, level.away == 0
    inside = even[brain]
    tissue = near & (even > _TISSUE * np.median(inside))
    both = np.count_nonzero(tissue & template.tissue)
    turn, _, other = np.linalg.svd(transform[:3, :3])
    cosine = (np.trace(turn @ other) - 1) / 2
    csf, grey = _over_white(field)
    apart = distance(wide.transform, transform, template)
    return Quality(
        doubt=doubt(apart, fit.misfit, fit.inside),
        disagreement=apart,
        misfit=fit.misfit,
        inside=fit.inside,
        residual=field.residual,
        csf=csf,
        grey=grey,
        correlation=pearson(level.image[brain], inside),
        overlap=2 * int(both) / int(np.count_nonzero(tissue) + np.count_nonzero(template.tissue)),
        snr=_noise(scan, template, transform),
        coverage=_coverage(scan, transform, preprocessing),
        rotation=float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
        scale=float(np.linalg.det(transform[:3, :3])),
        stripped=stripped,
    )


def _refused(path: Path, what: str, hint: str) -> ScanError:
    return ScanError(f"{path}: not registered: {what}; {hint}", code="scan-not-registered")


def _likeness(path: Path, quality: Quality, limits: Thresholds) -> list[str]:
    """What of the brain and its contrast is unlike a T1 scan's: warnings, or all of it at once."""
    wrong, warnings = [], []
    sure = (
        f"two ways to find the brain differ by {quality.disagreement:.1f} mm, "
        f"{quality.inside:.0%} of it lies in the scan; the probability of being over 2 mm off is"
    )
    if not quality.doubt <= limits.refuse_doubt:
        wrong.append(f"{sure} {quality.doubt:.2f}, at most {limits.refuse_doubt:.2f} is accepted")
    wrong += _contrast(quality.residual, quality.csf, quality.grey, limits)
    for what, value, flag in (
        (sure, quality.doubt, limits.flag_doubt),
        (_UNEXPLAINED, quality.residual, limits.flag_residual),
    ):
        if value > flag:
            warnings.append(f"{what} {value:.2f} (above {flag:.2f}); look at the result")
    least = limits.refuse_overlap
    if quality.overlap < least:
        what = f"overlap with the template's tissue {quality.overlap:.2f}"
        wrong.append(f"{what}, at least {least:.2f} is needed")
    elif quality.overlap < limits.flag_overlap:
        warnings.append(
            f"overlap with the template's tissue only {quality.overlap:.2f} (below "
            f"{limits.flag_overlap:.2f}); look at the result"
        )
    if wrong:
        look = "is it a T1 scan of a whole head, and does its header give the right orientation?"
        raise _refused(path, "; ".join(wrong), look)
    return warnings


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
    warnings = _likeness(path, quality, limits)
    low, high = limits.refuse_scale
    if not low <= quality.scale <= high:
        what = f"the brain would have {quality.scale:.2f} of the template's volume"
        raise _refused(
            path,
            f"{what} ({low:.2f} to {high:.2f} is accepted)",
            "are its header's voxel sizes right?",
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
