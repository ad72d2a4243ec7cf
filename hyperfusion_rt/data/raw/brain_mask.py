"""What of a registered head is brain: the template's mask, moved to the scan's own edges.

Within 4 mm of the template's border, tissue that hangs together with the middle of the brain is
brain, and bright tissue that does not (dura, fat, muscle) is none. What is dark inside the
template's mask stays: cerebrospinal fluid, or a lesion.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hyperfusion_rt.data.raw.field import Field
from hyperfusion_rt.data.raw.image import Float, Image, Mask, Matrix, sample, smooth
from hyperfusion_rt.data.raw.template import Template
from hyperfusion_rt.data.volumes import read_volume
from hyperfusion_rt.errors import ScanError

# A voxel brighter than this part of the median is brain, where the skull was removed before.
_SUPPORT = 0.1
_GIVEN_OVERLAP = 0.7  # Dice, of a given mask and the template's
_SHELL_MM = (5, 12)  # around the brain: skull and scalp
_OUT_MM = 5  # from the template's mask to a voxel's middle, at 2 mm
_BRIGHTEST = 1.3  # of white matter: more is fat or a vessel with contrast agent


def is_stripped(template: Template, coarse: Image, transform: Matrix) -> bool:
    """Whether next to nothing is bright 5 to 12 mm outside the brain."""
    level = template.levels[4]
    matrix = np.linalg.inv(coarse.affine) @ transform @ level.affine
    image = sample(coarse.voxels, matrix, level.image.shape, mask=level.away < _SHELL_MM[1])
    shell = (level.away > _SHELL_MM[0]) & (level.away < _SHELL_MM[1])
    bright = image[shell] > _SUPPORT * np.median(image[level.away == 0])
    return bool(bright.mean() < 0.1)


def own_outline(template: Template, scan: Image, coarse: Image, transform: Matrix) -> Mask:
    """The brain as it was cut out, without holes, on the template's 1 mm grid."""
    from scipy import ndimage

    level = _SUPPORT * float(np.median(coarse.voxels[coarse.voxels > 0]))
    filled = ndimage.binary_fill_holes(coarse.voxels > level)
    holes = filled & (coarse.voxels <= level)
    found = np.zeros(template.mask.shape, np.bool_)
    for image, part in ((scan, scan.voxels > level), (coarse, holes)):
        matrix = np.linalg.inv(image.affine) @ transform @ template.affine
        values = part.astype(np.float32)
        found |= sample(values, matrix, found.shape, mask=template.around) >= 0.5
    return found


def by_edges(template: Template, even: Float, field: Field) -> Mask:
    """The brain of a head with its skull, on the template's 1 mm grid.

    `even`: the head on the template's 2 mm grid, without the bias field. It is decided there, and
    the border is smoothed by half a voxel.
    """
    from scipy import ndimage

    level = template.levels[2]
    cross, edges = (ndimage.generate_binary_structure(3, n) for n in (1, 2))
    csf, grey, white = field.tissues
    dark = even < (csf + grey) / 2 * field.white / white
    near = level.away < _OUT_MM
    tissue = (~dark & (even < _BRIGHTEST * field.white) & near) | template.core
    # Eroded, so that bridges of a voxel break; grown from the middle; grown back.
    brain = ndimage.binary_erosion(tissue, cross) | template.core
    brain = ndimage.binary_propagation(template.core, cross, mask=brain)
    brain = ndimage.binary_dilation(brain, cross, mask=tissue)
    brain = ndimage.binary_closing(brain, edges, iterations=2) & near
    brain |= (level.away == 0) & dark
    matrix = np.linalg.inv(level.affine) @ template.affine
    soft = smooth(brain.astype(np.float32), np.full(3, 0.5))
    found: Mask = sample(soft, matrix, template.mask.shape, mask=template.around) >= 0.5
    return found


def given(path: Path, template: Template, transform: Matrix) -> Mask:
    """A user's brain mask, on the template's 1 mm grid.

    Raises:
        ScanError: it cannot be read, or is no mask of the brain that was found.
    """
    volume = read_volume(path)
    matrix = np.linalg.inv(volume.affine) @ transform @ template.affine
    values = (np.asarray(volume.voxels) > 0).astype(np.float32)
    found: Mask = sample(values, matrix, template.mask.shape) >= 0.5
    common = np.count_nonzero(found & template.mask)
    overlap = 2 * common / (np.count_nonzero(found) + np.count_nonzero(template.mask))
    if overlap < _GIVEN_OVERLAP:
        raise ScanError(
            f"{path}: this mask and the brain that was found overlap by {overlap:.2f} (Dice), at "
            f"least {_GIVEN_OVERLAP} is needed; is it the brain mask of this scan?",
            code="scan-mask-wrong",
        )
    return found
