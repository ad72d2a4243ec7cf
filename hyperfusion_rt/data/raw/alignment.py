"""A scan on the MNI template: affine registration, bias field, skull; `register` says how."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.data.mni_template import template_files
from hyperfusion_rt.data.scan_check import pearson
from hyperfusion_rt.data.volumes import read_volume
from hyperfusion_rt.errors import MissingExtraError

Float = NDArray[np.float32]
Matrix = NDArray[np.float64]

PURPOSE = "registration of raw scans"
# How far around the template's brain the images are compared, in mm: the border of the brain
# counts. With the skull still there, less of it, or the head's outline would pass for the brain's.
_RING_MM, INNER_MM = 8.0, 2.0
# Grey matter is brighter than this part of the brain's median, CSF is darker.
TISSUE = 0.65
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS, SimpleITK's axes, and back
_CENTER = np.array([0.0, -17.0, 10.0])  # of the brain in MNI space, mm RAS
_N4_ITERATIONS = (30, 30, 30)
_N4_POINTS = (4, 4, 4)


@dataclass(frozen=True)
class Image:
    """Voxels float32 [X, Y, Z], background 0; `affine [4, 4]` to mm (RAS)."""

    path: Path
    voxels: Float
    affine: Matrix
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Level:
    """The template at one spacing: image, distance from the brain in mm, its grid."""

    image: Float
    away: Float
    affine: Matrix
    sigma: float  # of the smoothing, mm


@dataclass(frozen=True)
class Template:
    """The MNI152 T1 on its 1 mm grid, and what registration compares with."""

    affine: Matrix
    mask: NDArray[np.bool_]
    white: Matrix  # [3, N] mm of the core of white matter
    levels: dict[int, Level]
    tissue: NDArray[np.bool_]  # at 2 mm: grey or white matter
    deep: NDArray[np.bool_]  # at 2 mm: more than 12 mm inside the brain


def require_sitk() -> Any:
    """SimpleITK, silenced.

    Raises:
        MissingExtraError: it, or scipy, is not installed.
    """
    try:
        import scipy.ndimage  # noqa: F401
        import SimpleITK
    except ImportError as error:
        raise MissingExtraError(error.name or "SimpleITK", "raw", PURPOSE) from None
    # What its readers warn of is checked here, and said in an error of ours.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def to_mm(affine: Matrix, index: NDArray[Any]) -> Matrix:
    """Points in mm `[3, N]` of voxel coordinates `[3, N]`."""
    found: Matrix = affine[:3, :3] @ index + affine[:3, 3:]
    return found


def block_means(voxels: Float, affine: Matrix, step: tuple[int, ...]) -> tuple[Float, Matrix]:
    """Means over blocks of `step` voxels; what does not fill a block is filled up with 0."""
    if max(step) == 1:
        return voxels, affine
    pad = [(0, -n % s) for n, s in zip(voxels.shape, step, strict=True)]
    voxels = np.pad(voxels, pad)
    shape = [m for n, s in zip(voxels.shape, step, strict=True) for m in (n // s, s)]
    means = voxels.reshape(shape).mean(5).mean(3).mean(1)
    scaled = affine.copy()
    scaled[:3, :3] = affine[:3, :3] * step
    scaled[:3, 3] += affine[:3, :3] @ ((np.asarray(step) - 1) / 2)
    return means, scaled


@lru_cache(maxsize=1)
def load_template() -> Template:
    """The template of the installed nilearn package, made ready once a process.

    Raises:
        MissingExtraError: nilearn is not installed.
    """
    from scipy import ndimage

    volumes = {kind: read_volume(path) for kind, path in template_files("raw", PURPOSE).items()}
    affine = volumes["t1"].affine
    t1, gm, wm = (
        np.asarray(volumes[kind].voxels, np.float32) * np.float32(volumes[kind].slope)
        for kind in ("t1", "gm", "wm")
    )
    mask = ndimage.binary_fill_holes((t1 > 0) | (gm + wm > 127.5))
    core = ndimage.binary_erosion(wm > 0.95 * 255, iterations=2)
    levels = {}
    fine, fine_affine = block_means(t1, affine, (2, 2, 2))
    part, _ = block_means(mask.astype(np.float32), affine, (2, 2, 2))
    tissue, _ = block_means(gm + wm, affine, (2, 2, 2))
    away = ndimage.distance_transform_edt(part <= 0.5).astype(np.float32) * 2
    for spacing in (8, 4, 2):
        step = (spacing // 2,) * 3
        # Smoothed as the scan will be, so that both have the same detail.
        sigma = 0.75 * spacing if spacing > 2 else 0.7 * spacing
        smooth = ndimage.gaussian_filter(fine, sigma / 2, truncate=3.0)
        image, grid = block_means(smooth, fine_affine, step)
        distance, _ = block_means(away, fine_affine, step)
        # What fills up the last block is no part of the template.
        distance[block_means(np.ones_like(away), fine_affine, step)[0] < 1] = np.inf
        levels[spacing] = Level(image, distance, grid, sigma)
    return Template(
        affine,
        mask,
        to_mm(affine, np.stack(np.nonzero(core))),
        levels,
        tissue > 127.5,
        ndimage.distance_transform_edt(part > 0.5) * 2 > 12,
    )


def sample(
    voxels: Float,
    matrix: Matrix,
    shape: tuple[int, ...],
    order: int = 1,
    mode: Literal["constant", "nearest"] = "constant",
) -> Float:
    """`voxels` at `matrix [4, 4]` · index of a grid of `shape`; outside 0, or the nearest."""
    from scipy import ndimage

    found: Float = ndimage.affine_transform(
        voxels, matrix[:3, :3], matrix[:3, 3], shape, np.float32, order, mode, 0.0
    )
    return found


def _image(voxels: Float, affine: Matrix) -> Any:
    """As a SimpleITK image."""
    found = require_sitk().GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    place = _FLIP @ affine
    found.SetSpacing(spacing.tolist())
    found.SetDirection((place[:3, :3] / spacing).ravel().tolist())
    found.SetOrigin(place[:3, 3].tolist())
    return found


def _moving_to(transform: Matrix, kind: str) -> Any:
    """`transform [4, 4]` (RAS) as SimpleITK's `Similarity3DTransform` or `AffineTransform`."""
    sitk = require_sitk()
    found = sitk.Similarity3DTransform() if kind == "similarity" else sitk.AffineTransform(3)
    place = _FLIP @ transform @ _FLIP
    center = _FLIP[:3, :3] @ _CENTER
    found.SetCenter(center.tolist())
    found.SetMatrix(place[:3, :3].ravel().tolist())
    found.SetTranslation((place[:3, 3] - center + place[:3, :3] @ center).tolist())
    return found


def _matrix(transform: Any) -> Matrix:
    """`[4, 4]` (RAS) of a SimpleITK transform."""
    place = np.eye(4)
    center = np.asarray(transform.GetCenter())
    place[:3, :3] = np.asarray(transform.GetMatrix()).reshape(3, 3)
    place[:3, 3] = np.asarray(transform.GetTranslation()) + center - place[:3, :3] @ center
    found: Matrix = _FLIP @ place @ _FLIP
    return found


class Fit:
    """The scan on one level of the template, and how SimpleITK compares the two.

    All voxels within `ring` mm of the template's brain are compared, none are drawn; one thread, so
    that sums always have one order.
    """

    def __init__(self, level: Level, scan: Image, ring: float = _RING_MM) -> None:
        from scipy import ndimage

        sitk = require_sitk()
        spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
        smooth = ndimage.gaussian_filter(scan.voxels, level.sigma / spacing, truncate=3.0)
        # Half the level's spacing is fine enough for what is left.
        mm = float(level.affine[0, 0]) / 2
        step = tuple(max(1, int(mm / length + 0.01)) for length in spacing)
        smooth, affine = block_means(smooth, scan.affine, step)
        self._smooth, self._to_voxel = smooth, np.linalg.inv(affine)
        self._level = level
        self._compared = level.away < ring
        self._points = to_mm(level.affine, np.stack(np.nonzero(self._compared)))
        self._fixed = _image(level.image, level.affine)
        self._moving = _image(smooth, affine)
        self._method = sitk.ImageRegistrationMethod()
        self._method.SetNumberOfThreads(1)
        self._method.SetMetricAsCorrelation()
        self._method.SetMetricSamplingStrategy(self._method.NONE)
        self._method.SetMetricFixedMask(_image(self._compared.astype(np.uint8), level.affine))
        self._method.SetInterpolator(sitk.sitkLinear)

    def warp(self, transform: Matrix) -> Float:
        """The smoothed scan on the level's grid."""
        matrix = self._to_voxel @ transform @ self._level.affine
        return sample(self._smooth, matrix, self._level.image.shape)

    def likeness(self, transform: Matrix) -> float:
        """Pearson's r with the template; -1 where less than a third lies inside the scan."""
        at = to_mm(self._to_voxel @ transform, self._points)
        size = np.asarray(self._smooth.shape)[:, None]
        inside = ((at > -0.5) & (at < size - 0.5)).all(0)
        if inside.mean() < 1 / 3:
            return -1.0
        warped = self.warp(transform)[self._compared]
        return pearson(self._level.image[self._compared][inside], warped[inside])

    def run(self, start: Matrix, kind: str, step: float, smallest: float) -> tuple[float, Matrix]:
        """Squared correlation and transform at the optimum near `start`; steps in mm.

        Raises:
            RuntimeError: of SimpleITK, when the images no longer overlap.
        """
        moved = _moving_to(start, kind)
        self._method.SetInitialTransform(moved, True)
        self._method.SetOptimizerAsRegularStepGradientDescent(
            step, smallest, 200, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-8
        )
        self._method.SetOptimizerScalesFromPhysicalShift()
        self._method.Execute(self._fixed, self._moving)
        return -float(self._method.GetMetricValue()), _matrix(moved)


def turn(degrees: tuple[float, ...]) -> Matrix:
    """The rotation about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        result = step @ result
    return result


def _centers(scan: Image) -> list[Matrix]:
    """Where the middle of the brain may be, in mm: of all that is bright, or below the vertex.

    With a neck in the scan the centre of mass lies too low; the highest point of the head does not
    move with it.
    """
    head = scan.voxels > 0.5 * _otsu(scan.voxels)
    index = np.stack(np.nonzero(head)).astype(np.float64)
    points = to_mm(scan.affine, index)
    # The highest tenth of a percent may be noise or a vitamin capsule.
    top = np.percentile(points[2], 99.9)
    near = points[:, points[2] > top - 150]
    below = np.array([*np.median(near[:2], axis=1), top - 78.0])
    return [points.mean(1), below, below - [0.0, 0.0, 15.0]]


def find_start(template: Template, scan: Image) -> Matrix:
    """The best of many starts at 8 mm: rotation, shift and one scale."""
    fit = Fit(template.levels[8], scan, ring=INNER_MM)
    starts: list[tuple[float, int, Matrix]] = []
    for center in _centers(scan):
        for angles in itertools.product((-20.0, 0.0, 20.0), repeat=3):
            start = np.eye(4)
            start[:3, :3] = 0.95 * turn(angles)
            start[:3, 3] = center - start[:3, :3] @ _CENTER
            starts.append((fit.likeness(start), len(starts), start))
    best = sorted(starts, key=lambda s: (-s[0], s[1]))[:6]
    found = [fit.run(start, "similarity", 4.0, 0.1) for _, _, start in best]
    return max(found, key=lambda found: found[0])[1]


def strip_skull(template: Template, scan: Image, transform: Matrix) -> tuple[Image, bool]:
    """The scan without what lies around its brain, and whether that was so before.

    For the comparison with the template alone, whose skull is stripped too: what is brighter than
    CSF, hangs together with the middle of the brain after an erosion by 4 mm, and lies within
    14 mm of the template's brain; dilated by 6 mm, so that the surrounding CSF is kept.
    """
    from scipy import ndimage

    level = template.levels[2]
    matrix = np.linalg.inv(scan.affine) @ transform @ level.affine
    image = sample(scan.voxels, matrix, level.image.shape)
    shell = (level.away > 5) & (level.away < 12)
    inside = image[level.away == 0]
    if (image[shell] > 0.1 * np.median(inside)).mean() < 0.1:
        return scan, True
    tissue = (image > TISSUE * np.median(inside)) & (level.away < 14)
    labels, count = ndimage.label(ndimage.binary_erosion(tissue, iterations=2))
    if not count:
        return scan, False
    sizes = np.bincount(labels[template.deep], minlength=count + 1)
    sizes[0] = 0
    brain = ndimage.binary_dilation(labels == sizes.argmax(), iterations=3)
    back = np.asarray(np.linalg.inv(matrix), np.float64)
    kept = sample(brain.astype(np.float32), back, scan.voxels.shape)
    return replace(scan, voxels=scan.voxels * kept), False


def _otsu(values: Float) -> float:
    """Otsu's threshold."""
    sitk = require_sitk()
    found = sitk.OtsuThresholdImageFilter()
    found.SetNumberOfThreads(1)
    found.Execute(sitk.GetImageFromArray(values.reshape(1, 1, -1)))
    return float(found.GetThreshold())


def bias_field(template: Template, scan: Image, transform: Matrix) -> Float:
    """The logarithm of the bias field on the template's 4 mm grid, mean 0 in the brain."""
    sitk = require_sitk()
    level = template.levels[4]
    matrix = np.linalg.inv(scan.affine) @ transform @ level.affine
    image = sample(scan.voxels, matrix, level.image.shape)
    brain = level.away == 0
    brain &= image > 0.1 * np.median(image[brain])
    if np.count_nonzero(brain) < 1000:
        return np.zeros_like(image)
    filter = sitk.N4BiasFieldCorrectionImageFilter()
    filter.SetNumberOfThreads(1)
    filter.SetMaximumNumberOfIterations(_N4_ITERATIONS)
    filter.SetNumberOfControlPoints(_N4_POINTS)
    filter.SetConvergenceThreshold(1e-4)
    moving = sitk.GetImageFromArray(image)
    moving.SetSpacing((4.0, 4.0, 4.0))
    inside = sitk.GetImageFromArray(brain.astype(np.uint8))
    inside.SetSpacing((4.0, 4.0, 4.0))
    filter.Execute(moving, inside)
    field: Float = sitk.GetArrayFromImage(filter.GetLogBiasFieldAsImage(moving))
    mean = np.float32(field[brain].mean(dtype=np.float64))
    return np.asarray(field - mean, np.float32)


def grow(logarithm: Float, template: Template, affine: Matrix, shape: tuple[int, ...]) -> Float:
    """The bias field on another grid of template space."""
    from scipy import ndimage

    matrix = np.linalg.inv(template.levels[4].affine) @ affine
    found: Float = ndimage.affine_transform(
        logarithm, np.diag(matrix[:3, :3]), matrix[:3, 3], shape, np.float32, 1, mode="nearest"
    )
    return np.exp(found)


def without_bias(scan: Image, template: Template, bias: Float, transform: Matrix) -> Image:
    """The scan without the bias field."""
    matrix = np.linalg.inv(template.levels[4].affine) @ np.linalg.inv(transform) @ scan.affine
    field = sample(bias, matrix, scan.voxels.shape, mode="nearest")
    return replace(scan, voxels=np.asarray(scan.voxels / np.exp(field), np.float32))
