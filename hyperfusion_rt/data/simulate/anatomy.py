"""One template, many brains: deformed, thinned, and made noisy.

A subject is `T(φ(x))` with φ = exp(v): the flow of a stationary velocity field

    v = smooth random field + Σ_r s_r · field of region r   (template.py)

by scaling and squaring (Arsigny et al., MICCAI 2006), so that φ is a diffeomorphism. s grows with
the region's atrophy. Then the temporal horns open, cortex that borders on CSF darkens towards CSF
(thinning), and a bias field, a gain and Rician noise are added inside the brain; outside the volume
is 0.

Another scan of the same subject has the same φ. Bias field, gain and noise are new, and the head
lies a little differently, by what a registration to MNI space leaves: a few tenths of a millimetre
and of a degree.

A FLAIR image is made of the same brain: CSF dark, grey matter brighter than white, and bright
lesions around the ventricles that grow with age. Its slices are twice as thick as the T1's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool3d, grid_sample, interpolate

from hyperfusion_rt.data.simulate.template import COARSE_MM, Template

Float = NDArray[np.float32]

_SQUARINGS = 5
_RANDOM_MM, _RANDOM_SIGMA_MM = 1.6, 22.0
# How far the temporal horns are open at no strength.
_OPEN = 0.25
_WHITE, _NOISE = 190.0, 0.03
# What a registration leaves of a head's pose, per axis.
_POSE_MM, _POSE_DEGREES = 0.3, 0.3


def strength(atrophy: float) -> float:
    """The strength of the deformation, monotonic in the atrophy, without folding far out."""
    return 4.0 * math.tanh((atrophy + 0.5) / 4.0)


def velocity(template: Template, strengths: Sequence[float], rng: np.random.Generator) -> Tensor:
    """The velocity field in mm `[3, x, y, z]` on the coarse grid."""
    from scipy import ndimage

    shape = template.fields.shape[2:]
    sigma = _RANDOM_SIGMA_MM / COARSE_MM
    white = rng.standard_normal((3, *shape), np.float32)
    noise = np.stack([ndimage.gaussian_filter(axis, sigma) for axis in white])
    noise *= _RANDOM_MM / noise.std()
    return torch.from_numpy(noise) + _weighted(strengths, template.fields)


def _weighted(strengths: Sequence[float], of_regions: Sequence[Tensor] | Tensor) -> Tensor:
    """Σ_r s_r · x_r."""
    total: Tensor = sum(s * x for s, x in zip(strengths, of_regions, strict=True))
    return total


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
        points = grid + displacement.permute(1, 2, 3, 0) / COARSE_MM
        displacement = displacement + _sample(displacement, points, "border")
    return displacement


def jacobian(displacement: Tensor) -> Tensor:
    """The determinant of dφ/dx `[x, y, z]` for a displacement in mm on the coarse grid."""
    rows = [torch.stack(torch.gradient(d, spacing=COARSE_MM)) for d in displacement]
    for axis, row in enumerate(rows):
        row[axis] += 1
    determinant: Tensor = (rows[0] * torch.linalg.cross(rows[1], rows[2], dim=0)).sum(0)
    return determinant


@dataclass(frozen=True)
class Head:
    """What can be scanned.

    `displacement [3, x, y, z]` in mm on the coarse grid; `strengths`, one per region.
    """

    displacement: Tensor
    strengths: tuple[float, ...]
    smallest_jacobian: float


@dataclass(frozen=True)
class Brain:
    """A simulated scan `int16 [X, Y, Z]` (RAS) and its achieved volumes in ml.

    `fissures_ml`: the CSF of the Sylvian fissures, with what their banks have lost; None where no
    region has them.
    """

    voxels: NDArray[np.int16]
    affine: NDArray[np.float64]
    hippocampi_ml: float
    ventricles_ml: float
    fissures_ml: float | None
    smallest_jacobian: float
    flair: NDArray[np.int16] | None = None
    flair_affine: NDArray[np.float64] | None = None


def make_head(template: Template, atrophy: Sequence[float], rng: np.random.Generator) -> Head:
    """The head of a subject with this atrophy of each of the template's regions."""
    strengths = tuple(map(strength, atrophy))
    displacement = exponential(velocity(template, strengths, rng))
    return Head(displacement, strengths, float(jacobian(displacement).min()))


def pose(template: Template, rng: np.random.Generator) -> NDArray[np.float64]:
    """A rotation and a shift `[4, 4]` of voxel coordinates, as a registration leaves them."""
    from scipy.spatial.transform import Rotation

    angles, shift = rng.normal(0, _POSE_DEGREES, 3), rng.normal(0, _POSE_MM, 3)
    moved = np.eye(4)
    moved[:3, :3] = Rotation.from_rotvec(angles, degrees=True).as_matrix()
    # About the middle of the volume.
    centre = (np.asarray(template.channels.shape[1:]) - 1) / 2
    moved[:3, 3] = centre - moved[:3, :3] @ centre + shift / template.spacing
    return moved


def scan(
    template: Template,
    head: Head,
    rng: np.random.Generator,
    *,
    moved: NDArray[np.float64] | None = None,
    flair: tuple[float, np.random.Generator] | None = None,
) -> Brain:
    """Scan a head: bias field, gain and noise come from `rng`.

    `moved`: its `pose`. `flair`: with a FLAIR image; how bright its lesions are, 0 to 1, and what
    it is drawn with.
    """
    shape = tuple(template.channels.shape[1:])
    fine = interpolate(head.displacement[None], shape, mode="trilinear", align_corners=False)[0]
    box = _box(template, head, moved)
    points = _lookup(shape)[box]
    if moved is None:
        fine = fine[:, box[0], box[1], box[2]]
    else:
        turn, shift = torch.from_numpy(moved[:3].astype(np.float32)).split([3, 1], 1)
        points = points @ turn.T + shift[:, 0]
        fine = _sample(fine, points, "border")
    points = points + fine.permute(1, 2, 3, 0) / template.spacing
    # The rest, three quarters of the voxels, is air.
    seen = torch.zeros(shape, dtype=torch.bool)
    seen[box] = inside = template.touched(points)
    sampled = _sample(template.channels, points[inside][None, None], "zeros")[:, 0, 0]
    t1, hippocampi, ventricles, horns, rim, brain, *fissures = sampled
    regions, ml = template.regions, template.spacing**3 / 1000
    # Tissue that is lost leaves CSF behind; with less atrophy than average there is more of it.
    lost = _weighted(head.strengths, [r.thinning * rim + r.loss * hippocampi for r in regions])
    lost = lost.clamp(-0.2, 0.6)
    fissures_ml = float((fissures[0] + lost * rim).sum()) * ml if fissures else None
    opening = sum(r.opening * s for r, s in zip(regions, head.strengths, strict=True))
    lost = torch.maximum(lost, horns * min(max(_OPEN + opening, 0.0), 1.0))
    clean, at = t1 + lost * (template.csf - t1), seen.numpy()
    image = clean.numpy() * _bias(shape, rng)[at]
    sigma = np.float32(_NOISE * _WHITE)
    real = image + sigma * rng.standard_normal(shape, np.float32)[at]
    imaginary = sigma * rng.standard_normal(shape, np.float32)[at]
    magnitude = np.float32(rng.uniform(2.0, 4.0)) * np.hypot(real, imaginary)
    voxels = np.zeros(shape, np.int16)
    voxels[at] = np.where(brain.numpy() > 0.5, np.clip(np.rint(magnitude), 1, 32000), 0)
    made = Brain(
        voxels,
        template.affine,
        float(hippocampi.sum()) * ml,
        float(ventricles.sum()) * ml,
        fissures_ml,
        head.smallest_jacobian,
    )
    if flair is None:
        return made
    # A FLAIR image, of thicker slices, is made of the whole.
    whole = torch.zeros(3, *shape)
    whole[:, seen] = torch.stack([clean / _WHITE, ventricles, brain])
    image2, affine = _flair(template, whole[0], whole[1], whole[2], *flair)
    return replace(made, flair=image2, flair_affine=affine)


def _box(
    template: Template, head: Head, moved: NDArray[np.float64] | None
) -> tuple[slice, slice, slice]:
    """Voxels outside which nothing of the template can be seen, however the head is deformed."""
    shape = template.channels.shape[1:]
    far = float(head.displacement.abs().max()) / template.spacing
    if moved is not None:
        corners = np.stack(np.meshgrid(*[(0, n) for n in shape])).reshape(3, -1)
        far += float(np.abs(moved[:3, :3] @ corners + moved[:3, 3:] - corners).max())
    first, last = template.bounds
    x, y, z = (
        slice(max(math.floor(low - far), 0), min(math.ceil(high + far) + 1, n))
        for low, high, n in zip(first.tolist(), last.tolist(), shape, strict=True)
    )
    return x, y, z


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
