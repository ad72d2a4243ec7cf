"""Which voxels of a head are its brain; heads made of the template, whose brain is known."""

import numpy as np
import pytest

pytest.importorskip("nilearn", reason="nilearn is not installed: there is no template")
pytest.importorskip("scipy", reason="scipy is not installed: the template cannot be made")

from scipy import ndimage

from hyperfusion_rt.data.raw.brain_mask import by_edges
from hyperfusion_rt.data.raw.field import Field
from hyperfusion_rt.data.raw.template import load_template

WHITE, GREY, CSF, BONE, SCALP = 100.0, 70.0, 30.0, 5.0, 150.0
CROSS = ndimage.generate_binary_structure(3, 1)


@pytest.fixture(scope="module")
def template():
    return load_template()


def field(template):
    return Field(np.zeros_like(template.levels[4].image), 0.0, (0.3, 0.7, 1.0), WHITE)


def head(template, brain):
    """On the 2 mm grid: grey matter 4 mm thick around white, in fluid, bone and scalp."""
    depth = ndimage.distance_transform_edt(brain) * 2
    away = ndimage.distance_transform_edt(~brain) * 2
    values = np.where(depth > 4, WHITE, np.where(brain, GREY, CSF))
    values[away > 4] = BONE
    values[away > 8] = SCALP
    return values.astype(np.float32)


def halved(mask):
    """On the 2 mm grid, as the template's levels are."""
    n = [-(-s // 2) * 2 for s in mask.shape]
    padded = np.zeros(n, np.float32)
    padded[tuple(slice(s) for s in mask.shape)] = mask
    return padded.reshape(n[0] // 2, 2, n[1] // 2, 2, n[2] // 2, 2).mean((1, 3, 5))


@pytest.mark.parametrize("move", [0, 1, -1])
def test_a_brain_larger_or_smaller_than_the_templates(template, move):
    """By one voxel of 2 mm; the template's mask is wrong by as much."""
    brain = template.levels[2].away == 0
    if move:
        change = ndimage.binary_dilation if move > 0 else ndimage.binary_erosion
        brain = change(brain, CROSS)
    found = halved(by_edges(template, head(template, brain), field(template))) > 0.5
    surface = brain ^ ndimage.binary_erosion(brain, CROSS)
    missed = np.count_nonzero(brain & ~found)
    assert missed < 0.15 * np.count_nonzero(surface)
    # Fluid inside the template's mask stays.
    beyond = found & ~brain & (template.levels[2].away > 0)
    assert np.count_nonzero(beyond) < 0.15 * np.count_nonzero(surface)


def test_what_hangs_by_a_thread_is_no_brain(template):
    """Dura beside the brain, with a bridge of one voxel; bright fat that touches it."""
    level = template.levels[2]
    brain = level.away == 0
    # A brain that is 4 mm smaller on the right, where dura lies inside the template's mask.
    right = np.arange(brain.shape[0])[:, None, None] > brain.shape[0] // 2
    small = np.where(right, ndimage.binary_erosion(brain, CROSS, iterations=2), brain)
    values = head(template, small)
    shell = right & brain & ~ndimage.binary_erosion(brain, CROSS)
    values[shell] = GREY
    x, y, z = (int(c[-1]) for c in np.nonzero(shell))
    values[x - 1, y, z] = GREY
    found = halved(by_edges(template, values, field(template))) > 0.5
    assert found[shell].mean() < 0.2
    assert found[small].mean() > 0.98
    fat = head(template, brain)
    fat[(level.away > 0) & (level.away < 6)] = SCALP
    found = halved(by_edges(template, fat, field(template))) > 0.5
    assert found[(level.away > 2) & (level.away < 6)].mean() < 0.1


def test_a_dark_lesion_at_the_border_stays(template):
    level = template.levels[2]
    brain = level.away == 0
    values = head(template, brain)
    index = np.stack(np.nonzero(brain))
    at = index[:, index[0].argmax()][:, None]
    ball = np.linalg.norm(np.indices(brain.shape).reshape(3, -1) - at, axis=0) < 8
    lesion = brain & ball.reshape(brain.shape)
    values[lesion] = CSF
    found = halved(by_edges(template, values, field(template))) > 0.5
    assert found[lesion].mean() > 0.9
