"""The figures of a held-out set: classification and brain age."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import MissingExtraError

Array = NDArray[Any]


def balanced_accuracy(truth: Array, predicted: Array, classes: int) -> float:
    """The mean recall over the classes that occur in `truth [N]` (class indices)."""
    recalls = [np.mean(predicted[truth == c] == c) for c in range(classes) if np.any(truth == c)]
    return float(np.mean(recalls)) if recalls else float("nan")


def bootstrap_interval(
    statistic: Callable[[Array], float], strata: Array, *, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of `statistic(indices)`, resampled inside each stratum [N]."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(strata == value) for value in np.unique(strata)]
    values = [
        statistic(np.concatenate([rng.choice(group, len(group)) for group in groups]))
        for _ in range(samples)
    ]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def classification(truth: Array, probabilities: Array, classes: Sequence[str]) -> dict[str, Any]:
    """Figures of `probabilities [N, C]` against class indices `truth [N]`.

    All figures are of the classes that occur; `absent` names the others, and `chance` is that of
    the former. The AUC is one-vs-rest. The interval of the balanced accuracy is a bootstrap
    stratified by class. Without a case there is no figure but `cases`.
    """
    if not len(truth):
        return {"cases": 0, "absent": list(classes)}
    try:
        from sklearn import metrics
    except ImportError:
        raise MissingExtraError("scikit-learn", "train", "the table of metrics") from None

    count = len(classes)
    predicted = probabilities.argmax(1)
    labels = list(range(count))
    confusion = metrics.confusion_matrix(truth, predicted, labels=labels)
    present = [c for c in labels if np.any(truth == c)]
    against = [c for c in present if len(present) > 1]
    areas = [metrics.roc_auc_score(truth == c, probabilities[:, c]) for c in against]
    low, high = bootstrap_interval(
        lambda index: balanced_accuracy(truth[index], predicted[index], count), truth
    )
    totals = confusion.sum(1)
    return {
        "cases": len(truth),
        "balanced_accuracy": balanced_accuracy(truth, predicted, count),
        "balanced_accuracy_95": [low, high],
        "chance": 1 / len(present),
        "absent": [name for c, name in enumerate(classes) if c not in present],
        "macro_f1": float(
            metrics.f1_score(truth, predicted, labels=present, average="macro", zero_division=0)
        ),
        "auc": float(np.mean(areas)) if areas else None,
        "recall": {
            name: float(confusion[c, c] / totals[c]) if totals[c] else None
            for c, name in enumerate(classes)
        },
        "confusion": confusion.tolist(),
        "classes": list(classes),
    }


def regression(truth: Array, predicted: Array, unit: str = "") -> dict[str, Any]:
    """Figures of predicted numbers [N] against true ones [N], in their `unit`.

    `bias_slope` is the slope of (predicted - true) against the true number: 0 is unbiased, a
    negative one means that low ones are predicted too high and high ones too low. One
    case gives no interval and no chance level, two no slope and no correlation `r`; none gives
    no figure but `cases`.
    """
    if not len(truth):
        return {"cases": 0, "unit": unit}
    error = np.asarray(predicted, np.float64) - np.asarray(truth, np.float64)
    several = len(truth) > 1
    # Two points always lie on a line.
    spread = len(truth) > 2 and np.std(truth) > 0
    interval = bootstrap_interval(
        lambda index: float(np.abs(error[index]).mean()), np.zeros(len(truth))
    )
    return {
        "cases": len(truth),
        "unit": unit,
        "mae": float(np.abs(error).mean()),
        "mae_95": list(interval) if several else None,
        "chance": float(np.abs(truth - np.median(truth)).mean()) if several else None,
        "r": float(np.corrcoef(truth, predicted)[0, 1])
        if spread and np.std(predicted) > 0
        else None,
        "bias": float(error.mean()),
        "bias_slope": float(np.polyfit(truth, error, 1)[0]) if spread else None,
    }
