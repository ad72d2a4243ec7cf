import numpy as np
import pytest

from hyperfusion_rt.artifact.description import figures
from hyperfusion_rt.errors import CohortError
from hyperfusion_rt.rules import combine, confidences, softmax, spread
from hyperfusion_rt.training.metrics import (
    balanced_accuracy,
    bootstrap_interval,
    classification,
    regression,
)
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


def test_classification_against_numbers_worked_by_hand():
    truth = np.array([0, 0, 1, 1, 1, 2])
    predicted = np.array([0, 1, 1, 1, 0, 2])
    probabilities = np.eye(3)[predicted] * 0.8 + 0.1
    found = classification(truth, probabilities, ["a", "b", "c"])
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert found["recall"] == {"a": 0.5, "b": pytest.approx(2 / 3), "c": 1.0}
    assert found["confusion"] == [[1, 1, 0], [1, 2, 0], [0, 0, 1]]
    assert found["macro_f1"] == pytest.approx((0.5 + 2 / 3 + 1) / 3)
    assert found["auc"] == pytest.approx((5 / 8 + 2 / 3 + 1) / 3)
    low, high = found["balanced_accuracy_95"]
    assert low < found["balanced_accuracy"] < high


def test_bootstrap_covers_a_binomial():
    hits = np.repeat([1.0, 0.0], [70, 30])
    low, high = bootstrap_interval(lambda i: float(hits[i].mean()), np.zeros(100))
    half = 1.96 * np.sqrt(0.7 * 0.3 / 100)
    assert (low, high) == (pytest.approx(0.7 - half, abs=0.02), pytest.approx(0.7 + half, abs=0.02))


def test_an_absent_class_does_not_count():
    assert balanced_accuracy(np.array([0, 0]), np.array([0, 1]), 3) == 0.5


def test_regression_figures():
    truth = np.array([50.0, 60.0, 70.0, 80.0])
    found = regression(truth, 65 + (truth - 65) / 2 + 1)
    assert found["bias"] == pytest.approx(1)
    assert found["bias_slope"] == pytest.approx(-0.5)
    assert found["r"] == pytest.approx(1)
    assert found["mae"] == pytest.approx(np.mean(np.abs([8.5, 3.5, -1.5, -6.5])))


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


def test_chance_follows_from_the_classes_that_occur():
    right = np.eye(3)[[0, 0, 0]] * 0.8 + 0.1
    found = classification(np.array([0, 0, 0]), right, ["a", "b", "c"])
    assert (found["balanced_accuracy"], found["chance"]) == (1.0, 1.0)
    assert found["absent"] == ["b", "c"]
    assert found["auc"] is None
    assert found["recall"] == {"a": 1.0, "b": None, "c": None}
    found = classification(np.array([0, 2, 2]), right, ["a", "b", "c"])
    assert (found["chance"], found["absent"]) == (0.5, ["b"])
    assert found["macro_f1"] == pytest.approx(0.25)  # 2/4 and 0
    found = classification(np.array([0, 1, 2]), right, ["a", "b", "c"])
    assert (found["chance"], found["absent"]) == (1 / 3, [])


def test_figures_of_none_one_or_two_cases():
    none = np.empty(0)
    assert classification(none.astype(int), np.empty((0, 2)), ["a", "b"]) == {
        "cases": 0,
        "absent": ["a", "b"],
    }
    assert regression(none, none, "ml") == {"cases": 0, "unit": "ml"}
    one = regression(np.array([70.0]), np.array([72.0]))
    assert (one["cases"], one["mae"], one["mae_95"], one["chance"]) == (1, 2.0, None, None)
    two = regression(np.array([70.0, 60.0]), np.array([72.0, 61.0]))
    assert (two["r"], two["bias_slope"]) == (None, None)
    assert two["chance"] == 5
    for found in (one, two, {"cases": 0}):
        assert all("nan" not in text for card in figures(found) for text in card)
