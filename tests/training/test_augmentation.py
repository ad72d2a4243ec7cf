"""Random changes of samples: what they do, and that they depend on (seed, epoch, sample) alone."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from hyperfusion_rt.config import POLICIES, Augmentation, preset
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.table_file import Row
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.training import augmentation as module
from hyperfusion_rt.training.augmentation import (
    ImageAugmentation,
    TableAugmentation,
    _gaussian,
    _slices,
)

SHAPE = (20, 24, 18)
BOX = preset("ad-small", {"preprocessing": {"shape": SHAPE}}).preprocessing


def augmentation(box=BOX, seed=0, **fields):
    return ImageAugmentation(Augmentation(**fields), box, seed)


@pytest.fixture(scope="module")
def images():
    """Smooth brains `[4, 1, ...]` with a background of 0, mean 0 and spread 1 inside."""
    rng = np.random.default_rng(0)
    made = np.stack([ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2) for _ in range(4)])
    inside = np.zeros(SHAPE, bool)
    inside[3:-3, 4:-2, 3:-4] = True
    for image in made:
        image -= image[inside].mean()
        image /= image[inside].std()
        image[~inside] = 0
    return torch.from_numpy(made[:, None].astype(np.float32))


@pytest.mark.parametrize("policy", ["light", "strong"])
def test_a_sample_does_not_depend_on_its_batch(images, policy):
    change = augmentation(policy=policy)
    together = change(images, 3, [10, 11, 12, 13])
    alone = change(images[2:3], 3, [12])
    torch.testing.assert_close(alone[0], together[2], rtol=0, atol=1e-5)
    assert not torch.equal(change(images[2:3], 4, [12]), alone)
    assert not torch.equal(change(images[2:3], 3, [13]), alone)
    assert not torch.equal(augmentation(policy=policy, seed=1)(images[2:3], 3, [12]), alone)


@pytest.mark.parametrize("policy", ["light", "strong"])
def test_one_by_one_and_all_at_once_are_the_same(images, policy, monkeypatch):
    """A CPU takes a few samples at a time, a GPU all of them."""
    change = augmentation(policy=policy)
    at_once = change.apply(images, change.draw(3, range(4)))
    monkeypatch.setattr(module, "_CACHED", 1)
    one_by_one = change(images, 3, range(4))
    torch.testing.assert_close(one_by_one, at_once, rtol=0, atol=1e-5)


def test_none_changes_nothing(images):
    assert augmentation(policy="none")(images, 0, range(4)) is images


def test_every_field_changes_samples(images):
    numbers = [name for name in Augmentation.model_fields if name not in ("policy", "probability")]
    for name in set(numbers) - {"drop_columns", "flip"}:
        amount = 5.0 if name in ("rotation", "resolution", "blur") else 0.9
        changed = augmentation(probability=1, **{name: amount})(images, 0, range(4))
        assert torch.isfinite(changed).all()
        assert (changed - images).abs().mean() > 1e-3, name


def test_what_is_normalised_stays_so(images):
    changed = augmentation(policy="strong", contrast=0, probability=1)(images, 0, range(4))
    for image in changed:
        inside = image[image != 0]
        assert abs(float(inside.mean())) < 1e-5
        assert abs(float(inside.std(correction=0)) - 1) < 1e-4
        assert 0.3 < float((image == 0).float().mean()) < 0.9  # the background stays 0


def test_quantities_keep_their_grey_scale(images):
    fixed = {"shape": SHAPE, "normalisation": "fixed-range", "range": (0, 1)}
    box = preset("ad-small", {"preprocessing": fixed}).preprocessing
    fields = {"bias_field": 1.0, "gamma": 1.0, "contrast": 0.9, "probability": 1}
    assert torch.equal(augmentation(box, **fields)(images, 0, range(4)), images)


def test_noise_of_quantities_is_relative_to_their_spread_and_keeps_their_range(images):
    fixed = {"shape": SHAPE, "normalisation": "fixed-range", "range": (0, 1)}
    box = preset("ad-small", {"preprocessing": fixed}).preprocessing
    quantities = torch.where(images != 0, (0.5 + 0.01 * images).clamp(0.01, 1), 0.0)
    change = augmentation(box, noise=1, probability=1)
    sds = change.draw(0, range(4)).noise[:, 0]
    changed = change(quantities, 0, range(4))
    for sd, old, new in zip(sds, quantities, changed, strict=True):
        inside = old != 0
        added = (new - old)[inside].std() / old[inside].std()
        assert abs(float(added / sd) - 1) < 0.03
    high = change(torch.where(images != 0, torch.rand_like(images), 0.0), 0, range(4))
    assert float(high.min()) >= 0
    assert float(high.max()) <= 1


@pytest.mark.parametrize("field", ["blur", "resolution"])
def test_what_is_smoothed_is_the_brain_alone(images, field):
    flat = torch.where(images != 0, 3.0, 0.0)
    fixed = {"shape": SHAPE, "normalisation": "fixed-range", "range": (0, 5)}
    box = preset("ad-small", {"preprocessing": fixed}).preprocessing
    changed = augmentation(box, probability=1, **{field: 6.0})(flat, 0, range(4))
    torch.testing.assert_close(changed, flat)


def test_a_field_changes_no_draw_of_another():
    one = augmentation(policy="strong").draw(3, [5])
    for name in ("flip", "resolution", "blur", "noise", "gamma", "elastic", "bias_field"):
        changed = {name: True if name == "flip" else 0.0}
        other = augmentation(policy="strong", **changed).draw(3, [5])
        assert other.seeds == one.seeds, name
        torch.testing.assert_close(other.shift, one.shift)


def test_a_shift_moves_by_so_many_mm(images):
    change = augmentation(shift=6)  # voxels are 2 mm
    draws = change.draw(0, [7])
    moved = change(images[:1], 0, [7])[0, 0].numpy()
    voxels = draws.shift[0].numpy() / 2
    assert np.abs(voxels).max() > 0.5
    expected = ndimage.shift(images[0, 0].numpy(), -voxels, order=1, mode="nearest")
    inner = (slice(7, -7),) * 3
    scale = moved[inner].std() / expected[inner].std()  # the normalisation that follows
    np.testing.assert_allclose(moved[inner], expected[inner] * scale, atol=0.06)


def test_a_rotation_keeps_angles_and_the_centre(images):
    matrix = augmentation(rotation=30).draw(0, range(20)).matrix
    np.testing.assert_allclose(matrix @ matrix.mT, np.eye(3)[None].repeat(20, 0), atol=1e-6)
    angles = torch.rad2deg(torch.arccos((matrix.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2))
    assert 10 < float(angles.max()) <= 30 * 3**0.5


def test_elastic_fields_have_the_spread_that_they_are_given():
    change = augmentation(elastic=2.0)
    field = change._smooth(change.draw(0, range(200)).elastic, 24.0)
    assert abs(float(field.std()) - 2) < 0.2


def test_flip_is_left_and_right_and_every_second_sample(images):
    box = preset("brain-age-small", {"preprocessing": {"shape": (40, 40, 40)}}).preprocessing
    draws = augmentation(box, flip=True).draw(0, range(100))
    flips = draws.matrix[:, 0, 0] < 0
    assert 30 < int(flips.sum()) < 70
    volume = torch.randn(1, 1, 40, 40, 40)
    volume -= volume.mean()
    sample = int(flips.nonzero()[0, 0])
    flipped = augmentation(box, flip=True)(volume, 0, [sample])
    difference = flipped - volume.flip(2)
    assert float(difference.abs().max()) < 1e-4


def test_flip_is_refused_where_sides_differ():
    with pytest.raises(ConfigError, match=r"augmentation\.flip .* left, right"):
        preset("ad-small", {"augmentation": {"flip": True}})


def test_blur_and_slices_keep_a_constant():
    for matrix in (_gaussian(15, 1.3), _slices(15, 2.7, 0.2), _slices(15, 6.0, 0.9)):
        np.testing.assert_allclose(matrix.sum(1), 1)
    step = np.repeat([0.0, 1.0], 15)
    blurred = _gaussian(30, 2.0) @ step
    expected = ndimage.gaussian_filter1d(step, 2.0, mode="nearest", truncate=3)
    np.testing.assert_allclose(blurred, expected, atol=1e-12)


def test_a_policy_is_replaced_as_a_whole():
    light = preset("ad-small").augmentation
    assert light.policy == "light"
    assert preset("ad-small", {"augmentation": {"rotation": 9}}).augmentation.shift == light.shift
    none = preset("brain-age-small", {"augmentation": {"policy": "none"}}).augmentation
    assert none == Augmentation()
    mixed = Augmentation(policy="strong", noise=0)
    assert (mixed.noise, mixed.rotation) == (0, POLICIES["strong"]["rotation"])


def _rows(count):
    rng = np.random.default_rng(0)
    return [
        Row(f"s{i}", None, i, {"AGE": f"{rng.normal(70, 5):.1f}", "TAU": "" if i % 4 == 0 else "5"})
        for i in range(count)
    ]


def test_dropped_columns_are_those_that_have_gaps():
    features = [{"name": "AGE", "kind": "numeric"}, {"name": "TAU", "kind": "numeric"}]
    spec = preset("ad-small", {"tabular": {"features": features, "stratify": []}}).tabular
    rows = _rows(200)
    encoder = TabularEncoder.fit(rows, spec)
    plain = encoder.encode(rows)
    found = TableAugmentation(Augmentation(drop_columns=0.3), encoder, rows, 0)(2, range(200))
    age, gap = encoder.names.index("AGE"), encoder.names.index("TAU:missing")
    np.testing.assert_array_equal(found[:, age], plain[:, age])
    assert plain[:, gap].sum() == 50
    assert 70 < found[:, gap].sum() < 120  # 50 of 200, and 0.3 of the others
    again = TableAugmentation(Augmentation(drop_columns=0.3), encoder, rows, 0)(2, [7, 150])
    np.testing.assert_array_equal(again, found[[7, 150]])
