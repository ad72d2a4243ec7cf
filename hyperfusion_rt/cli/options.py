"""How the command line spells what the library calls by name, and commands made of option models.

A command is a function. A parameter of it that is an option model (`CohortOptions`, ...) becomes
one option per field: with the field's own type, default, bounds and description. Here stands only
what is the command line's own: another flag, a panel of the help, a metavar. The models are
imported when a command is run, so that `hfrt --help` stays fast.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from hyperfusion_rt.options import Options

# Panels of the help, in the order in which it shows them.
INPUT, OUTPUT, ENGINE = "Input", "Output", "Engine"
RESUME, MACHINES = "Resume and errors", "Shards and more machines"
TENSORRT, SERVING = "TensorRT", "Serving"
TIMING = "Timing"

# Flags that are not the parameter's name.
FLAGS = {
    "source": "--from",
    "subjects": "--subject",
    "address": "--ray-address",
    "rule": "--combine",
    "backend": "--serve-backend",
    "capabilities": "--compute-capability",
    "engines": "--engine",
    "batches": "--batch",
    "preset_name": "--preset",
    "trackers": "--tracker",
}
PANELS = {
    INPUT: (
        "scans", "table", "tabular", "artifact", "run", "preset_name", "features", "source",
        "models", "folds", "seeds", "ablate", "test", "test_table",
        "map", "id_column", "duplicates", "unmatched_scans", "unmatched_rows", "subjects",
        "participant_label", "session_label", "bids_filter", "scan_checks", "refuse_ood", "target",
        "task", "unit", "boxes", "calibration", "calibration_table", "vary", "nearest_flip", "at",
        "of", "method", "atlas", "cube", "shape", "spacing", "orientation", "normalise", "box",
        "recipe", "output", "classes", "segmentation", "bins",
        "trials", "space", "metric", "pruner", "seed",
    ),
    OUTPUT: (
        "out", "report", "report_subjects", "explain", "no_ids_in_report", "derivative",
        "label_maps", "log_file", "force", "as_json", "name", "against", "rule", "precision",
        "no_training_hashes", "seen_by", "include_seen", "level", "trackers",
    ),
    ENGINE: (
        "engine", "engines", "device", "threads", "batch", "batches", "feature_cache", "max_memory",
        "cache", "cache_limit",
    ),
    RESUME: ("resume", "retry_failed", "fail_fast", "max_errors", "timeout"),
    MACHINES: (
        "jobs", "shard", "executor", "workers", "address", "devices", "nodes", "node_rank",
        "rendezvous",
    ),
    TENSORRT: ("workspace", "capabilities"),
    SERVING: ("serve", "backend"),
    TIMING: ("rounds", "only"),
}  # fmt: skip
METAVARS = {
    "max_memory": "SIZE",
    "cache": "DIR",
    "cache_limit": "SIZE",
    "shard": "I/N",
    "rendezvous": "HOST:PORT",
    "feature_cache": "DIR",
    "derivative": "DIR",
    "label_maps": "DIR",
    "map": "COLUMN=COLUMN[:CELL=VALUE,...]",
    "serve": "DIR",
    "bids_filter": "FILE",
    "calibration": "SCANS",
    "timeout": "MINUTES",
}
# What a command sets itself.
_HIDDEN = ("replace",)
_PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}
_NAME = re.compile(r"`([a-z_]+)`")

Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object instead of tables.",
        rich_help_panel=OUTPUT,
    ),
]


def _at_most_cores(threads: int | None) -> int | None:
    from hyperfusion_rt.machine import at_most_cores

    return at_most_cores(threads)


Threads = Annotated[
    int | None,
    typer.Option(
        callback=_at_most_cores,
        min=1,
        help="Threads; default, and at most: the cores this process may use.",
        rich_help_panel=ENGINE,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace what exists.", rich_help_panel=OUTPUT),
]


def flag(name: str) -> str:
    """The option of the parameter `name`."""
    return FLAGS.get(name, f"--{name.replace('_', '-')}")


def spell(text: object) -> str:
    """A message of the library for the terminal: parameters in backticks become options.

    Other words in backticks may be the user's own, and stay.
    """
    return _NAME.sub(lambda found: flag(found[1]) if found[1] in _PANEL_OF else found[0], str(text))


class Plain:
    """Help in which a flag has no type: it is there or not."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The command's own parameters and `--help`."""
        found: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in found:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return found


class PlainCommand(Plain, TyperCommand):
    """A command with such help."""


@dataclass(frozen=True)
class Command:
    """A command: its function, its place in the help, and the models of its parameters."""

    function: Callable[..., None]
    name: str
    group: str
    epilog: str
    models: dict[str, str]  # parameter → `module:class`, or a type that its annotation names

    def add_to(self, app: typer.Typer) -> None:
        """Register the command without its options: enough for the list of commands."""

        def nothing() -> None:
            pass

        nothing.__doc__ = self.function.__doc__
        app.command(self.name, epilog=self.epilog, rich_help_panel=self.group)(nothing)

    def build(self) -> Any:
        """The command with its options, as Typer makes it."""
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
        function = _expanded(self.function, self.models)
        alone.command(self.name, cls=PlainCommand, epilog=self.epilog)(function)
        return typer.main.get_command(alone)


# As the help lists them: in the order of the work.
GROUPS = {
    "Data": ("simulate", "preprocess"),
    "Study": ("init", "config", "check"),
    "Train": ("train", "compare", "tune", "export", "import", "import-checkpoint"),
    "Predict": ("infer", "evaluate", "merge", "bids-app"),
    "Explain": ("what-if", "explain"),
    "Tools": ("inspect", "doctor", "bench", "demo"),
}
COMMANDS: dict[str, Command] = {}


def command(
    epilog: str, name: str | None = None, **models: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function.

    Args:
        epilog: examples.
        name: default: the function's.
        models: which parameters are option models: `module:class` below the package; or a type
            of the library that a parameter's annotation names.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        named = name or function.__name__.replace("_", "-")
        group = next(group for group, names in GROUPS.items() if named in names)
        COMMANDS[named] = Command(function, named, group, epilog, models)
        return function

    return register


def _expanded(function: Callable[..., None], models: dict[str, str]) -> Callable[..., None]:
    """`function` with one parameter per field instead of each model."""
    loaded = {name: _load(place) for name, place in models.items()}
    names = {place.partition(":")[2]: loaded[name] for name, place in models.items()}
    hints = typing.get_type_hints(function, localns=names, include_extras=True)
    kinds = {name: kind for name, kind in loaded.items() if hasattr(kind, "model_fields")}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in kinds:
            parameters += [_parameter(*item) for item in _shown(kinds[parameter.name])]
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))

    @functools.wraps(function)
    def call(**given: Any) -> None:
        made = {}
        for name, kind in kinds.items():
            own = {field: given.pop(field) for field, _ in _shown(kind)}
            # What was not given is left to the model.
            made[name] = kind(**{field: value for field, value in own.items() if value is not None})
        function(**given, **made)

    parameters.sort(key=lambda p: _place(p.annotation))
    shown = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    call.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in shown}
    del call.__wrapped__
    return call


def _place(annotation: Any) -> int:
    """Where the help shows a parameter: arguments first, then panel by panel."""
    info = next(
        (m for m in getattr(annotation, "__metadata__", ()) if hasattr(m, "rich_help_panel")), None
    )
    if info is None or isinstance(info, typer.models.ArgumentInfo):
        return 0
    order = [*PANELS]
    return 1 + (order.index(info.rich_help_panel) if info.rich_help_panel in order else len(order))


def _shown(kind: type[Options]) -> list[tuple[str, FieldInfo]]:
    return [(name, field) for name, field in kind.model_fields.items() if name not in _HIDDEN]


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"hyperfusion_rt.{module}"), name)


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """A field of a model as a parameter that Typer understands."""
    kind, default = _type_of(field), field.get_default(call_default_factory=True)
    if isinstance(default, tuple):
        default = ":".join(map(str, default)) if kind == str | None else list(default) or None
    low = next((mark.ge for mark in field.metadata if hasattr(mark, "ge")), None)
    option = typer.Option(
        flag(name),
        help=field.description,
        rich_help_panel=_PANEL_OF.get(name),
        metavar=METAVARS.get(name),
        min=low,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, option],
    )


def _type_of(field: FieldInfo) -> Any:
    """The type that Typer parses; a text where the model itself parses it."""
    from pydantic import BeforeValidator

    kind = field.annotation
    if any(isinstance(mark, BeforeValidator) for mark in field.metadata):
        return str | None
    if typing.get_origin(kind) is tuple:
        inside = typing.get_args(kind)[0]
        # Typer takes no list of words out of several; the model says what is wrong with one.
        return (
            list[str] | None if typing.get_origin(inside) is Literal else list[inside] | None  # type: ignore[valid-type]
        )
    return kind
