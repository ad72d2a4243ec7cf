"""The bias field of a scan whose pose is known, without a model of the scanner's contrast.

    log scan(T x) = field(x) + contrast(template(x))

`field` is a polynomial of degree 3, `contrast` any function, piecewise linear; both are found
together by least squares with Geman-McClure weights, over the brain at 4 mm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hyperfusion_rt.data.raw.image import Float, Image, Mask, Matrix, sample, to_mm
from hyperfusion_rt.data.raw.template import CENTER, Level, Template

_DEGREE = 3
_KNOTS = 6  # of the contrast, at quantiles of the template's values
_ROUNDS = 12
_BLOCK = 128  # voxels
_RADIUS = 80.0  # mm
_ROBUST = 2.5  # standard deviations at which a voxel loses its weight
# What is darker than this part of the median is CSF or background, whose logarithm is noise.
_SCAN_LEAST, _TEMPLATE_LEAST = 0.05, 0.3
_SPACING = 4


@dataclass(frozen=True)
class Field:
    """A bias field.

    logarithm: on the template's 4 mm grid, mean 0 in the brain. residual: the robust standard
    deviation of what field and contrast leave of the logarithm. tissues: the brightness of CSF,
    grey and white matter without the field, over the brightest of them. white: the third quartile
    of the brain's brightness without the field, about white matter's.
    """

    logarithm: Float
    residual: float
    tissues: tuple[float, float, float]
    white: float

    def on(self, affine: Matrix, mask: Mask, template: Template) -> Float:
        """The field (a factor) on another grid, where `mask` is set: `[N]`."""
        matrix = np.linalg.inv(template.levels[_SPACING].affine) @ affine
        found: Float = np.exp(
            sample(self.logarithm, matrix, mask.shape, nearest=True, mask=mask)[mask]
        )
        return found

    def flattened(self, scan: Image, transform: Matrix, template: Template) -> Image:
        """The scan without the field, and nothing brighter than white matter (fat, vessels)."""
        level = template.levels[_SPACING]
        matrix = np.linalg.inv(level.affine) @ np.linalg.inv(transform) @ scan.affine
        field = np.exp(sample(self.logarithm, matrix, scan.voxels.shape, nearest=True))
        return replace(scan, voxels=np.minimum(scan.voxels / field, np.float32(self.white)))


def _powers(level: Level, index: Matrix) -> Matrix:
    """x^i y^j z^k, without 1, `[terms, N]`."""
    x, y, z = (to_mm(level.affine, index) - CENTER[:, None]) / _RADIUS
    degrees = range(_DEGREE + 1)
    exponents = [(i, j, k) for i in degrees for j in degrees for k in degrees]
    chosen = [e for e in exponents if 0 < sum(e) <= _DEGREE]
    return np.stack([x**i * y**j * z**k for i, j, k in chosen])


def _products(left: Matrix, right: Matrix) -> Matrix:
    """`left [I, N]` times `right [J, N]` transposed, `[I, J]`: the same bits for all threads.

    In blocks of N so small that BLAS takes one thread for each.
    """
    whole = left.shape[1] // _BLOCK * _BLOCK
    blocks = (len(left), -1, _BLOCK), (len(right), -1, _BLOCK)
    first = left[:, :whole].reshape(blocks[0]).transpose(1, 0, 2)
    second = right[:, :whole].reshape(blocks[1]).transpose(1, 2, 0)
    found: Matrix = np.matmul(first, second).sum(0) + left[:, whole:] @ right[:, whole:].T
    return found


def _sum(weights: Matrix, rows: Matrix) -> Matrix:
    """`weights [K]` times `rows [K, N]`, without BLAS."""
    found: Matrix = np.einsum("k,kn->n", weights, rows)
    return found


def _robust(columns: Matrix, values: Matrix) -> tuple[Matrix, float]:
    """Coefficients `[terms]`, and the residuals' standard deviation."""
    weights = np.ones_like(values)
    with_values = np.concatenate([columns, values[None]])
    for _ in range(_ROUNDS):
        both = _products(columns * weights, with_values)
        left, right = both[:, :-1], both[:, -1]
        left[np.diag_indices_from(left)] += 1e-6 * weights.sum()
        found = np.asarray(np.linalg.solve(left, right), np.float64)
        residuals = values - _sum(found, columns)
        scale = 1.4826 * float(np.median(np.abs(residuals))) + 1e-9
        weights = 1 / (1 + (residuals / (_ROBUST * scale)) ** 2) ** 2
    return found, scale


def find_field(template: Template, scan: Image, transform: Matrix) -> Field:
    """The field of a scan, smoothed as the template at 4 mm is."""
    level = template.levels[_SPACING]
    matrix = np.linalg.inv(scan.affine) @ transform @ level.affine
    image = sample(scan.voxels, matrix, level.image.shape, nearest=True)
    brain = level.away == 0
    values, model = image[brain].astype(np.float64), level.image[brain].astype(np.float64)
    middle = float(np.median(values))
    used = (values > _SCAN_LEAST * middle) & (model > _TEMPLATE_LEAST * np.median(model))
    if middle <= 0 or np.count_nonzero(used) < 1000:
        return Field(np.zeros_like(level.image), np.inf, (0.0, 0.0, 0.0), 0.0)
    # Beyond the brain the polynomial says nothing: it goes on as at the border of its box.
    low, high = (f(np.nonzero(brain), axis=1)[:, None] for f in (np.min, np.max))
    index = np.clip(np.indices(level.image.shape).reshape(3, -1), low, high)
    everywhere = _powers(level, index.astype(np.float64))
    powers = everywhere[:, brain.ravel()]
    knots = np.quantile(model[used], np.linspace(0, 1, _KNOTS))
    hats = np.stack([np.interp(model, knots, hat) for hat in np.eye(_KNOTS)])
    columns = np.concatenate([powers, hats])[:, used]
    found, residual = _robust(columns, np.log(values[used]))
    own = _sum(found[: len(powers)], powers)
    even = values * np.exp(own.mean() - own)
    tissues, _ = _robust(template.parts[:, brain].astype(np.float64), even)
    brightest = float(np.abs(tissues).max()) + 1e-30
    logarithm = (_sum(found[: len(powers)], everywhere) - own.mean()).reshape(level.image.shape)
    csf, grey, white = (float(one) / brightest for one in tissues)
    level_of_white = float(np.percentile(even, 75))
    return Field(logarithm.astype(np.float32), residual, (csf, grey, white), level_of_white)
