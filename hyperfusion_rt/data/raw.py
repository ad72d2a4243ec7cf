"""From a raw T1 scan to a brain in MNI space: `hfrt preprocess`, `hfrt infer --from raw`.

    out(x) = scan(A^-1 · T · x) / b(x) · m(x)

`x` is a point of the template's 1 mm grid in mm (RAS), `T [4, 4]` the affine registration
(template mm to scan mm), `A` the scan's affine, `b` the bias field and `m` the brain mask. The
scan is interpolated once, with cubic splines.

`T` maximises the correlation with the template over 12 degrees of freedom, with SimpleITK's
registration (Lowekamp et al., Front. Neuroinform. 2013), at 8, 4 and 2 mm. It starts from several
centres and rotations. Only voxels in and just around the template's brain count, so that skull,
face and neck do not matter. The bias field (N4: Tustison et al., IEEE TMI 2010) is estimated in
template space, between the levels: where the scan's grid lies in space then makes no difference to
it. Nothing is drawn at random and all sums are taken by one thread: same scan, same bits.

The template is the MNI152 2009a T1 of the nilearn package, whose skull is stripped (Fonov et al.,
NeuroImage 2011). A scan whose header swaps left and right cannot be told from a good one.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data.cohort import Scan, find_scans
from hyperfusion_rt.data.table import normalise_id
from hyperfusion_rt.data.volumes import Volume, read_volume, sampling_matrix
from hyperfusion_rt.errors import CohortError, HyperFusionError, MissingExtraError, ScanError
from hyperfusion_rt.files import replacing, sha256, write_text
from hyperfusion_rt.machine import installed

Float = NDArray[np.float32]
Matrix = NDArray[np.float64]

_PURPOSE = "registration of raw scans"
# How far around the template's brain the images are compared, in mm: the border of the brain
# counts. With the skull still there, less of it, or the head's outline would pass for the brain's.
_RING_MM, _INNER_MM = 8.0, 2.0
# Grey matter is brighter than this part of the brain's median, CSF is darker.
_TISSUE = 0.65


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


@dataclass(frozen=True)
class Registered:
    """A scan in template space.

    volume: int16 voxels [197, 233, 189] on the template's 1 mm grid (value = slope · voxel), 0
        outside the brain; its path is the raw scan's. warnings: what a reader should know.
    transform: float64 [4, 4], from template mm to scan mm (RAS). seconds: of each step.
    """

    volume: Volume
    quality: Quality
    warnings: tuple[str, ...]
    transform: Matrix
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Scan:
    """Voxels float32 [X, Y, Z], background 0; `affine [4, 4]` to mm (RAS)."""

    path: Path
    voxels: Float
    affine: Matrix
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Level:
    """The template at one spacing: image, distance from the brain in mm, its grid."""

    image: Float
    away: Float
    affine: Matrix
    sigma: float  # of the smoothing, mm


@dataclass(frozen=True)
class _Template:
    affine: Matrix
    mask: NDArray[np.bool_]
    white: Matrix  # [3, N] mm of the core of white matter
    levels: dict[int, _Level]
    tissue: NDArray[np.bool_]  # at 2 mm: grey or white matter
    deep: NDArray[np.bool_]  # at 2 mm: more than 12 mm inside the brain


def _require() -> Any:
    """SimpleITK, silenced.

    Raises:
        MissingExtraError: it, or scipy, is not installed.
    """
    try:
        import scipy.ndimage  # noqa: F401
        import SimpleITK
    except ImportError as error:
        raise MissingExtraError(error.name or "SimpleITK", "raw", _PURPOSE) from None
    # What its readers warn of is checked here, and said in an error of ours.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def template_files() -> dict[str, Path]:
    """The paths of `t1`, `gm` and `wm` inside the installed nilearn package.

    Raises:
        MissingExtraError: nilearn is not installed, or has no template.
    """
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise MissingExtraError("nilearn", "raw", _PURPOSE)
    folder = Path(spec.origin).parent / "datasets" / "data"
    names = {
        kind: folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        for kind in ("t1", "gm", "wm")
    }
    if not all(path.exists() for path in names.values()):
        raise MissingExtraError("nilearn>=0.11", "raw", _PURPOSE)
    return names


def _mm(affine: Matrix, index: NDArray[Any]) -> Matrix:
    """Points in mm `[3, N]` of voxel coordinates `[3, N]`."""
    found: Matrix = affine[:3, :3] @ index + affine[:3, 3:]
    return found


def _blocks(voxels: Float, affine: Matrix, step: tuple[int, ...]) -> tuple[Float, Matrix]:
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
def _template() -> _Template:
    from scipy import ndimage

    volumes = {kind: read_volume(path) for kind, path in template_files().items()}
    affine = volumes["t1"].affine
    t1, gm, wm = (
        np.asarray(volumes[kind].voxels, np.float32) * np.float32(volumes[kind].slope)
        for kind in ("t1", "gm", "wm")
    )
    mask = ndimage.binary_fill_holes((t1 > 0) | (gm + wm > 127.5))
    core = ndimage.binary_erosion(wm > 0.95 * 255, iterations=2)
    levels = {}
    fine, fine_affine = _blocks(t1, affine, (2, 2, 2))
    part, _ = _blocks(mask.astype(np.float32), affine, (2, 2, 2))
    tissue, _ = _blocks(gm + wm, affine, (2, 2, 2))
    away = ndimage.distance_transform_edt(part <= 0.5).astype(np.float32) * 2
    for spacing in (8, 4, 2):
        step = (spacing // 2,) * 3
        # Smoothed as the scan will be, so that both have the same detail.
        sigma = 0.75 * spacing if spacing > 2 else 0.7 * spacing
        smooth = ndimage.gaussian_filter(fine, sigma / 2, truncate=3.0)
        image, grid = _blocks(smooth, fine_affine, step)
        distance, _ = _blocks(away, fine_affine, step)
        # What fills up the last block is no part of the template.
        distance[_blocks(np.ones_like(away), fine_affine, step)[0] < 1] = np.inf
        levels[spacing] = _Level(image, distance, grid, sigma)
    return _Template(
        affine,
        mask,
        _mm(affine, np.stack(np.nonzero(core))),
        levels,
        tissue > 127.5,
        ndimage.distance_transform_edt(part > 0.5) * 2 > 12,
    )


# --- reading ---


def is_dicom_folder(path: Path) -> bool:
    """Whether `path` is a folder with DICOM files, from the first bytes of at most eight of them.

    A DICOM file has `DICM` at byte 128.
    """
    path = Path(path)
    if not path.is_dir():
        return False
    files = (p for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith("."))
    for file in itertools.islice(files, 8):
        try:
            with open(file, "rb") as stream:
                if stream.read(132)[128:] == b"DICM":
                    return True
        except OSError:
            continue
    return False


def find_raw_scans(path: str | Path) -> list[Scan]:
    """As `find_scans`, and every folder of DICOM files below `path` as one scan.

    A DICOM folder's subject is the first folder below `path`, or its own name.

    Raises:
        CohortError: no such path, no permission to read it, or no scan found.
    """
    root = Path(path)
    folders = [root, *sorted(p for p in root.rglob("*") if p.is_dir())] if root.is_dir() else []
    found = []
    for folder in folders:
        if not is_dicom_folder(folder):
            continue
        below = folder.relative_to(root).parts
        session = next((normalise_id(p) for p in below if p.lower().startswith("ses-")), None)
        subject = below[0] if below else folder.resolve().name
        found.append(Scan(folder, normalise_id(subject), session))
    if not found:
        return find_scans(root)
    with contextlib.suppress(CohortError):  # DICOM alone is enough
        found += [scan for scan in find_scans(root) if not scan.defect]
    return sorted(found, key=lambda scan: scan.path)


def dicom_series(folder: Path) -> list[tuple[Path, ...]]:
    """The files of each DICOM series in `folder` (not in folders below), in order of position.

    Raises:
        ScanError: the folder cannot be read.
        MissingExtraError: the raw extra is not installed.
    """
    sitk = _require()
    if not Path(folder).is_dir():
        raise ScanError(f"{folder}: no such folder")
    reader = sitk.ImageSeriesReader
    return [
        tuple(Path(name) for name in reader.GetGDCMSeriesFileNames(str(folder), series))
        for series in sorted(reader.GetGDCMSeriesIDs(str(folder)))
    ]


def _tags(path: Path) -> dict[str, str]:
    """The DICOM tags `gggg|eeee` of a file."""
    reader = _require().ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise ScanError(f"{path}: cannot be read as DICOM; copy it again from its source") from None
    return {key: str(reader.GetMetaData(key)).strip() for key in reader.GetMetaDataKeys()}


def _one_series(folder: Path) -> tuple[Path, ...]:
    found = dicom_series(folder)
    if not found:
        raise ScanError(f"{folder}: no DICOM series of images in this folder")
    if len(found) > 1:
        names = []
        for files in found:
            tags = _tags(files[0])
            title = tags.get("0008|103e") or "without description"
            names.append(f"{title!r} ({len(files)} files, {files[0].name} ...)")
        raise ScanError(
            f"{folder}: {len(found)} DICOM series: {'; '.join(names)}; "
            "put the T1 series into a folder of its own"
        )
    return found[0]


def _numbers(text: str) -> Matrix:
    return np.array([float(part) for part in text.split("\\")], np.float64)


def _check_series(folder: Path, files: tuple[Path, ...]) -> None:
    """One MR volume, in parallel slices at even distances.

    Raises:
        ScanError: it is not.
    """
    tags = [_tags(file) for file in files]
    modality = tags[0].get("0008|0060", "")
    if modality != "MR":
        raise ScanError(f"{folder}: modality {modality or 'unknown'}, but a T1 MR scan is needed")
    if len(files) == 1:
        frames = int(tags[0].get("0028|0008") or 1)
        if frames < 8:
            raise ScanError(f"{folder}: one DICOM image, but a whole volume is needed")
        return
    try:
        positions = np.stack([_numbers(tag["0020|0032"]) for tag in tags])
        axes = np.stack([_numbers(tag["0020|0037"]).reshape(2, 3) for tag in tags])
    except (KeyError, ValueError):
        raise ScanError(
            f"{folder}: a slice says nothing of its position or orientation (tags 0020,0032 and "
            "0020,0037); export the series again"
        ) from None
    if np.abs(axes - axes[0]).max() > 1e-3:
        raise ScanError(f"{folder}: slices of different orientation; take the localiser out")
    sizes = {(tag.get("0028|0010"), tag.get("0028|0011")) for tag in tags}
    if len(sizes) > 1:
        raise ScanError(f"{folder}: slices of different size; put one volume into the folder")
    along = positions @ np.cross(axes[0, 0], axes[0, 1])
    order = np.argsort(along)
    steps = np.diff(along[order])
    usual = float(np.median(steps))
    if steps.min() < 0.02 * usual or usual < 1e-3:
        raise ScanError(
            f"{folder}: several slices at one position (echoes or time points); "
            "put one volume into the folder"
        )
    worst = int(np.argmax(np.abs(steps - usual)))
    if abs(steps[worst] - usual) > max(0.05 * usual, 0.02):
        before, after = (files[order[worst + k]].name for k in (0, 1))
        raise ScanError(
            f"{folder}: slices lie {usual:.2f} mm apart, but {steps[worst]:.2f} mm between "
            f"{before} and {after}: slices are missing or uneven; export the whole series again"
        )
    shift = np.diff(positions[order], axis=0)
    if np.abs(shift - shift.mean(0)).max() > 0.1 or (
        np.linalg.norm(np.cross(shift.mean(0), np.cross(axes[0, 0], axes[0, 1]))) > 0.02 * usual
    ):
        raise ScanError(f"{folder}: slices are shifted against each other; convert it to NIfTI")


def _read_dicom(folder: Path) -> tuple[Float, Matrix]:
    sitk = _require()
    files = _one_series(folder)
    _check_series(folder, files)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    try:
        image = reader.Execute() if len(files) > 1 else sitk.ReadImage(str(files[0]))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ScanError(f"{folder}: the DICOM series cannot be read: {reason}") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ScanError(f"{folder}: not one 3D volume of real numbers")
    affine = np.eye(4)
    direction = np.asarray(image.GetDirection(), np.float64).reshape(3, 3)
    affine[:3, :3] = direction * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    # DICOM's axes point to left and posterior.
    affine[:2] *= -1
    voxels = sitk.GetArrayViewFromImage(image).astype(np.float32)
    return np.ascontiguousarray(voxels.transpose(2, 1, 0)), affine


def _border(voxels: Float) -> Float:
    """The values on the six faces."""
    faces = [np.take(voxels, (0, -1), axis).ravel() for axis in range(3)]
    return np.concatenate(faces)


def _read(path: Path) -> _Scan:
    """The scan's values with a background of 0 and none below.

    Raises:
        ScanError: as `read_volume`; a DICOM folder that holds no single even MR series; fewer than
            16 slices; all voxels alike.
    """
    if path.is_dir():
        voxels, affine = _read_dicom(path)
    else:
        volume = read_volume(path)
        voxels = np.asarray(volume.voxels, np.float32, order="C")
        if (volume.slope, volume.inter) != (1.0, 0.0):
            voxels = voxels * np.float32(volume.slope) + np.float32(volume.inter)
        affine = volume.affine
    if min(voxels.shape) < 16:
        raise ScanError(
            f"{path}: {'x'.join(map(str, voxels.shape))} voxels: a brain needs at least 16 slices"
        )
    warnings = []
    finite = np.isfinite(voxels)
    if not finite.all():
        count = int(finite.size - np.count_nonzero(finite))
        warnings.append(f"{count} voxels are NaN or infinite; taken as background")
        voxels = np.where(finite, voxels, np.float32(0))
    values, counts = np.unique(_border(voxels), return_counts=True)
    most = float(values[counts.argmax()])
    # A value that most of the border has is background, whatever it is (z-scores, -1024).
    known = counts.max() > 0.5 * counts.sum()
    inside = voxels[voxels != np.float32(most)] if known else voxels.ravel()
    if not inside.size or inside.min() == inside.max():
        raise ScanError(f"{path}: every voxel has the same value; is the file empty?")
    low = float(np.percentile(inside[:: max(1, inside.size // 1_000_000)], 2))
    floor = min(low, most) if known else low
    if floor != 0 or float(voxels.min()) < 0:
        background = voxels == np.float32(most)
        voxels = np.maximum(voxels - np.float32(floor), 0)
        if known:
            voxels[background] = 0
    return _Scan(path, voxels, affine, tuple(warnings))


# --- registration ---


def _sample(voxels: Float, matrix: Matrix, shape: tuple[int, ...], order: int = 1) -> Float:
    """`voxels` at `matrix [4, 4]` · index of a grid of `shape`; 0 outside."""
    from scipy import ndimage

    found: Float = ndimage.affine_transform(
        voxels, matrix[:3, :3], matrix[:3, 3], shape, np.float32, order, "constant", 0.0
    )
    return found


_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS, SimpleITK's axes, and back
_CENTER = np.array([0.0, -17.0, 10.0])  # of the brain in MNI space, mm RAS


def _image(voxels: Float, affine: Matrix) -> Any:
    """As a SimpleITK image."""
    found = _require().GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    place = _FLIP @ affine
    found.SetSpacing(spacing.tolist())
    found.SetDirection((place[:3, :3] / spacing).ravel().tolist())
    found.SetOrigin(place[:3, 3].tolist())
    return found


def _moving_to(transform: Matrix, kind: str) -> Any:
    """`transform [4, 4]` (RAS) as SimpleITK's `Similarity3DTransform` or `AffineTransform`."""
    sitk = _require()
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


def _pearson(a: Float, b: Float) -> float:
    """Pearson's r; -1 where one of them is constant."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    x, y = x - x.mean(), y - y.mean()
    product = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / product if product > 0 else -1.0


class _Fit:
    """The scan on one level of the template, and how SimpleITK compares the two.

    All voxels within `ring` mm of the template's brain are compared, none are drawn; one thread, so
    that sums always have one order.
    """

    def __init__(self, level: _Level, scan: _Scan, ring: float = _RING_MM) -> None:
        from scipy import ndimage

        sitk = _require()
        spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
        smooth = ndimage.gaussian_filter(scan.voxels, level.sigma / spacing, truncate=3.0)
        # Half the level's spacing is fine enough for what is left.
        mm = 2 * float(level.affine[0, 0]) / 4
        step = tuple(max(1, int(mm / length + 0.01)) for length in spacing)
        smooth, affine = _blocks(smooth, scan.affine, step)
        self._smooth, self._to_voxel = smooth, np.linalg.inv(affine)
        self._level = level
        self._compared = level.away < ring
        self._points = _mm(level.affine, np.stack(np.nonzero(self._compared)))
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
        return _sample(self._smooth, matrix, self._level.image.shape)

    def likeness(self, transform: Matrix) -> float:
        """Pearson's r with the template; -1 where less than a third lies inside the scan."""
        at = _mm(self._to_voxel @ transform, self._points)
        size = np.asarray(self._smooth.shape)[:, None]
        inside = ((at > -0.5) & (at < size - 0.5)).all(0)
        if inside.mean() < 1 / 3:
            return -1.0
        warped = self.warp(transform)[self._compared]
        return _pearson(self._level.image[self._compared][inside], warped[inside])

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


def _turn(degrees: tuple[float, ...]) -> Matrix:
    """The rotation about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


def _centers(scan: _Scan) -> list[Matrix]:
    """Where the middle of the brain may be, in mm: of all that is bright, or below the vertex.

    With a neck in the scan the centre of mass lies too low; the highest point of the head does not
    move with it.
    """
    head = scan.voxels > 0.5 * _otsu(scan.voxels)
    index = np.stack(np.nonzero(head)).astype(np.float64)
    points = _mm(scan.affine, index)
    # The highest tenth of a percent may be noise or a vitamin capsule.
    top = np.percentile(points[2], 99.9)
    near = points[:, points[2] > top - 150]
    below = np.array([*np.median(near[:2], axis=1), top - 78.0])
    return [points.mean(1), below, below - [0.0, 0.0, 15.0]]


def _start(template: _Template, scan: _Scan) -> Matrix:
    """The best of many starts at 8 mm: rotation, shift and one scale."""
    fit = _Fit(template.levels[8], scan, ring=_INNER_MM)
    starts: list[tuple[float, int, Matrix]] = []
    for center in _centers(scan):
        for angles in itertools.product((-20.0, 0.0, 20.0), repeat=3):
            start = np.eye(4)
            start[:3, :3] = 0.95 * _turn(angles)
            start[:3, 3] = center - start[:3, :3] @ _CENTER
            starts.append((fit.likeness(start), len(starts), start))
    best = sorted(starts, key=lambda s: (-s[0], s[1]))[:6]
    found = [fit.run(start, "similarity", 4.0, 0.1) for _, _, start in best]
    return max(found, key=lambda found: found[0])[1]


def _strip(template: _Template, scan: _Scan, transform: Matrix) -> tuple[_Scan, bool]:
    """The scan without what lies around its brain, and whether that was so before.

    For the comparison with the template alone, whose skull is stripped too: what is brighter than
    CSF, hangs together with the middle of the brain after an erosion by 4 mm, and lies within
    14 mm of the template's brain; dilated by 6 mm, so that the surrounding CSF is kept.
    """
    from scipy import ndimage

    level = template.levels[2]
    matrix = np.linalg.inv(scan.affine) @ transform @ level.affine
    image = _sample(scan.voxels, matrix, level.image.shape)
    shell = (level.away > 5) & (level.away < 12)
    inside = image[level.away == 0]
    if (image[shell] > 0.1 * np.median(inside)).mean() < 0.1:
        return scan, True
    tissue = (image > _TISSUE * np.median(inside)) & (level.away < 14)
    labels, count = ndimage.label(ndimage.binary_erosion(tissue, iterations=2))
    if not count:
        return scan, False
    sizes = np.bincount(labels[template.deep], minlength=count + 1)
    sizes[0] = 0
    brain = ndimage.binary_dilation(labels == sizes.argmax(), iterations=3)
    back = np.asarray(np.linalg.inv(matrix), np.float64)
    kept = _sample(brain.astype(np.float32), back, scan.voxels.shape)
    return replace(scan, voxels=scan.voxels * kept), False


def _otsu(values: Float) -> float:
    """Otsu's threshold."""
    sitk = _require()
    found = sitk.OtsuThresholdImageFilter()
    found.SetNumberOfThreads(1)
    found.Execute(sitk.GetImageFromArray(values.reshape(1, 1, -1)))
    return float(found.GetThreshold())


def _bias(template: _Template, scan: _Scan, transform: Matrix) -> Float:
    """The logarithm of the bias field on the template's 4 mm grid, mean 0 in the brain."""
    sitk = _require()
    level = template.levels[4]
    matrix = np.linalg.inv(scan.affine) @ transform @ level.affine
    image = _sample(scan.voxels, matrix, level.image.shape)
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


_N4_ITERATIONS = (30, 30, 30)
_N4_POINTS = (4, 4, 4)


def _grow(logarithm: Float, template: _Template, affine: Matrix, shape: tuple[int, ...]) -> Float:
    """The bias field on another grid of template space."""
    from scipy import ndimage

    matrix = np.linalg.inv(template.levels[4].affine) @ affine
    found: Float = ndimage.affine_transform(
        logarithm, np.diag(matrix[:3, :3]), matrix[:3, 3], shape, np.float32, 1, mode="nearest"
    )
    return np.exp(found)


def _corrected(scan: _Scan, template: _Template, bias: Float, transform: Matrix) -> _Scan:
    """The scan without the bias field."""
    from scipy import ndimage

    matrix = np.linalg.inv(template.levels[4].affine) @ np.linalg.inv(transform) @ scan.affine
    field: Float = ndimage.affine_transform(
        bias, matrix[:3, :3], matrix[:3, 3], scan.voxels.shape, np.float32, 1, mode="nearest"
    )
    return replace(scan, voxels=np.asarray(scan.voxels / np.exp(field), np.float32))


def _noise(scan: _Scan, template: _Template, transform: Matrix) -> float:
    """The signal to noise ratio in white matter; 0 where it cannot be told."""
    at = np.rint(_mm(np.linalg.inv(scan.affine) @ transform, template.white)).astype(np.intp)
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
    scan: _Scan, transform: Matrix, preprocessing: Preprocessing | None
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
        at = _mm(matrix, index)
        found[box.name] = float(((at >= -0.5) & (at <= size - 0.5)).all(0).mean())
    return found


def _quality(
    scan: _Scan,
    template: _Template,
    fit: _Fit,
    transform: Matrix,
    preprocessing: Preprocessing | None,
    stripped: bool,
) -> Quality:
    warped = fit.warp(transform)
    level = template.levels[2]
    brain = level.away == 0
    inside = warped[brain]
    tissue = (warped > _TISSUE * np.median(inside)) & (level.away < 4)
    both = np.count_nonzero(tissue & template.tissue)
    turn, _, other = np.linalg.svd(transform[:3, :3])
    cosine = (np.trace(turn @ other) - 1) / 2
    return Quality(
        correlation=_pearson(level.image[brain], inside),
        overlap=2 * both / int(np.count_nonzero(tissue) + np.count_nonzero(template.tissue)),
        snr=_noise(scan, template, transform),
        coverage=_coverage(scan, transform, preprocessing),
        rotation=float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
        scale=float(np.linalg.det(transform[:3, :3])),
        stripped=stripped,
    )


def _judge(
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
                f"needed; {look}"
            )
        if value < flag:
            warnings.append(
                f"{name} {what} only {value:.2f} (below {flag:.2f}); look at the result"
            )
    low, high = limits.refuse_scale
    if not low <= quality.scale <= high:
        raise ScanError(
            f"{path}: not registered: the brain would have {quality.scale:.2f} of the template's "
            f"volume ({low:.2f} to {high:.2f} is accepted); are its header's voxel sizes right?"
        )
    low, high = limits.flag_scale
    if not low <= quality.scale <= high:
        warnings.append(f"brain of {quality.scale:.2f} of the template's volume")
    if quality.snr < limits.refuse_snr:
        raise ScanError(
            f"{path}: signal to noise ratio {quality.snr:.1f} in white matter, at least "
            f"{limits.refuse_snr:.1f} is needed; use another scan"
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
                f"{preprocessing.min_coverage:.0%} is needed); use a scan of the whole brain"
            )
        if part < limits.flag_coverage:
            warnings.append(f"{name} box: {part:.0%} inside the scan")
    return warnings


def _resample(
    scan: _Scan, template: _Template, transform: Matrix, bias: Float, stripped: bool, order: int
) -> Volume:
    """The scan on the template's 1 mm grid, once interpolated, int16."""
    from scipy import ndimage

    shape = template.mask.shape
    # Finer voxels are averaged first, or their noise would come through as it is.
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    step = tuple(max(1, round(1 / s)) for s in spacing)
    voxels, affine = _blocks(scan.voxels, scan.affine, step)
    matrix = np.linalg.inv(affine) @ transform @ template.affine
    values = _sample(voxels, matrix, shape, order)
    if stripped:
        # The brain as it was cut out, not the template's.
        own = (voxels > _SUPPORT * np.median(voxels[voxels > 0])).astype(np.float32)
        mask = _sample(own, matrix, shape) >= 0.5
        mask &= ndimage.binary_dilation(template.mask, iterations=6)
        mask = ndimage.binary_fill_holes(mask)
    else:
        mask = template.mask
    values /= _grow(bias, template, template.affine, shape)
    values = np.where(mask, np.maximum(values, 0), 0)
    slope = np.float32(max(float(values.max()), 1e-30) / 32000)
    # What is brain stays different from the background.
    stored = np.maximum(np.rint(values / slope), mask).astype(np.int16)
    return Volume(scan.path, stored, template.affine.copy(), float(slope), 0.0)


_SUPPORT = 0.1


@contextmanager
def _clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def register(
    path: Path,
    preprocessing: Preprocessing | None = None,
    *,
    thresholds: Thresholds = THRESHOLDS,
) -> Registered:
    """Register a raw T1 scan to MNI space, correct its bias field and take the skull off.

    `path`: a NIfTI or MGH file, or a folder with the files of one DICOM series; any orientation,
    spacing and scaling, with or without skull. NaN and infinity become background. `preprocessing`
    names the boxes whose coverage is measured.

    A scan with its skull is cut out with the template's brain mask; one whose skull was removed
    keeps its own outline. One thread; run several scans at a time in processes or threads.

    Raises:
        ScanError: unreadable (see `read_volume`), no single even DICOM series, a constant, or a
            figure of `Quality` beyond its refuse level.
        MissingExtraError: the raw extra is not installed.
    """
    path = Path(path)
    _require()
    seconds: dict[str, float] = {}
    with _clock(seconds, "template"):
        template = _template()
    with _clock(seconds, "read"):
        scan = _read(path)
        spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
        step = tuple(max(1, round(2 / s)) for s in spacing)
        voxels, affine = _blocks(scan.voxels, scan.affine, step)
        coarse = replace(scan, voxels=voxels, affine=affine)
    try:
        with _clock(seconds, "register"):
            transform = _start(template, coarse)
            inner = _Fit(template.levels[4], coarse, ring=_INNER_MM)
            _, transform = inner.run(transform, "similarity", 1.0, 0.05)
            brain, stripped = _strip(template, coarse, transform)
            _, transform = _Fit(template.levels[4], brain).run(transform, "affine", 1.0, 0.05)
            if not stripped:
                # Once more, with the brain found from a better place.
                brain, _ = _strip(template, coarse, transform)
                _, transform = _Fit(template.levels[4], brain).run(transform, "affine", 1.0, 0.05)
        with _clock(seconds, "bias"):
            bias = _bias(template, brain, transform)
            even = _corrected(brain, template, bias, transform)
        with _clock(seconds, "refine"):
            _, transform = _Fit(template.levels[4], even).run(transform, "affine", 0.5, 0.02)
            fit = _Fit(template.levels[2], even)
            _, transform = fit.run(transform, "affine", 0.2, 0.002)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ScanError(
            f"{path}: cannot be registered: {reason}; is it a T1 scan of a whole head?"
        ) from None
    with _clock(seconds, "quality"):
        quality = _quality(scan, template, fit, transform, preprocessing, stripped)
        warnings = [*scan.warnings, *_judge(path, quality, preprocessing, thresholds)]
    with _clock(seconds, "resample"):
        volume = _resample(scan, template, transform, bias, quality.stripped, 3)
    return Registered(volume, quality, tuple(warnings), transform, seconds)


# --- writing ---


def write_registered(registered: Registered, out: Path) -> None:
    """Write `out` (.nii.gz: int16 with a slope, sform and qform of code 4, MNI) and its sidecar.

    The sidecar `NAME.json` beside it holds quality, warnings, transform, the source's SHA-256 (of
    a DICOM folder: of its files' hashes in order of their names) and versions. Each file is written
    whole or not at all, the scan last. The same registration gives the same bytes.

    Raises:
        HyperFusionError: the folder cannot be written, `out` does not end in .nii.gz, or the
            source has gone.
    """
    import nibabel as nib
    from isal import igzip

    out, volume = Path(out), registered.volume
    if not out.name.endswith(".nii.gz"):
        raise HyperFusionError(f"{out}: registered scans are written as .nii.gz; rename it")
    image = nib.Nifti1Image(volume.voxels, volume.affine)
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(volume.slope, volume.inter)
    image.header.set_xyzt_units("mm")
    for kind in ("qform", "sform"):
        getattr(image, f"set_{kind}")(volume.affine, code=4)  # 4: MNI space
    source = volume.path
    content = {
        "source": str(source),
        "sha256": _source_hash(source),
        "quality": asdict(registered.quality),
        "warnings": list(registered.warnings),
        "transform": registered.transform.tolist(),
        "transform_maps": "template mm to scan mm (RAS)",
        "versions": {
            name: installed(name)
            for name in ("hyperfusion_rt", "SimpleITK", "nilearn", "scipy", "numpy")
        },
    }
    # nibabel scales what it is given: the stored numbers are to stay as they are.
    stored = io.BytesIO()
    header = image.header.copy()
    header.set_slope_inter(volume.slope, volume.inter)
    header["vox_offset"] = 352
    header.write_to(stored)
    stored.write(b"\0" * (352 - stored.tell()))
    stored.write(volume.voxels.astype(header.get_data_dtype()).tobytes(order="F"))
    write_text(
        out.with_name(out.name.removesuffix(".nii.gz") + ".json"),
        json.dumps(content, indent=2) + "\n",
    )
    with replacing(out) as temporary:
        temporary.write_bytes(igzip.compress(stored.getvalue(), compresslevel=1, mtime=0))


def _source_hash(source: Path) -> str:
    try:
        if not source.is_dir():
            return sha256(source)
        digest = hashlib.sha256()
        for file in sorted(p for p in source.iterdir() if p.is_file()):
            digest.update(sha256(file).encode())
        return digest.hexdigest()
    except OSError as error:
        raise HyperFusionError(f"{source}: cannot be read: {error.strerror or error}") from None
