"""Write the reference pages from the code: `python docs/generate.py`.

The pages are kept under version control, so that they can be read without building the site. A test
compares them with what this script makes.
"""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from meanings import (
    ARTIFACT,
    CACHE,
    COMPARISON,
    EVALUATION,
    EXPLANATION,
    JOURNAL,
    LABEL_MAPS,
    LOG,
    RUN,
    SEARCH,
)
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

from hyperfusion_rt import config, errors
from hyperfusion_rt.bench.options import BenchOptions
from hyperfusion_rt.cli.app import EXIT_STATUSES, app
from hyperfusion_rt.cli.options import COMMANDS
from hyperfusion_rt.compare.options import CompareOptions
from hyperfusion_rt.export.options import ExportOptions
from hyperfusion_rt.runtime.options import (
    AskOptions,
    BidsOptions,
    CohortOptions,
    EvaluateOptions,
    ExplainOptions,
    MergeOptions,
    PredictOptions,
)
from hyperfusion_rt.runtime.outputs.table import (
    COUNTS,
    STATUS_LEVELS,
    TRUTH,
    Column,
    certainty_columns,
    columns_of,
    quality_column,
    value_columns,
)
from hyperfusion_rt.study.options import DraftOptions
from hyperfusion_rt.tune.options import TuneOptions

# The figures of a raw scan; the last three are one per box.
QUALITY = (
    *("doubt", "disagreement", "misfit", "inside", "residual", "csf", "grey"),
    *("correlation", "overlap", "snr", "rotation", "scale"),
    *("coverage_left", "coverage_right", "coverage_brain"),
)
FOLDER = Path(__file__).parent / "reference"
_NOTE = "<!-- Written by docs/generate.py from the code. Edit the code, then run it again. -->\n\n"
_WORDS = {
    Any: "any value",
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; cells are escaped."""
    lines = [list(header)]
    lines.append(["---"] * len(lines[0]))
    lines += [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def type_name(kind: Any) -> str:
    """A type in words, the same for every version of Python."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return type_name(inside[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(k) for k in inside if k is not type(None))
    if origin is dict:
        return f"mapping of {type_name(inside[0])} to {type_name(inside[1])}"
    if origin is tuple and inside[-1] is not Ellipsis:
        return f"{len(inside)} × {type_name(inside[0])}"
    if origin in (tuple, list):
        return f"list of {type_name(inside[0])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"[{kind.__name__}](#{slug(sections(config.Config)[kind])})"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return " or ".join(f"`{item.value}`" for item in kind)
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


# --- configuration -----------------------------------------------------------------------------


def sections(root: type[BaseModel]) -> dict[type[BaseModel], str]:
    """`root` and every model in its fields, each with its title: where it stands in the file."""
    found: dict[type[BaseModel], str] = {}

    def visit(kind: Any, place: str, each: str) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if kind not in found:
                found[kind] = f"{kind.__name__}: {each}`{place}`" if place else "The whole file"
                for name, field in kind.model_fields.items():
                    visit(field.annotation, f"{place}.{name}".strip("."), "")
            return
        for part in typing.get_args(kind):
            visit(part, place, "each of ")

    visit(root, "", "")
    return found


def about(item: Any) -> str:
    """The docstring without its lists of arguments and errors."""
    return re.split(r"\n\n(?:Args|Attributes|Raises):", inspect.getdoc(item) or "")[0]


def slug(title: str) -> str:
    """The anchor of a title, as MkDocs and GitHub make it."""
    return re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")


def bounds(field: FieldInfo) -> str:
    """`≥ 1, ≤ 2`."""
    found = [
        f"{sign} {getattr(item, name):g}"
        for item in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(item, name, None) is not None
    ]
    return ", ".join(found)


def default(field: FieldInfo, in_presets: bool) -> str:
    """What a field has unless told."""
    if field.is_required():
        return "the preset's" if in_presets else "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}, []):
        return "none"
    return f"`{plain(value)}`"


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """`("training.lr", 0.0001)`, ...: lists of mappings stay as they are."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def plain(value: Any) -> str:
    """A preset's value as YAML would have it, short."""
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, dict):
        return str(value.get("name", value))
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def configuration() -> str:
    """Every field of `hfrt.yaml`, and what the presets set."""
    text = (
        "# Configuration\n\n"
        "`hfrt train` reads `hfrt.yaml`. The file names a preset and what differs from it. A list "
        "replaces the preset's list as a whole. `hfrt train --set SECTION.FIELD=VALUE` overrules "
        "one field for one run. A field that is unknown or out of bounds is an error, and the "
        "message names it.\n\n"
    )
    for model, title in sections(config.Config).items():
        text += f"## {title}\n\n{about(model)}\n\n"
        text += fields_table(model, model.model_fields, "each of" not in title)
        if model is config.NetworkConfig:
            text += layers()
        if model is config.Augmentation:
            text += policies()
    presets = {name: dict(leaves(described(config.preset(name)))) for name in config.PRESETS}
    names = list(dict.fromkeys(name for values in presets.values() for name in values))
    text += (
        "## Presets\n\n`ad` and `brain-age` follow the published protocols; the others are trained "
        "by [a recipe of ours](../how-to/recipe.md). The `-small` presets read the same boxes with "
        "coarser voxels and fewer channels; they train in minutes on two CPU cores.\n\n"
    )
    shown = [n for n in names if not n.startswith("tabular.classes") and n != "preset"]
    rows = [(f"`{n}`", *(plain(values.get(n)) for values in presets.values())) for n in shown]
    text += table(("field", *presets), rows)
    for name in ("ad", "brain-age"):
        spec = config.preset(name).tabular
        text += f"### Columns of the table: `{name}` and `{name}-small`\n\n"
        text += f"The target is `{spec.target}`."
        for label, values in spec.classes.items():
            text += f" Class {label}: {', '.join(f'`{value}`' for value in values)}."
        rows = [(f"`{f.name}`", f.kind, ", ".join(f.categories)) for f in spec.features]
        text += "\n\n" + table(("column", "kind", "categories"), rows)
    return text


def described(made: config.Config) -> dict[str, Any]:
    """A preset, without the fields of a network of one's own."""
    return {**made.model_dump(), "network": made.network.described()}


def policies() -> str:
    """What each policy of the augmentation sets."""
    unset = config.Augmentation()
    found = {name: config.Augmentation(policy=name) for name in config.POLICIES}
    rows = [
        (f"`{field}`", *(plain(getattr(one, field)) for one in found.values()))
        for field in config.Augmentation.model_fields
        if field != "policy"
        and any(getattr(one, field) != getattr(unset, field) for one in found.values())
    ]
    return (
        "### Policies\n\nWhat `augmentation.policy` sets; other fields have their defaults. "
        "[Which to choose](../how-to/augment.md).\n\n" + table(("field", *found), rows)
    )


def layers() -> str:
    """The layers that a network has, and the places where features meet the table."""

    def code(names: Iterable[str]) -> str:
        return ", ".join(f"`{name}`" for name in names)

    alike, late = ("film", "daft", "tabmixer"), ("concat", "attention")
    layers, places = [], []
    for name in config.LAYERS:
        usual = [config.NetworkConfig(architecture=name, fusion=f[0]) for f in (alike, late)]
        published = config.NetworkConfig(architecture=name).generated
        layers.append([code([name]), code(config.LAYERS[name]), code(published)])
        unless = [f"`{network.place}`" for network in usual]
        places.append([code([name]), code(config.PLACES[name]), *unless])
    return (
        "### Layers of the networks\n\nWhat `network.hyper_layers` can name.\n\n"
        + table(("network", "layers", "generated unless told"), layers)
        + "### Places of the networks\n\nWhat `network.fusion_at` can name.\n\n"
        + table(("network", "places", f"{code(alike)}, unless told", code(late)), places)
    )


def fields_table(model: type[BaseModel], names: Iterable[str], in_presets: bool = False) -> str:
    """The fields of a model."""
    fields = [(name, model.model_fields[name]) for name in names]
    rows = [
        (
            f"`{name}`",
            type_name(field.annotation),
            default(field, in_presets and name != "preset"),
            bounds(field),
            field.description or "",
        )
        for name, field in fields
    ]
    return table(("field", "type", "default", "bounds", "meaning"), rows)


# --- commands ----------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its name."""
    for name in get_command(app).commands:
        yield f"hfrt {name}", COMMANDS[name].build()


def parameter_type(command: Any, parameter: Any) -> str:
    """In words, from the signature of the function behind the command."""
    descriptor = getattr(parameter, "type_descriptor", None)
    kind = getattr(descriptor, "annotation", None)
    if kind is None:
        hints = typing.get_type_hints(inspect.unwrap(command.callback))
        kind = hints.get(parameter.name, str)
    if typing.get_origin(kind) is list:  # said by "repeatable"
        (kind,) = typing.get_args(kind)
    text = "flag" if kind is bool else type_name(kind)
    low = getattr(parameter, "min", None)
    high = getattr(parameter, "max", None)
    text += "" if low is None else f", ≥ {low:g}"
    return text if high is None else f"{text}, ≤ {high:g}"


def command_page() -> str:
    """Every command with its arguments and options, by panel."""
    text = (
        "# Commands\n\nEvery command has `--help`, with an example. `--json` prints one JSON "
        "object instead of tables. See also [Exit statuses](exit-statuses.md).\n\n"
    )
    for name, command in commands():
        # Typer keeps an explicit page break in some versions.
        text += f"## `{name}`\n\n{(command.help or '').replace(chr(12), '').strip()}\n\n"
        panels: dict[str, list[tuple[str, str, str, str]]] = {}
        for p in command.params:
            if getattr(p, "hidden", False) or p.name == "help":
                continue
            argument = p.param_type_name == "argument"
            panel = getattr(p, "rich_help_panel", None) or ("Arguments" if argument else "Options")
            label = f"`{p.name.upper()}`" if argument else ", ".join(f"`{o}`" for o in p.opts)
            label += " (repeatable)" if p.multiple or p.nargs == -1 else ""
            value = "required" if p.required else plain_default(p.default)
            row = (label, parameter_type(command, p), value, (p.help or "").replace("<", "&lt;"))
            panels.setdefault(str(panel), []).append(row)
        for panel, rows in panels.items():
            text += f"**{panel}**\n\n" + table(("", "type", "default", "meaning"), rows)
        if command.epilog:
            text += f"{command.epilog}\n\n"
    return text


def plain_default(value: Any) -> str:
    """A default for a reader; nothing where there is none, or for a flag that is off."""
    value = getattr(value, "value", value)
    if value in (None, False, (), []):
        return ""
    return ", ".join(f"`{v}`" for v in value) if isinstance(value, (list, tuple)) else f"`{value}`"


def options_page() -> str:
    """The option models: what Python, the command line and the records of a run share."""
    text = (
        "# Options in Python\n\n`hyperfusion_rt.load` and the functions behind the commands take "
        "these. The [commands](commands.md) have the same options, spelt with dashes.\n\n"
    )
    for model in OPTIONS:
        text += f"## {model.__name__}\n\n{about(model)}\n\n"
        parent = model.__base__ if model.__base__ is PredictOptions else None
        inherited = parent.model_fields if parent else {}
        if parent:
            text += (
                f"It has the fields of [{parent.__name__}](#{parent.__name__.lower()}), and:\n\n"
            )
        text += fields_table(model, [n for n in model.model_fields if n not in inherited])
    return text


# --- output files, errors, exit statuses -------------------------------------------------------


def columns() -> list[Column]:
    """All columns that a table can have: of classes, of years, of labels, of raw scans."""
    # Of a manifest only these are read.
    classes, years, number, labels = (
        SimpleNamespace(
            classes=names,
            labels=("background", "LABEL") if unit == "ml" else (),
            unit=unit,
            table=SimpleNamespace(target="TARGET"),
            training_cases=(),
            answers_sd=unit == "UNIT",
            calibration=SimpleNamespace(age_bias=() if unit == "years" else None),
            typical_scans=() if names else None,
        )
        for names, unit in (
            (("CN", "MCI", "AD"), "probability"),
            ((), "years"),
            ((), "UNIT"),
            ((), "ml"),
        )
    )
    found = columns_of(classes)
    sets = certainty_columns(classes).values()
    found = [column for column in found if column not in sets]
    middle = [column.name for column in found].index("member_spread") + 1
    return [
        *found[: middle - 1],
        *value_columns(years),
        *value_columns(number),
        *value_columns(labels),
        TRUTH,
        *found[middle - 1 : middle],
        *[column for column in sets if column.name != "scan_distance"],
        *certainty_columns(years).values(),
        *[column for column in sets if column.name == "scan_distance"],
        *map(quality_column, QUALITY),
        *found[middle:],
    ]


def column_row(column: Column) -> tuple[str, str, str, str]:
    """A column for a table; SI writes 1 where there is no unit."""
    unit = "" if column.unit == "1" else column.unit
    return f"`{column.name}`", column.kind, unit, column.meaning


def output_files() -> str:
    """What `hfrt infer` writes."""
    return (
        "# Output files\n\n"
        "`hfrt infer` and `hfrt merge` write `predictions.csv` (or the name after `--out`), and "
        "beside it a report, a record of the run and a journal.\n\n"
        "## The table: `predictions.csv`\n\n"
        "One row per case, in the order of subject and session. `.csv` is separated by commas, "
        "`.tsv` by tabs; both hold six significant digits. `.jsonl` (one JSON object a line) and "
        "`.parquet` hold all bits. An empty cell means that there is no value.\n\n"
        + table(("column", "type", "unit", "meaning"), map(column_row, columns()))
        + "Probabilities are calibrated: scaled by the artifact's temperature, where it has one; "
        "those of the engines' own files are not ([how to scale them](../how-to/how-sure.md#"
        "outside-of-hfrt)). [How sure an answer is](../how-to/how-sure.md) says what sets, "
        "intervals, gaps and `scan_distance` promise. Their columns are there where the artifact "
        "knows them; those of the gap also need the true age in the table.\n\n"
        "`status` is one of:\n\n"
        + table(("status", "meaning"), ((f"`{k}`", v) for k, v in STATUS_LEVELS.items()))
        + "## The record: `predictions.csv.run.json`\n\n"
        + table(("field", "meaning"), RUN)
        + "`counts`, also in what `--json` prints (`summary`) and at the end of the journal and of "
        "the log. `ok`, `error`, `not_tried` and `skipped` are the table's rows by status.\n\n"
        + table(("count", "meaning"), ((f"`{k}`", v) for k, v in COUNTS.items()))
        + "## The journal: `predictions.csv.journal`\n\n"
        "One JSON object a line, written as each case is done. `--resume` and `hfrt merge` read "
        "it. Do not edit it.\n\n"
        + table(("line begins with", "fields", "meaning"), JOURNAL)
        + "## Label maps: `predictions_labels/`\n\n"
        "Of [networks that segment](../how-to/import-network.md#networks-that-segment).\n\n"
        + table(("file", "meaning"), LABEL_MAPS)
        + "## The log: `--log-file FILE`\n\n"
        "What `hfrt infer` appends to a file that you name: one JSON object a line. Every line has "
        "`time` (UTC, ISO 8601), `level` and `code`; `message` stands last.\n\n"
        + table(("level", "code", "more fields", "meaning"), LOG)
        + "## The report: `predictions.html`\n\n"
        "One HTML file, which needs no network; [how to read it](../how-to/report.md). It shows "
        "the cohort, up to 10,000 cases, failed ones first, the first subjects one by one "
        "(`--report-subjects`), the engine and how it was compared with float64, and where the "
        "time went; where the table has the target's column, the main figures with charts.\n\n"
        "It has the table's name without `.csv`. Another ending stays (`predictions.tsv.html`): "
        "two tables in a folder do not share a report unless `--report` says so.\n\n"
        "## Its folder: `predictions_subjects/`\n\n"
        "Only where the report has no room for every subject. A page each, by the row in the "
        "table: `00501.html`. Every report writes its folder anew, or removes it; a folder that "
        "no report made (it has no `about.txt`) is never replaced.\n\n"
        "## The artifact: `NAME.hfrt`\n\n"
        "What `hfrt export` writes. A file that was changed is refused.\n\n"
        + table(("file", "meaning"), ARTIFACT)
        + "## The folder of `hfrt evaluate`\n\n"
        + table(("file", "meaning"), EVALUATION)
        + "## The folder of `hfrt explain`\n\n"
        + table(("file", "meaning"), EXPLANATION)
        + "## The folder of `hfrt compare`\n\n"
        + table(("file", "meaning"), COMPARISON)
        + "## The cache of `hfrt train`: `.hfrt_cache`\n\n"
        "Beside the configuration, or where `--cache` says; [how it is "
        "used](../how-to/train.md). All of it can be made again.\n\n"
        + table(("file", "meaning"), CACHE)
        + "## The folder of `hfrt tune`\n\n"
        + table(("file", "meaning"), SEARCH)
    )


def error_codes() -> str:
    """Every code, and every class of error."""
    text = (
        "# Errors\n\nA message says what is wrong, where, and what to do. A code says which kind "
        "of fault it is. Codes are stable: programs may branch on them. A message may change.\n\n"
        "A code stands in the column `code` of the table of predictions, in what `--json` prints, "
        "and in Python in `error.code`.\n\n"
    )
    rows = ((f"`{name}`", meaning) for name, meaning in errors.CODES.items())
    text += "## Codes\n\n" + table(("code", "meaning"), rows)
    classes = [
        item
        for item in vars(errors).values()
        if inspect.isclass(item) and issubclass(item, errors.HyperFusionError)
    ]
    text += "## Classes\n\nIn Python, all derive from `HyperFusionError`.\n\n"
    lines = [(f"`{c.__name__}`", (inspect.getdoc(c) or "").splitlines()[0]) for c in classes]
    return text + table(("class", "meaning"), lines)


def exit_statuses() -> str:
    """What a script or a scheduler sees."""
    rows = [(str(status), text) for status, text in EXIT_STATUSES.items()]
    return "# Exit statuses\n\nOf every `hfrt` command.\n\n" + table(("status", "meaning"), rows)


OPTIONS: tuple[type[BaseModel], ...] = (
    DraftOptions,
    PredictOptions,
    CohortOptions,
    BidsOptions,
    MergeOptions,
    ExplainOptions,
    AskOptions,
    EvaluateOptions,
    CompareOptions,
    TuneOptions,
    ExportOptions,
    BenchOptions,
)
PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "commands.md": command_page,
    "options.md": options_page,
    "output-files.md": output_files,
    "errors.md": error_codes,
    "exit-statuses.md": exit_statuses,
}


def pages() -> dict[str, str]:
    """File name → content."""
    return {name: _NOTE + make().rstrip() + "\n" for name, make in PAGES.items()}


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
