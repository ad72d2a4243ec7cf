"""What attributes of operations mean, voxel by voxel: the same for every engine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.operations import Activation, Cropping, Margins, Resizing

Indices = NDArray[np.int64]


def taps(how: Resizing, size: int, axis: int) -> tuple[Indices, Indices, NDArray[np.float64]]:
    """For each voxel of the result along `axis`, the two voxels it lies between, of the `size`
    that there are, and the part of the second.
    """
    step = how.step[axis]
    at = np.arange(how.size[axis], dtype=np.float64)
    at = (at + 0.5) * step - 0.5 if how.coordinates == "half_pixel" else at * step
    if how.linear:
        at = np.clip(at, 0, size - 1)
        low = np.floor(at).astype(np.int64)
        return low, np.minimum(low + 1, size - 1), at - low
    # Steps are rounded, those of files to float32: what is halfway, or a voxel, must stay so.
    at = np.round(at, 5)
    match how.rounding:
        case "floor":
            nearest = np.floor(at)
        case "ceil":
            nearest = np.ceil(at)
        case "round_prefer_floor":
            nearest = np.ceil(at - 0.5)
        case "round_prefer_ceil":
            nearest = np.floor(at + 0.5)
    chosen = np.clip(nearest, 0, size - 1).astype(np.int64)
    return chosen, chosen, np.zeros(len(at))


def padded(how: Margins, size: int, axis: int) -> list[int]:
    """For each voxel of a padded axis of `size`, the voxel it is, or -1: of the filling value."""
    at = np.arange(-how.before[axis], size + how.after[axis])
    if how.mode == "constant":
        at = np.where((at >= 0) & (at < size), at, -1)
    elif how.mode == "edge":
        at = np.clip(at, 0, size - 1)
    else:
        at = np.where(at >= size, 2 * (size - 1) - at, np.abs(at))
    return [int(n) for n in at]


def cropped(how: Cropping, axis: int) -> list[int]:
    """The voxels that are kept."""
    first, step = how.start[axis], how.step[axis]
    return list(range(first, first + step * how.size[axis], step))


def bounds(act: Activation) -> tuple[float, float]:
    """Of a clip; float32's largest numbers stand for none."""
    most = float(np.finfo(np.float32).max)
    low, high = act.alpha, act.beta
    return (low if low > -most else -np.inf, high if high < most else np.inf)
