"""Charts of predictions against the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.metrics.classification import reliability, roc
from hyperfusion_rt.number_text import number
from hyperfusion_rt.runtime.outputs.chart import Axis, Chart


def roc_chart(classes: tuple[str, ...], truth: Any, values: Any) -> Chart | None:
    """`truth [N]`: classes by index; `values [N, C]`: probabilities. None without two classes."""
    present = [c for c in range(len(classes)) if 0 < np.sum(truth == c) < len(truth)]
    if not present:
        return None
    drawn = [1] if len(classes) == 2 else present
    chart = blank_roc(
        "ROC curve" + ("s, each class against the rest" if len(drawn) > 1 else f" of {classes[1]}")
    )
    for c in drawn:
        false, true = roc(truth == c, values[:, c])
        chart.line(zip(false.tolist(), true.tolist(), strict=True), c)
        chart.legend.append((c, classes[c]))
    return chart


def blank_roc(title: str) -> Chart:
    """Axes of ROC curves, with the line of guessing."""
    chart = Chart(
        title,
        "True positive rate over false positive rate for every threshold of the probability",
        Axis("false positive rate (1 − specificity)", 0, 1),
        Axis("true positive rate (sensitivity)", 0, 1),
    )
    chart.line([(0, 0), (1, 1)], dashed=True)
    return chart


def blank_calibration() -> Chart:
    """Axes of calibration, with the line of probabilities that are right."""
    chart = Chart(
        "Calibration",
        "How often the predicted class is right, over its mean probability, in bins",
        Axis("mean probability of the predicted class", 0, 1),
        Axis("part of the cases that are right", 0, 1),
    )
    chart.line([(0, 0), (1, 1)], dashed=True)
    return chart


def reliability_chart(truth: Any, values: Any) -> Chart:
    """`truth [N]`: classes by index; `values [N, C]`: probabilities."""
    bins = reliability(truth, values)
    chart = blank_calibration()
    places = [(b["probability"], b["accuracy"]) for b in bins]
    largest = max(b["cases"] for b in bins)
    chart.line(places, 0)
    chart.points(places, 0, [3 + 7 * math.sqrt(b["cases"] / largest) for b in bins])
    chart.note = f"The larger a point, the more cases ({largest} at most). Dashed: as it should be."
    return chart


def scatter_charts(
    manifest: Manifest, truth: Sequence[float], values: Sequence[float]
) -> tuple[Chart, Chart]:
    """Predicted against true numbers, and the errors against them."""
    unit = f" ({manifest.unit})" if manifest.unit else ""
    target = manifest.table.target
    errors = [value - true for value, true in zip(values, truth, strict=True)]
    both = Axis.around(f"true {target}{unit}", [*truth, *values])
    against = Chart(
        "Predicted against true",
        f"Predicted over true {target}, a point per case, with the line of equal values",
        both,
        Axis(f"predicted {target}{unit}", both.low, both.high),
    )
    against.line([(both.low, both.low), (both.high, both.high)], dashed=True)
    against.points(zip(truth, values, strict=True))
    bias, spread = float(np.mean(errors)), 1.96 * float(np.std(errors))
    limits = (bias - spread, bias + spread)
    error = Chart(
        "Error against true",
        f"Predicted minus true {target} over true {target}, a point per case",
        Axis.around(f"true {target}{unit}", truth),
        Axis.around(f"predicted − true{unit}", [*errors, *limits, 0.0]),
    )
    ends = (error.x.low, error.x.high)
    error.line([(x, 0.0) for x in ends])
    error.line([(x, bias) for x in ends], 1)
    for limit in limits:
        error.line([(x, limit) for x in ends], 1, dashed=True)
    error.points(zip(truth, errors, strict=True))
    error.legend.append((1, f"mean error {number(bias)}, dashed: ± 1.96 standard deviations"))
    return against, error
