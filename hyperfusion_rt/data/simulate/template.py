"""The MNI152 template, its structures, and how they grow and shrink.

The template (T1, grey and white matter maps; MNI152 2009a symmetric, 1 mm) is the copy that the
nilearn package ships: Fonov et al., NeuroImage 2011. nilearn's documentation calls its licence
unknown; the McConnell Brain Imaging Centre, MNI, permits redistribution with its notice. Nothing of
it is in this package.

A region is what shrinks and opens together, with a strength of its own: the whole brain, or a part
of it. Its field is Σ_i g_i u_i with ∇·u_i = -S_i, u_i = ∇Φ_i: S_i is the mask of a structure
(lateral ventricles, temporal horns, hippocampi, ...) and g_i the logarithm of its growth per unit
of strength, negative where it shrinks; u_i solves a Poisson equation, so that the tissue around
gives way smoothly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool3d, pad

from hyperfusion_rt.data.mni_template import template_files
from hyperfusion_rt.data.simulate.population import Model
from hyperfusion_rt.errors import MissingExtraError

Float = NDArray[np.float32]
PURPOSE = "the simulated cohort"

# The deformation lives on a grid of 4 mm; its fields are smooth on that scale.
COARSE_MM = 4


@dataclass(frozen=True)
class Region:
    """What one unit of strength does.

    `growth`: logarithm of the growth of structures. The grid blurs them, the more so the smaller
    the structure: what is achieved is less. `thinning` and `loss`: parts of the cortical rim and of
    the hippocampi that become CSF; `opening`: how much further the temporal horns are open.
    """

    growth: Mapping[str, float]
    thinning: float = 0.0
    loss: float = 0.0
    opening: float = 0.0


# In the order of `population.AD[model].regions`.
REGIONS: dict[Model, tuple[Region, ...]] = {
    "additive": (
        Region({"ventricles": 0.40, "horns": 0.90, "hippocampi": -0.36}, 0.16, 0.05, 0.22),
    ),
    "place": (
        Region({"horns": 0.90, "hippocampi": -0.36}, loss=0.05, opening=0.22),
        Region({"fissures": 1.00, "banks": -0.30}, thinning=0.35),
    ),
}

# Axes in MNI mm on the right side, from front to back: of the hippocampus, and of the temporal
# horn that lies along its upper outer edge.
_HIPPOCAMPUS = (
    (24.0, -11.0, -20.0),
    (26.5, -17.0, -16.5),
    (28.5, -25.0, -12.5),
    (29.0, -31.0, -8.0),
    (26.0, -36.5, -3.0),
)
_HIPPOCAMPUS_MM = 7.5
_HORN = (
    (33.5, -8.0, -23.5),
    (36.5, -14.0, -19.0),
    (38.5, -21.0, -14.5),
    (37.5, -28.0, -9.0),
    (36.0, -33.0, -4.0),
)
_HORN_MM = 2.2
# The Sylvian fissure, from front to back, and how far its banks reach.
_FISSURE = ((42.0, 16.0, -4.0), (43.0, 2.0, 2.0), (44.0, -14.0, 7.0), (46.0, -28.0, 13.0))
_BANKS_MM = 14.0
# A box around hippocampi and horns, which saves time: lowest and highest x, y, z.
_TEMPORAL_MM = ((-52.0, 52.0), (-50.0, 4.0), (-36.0, 12.0))

Path3 = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Template:
    """The template on the grid of one spacing, and the fields of the coarse grid.

    `channels [6 or 7, X, Y, Z]`: T1, hippocampi, ventricles, temporal horns, the cortical rim that
    thins, brain mask; of the model `place` also the CSF of the Sylvian fissures. `affine [4, 4]` to
    MNI mm (RAS). `fields [R, 3, x, y, z]`: Σ_i g_i u_i of each of the `regions`, in mm. `csf`: the
    T1 value of CSF.
    """

    channels: Tensor
    affine: NDArray[np.float64]
    spacing: float
    regions: tuple[Region, ...]
    fields: Tensor
    csf: float

    @cached_property
    def _cells(self) -> Tensor:
        """Whether a cell of 8 voxels has any that is not 0 `[X + 3, Y + 3, Z + 3]`.

        Cell i lies between the voxels i - 2 and i - 1, the outermost ones in the air.
        """
        used = (self.channels != 0).any(0)[None].float()
        return max_pool3d(pad(used, (2, 2, 2, 2, 2, 2)), 2, 1)[0] > 0

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest voxel coordinates `[3]` of what `touched` may find."""
        used = self._cells.nonzero()
        return used.amin(0) - 2, used.amax(0) - 1

    def touched(self, points: Tensor) -> Tensor:
        """Which voxel coordinates `points [..., 3]` may have samples other than 0."""
        sizes = self._cells.shape
        index = torch.zeros(points.shape[:-1], dtype=torch.int64)
        for axis, size in enumerate(sizes):
            cell = (points[..., axis].floor() + 2).clamp(0, size - 1)
            index = index * size + cell.long()
        return self._cells.flatten()[index]


def _distance_to_path(points: Float, path: Path3) -> Float:
    """Distance in mm of `points [..., 3]` to a polyline, on both sides of the brain."""
    folded = points.copy()
    folded[..., 0] = np.abs(folded[..., 0])
    best = np.full(points.shape[:-1], np.inf, np.float32)
    for start, end in pairwise(path):
        a, d = np.asarray(start, np.float32), np.subtract(end, start, dtype=np.float32)
        t = np.clip((folded - a) @ d / float(d @ d), 0, 1)
        best = np.minimum(best, np.linalg.norm(folded - a - t[..., None] * d, axis=-1))
    return best


def _temporal(gm: Float, brain: Float, origin: Float) -> tuple[Float, Float]:
    """Masks of the hippocampi and the temporal horns `[X, Y, Z]` on the template's 1 mm grid."""
    limits = np.asarray(_TEMPORAL_MM) - origin[:, None]
    box = tuple(slice(round(low), round(high) + 1) for low, high in limits)
    axes = [np.arange(b.start, b.stop) + o for b, o in zip(box, origin, strict=True)]
    mm = np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)
    horn, hippocampus = np.zeros_like(gm), np.zeros_like(gm)
    horn[box] = np.exp(-0.5 * (_distance_to_path(mm, _HORN) / _HORN_MM) ** 2) * brain[box]
    near = np.clip(_HIPPOCAMPUS_MM + 0.5 - _distance_to_path(mm, _HIPPOCAMPUS), 0, 1)
    hippocampus[box] = gm[box] * near * (1 - horn[box])
    return hippocampus, horn


def _ventricles(csf: Float, depth: Float, origin: Float) -> Float:
    """The mask of the lateral ventricles: the largest deep piece of CSF on each side."""
    from scipy import ndimage

    x, _, z = (np.arange(n) + o for n, o in zip(csf.shape, origin, strict=True))
    deep = (csf > 0.5) & (depth > 22)
    deep &= ((np.abs(x) > 1.5) & (np.abs(x) < 34))[:, None, None] & ((z > -4) & (z < 34))
    labels, _ = ndimage.label(deep)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    two = np.zeros(len(sizes), bool)
    two[np.argsort(sizes)[-2:]] = True
    return np.where(two[labels], csf, np.float32(0))


def _around_the_fissures(shape: tuple[int, ...], origin: Float) -> Float:
    """1 near the Sylvian fissures, falling to 0 within 4 mm, `[X, Y, Z]`."""
    axes = [np.arange(n) + o for n, o in zip(shape, origin, strict=True)]
    mm = np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)
    near: Float = np.clip((_BANKS_MM - _distance_to_path(mm, _FISSURE)) / 4 + 0.5, 0, 1)
    return near


def load_template(spacing: float, model: Model = "additive") -> Template:
    """Read and prepare the template for voxels of `spacing` mm (1 or 2).

    Raises:
        MissingExtraError: nilearn (or scipy) is not installed.
    """
    try:
        from scipy import ndimage
    except ImportError:
        raise MissingExtraError("scipy", "simulate", PURPOSE) from None
    from hyperfusion_rt.data.volumes import read_volume

    volumes = {
        kind: read_volume(path) for kind, path in template_files("simulate", PURPOSE).items()
    }
    affine, step = volumes["t1"].affine.copy(), round(spacing)
    t1, gm, wm = (np.asarray(volumes[kind].voxels, np.float32) for kind in ("t1", "gm", "wm"))
    brain = (t1 > 0).astype(np.float32)
    if step == 2:
        # Voxels of 2 mm are to lie alike on both sides of the midline, which is a voxel of the
        # template. Otherwise one of two mirrored boxes falls half-way between voxels, and how the
        # scan is stored decides which of them it gets.
        t1, gm, wm, brain = ((v[1:] + v[:-1]) * np.float32(0.5) for v in (t1, gm, wm, brain))
        affine[0, 3] += 0.5
    # A multiple of 4 voxels on each axis, so that blocks of 4 mm fill the grid.
    keep = tuple(slice(0, n - n % COARSE_MM) for n in t1.shape)
    t1, brain = t1[keep], brain[keep]
    gm, wm = gm[keep] / np.float32(255), wm[keep] / np.float32(255)
    origin = affine[:3, 3].astype(np.float32)
    csf = np.clip(1 - gm - wm, 0, 1) * brain
    # At 2 mm the distance to the brain's surface costs an eighth, and is as good here.
    depth = 2 * ndimage.distance_transform_edt(_blocks(brain, 2) > 0.5).astype(np.float32)
    depth = depth.repeat(2, 0).repeat(2, 1).repeat(2, 2)

    hippocampi, horns = _temporal(gm, brain, origin)
    ventricles = _ventricles(csf, depth, origin)
    outer_csf = np.where(depth < 22, csf, 0) + (1 - brain)
    rim = gm * np.clip(2 * ndimage.gaussian_filter(outer_csf, 1.5, truncate=2.5), 0, 1)
    # The hippocampus shrinks; it is no cortex to be thinned.
    rim *= 1 - np.clip(2 * hippocampi, 0, 1)

    masks = {"ventricles": ventricles, "horns": horns, "hippocampi": hippocampi}
    if model == "place":
        near = _around_the_fissures(t1.shape, origin)
        rim *= near
        masks |= {"fissures": near * csf, "banks": near * gm}
    coarse = {name: _blocks(mask, COARSE_MM) for name, mask in masks.items()}
    fields = []
    for region in REGIONS[model]:
        strengths = np.asarray(list(region.growth.values()))
        fields.append(
            _growing(np.tensordot(strengths, np.stack([coarse[n] for n in region.growth]), 1))
        )
    channels = [_blocks(c, step) for c in (t1, hippocampi, ventricles, horns, rim, brain)]
    if "fissures" in masks:
        channels.append(_blocks(masks["fissures"], step))
    value = float(np.median(t1[ventricles > 0.9]))
    affine[:3, :3] *= step
    affine[:3, 3] += (step - 1) / 2
    return Template(
        torch.from_numpy(np.stack(channels)),
        affine,
        float(step),
        REGIONS[model],
        torch.stack(fields),
        value,
    )


def _blocks(volume: Float, step: int) -> Float:
    """Means over blocks of `step`³ voxels."""
    if step == 1:
        return volume
    shape = [n for size in volume.shape for n in (size // step, step)]
    # The last axis first: it is contiguous, and the rest is then smaller.
    means: Float = volume.reshape(shape).mean(5).mean(3).mean(1)
    return means


def _growing(growth: NDArray[np.float64]) -> Tensor:
    """The field `u [3, x, y, z]` in mm on the coarse grid with `∇·u = -growth` and no curl.

    `û = i k ĝ / |k|²`, in the Fourier domain; φ = exp(u) maps the image to the template, so that
    a structure grows where φ contracts.
    """
    spectrum = np.fft.rfftn(growth)
    k = [2 * np.pi * np.fft.fftfreq(n, COARSE_MM) for n in growth.shape[:2]]
    k.append(2 * np.pi * np.fft.rfftfreq(growth.shape[2], COARSE_MM))
    waves = np.stack(np.meshgrid(*k, indexing="ij"))
    square = (waves**2).sum(0)
    square[0, 0, 0] = np.inf  # the mean cannot grow on a torus
    field = np.fft.irfftn(1j * waves * spectrum / square, growth.shape, axes=(1, 2, 3))
    return torch.from_numpy(field.astype(np.float32))
