"""What a search tries: fields of the configuration, each with a range or a list of values.

A value of a list is kept in the search by its text in YAML: that takes lists and mappings, too.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, model_validator

from hyperfusion_rt.config import Config, Finite
from hyperfusion_rt.config.load import read_mapping
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.tune.spaces import OF_HYPER, SPACES
from hyperfusion_rt.yaml_text import explain, scalar

# What must be alike in all trials, or their figures could not be compared: the cases, their truth,
# the parts.
_ALIKE = (
    *("preset", "task", "scans", "table", "bids_filter", "scan_checks", "preprocessing"),
    *("tabular", "training.members", "training.combine", "training.seed"),
    *(f"training.{n}" for n in ("parts", "test_part", "split_column", "split_file")),
)
# What changes the meaning of the validation loss.
_OF_LOSS = ("training.loss", "training.class_weights", "training.standardise_target")
_DIGITS = 4  # significant ones of a number that is tried

# Makes a configuration of the study with one field changed.
Probe = Callable[[str, Any], Config]


class Range(Finite):
    """Numbers from `low` to `high`, both included; `whole`: integers."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @model_validator(mode="after")
    def _check(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, not {self.low:g}")
        return self

    def value(self, found: Any) -> Any:
        """A number of the search as a configuration has it."""
        if self.whole:
            return int(found)
        return min(max(float(f"{found:.{_DIGITS}g}"), self.low), self.high)

    def holds(self, value: Any) -> Any | None:
        """The value as the search has it; None where it is not in the range."""
        inside = isinstance(value, (int, float)) and self.low <= value <= self.high
        return value if inside and self.value(value) == value else None

    @property
    def text(self) -> str:
        """In words."""
        return f"{self.low:g} to {self.high:g}" + (", log" if self.log else "")


class Choices(Finite):
    """Values that are tried as they are."""

    choices: tuple[Any, ...]

    @model_validator(mode="after")
    def _check(self) -> Choices:
        if len(set(self.texts)) < max(2, len(self.choices)):
            raise ValueError("needs two values or more, each once")
        return self

    @property
    def texts(self) -> list[str]:
        """The values in YAML."""
        return [scalar(value) for value in self.choices]

    def value(self, found: Any) -> Any:
        """A text of the search as a configuration has it."""
        return self.choices[self.texts.index(str(found))]

    def holds(self, value: Any) -> Any | None:
        """The value as the search has it; None where it is none of them."""
        if isinstance(value, tuple):
            value = list(value)
        return next((scalar(c) for c in self.choices if c == value), None)

    @property
    def text(self) -> str:
        """In words."""
        return ", ".join(self.names)

    @property
    def names(self) -> list[str]:
        """The values for a reader."""
        return [shown(value) for value in self.choices]


Space = dict[str, Range | Choices]


def shown(value: Any) -> str:
    """A value for a reader."""
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else scalar(value)


def space_of(config: Config, fixed: dict[str, Any], probe: Probe) -> Space:
    """What is searched of a study that does not say.

    Its preset's space, without what is given by hand (`fixed`, nested) or does not go with its
    network.

    Raises:
        ConfigError: nothing is left.
    """
    given = dict(leaves(fixed))
    found: Space = {}
    for name, content in SPACES[config.preset].items():
        if name in given or (name in OF_HYPER and config.network.fusion != "hyper"):
            continue
        item = _item(name, content)
        if not any(_wrong(name, value, probe) for value in _ends(item)):
            found[name] = item
    if not found:
        raise ConfigError(
            f"nothing of the preset {config.preset} is left to search; say in a `space` what to "
            "try",
            code="config-invalid",
        )
    return found


def read_space(
    path: Path, fixed: dict[str, Any], probe: Probe, metric: Literal["figure", "loss"]
) -> Space:
    """The space that a YAML file describes, with fields as `section.field` or in sections.

    Raises:
        ConfigError: the file cannot be read, or all that is wrong with its fields.
    """
    content = read_mapping(path, "write it as docs/how-to/tune.md shows")
    if not content:
        raise ConfigError(
            f"{path}: holds no field: write lines such as 'network.embedding: [8, 16, 32]'",
            code="config-invalid",
        )
    found: Space = {}
    wrong: list[str] = []
    given = dict(leaves(fixed))
    for name, entry in _entries(content):
        try:
            _refuse(name, given, metric)
            found[name] = _item(name, entry)
            reasons = (_wrong(name, value, probe) for value in _ends(found[name]))
            wrong += [next(filter(None, reasons), "")]
        except ConfigError as error:
            wrong.append(str(error))
    if any(wrong):
        raise ConfigError(f"{path}: {'; '.join(filter(None, wrong))}", code="config-invalid")
    return found


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """`{"network.features": 8}` as nested as the configuration."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        *above, last = name.split(".")
        node = found
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
    return found


def leaves(content: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """`("network.features", 8)`, ... of what is nested."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def field_of(config: Config, name: str) -> Any:
    """The value of `section.field`.

    Raises:
        ConfigError: there is no such field.
    """
    value: Any = config.model_dump()
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ConfigError(f"{name}: there is no such field", code="config-invalid")
        value = value[part]
    return value


def _entries(content: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every field with what is to be tried; sections are opened."""
    for key, value in content.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and name in Config.model_fields:
            yield from _entries(value, f"{name}.")
        else:
            yield name, value


def _refuse(name: str, given: dict[str, Any], metric: str) -> None:
    """What cannot be searched."""
    if any(name == alike or name.startswith(f"{alike}.") for alike in _ALIKE):
        raise ConfigError(f"{name}: all trials must have this alike", code="config-invalid")
    if metric == "loss" and name in _OF_LOSS:
        raise ConfigError(
            f"{name}: changes what the validation loss means; search by `metric` figure",
            code="config-invalid",
        )
    if name in given:
        raise ConfigError(
            f"{name}: is also given by hand, which fixes it; drop one of them",
            code="config-invalid",
        )


def _item(name: str, entry: Any) -> Range | Choices:
    """What is to be tried of a field.

    Raises:
        ConfigError: it is written another way, or does not go with the field's type.
    """
    kind = Choices if isinstance(entry, list) or _has(entry, "choices") else Range
    content = {"choices": entry} if isinstance(entry, list) else entry
    if not isinstance(content, dict):
        raise ConfigError(
            f"{name}: write a list of values, or {{low: ..., high: ...}}, not {scalar(entry)}",
            code="config-invalid",
        )
    types = _types(name)
    numbers = {int, float} & types
    if kind is Range:
        if types and not numbers:
            raise ConfigError(
                f"{name}: is no number, and has no low and high: list its values in brackets",
                code="config-invalid",
            )
        ends = [content.get(end) for end in ("low", "high")]
        whole = all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
        if numbers == {int} and not whole:
            raise ConfigError(
                f"{name}: is a whole number: low and high must be, too", code="config-invalid"
            )
        # A field without a type of its own, such as an argument: as its ends are written.
        content = {**content, "whole": whole and float not in numbers}
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        reason = explain(error, kind).removeprefix("the file: ")
        raise ConfigError(f"{name}: {reason}", code="config-invalid") from None


def _has(entry: Any, key: str) -> bool:
    return isinstance(entry, dict) and key in entry


def _types(name: str) -> set[Any]:
    """The types that a field of the configuration takes; none where it is not known."""
    model: type[BaseModel] = Config
    *above, last = name.split(".")
    for part in above:
        field = model.model_fields.get(part)
        if field is None or not _is_model(field.annotation):
            return set()
        model = typing.cast(type[BaseModel], field.annotation)
    found = model.model_fields.get(last)
    if found is None:
        return set()
    return set(typing.get_args(found.annotation) or (found.annotation,)) - {type(None)}


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _ends(item: Range | Choices) -> list[Any]:
    """Every value of a list; the smallest and the largest of a range."""
    return [
        item.value(v) for v in ((item.low, item.high) if isinstance(item, Range) else item.texts)
    ]


def _wrong(name: str, value: Any, probe: Probe) -> str:
    """Why the configuration does not take this value; "" where it does."""
    try:
        probe(name, value)
    except ConfigError as error:
        return str(error)
    return ""
