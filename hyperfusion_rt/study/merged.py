"""A configuration as a whole, with where every field comes from; and its schema for editors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hyperfusion_rt.config import PRESETS, Config, Frozen, preset
from hyperfusion_rt.yaml_text import commented, read_yaml, scalar

# Whose list or mapping of fields may be given in part: the rest is the preset's.
_SECTIONS = ("preprocessing", "tabular", "network", "training")


def read(path: Path) -> dict[str, Any]:
    """What a configuration file says itself; `load_config` has said what is wrong with it."""
    content: dict[str, Any] = read_yaml(path.read_text(encoding="utf-8-sig"), path)
    return content


def origins(
    config: Config, given: Mapping[str, Any], overruled: Mapping[str, Any]
) -> dict[str, str]:
    """Where each field comes from: `overruled`, `file`, `preset`, or `default`.

    `given`: what the file says (nothing, if only the preset is looked at); `overruled`: what was
    merged over it. Names are `training.lr` and the like.
    """
    base = PRESETS[config.preset]
    usual = dict(_leaves(preset(config.preset)))
    found = {}
    for name, value in _leaves(config):
        if _has(overruled, name):
            found[name] = "overruled"
        elif _has(given, name):
            found[name] = "file"
        elif value == usual[name] and _has(base, name):
            found[name] = "preset"
        elif value == _default(name):
            found[name] = "default"
        else:  # given in an older spelling, or follows from another field
            found[name] = "file" if given else "overruled"
    return found


def text(config: Config, where: Mapping[str, str], words: Mapping[str, str]) -> str:
    """The whole configuration as YAML that `load_config` reads; a comment on each field's origin.

    `where`: what `origins` found; `words`: how the origins are called.
    """
    lines: list[str] = []
    section = ""
    for name, value in _leaves(config):
        *above, field = name.split(".")
        if above and above[0] != section:
            section = above[0]
            lines += ["", f"{section}:"]
        indent = "  " * len(above)
        said = words[where[name]]
        if isinstance(value, tuple) and value and isinstance(value[0], Frozen):
            lines += commented(f"{indent}{field}:", said)
            lines += [f"{indent}- {scalar(one.model_dump(exclude_defaults=True))}" for one in value]
        elif isinstance(value, dict) and value:
            lines += commented(f"{indent}{field}:", said)
            for key, one in value.items():
                inner = one.model_dump(exclude_defaults=True) if isinstance(one, Frozen) else one
                lines.append(f"{indent}  {scalar(key)}: {scalar(inner)}")
        else:
            lines += commented(f"{indent}{field}: {scalar(value)}", said)
    return "\n".join(lines) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema of `hfrt.yaml`: a preset's name, and whatever differs from it.

    A section may be given in part. A list replaces the preset's as a whole, so that what is in it
    (a feature, a box) has all of its fields.
    """
    made = Config.model_json_schema()
    made["title"] = "hfrt.yaml"
    made["required"] = ["preset"]
    made["properties"]["preset"] |= {"enum": list(PRESETS)}
    for name in _SECTIONS:
        place = made["properties"][name]
        made["$defs"][place["$ref"].rpartition("/")[2]].pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _leaves(model: BaseModel, above: str = "") -> Iterator[tuple[str, Any]]:
    """`("training.lr", 0.0001)`, ...: the plain fields first, then section by section."""
    values = [(name, getattr(model, name)) for name in type(model).model_fields]
    for name, value in values:
        if not isinstance(value, Frozen):
            yield f"{above}{name}", value
    for name, value in values:
        if isinstance(value, Frozen):
            yield from _leaves(value, f"{above}{name}.")


def _has(content: Mapping[str, Any], name: str) -> bool:
    """Whether a file's content gives the field `name`."""
    node: Any = content
    for part in name.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _default(name: str) -> Any:
    """A field's own default; the class itself where it has none."""
    model: type[BaseModel] = Config
    *above, last = name.split(".")
    for part in above:
        kind = model.model_fields[part].annotation
        assert isinstance(kind, type)
        model = kind
    field = model.model_fields[last]
    return model if field.is_required() else field.get_default(call_default_factory=True)
