"""The command that compares models on the same parts of a cohort."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hyperfusion_rt.cli import terminal
from hyperfusion_rt.cli.options import Json, command, spell
from hyperfusion_rt.cli.shown import Shown
from hyperfusion_rt.cli.train import Change, Configuration, overrides
from hyperfusion_rt.errors import ConfigError

if TYPE_CHECKING:
    from hyperfusion_rt.compare.compare import Compared
    from hyperfusion_rt.compare.options import CompareOptions
    from hyperfusion_rt.compare.plan import Job


@command(
    "Examples: hfrt compare --models image,table,logistic,hyper --folds 5 --seeds 3; "
    "hfrt compare --resume --models daft; "
    "hfrt compare --models hyper --ablate 'network.features=4;8;16'",
    options="compare.options:CompareOptions",
)
def compare(
    options: CompareOptions,
    config: Configuration = Path("hfrt.yaml"),
    change: Change = None,
    as_json: Json = False,
) -> None:
    """Train several models on the same parts of a cohort, and say whether they differ.

    Writes compare/NAME/: every prediction, a table with intervals (CSV, Markdown, LaTeX), tests of
    all pairs, and a page.
    """
    terminal.need_torch("comparing models")
    terminal.share_the_cores()
    from hyperfusion_rt.compare.compare import as_dict
    from hyperfusion_rt.compare.compare import compare as start
    from hyperfusion_rt.export.check import check_exports
    from hyperfusion_rt.training.check import Check
    from hyperfusion_rt.training.train import Callbacks

    changes = overrides(change or [])
    if options.resume and changes:
        raise ConfigError(
            "--resume keeps the comparison's configuration: leave out --set", code="option-conflict"
        )
    with terminal.progress() as progress:
        shown = Shown(progress)
        bar = progress.add_task("training", total=None, visible=False)

        def on_job(done: int, count: int, job: Job, reason: str) -> None:
            shown.are_read()
            progress.update(bar, completed=done, total=count, visible=True)
            became = f"failed: {reason}" if reason else "done"
            shown.say(f"{done} of {count}: {job.model}, seed {job.seed}, fold {job.fold}: {became}")

        seen = False

        def once(check: Check) -> None:  # every training looks at the cohort again
            nonlocal seen
            if not seen:
                shown.on_check(check)
            seen = True

        found = start(
            config,
            options,
            changes,
            callbacks=Callbacks(on_scan=shown.on_scan, on_check=once, on_network=check_exports),
            on_job=on_job,
        )
    if as_json:
        terminal.print_json(as_dict(found))
    else:
        _show(found)
    if found.failed:
        raise typer.Exit(3)


def _show(found: Compared) -> None:
    from hyperfusion_rt.compare import tables

    plan = found.comparison.plan
    spec = plan.base.tabular
    folder = terminal.near(found.comparison.folder)
    header, rows = tables.model_rows(spec, found.models, short=True)
    terminal.table(tables.caption(plan, found.models), header, rows)
    if found.pairs:
        terminal.table(tables.PAIRS_CAPTION, *tables.pair_rows(spec, found.pairs))
    if found.external:
        header, rows = tables.model_rows(spec, found.external, short=True)
        terminal.table(tables.external_caption(found.external), header, rows)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    for item in found.models:
        for reason, count in item.failures.items():
            print(f"{item.name}: {count} not done: {spell(reason)}", file=sys.stderr)
    if found.failed:
        print(
            f"{found.failed} trainings have no result; 'hfrt compare --resume --name {folder.name}'"
            " tries them again",
            file=sys.stderr,
        )
    print(f"written: {folder / 'comparison.html'}, .csv, .md, .tex, and more beside them")
