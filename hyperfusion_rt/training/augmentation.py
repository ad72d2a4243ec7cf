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
from torch.nn.functional import grid_sample

from hyperfusion_rt.config import Augmentation, Preprocessing
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.table_file import Row

Floats = NDArray[np.float64]

# mm between control points of displacements and of bias fields.
_ELASTIC_MM, _BIAS_MM = 24.0, 60.0
# SD of a cubic B-spline field per unit of its coefficients: (sum of squared weights) ** (3 / 2),
# averaged over positions, is 0.479 ** 1.5.
_SPLINE_SD = 0.479**1.5
_EPSILON = 1e-6


@dataclass(frozen=True)
class Draws:
    """What was drawn for B samples of C channels.

    `matrix [B, 3, 3]`, `shift [B, 3]`: from the voxel of the new volume to that of the old one,
    about the centre, in mm; `elastic [B, 3, d, h, w]`: control points in mm. Of values: `bias
    [B, C, d, h, w]`, `gamma [B, C]` (exponent), `contrast [B, C, 2]` (factor, offset), `noise
    [B, C]` (SD), `resample` (one `[B, n, n]` matrix per axis), `seeds [B]` of the noise.
    """

    matrix: Tensor
    shift: Tensor
    elastic: Tensor | None
    bias: Tensor | None
    gamma: Tensor
    contrast: Tensor
    noise: Tensor
    resample: tuple[Tensor, Tensor, Tensor] | None
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
        config = self.config
        if not (config.moves or config.changes_values):
            return images
        draws = self.draw(epoch, samples)
        changed, inside = images, images != 0
        spread = _moments(images, inside)[1]
        if config.moves:
            changed, inside = self._move(changed, inside, draws)
        if config.changes_values:
            changed = self._change(changed, inside, draws)
        # Interpolation takes noise away: the normalisation comes after, as it does for scans.
        mean, now = _moments(changed, inside)
        scored = self.scored.to(images.device)[None, :, None, None, None]
        factor, offset = draws.contrast.to(images.device)[..., None, None, None].unbind(2)
        normal = (changed - mean) * (spread / now) * factor + offset
        return torch.where(scored, normal, changed) * inside

    # ---- drawing

    def draw(self, epoch: int, samples: Sequence[int]) -> Draws:
        """What happens to these samples in this epoch."""
        rngs = [np.random.default_rng([self.seed, 2, epoch, int(sample)]) for sample in samples]
        drawn = [self._draw(rng) for rng in rngs]

        def stack(name: str) -> Tensor:
            return torch.from_numpy(np.stack([one[name] for one in drawn]).astype(np.float32))

        config = self.config
        resample = None
        if config.changes_values and (config.blur or config.resolution):
            resample = (stack("resample0"), stack("resample1"), stack("resample2"))
        return Draws(
            matrix=stack("matrix"),
            shift=stack("shift"),
            elastic=stack("elastic") if config.elastic else None,
            bias=stack("bias") if config.changes_values and config.bias_field else None,
            gamma=stack("gamma"),
            contrast=stack("contrast"),
            noise=stack("noise"),
            resample=resample,
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
        for number, size in enumerate(self.shape):
            matrix = _gaussian(size, sigma / self.spacing)
            if number == axis and thick > 1:
                matrix = _slices(size, thick, start) @ matrix
            found[f"resample{number}"] = matrix
        found["seed"] = rng.integers(1 << 62)
        return found

    def _points(self, distance: float) -> tuple[int, ...]:
        """Control points along each axis."""
        return tuple(int((n - 1) * self.spacing // distance) + 4 for n in self.shape)

    # ---- applying

    def _move(self, images: Tensor, inside: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        device = images.device
        size = torch.tensor(self.shape, dtype=torch.float32, device=device)
        grid = self._centred.to(device)  # [D, H, W, 3], voxels from the centre
        points = torch.einsum("bij,dhwj->bdhwi", draws.matrix.to(device), grid)
        points = points + draws.shift.to(device)[:, None, None, None] / self.spacing
        if draws.elastic is not None:
            field = self._smooth(draws.elastic.to(device), _ELASTIC_MM) / self.spacing
            points = points + field.movedim(1, -1)
        normalised = (2 * points / (size - 1).clamp_min(1)).flip(-1)
        both = torch.cat([images, inside.to(images.dtype)], 1)
        moved = grid_sample(both, normalised, padding_mode="border", align_corners=True)
        values, weight = moved.chunk(2, 1)
        # The brain's edge is made of brain voxels alone, as the background has no value.
        inside = weight > 0.5
        return torch.where(inside, values / weight.clamp_min(0.5), 0.0), inside

    def _change(self, images: Tensor, inside: Tensor, draws: Draws) -> Tensor:
        device = images.device
        scored = self.scored.to(device)[None, :, None, None, None]
        low = images.amin((2, 3, 4), keepdim=True)
        span = (images.amax((2, 3, 4), keepdim=True) - low).clamp_min(_EPSILON)
        grey = (images - low) / span
        if draws.bias is not None:
            grey = grey * self._smooth(draws.bias.to(device), _BIAS_MM).exp()
        grey = grey.clamp_min(_EPSILON) ** draws.gamma.to(device)[..., None, None, None]
        changed = torch.where(scored, grey * span + low, images) * inside
        if draws.resample is not None:
            # The background has no value: what is blurred is the brain alone.
            both = torch.cat([changed, inside.to(changed.dtype)], 1)
            for axis, matrix in enumerate(draws.resample):
                letters = "dhw"[axis]
                both = torch.einsum(
                    f"bij,bc{'dhw'.replace(letters, 'j')}->bc{'dhw'.replace(letters, 'i')}",
                    matrix.to(device),
                    both,
                )
            values, weight = both.chunk(2, 1)
            changed = values / weight.clamp_min(_EPSILON) * inside
        if self.config.noise:
            white = torch.stack([self._white(seed, images[0]) for seed in draws.seeds])
            spread = _moments(images, inside)[1]
            changed = changed + draws.noise.to(device)[..., None, None, None] * spread * white
            changed = torch.where(scored, changed, changed.clamp(0, 1))  # a quantity's range
        return changed

    @staticmethod
    def _white(seed: int, like: Tensor) -> Tensor:
        generator = torch.Generator(like.device).manual_seed(seed)
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    @cached_property
    def _centred(self) -> Tensor:
        axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in self.shape]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)

    def _smooth(self, points: Tensor, distance: float) -> Tensor:
        """A cubic B-spline field `[B, C, D, H, W]` of control points `[B, C, d, h, w]`."""
        splines = [_splines(n, self.spacing / distance).to(points.device) for n in self.shape]
        return torch.einsum("bcijk,di,hj,wk->bcdhw", points, *splines)


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


def _splines(size: int, step: float) -> Tensor:
    """Weights `[size, points]` of cubic B-splines; voxels lie `step` control points apart."""
    at = torch.arange(size, dtype=torch.float64) * step + 1
    far = (at[:, None] - torch.arange(int((size - 1) * step) + 4)).abs()
    near = 2 / 3 - far**2 + far**3 / 2
    weights = torch.where(far < 1, near, (2 - far).clamp_min(0) ** 3 / 6)
    return weights.float()


def _gaussian(size: int, sigma: float) -> Floats:
    """A Gaussian blur as a matrix `[size, size]`; the border's voxels are repeated."""
    if sigma < 0.05:
        return np.eye(size)
    reach = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return _repeated(size, weights / weights.sum())


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
    between = np.stack(
        [np.interp(np.arange(size), centres, unit) for unit in np.eye(len(centres))], 1
    )
    matrix: Floats = between @ mean
    return matrix


def _repeated(size: int, weights: Floats) -> Floats:
    """A convolution as a matrix; beyond the border its voxels are repeated."""
    reach = len(weights) // 2
    matrix = np.zeros((size, size))
    for offset, weight in zip(range(-reach, reach + 1), weights, strict=True):
        matrix[np.arange(size), np.clip(np.arange(size) + offset, 0, size - 1)] += weight
    return matrix


def _moments(images: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation inside, each `[B, C, 1, 1, 1]`."""
    count = inside.sum((2, 3, 4), keepdim=True).clamp_min(1)
    mean = (images * inside).sum((2, 3, 4), keepdim=True) / count
    variance = ((images - mean).square() * inside).sum((2, 3, 4), keepdim=True) / count
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
