"""A raw scan as voxels and affine, and what registration does to voxels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt import _native
from hyperfusion_rt.data.dicom import read_dicom
from hyperfusion_rt.data.volumes import read_volume
from hyperfusion_rt.errors import ScanError

_SLICES = 16  # read at a time: a cache line of float32

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Image:
    """Voxels float32 [X, Y, Z], background 0; `affine [4, 4]` to mm (RAS)."""

    path: Path
    voxels: Float
    affine: Matrix
    warnings: tuple[str, ...] = ()

    @property
    def spacing(self) -> Matrix:
        """mm along each axis `[3]`."""
        found: Matrix = np.linalg.norm(self.affine[:3, :3], axis=0)
        return found

    def shrunk(self, mm: float) -> Image:
        """Means over blocks of about `mm` along each axis."""
        step = tuple(max(1, round(mm / length)) for length in self.spacing)
        voxels, affine = block_means(self.voxels, self.affine, step)
        return replace(self, voxels=voxels, affine=affine)

    def smoothed(self, sigma_mm: float) -> Image:
        """Smoothed by a Gaussian of `sigma_mm`."""
        return replace(self, voxels=smooth(self.voxels, sigma_mm / self.spacing))


def to_mm(affine: Matrix, index: NDArray[Any]) -> Matrix:
    """Points in mm `[3, N]` of voxel coordinates `[3, N]`.

    Without BLAS, whose threads would have a say in the last bit.
    """
    x, y, z = index
    found: Matrix = np.stack([row[0] * x + row[1] * y + row[2] * z + row[3] for row in affine[:3]])
    return found


def block_means(voxels: Float, affine: Matrix, step: tuple[int, ...]) -> tuple[Float, Matrix]:
    """Means over blocks of `step` voxels; what does not fill a block is filled up with 0."""
    if max(step) == 1:
        return voxels, affine
    shape = [-(-n // s) for n, s in zip(voxels.shape, step, strict=True)]
    means = np.empty(shape, np.float32)
    _native.block_means(np.ascontiguousarray(voxels, np.float32), step, means)
    scaled = affine.copy()
    scaled[:3, :3] = affine[:3, :3] * step
    scaled[:3, 3] += affine[:3, :3] @ ((np.asarray(step) - 1) / 2)
    return means, scaled


def smooth(voxels: Float, sigma: Matrix) -> Float:
    """A Gaussian of `sigma [3]` voxels, cut at 3 sigma; 0 lies beyond the border."""
    found = np.empty(voxels.shape, np.float32)
    sigmas = (float(sigma[0]), float(sigma[1]), float(sigma[2]))
    _native.smooth(np.ascontiguousarray(voxels, np.float32), sigmas, 3.0, found)
    return found


def sample(
    voxels: Float,
    matrix: Matrix,
    shape: tuple[int, ...],
    *,
    cubic: bool = False,
    nearest: bool = False,
    mask: Mask | None = None,
) -> Float:
    """`voxels` at `matrix [4, 4]` · index of a grid of `shape`; outside 0, or `nearest`.

    Trilinear, or by cubic B-splines. Where `mask` is not set: 0.
    """
    found = np.empty(shape, np.float32)
    where = None if mask is None else np.ascontiguousarray(mask).view(np.uint8)
    source = np.ascontiguousarray(voxels, np.float32)
    rows = np.ascontiguousarray(matrix[:3], np.float64)
    if cubic:
        _native.sample_cubic(source, rows, where, found)
    else:
        _native.sample_linear(source, rows, nearest, where, found)
    return found


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


def otsu(values: Float) -> float:
    """Otsu's threshold (IEEE Trans. SMC 1979), of 256 bins.

    The middle between the two bins that it separates; the value itself where all are alike.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low
    counts, edges = np.histogram(values, bins=256, range=(low, high))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    sums = np.cumsum(counts * middles)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(edges[1 + int(np.nanargmax(between))])


def read_raw(path: Path) -> Image:
    """The scan's values with a background of 0 and none below.

    Raises:
        ScanError: as `read_volume`; a DICOM folder that holds no single even MR series; fewer than
            16 slices; all voxels alike.
    """
    voxels, affine, warnings = _read(path)
    if min(voxels.shape) < 16:
        raise ScanError(
            f"{path}: {'x'.join(map(str, voxels.shape))} voxels: a brain needs at least 16 slices",
            code="scan-too-thin",
        )
    # A plane at a time, here and below: a scan is as much memory as all the rest together.
    bad = sum(_make_finite(plane) for plane in voxels)
    if bad:
        warnings.append(f"{bad} voxels are NaN or infinite; taken as background")
    values, counts = np.unique(_border(voxels), return_counts=True)
    most = values[counts.argmax()]
    # A value that most of the border has is background, whatever it is (z-scores, -1024).
    known = counts.max() > 0.5 * counts.sum()
    kept = [plane[plane != most] if known else plane for plane in voxels]
    ends = [(part.min(), part.max()) for part in kept if part.size]
    least = min((low for low, _ in ends), default=most)
    if least == max((high for _, high in ends), default=most):
        raise ScanError(
            f"{path}: every voxel has the same value; is the file empty?", code="scan-constant"
        )
    sparse = np.concatenate([part.ravel()[:: max(1, voxels.size // 1_000_000)] for part in kept])
    low = np.float32(np.percentile(sparse, 2))
    floor = min(low, most) if known else low
    if floor != 0 or least < 0:
        for plane in voxels:
            background = plane == most
            np.maximum(plane - floor, 0, out=plane)
            if known:
                plane[background] = 0
    return Image(path, voxels, affine, tuple(warnings))


def _read(path: Path) -> tuple[Float, Matrix, list[str]]:
    """The values, in memory of their own, the affine and warnings."""
    if path.is_dir():
        return *read_dicom(path), []
    volume = read_volume(path)
    voxels: Float = np.empty(volume.voxels.shape, np.float32)
    for z in range(0, voxels.shape[2], _SLICES):  # files are in Fortran's order
        voxels[:, :, z : z + _SLICES] = volume.voxels[:, :, z : z + _SLICES]
    if (volume.slope, volume.inter) != (1.0, 0.0):
        voxels *= np.float32(volume.slope)
        voxels += np.float32(volume.inter)
    return voxels, volume.affine, list(volume.warnings)


def _make_finite(plane: Float) -> int:
    """NaN and infinity become 0, in place; how many there were."""
    finite = np.isfinite(plane)
    count = plane.size - int(np.count_nonzero(finite))
    if count:
        plane[~finite] = 0
    return count


def _border(voxels: Float) -> Float:
    """The values on the six faces."""
    faces = [np.take(voxels, (0, -1), axis).ravel() for axis in range(3)]
    return np.concatenate(faces)
