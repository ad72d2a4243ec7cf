"""PNG files, as another program reads them, and outlines."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest

from hyperfusion_rt.data.png import outline, png


@pytest.mark.parametrize("shape", [(7, 11), (5, 3, 4)])
def test_a_png_holds_its_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert np.array_equal(plt.imread(io.BytesIO(png(pixels)), "png"), pixels / np.float32(255))


def test_an_outline_runs_around_the_pixels():
    inside = np.zeros((4, 5), bool)
    inside[1:3, 2:4] = True
    assert sorted(outline(inside).replace("M", "\nM").split("\n")[1:]) == [
        "M2 1h2", "M2 1v2", "M2 3h2", "M4 1v2",
    ]  # fmt: skip
    assert outline(np.zeros((2, 2), bool)) == ""
