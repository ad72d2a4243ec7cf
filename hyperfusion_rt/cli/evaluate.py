"""The command that compares predictions with the truth, and figures on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperfusion_rt.cli import terminal
from hyperfusion_rt.cli.figures import show_figures
from hyperfusion_rt.cli.options import INPUT, Json, command, spell
from hyperfusion_rt.number_text import number

if TYPE_CHECKING:
    from hyperfusion_rt.runtime.evaluation import Evaluation
    from hyperfusion_rt.runtime.options import EvaluateOptions


@command(
    "Example: hfrt evaluate ad.hfrt scans/ --tabular data.csv",
    options="runtime.options:EvaluateOptions",
)
def evaluate(
    artifact: Annotated[Path, typer.Argument(help="The artifact (NAME.hfrt).")],
    scans: Annotated[list[Path], typer.Argument(help="Scans, or folders with scans.")],
    tabular: Annotated[
        Path,
        typer.Option(help="The table, with a column of the target.", rich_help_panel=INPUT),
    ],
    options: EvaluateOptions,
    as_json: Json = False,
) -> None:
    """Predict scans and say how good the predictions are: figures, intervals, curves, groups.

    Writes evaluation.json, cases.csv and evaluation.html. Cases that the artifact was trained on
    are told by hashes that it carries, and not counted.
    """
    from hyperfusion_rt.runtime.cohort.evaluate import as_dict
    from hyperfusion_rt.runtime.cohort.evaluate import evaluate as start

    with terminal.progress() as progress:
        bar = progress.add_task("predicting", total=None)
        found = start(
            artifact,
            scans,
            tabular,
            options,
            on_case=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    if as_json:
        terminal.print_json(as_dict(found))
    else:
        _show(found, options.out)
    if found.failed:
        raise typer.Exit(3)


def _show(found: Evaluation, out: Path) -> None:
    from hyperfusion_rt.runtime.outputs.evaluation_page import of_what

    for note in found.joined:
        print(note)
    print(of_what(found))
    show_figures(found.figures, f"{found.manifest.name}: predictions of {_target(found)}")
    for by, group in found.groups.items():
        _show_groups(by, group)
    if found.certainty is not None:
        _show_certainty(found)
    if found.seen_figures is not None:
        show_figures(found.seen_figures, "NOT A TEST: cases of the training")
    for why, count in found.left_out.items():
        print(f"not counted: {count}: {why}")
    for note in found.notes:
        print(f"note: {spell(note)}", file=sys.stderr)
    for item in found.failed[:10]:
        print(f"{item.subject}: {spell(item.reason)}", file=sys.stderr)
    if len(found.failed) > 10:
        print(f"... and {len(found.failed) - 10} more: see {out / 'cases.csv'}", file=sys.stderr)
    print(f"written: {out / 'evaluation.html'}, {out / 'evaluation.json'}, {out / 'cases.csv'}")


def _show_certainty(found: Evaluation) -> None:
    from hyperfusion_rt.metrics.words import interval, with_percent
    from hyperfusion_rt.runtime.outputs.evaluation_page import coverage_rows

    sure = found.certainty or {}
    if "all" in sure:
        header, rows = coverage_rows(found)
        what = "prediction sets" if found.manifest.classes else "intervals"
        table = [list(row) for row in rows]
        terminal.table(f"{what} at {sure['level']:.4g}", ["by", "group", *header[2:]], table)
    if "ages" in sure:
        as_predicted, corrected = (sure["ages"][name] for name in ("uncorrected", "corrected"))
        for key, text in (("mae", "mean absolute error"), ("bias_slope", "slope on the true age")):
            first, second = as_predicted[key], corrected[key]
            if first is not None and second is not None:
                print(f"{text}: {number(first)} as predicted, {number(second)} corrected")
        print("the correction needs the true age: its smaller error is no better prediction")
    if "unlike" in sure:
        share = sure["unlike"]
        between = with_percent(interval(share["share_95"]))
        print(
            f"unlike the training's scans: {share['share']:.1%} of {share['cases']}{between}; "
            f"of usual ones {share['expected']:.1%} are expected"
        )


def _target(found: Evaluation) -> str:
    unit = f" ({found.manifest.unit})" if found.manifest.unit and not found.manifest.classes else ""
    return found.manifest.table.target + unit


def _show_groups(by: str, group: dict[str, Any]) -> None:
    from hyperfusion_rt.metrics.words import figures_in_words

    rows: list[list[Any]] = []
    for name, metrics in group["figures"].items():
        of = [name or "not known", metrics["cases"]]
        main = figures_in_words(metrics)[:1]
        shown = [[f"{i.name} {i.value}", i.chance, i.interval or i.note] for i in main]
        rows.append([*of, *(shown[0] if shown else ["too few", "", ""])])
    header = [by, "cases", "figure", "chance", "95 % interval"]
    terminal.table(f"by {by} (column {group['column']})", header, rows)
