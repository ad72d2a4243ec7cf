"""Scans that are spoilt, and the pose that they then have; for `heads.py` and `trust.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hyperfusion_rt.data.mni_template import template_files
from hyperfusion_rt.data.raw.image import Image, block_means, turn
from hyperfusion_rt.data.raw.template import load_template
from hyperfusion_rt.data.volumes import read_volume

Matrix = NDArray[np.float64]
Spoilt = tuple[Image, Matrix]


def _grid(scan: Image) -> list[NDArray[np.float32]]:
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in scan.voxels.shape]
    return np.meshgrid(*axes, indexing="ij", sparse=True)


def _times(scan: Image, factor: NDArray[Any]) -> Image:
    return replace(scan, voxels=np.asarray(scan.voxels * factor, np.float32))


def with_field(scan: Image, strength: float, seed: int = 1) -> Image:
    """Times 1 - strength to 1 + strength over the head: a random polynomial of degree 2."""
    x, y, z = _grid(scan)
    terms = (x, y, z, x * x, y * y, z * z, x * y, y * z, x * z)
    weights = np.random.default_rng(seed).normal(size=len(terms))
    field = sum(w * term for w, term in zip(weights, terms, strict=True))
    head = field[scan.voxels > np.percentile(scan.voxels, 60)]
    field = 2 * (field - head.min()) / np.ptp(head) - 1
    return _times(scan, np.clip(1 + strength * field, 0.05, None))


def with_centre(scan: Image, times: float) -> Image:
    """So many times darker 80 % of the way to the border of the field of view."""
    distance = sum((axis / 0.8) ** 2 for axis in _grid(scan))
    return _times(scan, np.exp(-np.log(times) * np.clip(distance, 0, 1.6)))


def _axis(scan: Image) -> int:
    """The axis of the voxels that goes up."""
    return int(np.argmax(np.abs(scan.affine[2, :3])))


def _part(scan: Image, axis: int, begin: int, end: int) -> Image:
    """The voxels `begin` to `end` of an axis."""
    chosen: list[slice] = [slice(None)] * 3
    chosen[axis] = slice(begin, end)
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, axis] * begin
    return replace(scan, voxels=np.ascontiguousarray(scan.voxels[tuple(chosen)]), affine=affine)


def cropped(scan: Image, pose: Matrix, z: float) -> Image:
    """Without what lies below `z` mm of the template."""
    axis = _axis(scan)
    last = scan.voxels.shape[axis]
    at = (np.linalg.inv(scan.affine) @ pose @ [0, -17, z, 1])[axis]
    here = int(np.clip(round(at), 0, last - 1))
    return _part(scan, axis, *((here, last) if scan.affine[2, axis] > 0 else (0, here + 1)))


def with_slices(scan: Image, mm: float, axis: int | None = None) -> Image:
    """Slices of about `mm`, axial ones if no axis is named: means over voxels."""
    axis, step = _axis(scan) if axis is None else axis, [1, 1, 1]
    step[axis] = max(1, round(mm / float(scan.spacing[axis])))
    voxels, affine = block_means(scan.voxels, scan.affine, tuple(step))
    return replace(scan, voxels=voxels, affine=affine)


def noisy(scan: Image, part: float, seed: int = 0) -> Image:
    """Rician-like noise of so much of the head's 90th percentile."""
    noise = np.random.default_rng(seed).normal(size=scan.voxels.shape)
    noise *= part * np.percentile(scan.voxels, 90)
    return replace(scan, voxels=np.abs(scan.voxels + noise).astype(np.float32))


def turned(scan: Image, pose: Matrix, degrees: float) -> Spoilt:
    """About an oblique axis, by its header."""
    return _moved(scan, pose, turn((degrees, degrees / 3, -degrees / 3)))


def _moved(scan: Image, pose: Matrix, matrix: Matrix, shift: Sequence[float] = (0, 0, 0)) -> Spoilt:
    """The header's space turned or scaled about the middle of the scan, then shifted, mm."""
    motion = np.eye(4)
    motion[:3, :3] = matrix
    middle = (scan.affine @ np.r_[(np.array(scan.voxels.shape) - 1) / 2, 1])[:3]
    motion[:3, 3] = middle - matrix @ middle + shift
    return replace(scan, affine=motion @ scan.affine), motion @ pose


def with_lesion(scan: Image, pose: Matrix, millilitres: float) -> Image:
    """A ball in the left frontal lobe, 0.4 times as bright."""
    radius = (millilitres * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    return _lesion(scan, pose, radius, 0.4, np.array([-30.0, 20.0, 30.0]))


def with_ventricles(scan: Image, pose: Matrix, times: float) -> Image:
    """The lateral ventricles so many times as large; what lies within 35 mm of them gives way."""
    template, far = load_template(), 35.0
    files = template_files("raw", "the benchmark")
    tissue = sum(np.asarray(read_volume(files[kind]).voxels, np.float32) for kind in ("gm", "wm"))
    deep = ndimage.distance_transform_edt(template.mask) > 20
    parts, _ = ndimage.label(deep & (tissue < 127.5))
    ventricles = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    outside = ndimage.distance_transform_edt(~ventricles).astype(np.float32)
    grown = float(np.sort(outside.ravel())[int(times * np.count_nonzero(ventricles))])
    direction = np.stack(np.gradient(ndimage.gaussian_filter(outside, 1.5)))
    shrunk = np.clip(far * (outside - grown) / (far - grown), 0, None)
    move = np.where(outside < far, shrunk - outside, 0) * direction
    # From the scan's voxels to the template's, moved there, and back.
    to_template = np.linalg.inv(template.affine) @ np.linalg.inv(pose) @ scan.affine
    grid = np.indices(scan.voxels.shape, np.float32).reshape(3, -1)
    at = to_template[:3, :3] @ grid + to_template[:3, 3:]
    moved = [ndimage.map_coordinates(one, at, order=1) for one in move]
    from_ = grid + np.linalg.inv(to_template)[:3, :3] @ np.stack(moved)
    values = ndimage.map_coordinates(scan.voxels, from_, order=1)
    fluid = float(np.percentile(scan.voxels[_inside(scan, pose, ventricles)], 10))
    within = ndimage.map_coordinates(outside, at, order=1, cval=far) < grown
    values = np.where(within, fluid, values).reshape(scan.voxels.shape)
    return replace(scan, voxels=values.astype(np.float32))


def _inside(scan: Image, pose: Matrix, region: NDArray[np.bool_]) -> tuple[NDArray[np.intp], ...]:
    """The voxels of the scan at those of a region on the template's 1 mm grid."""
    matrix = np.linalg.inv(scan.affine) @ pose @ load_template().affine
    at = matrix[:3, :3] @ np.stack(np.nonzero(region)) + matrix[:3, 3:]
    size = np.asarray(scan.voxels.shape)[:, None]
    return tuple(np.clip(np.rint(at), 0, size - 1).astype(np.intp))


def _lesion(scan: Image, pose: Matrix, radius: float, times: float, where: Matrix) -> Image:
    """A ball around `where` (mm of the template), so many times as bright."""
    centre = np.linalg.inv(scan.affine) @ pose @ np.r_[where, 1]
    grid = np.indices(scan.voxels.shape, np.float32)
    distance = sum(((grid[a] - centre[a]) * scan.spacing[a]) ** 2 for a in range(3))
    return _times(scan, np.where(distance < radius**2, times, 1))


def _gamma(scan: Image, exponent: float) -> Image:
    """Another contrast."""
    white = np.percentile(scan.voxels, 98) + 1e-9
    values = 1000 * np.clip(scan.voxels / white, 0, 2) ** exponent
    return replace(scan, voxels=values.astype(np.float32))


def as_infant(scan: Image, pose: Matrix) -> Spoilt:
    """Half the volume, by its header, and half the contrast (logarithm)."""
    return _moved(_gamma(scan, 0.5), pose, np.eye(3) * 0.5 ** (1 / 3))


def spoilt_at_random(
    scan: Image, pose: Matrix, rng: np.random.Generator
) -> tuple[Image, Matrix, str]:
    """One to three insults, and their names."""
    names = []
    kinds = ("turn", "field", "noise", "crop", "slices", "sizes", "gamma", "lesion", "shift")
    for kind in rng.choice(kinds, size=rng.integers(1, 4), replace=False):
        names.append(str(kind))
        match kind:
            case "turn":
                degrees = rng.uniform(-75, 75, 3) * rng.choice([0.3, 0.6, 1])
                scan, pose = _moved(scan, pose, turn(tuple(degrees)))
            case "field":
                scan = with_field(scan, rng.uniform(0.2, 0.95), int(rng.integers(10**9)))
            case "noise":
                scan = noisy(scan, rng.uniform(0.02, 0.8), int(rng.integers(10**9)))
            case "crop":
                axis = int(rng.integers(3))
                size = scan.voxels.shape[axis]
                cut = int(size * rng.uniform(0.05, 0.55))
                ends = (cut, size) if rng.random() < 0.5 else (0, size - cut)
                scan = _part(scan, axis, *ends)
            case "slices":
                scan = with_slices(scan, rng.uniform(2, 12), int(rng.integers(3)))
            case "sizes":
                sizes = np.exp(rng.uniform(-0.5, 0.5, 3) * rng.choice([0.3, 1]))
                scan, pose = _moved(scan, pose, np.diag(sizes))
            case "gamma":
                scan = _gamma(scan, np.exp(rng.uniform(-1.2, 1.2)))
            case "lesion":
                where = rng.uniform([-45, -70, -20], [45, 40, 50])
                scan = _lesion(scan, pose, rng.uniform(10, 40), rng.choice([0, 0.3, 2]), where)
            case "shift":
                scan, pose = _moved(scan, pose, np.eye(3), rng.uniform(-150, 150, 3))
    return scan, pose, " + ".join(names)
