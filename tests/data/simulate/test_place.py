"""The anatomy of the model `place`: two regions that shrink by themselves."""

from itertools import product

import numpy as np
import pytest

from hyperfusion_rt.config import preset
from hyperfusion_rt.data.simulate import anatomy
from hyperfusion_rt.data.simulate import template as templates

LOW, HIGH = -2.0, 2.0
# In each of them, voxels that the other region leaves alone (MNI mm).
HORN, FISSURE = (36.5, -20.0, -14.5), (44.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def template() -> templates.Template:
    return templates.load_template(2, "place")


@pytest.fixture(scope="module")
def brains(template: templates.Template) -> dict[tuple[float, float], anatomy.Brain]:
    """One person with little or much atrophy of each region."""
    found = {}
    for atrophy in product((LOW, HIGH), repeat=2):
        rng = np.random.default_rng(4)
        found[atrophy] = anatomy.scan(template, anatomy.make_head(template, atrophy, rng), rng)
    return found


def test_each_region_has_its_volume(
    brains: dict[tuple[float, float], anatomy.Brain],
) -> None:
    """Hippocampi answer to the first atrophy, fissures to the second, ventricles to neither."""
    for kept in (LOW, HIGH):
        young, old = brains[LOW, kept], brains[HIGH, kept]
        assert old.hippocampi_ml < 0.6 * young.hippocampi_ml
        assert old.fissures_ml == pytest.approx(young.fissures_ml, rel=0.05)
        young, old = brains[kept, LOW], brains[kept, HIGH]
        assert old.fissures_ml > 1.4 * young.fissures_ml
        assert old.hippocampi_ml == pytest.approx(young.hippocampi_ml, rel=0.02)
    volumes = [b.ventricles_ml for b in brains.values()]
    assert max(volumes) < 1.02 * min(volumes)


def test_each_region_darkens_at_its_place(
    brains: dict[tuple[float, float], anatomy.Brain],
) -> None:
    def seen(brain: anatomy.Brain, mm: tuple[float, float, float]) -> float:
        """The mean of both sides, within 4 mm, as a part of the brain's median."""
        voxels, found = brain.voxels.astype(float), []
        for side in (-1, 1):
            at = np.linalg.inv(brain.affine) @ [side * mm[0], *mm[1:], 1]
            around = tuple(slice(n - 2, n + 3) for n in np.rint(at[:3]).astype(int))
            found.append(voxels[around].mean())
        return float(np.mean(found) / np.median(voxels[voxels > 0]))

    for kept in (LOW, HIGH):
        first = [seen(brains[a, kept], HORN) for a in (LOW, HIGH)]
        second = [seen(brains[kept, a], FISSURE) for a in (LOW, HIGH)]
        crossed = [seen(brains[kept, a], HORN) for a in (LOW, HIGH)]
        assert first[1] < first[0] - 0.08
        assert second[1] < second[0] - 0.08
        assert crossed[1] == pytest.approx(crossed[0], abs=0.04)


def test_both_regions_lie_in_the_boxes(template: templates.Template) -> None:
    """What shrinks and opens is seen by the network."""
    config = preset("ad-small").preprocessing
    half = np.asarray(config.shape) * config.spacing / 2
    inverse = np.linalg.inv(template.affine)
    inside = np.zeros(template.channels.shape[1:], bool)
    for box in config.boxes:
        ends = [(inverse @ [*(box.center + side * half), 1])[:3] for side in (-1, 1)]
        inside[tuple(slice(round(a), round(b)) for a, b in zip(*ends, strict=True))] = True
    _, hippocampi, _, horns, _, _, fissures = template.channels.numpy()
    assert (hippocampi * inside).sum() > 0.98 * hippocampi.sum()
    assert (horns * inside).sum() > 0.98 * horns.sum()
    assert (fissures * inside).sum() > 0.7 * fissures.sum()


@pytest.mark.parametrize("atrophy", list(product((-5.0, 0.0, 5.0), repeat=2)))
def test_nothing_folds(template: templates.Template, atrophy: tuple[float, float]) -> None:
    for seed in range(2):
        head = anatomy.make_head(template, atrophy, np.random.default_rng(seed))
        assert head.smallest_jacobian > 0.05


def test_a_region_is_a_part_of_the_sum(template: templates.Template) -> None:
    """The velocity is linear in the strengths: each region adds its own field."""
    fields = [anatomy.velocity(template, s, np.random.default_rng(1)) for s in ((0, 0), (1, 2))]
    added = template.fields[0] + 2 * template.fields[1]
    np.testing.assert_allclose(fields[1] - fields[0], added, atol=1e-5)
