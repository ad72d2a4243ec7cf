"""Figures of a case's boxes that say what kind of image they are, whatever a network makes of them.

Of each channel of each box: how it goes with training's mean box, with that of the other side of
the brain, how even and how noisy it is. They tell what a network that was trained not to mind such
things may hide: another contrast, noise, a shift, left and right exchanged.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data.scan_check import Reference, box_correlation, fisher

Floats = NDArray[np.float32]

# Of lines along the first axis, every so many-th along the others is looked at.
_STEP = 2


def names(preprocessing: Preprocessing) -> list[str]:
    """What the figures of `figures_of` are called."""
    count = len(preprocessing.boxes) * len(preprocessing.channels)
    of = ("correlation with training's mean", "left against right", "contrast", "noise", "fill")
    return [f"box {index}: {text}" for index in range(count) for text in of]


def figures_of(
    images: Floats, reference: Reference, preprocessing: Preprocessing
) -> NDArray[np.float64]:
    """`[F]` of the boxes `images [N, C, D, H, W]`; `reference` has their means."""
    assert reference.means is not None
    channels = len(preprocessing.channels)
    found: list[float] = []
    for index, image in enumerate(images.reshape(-1, *images.shape[2:])):
        mean = reference.means[index]
        own = fisher(box_correlation(image, mean, reference.stride))
        other = _other_side(index // channels, preprocessing)
        opposite = reference.means[other[0] * channels + index % channels]
        if other[1]:
            opposite = opposite[::-1]
        swapped = fisher(box_correlation(image, opposite, reference.stride))
        image = image[:, ::_STEP, ::_STEP]
        brain = image != 0
        values = image[brain].astype(np.float64) if brain.any() else np.zeros(1)
        found += [
            own,
            own - swapped,
            float(np.log(values.std() + 1e-3)),
            float(np.log(_noise(image) + 1e-3)),
            float(brain.mean()),
        ]
    return np.array(found)


def _other_side(box: int, preprocessing: Preprocessing) -> tuple[int, bool]:
    """Which box covers the other side of the brain, and whether it lies the other way round.

    The box itself, turned round, where none does.
    """
    here = preprocessing.boxes[box]
    for index, there in enumerate(preprocessing.boxes):
        mirrored = (-there.center[0], *there.center[1:])
        if np.allclose(mirrored, here.center, atol=2 * preprocessing.spacing):
            return index, here.mirror == there.mirror
    return box, True


def _noise(image: Floats) -> float:
    """The robust standard deviation of noise: of second differences along the first axis."""
    if image.shape[0] < 3:
        return 0.0
    second = image[2:] - 2 * image[1:-1] + image[:-2]
    inside = (image[2:] != 0) & (image[1:-1] != 0) & (image[:-2] != 0)
    values = np.abs(second[inside])
    # A normal variable's median size is 0.6745 sd; the variances add up to 6.
    return float(np.median(values) / (0.6745 * np.sqrt(6))) if len(values) else 0.0
