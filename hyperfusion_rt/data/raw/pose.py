"""Where the brain lies: an affine registration by local correlation, Gauss-Newton.

Scan and template are compared in what stands out of its surroundings
(`kernels/cpu/registration.hpp`), so that a bias field, the gain and the contrast of the scanner
hardly matter, and skull and scalp only where they touch the brain. First at 8 mm from many starts,
then at 4 mm in wide windows, last in narrow ones, which tell the place best. Finer voxels make it
no better: a brain differs from the template by more.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hyperfusion_rt import _native
from hyperfusion_rt.data.raw.image import Image, Matrix, block_means, otsu, to_mm, turn
from hyperfusion_rt.data.raw.template import CENTER, Level, load_template

# Degrees of the starts about each axis; 45 still find the way.
_ANGLES = (-20.0, 0.0, 20.0)
_STARTS = 3  # so many of them are followed
_SCALE = 0.95  # of a head against the template, at first
_RADIUS = 80.0  # mm: turns and scales count by what they move there
_LEAST_INSIDE = 1 / 3  # of the compared voxels
_DAMPING = 1e-3
_AXES = np.eye(3)


@dataclass(frozen=True)
class Fit:
    """Where Gauss-Newton ended: `transform [4, 4]`, template mm to scan mm.

    score: the mean local correlation; misfit: the weighted mean square of the residuals; inside:
    the part of the compared voxels that lies in the scan.
    """

    transform: Matrix
    score: float = -1.0
    misfit: float = np.inf
    inside: float = 0.0


class Comparison:
    """Scan and template on one level.

    ring: how far around the template's brain they are compared, mm; window: the standard deviation
    of what is a voxel's surroundings, mm.
    """

    def __init__(self, level: Level, ring: float, window: float) -> None:
        compared = level.away < ring
        index = np.stack(np.nonzero(compared))
        low, high = np.maximum(index.min(1) - 1, 0), index.max(1) + 2
        part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        self._spacing = float(level.affine[0, 0])
        self._affine = level.affine.copy()
        self._affine[:3, 3] = to_mm(level.affine, low[:, None])[:, 0]
        self._native = _native.LocalCorrelation(
            np.ascontiguousarray(level.image[part]),
            np.ascontiguousarray(compared[part], np.uint8),
            window / self._spacing,
        )
        # From a template index to what the changes are of: (1, (index - centre) / radius).
        self._basis = np.zeros((4, 4))
        self._basis[0, 3] = 1
        self._basis[1:, :3] = _AXES / self._native.radius
        self._basis[1:, 3] = -np.asarray(self._native.centre) / self._native.radius
        self._points = to_mm(level.affine, index[:, ::37])

    def _matrix(self, scan: Image, transform: Matrix) -> Matrix:
        return np.ascontiguousarray((np.linalg.inv(scan.affine) @ transform @ self._affine)[:3])

    def score(self, scan: Image, transform: Matrix) -> float:
        """The mean local correlation; -1 where too little lies inside the scan."""
        matrix = self._matrix(scan, transform)
        inside, score, _, _ = self._native.at(scan.voxels, matrix, _LEAST_INSIDE, None, None)
        return score if inside >= _LEAST_INSIDE else -1.0

    def fit(
        self, scan: Image, start: Matrix, steps: int, enough: float, similarity: bool = False
    ) -> Fit:
        """At most `steps` of Gauss-Newton, until one moves the brain by less than `enough` mm.

        `similarity`: rotation, shift and one scale alone.
        """
        transform, found = start, Fit(start)
        normal, gradient = np.empty((12, 12)), np.empty(12)
        for _ in range(steps):
            matrix = self._matrix(scan, transform)
            inside, score, misfit, _ = self._native.at(
                scan.voxels, matrix, _LEAST_INSIDE, normal, gradient
            )
            if inside < _LEAST_INSIDE:
                return Fit(transform)
            change = self._change(scan, transform, normal, gradient, similarity)
            moved = float(
                np.linalg.norm(change[:3, :3] @ self._points + change[:3, 3:], axis=0).mean()
            )
            if not np.isfinite(moved):
                return Fit(transform)
            # The equations hold near by: no step is longer than 1.5 voxels.
            change *= min(1.0, 1.5 * self._spacing / max(moved, 1e-12))
            transform = transform + change
            found = Fit(transform, score, misfit, inside)
            if moved < enough:
                break
        return found

    def _change(
        self, scan: Image, transform: Matrix, normal: Matrix, gradient: Matrix, similarity: bool
    ) -> Matrix:
        """The step `[4, 4]` of the transform that the equations ask for."""
        ways = np.eye(12)
        if similarity:
            to_index = np.linalg.inv(scan.affine)
            of_index = self._affine @ np.linalg.inv(self._basis)
            moves = (to_index @ move @ of_index for move in _similarities(transform))
            ways = np.stack([move[:3].ravel() for move in moves], axis=1)
        left = ways.T @ normal @ ways
        left[np.diag_indices_from(left)] *= 1 + _DAMPING
        step = np.linalg.lstsq(left, -(ways.T @ gradient), rcond=None)[0]
        change = np.zeros((4, 4))
        change[:3] = (ways @ step).reshape(3, 4) @ self._basis
        found: Matrix = scan.affine @ change @ np.linalg.inv(self._affine)
        found[3] = 0
        return found


def _similarities(transform: Matrix) -> list[Matrix]:
    """Small shifts, turns about the brain's centre, and a scale, as changes of `transform`."""
    moves = []
    for axis in _AXES:
        move = np.zeros((4, 4))
        move[:3, 3] = axis
        moves.append(move)
    for generator in (*(np.cross(_AXES, axis) for axis in _AXES), _AXES):
        move = np.zeros((4, 4))
        move[:3, :3] = generator @ transform[:3, :3] / _RADIUS
        move[:3, 3] = -move[:3, :3] @ CENTER
        moves.append(move)
    return moves


@lru_cache(maxsize=1)
def _comparisons() -> tuple[Comparison, Comparison, Comparison]:
    levels = load_template().levels
    return (
        Comparison(levels[8], ring=2, window=16),
        Comparison(levels[4], ring=2, window=12),
        Comparison(levels[4], ring=4, window=6.5),
    )


def at_level(scan: Image, level: Level) -> Image:
    """The scan with the level's detail, in voxels of half its spacing or more."""
    smoothed = scan.smoothed(level.sigma)
    mm = float(level.affine[0, 0]) / 2
    step = tuple(max(1, int(mm / length + 0.01)) for length in scan.spacing)
    voxels, affine = block_means(smoothed.voxels, scan.affine, step)
    return replace(scan, voxels=voxels, affine=affine)


def _centers(scan: Image) -> list[Matrix]:
    """Where the middle of the brain may be, in mm: of all that is bright, or below the vertex.

    With a neck in the scan the centre of mass lies too low; the highest point of the head does not
    move with it.
    """
    head = scan.voxels > 0.5 * otsu(scan.voxels)
    points = to_mm(scan.affine, np.stack(np.nonzero(head)).astype(np.float64))
    # The highest tenth of a percent may be noise or a vitamin capsule.
    top = np.percentile(points[2], 99.9)
    near = points[:, points[2] > top - 150]
    below = np.array([*np.median(near[:2], axis=1), top - 78.0])
    return [points.mean(1), below, below - [0.0, 0.0, 15.0]]


def _starts(coarse: Image, compared: Comparison) -> list[Matrix]:
    """The best of many: rotation, shift and one scale."""
    found: list[tuple[float, int, Matrix]] = []
    for center in _centers(coarse):
        for angles in itertools.product(_ANGLES, repeat=3):
            start = np.eye(4)
            start[:3, :3] = _SCALE * turn(angles)
            start[:3, 3] = center - start[:3, :3] @ CENTER
            found.append((-compared.score(coarse, start), len(found), start))
    return [start for _, _, start in sorted(found, key=lambda one: one[:2])[:_STARTS]]


class Poses(NamedTuple):
    """A scan's pose: in wide windows, and in narrow ones; the scan at 4 mm, where both were found.

    The second is the answer; how far the first lies from it says how sure it is.
    """

    wide: Fit
    narrow: Fit
    fine: Image


def find_pose(scan: Image) -> Poses:
    """The pose of a scan in voxels of about 2 mm."""
    levels = load_template().levels
    far, wide, _ = _comparisons()
    coarse, fine = at_level(scan, levels[8]), at_level(scan, levels[4])
    best = Fit(np.eye(4), -2.0)
    for start in _starts(coarse, far):
        turned = far.fit(coarse, start, 20, 0.3, similarity=True)
        found = far.fit(coarse, turned.transform, 15, 0.3)
        if found.score > best.score:
            best = found
    first = wide.fit(fine, best.transform, 20, 0.1)
    return Poses(first, refine(fine, first.transform), fine)


def refine(fine: Image, start: Matrix) -> Fit:
    """The pose near `start` of a scan with the detail of the 4 mm level, in narrow windows."""
    return _comparisons()[2].fit(fine, start, 30, 0.005)
