"""A picture of a registered scan for the eye: three planes of the head, the template's outline."""

from __future__ import annotations

import base64

import numpy as np

from hyperfusion_rt.data.png import outline, png
from hyperfusion_rt.data.raw.field import Field
from hyperfusion_rt.data.raw.image import Image, Mask, Matrix, sample
from hyperfusion_rt.data.raw.template import Template

_STEP = 1.5  # mm: three planes in less than 60 KB
# What is cut: across an axis, at so many mm of the template.
_PLANES = ((2, 10.0, "axial"), (1, -20.0, "coronal"), (0, 2.0, "sagittal"))
_GAP = 4
# Levels of grey: the eye sees no more than the first; the others where noise makes the file large.
_LEVELS = (64, 32, 16, 8)
_BYTES = 60_000
_LINE, _BORDER = "#ffd400", "#35a7ff"


def _plane(template: Template, axis: int, at: float) -> tuple[Matrix, tuple[int, ...]]:
    """From an index of the picture's plane to mm, and its shape, of three axes, one of length 1."""
    shape = np.array(template.mask.shape)
    matrix = template.affine @ np.diag([_STEP, _STEP, _STEP, 1.0])
    matrix[axis, 3] = at
    size = np.ceil(shape / _STEP).astype(int)
    size[axis] = 1
    return matrix, tuple(int(n) for n in size)


def picture(scan: Image, template: Template, transform: Matrix, field: Field, kept: Mask) -> str:
    """An SVG of the scan (with what lies around the brain, without the bias field), ≤ 60 KB.

    `kept`: what of it is written, on the template's 1 mm grid; its border is drawn, too.
    """
    planes, outlines, borders = [], [], []
    for axis, at, _ in _PLANES:
        matrix, shape = _plane(template, axis, at)
        values = sample(scan.voxels, np.linalg.inv(scan.affine) @ transform @ matrix, shape)
        everywhere = np.ones(shape, np.bool_)
        values /= field.on(matrix, everywhere, template).reshape(shape)
        to_mask = np.linalg.inv(template.affine) @ matrix
        brain, cut = (
            sample(mask.astype(np.float32), to_mask, shape) > 0.5 for mask in (template.mask, kept)
        )
        # To the eye: up is up, front is up or to the left; the left of the head is on the left.
        planes.append(np.rot90(values.squeeze(axis)))
        outlines.append(np.rot90(brain.squeeze(axis)))
        borders.append(np.rot90(cut.squeeze(axis)))
    bright = np.concatenate([p[m] for p, m in zip(planes, outlines, strict=True)])
    white = max(float(np.percentile(bright, 99)) * 1.15, 1e-30) if bright.size else 1.0
    paths, left = [], 0
    height = max(plane.shape[0] for plane in planes)
    width = sum(plane.shape[1] for plane in planes) + _GAP * (len(planes) - 1)
    shown = np.zeros((height, width))
    for plane, brain, border in zip(planes, outlines, borders, strict=True):
        rows, columns = plane.shape
        top = (height - rows) // 2
        shown[top : top + rows, left : left + columns] = np.clip(plane / white, 0, 1)
        for inside, colour in ((border, _BORDER), (brain, _LINE)):
            paths.append(
                f'<path transform="translate({left} {top})" stroke="{colour}" '
                f'd="{outline(inside)}"/>'
            )
        left += columns + _GAP
    lines = "".join(paths)
    for levels in _LEVELS:
        grey = np.rint(shown * (levels - 1)) * (255 / (levels - 1))
        data = base64.b64encode(png(np.rint(grey).astype(np.uint8))).decode()
        if len(data) + len(lines) < _BYTES - 500:
            break
    names = ", ".join(f"{name} at {at:g} mm" for _, at, name in _PLANES)
    title = f"The registered head: {names}; yellow: the template's brain; blue: what is kept"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{2 * width}" role="img"><title>{title}</title>'
        f'<image width="{width}" height="{height}" href="data:image/png;base64,{data}"/>'
        f'<g fill="none" stroke-width="0.7">{lines}</g></svg>\n'
    )
