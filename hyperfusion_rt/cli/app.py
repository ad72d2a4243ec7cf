"""The command line. It parses and prints; what it calls is imported inside the commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# Imported for the commands that they register.
from hyperfusion_rt.cli import (  # noqa: F401
    compare,
    data,
    evaluate,
    explain,
    predict,
    study,
    tools,
    train,
    tune,
    what_if,
)
from hyperfusion_rt.cli.options import COMMANDS, GROUPS, Plain
from hyperfusion_rt.cli.start import INTERRUPTED, NO_READER, unexpected

EXIT_STATUSES = {
    0: "All well.",
    1: "An error. One line on stderr says what is wrong, where, and what to do.",
    2: "Wrong usage: an unknown option, a missing argument.",
    3: "Some cases failed, or were not tried. The table says which and why; all other predictions "
    "stand. With `hfrt infer --resume`, failures that are known and have not changed do not count.",
    INTERRUPTED: "Interrupted (Ctrl-C or SIGTERM). Nothing half-made is left. "
    "`hfrt infer` has written what was done; `--resume` goes on.",
    NO_READER: "Nobody reads standard output any more (`hfrt ... | head`). The files are written.",
}


class _Commands(Plain, TyperGroup):
    """The commands. Their options are made when one is run: that is what imports the library."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        name, found, rest = super().resolve_command(ctx, args)
        return name, COMMANDS[name].build() if name else found, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command. What Typer would end with `Aborted.` or without a word is named."""
        try:
            return super().invoke(ctx)
        except (EOFError, OSError) as error:
            raise unexpected(error) from error


app = typer.Typer(
    name="hfrt",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train HyperFusion networks (a table generates weights of a 3D CNN), export them, "
    "and predict brain scans.",
    epilog="A study of your own: hfrt init --scans scans --table data.csv; hfrt train; "
    "hfrt export; hfrt evaluate NAME.hfrt new/scans --tabular new/data.csv",
)
for _name in [name for names in GROUPS.values() for name in names]:
    COMMANDS[_name].add_to(app)


def _version(value: bool) -> None:
    if value:
        from hyperfusion_rt import __version__

        print(f"hfrt {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    pass


def run(arguments: list[str]) -> None:
    """Run the command that `arguments` name.

    Raises:
        SystemExit: it is done; its code is the exit status.
        HyperFusionError: what is wrong.
    """
    app(predict.spread_labels(arguments))
