"""Occlusion: what the model's answer loses when a cube of the scan is hidden.

    map(x) = mean over cubes c that hold x of (answer(scan) - answer(scan with c hidden))

Hidden means: replaced by what is usual there, training's mean box, which the artifact carries at
every few voxels. So the map shows where this scan is unlike others in a way that matters to the
answer. Without it (imported networks, older artifacts) the scan itself, blurred beyond recognition,
takes its place. All channels are hidden together, and in every box that sees the cube. After
Zeiler and Fergus, ECCV 2014; no gradient is needed, so every engine can do it.

Only the box that changes goes through the trunk again, where the engine runs in two steps, and of
that box, by the native engine, early on only what lies around the cube (`engines.local`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt import _native
from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data.scan_check import Reference
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.runtime.engines.local import Slices
from hyperfusion_rt.runtime.explain.passes import Cube, Passes

Floats = NDArray[np.float32]

# A cube with less brain than this changes next to nothing.
_LEAST_BRAIN = 0.02
# The blur that hides where nobody knows what is usual, in mm: no structure is left.
_BLUR_MM = 16.0


@dataclass(frozen=True)
class BoxMaps:
    """A map on the boxes' own grids `float32 [N, D, H, W]`; 0 where a scan holds no brain.

    `answer`: the model's answer to the scan as it is. `passes`: boxes that went through the trunk.
    """

    voxels: Floats
    answer: float
    passes: int


def neutral(images: Floats, reference: Reference | None, spacing: float) -> Floats:
    """What hides a voxel of `images [N, C, D, H, W]`, of the same shape: see the module."""
    means = None if reference is None else reference.means
    filled = np.empty_like(images)
    flat, into = (x.reshape(-1, *images.shape[2:]) for x in (images, filled))
    if reference is not None and means is not None and len(means) == len(flat):
        step = np.diag([1 / reference.stride] * 3 + [1.0])[:3]
        for mean, place in zip(means, into, strict=True):
            _native.sample_linear(np.ascontiguousarray(mean), step, True, None, place)
        return filled
    sigma = _BLUR_MM / spacing
    for image, place in zip(flat, into, strict=True):
        _native.smooth(np.ascontiguousarray(image), (sigma, sigma, sigma), 3.0, place)
    return filled


def check_cubes(preprocessing: Preprocessing, cube: float, stride: float) -> None:
    """Whether the boxes can be hidden by cubes of this size and distance, in mm.

    Raises:
        ConfigError: a size that is not positive, or beyond the box.
    """
    largest = min(preprocessing.shape) * preprocessing.spacing
    if not (math.isfinite(cube) and 0 < cube <= largest):
        raise ConfigError(
            f"`cube` {cube:g} mm: choose a size above 0 and at most {largest:g} mm, the shortest "
            "side of the model's boxes",
            code="option-wrong",
        )
    if not (math.isfinite(stride) and 0 < stride <= cube):
        raise ConfigError(
            f"stride {stride:g} mm: choose a step above 0 and at most the cube, {cube:g} mm",
            code="option-wrong",
        )


def cubes_of(
    preprocessing: Preprocessing, brain: NDArray[np.bool_], cube: float, stride: float
) -> list[Cube]:
    """The cubes of `cube` mm, every `stride` mm, that hold brain; `brain [N, D, H, W]`.

    Places that several boxes see are hidden in all of them at once.

    Both are rounded to whole voxels of the boxes, at least one. Cubes at a box's end are cut.

    Raises:
        ConfigError: a size that is not positive, or beyond the box.
    """
    check_cubes(preprocessing, cube, stride)
    shape, spacing = preprocessing.shape, preprocessing.spacing
    edge, step = (max(1, round(length / spacing)) for length in (cube, stride))
    starts = [_starts(n, edge, step) for n in shape]
    found: list[Cube] = []
    covered = np.zeros_like(brain)
    for box in range(len(preprocessing.boxes)):
        for at in itertools.product(*starts):
            place = _slices(at, edge, shape)
            # What an earlier box shares with this one is hidden by that one's cubes.
            if brain[box][place].mean() <= _LEAST_BRAIN or covered[box][place].all():
                continue
            cube_of = Cube(((box, place), *_elsewhere(preprocessing, box, at, edge)))
            found.append(cube_of)
            for other, seen in cube_of.places[1:]:
                covered[other][seen] = True
    return found


def _starts(count: int, edge: int, step: int) -> range:
    """Where cubes begin along an axis of `count` voxels: all voxels are in one."""
    return range(0, max(count - edge, 0) + step, step)


def _slices(start: Sequence[int], edge: int, shape: Sequence[int]) -> Slices:
    d, h, w = (slice(max(a, 0), min(a + edge, n)) for a, n in zip(start, shape, strict=True))
    return d, h, w


def _elsewhere(
    preprocessing: Preprocessing, box: int, start: Sequence[int], edge: int
) -> Iterator[tuple[int, Slices]]:
    """Where the other boxes see a cube of `box`: those voxels whose centres lie in it."""
    shape, spacing = preprocessing.shape, preprocessing.spacing
    middle = (np.asarray(shape) - 1) / 2
    low = np.asarray(start) - 0.5
    ends = np.stack([low, np.minimum(low + edge, np.asarray(shape) - 0.5)]) - middle
    here = preprocessing.boxes[box]
    for index, other in enumerate(preprocessing.boxes):
        if index == box:
            continue
        mm = spacing * ends * [-1 if here.mirror else 1, 1, 1] + here.center
        seen = (mm - other.center) * [-1 if other.mirror else 1, 1, 1] / spacing + middle
        first = np.ceil(seen.min(0) - 1e-6).astype(int)
        last = np.ceil(seen.max(0) - 1e-6).astype(int)
        d, h, w = (slice(max(a, 0), min(b, n)) for a, b, n in zip(first, last, shape, strict=True))
        if all(s.start < s.stop for s in (d, h, w)):
            yield index, (d, h, w)


def occlude(
    passes: Passes,
    preprocessing: Preprocessing,
    fill: Floats,
    *,
    cube: float = 8.0,
    stride: float | None = None,
) -> BoxMaps:
    """The map of a case on its boxes' grids; see the module.

    `fill [N, C, D, H, W]`: what hides, see `neutral`. `cube`: the edge in mm, rounded to whole
    voxels of the boxes. `stride`: from cube to cube, in mm; default: the edge.

    Raises:
        ConfigError: as `cubes_of`.
        EngineError: an answer is not finite.
    """
    brain = (passes.images != 0).any(1)
    cubes = cubes_of(preprocessing, brain, cube, cube if stride is None else stride)
    drops = passes.answer - passes.without(cubes, fill)
    total, count = np.zeros((2, *brain.shape))
    for drop, one in zip(drops, cubes, strict=True):
        for box, place in one.places:
            total[box][place] += drop
            count[box][place] += 1
    voxels = np.where(brain & (count > 0), total / np.maximum(count, 1), 0)
    return BoxMaps(voxels.astype(np.float32), float(passes.answer), passes.count)
