"""One template, many brains: the MNI152 template deformed, thinned, and made noisy.

The template (T1, grey and white matter maps; MNI152 2009a symmetric, 1 mm) is the copy that the
nilearn package ships: Fonov et al., NeuroImage 2011. nilearn's documentation calls its licence
unknown; the McConnell Brain Imaging Centre, MNI, permits redistribution with its notice. Nothing of
it is in this package.

A subject is `T(φ(x))` with φ = exp(v): the flow of a stationary velocity field

    v = smooth random field + s · Σ_i g_i u_i,   ∇·u_i = -S_i,   u_i = ∇Φ_i

by scaling and squaring (Arsigny et al., MICCAI 2006), so that φ is a diffeomorphism. S_i is the
mask of a structure (lateral ventricles, temporal horns, hippocampi) and g_i the logarithm of its
growth per unit of the strength s, negative where it shrinks; u_i solves a Poisson equation, so
that the tissue around gives way smoothly. s grows with the atrophy. Then the temporal horns open,
cortex that borders on CSF darkens towards CSF (thinning), and a bias field, a gain and Rician noise
are added inside the brain; outside the volume is 0.

A FLAIR image is made of the same brain: CSF dark, grey matter brighter than white, and bright
lesions around the ventricles that grow with age. Its slices are twice as thick as the T1's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool3d, grid_sample, interpolate

from hyperfusion_rt.data.mni_template import template_files
from hyperfusion_rt.errors import MissingExtraError

Float = NDArray[np.float32]
PURPOSE = "the simulated cohort"

# The deformation lives on a grid of 4 mm; its fields are smooth on that scale.
_COARSE_MM = 4
_SQUARINGS = 5
# Logarithm of the growth of ventricles, temporal horns and hippocampi per unit of strength. The
# grid blurs them, the more so the smaller the structure: what is achieved is less.
_GROWTH = (0.40, 0.90, -0.36)
_RANDOM_MM, _RANDOM_SIGMA_MM = 1.6, 22.0
# Parts of grey matter that become CSF per unit of strength.
_THINNING, _HIPPOCAMPAL_LOSS = 0.16, 0.05
# How far the temporal horns are open, at no strength and per unit of it.
_OPEN, _OPENING = 0.25, 0.22
_WHITE, _NOISE = 190.0, 0.03

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
# A box around both, which saves time: lowest and highest x, y, z.
_TEMPORAL_MM = ((-52.0, 52.0), (-50.0, 4.0), (-36.0, 12.0))

Path3 = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Template:
    """The template on the grid of one spacing, and the fields of the coarse grid.

    `channels [6, X, Y, Z]`: T1, hippocampi, ventricles, temporal horns, cortical rim, brain mask;
    `affine [4, 4]` to MNI mm (RAS); `atrophy [3, x, y, z]`: Σ_i g_i u_i in mm; `csf`: the T1 value
    of CSF.
    """

    channels: Tensor
    affine: NDArray[np.float64]
    spacing: float
    atrophy: Tensor
    csf: float


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


def load_template(spacing: float) -> Template:
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
    keep = tuple(slice(0, n - n % _COARSE_MM) for n in t1.shape)
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

    masks = (ventricles, horns, hippocampi)
    growth = np.tensordot(
        np.asarray(_GROWTH), np.stack([_blocks(mask, _COARSE_MM) for mask in masks]), 1
    )
    channels = [_blocks(c, step) for c in (t1, hippocampi, ventricles, horns, rim, brain)]
    value = float(np.median(t1[ventricles > 0.9]))
    affine[:3, :3] *= step
    affine[:3, 3] += (step - 1) / 2
    return Template(
        torch.from_numpy(np.stack(channels)), affine, float(step), _growing(growth), value
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
    k = [2 * np.pi * np.fft.fftfreq(n, _COARSE_MM) for n in growth.shape[:2]]
    k.append(2 * np.pi * np.fft.rfftfreq(growth.shape[2], _COARSE_MM))
    waves = np.stack(np.meshgrid(*k, indexing="ij"))
    square = (waves**2).sum(0)
    square[0, 0, 0] = np.inf  # the mean cannot grow on a torus
    field = np.fft.irfftn(1j * waves * spectrum / square, growth.shape, axes=(1, 2, 3))
    return torch.from_numpy(field.astype(np.float32))


def strength(atrophy: float) -> float:
    """The strength of the deformation, monotonic in the atrophy, without folding far out."""
    return 4.0 * math.tanh((atrophy + 0.5) / 4.0)


def velocity(template: Template, atrophy: float, rng: np.random.Generator) -> Tensor:
    """The velocity field in mm `[3, x, y, z]` on the coarse grid."""
    from scipy import ndimage

    shape = template.atrophy.shape[1:]
    sigma = _RANDOM_SIGMA_MM / _COARSE_MM
    white = rng.standard_normal((3, *shape), np.float32)
    noise = np.stack([ndimage.gaussian_filter(axis, sigma) for axis in white])
    noise *= _RANDOM_MM / noise.std()
    field: Tensor = torch.from_numpy(noise) + strength(atrophy) * template.atrophy
    return field


def _lookup(shape: tuple[int, ...]) -> Tensor:
    """Voxel coordinates `[x, y, z, 3]` of a grid."""
    return torch.stack(
        torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in shape], indexing="ij"), -1
    )


def _sample(volume: Tensor, points: Tensor, padding: str) -> Tensor:
    """Trilinear: `volume [C, X, Y, Z]` at voxel coordinates `points [x, y, z, 3]`."""
    size = torch.tensor(volume.shape[1:], dtype=torch.float32)
    normalised = (2 * points / (size - 1) - 1).flip(-1)
    found: Tensor = grid_sample(
        volume[None], normalised[None], padding_mode=padding, align_corners=True
    )[0]
    return found


def exponential(field: Tensor) -> Tensor:
    """The displacement in mm `[3, x, y, z]` of the flow of a velocity field, on the same grid."""
    displacement: Tensor = field / 2**_SQUARINGS
    grid = _lookup(field.shape[1:])
    for _ in range(_SQUARINGS):
        points = grid + displacement.permute(1, 2, 3, 0) / _COARSE_MM
        displacement = displacement + _sample(displacement, points, "border")
    return displacement


def jacobian(displacement: Tensor) -> Tensor:
    """The determinant of dφ/dx `[x, y, z]` for a displacement in mm on the coarse grid."""
    rows = torch.stack([torch.stack(torch.gradient(d, spacing=_COARSE_MM)) for d in displacement])
    matrix = rows.permute(2, 3, 4, 0, 1) + torch.eye(3)
    determinant: Tensor = torch.linalg.det(matrix)
    return determinant


@dataclass(frozen=True)
class Brain:
    """A simulated scan `int16 [X, Y, Z]` (RAS) and its achieved volumes in ml."""

    voxels: NDArray[np.int16]
    affine: NDArray[np.float64]
    hippocampi_ml: float
    ventricles_ml: float
    smallest_jacobian: float
    flair: NDArray[np.int16] | None = None
    flair_affine: NDArray[np.float64] | None = None


def make_brain(
    template: Template,
    atrophy: float,
    rng: np.random.Generator,
    flair: tuple[float, np.random.Generator] | None = None,
) -> Brain:
    """Simulate the scan of a subject with this atrophy.

    `flair`: with a FLAIR image; how bright its lesions are, 0 to 1, and what it is drawn with.
    """
    displacement = exponential(velocity(template, atrophy, rng))
    shape = tuple(template.channels.shape[1:])
    fine = interpolate(displacement[None], shape, mode="trilinear", align_corners=False)[0]
    points = _lookup(shape) + fine.permute(1, 2, 3, 0) / template.spacing
    t1, hippocampi, ventricles, horns, rim, brain = _sample(template.channels, points, "zeros")
    s = strength(atrophy)
    # Tissue that is lost leaves CSF behind; with less atrophy than average there is more of it.
    lost = torch.clamp(s * (_THINNING * rim + _HIPPOCAMPAL_LOSS * hippocampi), -0.2, 0.6)
    lost = torch.maximum(lost, horns * min(max(_OPEN + _OPENING * s, 0.0), 1.0))
    image = (t1 + lost * (template.csf - t1)).numpy() * _bias(shape, rng)
    sigma = np.float32(_NOISE * _WHITE)
    real = image + sigma * rng.standard_normal(shape, np.float32)
    imaginary = sigma * rng.standard_normal(shape, np.float32)
    magnitude = np.float32(rng.uniform(2.0, 4.0)) * np.hypot(real, imaginary)
    inside = brain.numpy() > 0.5
    voxels = np.where(inside, np.clip(np.rint(magnitude), 1, 32000), 0).astype(np.int16)
    ml = template.spacing**3 / 1000
    made = Brain(
        voxels,
        template.affine,
        float(hippocampi.sum()) * ml,
        float(ventricles.sum()) * ml,
        float(jacobian(displacement).min()),
    )
    if flair is None:
        return made
    clean = (t1 + lost * (template.csf - t1)) / _WHITE
    image2, affine = _flair(template, clean, ventricles, brain, *flair)
    return replace(made, flair=image2, flair_affine=affine)


def _flair(
    template: Template,
    t1: Tensor,
    ventricles: Tensor,
    brain: Tensor,
    lesions: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """A FLAIR image `int16 [X, Y, Z // 2]` of the brain whose T1 image is `t1` (white: about 1)."""
    csf = template.csf / _WHITE
    tissue = ((t1 - csf) / (1 - csf)).clamp(0, 1.2)  # CSF 0, grey matter about 0.6, white matter 1
    # Rises steeply from CSF to grey matter, and falls a little to white matter.
    signal = 0.1 + 2.2 * tissue.clamp(max=0.6) / 1.2 - 0.5 * (tissue - 0.6).clamp(min=0)
    reach = 2 * round(6 / template.spacing) + 1  # 6 mm around the ventricles
    near = avg_pool3d((ventricles > 0.5).float()[None, None], reach, 1, reach // 2)[0, 0]
    signal = signal + lesions * (4 * near).clamp(max=1) * (tissue > 0.7)
    thick = 0.5 * (signal[:, :, 0::2] + signal[:, :, 1::2])
    inside = (0.5 * (brain[:, :, 0::2] + brain[:, :, 1::2])).numpy() > 0.5
    image = thick.numpy() * _bias(tuple(thick.shape), rng)
    noise = np.float32(_NOISE) * rng.standard_normal((2, *image.shape), np.float32)
    magnitude = 300 * np.hypot(image + noise[0], noise[1])
    voxels = np.where(inside, np.clip(np.rint(magnitude), 1, 32000), 0).astype(np.int16)
    affine = template.affine.copy()
    affine[:3, 3] += 0.5 * affine[:3, 2]
    affine[:3, 2] *= 2
    return voxels, affine


def _bias(shape: tuple[int, ...], rng: np.random.Generator) -> Float:
    """A smooth multiplicative field `exp(quadratic)`, within about 15 % of 1."""
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    c = rng.normal(0, 0.05, 6).astype(np.float32)
    along = (
        (c[0] * x + c[3] * x * x)[:, None, None],
        (c[1] * y + c[4] * y * y)[None, :, None],
        (c[2] * z + c[5] * z * z)[None, None, :],
    )
    result: Float = np.exp(along[0]) * np.exp(along[1]) * np.exp(along[2])
    return result
