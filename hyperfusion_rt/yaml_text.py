"""Reading and writing YAML without its surprises, and saying what is wrong with its fields."""

from __future__ import annotations

import difflib
import json
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from hyperfusion_rt.errors import ConfigError

WIDTH = 100
_COLUMN = 40  # where comments behind short lines begin
# What some reader of YAML takes for no text: numbers of any kind, truth values, nothing.
_NO_TEXT = re.compile(r"[-+.]?\d.*|~|y|n|yes|no|on|off|true|false|null|none", re.IGNORECASE)


class _Surprise(Exception):
    """What YAML would do in silence; the message names the lines."""


class _Loader(yaml.SafeLoader):
    """A safe loader that takes every key once, and no number in base 8 or 60."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:  # type: ignore[override]
        node: yaml.MappingNode = super().compose_mapping_node(anchor)  # type: ignore[arg-type]
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                where = f"lines {lines[name]} and {line}" if line != lines[name] else f"line {line}"
                raise _Surprise(
                    f"{key.value!r} stands twice, in {where}, and YAML takes only the last; "
                    "keep one, with all that belongs under it"
                )
            lines[name] = line
        return node

    def number(self, node: yaml.ScalarNode) -> int | float:
        """A number as it is written."""
        text = node.value
        if ":" in text or re.fullmatch(r"[+-]?0[\d_]+", text):
            line = node.start_mark.line + 1
            raise _Surprise(
                f"line {line}: YAML reads {text} as another number (base 8 or 60); write it "
                "without leading zeros, or in quotes where it is a text"
            )
        if node.tag.endswith(":int"):
            return int(self.construct_yaml_int(node))
        return float(self.construct_yaml_float(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)


def read_yaml(text: str, where: object) -> Any:
    """The content of a YAML text; `where` it stands begins the messages.

    Raises:
        ConfigError: no YAML, a key that stands twice in one mapping, a number in base 8 or 60.
    """
    try:
        return yaml.load(text, _Loader)
    except _Surprise as error:
        raise ConfigError(f"{where}: {error}", code="config-invalid") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{where}: cannot be read as YAML: {reason}", code="config-unreadable"
        ) from None


def scalar(value: Any) -> str:
    """A value, or a list or mapping of values, in one line of YAML that means just this."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(k)}: {scalar(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(scalar, value)) + "]"
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)  # a line's end, say: YAML's quotes with backslashes are JSON's
    # In a list, so that what has a meaning inside brackets is quoted.
    text = yaml.safe_dump(
        [value], default_flow_style=True, allow_unicode=True, width=float("inf")
    ).strip()[1:-1]
    if isinstance(value, str) and text == value and _NO_TEXT.fullmatch(text):
        return f"'{text}'"
    return text


def commented(line: str, comment: str = "") -> list[str]:
    """A line with its comment: behind it where there is room, else in lines above it."""
    if not comment:
        return [line]
    comment = " ".join(comment.split())
    behind = f"{line:<{_COLUMN}}  # {comment}"
    if len(behind) <= WIDTH:
        return [behind]
    return [*remark(comment, len(line) - len(line.lstrip())), line]


def remark(text: str, indent: int = 0) -> list[str]:
    """Lines of comment."""
    start = " " * indent + "# "
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=start, subsequent_indent=start,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """What is wrong with the fields of a file that `root` describes, in words of the file."""
    items = error.errors()
    # A list of things that are wrong themselves is not too short as well.
    inside = {item["loc"][:n] for item in items for n in range(len(item["loc"]))}
    parts = [
        _explain(item, root)
        for item in items
        if not (item["type"] == "too_short" and item["loc"] in inside)
    ]
    return "; ".join(dict.fromkeys(parts))


def _explain(item: Any, root: type[BaseModel]) -> str:
    """One thing that is wrong."""
    loc = [str(part) for part in item["loc"] if part != "[key]"]
    where, given, kind = ".".join(loc) or "the file", item.get("input"), item["type"]
    if kind == "extra_forbidden":
        return f"{where}: there is no such field{_hint(item['loc'], root)}"
    if given is None and kind != "missing":
        return f"{where}: is empty (null); give a value, or take the line out"
    if kind == "string_type" and not isinstance(given, (dict, list, tuple)):
        while loc and loc[-1].isdecimal():  # which one it is, says its value
            loc.pop()
        return f"{'.'.join(loc)}: must be a text{_quoted(given)}"
    if kind == "tuple_type":
        if isinstance(given, bool):
            return f"{where}: must be a list of texts{_quoted(given)}, in brackets"
        shown = "" if isinstance(given, dict) else f"; write {scalar([given])}"
        return f"{where}: must be a list{shown}"
    if kind == "dict_type":
        return f"{where}: must be a mapping, with lines 'name: value'"
    if kind == "model_type":
        model = _model_at(item["loc"], root)
        fields = f" ({', '.join(list(model.model_fields)[:3])}, ...)" if model else ""
        return f"{where}: must be a mapping of fields{fields}"
    text = f"{where}: {item['msg'].removeprefix('Value error, ')}"
    if kind == "literal_error" and isinstance(given, str):
        known = re.findall("'([^']+)'", str(item["ctx"]["expected"]))
        close = difflib.get_close_matches(given, known, n=1)
        text += f"; did you mean {close[0]!r}?" if close else ""
    return text


def _quoted(given: Any) -> str:
    """Why YAML reads no text, and how to write one."""
    if isinstance(given, bool):
        words = "yes, on, true" if given else "no, off, false"
        return (
            f", but YAML reads an unquoted {words} as {str(given).lower()}; write it in quotes, "
            f"as '{words.split(',')[0]}'"
        )
    return f"; write it in quotes, as '{given}'"


def _hint(loc: Sequence[int | str], root: type[BaseModel]) -> str:
    """Which field may be meant by one that there is not."""
    name = str(loc[-1])
    model = _model_at(loc[:-1], root)
    fields = list(model.model_fields) if model else []
    close = difflib.get_close_matches(name.casefold(), fields, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    elsewhere = [place for place in _places(root) if place.split(".")[-1] == name]
    if elsewhere:
        return f"; did you mean {elsewhere[0]!r}?"
    return f"; the fields here are {', '.join(fields)}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    inside = typing.get_args(annotation) or (annotation,)
    return [kind for kind in inside if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _model_at(loc: Sequence[int | str], root: type[BaseModel]) -> type[BaseModel] | None:
    """The model of the section at this place of the file."""
    model = root
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        found = _models(field.annotation) if field else []
        if not found:
            return None
        model = found[0]
    return model


def _places(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every field, as `section.field`."""
    for name, field in model.model_fields.items():
        yield f"{above}{name}"
        for inside in _models(field.annotation):
            yield from _places(inside, f"{above}{name}.")
