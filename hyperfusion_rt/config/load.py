"""From a preset's name, or `hfrt.yaml`, to a `Config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hyperfusion_rt.config.merge import merge
from hyperfusion_rt.config.network import named_now
from hyperfusion_rt.config.presets import PRESETS
from hyperfusion_rt.config.study import OLDER_TASKS, Config
from hyperfusion_rt.errors import ConfigError


def _has_boxes(preprocessing: Any) -> bool:
    return isinstance(preprocessing, dict) and "boxes" in preprocessing


def _changed(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The preset `base` with `change` merged into it.

    What belongs together is replaced together: the classes are the user's or the preset's, never
    both; the preset's class weights go with its classes, its unit and scale with its target.
    """
    if change.get("task") in OLDER_TASKS:
        change = {**change, "task": OLDER_TASKS[change["task"]]}
    if "network" in change:
        change = {**change, "network": named_now(change["network"])}
        network = change["network"]
        if isinstance(network, dict) and network.get("import") is not None:
            # The preset's fields are of its own network.
            base = {**base, "network": {"architecture": "own"}}
            if network.get("freeze") is True and network.get("keep_features", True):
                # What is kept of scans is of scans as they are.
                base = {**base, "augmentation": {}}
    augmentation = change.get("augmentation")
    if isinstance(augmentation, dict) and "policy" in augmentation:
        base = {**base, "augmentation": {}}  # another policy brings all its own fields
    elif "augmentation" in base and _has_boxes(change.get("preprocessing")):
        # Whether a flip keeps its meaning depends on the boxes.
        base = {**base, "augmentation": {**base["augmentation"], "flip": False}}
    merged = merge(base, change)
    table, training = merged["tabular"], merged["training"]
    if not (isinstance(table, dict) and isinstance(training, dict)):
        return merged  # a section that is none: validation says so
    table, training = dict(table), dict(training)
    given, trained = change.get("tabular", {}), change.get("training", {})
    if "classes" in given:
        if "task" not in change:
            merged["task"] = "classification" if given["classes"] else "regression"
    elif merged["task"] == "regression":
        table.pop("classes", None)
    if ("classes" in given or "classes" not in table) and "class_weights" not in trained:
        training.pop("class_weights", None)
    # What goes with classes alone, or with a number alone.
    for name in ("loss",) if table.get("classes") else ("label_smoothing", "sampling"):
        if name not in trained:
            training.pop(name, None)
    if table["target"] != base["tabular"]["target"] or merged["task"] != base["task"]:
        table["unit"] = given.get("unit", "")
        if "standardise_target" not in trained:
            training.pop("standardise_target", None)
    return {**merged, "tabular": table, "training": training}


def preset(name: str, change: dict[str, Any] | None = None) -> Config:
    """The preset `name` with `change` merged into it.

    Raises:
        ConfigError: no such preset, or a field that is unknown or out of range.
    """
    from hyperfusion_rt.yaml_text import explain

    if name not in PRESETS:
        raise ConfigError(
            f"there is no preset {name!r}: choose from {', '.join(PRESETS)}",
            code="config-unknown-preset",
        )
    try:
        return Config.model_validate(_changed(PRESETS[name], change or {}))
    except ValidationError as error:
        raise ConfigError(
            f"preset {name!r}: {explain(error, Config)}", code="config-invalid"
        ) from None


def read_mapping(path: Path, advice: str = "") -> dict[str, Any]:
    """The mapping of a YAML file; an empty one of any other content.

    `advice`: what to do where there is no file.

    Raises:
        ConfigError: the file is missing, or no YAML.
    """
    from hyperfusion_rt.yaml_text import read_yaml

    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file{advice and '; '}{advice}", code="config-not-found"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as YAML: {error}", code="config-unreadable"
        ) from None
    content = read_yaml(text, path)
    return content if isinstance(content, dict) else {}


def load_config(path: Path, overrule: dict[str, Any] | None = None) -> Config:
    """Read `hfrt.yaml`: a preset's name under `preset`, and what differs from it.

    `overrule` is merged over both.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or a field is wrong.
    """
    advice = "draft one with 'hfrt init', or make a cohort with 'hfrt simulate'"
    change = read_mapping(path, advice)
    if not isinstance(change.get("preset"), str):
        raise ConfigError(
            f"{path}: needs a line 'preset: NAME'; presets: {', '.join(PRESETS)}",
            code="config-no-preset",
        )
    try:
        return preset(change["preset"], merge(change, overrule or {}))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", code=error.code) from None
