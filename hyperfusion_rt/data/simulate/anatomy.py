"""One template, many brains: the MNI152 template deformed, thinned, and made noisy.

The template (T1, grey and white matter maps; MNI152 2009a symmetric, 1 mm) is the copy that the
nilearn package ships: Fonov et al., NeuroImage 2011. nilearn's documentation calls its licence
unknown; the McConnell Brain Imaging Centre, MNI, permits redistribution with its notice. Nothing of
it is in this package.

A subject is `T(φ(x))` with φ = exp(v): the flow of a stationary velocity field

    v = smooth random field + s · (a_v ∇S_ventricles - a_h ∇S_hippocampi + ...),

by scaling and squaring (Arsigny et al., MICCAI 2006), so that φ is a diffeomorphism. S is a
smoothed mask: sampling inwards along ∇S enlarges a structure, outwards shrinks it. The strength s
grows with the atrophy. Then the cortex darkens towards CSF where it borders on CSF (thinning), and
a bias field, a gain and Rician noise are added inside the brain; outside the volume is 0.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from hyperfusion_rt.errors import MissingExtraError

Float = NDArray[np.float32]

# The deformation lives on a grid of 4 mm; its fields are smooth on that scale.
_COARSE_MM = 4
_SQUARINGS = 5
# Millimetres of velocity at the edge of a structure, per unit of strength.
_VENTRICLE_MM, _HORN_MM, _HIPPOCAMPUS_MM = 1.0, 1.2, 0.85
_RANDOM_MM, _RANDOM_SIGMA_MM = 1.6, 22.0
_THINNING = 0.10
_HIPPOCAMPAL_CSF = 0.15
_NOISE = 0.03

# The hippocampus' axis, front to back, and the temporal horn beside it (right side, MNI mm).
_HIPPOCAMPUS = ((22.0, -10.0, -20.0), (27.0, -22.0, -15.0), (30.0, -33.0, -7.0))
_HORN = ((29.0, -8.0, -19.0), (34.0, -22.0, -14.0), (36.0, -36.0, -4.0))


@dataclass(frozen=True)
class Template:
    """The template on the grid of one spacing, and the fields of the coarse grid.

    `channels [5, X, Y, Z]`: T1, hippocampi, ventricles, cortical rim, brain mask; `affine [4, 4]`
    to MNI mm (RAS); `fields [3, 3, x, y, z]`: unit velocities of ventricles, horns, hippocampi, in
    mm; `csf`: the T1 value of CSF.
    """

    channels: Tensor
    affine: NDArray[np.float64]
    spacing: float
    fields: Tensor
    csf: float


def template_files() -> dict[str, Path]:
    """The paths of `t1`, `gm` and `wm` inside the installed nilearn package.

    Raises:
        MissingExtraError: nilearn is not installed, or has no template.
    """
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise MissingExtraError("nilearn", "simulate", "the simulated cohort")
    folder = Path(spec.origin).parent / "datasets" / "data"
    names = {
        kind: folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        for kind in ("t1", "gm", "wm")
    }
    if not all(path.exists() for path in names.values()):
        raise MissingExtraError("nilearn>=0.11", "simulate", "the template of the simulated cohort")
    return names


def _distance_to_path(points: Float, path: tuple[tuple[float, float, float], ...]) -> Float:
    """Distance in mm of `points [..., 3]` to a polyline, on both sides of the brain."""
    folded = points.copy()
    folded[..., 0] = np.abs(folded[..., 0])
    best = np.full(points.shape[:-1], np.inf, np.float32)
    for start, end in zip(path[:-1], path[1:], strict=True):
        a, d = np.asarray(start, np.float32), np.subtract(end, start, dtype=np.float32)
        t = np.clip((folded - a) @ d / float(d @ d), 0, 1)
        best = np.minimum(best, np.linalg.norm(folded - a - t[..., None] * d, axis=-1))
    return best


def load_template(spacing: float) -> Template:
    """Read and prepare the template for voxels of `spacing` mm (1 or 2).

    Raises:
        MissingExtraError: nilearn (or scipy) is not installed.
    """
    try:
        from scipy import ndimage
    except ImportError:
        raise MissingExtraError("scipy", "simulate", "the simulated cohort") from None
    from hyperfusion_rt.data.volumes import read_volume

    volumes = {kind: read_volume(path) for kind, path in template_files().items()}
    affine = volumes["t1"].affine.copy()
    t1, gm, wm = (np.asarray(volumes[k].voxels, np.float32) for k in ("t1", "gm", "wm"))
    gm, wm = gm / 255, wm / 255
    # An even number of voxels, so that blocks of 4 mm fill the grid.
    keep = tuple(slice(0, n - n % _COARSE_MM) for n in t1.shape)
    t1, gm, wm = t1[keep], gm[keep], wm[keep]
    index = np.stack(np.meshgrid(*map(np.arange, t1.shape), indexing="ij"), -1).astype(np.float32)
    mm = index + affine[:3, 3].astype(np.float32)

    brain = (t1 > 0).astype(np.float32)
    csf = np.clip(1 - gm - wm, 0, 1) * brain
    depth = ndimage.distance_transform_edt(brain)
    hippocampus = gm * (_distance_to_path(mm, _HIPPOCAMPUS) < 8)
    deep = (csf > 0.5) & (depth > 22) & (mm[..., 2] > -4) & (mm[..., 2] < 34)
    deep &= (np.abs(mm[..., 0]) < 34) & (np.abs(mm[..., 0]) > 1.5)
    labels, _ = ndimage.label(deep)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    # One ventricle on each side: the two largest pieces.
    ventricles = np.isin(labels, np.argsort(sizes)[-2:]).astype(np.float32) * csf
    horn = np.exp(-0.5 * (_distance_to_path(mm, _HORN) / 3.0) ** 2) * brain
    smooth_csf = ndimage.gaussian_filter(np.where(depth < 22, csf, 0) + (1 - brain), 1.5)
    rim = gm * np.clip(2 * smooth_csf, 0, 1)

    fields = [
        _unit_field(ndimage.gaussian_filter(mask, 4.0)) for mask in (ventricles, horn, hippocampus)
    ]
    step = round(spacing)
    channels = np.stack(
        [_blocks(c, step) for c in (t1, hippocampus, ventricles, rim, brain)]
    )
    affine[:3, :3] *= step
    affine[:3, 3] += (step - 1) / 2
    value = float(np.median(t1[ventricles > 0.9]))
    return Template(torch.from_numpy(channels), affine, float(step), torch.stack(fields), value)


def _blocks(volume: Float, step: int) -> Float:
    """Means over blocks of `step`³ voxels."""
    if step == 1:
        return volume
    shape = [n for size in volume.shape for n in (size // step, step)]
    return volume.reshape(shape).mean((1, 3, 5))


def _unit_field(potential: Float) -> Tensor:
    """The gradient of a smoothed mask on the coarse grid `[3, x, y, z]`, 1 at its steepest."""
    gradient = np.stack(np.gradient(potential))
    coarse = np.stack([_blocks(axis.astype(np.float32), _COARSE_MM) for axis in gradient])
    return torch.from_numpy(coarse / np.linalg.norm(coarse, axis=0).max())


def strength(atrophy: float) -> float:
    """The strength of the deformation, monotonic in the atrophy, without folding far out."""
    return 4.0 * math.tanh((atrophy + 0.5) / 4.0)


def velocity(template: Template, atrophy: float, rng: np.random.Generator) -> Tensor:
    """The velocity field in mm `[3, x, y, z]` on the coarse grid."""
    from scipy import ndimage

    shape = template.fields.shape[2:]
    sigma = _RANDOM_SIGMA_MM / _COARSE_MM
    noise = np.stack(
        [ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), sigma) for _ in "xyz"]
    )
    noise *= _RANDOM_MM / noise.std()
    s = strength(atrophy)
    ventricles, horns, hippocampi = template.fields
    shrink = _VENTRICLE_MM * ventricles + _HORN_MM * horns - _HIPPOCAMPUS_MM * hippocampi
    return torch.from_numpy(noise) + s * shrink


def _lookup(shape: tuple[int, ...]) -> Tensor:
    """Voxel coordinates `[x, y, z, 3]` of a grid."""
    return torch.stack(
        torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in shape], indexing="ij"), -1
    )


def _sample(volume: Tensor, points: Tensor, padding: str) -> Tensor:
    """Trilinear: `volume [C, X, Y, Z]` at voxel coordinates `points [x, y, z, 3]`."""
    size = torch.tensor(volume.shape[1:], dtype=torch.float32)
    normalised = (2 * points / (size - 1) - 1).flip(-1)
    found = grid_sample(volume[None], normalised[None], padding_mode=padding, align_corners=True)
    return found[0]


def exponential(field: Tensor) -> Tensor:
    """The displacement in mm `[3, x, y, z]` of the flow of a velocity field, on the same grid."""
    displacement = field / 2**_SQUARINGS
    grid = _lookup(field.shape[1:])
    for _ in range(_SQUARINGS):
        points = grid + displacement.permute(1, 2, 3, 0) / _COARSE_MM
        displacement = displacement + _sample(displacement, points, "border")
    return displacement


def jacobian(displacement: Tensor) -> Tensor:
    """The determinant of dφ/dx `[x, y, z]` for a displacement in mm on the coarse grid."""
    rows = torch.stack([torch.stack(torch.gradient(d, spacing=_COARSE_MM)) for d in displacement])
    matrix = rows.permute(2, 3, 4, 0, 1) + torch.eye(3)
    return torch.linalg.det(matrix)


@dataclass(frozen=True)
class Brain:
    """A simulated scan `int16 [X, Y, Z]` (RAS) and its achieved volumes in ml."""

    voxels: NDArray[np.int16]
    affine: NDArray[np.float64]
    hippocampi_ml: float
    ventricles_ml: float
    smallest_jacobian: float


def make_brain(template: Template, atrophy: float, rng: np.random.Generator) -> Brain:
    """Simulate the scan of a subject with this atrophy."""
    displacement = exponential(velocity(template, atrophy, rng))
    shape = tuple(template.channels.shape[1:])
    fine = interpolate(displacement[None], shape, mode="trilinear", align_corners=False)[0]
    points = _lookup(shape) + fine.permute(1, 2, 3, 0) / template.spacing
    t1, hippocampi, ventricles, rim, brain = _sample(template.channels, points, "zeros")
    s = strength(atrophy)
    # Grey matter that is lost leaves CSF behind; with less atrophy than average there is more.
    lost = torch.clamp(_THINNING * s * rim + _HIPPOCAMPAL_CSF * s * hippocampi, -0.25, 0.6)
    image = (t1 + lost * (template.csf - t1)).numpy()
    inside = brain.numpy() > 0.5
    white = 190.0
    image = image * _bias(shape, rng)
    sigma = _NOISE * white
    real = image + sigma * rng.standard_normal(shape, np.float32)
    imaginary = sigma * rng.standard_normal(shape, np.float32)
    gain = float(rng.uniform(2.0, 4.0))
    magnitude = gain * np.sqrt(real * real + imaginary * imaginary)
    voxels = np.where(inside, np.clip(np.rint(magnitude), 1, 32000), 0).astype(np.int16)
    ml = template.spacing**3 / 1000
    return Brain(
        voxels,
        template.affine,
        float((hippocampi * (1 - lost)).sum()) * ml,
        float(ventricles.sum()) * ml,
        float(jacobian(displacement).min()),
    )


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
