"""Whether two models differ: tests of pairs, and what many tests do to a p-value.

- The corrected resampled t-test: t = mean(d) / √((1/J + n_test/n_train) · var(d)), with J - 1
  degrees of freedom, of the differences d of J trainings; the trainings share cases, which the
  second term answers for. Nadeau & Bengio, Machine Learning 52, 2003.
- The paired permutation test: the answers of two models to a subject are exchanged at random.
- DeLong's test of two areas under the ROC curve (DeLong et al., Biometrics 44, 1988), with
  subjects as clusters (Obuchowski, Biometrics 53, 1997), and of the mean over classes.
- Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_RESAMPLES = 9999
_SEED = 0


def resampled_t(differences: Floats, ratio: float) -> float | None:
    """The two-sided p-value of `differences [J]`; None of fewer than two.

    Args:
        ratio: test cases over training cases. 0 is the plain paired t-test.
    """
    from scipy import stats

    count = len(differences)
    if count < 2:
        return None
    mean, variance = float(differences.mean()), float(differences.var(ddof=1))
    scale = np.sqrt((1 / count + ratio) * variance)
    if scale <= 1e-12 * max(1.0, abs(mean)):
        return 1.0 if abs(mean) <= 1e-12 else 0.0
    return float(2 * stats.t.sf(abs(mean) / scale, count - 1))


def permutation(a: Floats, b: Floats) -> float | None:
    """The two-sided p-value of the sum of `a - b [subjects]`; None of fewer than two subjects.

    `a`, `b`: what each subject adds to the figure of each model. Exact where there are at most
    9,999 ways to exchange them, else of so many random ones.
    """
    from scipy import stats

    if len(a) < 2:
        return None
    if np.allclose(a, b, rtol=0, atol=1e-15):
        return 1.0
    found = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.sum(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, (1 << 22) // len(a)),
        random_state=np.random.default_rng(_SEED),
    )
    return float(found.pvalue)


def auc_parts(positive: NDArray[np.bool_], scores: Floats) -> tuple[float, Floats]:
    """The area under the ROC curve, and what each of N cases adds to its error `[N]`.

    The sum of the squares of the second is DeLong's estimate of the variance. Both kinds need two
    cases at least.
    """
    from scipy.stats import rankdata

    m, n = int(positive.sum()), int((~positive).sum())
    ranks = rankdata(scores)
    placed = np.empty(len(scores))
    # How much of the other kind lies below a positive, above a negative; equals count half.
    placed[positive] = (ranks[positive] - rankdata(scores[positive])) / n
    placed[~positive] = 1 - (ranks[~positive] - rankdata(scores[~positive])) / m
    area = float(placed[positive].mean())
    sizes = np.where(positive, np.sqrt(m * (m - 1.0)), np.sqrt(n * (n - 1.0)))
    return area, (placed - area) / sizes


def delong(differences: Floats, errors: Floats, subject: NDArray[np.intp]) -> float | None:
    """The two-sided p-value of a difference of areas; None where nothing varies.

    Args:
        differences: `[R]`, of each repetition; their mean is tested.
        errors: `[N]`, what each case adds to the error of that mean (`auc_parts`).
        subject: `[N]`, from 0: the cases of one are summed up.
    """
    from scipy import stats

    difference = float(differences.mean())
    variance = float(np.square(np.bincount(subject, errors)).sum())
    if variance <= 1e-20:
        return 1.0 if abs(difference) <= 1e-12 else None
    return float(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """The p-values of several tests, corrected; those that are None do not count."""
    known = sorted((value, at) for at, value in enumerate(values) if value is not None)
    found: list[float | None] = [None] * len(values)
    largest = 0.0
    for place, (value, at) in enumerate(known):
        largest = max(largest, min(1.0, value * (len(known) - place)))
        found[at] = largest
    return found
