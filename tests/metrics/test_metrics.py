"""Figures against numbers worked by hand, against scikit-learn and SciPy, and of odd input."""

import time

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.metrics import (
    age_bands,
    balanced_accuracy,
    bootstrap,
    by_group,
    classification,
    deviation,
    regression,
    repeatability,
)
from hyperfusion_rt.metrics.bootstrap import index_of, resample, strata_of
from hyperfusion_rt.metrics.classification import BINS, reliability, roc
from hyperfusion_rt.metrics.words import figures_in_words, headline


def drawn(cases, classes, seed=0):
    """Truth and probabilities that follow it a little, in steps of 0.02: there are ties."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=cases)
    odds = rng.dirichlet(np.ones(classes), cases) + 0.3 * np.eye(classes)[truth]
    return truth, rng.multinomial(50, odds / odds.sum(1, keepdims=True)) / 50


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


def test_an_absent_class_does_not_count():
    assert balanced_accuracy(np.array([0, 0]), np.array([0, 1]), 3) == 0.5


def test_regression_figures():
    truth = np.array([50.0, 60.0, 70.0, 80.0])
    found = regression(truth, 65 + (truth - 65) / 2 + 1)
    assert found["bias"] == pytest.approx(1)
    assert found["bias_slope"] == pytest.approx(-0.5)
    assert found["r"] == pytest.approx(1)
    assert found["mae"] == pytest.approx(np.mean(np.abs([8.5, 3.5, -1.5, -6.5])))


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
        assert all("nan" not in text for card in headline(found) for text in card)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_figures_of_classes_are_those_of_scikit_learn(classes):
    truth, p = drawn(300, classes)
    found = classification(truth, p, [str(c) for c in range(classes)])
    predicted = p.argmax(1)
    areas = [sk.roc_auc_score(truth == c, p[:, c]) for c in range(classes)]
    expected = {
        "balanced_accuracy": sk.balanced_accuracy_score(truth, predicted),
        "macro_f1": sk.f1_score(truth, predicted, average="macro"),
        "auc": areas[1] if classes == 2 else np.mean(areas),
        "brier": sk.brier_score_loss(truth, p, labels=list(range(classes))),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert found["confusion"] == sk.confusion_matrix(truth, predicted).tolist()
    recalls = sk.recall_score(truth, predicted, average=None)
    assert list(found["recall"].values()) == pytest.approx(recalls)
    assert found["reasons"] == {}
    for name in (*expected, "ece"):
        low, high = found[f"{name}_95"]
        assert low < high
    for name, (low, high) in found["recall_95"].items():
        assert low <= found["recall"][name] <= high


def test_the_curves_are_those_of_scikit_learn():
    truth, p = drawn(200, 2)
    false, true = roc(truth == 1, p[:, 1])
    expected = sk.roc_curve(truth, p[:, 1], drop_intermediate=False)
    np.testing.assert_allclose(false, expected[0])
    np.testing.assert_allclose(true, expected[1])


def test_the_calibration_error_by_hand():
    p = np.array([[0.9, 0.1], [0.92, 0.08], [0.6, 0.4], [1.0, 0.0]])
    truth = np.array([0, 1, 0, 0])
    # Bins of 1/15: 0.9 and 0.92 share the one that ends at 14/15.
    expected = (abs(1 - 1.82) + abs(1 - 0.6) + 0) / 4
    assert classification(truth, p, ["a", "b"])["ece"] == pytest.approx(expected)
    bins = reliability(truth, p)
    assert [b["cases"] for b in bins] == [1, 2, 1]
    assert bins[1] == pytest.approx({"cases": 2, "probability": 0.91, "accuracy": 0.5})
    assert BINS == 15


def test_figures_of_numbers_are_those_of_scipy():
    rng = np.random.default_rng(1)
    truth = rng.normal(60, 10, 80)
    predicted = 12 + 0.8 * truth + rng.normal(0, 5, 80)
    found = regression(truth, predicted, "years")
    line = stats.linregress(truth, predicted - truth)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, predicted))
    assert found["r"] == pytest.approx(stats.pearsonr(truth, predicted).statistic)
    assert (found["bias"], found["bias_slope"]) == pytest.approx(
        (np.mean(predicted - truth), line.slope)
    )
    ours = found["mae_95"]
    theirs = stats.bootstrap(
        (np.abs(predicted - truth),), np.mean, method="percentile", n_resamples=9999, rng=2
    ).confidence_interval
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.1)
    assert (found["cases"], found["subjects"], found["unit"]) == (80, 80, "years")


def test_sessions_of_a_subject_are_drawn_together():
    subject = index_of(["a", "b", "a", "c", "b"])
    (counts,) = resample(subject, np.zeros(3, int), 500, 0)
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, 1] == counts[:, 4]).all()
    # Every sample holds three subjects: 2 a + 2 b + c.
    assert set((counts[:, 0] + counts[:, 1] + counts[:, 3]).tolist()) == {3.0}


def test_repeated_sessions_do_not_narrow_an_interval():
    truth, p = drawn(60, 3)
    once = classification(truth, p, list("abc"))
    people = [f"s{i % 60}" for i in range(240)]
    four = classification(np.tile(truth, 4), np.tile(p, (4, 1)), list("abc"), people)
    for name in ("balanced_accuracy", "auc", "brier"):
        assert four[name] == pytest.approx(once[name])
        assert np.ptp(four[f"{name}_95"]) == pytest.approx(np.ptp(once[f"{name}_95"]), rel=0.15)
    assert (four["cases"], four["subjects"]) == (240, 60)


def test_subjects_are_drawn_class_by_class_where_that_helps():
    assert strata_of(index_of("aabbc"), np.array([0, 0, 1, 1, 1])).tolist() == [0, 0, 0]
    assert strata_of(index_of("aabbcd"), np.array([0, 0, 1, 1, 1, 0])).tolist() == [0, 1, 1, 0]
    # `a` has two classes.
    assert strata_of(index_of("aabc"), np.array([0, 1, 1, 0])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("figure", ["balanced_accuracy", "auc", "brier", "mae", "r"])
def test_the_intervals_cover_the_truth(figure):
    """In 200 studies of 80 cases, 90 to 99 % of the intervals hold the value of 200,000 cases."""

    def study(cases, seed):
        rng = np.random.default_rng(seed)
        if figure in ("mae", "r"):
            truth = rng.normal(60, 10, cases)
            return regression(truth, 12 + 0.8 * truth + rng.normal(0, 5, cases))
        truth = np.arange(cases) % 2
        second = 1 / (1 + np.exp(-rng.normal(1.5 * truth - 0.75, 1)))
        return classification(truth, np.stack([1 - second, second], 1), ["a", "b"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "SAMPLES", 2)
        true = study(200_000, 10_000)[figure]
        patch.setattr(bootstrap, "SAMPLES", 400)
        intervals = [study(80, seed)[f"{figure}_95"] for seed in range(200)]
    covered = np.mean([low <= true <= high for low, high in intervals])
    assert 0.90 <= covered <= 0.99


def test_two_thousand_samples_of_two_thousand_cases_are_fast():
    truth, p = drawn(2000, 3)
    start = time.process_time()
    classification(truth, p, list("abc"))
    regression(truth, p[:, 0])
    # 0.8 s on two cores of a shared machine.
    assert time.process_time() - start < 4


CONSTANT = np.full((6, 2), 0.5)


@pytest.mark.parametrize(
    ("truth", "p", "none", "why"),
    [
        ([0], CONSTANT[:1], {"auc"}, {"auc": "one class only"}),
        ([1] * 6, CONSTANT, {"auc"}, {"auc": "one class only"}),
        ([0, 1] * 3, CONSTANT, set(), {"auc": "no interval: the same in every resample"}),
        ([0, 1] * 3, np.eye(2)[[0, 1] * 3], set(), {"ece": "no interval: the same in every"}),
    ],
)
def test_odd_classes_have_no_figure_and_a_reason(truth, p, none, why):
    found = classification(np.array(truth), p, ["a", "b"])
    names = ("balanced_accuracy", "macro_f1", "auc", "brier", "ece")
    assert {name for name in names if found[name] is None} == none
    for name, text in why.items():
        assert found["reasons"][name].startswith(text)
        assert found[f"{name}_95"] is None
    for name in names:
        assert (found[name] is None or found[f"{name}_95"] is None) == (name in found["reasons"])
        assert found[name] is None or np.isfinite(found[name])
    assert "nan" not in str(headline(found))


@pytest.mark.parametrize(
    ("truth", "predicted", "why"),
    [
        ([70.0], [72.0], {"mae": "no interval: one subject only", "chance": "needs two cases"}),
        ([70.0] * 5, [71.0, 72, 73, 74, 75], {"r": "the truth is constant"}),
        ([60.0, 70, 80, 90], [71.0] * 4, {"r": "the prediction is constant"}),
        ([60.0, 70], [61.0, 72], {"r": "needs three cases", "bias_slope": "needs three cases"}),
    ],
)
def test_odd_numbers_have_no_figure_and_a_reason(truth, predicted, why):
    found = regression(np.array(truth), np.array(predicted))
    for name, text in why.items():
        assert found["reasons"][name] == text
        assert found.get(f"{name}_95") is None
    assert found["mae"] is not None
    assert "nan" not in str(headline(found))


def test_one_subject_with_many_sessions_has_no_interval():
    truth, p = drawn(20, 3)
    found = classification(truth, p, list("abc"), ["only"] * 20)
    assert found["balanced_accuracy_95"] is None
    assert found["reasons"]["balanced_accuracy"] == "no interval: one subject only"
    assert found["subjects"] == 1


def test_groups_and_bands():
    assert age_bands([65.3, None, 8.0, 100.0, 69.99]) == [
        "60 to 69", "", "0 to 9", "100 to 109", "60 to 69",
    ]  # fmt: skip
    groups = ["90 to 99"] * 12 + ["100 to 109"] * 10 + [""] * 3 + ["8 to 9"] * 9
    found = by_group(groups, lambda index: {"cases": len(index), "first": int(index[0])})
    assert list(found) == ["8 to 9", "90 to 99", "100 to 109", ""]
    assert found["90 to 99"] == {"cases": 12, "first": 0}
    assert found["100 to 109"] == {"cases": 10, "first": 12}
    assert found["8 to 9"] == {"cases": 9, "too_few": True}
    assert found[""] == {"cases": 3, "too_few": True}
    assert by_group([], lambda index: {}) == {}


def test_figures_in_words():
    truth, p = drawn(200, 3)
    found = {item.name: item for item in figures_in_words(classification(truth, p, list("abc")))}
    assert list(found)[:2] == ["balanced accuracy", "AUC, one against the rest"]
    assert (found["balanced accuracy"].chance, found["AUC, one against the rest"].chance) == (
        "0.333",
        "0.500",
    )
    assert found["recall of a"].cases == (truth == 0).sum()
    assert " to " in found["recall of a"].interval
    one = figures_in_words(regression(np.array([70.0]), np.array([72.0]), "ml"))
    assert [item.value for item in one] == ["2.00 ml", "none", "2.00 ml", "none"]
    assert {item.note for item in one} == {"no interval: one subject only", "needs three cases"}
    # A run of an older version has fewer figures.
    old = {"cases": 5, "mae": 1234.5, "mae_95": None, "chance": 2e5, "unit": "mm3", "r": None}
    assert headline(old) == [
        ("1234 mm3", "mean absolute error"),
        ("200000 mm3", "always guessing the median"),
    ]
    for none in ({"cases": 0}, {}, {"cases": 3, "too_few": True}):
        assert figures_in_words(none) == headline(none) == []


# ---- repeatability

# Six subjects rated by four judges: Shrout & Fleiss 1979, table 2.
RATINGS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
)


def repeated(table):
    n, k = table.shape
    return repeatability(
        table.ravel(), [f"S{i}" for i in range(n) for _ in range(k)], [*map(str, range(k))] * n
    )


def test_repeatability_against_the_published_example():
    """Shrout & Fleiss 1979, table 4: ICC(2,1) = .29, ICC(3,1) = .71."""
    found = repeated(RATINGS)
    assert (found["subjects"], found["sessions"], found["left_out"]) == (6, 4, 0)
    assert found["icc_agreement"] == pytest.approx(0.29, abs=0.005)
    assert found["icc_consistency"] == pytest.approx(0.71, abs=0.005)
    assert found["within_sd"] == pytest.approx(np.sqrt(6.26), abs=0.002)  # their within-target MS
    low, high = found["icc_agreement_95"]
    assert low < found["icc_agreement"] < high


def test_repeatability_of_a_known_model():
    """Values of variance 1 between subjects, 0.25 within: ICC 0.8; a shift costs agreement only."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((1500, 1)) + 0.5 * rng.standard_normal((1500, 2))
    found = repeated(table)
    # Four standard errors, (1 - 0.8²) / √1500 and 0.5 / √(2 · 1500).
    assert found["icc_agreement"] == pytest.approx(0.8, abs=0.037)
    assert found["icc_consistency"] == pytest.approx(0.8, abs=0.037)
    assert found["within_sd"] == pytest.approx(0.5, abs=0.037)
    low, high = found["icc_agreement_95"]
    assert low < 0.8 < high < low + 0.06
    shifted = repeated(table + np.array([0, 1]))
    assert shifted["icc_consistency"] == pytest.approx(found["icc_consistency"])
    assert shifted["icc_agreement"] == pytest.approx(1 / (1 + 0.25 + 0.5), abs=0.037)


def test_a_resample_is_the_figure_of_its_rows():
    """Counts mean what rows written several times mean."""
    from hyperfusion_rt.metrics.repeatability import _correlation

    times = np.array([2, 0, 1, 3, 0, 1])
    written = RATINGS[np.repeat(np.arange(6), times)].astype(float)
    for agreement in (True, False):
        counted = _correlation(
            times[None].astype(float), RATINGS.astype(float), agreement=agreement
        )
        whole = _correlation(np.ones((1, len(written))), written, agreement=agreement)
        assert counted == pytest.approx(whole)


def test_repeatability_leaves_out_who_lacks_a_session():
    table = RATINGS[:, :2].astype(float)
    table[1, 1] = np.nan
    names = [f"S{i}" for i in range(6) for _ in range(2)]
    found = repeatability(table.ravel()[:-1], names[:-1], (["1", "2"] * 6)[:-1])
    assert (found["subjects"], found["left_out"]) == (4, 2)
    whole = repeated(RATINGS[[0, 2, 3, 4], :2])
    assert found["icc_agreement"] == whole["icc_agreement"]


def test_repeatability_without_an_answer_says_why():
    assert repeated(np.ones((5, 2)))["reasons"]["icc_agreement"] == "all values are equal"
    assert repeated(np.ones((5, 2)))["within_sd"] == 0
    assert repeated(RATINGS[:1])["reasons"]["within_sd"] == "needs two subjects with every session"
    alone = repeated(RATINGS[:, :1])
    assert alone["icc_consistency"] is None
    assert alone["reasons"]["icc_consistency"] == "needs two sessions"
    assert repeatability([], [], [])["subjects"] == 0
    same = repeated(np.arange(6.0)[:, None] + np.zeros(2))
    assert same["icc_agreement"] == same["icc_consistency"] == 1


def test_repeatability_refuses_two_values_of_one_scan():
    with pytest.raises(HyperFusionError, match=r"'S1', session '2': has several values"):
        repeatability([1, 2, 3], ["S0", "S1", "S1"], ["1", "2", "2"])


# ---- predicted standard deviations


def test_deviations_of_numbers_worked_by_hand():
    found = deviation(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 5, 10]), np.array([1.0, 2, 2, 2]))
    assert (found["coverage_68"], found["coverage_95"]) == (0.75, 0.75)
    exact = -stats.norm.logpdf([0, 1, 2, 6], 0, [1, 2, 2, 2]).mean()
    assert found["nll"] == pytest.approx(exact)
    assert deviation(np.empty(0), np.empty(0), np.empty(0)) == {}


def test_right_deviations_cover_what_they_should():
    rng = np.random.default_rng(0)
    truth, sd = rng.uniform(40, 90, 40_000), rng.uniform(1, 9, 40_000)
    predicted = rng.normal(truth, sd)
    right = deviation(truth, predicted, sd)
    assert right["coverage_68"] == pytest.approx(0.683, abs=0.01)
    assert right["coverage_95"] == pytest.approx(0.95, abs=0.005)
    assert all(deviation(truth, predicted, f * sd)["nll"] > right["nll"] for f in (0.8, 1.2))
    numbers = regression(truth[:50], predicted[:50], "years")
    words = figures_in_words(numbers | deviation(truth[:50], predicted[:50], sd[:50]))
    assert [w.name for w in words if "predicted sd" in w.name or "likelihood" in w.name] == [
        "truth within 1 predicted sd (0.68 is right)",
        "truth within 1.96 predicted sd (0.95 is right)",
        "negative log likelihood",
    ]
    assert all("years" not in w.value for w in words[-3:])
