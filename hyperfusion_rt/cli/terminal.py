"""What the command line prints: progress on standard error, results on standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hyperfusion_rt.number_text import number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


printed = False  # whether the command has printed its JSON object
_WIDTH = 100  # characters of a table in a file or a pipe
_SHORT = 14  # characters of a column that is never folded
_WORD = 9  # characters that stay together in any column


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


def near(path: Path) -> Path:
    """A path as it is typed here: seen from the working folder, if it lies below."""
    try:
        here = Path.cwd()
    except OSError:  # it was deleted
        return path
    return path.relative_to(here) if path.is_relative_to(here) else path


def show_artifact(label: str, by_default: bool) -> None:
    """Print which artifact is used (`Artifact.label`), and whether nobody named it."""
    print(f"artifact {label}" + (", the only one here" if by_default else ""))


def table(title: str, header: list[str], rows: list[list[Any]]) -> None:
    """Print a table; numbers stand to the right, and long columns are folded.

    In a file or a pipe it has at most 100 characters a line (or COLUMNS), and no frame.
    """
    import os

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    on_terminal = Console().is_terminal
    made = Table(
        header_style="bold",
        show_header=any(header),
        box=box.HEAVY_HEAD if on_terminal else box.SIMPLE,
        collapse_padding=not on_terminal,
    )
    cells = [[number(v) if isinstance(v, float) else str(v) for v in row] for row in rows]
    for i, name in enumerate(header):
        right = bool(rows) and isinstance(rows[0][i], (int, float))
        texts = [name, *(row[i] for row in cells)]
        short = max(map(len, texts)) <= _SHORT
        word = max((len(word) for text in texts for word in text.split()), default=0)
        justify: Literal["right", "left"] = "right" if right else "left"
        # Text: what stands in square brackets, such as an extra's name, is no markup.
        made.add_column(
            Text(name),
            justify=justify,
            overflow="fold",
            no_wrap=short,
            min_width=min(word, _WORD),
        )
    for row in cells:
        made.add_row(*map(Text, row))
    out = Console(width=None if on_terminal or "COLUMNS" in os.environ else _WIDTH)
    # By itself: as the table's own title it would be folded to the table's width.
    if on_terminal:
        out.print(Text(title, style="italic"), soft_wrap=True)
        out.print(made)
        return
    print(title)
    with out.capture() as captured:
        out.print(made)
    for line in captured.get().splitlines():
        print(line.rstrip())


def print_json(content: Any) -> None:
    """Print one JSON object."""
    global printed
    printed = True
    print(json.dumps(content, indent=2, default=str))


def need_torch(purpose: str) -> None:
    """Raise a MissingExtraError unless what training needs is installed."""
    from importlib.util import find_spec

    from hyperfusion_rt.errors import MissingExtraError

    for package in ("torch", "sklearn"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "train", purpose)


def share_the_cores() -> None:
    """Before torch is imported: its threads spin shortly at a barrier, and then sleep.

    Where another process wants a core too, spinning made a training step 14 times slower; where
    none does, sleeping at once makes it a third slower.
    """
    import os

    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
