"""Figures of boxes tell what networks are trained not to mind: noise, contrast, sides exchanged."""

import numpy as np
import pytest

from hyperfusion_rt.config import Box, Preprocessing
from hyperfusion_rt.data.scan_check import Reference
from hyperfusion_rt.data.scan_figures import figures_of, names

TWO = Preprocessing(
    boxes=(
        Box(name="left", center=(-28, -18, -18)),
        Box(name="right", center=(28, -18, -18), mirror=True),
    ),
    shape=(16, 16, 16),
    spacing=2.0,
)
ONE = Preprocessing(boxes=(Box(name="brain", center=(0, 0, 0)),), shape=(16, 16, 16), spacing=2.0)


def smooth(seed, shape=(16, 16, 16)):
    """A smooth image of mean 0, with a background of 0 at one edge."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=shape)
    for axis in range(3):
        for _ in range(3):
            image = (np.roll(image, 1, axis) + image + np.roll(image, -1, axis)) / 3
    image = image / image.std()
    image[:, :, :2] = 0
    return image.astype(np.float32)


def reference(*means):
    return Reference(landmarks=None, means=np.stack(means), stride=1)


def figures(images, preprocessing, *means):
    found = figures_of(np.stack(images)[:, None], reference(*means), preprocessing)
    return dict(zip(names(preprocessing), found, strict=True))


def test_every_figure_has_a_name():
    left, right = smooth(0), smooth(1)
    found = figures([left, right], TWO, left, right)
    assert len(found) == 10
    assert found["box 0: fill"] == pytest.approx(14 / 16)
    assert all(np.isfinite(value) for value in found.values())


def test_sides_that_were_exchanged_show():
    left, right = smooth(0), smooth(1)
    as_they_are = figures([left, right], TWO, left, right)
    exchanged = figures([right, left], TWO, left, right)
    for box in (0, 1):
        name = f"box {box}: left against right"
        assert as_they_are[name] > 1 > -1 > exchanged[name]


def test_one_box_is_compared_with_itself_turned_round():
    image = smooth(2)
    name = "box 0: left against right"
    assert figures([image], ONE, image)[name] > 1
    assert figures([image[::-1]], ONE, image)[name] < -1


def test_noise_and_contrast_are_measured():
    image = smooth(3)
    clean = figures([image], ONE, image)
    rng = np.random.default_rng(0)
    brain = image != 0
    noisy = np.where(brain, image + 0.5 * rng.standard_normal(image.shape), 0).astype(np.float32)
    found = figures([noisy], ONE, image)
    assert np.exp(found["box 0: noise"]) > 2 * np.exp(clean["box 0: noise"])
    flat = figures([image / 10], ONE, image)
    assert flat["box 0: contrast"] < clean["box 0: contrast"] - 2
    inverted = figures([-image], ONE, image)
    assert inverted["box 0: correlation with training's mean"] < -1


def test_an_empty_and_a_thin_box_have_figures_too():
    image = smooth(4)
    found = figures([np.zeros_like(image)], ONE, image)
    assert found["box 0: fill"] == 0
    assert all(np.isfinite(value) for value in found.values())
    thin = Preprocessing(boxes=ONE.boxes, shape=(2, 16, 16), spacing=2.0)
    found = figures([image[:2]], thin, image[:2])
    assert all(np.isfinite(value) for value in found.values())
