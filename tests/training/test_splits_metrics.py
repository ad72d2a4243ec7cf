import numpy as np
import pytest

from hyperfusion_rt.errors import CohortError
from hyperfusion_rt.rules import combine, confidences, softmax, spread
from hyperfusion_rt.training.splits import Parts, age_bins, stratified_parts


def test_parts_are_balanced_in_every_stratum_and_repeatable():
    rng = np.random.default_rng(0)
    strata = [(int(a), int(b)) for a, b in rng.integers(3, size=(500, 2))]
    subjects = [f"s{i}" for i in range(500)]
    part = stratified_parts(subjects, strata, 5, seed=3)
    assert np.bincount(part).tolist() == [100] * 5
    for stratum in set(strata):
        counts = np.bincount(part[[s == stratum for s in strata]], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert np.array_equal(part, stratified_parts(subjects, strata, 5, seed=3))
    assert not np.array_equal(part, stratified_parts(subjects, strata, 5, seed=4))


def test_the_sessions_of_a_subject_stay_together():
    subjects = [f"s{i // 3}" for i in range(60)]
    part = stratified_parts(subjects, [(i % 2,) for i in range(60)], 4, seed=0)
    assert all(len(set(part[i : i + 3])) == 1 for i in range(0, 60, 3))


def test_members_rotate_validation_and_share_the_test_set():
    part = np.arange(10) % 5
    for member in range(5):
        names = Parts(part, 4, (0, 1, 2, 3)).names(member)
        assert set(part[names == "test"]) == {4}
        assert set(part[names == "validation"]) == {member % 4}
        assert (names == "train").sum() == 6


def test_too_few_subjects():
    with pytest.raises(CohortError, match="2 subjects cannot be split into 3 parts"):
        stratified_parts(["a", "b", "b"], [(0,)] * 3, 3, 0)


def test_age_bins():
    bins = age_bins(np.array([50.0, 90.0, np.nan, 70.0, 51.0]))
    assert bins.tolist() == [0, 19, -1, 10, 0]
    assert age_bins(np.array([5.0, np.nan])).tolist() == [0, -1]


def test_combining_members():
    outputs = np.log(np.array([[[0.8, 0.2], [0.6, 0.4]], [[0.45, 0.55], [0.45, 0.55]]]))
    assert combine(outputs, True, "mean") == pytest.approx([0.575, 0.425])
    assert spread(outputs, True, 0) == pytest.approx(0.125)
    p = np.array([[0.7, 0.3], [0.45, 0.55]])
    weights = 1 / -(p * np.log(p)).sum(1)
    assert confidences(p) == pytest.approx(weights)
    weights /= weights.sum()
    assert combine(outputs, True, "confidence_weighted") == pytest.approx(weights @ p)
    # The first member votes for the first class, the second for the second.
    assert combine(outputs, True, "weighted_voting") == pytest.approx(weights)
    assert combine(outputs, True, "most_confident") == pytest.approx(p[0])
    years = np.array([[[60.0]], [[70.0]]])
    assert combine(years, False, "mean") == pytest.approx([65])
    assert spread(years, False, 0) == 5
    assert spread(outputs[:1], True, 0) is None
    with pytest.raises(ValueError, match="needs classes"):
        combine(years, False, "most_confident")
    assert softmax(np.array([1000.0, 1000.0])) == pytest.approx([0.5, 0.5])
