"""The command that searches for better settings of a training."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hyperfusion_rt.cli import terminal
from hyperfusion_rt.cli.options import Json, command
from hyperfusion_rt.cli.shown import Shown
from hyperfusion_rt.cli.train import Change, Configuration, overrides
from hyperfusion_rt.errors import ConfigError

if TYPE_CHECKING:
    from hyperfusion_rt.tune.options import TuneOptions
    from hyperfusion_rt.tune.results import Trial, Tuned
    from hyperfusion_rt.tune.search import Claim

_SHOWN = 10  # trials that the terminal lists


@command(
    "Examples: hfrt tune --trials 20; hfrt tune --resume --trials 40 --jobs 2; "
    "hfrt tune --space space.yaml --set training.epochs=20",
    options="tune.options:TuneOptions",
)
def tune(
    options: TuneOptions,
    config: Configuration = Path("hfrt.yaml"),
    change: Change = None,
    as_json: Json = False,
) -> None:
    """Search for settings that do better on the validation part; the test part is not looked at.

    Writes tune/NAME/: a run for each trial, the best settings (best.yaml), a table, and a page.
    """
    terminal.need_torch("searching hyperparameters")
    terminal.share_the_cores()
    from hyperfusion_rt.export.check import check_exports
    from hyperfusion_rt.number_text import number
    from hyperfusion_rt.training.train import Callbacks
    from hyperfusion_rt.tune.results import as_dict
    from hyperfusion_rt.tune.tune import tune as start

    changes = overrides(change or [])
    if options.resume and changes:
        raise ConfigError(
            "--resume keeps the search's configuration: leave out --set", code="option-conflict"
        )
    with terminal.progress() as progress:
        shown = Shown(progress)
        bar = progress.add_task("trials", total=options.trials, visible=False)
        epochs = progress.add_task("epochs", total=None, visible=False)

        def on_claim(claim: Claim) -> None:
            shown.are_read()
            progress.update(bar, visible=True)
            progress.update(epochs, completed=0, total=None, visible=True)

        def on_epoch(member: int, epoch: int, row: dict[str, Any]) -> None:
            progress.update(epochs, completed=epoch + 1)

        def on_trial(done: int, count: int, trial: Trial) -> None:
            shown.are_read()
            progress.update(bar, completed=done, total=count, visible=True)
            figures = [(name, getattr(trial, name)) for name in ("figure", "loss")]
            told = ", ".join(f"{name} {number(v)}" for name, v in figures if v is not None)
            after = f" after {trial.epochs} epochs" if trial.state != "complete" else ""
            became = f"{trial.state}{after}" + (f": {told}" if told else "")
            shown.say(f"{done} of {count}: trial {trial.number} {became}{_why(trial)}")

        found = start(
            config,
            options,
            changes,
            callbacks=Callbacks(shown.on_scan, shown.on_check, on_epoch, check_exports),
            on_claim=on_claim,
            on_trial=on_trial,
        )
    if as_json:
        terminal.print_json({**as_dict(found), "command": command_of(found)})
    else:
        _show(found)
    if found.of("failed"):
        raise typer.Exit(3)


def _why(trial: Trial) -> str:
    return f"; {trial.reason}" if trial.reason else ""


def _show(found: Tuned) -> None:
    from hyperfusion_rt.tune.page import trial_rows
    from hyperfusion_rt.tune.results import RUNNING

    folder, best, itself = terminal.near(found.search.folder), found.best, found.study_itself
    header, rows = trial_rows(found, found.trials)
    terminal.table(
        f"{folder}: the best by {found.search.plan.metric_name}", header[:6],
        [row[:6] for row in rows[:_SHOWN]],
    )  # fmt: skip
    if found.of(RUNNING):
        count = len(found.of(RUNNING))
        print(f"{count} more run in other processes; --resume reads them later", file=sys.stderr)
    if best is None:
        return
    if itself is not None and best is itself:
        print("nothing was better than the study as it is (trial 0)")
    elif itself is not None:
        print(f"the study as it was is trial 0; the best is trial {best.number}")
    print("the test part was not looked at; the best of many on one validation part is partly luck")
    print(f"written: {folder / 'tune.html'}, trials.csv, best.yaml")
    print(f"Next: {command_of(found)}")


def command_of(found: Tuned) -> str:
    """What trains the best trial's settings again; "" while there is none."""
    if found.best is None:
        return ""
    config = found.search.plan.config
    named = [] if config == "hfrt.yaml" else ["--config", config]
    changed = [word for pair in found.settings for word in ("--set", pair)]
    return shlex.join(["hfrt", "train", *named, *changed])
