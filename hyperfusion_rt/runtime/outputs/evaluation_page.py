"""The page of an evaluation: figures, charts, groups, and what is not counted."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyperfusion_rt.metrics import FEWEST
from hyperfusion_rt.metrics.words import (
    figures_in_words,
    headline,
    interval,
    is_empty,
    with_percent,
)
from hyperfusion_rt.number_text import number
from hyperfusion_rt.runtime.evaluation import SEEN_NOTE, Evaluation, cases_of
from hyperfusion_rt.runtime.evaluation_certainty import GROUPS
from hyperfusion_rt.runtime.outputs.chart import Charts, Confusion
from hyperfusion_rt.runtime.outputs.report import Page, origin
from hyperfusion_rt.runtime.outputs.truth_charts import (
    reliability_chart,
    roc_chart,
    scatter_charts,
)

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
    if found.certainty is not None:
        _certainty(page, found, found.certainty)
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
    charts = [roc_chart(classes, truth, values), reliability_chart(truth, values)]
    page.add(Charts(tuple(chart for chart in charts if chart is not None)))


def _numbers(page: Page, found: Evaluation) -> None:
    truth = [float(case.truth or 0) for case in found.counted]
    values = [case.prediction.values[0] for case in found.counted]
    page.heading("Curves")
    page.add(Charts(scatter_charts(found.manifest, truth, values)))


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


def _certainty(page: Page, found: Evaluation, sure: dict[str, Any]) -> None:
    """Whether sets or intervals hold the truth as often as they say; ages; scans unlike others."""
    unit = found.manifest.unit
    if "all" in sure:
        what = "Prediction sets" if found.manifest.classes else "Intervals"
        page.heading(f"{what} at {sure['level']:.4g}")
        header, rows = coverage_rows(found)
        page.table(header, rows)
        few = any(f.get("too_few") for of in sure["groups"].values() for f in of.values())
        page.text(
            f"The promise of {sure['level']:.4g} is for new cases of the same kind as the "
            "calibration cases, all together; a group may have less."
            + (f" Fewer than {FEWEST} cases are too few for a figure." if few else ""),
            soft=True,
        )
    if sure.get("no_set"):
        page.text(f"{cases_of(sure['no_set'])} without: too few calibration cases.", soft=True)
    if "ages" in sure:
        page.heading("Ages with and without their bias")
        names = {"mae": f"mean absolute error ({unit})", "bias": f"mean error ({unit})"}
        names["bias_slope"] = "slope of the error on the true age"
        rows = [
            (text, *(_cell(sure["ages"][which], key) for which in ("uncorrected", "corrected")))
            for key, text in names.items()
        ]
        page.table(["", "as predicted", "corrected"], rows)
        page.text(
            "The correction needs the true age: its smaller error is no better prediction of it.",
            soft=True,
        )
    if "unlike" in sure:
        share = sure["unlike"]
        page.heading("Scans unlike the training's")
        page.text(
            f"{share['share']:.1%} of {cases_of(share['cases'])}"
            f"{with_percent(interval(share['share_95']))}; of usual scans {share['expected']:.1%} "
            "are expected."
        )


def coverage_rows(found: Evaluation) -> tuple[list[str], list[tuple[str, ...]]]:
    """A table of coverage: its header, and a row for all and for each group."""
    sure = found.certainty or {}
    classes = found.manifest.classes
    size = "mean classes" if classes else f"mean width {found.manifest.unit}".rstrip()
    header = ["", "", "cases", "hold the truth", "95 % interval", size]
    header += ["of one class"] if classes else []
    rows: list[tuple[str, ...]] = []
    groups = {"all": {"": sure["all"]}, **sure["groups"]}
    for by, of in groups.items():
        for name, figures in of.items():
            first = (GROUPS.get(by, by), name or ("" if by == "all" else "not known"))
            cells = [f"{figures['cases']:,}"]
            if figures.get("too_few"):
                cells += ["too few", "", ""]
            else:
                why = figures["reasons"].get("coverage", "")
                bounds = interval(figures["coverage_95"]) or why
                cells += [number(figures["coverage"]), bounds, number(figures["size"])]
            if classes:
                cells.append("" if figures.get("too_few") else number(figures["single"]))
            rows.append((*first, *cells))
    return header, rows


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
