"""Intervals that lie where the truth usually does hold it as often as they say, in every group."""

import numpy as np
import pytest

from hyperfusion_rt.artifact.usual_errors import UsualErrors, cross_scores
from hyperfusion_rt.metrics import conformal


def cases(count, seed):
    """Ages of 45 to 90, drawn to the middle, men's predicted too old, errors smaller when old."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(45, 90, count)
    sexes = rng.choice(["Female", "male", ""], count, p=[0.45, 0.45, 0.1]).tolist()
    older = np.array([3.0 * (sex == "male") for sex in sexes])
    noise = rng.normal(size=count) * (6 - 4 * (truth - 45) / 45)
    return truth, 65 + 0.8 * (truth - 65) + older + noise, sexes


def test_intervals_hold_the_truth_of_every_sex_and_size():
    inside, plain, widths = [], [], []
    for seed in range(20):
        truth, predicted, sexes = cases(2500, seed)
        known, new = slice(500), slice(500, None)
        found, scores = cross_scores(
            predicted[known], (predicted - truth)[known], sexes[known], np.ones(500)
        )
        limit = conformal.threshold(scores, 0.9)
        errors = (predicted - truth)[new]
        inside.append(found.scores(predicted[new], errors, sexes[new], np.ones(2000)) <= limit)
        size = conformal.threshold(np.abs(predicted - truth)[known], 0.9)
        plain.append(np.abs(errors) <= size)
        widths.append((2 * limit * found.sizes(predicted[new]).mean(), 2 * size))
    inside, plain = np.concatenate(inside), np.concatenate(plain)
    assert inside.mean() == pytest.approx(0.9, abs=0.01)
    every = [cases(2500, seed) for seed in range(20)]
    truth = np.concatenate([one[0][500:] for one in every])
    sexes = np.concatenate([one[2][500:] for one in every])
    off = []
    for low in (50, 60, 70, 80):
        for sex in ("male", "Female"):
            here = (sexes == sex) & (truth >= low) & (truth < low + 10)
            off.append([abs(of[here].mean() - 0.9) for of in (inside, plain)])
    mine, peer = np.max(off, 0)
    assert mine < 0.065
    assert peer > 0.1  # one width for all
    ours, others = np.mean(widths, 0)
    assert ours < 0.95 * others


def test_few_cases_or_equal_ones_have_none():
    truth, predicted, sexes = cases(99, 0)
    assert cross_scores(predicted, predicted - truth, sexes, np.ones(99)) is None
    same = np.full(200, 70.0)
    assert cross_scores(same, same - 60, ["F"] * 200, np.ones(200)) is None
    assert UsualErrors.fit(np.arange(9.0), np.arange(9.0), [""] * 9, np.ones(9)) is None  # no error


def test_a_sex_of_few_cases_has_the_line_of_all():
    truth, predicted, sexes = cases(300, 1)
    found = UsualErrors.fit(predicted, predicted - truth, sexes, np.ones(300))
    assert set(found.lines) == {"female", "male", ""}  # in lower case
    few = UsualErrors.fit(predicted[:150], (predicted - truth)[:150], sexes[:150], np.ones(150))
    assert set(few.lines) == {""}
    np.testing.assert_array_equal(few.centres(predicted[:3], ["male", "Female", "x"]),
                                  few.centres(predicted[:3], ["", "", ""]))  # fmt: skip


def test_far_outside_it_is_as_at_the_end():
    truth, predicted, sexes = cases(500, 2)
    found = UsualErrors.fit(predicted, predicted - truth, sexes, np.ones(500))
    ends = np.array([predicted.min(), predicted.max()])
    far = np.array([-1e6, 1e6])
    np.testing.assert_allclose(found.sizes(far), found.sizes(ends))
    np.testing.assert_allclose(found.centres(far, ["", ""]), found.centres(ends, ["", ""]))
    assert (found.sizes(np.linspace(0, 120, 50)) >= found.least).all()
