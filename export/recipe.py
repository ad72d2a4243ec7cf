"""How scans become the input of an imported network: from options, or from a file."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.config.load import read_mapping
from hyperfusion_rt.config.presets import HIPPOCAMPI
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.export.import_options import ImportOptions
from hyperfusion_rt.yaml_text import explain

# The shape of a recipe that leaves it to the network.
OPEN = (1, 1, 1)
# The middle of the MNI152 template's field of view, in mm.
_MIDDLE = (-0.5, -17.5, 18.5)
_NORMALISATION = {"zscore": "zscore-foreground", "minmax": "minmax", "none": "none"}


def recipe_of(options: ImportOptions) -> Preprocessing:
    """The recipe that `options` give or name; its shape is `OPEN` where they do not say it.

    Raises:
        ConfigError: it is none, or the file cannot be read.
    """
    # Of the options only this one is looked at here.
    where, content = "`orientation`: ", _of_options(options)
    if options.recipe is not None:
        where, content = f"{options.recipe}: ", read_mapping(options.recipe)
        content = content.get("preprocessing", content)
    if isinstance(content, dict):
        if options.recipe is not None and options.box != "whole" and "boxes" in content:
            raise ConfigError(
                f"`box` {options.box}: {where}says the boxes; leave one out", code="option-conflict"
            )
        content = {"boxes": _boxes(options), "shape": options.shape or OPEN, **content}
    try:
        found = Preprocessing.model_validate(content)
    except ValidationError as error:
        text = f"{where}{explain(error, Preprocessing)}"
        if options.recipe is None:
            raise ConfigError(text, code="option-wrong") from None
        raise ConfigError(text, code="config-invalid") from None
    if options.shape is not None and found.shape != options.shape:
        raise ConfigError(
            f"`shape` {list(options.shape)}: {where}says {list(found.shape)}; leave one out",
            code="option-conflict",
        )
    return found


def _of_options(options: ImportOptions) -> dict[str, Any]:
    return {
        "spacing": options.spacing,
        "orientation": options.orientation.upper(),
        "normalisation": _NORMALISATION[options.normalise],
    }


def _boxes(options: ImportOptions) -> list[dict[str, Any]]:
    if options.box == "hippocampi":
        return HIPPOCAMPI
    if options.box == "whole":
        return [{"name": "whole", "center": _MIDDLE}]
    try:
        x, y, z = (float(n) for n in options.box.split(","))
    except ValueError:
        raise ConfigError(
            f"`box` {options.box!r}: whole, hippocampi, or X,Y,Z in mm", code="option-wrong"
        ) from None
    return [{"name": "box", "center": (x, y, z)}]
