"""The table as it is drawn, and how well anybody can do."""

import math
from dataclasses import replace

import numpy as np
import pytest

from hyperfusion_rt.config import Published
from hyperfusion_rt.data.simulate import bayes_optimum, optimum, population


def _binomial(count: int, trials: int, rate: float) -> None:
    """Within 4.5 standard deviations."""
    assert abs(count - trials * rate) <= 4.5 * math.sqrt(trials * rate * (1 - rate)) + 0.5


def _draw(task: Published, count: int) -> list[population.Subject]:
    rng = np.random.default_rng(1)
    return [population.draw_subject(task, rng) for _ in range(count)]


@pytest.fixture(scope="module")
def people() -> list[population.Subject]:
    return _draw("ad", 4000)


def test_missing_rates(people: list[population.Subject]) -> None:
    rates = {"AGE": 0.002, "APOE4": 0.09, "FDG": 0.38, "AV45": 0.53, "ABETA": 0.51, "PTGENDER": 0}
    for name, rate in rates.items():
        _binomial(sum(p.row[name] == "" for p in people), len(people), rate)
    for p in people:
        assert len({p.row[name] == "" for name in ("ABETA", "TAU", "PTAU")}) == 1


def test_readings_beyond_the_bounds_are_censored(people: list[population.Subject]) -> None:
    seen = set()
    for marker in population.MARKERS:
        for p in people:
            reading, value = p.row[marker.name], p.truth[marker.name]
            if reading == "":
                continue
            if value > marker.high or value < marker.low:
                seen.add(reading)
                assert reading == (
                    f">{marker.high:g}" if value > 0 and value > marker.high else f"<{marker.low:g}"
                )
            else:
                assert float(reading) == pytest.approx(value, abs=0.51 * 10**-marker.digits)
    assert {">1700", "<200", "<80", "<8"} <= seen


def test_classes_ages_and_sexes(people: list[population.Subject]) -> None:
    n = len(people)
    classes = np.array([p.truth["DX"] for p in people])
    ages = np.array([p.truth["AGE"] for p in people])
    for name, rate in zip(population.CLASSES, population.PRIOR, strict=True):
        _binomial(int((classes == name).sum()), n, float(rate))
        # The age says nothing of the class.
        assert abs(ages[classes == name].mean() - ages.mean()) < 4.5 * 7 / math.sqrt(n * rate)
    assert 55 <= ages.min() < ages.max() <= 92
    _binomial(sum(p.row["PTGENDER"] == "Male" for p in people), n, 0.5)
    labels = {p.row["DX"]: p.truth["DX"] for p in people}
    assert labels == {label: name for name, all_ in population.LABELS.items() for label in all_}


# ---- the optimum


def test_fusion_is_needed() -> None:
    ad = bayes_optimum("ad")
    assert 0.60 < ad["image"] < 0.68
    assert 0.60 < ad["table"] < 0.68
    assert 0.80 < ad["both"] < 0.86
    assert max(ad["standard_error"].values()) < 0.002
    age = bayes_optimum("brain-age")
    assert age["table"] == pytest.approx(11.25, abs=0.01)
    assert 5.5 < age["image"] < 6.5
    assert 3.4 < age["both"] < 4.0


def test_optimum_of_a_case_solved_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Atrophy = γ + σ ε alone: the limits lie half way, so recalls are Φ(γ/2σ), 2Φ - 1, Φ."""
    plain = replace(population.AD["additive"], age=0.0, sex=0.0)
    monkeypatch.setitem(population.AD, "additive", plain)
    found = optimum._ad(40000, "additive")
    half = 0.5 * math.erfc(-float(population.DX_EFFECT[2]) / (2 * population.NOISE) / math.sqrt(2))
    exact = (half + (2 * half - 1) + half) / 3
    assert abs(found["image"] - exact) < 4.5 * found["standard_error"]["image"]


def test_image_against_counts() -> None:
    """A histogram of drawn subjects instead of likelihoods: the best rule takes the fullest bin."""
    rng = np.random.default_rng(5)
    counts, edges = [], np.linspace(-8, 8, 161)
    for dx in range(3):
        age = np.array([population.draw_age(rng) for _ in range(30000)])
        male = rng.integers(0, 2, age.size)
        atrophy = population.usual_atrophy(age, male, "additive") + population.DX_EFFECT[dx]
        atrophy = atrophy + population.NOISE * rng.standard_normal(age.size)
        counts.append(np.histogram(atrophy, edges)[0] / age.size)
    assert np.max(counts, 0).sum() / 3 == pytest.approx(bayes_optimum("ad")["image"], abs=0.008)


def test_brain_age_against_drawn_subjects() -> None:
    """Medians of the ages in narrow bins of atrophy: no formula, the same error."""
    drawn = _draw("brain-age", 8000)
    age = np.array([s.truth["AGE"] for s in drawn])
    male = np.array([s.truth["PTGENDER"] == "Male" for s in drawn])
    bins = np.digitize([s.atrophy[0] for s in drawn], np.linspace(-4, 4, 41))

    def error(groups: np.ndarray) -> float:
        rest = [np.abs(age[groups == g] - np.median(age[groups == g])) for g in np.unique(groups)]
        return float(np.concatenate(rest).mean())

    best = bayes_optimum("brain-age")
    assert error(bins) == pytest.approx(best["image"], abs=0.25)
    assert error(bins + 100 * male) == pytest.approx(best["both"], abs=0.25)


# ---- the model in which APOE4 says which region counts


@pytest.fixture(scope="module")
def placed() -> list[population.Subject]:
    rng = np.random.default_rng(2)
    return [population.draw_subject("ad", rng, "place") for _ in range(4000)]


def _columns(people: list[population.Subject]) -> tuple[np.ndarray, ...]:
    """Regions [N, 2], DX [N] from 0, APOE4 [N]."""
    regions = np.array([p.atrophy for p in people])
    dx = np.array([population.CLASSES.index(p.truth["DX"]) for p in people])
    return regions, dx, np.array([p.truth["APOE4"] for p in people])


def test_the_genotype_says_which_region_is_the_diseases(placed: list[population.Subject]) -> None:
    regions, dx, carrier = _columns(placed)
    parts = ("atrophy_age", "atrophy_sex", "atrophy_dx", "atrophy_noise")
    of_disease = np.where(carrier, regions[:, 0], regions[:, 1])
    assert of_disease == pytest.approx([sum(p.truth[part] for part in parts) for p in placed])
    other = np.where(carrier, regions[:, 1], regions[:, 0])
    limit = 4.5 / math.sqrt(len(placed))
    assert np.corrcoef(of_disease, dx)[0, 1] > 0.7
    assert abs(np.corrcoef(other, dx)[0, 1]) < limit
    # One marginal distribution: so do the means and the spreads of both agree.
    assert of_disease.mean() == pytest.approx(other.mean(), abs=limit * 2)
    assert of_disease.std() == pytest.approx(other.std(), rel=0.05)


def test_the_genotype_alone_says_nothing(placed: list[population.Subject]) -> None:
    regions, dx, carrier = _columns(placed)
    assert set(carrier) == {0, 1}
    assert all(p.row["APOE4"] == str(p.truth["APOE4"]) for p in placed)
    _binomial(int(carrier.sum()), len(placed), 0.5)
    limit = 4.5 / math.sqrt(len(placed))
    for column in (dx, *regions.T, np.array([p.truth["AGE"] for p in placed])):
        assert abs(np.corrcoef(column, carrier)[0, 1]) < limit


def test_place_needs_the_interaction() -> None:
    found = bayes_optimum("ad", "place")
    assert 0.56 < found["image"] < 0.61
    assert 0.58 < found["table"] < 0.62
    assert 0.72 < found["both_without_apoe4"] < 0.76
    assert 0.82 < found["both"] < 0.85
    assert max(found["standard_error"].values()) < 0.002


def test_place_without_effects_of_age_and_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With APOE4 the other region says nothing: Φ(γ/2σ), 2Φ - 1, Φ, as with one region.

    A table that is empty says nothing, and neither does an age: image and both without APOE4 are
    one observer.
    """
    plain = replace(population.AD["place"], age=0.0, sex=0.0)
    monkeypatch.setitem(population.AD, "place", plain)
    monkeypatch.setattr(population, "MARKERS", ())
    found = optimum._ad(40000, "place")
    half = 0.5 * math.erfc(-float(population.DX_EFFECT[2]) / (2 * population.NOISE) / math.sqrt(2))
    assert abs(found["both"] - (4 * half - 1) / 3) < 4.5 * found["standard_error"]["both"]
    assert found["image"] == found["both_without_apoe4"]
    assert found["table"] == pytest.approx(1 / 3)


def test_place_against_counts() -> None:
    """Histograms of drawn subjects instead of likelihoods: the best rule takes the fullest bin."""
    rng = np.random.default_rng(6)
    edges = np.arange(-4.25, 4.5, 0.5)
    counts, count = [], 150000
    for dx in range(3):
        age = np.clip(rng.normal(73, 7, count), 55, 92)
        usual = population.usual_atrophy(age, rng.integers(0, 2, count), "place")
        classes = np.stack([np.full(count, dx), rng.choice(3, count, p=population.PRIOR)])
        regions = usual + population.DX_EFFECT[classes] + 0.6 * rng.standard_normal((2, count))
        swapped = rng.random(count) < 0.5
        pairs = np.where(swapped, regions[::-1], regions).T
        counts.append(np.histogramdd(pairs, [edges, edges])[0] / count)
    exact = bayes_optimum("ad", "place")
    assert np.max(counts, 0).sum() / 3 == pytest.approx(exact["image"], abs=0.008)


def test_a_missing_age_is_integrated_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's age known, no marker, one sex effect: both is the image with APOE4 known."""
    monkeypatch.setattr(population, "MISSING_AGE", 1.0)
    monkeypatch.setattr(population, "MARKERS", ())
    monkeypatch.setitem(population.AD, "place", replace(population.AD["place"], sex=0.0))
    found = optimum._ad(30000, "place")
    assert found["both_without_apoe4"] == pytest.approx(found["image"], abs=1e-3)
    assert found["both"] > found["image"] + 0.1
