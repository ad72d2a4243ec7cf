"""Three planes through a model's boxes, as pictures; and a small volume for the 3D viewer.

Up is up, front is up or to the left, and the left of the head is on the left of the picture. A
plane is sampled from the scan's own grid: mm of the template → voxel, trilinear.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt import _native
from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data.png import outline, png
from hyperfusion_rt.data.volumes import Volume
from hyperfusion_rt.runtime.explain.answers import ImageMap
from hyperfusion_rt.runtime.outputs.subject_view import MapLegend, PlanePicture

Floats = NDArray[np.float64]
Values = NDArray[np.float32]
Shape = tuple[int, ...]

# mm of MNI space that a picture spans, from left, back and bottom: the template's brain, a margin.
_LOW, _HIGH = np.array([-84.0, -120.0, -72.0]), np.array([84.0, 84.0, 90.0])
_STEP, _MAP_STEP = 1.5, 3.0  # mm of a pixel
_LEVELS = 64  # of grey: the eye sees no more
_NAMES = ("sagittal", "coronal", "axial")
_ORDER = (2, 1, 0)  # axial first
# Of the head: what lies at the left and the right edge of the picture.
_ENDS = {0: ("A", "P"), 1: ("L", "R"), 2: ("L", "R")}
_RAISES, _LOWERS = (226, 74, 51), (49, 130, 206)
# Of labels, again from the first where there are more.
_COLOURS = (
    (226, 74, 51), (49, 130, 206), (214, 158, 46), (47, 133, 90),
    (128, 90, 213), (0, 163, 196), (213, 63, 140), (113, 128, 150),
)  # fmt: skip
_VOLUME_STEP, _VOLUME_LEVELS = 2.0, 32  # mm of a voxel, levels of grey


@dataclass(frozen=True)
class Rect:
    """A box where a plane cuts it, in mm from the picture's upper left corner."""

    x: float
    y: float
    width: float
    height: float
    name: str


@dataclass(frozen=True)
class PlaneShape:
    """A plane: across `axis` at `at` mm of MNI space; of every subject of a page the same.

    `border`: the outline of the template's brain, a path in pixels of `pixel` mm; empty without.
    """

    name: str
    axis: int
    at: float
    width: float
    height: float
    rects: tuple[Rect, ...]
    border: str = ""
    pixel: float = _STEP

    @property
    def title(self) -> str:
        """`axial, z = -18 mm`."""
        return f"{self.name}, {'xyz'[self.axis]} = {self.at:g} mm"

    @property
    def ends(self) -> tuple[str, str]:
        """What of the head lies at the left and at the right edge: L and R, or A and P."""
        return _ENDS[self.axis]


def plane_shapes(
    preprocessing: Preprocessing, template: tuple[NDArray[Any], Floats] | None = None
) -> tuple[PlaneShape, ...]:
    """The three planes through the boxes: their common middle, or the first one's.

    Args:
        template: the mask of the template's brain with its affine, to draw its outline.
    """
    half = np.asarray(preprocessing.shape) * preprocessing.spacing / 2
    centres = np.array([box.center for box in preprocessing.boxes], np.float64)
    middle = centres.mean(0)
    inside = (np.abs(centres - middle) <= 0.8 * half).all(0)
    at = np.round(np.where(inside, middle, centres[0]), 1)
    found = []
    for axis in _ORDER:
        across, up = (n for n in range(3) if n != axis)
        rects = tuple(
            _rect(np.asarray(box.center), half, across, up, box.name)
            for box in preprocessing.boxes
            if abs(box.center[axis] - at[axis]) <= half[axis]
        )
        size = _HIGH - _LOW
        border = ""
        if template is not None:
            values = _plane(*template, axis, float(at[axis]), _STEP)
            border = outline(values > 0.5)
        found.append(
            PlaneShape(
                _NAMES[axis], axis, float(at[axis]), float(size[across]), float(size[up]), rects,
                border,
            )
        )  # fmt: skip
    return tuple(found)


def _rect(centre: Floats, half: Floats, across: int, up: int, name: str) -> Rect:
    """A box in a picture, whose x runs to the right of the head, or to its back (across y)."""
    x = _HIGH[1] - centre[1] if across == 1 else centre[across] - _LOW[across]
    y = _HIGH[up] - centre[up]
    width, height = float(2 * half[across]), float(2 * half[up])
    return Rect(float(x) - width / 2, float(y) - height / 2, width, height, name)


def _sample(
    voxels: NDArray[Any], affine: Floats, low: Floats, step: Floats, shape: Shape
) -> Values:
    """`voxels` on the grid of `shape` from `low` in steps, both in mm; trilinear, 0 outside."""
    to_mm = np.diag([*step, 1.0])
    to_mm[:3, 3] = low
    matrix = (np.linalg.inv(affine) @ to_mm)[:3]
    if voxels.flags.f_contiguous:  # as files have it: read it in its own order
        voxels, matrix = voxels.T, matrix[::-1]
    found = np.empty(shape, np.float32)
    source = np.ascontiguousarray(voxels, np.float32)
    _native.sample_linear(source, np.ascontiguousarray(matrix), False, None, found)
    return np.nan_to_num(found, copy=False, posinf=0.0, neginf=0.0)


def _plane(voxels: NDArray[Any], affine: Floats, axis: int, at: float, step: float) -> Values:
    """A plane as it is drawn, [rows, columns]."""
    low, shape = _grid(axis, at, step)
    return _drawn(_sample(voxels, affine, low, np.full(3, step), shape), axis)


def _grid(axis: int, at: float, step: float) -> tuple[Floats, Shape]:
    """A plane's first pixel in mm, and how many there are along x, y and z."""
    low = _LOW + step / 2
    shape = [int(n) for n in (_HIGH - _LOW) // step]
    low[axis], shape[axis] = at, 1
    return low, tuple(shape)


def _drawn(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """A plane across `axis` as it is drawn, [rows, columns]."""
    drawn = np.rot90(values.squeeze(axis))
    return drawn[:, ::-1] if axis == 0 else drawn


def _brightness(values: Values, white: float, levels: int) -> NDArray[np.uint8]:
    grey = np.rint(np.clip(values / white, 0, 1) * (levels - 1)) * (255 / (levels - 1))
    found: NDArray[np.uint8] = np.rint(grey).astype(np.uint8)
    return found


def _white(values: Sequence[Values]) -> float:
    """The brightness that is drawn white: a little above the 99th percentile of the bright ones."""
    everything = np.concatenate([v.ravel() for v in values])
    bright = everything[everything > 0]
    return max(float(np.percentile(bright, 99)) * 1.1, 1e-30) if bright.size else 1.0


def pictures(
    volume: Volume,
    shapes: Sequence[PlaneShape],
    image_map: ImageMap | None = None,
    labels: Volume | None = None,
) -> tuple[PlanePicture, ...]:
    """The planes of a scan, about 10 KB each, with the map or the labels over them."""
    values = [
        volume.slope * _plane(volume.voxels, volume.affine, s.axis, s.at, _STEP) + volume.inter
        for s in shapes
    ]
    white = _white(values)
    greys = [png(_brightness(plane, white, _LEVELS)) for plane in values]
    if labels is not None:
        drawn = [_labelled(_nearest(labels, s.axis, s.at, _STEP)) for s in shapes]
        return tuple(map(PlanePicture, greys, map(png, drawn)))
    if image_map is None:
        return tuple(PlanePicture(grey) for grey in greys)
    largest = _largest(image_map)
    overlays = [
        png(_coloured(_plane(image_map.voxels, image_map.affine, s.axis, s.at, _MAP_STEP), largest))
        for s in shapes
    ]
    return tuple(map(PlanePicture, greys, overlays))


def _largest(image_map: ImageMap) -> float:
    """What has the strongest colour: the 99.5th percentile, so that one voxel does not decide."""
    sizes = np.abs(image_map.voxels[image_map.voxels != 0])
    return float(np.percentile(sizes, 99.5)) if sizes.size else 0.0


def _coloured(values: Values, largest: float) -> NDArray[np.uint8]:
    share = np.clip(values / (largest or 1.0), -1, 1)
    pixels = np.zeros((*values.shape, 4), np.uint8)
    pixels[..., :3] = np.where(share[..., None] > 0, _RAISES, _LOWERS)
    # 16 steps are enough for the eye, and make the file a third smaller.
    pixels[..., 3] = np.rint(np.abs(share) * 15) * 17
    pixels[pixels[..., 3] == 0] = 0
    return pixels


def _nearest(labels: Volume, axis: int, at: float, step: float) -> NDArray[np.uint8]:
    """A plane as it is drawn, of the nearest voxels; 0 outside."""
    low, shape = _grid(axis, at, step)
    mm = low[:, None, None, None] + step * np.indices(shape)
    to_voxel = np.linalg.inv(labels.affine)
    place = np.einsum("ij,jxyz->ixyz", to_voxel[:3, :3], mm) + to_voxel[:3, 3, None, None, None]
    index = np.rint(place).astype(np.int64)
    size = np.reshape(labels.voxels.shape, (3, 1, 1, 1))
    inside = ((index >= 0) & (index < size)).all(0)
    values = np.zeros(shape, np.uint8)
    values[inside] = labels.voxels[tuple(index[:, inside])]
    return _drawn(values, axis)


def _labelled(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    pixels = np.zeros((*values.shape, 4), np.uint8)
    pixels[..., :3] = np.array(_COLOURS, np.uint8)[(values.astype(int) - 1) % len(_COLOURS)]
    pixels[..., 3] = 255
    pixels[values == 0] = 0
    return pixels


def legend_of_labels(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(name, colour as CSS writes it) of each label but the background, which is not drawn."""
    count = len(_COLOURS)
    return tuple(
        (name, "#{:02x}{:02x}{:02x}".format(*_COLOURS[n % count]))
        for n, name in enumerate(names[1:])
    )


def legend_of(image_map: ImageMap) -> MapLegend:
    """What the colours of `pictures` say."""
    return MapLegend(
        image_map.of, image_map.method, _largest(image_map), image_map.regions, image_map.atlas
    )


def small_volume(volume: Volume) -> bytes:
    """A packed NIfTI-1 file of uint8 voxels of 2 mm around the brain; it holds no name or date."""
    shape = tuple(int(n) for n in (_HIGH - _LOW) // _VOLUME_STEP)
    step = np.full(3, _VOLUME_STEP)
    found = _sample(volume.voxels, volume.affine, _LOW + _VOLUME_STEP / 2, step, shape)
    values = volume.slope * found + volume.inter
    voxels = _brightness(values, _white([values]), _VOLUME_LEVELS)
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *voxels.shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 2, 8)  # uint8
    struct.pack_into("<4f", header, 76, 1.0, _VOLUME_STEP, _VOLUME_STEP, _VOLUME_STEP)
    struct.pack_into("<2f", header, 108, 352.0, 1.0)  # where voxels begin; slope
    header[123] = 2  # mm
    struct.pack_into("<h", header, 254, 4)  # sform: MNI
    for row in range(3):
        line = [0.0, 0.0, 0.0, _LOW[row] + _VOLUME_STEP / 2]
        line[row] = _VOLUME_STEP
        struct.pack_into("<4f", header, 280 + 16 * row, *line)
    header[344:348] = b"n+1\0"
    return gzip.compress(bytes(header) + voxels.tobytes("F"), 9, mtime=0)
