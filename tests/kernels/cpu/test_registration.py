"""The kernels of registration against NumPy and SciPy in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from hyperfusion_rt import _native

RNG = np.random.default_rng(3)
SHAPES = st.tuples(*[st.integers(1, 12)] * 3)


def volume(shape, seed=0):
    return np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)


def smooth_volume(shape, seed=0):
    found = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return np.ascontiguousarray(found / found.std() + 5, np.float32)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.tuples(*[st.integers(1, 5)] * 3))
def test_block_means(shape, step):
    v = volume(shape)
    out = np.empty([-(-n // s) for n, s in zip(shape, step, strict=True)], np.float32)
    _native.block_means(v, step, out)
    padded = np.pad(v.astype(np.float64), [(0, -n % s) for n, s in zip(shape, step, strict=True)])
    split = padded.reshape([m for n, s in zip(out.shape, step, strict=True) for m in (n, s)])
    np.testing.assert_allclose(out, split.mean((1, 3, 5)), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.tuples(*[st.floats(0, 3)] * 3))
def test_smooth(shape, sigma):
    v = volume(shape)
    out = np.empty(shape, np.float32)
    _native.smooth(v, sigma, 3.0, out)
    expected = ndimage.gaussian_filter(v.astype(np.float64), sigma, mode="constant", truncate=3.0)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-3)


def geometry(seed):
    """A matrix from an index of the output to the volume, which goes beyond its border."""
    rng = np.random.default_rng(seed)
    matrix = np.eye(3) * rng.choice([-1, 1], 3) + rng.normal(0, 0.3, (3, 3))
    return np.ascontiguousarray(np.c_[matrix, rng.uniform(-3, 12, 3)])


def points(matrix, shape):
    at = matrix[:, :3] @ np.indices(shape).reshape(3, -1) + matrix[:, 3:]
    return at.reshape(3, *shape)


def inside(at, shape):
    n = np.array(shape)[:, None, None, None]
    return ((at > -0.5) & (at < n - 0.5)).all(0)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 10**6), st.booleans(), st.booleans())
def test_sample_linear(shape, seed, nearest, masked):
    v, matrix, out = volume(shape, seed), geometry(seed), np.empty((7, 5, 9), np.float32)
    mask = np.random.default_rng(seed).random(out.shape) < 0.7 if masked else None
    _native.sample_linear(v, matrix, nearest, None if mask is None else mask.view(np.uint8), out)
    at = points(matrix, out.shape)
    expected = ndimage.map_coordinates(v.astype(np.float64), at, order=1, mode="nearest")
    if not nearest:
        expected = np.where(inside(at, shape), expected, 0)
    if mask is not None:
        expected = np.where(mask, expected, 0)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-2)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(2, 40)] * 3), st.integers(0, 10**6), st.booleans())
def test_sample_cubic(shape, seed, masked):
    v, matrix, out = volume(shape, seed), geometry(seed), np.empty((7, 5, 9), np.float32)
    mask = np.random.default_rng(seed).random(out.shape) < 0.7 if masked else None
    _native.sample_cubic(v, matrix, None if mask is None else mask.view(np.uint8), out)
    at = points(matrix, out.shape)
    expected = ndimage.map_coordinates(v.astype(np.float64), at, order=3, mode="mirror")
    expected = np.where(inside(at, shape), expected, 0)
    if mask is not None:
        expected = np.where(mask, expected, 0)
    np.testing.assert_allclose(out, expected, atol=2e-3 * 100)


def test_sample_cubic_reads_only_what_it_needs():
    """Of a large volume a part is prefiltered: the same as all of it."""
    v = volume((60, 70, 80))
    matrix = np.c_[np.eye(3), [30.3, 20.6, 40.1]]
    out = np.empty((4, 4, 4), np.float32)
    _native.sample_cubic(v, matrix, None, out)
    expected = ndimage.map_coordinates(v.astype(np.float64), points(matrix, out.shape), order=3)
    np.testing.assert_allclose(out, expected, rtol=1e-4)


def test_a_mask_without_a_voxel_gives_nothing():
    out = np.ones((3, 3, 3), np.float32)
    _native.sample_cubic(volume((5, 5, 5)), np.eye(4)[:3].copy(), np.zeros((3, 3, 3), "u1"), out)
    assert not out.any()


# ---- local correlation

FLOOR, ROBUST = 0.02, 2.5


def window(values, sigma):
    return ndimage.gaussian_filter(values, sigma, mode="constant", truncate=2.5)


def local(values, used, sigma):
    weight = window(used, sigma) + 1e-30
    mean = window(values * used, sigma) / weight
    variance = np.maximum(window(values**2 * used, sigma) / weight - mean**2, 0)
    deviation = np.sqrt(variance + (FLOOR * mean) ** 2) + 1e-20
    return (values - mean) / deviation, mean, deviation, weight


def reference(image, compared, sigma, scan, matrix):
    """Score, cost and scale, residuals and weights, in float64."""
    at = points(matrix, image.shape)
    used = (compared & inside(at, scan.shape)).astype(np.float64)
    values = ndimage.map_coordinates(scan.astype(np.float64), at, order=1, mode="nearest")
    here = local(values, used, sigma)[0][used > 0]
    there = local(image.astype(np.float64), used, sigma)[0][used > 0]
    residual = here - there
    scale = 1.4826 * np.median(np.abs(residual)) + 1e-9
    weights = 1 / (1 + (residual / (ROBUST * scale)) ** 2) ** 2
    cost = (weights * residual**2).sum() / weights.sum()
    inside_part = used.sum() / compared.sum()
    return inside_part, (here * there).mean(), cost, scale, residual, weights


@pytest.fixture(scope="module")
def case():
    scan = smooth_volume((22, 20, 24))
    image = smooth_volume((18, 16, 17), 1)
    compared = ndimage.distance_transform_edt(np.ones(image.shape)) > 0
    compared[:2] = compared[:, :3] = False
    compared[9:11, 8:10, 7:12] = False  # a hole
    turn = np.eye(3) + np.array([[0, 0.05, -0.1], [-0.05, 0.1, 0], [0.1, 0, -0.05]])
    return image, compared, scan, np.ascontiguousarray(np.c_[turn, [2.3, 1.7, 2.9]])


def made(case, sigma=1.7):
    return _native.LocalCorrelation(case[0], np.ascontiguousarray(case[1], np.uint8), sigma)


def test_the_centre_is_that_of_the_compared_voxels(case):
    found = made(case)
    assert list(found.centre) == [9.5, 9.0, 8.0]
    assert found.radius == 8.0


@pytest.mark.parametrize("shift", [0, 9])
def test_local_correlation_against_float64(case, shift):
    """`shift` 9: a part of the compared voxels lies outside the scan."""
    image, compared, scan, matrix = case
    matrix = matrix + np.array([0, 0, 0, shift])
    got = made(case).at(scan, matrix, 0.0, None, None)
    want = reference(image, compared, 1.7, scan, matrix)
    assert got[0] == pytest.approx(want[0], abs=1e-9)
    assert (got[0] < 1) == (shift > 0)
    assert got[1] == pytest.approx(want[1], abs=1e-4)
    assert got[3] == pytest.approx(want[3], rel=1e-3)
    normal, gradient = np.empty((12, 12)), np.empty(12)
    got = made(case).at(scan, matrix, 0.0, normal, gradient)
    assert got[2] == pytest.approx(want[2], rel=1e-3)
    np.testing.assert_allclose(normal, normal.T)
    assert (np.linalg.eigvalsh(normal) > 0).all()


def test_a_gain_changes_nothing(case):
    _, _, scan, matrix = case
    first = made(case).at(scan, matrix, 0.0, None, None)
    again = made(case).at(scan * np.float32(7), matrix, 0.0, None, None)
    np.testing.assert_allclose(again, first, rtol=1e-4)


def test_too_little_inside_says_so(case):
    found = made(case).at(case[2], case[3] + np.array([0, 0, 0, 1000]), 0.25, None, None)
    assert found[0] == 0


def basis_of(found):
    """`[4, 4]`, from an index to (1, (index - centre) / radius)."""
    basis = np.zeros((4, 4))
    basis[0, 3] = 1
    basis[1:, :3] = np.eye(3) / found.radius
    basis[1:, 3] = -np.array(found.centre) / found.radius
    return basis


def test_the_equations_against_float64(case):
    image, compared, scan, matrix = case
    matrix = matrix + np.array([0, 0, 0, 5])
    found, normal, gradient = made(case), np.empty((12, 12)), np.empty(12)
    found.at(scan, matrix, 0.0, normal, gradient)
    at = points(matrix, image.shape)
    used = (compared & inside(at, scan.shape)).astype(np.float64)
    weights, residual = (reference(image, compared, 1.7, scan, matrix)[i] for i in (5, 4))

    def values(step=(0, 0, 0)):
        moved = at + np.array(step).reshape(3, 1, 1, 1)
        return ndimage.map_coordinates(scan.astype(np.float64), moved, order=1, mode="nearest")

    here, mean, deviation, weight = local(values(), used, 1.7)
    slopes = []
    for axis in np.eye(3):
        slope = (values(axis) - values(-axis)) / 2 * used
        even = window(slope, 1.7) / weight
        spread = window(slope * values(), 1.7) / weight - (1 - FLOOR**2) * mean * even
        slopes.append(((slope - even - here * spread / deviation) / deviation)[used > 0])
    index = np.c_[np.stack(np.nonzero(used)).T, np.ones(int(used.sum()))].T
    basis = basis_of(found) @ index
    columns = (np.stack(slopes)[:, None] * basis).reshape(12, -1)
    expected = (columns * weights) @ columns.T
    np.testing.assert_allclose(normal, expected, atol=1e-3 * np.abs(expected).max())
    expected = (columns * weights) @ residual
    np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max())


def test_the_gradient_of_a_shift_is_that_of_the_residuals(case):
    """By finite differences of the local values; the weights are those of the place."""
    image, compared, _, matrix = case
    scan = np.ascontiguousarray(3 * ndimage.gaussian_filter(case[2], 2.5) - 10, np.float32)
    found, normal, gradient = made(case), np.empty((12, 12)), np.empty(12)
    found.at(scan, matrix, 0.0, normal, gradient)

    def residuals(step):
        return reference(image, compared, 1.7, scan, matrix + np.c_[np.zeros((3, 3)), step])[4]

    weights, middle = reference(image, compared, 1.7, scan, matrix)[5], residuals(np.zeros(3))
    expected = [
        (weights * middle * (residuals(axis / 2) - residuals(-axis / 2))).sum()
        for axis in np.eye(3)
    ]
    np.testing.assert_allclose(gradient[::4], expected, atol=0.05 * np.abs(expected).max())


def test_a_window_of_nothing_says_nothing(case):
    """Slopes at its border see what lies beyond, and its deviation is 0."""
    image, compared, scan = case[0], case[1], case[2].copy()
    scan[2:12] = 0
    without = scan.copy()
    without[:2] = 0
    found = []
    for values in (scan, without):
        normal, gradient = np.empty((12, 12)), np.empty(12)
        score = made(case).at(values, np.eye(4)[:3].copy(), 0.0, normal, gradient)
        found.append((np.array(score), normal, gradient))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert not compared[:2].any()
    assert image[2:12].any()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda v, m: _native.block_means(v, (0, 1, 1), v), "at least one voxel"),
        (lambda v, m: _native.block_means(v, (2, 2, 2), v), "another shape"),
        (lambda v, m: _native.smooth(v, (1, 1, 1), 3, np.empty((2, 2, 2), "f4")), "another shape"),
        (lambda v, m: _native.sample_cubic(v, m, np.ones((2, 2, 2), "u1"), v.copy()), "another"),
        (lambda v, m: _native.LocalCorrelation(v, np.ones((2, 2, 2), "u1"), 1.0), "another shape"),
        (lambda v, m: _native.LocalCorrelation(v, np.ones(v.shape, "u1"), 0.0), "wider than 0"),
        (lambda v, m: _native.smooth(v[:0], (1, 1, 1), 3, v[:0]), "no voxel"),
    ],
)
def test_what_does_not_fit_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(volume((4, 5, 6)), np.eye(4)[:3].copy())
