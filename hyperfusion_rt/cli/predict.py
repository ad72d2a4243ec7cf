"""Commands that predict: a cohort, its shards, a BIDS dataset."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperfusion_rt.cli import terminal
from hyperfusion_rt.cli.options import INPUT, RESUME, Json, command, spell
from hyperfusion_rt.cli.start import INTERRUPTED
from hyperfusion_rt.number_text import number

if TYPE_CHECKING:
    from hyperfusion_rt.runtime.cohort.bids_app import Level
    from hyperfusion_rt.runtime.cohort.record import Result
    from hyperfusion_rt.runtime.options import BidsOptions, CohortOptions, MergeOptions

_LISTED = 10  # failures on the terminal; all are in the table


@command(
    "Examples: hfrt infer scans/ --tabular data.csv; every night: hfrt infer scans/ --tabular "
    "data.csv --resume; in a SLURM array: --shard $SLURM_ARRAY_TASK_ID/8, then hfrt merge",
    options="runtime.options:CohortOptions",
)
def infer(
    scans: Annotated[list[Path], typer.Argument(help="Scans, or folders with scans.")],
    options: CohortOptions,
    tabular: Annotated[
        Path | None,
        typer.Option(
            help="The table: CSV or TSV. A network that reads images alone needs none.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    fail_fast: Annotated[
        bool,
        typer.Option(
            "--fail-fast",
            help="Stop at the first case that fails.",
            rich_help_panel=RESUME,
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Predict scans with their rows of the table; writes predictions.csv and predictions.html.

    Every result is written down as it comes (predictions.csv.journal): a run that was killed goes
    on with --resume.
    """
    from hyperfusion_rt.runtime.cohort.infer import infer as start
    from hyperfusion_rt.runtime.cohort.report import report_of
    from hyperfusion_rt.runtime.cohort.shards import shard_path

    # A shard has no report of its own: hfrt merge writes one.
    page = options.report or (None if options.shard else report_of(options.out))
    most = 0 if fail_fast else options.max_errors
    options = options.model_copy(update={"report": page, "max_errors": most})
    with terminal.progress() as progress:
        bar = progress.add_task("predicting", total=None)
        result = start(
            scans,
            tabular,
            options,
            on_case=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    _show(result, shard_path(options.out, options.shard), page, as_json)


@command(
    "Example: hfrt merge predictions.shard-*.csv --out predictions.csv",
    options="runtime.options:MergeOptions",
)
def merge(
    shards: Annotated[list[Path], typer.Argument(help="The shards' tables, or their folder.")],
    options: MergeOptions,
    as_json: Json = False,
) -> None:
    """Join what the shards of a run predicted (hfrt infer --shard I/N), all of them or none."""
    from hyperfusion_rt.runtime.cohort.report import report_of
    from hyperfusion_rt.runtime.cohort.shards import merge as start

    page = options.report or report_of(options.out)
    options = options.model_copy(update={"report": page})
    _show(start(shards, options), options.out, page, as_json)


@command(
    "Examples: hfrt bids-app BIDS derivatives/hfrt participant --participant-label 01; "
    "hfrt bids-app BIDS derivatives/hfrt group",
    options="runtime.options:BidsOptions",
    analysis_level="runtime.cohort.bids_app:Level",
)
def bids_app(
    bids_dir: Annotated[Path, typer.Argument(help="The dataset.")],
    out: Annotated[Path, typer.Argument(help="The derivatives dataset.")],
    analysis_level: Annotated[
        Level,
        typer.Argument(help="participant predicts; group collects what is there."),
    ],
    options: BidsOptions,
    as_json: Json = False,
) -> None:
    """Predict a BIDS dataset into a BIDS derivatives dataset, as a BIDS App."""
    from hyperfusion_rt.runtime.cohort.bids_app import bids_app as start

    with terminal.progress() as progress:
        bar = progress.add_task("predicting", total=None, visible=analysis_level == "participant")
        found = start(
            bids_dir,
            out,
            analysis_level,
            options,
            on_case=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    if found.missing and not as_json:
        print(f"without a result: {', '.join(found.missing)}", file=sys.stderr)
    _show(found.result, found.table or found.out, found.report, as_json, found.as_dict())


def _show(
    result: Result,
    out: Path,
    page: Path | None,
    as_json: bool,
    content: dict[str, Any] | None = None,
) -> None:
    if as_json:
        terminal.print_json(content or result.as_dict())
    else:
        _say(result, out, page)
    if result.ending == "interrupted":
        print("continue with --resume", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if result.new or result.counts["not_tried"]:
        raise typer.Exit(3)


def _say(result: Result, out: Path, page: Path | None) -> None:
    """What was done on standard output, what is wrong on standard error."""
    from hyperfusion_rt.runtime.outputs.table import in_words

    counts = result.counts
    if result.artifact is not None:
        terminal.show_artifact(result.artifact.label, result.by_default)
    made = counts["ok"] - result.taken_over
    if made and result.summary["wall_seconds"]:
        steps = result.summary["ms_per_scan"].items()
        parts = ", ".join(f"{name} {number(value)}" for name, value in steps)
        rate = number(1e3 * result.summary["wall_seconds"] / made)
        print(f"{made} predicted by the {result.engine} engine: {rate} ms per scan")
        print(f"median ms of the steps: {parts}")
        if bound := result.usage.bound():
            use = result.usage.utilisation()[bound]
            print(f"bounded by the {bound} stage, busy {use:.0%} of the time")
    if result.taken_over:
        print(f"{result.taken_over} were done before")
    if known := counts["known"]:
        have = "has" if known == 1 else "have"
        print(f"{known} failed before and {have} not changed (--retry-failed tries them again)")
    for note in result.joined:
        print(note)
    for note in result.notes:
        print(f"warning: {spell(note)}", file=sys.stderr)
    for item in result.new[:_LISTED]:
        print(f"{item.subject}: {spell(item.reason)}", file=sys.stderr)
    if len(result.new) > _LISTED:
        print(f"... and {len(result.new) - _LISTED} more: see {out}", file=sys.stderr)
    if result.ending == "stopped":
        print("stopped; continue with --resume", file=sys.stderr)
    _show_warnings(result)
    for line in result.remarks:
        print(line)
    print(f"in the table: {in_words(counts)}")
    written = [out, page, result.label_maps]
    print(f"written: {', '.join(str(path) for path in written if path)}")


def _show_warnings(result: Result) -> None:
    """How many of the predictions that this run made carry warnings, and the texts of the first."""
    fresh = [p for p in result.predictions if (p.subject, p.session) not in result.older]
    found = [item for item in fresh if item.status == "ok" and item.warnings]
    if not found:
        return
    carry = "prediction carries" if len(found) == 1 else "predictions carry"
    print(f"{len(found)} {carry} warnings: see the column `warnings`", file=sys.stderr)
    for item in found[:3]:
        print(f"warning: {item.subject}: {spell('; '.join(item.warnings))}", file=sys.stderr)
    if len(found) > 3:
        print(f"... and {len(found) - 3} more", file=sys.stderr)


_LABELS = ("--participant-label", "--session-label")


def spread_labels(arguments: list[str]) -> list[str]:
    """BIDS Apps take several labels after one option (also `--participant_label`): one each."""
    if arguments[:1] != ["bids-app"]:
        return arguments
    spread: list[str] = []
    option = ""
    for text in arguments:
        name = text.replace("_", "-") if text.startswith("--") else ""
        if text.startswith("-"):
            option = name if name in _LABELS else ""
            spread += [] if option else [text]
        elif option:
            spread += [option, text]
        else:
            spread.append(text)
    return spread
