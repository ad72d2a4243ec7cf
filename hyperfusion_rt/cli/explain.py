"""The command that says what of a scan an answer rests on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperfusion_rt.cli import terminal
from hyperfusion_rt.cli.options import INPUT, Json, command, spell

if TYPE_CHECKING:
    from hyperfusion_rt.runtime.cohort.explain import Explained
    from hyperfusion_rt.runtime.options import ExplainOptions

_REGIONS = 10  # on the terminal; all are in the table


@command(
    "Examples: hfrt explain scans/S1.nii.gz --tabular data.csv; by region: --atlas harvard-oxford",
    options="runtime.options:ExplainOptions",
)
def explain(
    scans: Annotated[list[Path], typer.Argument(help="Scans, or folders with scans.")],
    tabular: Annotated[Path, typer.Option(help="The table: CSV or TSV.", rich_help_panel=INPUT)],
    options: ExplainOptions,
    as_json: Json = False,
) -> None:
    """Show what places of a scan the model's answer rests on: a map on the scan's own grid.

    It says what the model answers, and nothing of causes.
    """
    from hyperfusion_rt.runtime.cohort.explain import explain_images

    with terminal.progress() as progress:
        bar = progress.add_task("explaining", total=None)
        found = explain_images(
            scans,
            tabular,
            options,
            on_case=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    if as_json:
        terminal.print_json({"cases": [_image_as_dict(item) for item in found]})
    else:
        for item in found:
            _show_image(item)
    if any(item.map is None for item in found):
        raise typer.Exit(3)


def _show_image(item: Explained) -> None:
    who = " ".join(part for part in (item.subject, item.session) if part)
    if item.map is None:
        print(f"{who}: {spell(item.reason)}", file=sys.stderr)
        return
    for text in item.warnings:
        print(f"warning: {who}: {spell(text)}", file=sys.stderr)
    print(f"{who}: {item.map.method} of {item.map.of}, whose answer is {item.answer:.4g}")
    if item.map.atlas:
        rows: list[list[Any]] = [
            [r.name, f"{r.share:.1%}", f"{r.mean:+.2g}"] for r in item.map.regions[:_REGIONS]
        ]
        held = sum(region.share for region in item.map.regions)
        title = f"regions of {item.map.atlas}, which hold {held:.0%} of the map"
        terminal.table(title, ["region", "share of the map", "mean"], rows)
    print(f"written: {', '.join(map(str, item.written))}")


def _image_as_dict(item: Explained) -> dict[str, Any]:
    found: dict[str, Any] = {
        "subject": item.subject,
        "session": item.session,
        "status": "error" if item.map is None else "ok",
        "reason": item.reason,
        "code": item.code,
    }
    if item.map is not None:
        found |= {
            "of": item.map.of,
            "method": item.map.method,
            "answer": item.answer,
            "atlas": item.map.atlas,
            "regions": [vars(region) for region in item.map.regions],
            "warnings": list(item.warnings),
            "written": [str(path) for path in item.written],
        }
    return found
