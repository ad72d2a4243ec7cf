"""The page of an evaluation: figures, charts, groups, and what is not counted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hyperfusion_rt.metrics import FEWEST
from hyperfusion_rt.metrics.classification import reliability, roc
from hyperfusion_rt.metrics.words import (
    figures_in_words,
    headline,
    interval,
    is_empty,
    with_percent,
)
from hyperfusion_rt.number_text import number
from hyperfusion_rt.runtime.evaluation import SEEN_NOTE, Evaluation, cases_of
from hyperfusion_rt.runtime.outputs.chart import Axis, Chart, Charts, Confusion
from hyperfusion_rt.runtime.outputs.report import Page, origin

# What is shown of each group, and how it is called.
_OF_GROUPS = {
    "balanced_accuracy": "balanced accuracy",
    "mae": "mean absolute error",
    "chance": "chance",
    "auc": "AUC",
    "bias": "mean error",
    "r": "correlation",
}
_UNIT = ("mae", "bias", "chance")


def evaluation_page(found: Evaluation, machine: dict[str, str]) -> Page:
    """The page. It names no subject."""
    manifest = found.manifest
    page = Page(f"{manifest.name}: how good its predictions of {manifest.table.target} are")
    page.text("For research. Not a medical device; not for diagnosis.", soft=True)
    page.text(of_what(found))
    page.cards(headline(found.figures))
    if not is_empty(found.figures):
        _figures(page, found.figures)
        (_classes if manifest.classes else _numbers)(page, found)
        _groups(page, found)
    _not_counted(page, found)
    if found.seen_figures is not None:
        page.heading("Cases of the training: not a test")
        page.text(f"{cases_of(found.seen_figures['cases'])} {SEEN_NOTE}.")
        page.cards(headline(found.seen_figures))
    if manifest.provenance.metrics:
        page.heading("What the model reached on its own test set")
        page.cards(headline(manifest.provenance.metrics))
    if found.notes:
        page.heading("Notes")
        for note in found.notes:
            page.text(f"{note}.")
    page.heading("Provenance")
    page.table(["", ""], [*origin(manifest, found.engine, ()), *machine.items()])
    return page


def of_what(found: Evaluation) -> str:
    """Of which cases the figures are."""
    counted = found.figures["cases"]
    cases = "case is" if counted == len(found.cases) == 1 else "cases are"
    text = f"{counted} of {len(found.cases)} {cases} counted"
    if counted:
        people = found.figures["subjects"]
        text += f", of {people} subject{'s' if people != 1 else ''}"
    return text + "."


def _figures(page: Page, figures: dict[str, Any]) -> None:
    page.heading("Figures")
    page.table(
        ["", "value", "95 % interval", "chance", "cases"],
        [
            (item.name, item.value, item.interval or item.note, item.chance, f"{item.cases:,}")
            for item in figures_in_words(figures)
        ],
    )
    page.text(
        "The intervals come from a bootstrap over subjects: all sessions of a subject are drawn "
        "together.",
        soft=True,
    )


def _classes(page: Page, found: Evaluation) -> None:
    classes, figures = found.manifest.classes, found.figures
    page.heading("True and predicted classes")
    page.add(Confusion(classes, tuple(map(tuple, figures["confusion"]))))
    truth = np.array([int(case.truth or 0) for case in found.counted])
    values = np.array([case.prediction.values for case in found.counted])
    page.heading("Curves")
    charts = [_roc_chart(classes, truth, values), _reliability_chart(truth, values)]
    page.add(Charts(tuple(chart for chart in charts if chart is not None)))


def _roc_chart(classes: tuple[str, ...], truth: Any, values: Any) -> Chart | None:
    present = [c for c in range(len(classes)) if 0 < np.sum(truth == c) < len(truth)]
    if not present:
        return None
    drawn = [1] if len(classes) == 2 else present
    chart = Chart(
        "ROC curve" + ("s, each class against the rest" if len(drawn) > 1 else f" of {classes[1]}"),
        "True positive rate over false positive rate for every threshold of the probability",
        Axis("false positive rate (1 − specificity)", 0, 1),
        Axis("true positive rate (sensitivity)", 0, 1),
    )
    chart.line([(0, 0), (1, 1)], dashed=True)
    for c in drawn:
        false, true = roc(truth == c, values[:, c])
        chart.line(zip(false.tolist(), true.tolist(), strict=True), c)
        chart.legend.append((c, classes[c]))
    return chart


def _reliability_chart(truth: Any, values: Any) -> Chart:
    bins = reliability(truth, values)
    chart = Chart(
        "Calibration",
        "How often the predicted class is right, over its mean probability, in bins",
        Axis("mean probability of the predicted class", 0, 1),
        Axis("part of the cases that are right", 0, 1),
    )
    chart.line([(0, 0), (1, 1)], dashed=True)
    places = [(b["probability"], b["accuracy"]) for b in bins]
    largest = max(b["cases"] for b in bins)
    chart.line(places, 0)
    chart.points(places, 0, [3 + 7 * math.sqrt(b["cases"] / largest) for b in bins])
    chart.note = f"The larger a point, the more cases ({largest} at most). Dashed: as it should be."
    return chart


def _numbers(page: Page, found: Evaluation) -> None:
    manifest = found.manifest
    unit = f" ({manifest.unit})" if manifest.unit else ""
    target = manifest.table.target
    truth = [float(case.truth or 0) for case in found.counted]
    values = [case.prediction.values[0] for case in found.counted]
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
    page.heading("Curves")
    page.add(Charts((against, error)))


def _groups(page: Page, found: Evaluation) -> None:
    """A table for each way of grouping, with what the figures of the whole have."""
    shown = [name for name in _OF_GROUPS if name in found.figures]
    unit = f" ({found.manifest.unit})" if found.manifest.unit else ""
    for by, group in found.groups.items():
        page.heading(f"By {by}" + (" (years)" if by == "age" else ""))
        titles = [_OF_GROUPS[n] + (unit if n in _UNIT and "mae" in shown else "") for n in shown]
        rows = []
        for name, figures in group["figures"].items():
            few = figures.get("too_few")
            cells = ["too few" if few else _cell(figures, key) for key in shown]
            rows.append((name or "not known", f"{figures['cases']:,}", *cells))
        page.table([group["column"], "cases", *titles], rows)
        if any(figures.get("too_few") for figures in group["figures"].values()):
            page.text(f"Fewer than {FEWEST} cases are too few for a figure.", soft=True)


def _cell(figures: dict[str, Any], name: str) -> str:
    value, why = figures.get(name), figures.get("reasons", {}).get(name)
    if value is None:
        return str(why or "none")
    note = " (no interval)" if why else ""
    return number(value) + with_percent(interval(figures.get(f"{name}_95"))) + note


def _not_counted(page: Page, found: Evaluation) -> None:
    if not found.left_out:
        return
    page.heading("Cases that are not counted")
    page.table(["why", "cases"], [(why, f"{n:,}") for why, n in found.left_out.items()])
    page.text("cases.csv lists every case, with its reason.", soft=True)
