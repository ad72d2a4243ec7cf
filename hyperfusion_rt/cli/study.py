"""Commands about a configuration: draft one for a study, show one as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperfusion_rt.cli import terminal
from hyperfusion_rt.cli.options import INPUT, OUTPUT, Force, Json, command, spell
from hyperfusion_rt.cli.train import Change, overrides
from hyperfusion_rt.errors import ConfigError, HyperFusionError

if TYPE_CHECKING:
    from hyperfusion_rt.study.options import DraftOptions

# Where editors look for the schema that a draft names, if it stands beside it.
SCHEMA = "hfrt.schema.json"


@command(
    "Examples: hfrt init --scans mri/ --table patients.csv; "
    "hfrt init --scans mri/ --table patients.csv --target HIPPOCAMPUS_ml --boxes whole-brain",
    options="study.options:DraftOptions",
)
def init(
    scans: Annotated[
        Path, typer.Option(help="The folder of scans, in MNI space.", rich_help_panel=INPUT)
    ],
    table: Annotated[
        Path, typer.Option(help="The table, CSV or TSV, with a header.", rich_help_panel=INPUT)
    ],
    options: DraftOptions,
    out: Annotated[
        Path, typer.Option(help="The configuration to write.", rich_help_panel=OUTPUT)
    ] = Path("hfrt.yaml"),
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draft hfrt.yaml for a folder of scans and a table; says how they match and what was decided.

    Reads the table and the names of the scans; no scan is opened. Every decision has a comment.
    """
    from hyperfusion_rt.files import write_text
    from hyperfusion_rt.study.draft import draft
    from hyperfusion_rt.study.report import report, summary
    from hyperfusion_rt.study.yaml_draft import text

    if out.exists() and not force:
        raise HyperFusionError(
            f"{out}: is there already; replace it with `force`, or name another file with `out`",
            code="output-exists",
        )
    made = draft(scans, table, out.parent, options)
    write_text(out, text(made, SCHEMA if (out.parent / SCHEMA).is_file() else None))
    if as_json:
        terminal.print_json({"written": str(out), **summary(made)})
        return
    for line in report(made):
        print(spell(line))
    place = "" if out == Path("hfrt.yaml") else f" --config {out}"
    print(f"{out}: written. Next: read it; hfrt check{place}; hfrt train{place}")


@command(
    "Examples: hfrt config; hfrt config --preset ad-small; hfrt config --set training.epochs=3 "
    "--json; hfrt config --schema > hfrt.schema.json",
)
def config(
    config: Annotated[
        Path | None, typer.Option(help="The configuration; default: hfrt.yaml.")
    ] = None,
    change: Change = None,
    preset_name: Annotated[
        str | None, typer.Option("--preset", help="Show this preset instead of a file.")
    ] = None,
    schema: Annotated[
        bool,
        typer.Option("--schema", help="Print the JSON schema of the file, for editors."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the whole configuration, the file over its preset, and where each field comes from.

    What is printed is a configuration itself.
    """
    from hyperfusion_rt.config import load_config, preset
    from hyperfusion_rt.study import merged

    if schema:
        terminal.print_json(merged.schema())
        return
    if preset_name is not None and config is not None:
        raise ConfigError("--config and --preset: give one of them", code="option-conflict")
    overruled = overrides(change or [])
    given: dict[str, Any] = {}
    path = config or Path("hfrt.yaml")
    if preset_name is not None:
        settings = preset(preset_name, overruled)
    else:
        settings = load_config(path, overruled)
        given = merged.read(path)
    where = merged.origins(settings, given, overruled)
    words = {
        "overruled": "--set",
        "file": path.name,
        "preset": f"preset {settings.preset}",
        "default": "default",
    }
    if as_json:
        said = {name: words[source] for name, source in where.items()}
        terminal.print_json({"config": settings.model_dump(mode="json"), "from": said})
    else:
        print(merged.text(settings, where, words), end="")
