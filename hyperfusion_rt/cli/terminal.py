"""What the command line prints: progress on standard error, results on standard output."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from hyperfusion_rt.training.run_folder import Run


def console() -> Console:
    """Standard error: standard output is for results."""
    from rich.console import Console

    return Console(stderr=True)


def progress() -> Progress:
    """A progress bar with an ETA; silent where standard error is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    err = console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def table(title: str, header: list[str], rows: list[list[Any]]) -> None:
    """Print a table; numbers stand to the right, and only the last column is ever folded."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title), title_justify="left", header_style="bold")
    for i, name in enumerate(header):
        number = bool(rows) and isinstance(rows[0][i], (int, float))
        last = i == len(header) - 1
        made.add_column(
            name, justify="right" if number else "left", overflow="fold", no_wrap=not last
        )
    for row in rows:
        # Text: what stands in square brackets, such as an extra's name, is no markup.
        made.add_row(*[Text(f"{v:.4g}" if isinstance(v, float) else str(v)) for v in row])
    # A terminal folds what does not fit; a file or a pipe gets the lines whole.
    Console(width=None if Console().is_terminal else 240).print(made)


def print_json(content: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(content, indent=2, default=str))


def show_run(run: Run, as_json: bool) -> None:
    """Print a run's figures on its test set."""
    content = {"run": str(run.folder), **run.metrics}
    if as_json:
        print_json(content)
        return
    from hyperfusion_rt.cli.evaluate import show_figures

    show_figures(run.metrics.get("test", {}), f"{run.folder}: test set")
    left = run.metrics.get("cases", {}).get("left_out")
    if left:
        print(f"left out: {left}; {run.folder / 'left_out.json'} says why")


def need_torch(purpose: str) -> None:
    """Raise a MissingExtraError unless what training needs is installed."""
    from importlib.util import find_spec

    from hyperfusion_rt.errors import MissingExtraError

    for package in ("torch", "sklearn"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "train", purpose)


def share_the_cores() -> None:
    """Before torch is imported: its threads sleep at a barrier instead of spinning.

    Where another process wants a core too, spinning made a training step 14 times slower.
    """
    import os

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
