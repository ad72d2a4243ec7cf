"""Random changes of training samples, on the device that the network trains on.

What happens to a sample depends on (seed, epoch, sample) alone: not on its batch, and not on where
a run was interrupted. The order is that of a scan's life: the head's pose and shape, the scanner's
field and contrast, its resolution, its noise, the normalisation.

Volumes come from `Preprocessing`: background is 0, the brain (per box and channel) has mean 0 and
standard deviation 1, or `fixed-range` values, whose grey scale is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperfusion_rt.config import Augmentation, Preprocessing
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.table_file import Row
from hyperfusion_rt.kernels.warp import warp

Floats = NDArray[np.float64]

# mm between control points of displacements and of bias fields.
_ELASTIC_MM, _BIAS_MM = 24.0, 60.0
# SD of a cubic B-spline field per unit of its coefficients: (sum of squared weights) ** (3 / 2),
# averaged over positions, is 0.479 ** 1.5.
_SPLINE_SD = 0.479**1.5
_EPSILON = 1e-6
# Voxels of images that a core's caches hold beside what is made of them.
_CACHED = 1 << 17


@dataclass(frozen=True)
class Draws:
    """What was drawn for B samples of C channels: float32, on the CPU.

    `matrix [B, 3, 3]`, `shift [B, 3]`: from the voxel of the new volume to that of the old one,
    about the centre, in mm; `elastic [B, 3, d, h, w]`: control points in mm. Of values: `bias
    [B, C, d, h, w]`, `gamma [B, C]` (exponent), `contrast [B, C, 2]` (factor, offset), `noise
    [B, C]` (SD), `resample` (a `[B, n, n]` matrix per axis), `seeds [B]` of the noise. What
    happens to none of the samples is None.
    """

    matrix: Tensor
    shift: Tensor
    elastic: Tensor | None
    bias: Tensor | None
    gamma: Tensor | None
    contrast: Tensor
    noise: Tensor | None
    resample: tuple[Tensor | None, ...]
    seeds: tuple[int, ...]


class ImageAugmentation:
    """`augment(images [B, C, D, H, W], epoch, samples [B]) -> [B, C, D, H, W]`."""

    def __init__(self, config: Augmentation, preprocessing: Preprocessing, seed: int) -> None:
        self.config, self.seed = config, seed
        self.shape, self.spacing = preprocessing.shape, preprocessing.spacing
        of = [preprocessing.normalisation_of(channel) for channel in preprocessing.channels]
        self.scored = torch.tensor([name != "fixed-range" for name in of])

    def __call__(self, images: Tensor, epoch: int, samples: Sequence[int]) -> Tensor:
        """The changed samples; `samples` are their numbers in the cohort."""
        if not (self.config.moves or self.config.changes_values):
            return images
        # On a CPU a few at a time: they stay in the caches, and what happens to none of them costs
        # nothing.
        step = len(samples)
        if images.device.type == "cpu":
            step = max(1, torch.get_num_threads() * _CACHED // images[0].numel())
        parts = [slice(i, i + step) for i in range(0, len(samples), step)]
        return torch.cat([self.apply(images[p], self.draw(epoch, samples[p])) for p in parts])

    # ---- drawing

    def draw(self, epoch: int, samples: Sequence[int]) -> Draws:
        """What happens to these samples in this epoch."""
        rngs = [np.random.default_rng([self.seed, 2, epoch, int(sample)]) for sample in samples]
        drawn = [self._draw(rng) for rng in rngs]

        def stack(name: str) -> Tensor:
            return torch.from_numpy(np.stack([one[name] for one in drawn]).astype(np.float32))

        def unless(nothing: float, name: str) -> Tensor | None:
            return stack(name) if any((one[name] != nothing).any() for one in drawn) else None

        def matrices(axis: int) -> Tensor | None:
            found = [one["resample"][axis] for one in drawn]
            if all(matrix is None for matrix in found):
                return None
            same = np.eye(self.shape[axis])
            filled = np.stack([same if matrix is None else matrix for matrix in found])
            return torch.from_numpy(filled.astype(np.float32))

        return Draws(
            matrix=stack("matrix"),
            shift=stack("shift"),
            elastic=unless(0, "elastic"),
            bias=unless(0, "bias"),
            gamma=unless(1, "gamma"),
            contrast=stack("contrast"),
            noise=unless(0, "noise"),
            resample=tuple(matrices(axis) for axis in range(3)),
            seeds=tuple(int(one["seed"]) for one in drawn),
        )

    def _draw(self, rng: np.random.Generator) -> dict[str, Any]:
        config, channels = self.config, len(self.scored)
        # Everything is drawn, whatever is used: a field that is changed changes nothing else.
        angles = np.deg2rad(config.rotation) * rng.uniform(-1, 1, 3)
        scale = np.exp(math.log1p(config.scaling) * rng.uniform(-1, 1, 3))
        flipped = rng.uniform() < 0.5
        scale[0] *= -1 if flipped and config.flip else 1
        found: dict[str, Any] = {
            "matrix": _rotation(angles) @ np.diag(scale),
            "shift": config.shift * rng.uniform(-1, 1, 3),
            "elastic": rng.standard_normal((3, *self._points(_ELASTIC_MM))),
        }
        found["elastic"] *= config.elastic / _SPLINE_SD
        happens = rng.uniform(size=(6, channels)) < config.probability
        found["bias"] = rng.standard_normal((channels, *self._points(_BIAS_MM)))
        found["bias"] *= config.bias_field / _SPLINE_SD * happens[0, :, None, None, None]
        found["gamma"] = np.exp(config.gamma * rng.uniform(-1, 1, channels) * happens[1])
        contrast = config.contrast * rng.uniform(-1, 1, (channels, 2)) * happens[2, :, None]
        found["contrast"] = contrast + np.array([1.0, 0.0])
        found["noise"] = config.noise * rng.uniform(0, 1, channels) * happens[3]
        # Blur and slices are of the scan: the same for all its channels.
        sigma = config.blur * rng.uniform() * happens[4, 0]
        most = max(1.0, config.resolution / self.spacing)
        thick = 1 + (most - 1) * rng.uniform() * happens[5, 0]
        axis, start = rng.integers(3), rng.uniform()
        found["resample"] = [_gaussian(size, sigma / self.spacing) for size in self.shape]
        if thick > 1:
            slices, blur = _slices(self.shape[axis], thick, start), found["resample"][axis]
            found["resample"][axis] = slices if blur is None else slices @ blur
        found["seed"] = rng.integers(1 << 62)
        return found

    def _points(self, distance: float) -> tuple[int, ...]:
        """Control points along each axis."""
        return tuple(int((n - 1) * self.spacing // distance) + 4 for n in self.shape)

    # ---- applying

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """`images [B, C, D, H, W]`, changed as was drawn for them."""
        inside = (images != 0).to(images.dtype)
        spread = _moments(images, inside)[1]
        changed = images
        if self.config.moves:
            changed, inside = self._move(images, draws)
        if self.config.changes_values:
            changed = self._change(changed, inside, draws)
        # Interpolation takes noise away: the normalisation comes after, as it does for scans.
        mean, now = _moments(changed, inside)
        factor, offset = (_of(values, images) for values in draws.contrast.unbind(2))
        scored = _of(self.scored[None], images)
        factor = torch.where(scored, factor * spread / now, 1.0)
        offset = torch.where(scored, offset - mean * factor, 0.0)
        return torch.addcmul(offset, changed, factor).mul_(inside)

    def _move(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        device = images.device
        elastic = None
        if draws.elastic is not None:
            elastic = self._smooth(draws.elastic.to(device), _ELASTIC_MM) / self.spacing
        return warp(images, draws.matrix.to(device), draws.shift.to(device) / self.spacing, elastic)

    def _change(self, images: Tensor, inside: Tensor, draws: Draws) -> Tensor:
        scored = _of(self.scored[None], images)
        changed = images
        if draws.bias is not None or draws.gamma is not None:
            low = images.amin((2, 3, 4), keepdim=True)
            span = (images.amax((2, 3, 4), keepdim=True) - low).clamp_min(_EPSILON)
            grey = ((images - low) / span).log_()
            if draws.bias is not None:
                grey += self._smooth(draws.bias.to(images.device), _BIAS_MM)
            grey = grey.clamp_min_(math.log(_EPSILON))
            if draws.gamma is not None:
                grey *= _of(draws.gamma, images)
            changed = torch.where(scored, grey.exp_().mul_(span).add_(low), images).mul_(inside)
        if any(matrix is not None for matrix in draws.resample):
            # The background has no value: what is blurred is the brain alone.
            weight = _along(inside, draws.resample).clamp_min_(_EPSILON)
            changed = _along(changed, draws.resample).div_(weight).mul_(inside)
        if draws.noise is not None:
            white = torch.stack([self._white(seed, images[0]) for seed in draws.seeds])
            spread = _moments(images, inside)[1]
            changed = white.mul_(_of(draws.noise, images) * spread).add_(changed)
            # A quantity keeps its range.
            changed = torch.where(scored, changed, changed.clamp(0, 1)).mul_(inside)
        return changed

    @staticmethod
    def _white(seed: int, like: Tensor) -> Tensor:
        generator = torch.Generator(like.device).manual_seed(seed)
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    def _smooth(self, points: Tensor, distance: float) -> Tensor:
        """A cubic B-spline field `[B, C, D, H, W]` of control points `[B, C, d, h, w]`."""
        return _along(points, self._splines[distance])

    @cached_property
    def _splines(self) -> dict[float, list[Tensor]]:
        """By the control points' distance in mm: the weights `[1, size, points]` of each axis."""
        return {
            distance: [_spline(n, self.spacing / distance)[None] for n in self.shape]
            for distance in (_ELASTIC_MM, _BIAS_MM)
        }


def _of(values: Tensor, images: Tensor) -> Tensor:
    """`[B, C]` as `[B, C, 1, 1, 1]`, where the images are."""
    return values.to(images.device)[:, :, None, None, None]


def _along(volumes: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """`volumes [B, C, d, h, w]`, multiplied along each axis by a matrix `[B or 1, n, size]`."""
    first, second, third = (m if m is None else m.to(volumes.device) for m in matrices)
    if third is not None:
        volumes = (volumes.flatten(1, 3) @ third.mT).unflatten(1, volumes.shape[1:4])
    if second is not None:
        volumes = second[:, None, None] @ volumes
    if first is not None:
        volumes = (first[:, None] @ volumes.flatten(3)).unflatten(3, volumes.shape[3:])
    return volumes


def _rotation(angles: Floats) -> Floats:
    """The rotation by three angles, around the axes one after the other."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


def _spline(size: int, step: float) -> Tensor:
    """Weights `[size, points]` of cubic B-splines; voxels lie `step` control points apart."""
    at = torch.arange(size, dtype=torch.float64) * step + 1
    far = (at[:, None] - torch.arange(int((size - 1) * step) + 4)).abs()
    near = 2 / 3 - far**2 + far**3 / 2
    weights = torch.where(far < 1, near, (2 - far).clamp_min(0) ** 3 / 6)
    return weights.float()


def _gaussian(size: int, sigma: float) -> Floats | None:
    """A Gaussian blur as a matrix `[size, size]`; the border's voxels are repeated. None: none."""
    if sigma < 0.05:
        return None
    reach = math.ceil(3 * sigma)
    far = np.arange(-reach, size + reach) - np.arange(size)[:, None]
    weights = np.where(np.abs(far) <= reach, np.exp(-0.5 * (far / sigma) ** 2), 0.0)
    weights /= weights.sum(1, keepdims=True)
    matrix = weights[:, reach : reach + size]
    matrix[:, 0] += weights[:, :reach].sum(1)
    matrix[:, -1] += weights[:, reach + size :].sum(1)
    return matrix


def _slices(size: int, thick: float, start: float) -> Floats:
    """Slices of `thick` voxels and linear interpolation between them, as a matrix `[size, size]`.

    A slice is the mean over its thickness; the first one's centre is `start` slices from the edge.
    """
    edges = np.arange(size + 1)
    centres = np.arange(start * thick - thick / 2, size - 1 + thick, thick)
    # How much of each voxel lies in each slice.
    low = np.maximum(centres[:, None] - thick / 2 + 0.5, edges[:-1])
    high = np.minimum(centres[:, None] + thick / 2 + 0.5, edges[1:])
    mean = np.clip(high - low, 0, None)
    empty = mean.sum(1) < 1e-6
    mean, centres = mean[~empty], centres[~empty]
    mean /= mean.sum(1, keepdims=True)
    at = np.arange(size).clip(centres[0], centres[-1])
    between = (1 - np.abs(at[:, None] - centres) / thick).clip(0)
    matrix: Floats = between @ mean
    return matrix


def _moments(images: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation inside, `[B, C, 1, 1, 1]` each; outside, `images` are 0."""
    count = inside.sum((2, 3, 4), keepdim=True).clamp_min(1)
    mean = images.sum((2, 3, 4), keepdim=True) / count
    variance = ((images - mean).mul_(inside)).square_().sum((2, 3, 4), keepdim=True) / count
    return mean, variance.sqrt().clamp_min(_EPSILON)


class TableAugmentation:
    """Rows with more gaps: `augment(epoch, samples) -> float32 [B, T]`.

    A value that is there is treated as missing, and imputed, with the probability
    `drop_columns`, in those columns that had gaps in training: for others the network has no
    input that says so.
    """

    def __init__(
        self, config: Augmentation, encoder: TabularEncoder, rows: Sequence[Row], seed: int
    ) -> None:
        self.config, self.encoder, self.seed = config, encoder, seed
        self.rows = rows
        self.names = [column.name for column in encoder.columns if column.missing_rate > 0]

    def __call__(self, epoch: int, samples: Sequence[int]) -> NDArray[np.float32]:
        """The encoded rows of these samples in this epoch."""
        return self.encoder.encode([self._row(epoch, int(sample)) for sample in samples])

    def _row(self, epoch: int, sample: int) -> Row:
        rng = np.random.default_rng([self.seed, 4, epoch, sample])
        drop = rng.uniform(size=len(self.names)) < self.config.drop_columns
        gone = {name for name, is_gone in zip(self.names, drop, strict=True) if is_gone}
        row = self.rows[sample]
        values = {name: "" if name in gone else value for name, value in row.values.items()}
        return replace(row, values=values)
