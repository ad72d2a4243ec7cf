"""Parts of registration: pose, bias field, template, threshold; each against a known truth."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

pytest.importorskip("nilearn", reason="nilearn is not installed: there is no template")
pytest.importorskip("scipy", reason="scipy is not installed: the template cannot be made")

from hyperfusion_rt.data.raw import template as template_module
from hyperfusion_rt.data.raw.field import Field, find_field
from hyperfusion_rt.data.raw.image import Image, otsu, sample, to_mm, turn
from hyperfusion_rt.data.raw.judge import distance
from hyperfusion_rt.data.raw.picture import picture
from hyperfusion_rt.data.raw.pose import at_level, find_pose, refine
from hyperfusion_rt.data.raw.register import locate
from hyperfusion_rt.data.raw.template import CENTER, load_template


@pytest.fixture(scope="module")
def template():
    return load_template()


@pytest.fixture(scope="module")
def brain(template):
    """The template itself at 2 mm, with noise."""
    level = template.levels[2]
    noise = np.random.default_rng(0).normal(0, 3, level.image.shape)
    voxels = np.where(level.away == 0, np.maximum(level.image + noise, 1), 0)
    return Image(Path("brain.nii"), voxels.astype(np.float32), level.affine)


def no_field(template):
    return Field(np.zeros_like(template.levels[4].image), 0.0, (0.3, 0.7, 1.0), 100.0)


def strong_field(image):
    """±70 %: smooth, brighter to one side and in the middle."""
    index = np.indices(image.voxels.shape).reshape(3, -1)
    x, y, z = (to_mm(image.affine, index) - CENTER[:, None]) / 80
    field = 0.5 * x - 0.4 * y + 0.3 * z - 0.5 * (x * x + y * y + z * z) + 0.3 * x * y
    inside = field[image.voxels.ravel() > 0]
    field = 0.7 * (2 * (field - inside.min()) / np.ptp(inside) - 1)
    return np.log(np.clip(1 + field, 0.1, None)).reshape(image.voxels.shape)


@pytest.mark.parametrize("degrees", [(0, 0, 0), (30, -10, 15), (-40, 10, 5)])
def test_a_turned_brain_is_found(brain, template, degrees):
    motion = np.eye(4)
    motion[:3, :3] = 1.1 * turn(degrees)
    motion[:3, 3] = [40, -25, 60]
    found = find_pose(replace(brain, affine=motion @ brain.affine))
    # The template at 2 mm is smooth already, and is smoothed again: it looks a little smaller.
    assert distance(found[1].transform, motion, template) < 0.2
    assert distance(found[0].transform, motion, template) < 0.4
    assert found[1].misfit < 0.01


def test_a_strong_field_moves_nothing_and_is_found(brain, template):
    log_field = strong_field(brain)
    biased = replace(brain, voxels=(brain.voxels * np.exp(log_field)).astype(np.float32))
    pose, level = find_pose(biased)[1], template.levels[4]
    assert distance(pose.transform, np.eye(4), template) < 0.7
    found = find_field(template, at_level(biased, level), pose.transform)
    even = at_level(found.flattened(biased, pose.transform, template), level)
    # ± 70 % is no polynomial of degree 3 to the logarithm.
    assert distance(refine(even, pose.transform).transform, np.eye(4), template) < 0.45
    inside = level.away == 0
    matrix = np.linalg.inv(brain.affine) @ level.affine
    expected = sample(log_field.astype(np.float32), matrix, level.image.shape, nearest=True)[inside]
    difference = found.logarithm[inside] - expected
    assert difference.std() < 0.1 * expected.std()
    assert abs(found.logarithm[inside].mean()) < 1e-4
    csf, grey, white = found.tissues
    assert csf < grey < white == 1


def test_the_number_of_threads_changes_no_bit(brain, template):
    """NumPy's BLAS splits large products among its threads."""
    biased = replace(brain, voxels=(brain.voxels * np.exp(strong_field(brain))).astype(np.float32))
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            poses = find_pose(biased)
            field = find_field(template, poses.fine, poses.narrow.transform)
        found.append((poses.narrow.transform, field.logarithm, np.array(field.tissues)))
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)


def test_the_contrast_does_not_matter_to_the_field(brain, template):
    """A scanner with half the contrast: no field is made of it."""
    pale = replace(brain, voxels=np.sqrt(brain.voxels))
    found = find_field(template, at_level(pale, template.levels[4]), np.eye(4))
    inside = template.levels[4].away == 0
    assert found.logarithm[inside].std() < 0.02
    assert found.tissues[1] > 0.8


def test_fat_does_not_count(brain, template):
    """What is brighter than white matter is dimmed to it."""
    found = find_field(template, at_level(brain, template.levels[4]), np.eye(4))
    inside = brain.voxels > 0
    assert 0.9 < found.white / np.percentile(brain.voxels[inside], 75) < 1.1
    fat = replace(brain, voxels=np.where(inside, brain.voxels, 1000).astype(np.float32))
    flat = found.flattened(fat, np.eye(4), template).voxels
    assert flat.max() == np.float32(found.white)
    assert flat[~inside].min() == flat.max()


def test_what_is_no_t1_is_not_placed_again(brain, monkeypatch):
    """It is refused for its contrast, wherever it lies."""
    inside = brain.voxels > 0
    inverted = replace(brain, voxels=np.where(inside, 130 - brain.voxels, 0).astype(np.float32))
    calls = []
    flattened = Field.flattened
    monkeypatch.setattr(
        Field, "flattened", lambda self, *given: calls.append(self) or flattened(self, *given)
    )
    locate(inverted)
    assert not calls
    locate(brain)
    assert len(calls) == 1


def test_a_scan_without_brightness_has_no_field(template):
    image = Image(Path("x.nii"), np.zeros((20, 20, 20), np.float32), np.diag([8.0, 8, 8, 1]))
    found = find_field(template, image, np.eye(4))
    assert not found.logarithm.any()
    assert found.residual == np.inf


@pytest.mark.parametrize("kind", ["new", "kept", "damaged", "unwritable"])
def test_the_template_is_the_same_however_it_is_had(template, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = template_module._make(template_module.template_files("raw", "the test"))
    monkeypatch.setattr(template_module, "_make", lambda files: made)
    if kind == "unwritable":
        (tmp_path / "cache").write_bytes(b"a file")
    else:
        load_template.__wrapped__()
        [kept] = (tmp_path / "cache" / "hyperfusion_rt").iterdir()
        if kind == "damaged":
            kept.write_bytes(kept.read_bytes()[:5000])
        elif kind == "kept":
            monkeypatch.setattr(template_module, "_make", lambda files: pytest.fail("made again"))
    found = load_template.__wrapped__()
    for name in ("affine", "mask", "around", "white", "tissue", "parts"):
        assert np.array_equal(getattr(found, name), getattr(template, name)), name
        assert getattr(found, name).dtype == getattr(template, name).dtype
    for spacing, level in template.levels.items():
        other = found.levels[spacing]
        assert np.array_equal(other.image, level.image)
        assert np.array_equal(other.away, level.away)
        assert np.array_equal(other.affine, level.affine)
        assert other.sigma == level.sigma


def test_otsu_separates_two_groups():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(10, 2, 5000), rng.normal(100, 20, 3000)]).astype("f4")
    assert 15 < otsu(values) < 60
    assert otsu(np.full(5, 7, np.float32)) == 7


def test_the_picture_is_small_and_shows_the_outline(brain, template):
    drawn = picture(brain, template, np.eye(4), no_field(template), template.mask)
    assert len(drawn) < 60_000
    noise = np.random.default_rng(0).uniform(0, 200, brain.voxels.shape).astype(np.float32)
    noisy = replace(brain, voxels=noise)
    assert len(picture(noisy, template, np.eye(4), no_field(template), template.mask)) < 60_000
    root = ElementTree.fromstring(drawn)
    [image] = [node for node in root.iter() if node.tag.endswith("image")]
    data = image.get("href").removeprefix("data:image/png;base64,")
    pixels = plt.imread(io.BytesIO(base64.b64decode(data)), "png")
    _, _, width, height = map(int, root.get("viewBox").split())
    assert pixels.shape == (height, width)
    # Dark around the brain, bright in it: the first path is the axial outline.
    path = next(node for node in root.iter() if node.tag.endswith("path")).get("d")
    starts = np.array(re.findall(r"M(\d+) (\d+)", path), int)
    left, top = starts.min(0)
    right, bottom = starts.max(0)
    assert pixels[(top + bottom) // 2, left + 12 : right - 12].mean() > 0.4
    assert pixels[(top + bottom) // 2, : left - 2].max() < 0.2
