"""Tests of pairs against SciPy, and against their formulas written out."""

import numpy as np
import pytest
from scipy import stats

from hyperfusion_rt.compare.statistics import auc_parts, delong, holm, permutation, resampled_t


def test_without_overlap_the_resampled_t_is_the_paired_t():
    d = np.random.default_rng(0).normal(0.3, 1, 15)
    assert resampled_t(d, 0) == pytest.approx(stats.ttest_1samp(d, 0).pvalue)


def test_the_resampled_t_by_hand():
    # mean 2, variance 1, J = 3: t = 2 / sqrt((1/3 + 1/4) · 1), two degrees of freedom.
    t = 2 / np.sqrt(7 / 12)
    # The distribution of two degrees of freedom has a closed form.
    by_hand = 1 - t / np.sqrt(2 + t * t)
    assert resampled_t(np.array([1.0, 2.0, 3.0]), 0.25) == pytest.approx(by_hand)
    assert resampled_t(np.array([1.0]), 0.25) is None
    assert resampled_t(np.zeros(3), 0.25) == 1
    assert resampled_t(np.full(3, 0.5), 0.25) == 0


def test_few_subjects_are_exchanged_in_every_way():
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(4)
    # Of 16 ways to exchange them, only the two with one sign are as far apart.
    assert permutation(a, b) == pytest.approx(2 / 16)
    assert permutation(a, a) == 1
    assert permutation(a[:1], b[:1]) is None


def test_many_subjects_are_exchanged_at_random():
    rng = np.random.default_rng(1)
    a = rng.normal(size=60)
    p = permutation(a, a - 0.4 - rng.normal(0, 1, 60))
    # A sum of many signs is nearly normal.
    d = 0.4 + np.random.default_rng(1).normal(size=(2, 60))[1]
    z = d.sum() / np.sqrt(np.square(d).sum())
    assert p == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.01)


def slow_delong(positive, one, other):
    """DeLong's test as the paper writes it: all pairs of a positive and a negative."""
    kept = []
    for scores in (one, other):
        x, y = scores[positive], scores[~positive]
        psi = (x[:, None] > y) + 0.5 * (x[:, None] == y)
        kept.append((psi.mean(), psi.mean(1), psi.mean(0)))
    s10, s01 = (np.cov(kept[0][k], kept[1][k]) for k in (1, 2))
    s = s10 / positive.sum() + s01 / (~positive).sum()
    variance = s[0, 0] + s[1, 1] - 2 * s[0, 1]
    difference = kept[0][0] - kept[1][0]
    return kept[0][0], difference, 2 * stats.norm.sf(abs(difference) / np.sqrt(variance))


@pytest.mark.parametrize("digits", [1, 6])  # with equal scores, and without
def test_delong(digits):
    rng = np.random.default_rng(2)
    positive = rng.random(70) < 0.4
    one = np.round(rng.normal(size=70) + positive, digits)
    other = np.round(rng.normal(size=70) + 0.5 * positive, digits)
    area, difference, p = slow_delong(positive, one, other)
    (area_a, errors_a), (area_b, errors_b) = auc_parts(positive, one), auc_parts(positive, other)
    assert area_a == pytest.approx(area)
    assert area_a - area_b == pytest.approx(difference)
    found = delong(np.array([area_a - area_b]), errors_a - errors_b, np.arange(70))
    assert found == pytest.approx(p)


def test_delong_sums_the_cases_of_a_subject():
    rng = np.random.default_rng(3)
    positive, noise = rng.random(40) < 0.5, rng.normal(size=(2, 40))
    d = auc_parts(positive, noise[0] + positive)[1] - auc_parts(positive, noise[1] + positive)[1]
    each, one = np.arange(40), np.array([0.1])
    alone = delong(one, d, each)
    # The same cases twice, as two sessions of each: no more is known.
    assert delong(one, np.concatenate([d, d]) / 2, np.concatenate([each, each])) == pytest.approx(
        alone
    )
    assert delong(np.zeros(1), np.zeros(40), each) == 1
    assert delong(one, np.zeros(40), each) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, None, 0.005]) == pytest.approx([0.03, 0.06, 0.06, None, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
