"""Occlusion of networks whose answer is known: a linear one, alone and in two steps."""

import numpy as np
import pytest

from hyperfusion_rt.config import Box, Preprocessing
from hyperfusion_rt.data.scan_check import Landmarks, Reference
from hyperfusion_rt.errors import ConfigError, EngineError
from hyperfusion_rt.runtime.explain.occlusion import cubes_of, neutral, occlude
from hyperfusion_rt.runtime.explain.passes import Passes

# Two boxes of 2 mm that share the voxels around the midline; the right one is mirrored.
PREPROCESSING = Preprocessing(
    boxes=(
        Box(name="left", center=(-9.0, 0.0, 0.0)),
        Box(name="right", center=(9.0, 0.0, 0.0), mirror=True),
    ),
    shape=(11, 8, 6),
    spacing=2.0,
)
SHAPE = (2, 2, 11, 8, 6)  # of two channels


class Linear:
    """answer = Σ w · image + table, per box and together; a head that adds the boxes up."""

    def __init__(self, weights):
        self.weights = weights

    def run(self, image, tabular):
        return self.finish(self.features(image), tabular)

    def features(self, image):
        boxes = image.reshape(-1, *self.weights.shape).astype(np.float64)
        sums = (boxes * self.weights).sum((1, 2, 3, 4)).reshape(len(image), -1)
        return {"sums": sums.astype(np.float32)}

    def finish(self, features, tabular):
        output = features["sums"].sum(1, keepdims=True) + tabular
        return {"output": output, "members": features["sums"]}


def case(seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(SHAPE[1:], np.float32)
    images, fill = rng.standard_normal((2, *SHAPE), np.float32)
    return weights, images, fill, np.array([0.25], np.float32)


def by_hand(weights, images, fill, cubes):
    """The mean over the cubes that hold a voxel of Σ w · (image - fill) over the cube."""
    total, count = np.zeros((2, *images[:, 0].shape))
    for cube in cubes:
        drop = 0.0
        for box, place in cube.places:
            at = (slice(None), *place)
            part = images[box][at].astype(np.float64) - fill[box][at]
            drop += (weights[at] * part).sum()
        for box, place in cube.places:
            total[box][place] += drop
            count[box][place] += 1
    return total / np.maximum(count, 1)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("stride", [None, 2.0, 4.0])
def test_a_linear_networks_map_is_known(split, stride):
    weights, images, fill, row = case()
    engine = Linear(weights)
    passes = Passes(engine, engine if split else None, images, row, 0)
    found = occlude(passes, PREPROCESSING, fill, cube=6.0, stride=stride)
    cubes = cubes_of(PREPROCESSING, np.ones(found.voxels.shape, bool), 6.0, stride or 6.0)
    expected = by_hand(weights, images, fill, cubes)
    # The answers are float32 of about 50; their differences are as exact.
    np.testing.assert_allclose(found.voxels, expected, atol=1e-4)
    assert found.answer == pytest.approx(float((images * weights).sum()) + 0.25, abs=1e-4)
    places = sum(len(cube.places) for cube in cubes)
    assert found.passes == (places if split else 2 * len(cubes))


def test_a_cube_is_hidden_in_every_box_that_sees_it():
    """x of the left box runs from -19 to 1 mm, of the right one from -1 to 19, mirrored."""
    brain = np.ones((2, 11, 8, 6), bool)
    cubes = cubes_of(PREPROCESSING, brain, 2.0, 2.0)
    shared = [cube for cube in cubes if len(cube.places) == 2]
    assert (len(cubes), len(shared)) == (20 * 8 * 6, 2 * 8 * 6)
    for cube in shared:
        (here, one), (there, other) = cube.places
        assert (here, there) == (0, 1)
        assert (one[0].start, other[0].start) in {(9, 10), (10, 9)}
        assert one[1:] == other[1:]
    for size in (2.0, 6.0):
        covered = np.zeros((2, 11, 8, 6), int)
        for cube in cubes_of(PREPROCESSING, brain, size, size):
            for box, place in cube.places:
                covered[box][place] += 1
        assert (covered == 1).all()


def test_where_there_is_no_brain_nothing_is_hidden():
    weights, images, fill, row = case()
    images[:, :, :, 4:] = 0
    images[:, 0, 3, 1, 1] = 0
    passes = Passes(Linear(weights), None, images, row, 0)
    found = occlude(passes, PREPROCESSING, fill, cube=4.0)
    assert (found.voxels[:, :, 4:] == 0).all()
    assert found.voxels[0, 3, 1, 1] != 0  # the other channel has brain
    assert found.passes < 2 * 2 * 6 * 4 * 3


@pytest.mark.parametrize("cube", [0.0, -8.0, 12.1, float("nan"), float("inf")])
def test_cubes_that_cannot_be(cube):
    with pytest.raises(ConfigError, match=r"`cube`.*at most 12 mm") as error:
        cubes_of(PREPROCESSING, np.ones((2, 11, 8, 6), bool), cube, cube)
    assert error.value.code == "option-wrong"


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("bad", ["scan", "cube"])
def test_answers_that_are_not_finite_are_an_error(split, bad):
    weights, images, fill, row = case()
    (images if bad == "scan" else fill)[1, 0, 5, 5, 5] = np.nan
    engine = Linear(weights)

    def explained():
        passes = Passes(engine, engine if split else None, images, row, 0)
        return occlude(passes, PREPROCESSING, fill, cube=4.0)

    with pytest.raises(EngineError, match="not finite") as error:
        explained()
    assert error.value.code == "engine-output-not-finite"


def test_what_hides_is_the_mean_box_between_its_voxels():
    _, images, _, _ = case()
    grid = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in SHAPE[2:]], indexing="ij")
    ramp = grid[0] + 10 * grid[1] - grid[2]
    means = np.stack([ramp[::2, ::2, ::2] + i for i in range(4)])
    reference = Reference(Landmarks(np.zeros((1, 3)), np.zeros(1)), (), means, 2)
    found = neutral(images, reference, 2.0)
    assert found.shape == images.shape
    # Linear between the kept voxels, 0 to 10, 0 to 6 and 0 to 4.
    for i, place in enumerate(found.reshape(4, *SHAPE[2:])):
        np.testing.assert_allclose(place[:, :7, :5], (ramp + i)[:, :7, :5], atol=1e-4)


def test_without_a_mean_box_the_scan_hides_itself_blurred():
    _, images, _, _ = case()
    images += 3
    found = neutral(images, None, 2.0)
    middle = found[:, :, 4:7, 3:5, 2:4]
    assert middle.std() < 0.2 * images.std()
    assert (middle > 0).all()
