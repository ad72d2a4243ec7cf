"""The command line. It parses and prints; what it calls is imported inside the commands."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# Imported for the commands that they register.
from hyperfusion_rt.cli import data, predict, terminal, tools, train  # noqa: F401
from hyperfusion_rt.cli.options import COMMANDS, GROUPS, Plain, spell
from hyperfusion_rt.errors import HyperFusionError

EXIT_STATUSES = {
    0: "All well.",
    1: "An error. One line on stderr says what is wrong, where, and what to do.",
    2: "Wrong usage: an unknown option, a missing argument.",
    3: "Some cases failed. The table says which and why; all other predictions stand.",
    terminal.INTERRUPTED: "Interrupted (Ctrl-C or SIGTERM). Nothing half-made is left. "
    "`hfrt infer` has written what was done; `--resume` goes on.",
}


class _Commands(Plain, TyperGroup):
    """The commands. Their options are made when one is run: that is what imports the library."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        name, found, rest = super().resolve_command(ctx, args)
        return name, COMMANDS[name].build() if name else found, rest


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
    epilog="In a folder made by 'hfrt simulate': hfrt train; hfrt export; "
    "hfrt infer scans/ --tabular data.csv",
)
for _command in sorted(COMMANDS.values(), key=lambda one: GROUPS.index(one.group)):
    _command.add_to(app)


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


def main() -> None:
    """Run the command line; a HyperFusionError is one line and exit status 1."""
    # A scheduler's SIGTERM is treated like Ctrl-C: nothing half-made is left.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(predict.spread_labels(sys.argv[1:]))
    except HyperFusionError as error:
        print(f"error: {spell(error)}", file=sys.stderr)
        if "--json" in sys.argv:
            terminal.print_json({"error": {"code": error.code, "message": spell(error)}})
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(terminal.INTERRUPTED)
    except SystemExit as status:  # typer turns an interrupt into one
        if status.code == terminal.INTERRUPTED:
            print("interrupted", file=sys.stderr)
        raise
