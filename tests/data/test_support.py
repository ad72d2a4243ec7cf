"""The same brain, stored another way, gives the same input: what is background is found."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from hyperfusion_rt import _native
from hyperfusion_rt.config import Box, Preprocessing
from hyperfusion_rt.data.volumes import Volume, extract

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = [-47, -57, -45]
BOX = Preprocessing(
    boxes=(Box(name="brain", center=(0.0, 0.0, 0.0)),), shape=(46, 56, 44), spacing=2.0
)


def brain(shape=(48, 58, 46), seed=0):
    """Float64: grey outside, white inside, dark ventricles; hard edges in empty space."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    texture = ndimage.gaussian_filter(rng.normal(0, 1, shape), 1.5)
    data = np.where(radius < 0.55, 900.0, 650.0) + 300 * texture
    data[np.sqrt((grid[0] * 3) ** 2 + grid[1] ** 2 + (grid[2] * 2) ** 2) < 0.25] = 120
    return np.rint(np.where(radius < 0.82, np.maximum(data, 100), 0))


def boxes(voxels, affine=AFFINE, slope=1.0, inter=0.0):
    return extract(Volume("scan", np.asfortranarray(voxels), affine, slope, inter), BOX)


def image(voxels, affine=AFFINE, slope=1.0, inter=0.0):
    return boxes(voxels, affine, slope, inter).images


def mask(voxels):
    found = np.empty(voxels.shape, np.uint8)
    _native.find_support(voxels).mask(found)
    return found.astype(bool)


def stored(kind, v):
    """(voxels, slope, inter): the brain `v` in another way of storing it."""
    empty, rng = v == 0, np.random.default_rng(1)
    if kind == "int16":
        return v.astype(np.int16), 1.0, 0.0
    if kind == "offset":
        return (v + 1).astype(np.int16), 1.0, 0.0
    if kind == "houndsfield":
        return v.astype(np.int16), 1.0, -1024.0
    if kind == "stored offset":
        return (v - 1024).astype(np.int16), 1.0, 0.0
    if kind == "scaled":
        return (v * 0.013 + 55).astype(np.float32), 1.0, 0.0
    if kind == "negative slope":
        return (-v).astype(np.int16), -1.0, 0.0
    if kind == "tiny":
        return np.where(empty, 1e-6, v).astype(np.float32), 1.0, 0.0
    if kind == "faint noise":
        return np.where(empty, rng.normal(0, 1e-3, v.shape), v), 1.0, 0.0
    if kind == "NaN":
        return np.where(empty, np.nan, v).astype(np.float32), 1.0, 0.0
    if kind == "corner":
        other = v.copy()
        other[0, 0, 0] = -37
        step = (other.max() - other.min()) / 65535
        whole = np.rint((other - other.min()) / step - 32768).astype(np.int16)
        return whole, step, other.min() + 32768 * step
    assert kind == "a bright voxel"
    other = v.copy()
    other[1, 2, 3] = 60000
    return other, 1.0, 0.0


@pytest.mark.parametrize(
    "kind",
    ["int16", "offset", "houndsfield", "stored offset", "scaled", "negative slope", "tiny",
     "faint noise", "NaN"],
)  # fmt: skip
def test_the_same_brain_stored_another_way(kind):
    voxels, slope, inter = stored(kind, brain())
    np.testing.assert_allclose(image(voxels, AFFINE, slope, inter), image(brain()), atol=2e-3)


@pytest.mark.parametrize(("kind", "most"), [("corner", 2e-3), ("a bright voxel", 2e-3)])
def test_a_single_odd_voxel_changes_nothing_elsewhere(kind, most):
    voxels, slope, inter = stored(kind, brain())
    difference = np.abs(image(voxels, AFFINE, slope, inter) - image(brain()))
    assert np.quantile(difference, 0.9999) < most


@pytest.mark.parametrize("level", [1, 5, 20])
def test_noise_in_the_air_is_background(level):
    v, rng = brain(), np.random.default_rng(2)
    noise = np.abs(rng.normal(0, level, v.shape) + 1j * rng.normal(0, level, v.shape))
    noisy = np.where(v == 0, noise, v)
    assert np.array_equal(mask(noisy), mask(v))
    # The air's mean is not 0: grey values lie that much closer to it.
    assert np.abs(image(noisy) - image(v)).max() < 0.1 + 0.02 * level


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("turn", [0.0, 0.12])
@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_a_resampled_brain_is_nearly_the_same(order, turn, shift):
    """Against what it would be with exact zeros as the only background."""
    angle = np.deg2rad(turn)
    other = np.eye(4)
    other[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    other = other @ AFFINE
    other[:3, 3] += other[:3, :3] @ np.full(3, shift)
    way = np.linalg.inv(AFFINE) @ other
    v = ndimage.gaussian_filter(brain(), 1.0)
    moved = ndimage.affine_transform(v, way[:3, :3], way[:3, 3], v.shape, order=order)
    older = BOX.model_copy(update={"normalisation": "zscore-nonzero"})

    def error(preprocessing):
        first, second = (
            extract(Volume("scan", x, a, 1.0, 0.0), preprocessing).images
            for x, a in ((v, AFFINE), (moved, other))
        )
        return np.sqrt(((first - second) ** 2).mean())

    assert error(BOX) < 0.15
    if turn or shift:
        assert error(BOX) < error(older)


def test_a_hole_is_foreground_and_a_bay_is_not():
    v = np.zeros((20, 20, 20))
    v[4:16, 4:16, 4:16] = 100
    v[8:12, 8:12, 8:12] = 0  # a hole
    v[9, 9, 12:16] = 0
    found = mask(v)
    assert not found[9, 9, 13]
    assert not found[9, 9, 9]  # the tunnel leads to it
    v[9, 9, 15] = 100
    found = mask(v)
    assert found[9, 9, 9]
    assert found[9, 9, 13]
    assert found.sum() == 12**3


def labelled(v):
    """The same rule with SciPy, for a background of exactly 0 and values of 100 and more."""
    labels, _ = ndimage.label(v == 0)
    border = np.concatenate([np.take(labels, (0, -1), axis).ravel() for axis in range(3)])
    kept = ~np.isin(labels, np.unique(border[border > 0]))
    neighbours = ndimage.convolve(kept.astype(int), ndimage.generate_binary_structure(3, 1) * 1)
    return kept & (neighbours > 1)


@pytest.mark.parametrize("shape", [(70, 20, 24), (64, 17, 9), (129, 16, 16), (12, 65, 80)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_flood_goes_round_every_corner(shape, axes):
    """A maze: whatever way it winds, against SciPy's labels; words of 64 voxels and their ends."""
    rng = np.random.default_rng(sum(shape))
    v = np.where(rng.random(shape) < 0.35, 1000.0, 0.0)
    for axis in range(3):
        np.moveaxis(v, axis, 0)[[0, -1]] = 0
    v = v.transpose(axes)
    assert np.array_equal(mask(v), labelled(v))
    assert np.array_equal(mask(v[::-1, :, ::-1]), labelled(v)[::-1, :, ::-1])
    assert np.array_equal(mask(np.asfortranarray(v.astype(np.uint8) * 100)), labelled(v))


def test_brains_darker_than_the_background():
    v = brain()
    assert np.array_equal(mask(v.max() + 10 - v), mask(v))


def test_z_scores_have_values_on_both_sides():
    v = brain()
    kept = mask(v)
    scores = np.where(kept, (v - v[kept].mean()) / v[kept].std(), 0).astype(np.float32)
    assert _native.find_support(scores).side == 0
    # A brain voxel of exactly 0 beside the air is the only doubt.
    assert (mask(scores) != kept).sum() <= 2


def test_without_a_border_of_one_value_everything_is_foreground():
    v = brain()[14:34, 18:40, 14:32] * np.random.default_rng(4).uniform(0.2, 1.8, (20, 22, 18))
    found = _native.find_support(v)
    assert not found.found
    assert mask(v).all()
    preprocessing = BOX.model_copy(update={"shape": (10, 10, 10)})
    affine = AFFINE.copy()
    affine[:3, 3] = [-20, -22, -18]
    scaled = [
        extract(Volume("scan", x, affine, 1.0, 0.0), preprocessing).images
        for x in (v, 3 * v + 1000, v.astype(np.float32) - 1024)
    ]
    np.testing.assert_allclose(scaled[1], scaled[0], atol=1e-4)
    np.testing.assert_allclose(scaled[2], scaled[0], atol=1e-4)


@pytest.mark.parametrize("codes", ["LAS", "PIR", "SRA", "IPL"])
def test_what_is_background_does_not_depend_on_the_orientation(codes):
    v = brain() + np.random.default_rng(3).normal(0, 3, (48, 58, 46))
    way = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    turned = nib.orientations.apply_orientation(v, way)
    assert np.array_equal(mask(turned), nib.orientations.apply_orientation(mask(v), way))
    first, second = _native.find_support(v), _native.find_support(turned)
    assert (first.background, first.threshold) == (second.background, second.threshold)


def test_means_around_points():
    v = brain()
    points = np.array([[0, 0, 0], [4, 6, -2], [-200, 0, 0], [-47, -57, -45]], np.float32)
    inverse = np.ascontiguousarray(np.linalg.inv(AFFINE)[:3])
    out = np.full(4, np.nan, np.float32)
    support, reach = _native.find_support(v), np.full(3, 0.75)
    _native.sample_means(v, 2.0, 5.0, support, inverse, reach, points, out)
    for point, found in zip(points[:2], out, strict=False):
        at = inverse @ [*point, 1]
        near = [
            np.floor(at + s + 0.5).astype(int)
            for s in np.array(
                [[a, b, c] for a in (-0.75, 0.75) for b in (-0.75, 0.75) for c in (-0.75, 0.75)]
            )
        ]
        assert found == pytest.approx(np.mean([2 * v[tuple(i)] for i in near]))
    assert list(out[2:]) == [0, 0]
