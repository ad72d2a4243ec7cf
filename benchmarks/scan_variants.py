"""Harmless variants of a right scan, and scans made wrong on purpose.

A scan is its `values float32 [X, Y, Z]` in RAS order and its `affine [4, 4]` to mm.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip
from scan_collection import resample
from scipy import ndimage

from hyperfusion_rt.data.raw.image import turn

Scan = tuple[np.ndarray, np.ndarray]
# mm, as scans are stored.
SPACINGS = (
    (1.0, 1.0, 1.0), (1.5, 1.5, 1.5), (2.0, 2.0, 2.0), (3.0, 3.0, 3.0), (1.0, 1.0, 2.0),
    (1.0, 3.0, 1.0), (1.2, 1.0, 1.0), (2.5, 1.5, 1.5),
)  # fmt: skip
STORED = ("int16", "int16 scaled", "int16 with offset", "uint8", "uint8 scaled", "float32",
          "big-endian int16", "uint16")  # fmt: skip
ORIENTATIONS = ["".join(letters) for axes in itertools.permutations(("LR", "AP", "IS"))
                for letters in itertools.product(*axes)]  # fmt: skip


def middle(scan: Scan) -> np.ndarray:
    """The centre of the non-zero voxels, mm `[3]`."""
    values, affine = scan
    spans = [np.flatnonzero(values.any(axis=other)) for other in ((1, 2), (0, 2), (0, 1))]
    centre = [(span[0] + span[-1]) / 2 for span in spans]
    return (affine @ np.r_[centre, 1])[:3]


def moved(scan: Scan, degrees: tuple[float, ...], shift: np.ndarray) -> Scan:
    """The same voxels; the header says they lie elsewhere: turned about the brain's middle."""
    values, affine = scan
    centre = middle(scan)
    motion = np.eye(4)
    motion[:3, :3] = turn(degrees)
    motion[:3, 3] = centre - motion[:3, :3] @ centre + shift
    return values, motion @ affine


def on_grid(scan: Scan, spacing: tuple[float, ...], rng: np.random.Generator) -> Scan:
    """Resampled along the axes of MNI space; zero stays zero, the field of view is a random one."""
    values, affine = scan
    step = np.array(spacing)
    index = np.stack(np.nonzero(values[::3, ::3, ::3])) * 3
    points = affine[:3, :3] @ index + affine[:3, 3:]
    low = points.min(1) - rng.uniform(4, 20, 3)
    shape = np.ceil((points.max(1) + rng.uniform(4, 20, 3) - low) / step).astype(int) + 1
    grid = np.diag([*step, 1.0])
    grid[:3, 3] = low
    size = np.linalg.norm(affine[:3, :3], axis=0)
    blur = np.where(step > 1.2 * size, 0.4 * step / size, 0)
    smooth = ndimage.gaussian_filter(values, blur) if blur.any() else values
    brain = np.asarray(values != 0, np.float32)
    inside = resample(brain, affine, grid, tuple(shape)) >= 0.5
    return np.where(inside, resample(smooth, affine, grid, tuple(shape)), 0), grid


def field(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A smooth polynomial of second order from -1 to 1."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape],
                          indexing="ij", sparse=True)  # fmt: skip
    terms = (x, y, z, x * x, y * y, z * z, x * y, y * z, x * z)
    total = sum(c * t for c, t in zip(rng.normal(size=9).astype(np.float32), terms, strict=True))
    return 2 * (total - total.min()) / np.ptp(total) - 1


def harmless(scan: Scan, rng: np.random.Generator) -> Scan:
    """Up to 2 mm and 2 degrees off, 1 to 3 mm voxels, field up to 15 %, gamma, noise."""
    way = rng.normal(size=3)
    turned = rng.normal(size=3)
    shift = way / np.linalg.norm(way) * rng.uniform(0, 2)
    degrees = turned / np.linalg.norm(turned) * rng.uniform(0, 2)
    values, affine = on_grid(
        moved(scan, tuple(degrees), shift), SPACINGS[rng.integers(len(SPACINGS))], rng
    )
    brain = values > 0
    top = np.percentile(values[brain], 99.5)
    values = top * (np.maximum(values, 0) / top) ** rng.uniform(0.8, 1.25)
    values *= 1 + rng.uniform(0, 0.15) * field(values.shape, rng)
    level = rng.uniform(0, 0.04) * float(values[brain].mean())
    noise = level * rng.standard_normal(values.shape, np.float32)
    return np.where(brain, np.maximum(values + noise, 1e-3 * top), 0).astype(np.float32), affine


def store(scan: Scan, path: Path, rng: np.random.Generator, orientation: str, kind: str) -> None:
    """Write it as NIfTI: another order of axes, another type of voxels; `.nii` or `.nii.gz`."""
    values, affine = scan
    high = float(values.max()) or 1.0
    slope, inter = 1.0, 0.0
    if kind == "float32":
        voxels = values * np.float32(rng.choice([1e-3, 1.0, 37.0]) / high)
    elif kind == "int16 with offset":
        # Background is 0 in value, not in voxels.
        slope, inter = high / 2000, 200 * high / 2000
        voxels = np.rint((values - inter) / slope).astype(np.int16)
    else:
        top = {"uint8": 255, "uint8 scaled": 255}.get(kind, int(rng.integers(300, 30000)))
        voxels = np.rint(values * (top / high)).astype(kind.removesuffix(" scaled").split()[-1])
        slope = high / top if kind.endswith("scaled") else 1.0
    image = nib.Nifti1Image(voxels, affine)
    way = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    )
    image = image.as_reoriented(way)
    if kind == "big-endian int16":
        header = image.header.as_byteswapped(">")
        image = nib.Nifti1Image(image.dataobj, image.affine, header)
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 4)
    image.header.set_slope_inter(slope, inter)
    content = image.to_bytes()
    path.write_bytes(igzip.compress(content, 1) if path.suffix == ".gz" else content)


def _far(mm: float) -> Callable[[Scan, np.random.Generator], Scan]:
    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        way = rng.normal(size=3)
        return moved(scan, (0, 0, 0), way / np.linalg.norm(way) * mm)

    return change


def _turned(degrees: float) -> Callable[[Scan, np.random.Generator], Scan]:
    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        angles = np.zeros(3)
        angles[rng.integers(3)] = degrees * rng.choice([-1, 1])
        return moved(scan, tuple(angles), np.zeros(3))

    return change


def _flipped(axis: int) -> Callable[[Scan, np.random.Generator], Scan]:
    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        values, affine = scan
        flip = np.eye(4)
        flip[axis, axis] = -1
        flip[axis, 3] = 2 * middle(scan)[axis]
        return values, flip @ affine

    return change


def _sized(factor: float) -> Callable[[Scan, np.random.Generator], Scan]:
    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        values, affine = scan
        centre = middle(scan)
        larger = np.diag([factor] * 3 + [1.0])
        larger[:3, 3] = centre - factor * centre
        return values, larger @ affine

    return change


def _inverted(scan: Scan, rng: np.random.Generator) -> Scan:
    values, affine = scan
    top = np.percentile(values[values > 0], 99.8)
    return np.where(values > 0, np.maximum(1.02 * top - values, 0.01 * top), 0), affine


def _half(scan: Scan, rng: np.random.Generator) -> Scan:
    """Zero in one half, or without it."""
    values, affine = scan
    axis, upper = int(rng.integers(3)), bool(rng.integers(2))
    at = int(np.rint((np.linalg.inv(affine) @ np.r_[middle(scan), 1])[axis]))
    keep: list[slice] = [slice(None)] * 3
    keep[axis] = slice(at, None) if upper else slice(0, at)
    if rng.integers(2):
        begin = np.eye(4)
        begin[axis, 3] = at if upper else 0
        return values[tuple(keep)], affine @ begin
    made = np.zeros_like(values)
    made[tuple(keep)] = values[tuple(keep)]
    return made, affine


def _smoothed(scan: Scan, rng: np.random.Generator) -> Scan:
    """12 mm (full width at half maximum), within the brain or over its edge."""
    values, affine = scan
    sigma = 12 / 2.355 / np.linalg.norm(affine[:3, :3], axis=0)
    smooth = ndimage.gaussian_filter(values, sigma)
    if rng.integers(2):
        weight = ndimage.gaussian_filter(np.asarray(values > 0, np.float32), sigma)
        smooth = np.where(values > 0, smooth / np.maximum(weight, 1e-3), 0)
    return smooth, affine


def _noise(scan: Scan, rng: np.random.Generator) -> Scan:
    values, affine = scan
    return 100 * rng.standard_gamma(2, values.shape, np.float32), affine


def _noise_in_brain(scan: Scan, rng: np.random.Generator) -> Scan:
    """The brain's voxels in random order."""
    values, affine = scan
    made = np.zeros_like(values)
    made[values > 0] = rng.permutation(values[values > 0])
    return made, affine


def _sphere(scan: Scan, rng: np.random.Generator) -> Scan:
    values, affine = scan
    centre = (np.linalg.inv(affine) @ np.r_[middle(scan), 1])[:3]
    size = np.linalg.norm(affine[:3, :3], axis=0)
    axes = [(np.arange(n) - c) * s for n, c, s in zip(values.shape, centre, size, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = x * x + y * y + z * z < rng.uniform(65, 85) ** 2
    grain = 1000 + 30 * rng.standard_normal(values.shape, np.float32)
    return np.where(inside, grain, 0), affine


def _marginal(scan: Scan, rng: np.random.Generator) -> Scan:
    """As many grey values as a label map: five, from dark to bright."""
    values, affine = scan
    brain = values > 0
    steps = np.quantile(values[brain], [0.2, 0.4, 0.6, 0.8])
    labels = rng.permutation(np.arange(1, 6)) if rng.integers(2) else np.arange(5, 0, -1)
    return np.where(brain, labels[np.digitize(values, steps)], 0).astype(np.float32), affine


WRONG: dict[str, Callable[[Scan, np.random.Generator], Scan]] = {
    "15 mm away": _far(15),
    "25 mm away": _far(25),
    "turned by 20 degrees": _turned(20),
    "turned by 90 degrees": _turned(90),
    "turned by 180 degrees": _turned(180),
    "left and right exchanged": _flipped(0),
    "front and back exchanged": _flipped(1),
    "top and bottom exchanged": _flipped(2),
    "voxels 1.6 times too large": _sized(1.6),
    "voxels 1.3 times too large": _sized(1.3),
    "voxels 0.7 times too small": _sized(0.7),
    "inverted contrast": _inverted,
    "classes of grey as labels": _marginal,
    "half the brain": _half,
    "smoothed with 12 mm": _smoothed,
    "noise alone": _noise,
    "the brain's voxels in random order": _noise_in_brain,
    "a sphere": _sphere,
}
