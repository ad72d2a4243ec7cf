"""The command that asks a model about other rows of one scan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperfusion_rt.cli import terminal
from hyperfusion_rt.cli.options import INPUT, OUTPUT, Json, command, spell
from hyperfusion_rt.number_text import number

if TYPE_CHECKING:
    from hyperfusion_rt.runtime.cohort.ask import Asked
    from hyperfusion_rt.runtime.explain.answers import Cell, WhatIf
    from hyperfusion_rt.runtime.options import AskOptions

_SHOWN = 20  # points on the terminal; all are in the table


@command(
    "Examples: hfrt what-if S1.nii.gz --tabular data.csv --vary AGE=55:90:1 --vary APOE4=0,1,2; "
    "hfrt what-if S1.nii.gz --tabular data.csv --nearest-flip",
    options="runtime.options:AskOptions",
)
def what_if(
    scan: Annotated[Path, typer.Argument(help="The scan, or a folder with one subject's images.")],
    tabular: Annotated[
        Path, typer.Option(help="The table with the scan's row.", rich_help_panel=INPUT)
    ],
    options: AskOptions,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUES",
            help="A column and its values: AGE=55:90:1 or APOE4=0,1,2; repeatable: every "
            "combination is answered.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the answers as a table (.csv, .tsv), and beside it a page with curves.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """What the model answers to the same scan with other rows: the trunk reads the scan once.

    These are the model's answers: they say nothing of what a change would do to a patient.
    """
    from hyperfusion_rt.runtime.cohort.ask import as_dict, ask, write

    found = ask(scan, tabular, vary or (), options, out)
    page = None if out is None else write(out, found)
    if as_json:
        terminal.print_json(as_dict(found))
        return
    terminal.show_artifact(found.artifact.label, options.artifact is None)
    _show(found)
    if out is not None:
        print(f"written: {out}" + (f", {page}" if page else ""))


def _show(found: Asked) -> None:
    names = found.names
    said = found.prediction
    print(f"{said.subject}: the model's answer: {_in_words(names, said.values)}")
    for warning in said.warnings:
        print(f"warning: {said.subject}: {spell(warning)}", file=sys.stderr)
    if found.what_if is not None:
        _show_points(found.what_if, names)
    if found.flips is None:
        return
    if not found.flips:
        print("no change of a known cell inside the training's ranges gives another answer")
        return
    rows = []
    for flip in found.flips:
        changes = "; ".join(f"{name} {_cell(a)} → {_cell(b)}" for name, a, b in flip.changes)
        answer = _in_words(names, flip.values)
        if classes := found.artifact.manifest.classes:
            answer = f"{classes[int(flip.values.argmax())]}: {answer}"
        rows.append([changes, number(flip.distance), answer, flip.unusual])
    header = ["smallest changes to another answer", "size (sd)", "answer then", "unlike training"]
    terminal.table("", header, rows)


def _show_points(given: WhatIf, names: tuple[str, ...]) -> None:
    top = int(given.answer.argmax())
    rows = []
    for index, point in enumerate(given.points[:_SHOWN]):
        row: list[Any] = [*map(_cell, point), *map(number, given.values[index])]
        if given.low is not None and given.high is not None:
            row.append(f"{number(given.low[index, top])} to {number(given.high[index, top])}")
        rows.append([*row, "yes" if given.unusual[index] else ""])
    band = [] if given.low is None else [f"{names[top]} if gaps were measured (90 %)"]
    header = [*given.columns, *names, *band, "unlike the training"]
    terminal.table("the model's answers", header, rows)
    if len(given.points) > _SHOWN:
        print(f"... and {len(given.points) - _SHOWN:,} more points")
    odd = [(p, text) for p, text in zip(given.points, given.unusual, strict=True) if text]
    if odd:
        cells = zip(given.columns, odd[0][0], strict=True)
        where = ", ".join(f"{name} {_cell(value)}" for name, value in cells)
        more = "" if len(odd) == 1 else f" (and {len(odd) - 1} more points are unlike it)"
        print(f"unlike the training: {where}: {odd[0][1]}{more}")


def _cell(value: Cell) -> str:
    if value is None:
        return "not known"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _in_words(names: tuple[str, ...], values: Any) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in zip(names, values, strict=True))
