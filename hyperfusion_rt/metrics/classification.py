"""The figures of predicted probabilities against true classes.

All are written for counts `[S, N]` (`bootstrap`): how often each of N cases counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.metrics.bootstrap import (
    Array,
    Floats,
    Statistic,
    index_of,
    mean_over,
    repetitions,
    with_intervals,
)

# Bins of equal width of the top probability, for the calibration error.
BINS = 15
_FIGURES = ("balanced_accuracy", "auc", "macro_f1", "brier", "ece")


def balanced_accuracy(truth: Array, predicted: Array, classes: int) -> float:
    """The mean recall over the classes that occur in `truth [N]` (class indices)."""
    pairs = _pairs(np.asarray(truth, np.intp), predicted, classes)
    return float(_mean_recall(_confusion(np.ones((1, len(pairs))), pairs, classes))[0])


def classification(
    truth: Array,
    probabilities: Array,
    classes: Sequence[str],
    subjects: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Figures of `probabilities [N, C]` against class indices `truth [N]`.

    `balanced_accuracy`, the mean recall; `macro_f1`; `auc`, one class against the rest, the mean
    over the classes (of two classes: of the second); `brier`, the mean over the cases of the
    squared error of the probabilities, summed over the classes (of two classes: of the second
    alone, half that sum); `ece`, the expected calibration error over 15 bins of equal width of the
    top probability (Guo et al., ICML 2017; too high where cases are few, its interval more so);
    `recall` of each class; `confusion`, true classes in rows. Of classes that do not occur
    (`absent`) nothing is counted, and `chance`, of the balanced accuracy, is that of the others;
    `auc_chance` is 0.5.

    `NAME_95` is the 95 % interval: a bootstrap over `subjects [N]` (default: each case is one), by
    class where every subject has one class and every class two subjects. What has no value is
    None, and `reasons` says why. Without a case there is no figure but `cases`.

    `probabilities` may also be `[R, N, C]`, of R repetitions, such as a cross-validation with
    several splits, with NaN where one has no answer: a figure is then the mean over the repetitions
    of each one's own, and `confusion` their sum. Every case has one answer at least.
    """
    if not len(truth):
        return {"cases": 0, "absent": list(classes)}
    truth = np.asarray(truth, np.intp)
    probabilities = np.asarray(probabilities, np.float64)
    subject = np.arange(len(truth)) if subjects is None else index_of(subjects)
    count = len(classes)
    present: list[int] = np.unique(truth).tolist()
    statistics = class_statistics(truth, probabilities, classes)
    figures, intervals, reasons = with_intervals(statistics, subject, truth)
    if figures["auc"] is None:
        reasons["auc"] = "one class only"
    recalls = {name: f"recall of {name}" for name in classes}
    confusion = np.zeros((count, count), int)
    for index, values in repetitions(probabilities, 2):
        np.add.at(confusion, (truth[index], values.argmax(1)), 1)
    found: dict[str, Any] = {"cases": len(truth), "subjects": int(subject.max()) + 1}
    for name in _FIGURES:
        found |= {name: figures[name], f"{name}_95": intervals[name]}
    return found | {
        "chance": 1 / len(present),
        "auc_chance": 0.5,
        "absent": [name for c, name in enumerate(classes) if c not in present],
        "recall": {name: figures.get(key) for name, key in recalls.items()},
        "recall_95": {name: intervals.get(key) for name, key in recalls.items()},
        "confusion": confusion.tolist(),
        "classes": list(classes),
        "reasons": reasons,
    }


def class_statistics(
    truth: Array, probabilities: Array, classes: Sequence[str]
) -> dict[str, Statistic]:
    """The statistics behind the figures of `classification`, by name, with its arguments."""
    truth = np.asarray(truth, np.intp)
    parts: dict[str, list[tuple[NDArray[np.intp], Statistic]]] = {}
    for index, values in repetitions(np.asarray(probabilities, np.float64), 2):
        for name, of in _statistics(truth[index], values, classes).items():
            parts.setdefault(name, []).append((index, of))
    return {name: mean_over(of) for name, of in parts.items()}


def _statistics(
    truth: Array, probabilities: Floats, classes: Sequence[str]
) -> dict[str, Statistic]:
    """Of one repetition."""
    count = len(classes)
    pairs = _pairs(truth, probabilities.argmax(1), count)
    present: list[int] = np.unique(truth).tolist()
    found: dict[str, Statistic] = {
        "balanced_accuracy": lambda counts: _mean_recall(_confusion(counts, pairs, count)),
        "auc": _auc(truth, probabilities, present),
        "macro_f1": lambda counts: _macro_f1(_confusion(counts, pairs, count)),
        "brier": _mean(_squared_error(truth, probabilities)),
        "ece": _calibration_error(truth, probabilities),
    }
    return found | {f"recall of {classes[c]}": _recall(pairs, count, c) for c in present}


def roc(truth: Array, scores: Array) -> tuple[Floats, Floats]:
    """False and true positive rate `[K]` for every threshold of `scores [N]`, from 0 to 1.

    `truth`: bool `[N]`, with both values.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(truth[order])[last]
    rates = [(last + 1 - hits) / np.sum(~truth), hits / np.sum(truth)]
    false, true = (np.concatenate([[0.0], rate]) for rate in rates)
    return false, true


def reliability(truth: Array, probabilities: Array) -> list[dict[str, float]]:
    """The bins of `ece` that hold cases: `cases`, mean top `probability`, `accuracy`."""
    top, right, bins = _top(np.asarray(truth), np.asarray(probabilities, np.float64))
    return [
        {
            "cases": int(np.sum(bins == b)),
            "probability": float(top[bins == b].mean()),
            "accuracy": float(right[bins == b].mean()),
        }
        for b in np.unique(bins)
    ]


def _pairs(truth: Array, predicted: Array, classes: int) -> Floats:
    """`[N, C²]`: one-hot, of (true, predicted)."""
    found: Floats = np.eye(classes * classes)[truth * classes + predicted]
    return found


def _confusion(counts: Floats, pairs: Floats, classes: int) -> Floats:
    """`[S, C, C]`, true classes in rows."""
    found: Floats = (counts @ pairs).reshape(-1, classes, classes)
    return found


def _divide(a: Array, b: Array) -> Floats:
    """a / b, NaN where b is 0."""
    b = np.asarray(b, np.float64)
    found: Floats = np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)
    return found


def _mean_over(values: Floats, there: NDArray[np.bool_]) -> Floats:
    """The mean over the last axis of what is there."""
    return _divide(np.where(there, values, 0).sum(-1), there.sum(-1))


def _mean_recall(confusion: Floats) -> Floats:
    totals = confusion.sum(2)
    return _mean_over(_divide(np.diagonal(confusion, axis1=1, axis2=2), totals), totals > 0)


def _macro_f1(confusion: Floats) -> Floats:
    """Of the classes that occur: 2 · hits / (true + predicted)."""
    totals = confusion.sum(2)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    return _mean_over(_divide(2 * hits, totals + confusion.sum(1)), totals > 0)


def _recall(pairs: Floats, classes: int, c: int) -> Statistic:
    rows = pairs[:, c * classes : (c + 1) * classes]
    return lambda counts: _divide(counts @ rows[:, c], counts @ rows.sum(1))


def _mean(values: Floats) -> Statistic:
    return lambda counts: counts @ values / counts.sum(1)


def _squared_error(truth: Array, probabilities: Floats) -> Floats:
    """`[N]`, summed over the classes; of two classes, of the second."""
    squares = np.square(probabilities - np.eye(probabilities.shape[1])[truth])
    return squares[:, 1] if squares.shape[1] == 2 else squares.sum(1)


def _top(truth: Array, probabilities: Floats) -> tuple[Floats, NDArray[np.bool_], Array]:
    """The top probability `[N]`, whether its class is right, and its bin."""
    top = probabilities.max(1)
    bins = np.clip(np.ceil(top * BINS) - 1, 0, BINS - 1).astype(np.intp)
    return top, probabilities.argmax(1) == truth, bins


def _calibration_error(truth: Array, probabilities: Floats) -> Statistic:
    """Σ over bins of the share of cases · |accuracy - mean probability|."""
    top, right, bins = _top(truth, probabilities)
    gaps = np.eye(BINS)[bins] * (right - top)[:, None]
    return lambda counts: np.abs(counts @ gaps).sum(1) / counts.sum(1)


def _auc(truth: Array, probabilities: Floats, present: Sequence[int]) -> Statistic:
    """The mean area under the ROC curve of each class against the rest."""
    if len(present) < 2:
        return lambda counts: np.full(len(counts), np.nan)
    chosen = [1] if probabilities.shape[1] == 2 else list(present)
    areas = [_area(truth == c, probabilities[:, c]) for c in chosen]

    def mean(counts: Floats) -> Floats:
        found = np.stack([area(counts) for area in areas], 1)
        return _mean_over(found, np.isfinite(found))

    return mean


def _area(positive: NDArray[np.bool_], scores: Floats) -> Statistic:
    """The probability that a positive scores higher than a negative; ties count half."""
    order = np.argsort(scores, kind="stable")
    _, tie = np.unique(scores[order], return_inverse=True)
    here = positive[order]
    first = np.searchsorted(tie, tie[here], "left")  # of each positive's equals
    after = np.searchsorted(tie, tie[here], "right")

    def area(counts: Floats) -> Floats:
        sorted_counts = counts[:, order]
        below = np.zeros((len(counts), len(scores) + 1))
        np.cumsum(np.where(here, 0.0, sorted_counts), axis=1, out=below[:, 1:])
        positives = sorted_counts[:, here]
        wins = np.einsum("sn,sn->s", positives, below[:, first] + below[:, after]) / 2
        return _divide(wins, positives.sum(1) * below[:, -1])

    return area
