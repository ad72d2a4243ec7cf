"""Figures on the terminal: of a run, of a cross-validation, of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hyperfusion_rt.cli import terminal


def show_figures(metrics: dict[str, Any], title: str) -> None:
    """Print a table of figures, and the confusion of classes."""
    from hyperfusion_rt.metrics.words import figures_in_words

    rows: list[list[Any]] = [
        [item.name, item.value, item.interval or item.note, item.chance, item.cases]
        for item in figures_in_words(metrics)
    ]
    if not rows:
        print(f"{title}: no case is counted")
        return
    terminal.table(title, ["figure", "value", "95 % interval", "chance", "cases"], rows)
    if metrics.get("confusion"):
        names = metrics["classes"]
        lines = [
            [f"true {name}", *[_share(n, sum(line)) for n in line]]
            for name, line in zip(names, metrics["confusion"], strict=True)
        ]
        terminal.table("rows: the truth; columns: the prediction", ["", *names], lines)


def show_run(folder: Path, metrics: dict[str, Any]) -> None:
    """Print the figures of a run on its test part; of a cross-validation on all parts."""
    target = metrics.get("target", {})
    what = " in ".join(filter(None, (target.get("name"), target.get("unit"))))
    of = f" of {what}" if what else ""
    folds = metrics.get("folds", ())
    title = "all parts, each tested by networks that did not see it" if folds else "the test part"
    show_figures(metrics.get("test", {}), f"{folder}: predictions{of}, {title}")
    if folds:
        _show_folds(metrics["parts"], folds)
    cases = metrics.get("cases", {})
    if not folds and cases:
        counts = ", ".join(f"{cases[p]} {p}" for p in ("train", "validation", "test") if p in cases)
        print(f"cases: {counts}")
    if cases.get("not_evaluated"):
        print(f"not counted: {cases['not_evaluated']} test cases that a member cannot read")
    if cases.get("left_out"):
        where = folder / "left_out.json"
        print(f"left out: {cases['left_out']}" + ("" if folds else f"; {where} says why"))


def _show_folds(parts: list[int], folds: list[dict[str, Any]]) -> None:
    """The main figure of every fold, under the number of its test part."""
    from hyperfusion_rt.metrics.words import figures_in_words

    rows: list[list[Any]] = []
    for part, metrics in zip(parts, folds, strict=True):
        main = figures_in_words(metrics)[:1]
        shown = [[item.name, item.value, item.interval or item.note] for item in main]
        rows.append([part, metrics["cases"], *(shown[0] if shown else ["none", "", ""])])
    terminal.table("each fold", ["fold", "cases", "figure", "value", "95 % interval"], rows)


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.0%})" if total else str(count)
