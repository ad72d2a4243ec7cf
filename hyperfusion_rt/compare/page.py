"""The page of a comparison: figures, pairs, curves, groups, and what was not done."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.compare import tables
from hyperfusion_rt.compare.answers import Answers, Cases
from hyperfusion_rt.compare.plan import Comparison
from hyperfusion_rt.compare.summary import Pair, Result, tested_figures
from hyperfusion_rt.config import TableSpec
from hyperfusion_rt.machine import describe_machine
from hyperfusion_rt.metrics import FEWEST
from hyperfusion_rt.metrics.classification import reliability, roc
from hyperfusion_rt.metrics.words import is_empty
from hyperfusion_rt.runtime.evaluation import cases_of
from hyperfusion_rt.runtime.outputs.chart import Axis, Chart, Charts, Confusion
from hyperfusion_rt.runtime.outputs.report import Page
from hyperfusion_rt.runtime.outputs.truth_charts import blank_calibration, blank_roc

if TYPE_CHECKING:
    from hyperfusion_rt.compare.compare import Compared

Floats = NDArray[np.float64]
_RIVALS = (
    "logistic, ridge and boosting (scikit-learn) read the table alone, through the encoder that "
    "networks have: fitted on the training rows of each fold. Their settings are chosen by a "
    "cross-validation inside these rows. late is boosting that also reads what image answers; it "
    "learns from the answers of each member to its validation cases."
)


def comparison_page(found: Compared, cases: Cases, answers: Sequence[Answers]) -> Page:
    """The page. It names no subject."""
    plan = found.comparison.plan
    spec = plan.base.tabular
    page = Page(f"{len(found.models)} models of {spec.target}, compared")
    page.text("For research. Not a medical device; not for diagnosis.", soft=True)
    page.text(tables.caption(plan, found.models))
    main = tested_figures(spec)[0]
    of = tables.figure_names(spec)[main]
    page.cards(
        [
            (tables.shown((tables.figure_of(item.figures, main)[0], None)), f"{item.name}, {of}")
            for item in found.models
        ]
    )
    shown = [item for item in answers if item.jobs]
    page.heading("Figures")
    page.table(*tables.model_rows(spec, found.models))
    page.add(Charts((_intervals(spec, found.models, main), *_learning(found.comparison, shown))))
    _pairs(page, spec, found.pairs)
    page.heading("Curves" if spec.classes else "Predicted against true")
    page.add(Charts(tuple(_curves(spec, cases, shown))))
    if spec.classes:
        _confusions(page, spec, found.models)
    _groups(page, spec, found.models, main)
    if found.external:
        page.heading("External test set")
        page.text(tables.external_caption(found.external))
        page.table(*tables.model_rows(spec, found.external))
        if found.external_pairs:
            page.table(*tables.pair_rows(spec, found.external_pairs))
    _not_done(page, found.models)
    page.heading("How it was made")
    for note in found.notes:
        page.text(f"{note[:1].upper()}{note[1:]}.")
    page.text(_RIVALS)
    page.table(["", ""], _origin(found.comparison))
    return page


def _intervals(spec: TableSpec, models: Sequence[Result], main: str) -> Chart:
    """The main figure of each model with its interval, and that of each training."""
    drawn = [item for item in models if tables.figure_of(item.figures, main)[0] is not None]
    values: list[float] = []
    for item in drawn:
        value, between = tables.figure_of(item.figures, main)
        values += [v for v in (value, *(between or ()), *item.folds.values()) if v is not None]
    name = tables.figure_names(spec)[main] + (f" ({spec.unit})" if spec.unit else "")
    chart = Chart(
        "Models and trainings",
        f"The {name} of each model with its 95 % interval, and of each of its trainings",
        Axis.around(name, values or [0.0, 1.0]),
        Axis("", 0, max(1, len(drawn)), numbers=False),
    )
    for row, item in enumerate(drawn):
        value, between = tables.figure_of(item.figures, main)
        y = len(drawn) - row - 0.5
        if between:
            chart.line([(between[0], y), (between[1], y)], row)
        small = [(v, y - 0.2) for v in item.folds.values() if v is not None]
        chart.points(small, row, [2.0] * len(small))
        chart.points([(float(value or 0), y)], row, [6.0])
        chart.legend.append((row, item.name))
    chart.note = "Line: 95 % interval. Small points, below it: each training on its own test part."
    return chart


def _learning(comparison: Comparison, answers: Sequence[Answers]) -> list[Chart]:
    """The validation figure of each network over the epochs, the mean over its trainings."""
    curves = []  # in the colour that the model has everywhere
    for colour, item in enumerate(answers):
        epochs: dict[int, list[float]] = defaultdict(list)
        for job in item.jobs:
            for path in sorted(comparison.place(job).glob("member-*/history.csv")):
                with open(path, newline="", encoding="utf-8") as file:
                    for row in csv.DictReader(file):
                        name = next(n for n in _VALIDATION if n in row)
                        epochs[int(row["epoch"])].append(float(row[name]))
        if epochs:
            points = [(epoch + 1.0, float(np.mean(epochs[epoch]))) for epoch in sorted(epochs)]
            curves.append((colour, item.model.name, points))
    places = [point for *_, points in curves for point in points if np.isfinite(point[1])]
    if not places:
        return []
    unit = comparison.plan.base.tabular.unit
    name = (
        "mean absolute error" if not comparison.plan.base.tabular.classes else "balanced accuracy"
    )
    chart = Chart(
        "Learning curves",
        "The validation figure of each network over the epochs, the mean over its trainings",
        Axis.around("epoch", [x for x, _ in places]),
        Axis.around(f"validation {name}" + (f" ({unit})" if unit else ""), [y for _, y in places]),
    )
    for colour, model, points in curves:
        finite = [point for point in points if np.isfinite(point[1])]
        chart.line(finite, colour)
        if len(finite) == 1:  # a line of one point is not seen
            chart.points(finite, colour)
        chart.legend.append((colour, model))
    chart.note = "The mean over the trainings that reached the epoch."
    return [chart]


_VALIDATION = ("validation_balanced_accuracy", "validation_mae")


def _pairs(page: Page, spec: TableSpec, pairs: Sequence[Pair]) -> None:
    if not pairs:
        return
    page.heading("Pairs")
    page.text(tables.PAIRS_CAPTION, soft=True)
    page.table(*tables.pair_rows(spec, pairs))


def _curves(spec: TableSpec, cases: Cases, answers: Sequence[Answers]) -> list[Chart]:
    pooled = []
    for item in answers:
        known = np.all(np.isfinite(item.values), -1)  # [R, N]
        truth = np.broadcast_to(cases.truth, known.shape)[known]
        pooled.append((item.model.name, truth, item.values[known]))
    if not spec.classes:
        return [_against(spec, *item, colour) for colour, item in enumerate(pooled)]
    classes = list(spec.classes)
    drawn = [1] if len(classes) == 2 else range(len(classes))
    charts = [_roc(classes[c], c, pooled) for c in drawn]
    return [*charts, _calibration(pooled)]


def _roc(name: str, c: int, pooled: Sequence[tuple[str, Floats, Floats]]) -> Chart:
    chart = blank_roc(f"ROC curves of {name} against the rest")
    for colour, (model, truth, values) in enumerate(pooled):
        positive = truth == c
        if 0 < positive.sum() < len(positive):
            false, true = roc(positive, values[:, c])
            chart.line(zip(false.tolist(), true.tolist(), strict=True), colour)
            chart.legend.append((colour, model))
    return chart


def _calibration(pooled: Sequence[tuple[str, Floats, Floats]]) -> Chart:
    chart = blank_calibration()
    for colour, (model, truth, values) in enumerate(pooled):
        bins = reliability(truth.astype(int), values)
        places = [(b["probability"], b["accuracy"]) for b in bins]
        largest = max(b["cases"] for b in bins)
        chart.line(places, colour)
        chart.points(places, colour, [2 + 5 * np.sqrt(b["cases"] / largest) for b in bins])
        chart.legend.append((colour, model))
    chart.note = "The larger a point, the more cases. Dashed: as it should be."
    return chart


def _against(spec: TableSpec, model: str, truth: Floats, values: Floats, colour: int) -> Chart:
    unit = f" ({spec.unit})" if spec.unit else ""
    predicted = values[:, 0].tolist()
    both = Axis.around(f"true {spec.target}{unit}", [*truth.tolist(), *predicted])
    chart = Chart(
        model,
        f"Predicted over true {spec.target}, a point per case, with the line of equal values",
        both,
        Axis(f"predicted {spec.target}{unit}", both.low, both.high),
    )
    chart.line([(both.low, both.low), (both.high, both.high)], dashed=True)
    chart.points(zip(truth.tolist(), predicted, strict=True), colour)
    return chart


def _confusions(page: Page, spec: TableSpec, models: Sequence[Result]) -> None:
    for item in models:
        if not is_empty(item.figures):
            page.heading(f"True and predicted classes: {item.name}")
            page.add(Confusion(tuple(spec.classes), tuple(map(tuple, item.figures["confusion"]))))


def _groups(page: Page, spec: TableSpec, models: Sequence[Result], main: str) -> None:
    """A table for each way of grouping: the main figure of each model in each group."""
    name = tables.figure_names(spec)[main]
    for by in ("sex", "age"):
        shown = [item for item in models if by in item.groups]
        if not shown:
            continue
        groups = list(dict.fromkeys(group for item in shown for group in item.groups[by]))
        rows = []
        for item in shown:
            cells = []
            for group in groups:
                figures = item.groups[by].get(group, {"cases": 0})
                few = "too few" if figures["cases"] < FEWEST else ""
                cells.append(few or tables.shown(tables.figure_of(figures, main)))
            rows.append([item.name, *cells])
        most = {g: max(i.groups[by].get(g, {"cases": 0})["cases"] for i in shown) for g in groups}
        page.heading(f"By {by}" + (" (years)" if by == "age" else "") + f": {name}")
        titles = [f"{group or 'not known'} ({cases_of(most[group])})" for group in groups]
        page.table(["", *titles], rows)


def _not_done(page: Page, models: Sequence[Result]) -> None:
    rows = [
        (item.name, count, reason.partition(":")[0])
        for item in models
        for reason, count in item.failures.items()
    ]
    if rows:
        page.heading("Trainings without a result")
        page.table(["model", "trainings", "why"], rows)


def _origin(comparison: Comparison) -> list[tuple[str, Any]]:
    plan = comparison.plan
    base, training = plan.base, plan.base.training
    return [
        ("program", plan.program),
        ("comparison", comparison.folder.name),
        (
            "networks",
            base.network.imported or f"{base.network.architecture}, f = {base.network.features}",
        ),
        ("training", f"at most {training.epochs} epochs, {training.members} member(s) each"),
        ("seeds", ", ".join(str(training.seed + seed) for seed in range(plan.seeds))),
        *describe_machine().items(),
    ]
