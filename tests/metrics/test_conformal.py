"""Sets and intervals that hold the truth as often as they say; beside those of MAPIE and crepes."""

import numpy as np
import pytest

from hyperfusion_rt.metrics import conformal


def classes(count, seed, sharp=2.0, hot=1.0):
    """Probabilities that are right, as the powers `hot` of them show it, and truths drawn."""
    rng = np.random.default_rng(seed)
    right = conformal.scaled(rng.dirichlet([1.0, 1.5, 1.0], count), 1 / sharp)
    truth = (rng.random((count, 1)) > right.cumsum(1)).sum(1)
    return conformal.scaled(right, 1 / hot), truth


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("hot", [0.5, 1.0, 3.0])
def test_sets_hold_the_truth_as_often_as_they_say(level, hot):
    """Whether the probabilities are right or not."""
    found = []
    for seed in range(20):
        p, truth = classes(2400, seed, hot=hot)
        limit = conformal.threshold(conformal.class_scores(p[:400], truth[:400]), level)
        inside = conformal.before(p[400:]) <= limit
        assert inside.any(1).all()  # no set is empty
        found.append(inside[np.arange(2000), truth[400:]].mean())
    # Of 400 cases the sd is 0.015 to 0.02, of 20 repetitions a fifth of it.
    assert abs(np.mean(found) - level) < 0.015


def test_a_case_by_hand():
    p = np.array([[0.5, 0.2, 0.3]])
    np.testing.assert_allclose(conformal.before(p), [[0.0, 0.8, 0.5]])
    np.testing.assert_allclose(conformal.before(np.full((1, 3), 1 / 3)), [[0, 1 / 3, 2 / 3]])


def test_the_threshold_is_the_right_order_statistic():
    scores = np.arange(9.0, 0, -1)  # 9 to 1
    assert conformal.threshold(scores, 0.9) == 9.0  # ceil(10 * 0.9) = 9th
    assert conformal.threshold(scores, 0.5) == 5.0
    with pytest.raises(ValueError, match=r"9 scores give a level of 0.9"):
        conformal.threshold(scores, 0.91)
    assert conformal.highest_level(9) == 0.9


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_sets_are_smaller_than_those_of_mapie(level):
    """Its adaptive sets without a random part hold the truth more often than they say."""
    classification = pytest.importorskip(
        "mapie.classification", reason="MAPIE is not installed: sets are NOT compared with its"
    )
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):
        classes_ = np.arange(3)

        def predict_proba(self, x):
            return x

        def predict(self, x):
            return x.argmax(1)

        def __sklearn_is_fitted__(self):
            return True

    coverage, size = [], []
    for seed in range(8):
        p, truth = classes(2400, seed, hot=2.0)
        theirs = classification.SplitConformalClassifier(
            Given(), confidence_level=level, conformity_score="aps", prefit=True
        )
        theirs.conformalize(p[:400], truth[:400])
        limit = conformal.threshold(conformal.class_scores(p[:400], truth[:400]), level)
        sets = conformal.before(p[400:]) <= limit, theirs.predict_set(p[400:])[1][:, :, 0]
        coverage.append([of[np.arange(2000), truth[400:]].mean() for of in sets])
        size.append([of.sum(1).mean() for of in sets])
    (ours, others), (small, large) = np.mean(coverage, 0), np.mean(size, 0)
    assert abs(ours - level) < 0.02
    assert ours < others
    assert small < large


# Where (n + 1) · level is a whole number, crepes may take the next rank: (1 - 0.8) * 20 < 4.
@pytest.mark.parametrize("count", [20, 100, 250])
@pytest.mark.parametrize("level", [0.8, 0.9])
def test_intervals_equal_those_of_crepes(count, level):
    crepes = pytest.importorskip("crepes")
    rng = np.random.default_rng(count)
    residuals, sigmas = rng.standard_normal(count), rng.uniform(0.5, 2, count)
    predicted, new = rng.normal(70, 5, 50), rng.uniform(0.5, 2, 50)
    for scale, of in ((None, None), (sigmas, new)):
        theirs = crepes.ConformalRegressor()
        theirs.fit(residuals=residuals, sigmas=scale)
        expected = theirs.predict_int(predicted, sigmas=of, confidence=level)
        ours = conformal.threshold(np.abs(residuals) / (1 if scale is None else scale), level)
        half = ours * (1 if of is None else of)
        np.testing.assert_allclose(expected, np.stack([predicted - half, predicted + half], 1))


def test_the_temperature_is_found_again():
    for hot in (0.4, 1.0, 2.5):
        p, truth = classes(20000, 1, hot=hot)
        assert conformal.temperature_of(p, truth) == pytest.approx(hot, rel=0.05)


def test_scaling_is_what_dividing_the_logits_is():
    logits = np.random.default_rng(0).normal(size=(5, 3))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (logits, logits / 1.7))
    np.testing.assert_allclose(conformal.scaled(p, 1.7), q, rtol=1e-12)
    certain = conformal.scaled(np.array([[1.0, 0.0, 0.0]]), 0.5)
    assert np.isfinite(certain).all()
    assert certain[0, 0] == 1.0


def test_ranks_and_lines():
    values = np.array([1.0, 2.0, 2.0, 4.0])
    assert conformal.rank_of(0.0, values) == 0.1
    assert conformal.rank_of(2.0, values) == 0.5
    assert conformal.rank_of(9.0, values) == 0.9
    assert conformal.line(np.array([1.0, 2, 3]), np.array([3.0, 5, 7])) == pytest.approx((2, 1))
    assert conformal.line(np.ones(3), np.array([1.0, 2, 3])) == (0.0, 2.0)
