"""Whether a network can become an engine, asked before it is trained."""

from __future__ import annotations

import re

from torch import nn

from hyperfusion_rt.config import Config
from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.export.fuse.fuser import plan_ensemble
from hyperfusion_rt.export.ir.ensemble import join
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.models.own import own_of


def check_exports(network: nn.Module, image: tuple[int, ...], config: Config) -> None:
    """Lower `network` as an export would, and forget what comes of it.

    `network`: one of the study's own, as `network_of` makes it; `image`: the shape of a box,
    `[C, D, H, W]`. It is what `Callbacks.on_network` of a training takes.

    Raises:
        ConfigError: engines cannot run it; the message names the operation and the layer.
    """
    own = own_of(network)
    assert own is not None
    width = own.network.width
    boxes, classes = len(config.preprocessing.boxes), bool(config.tabular.classes)
    try:
        graph = fold(lower(network, {"image": image, "tabular": (width,)}), None)
        plan_ensemble(join([graph], [width], boxes, classes=classes, rule="mean"))
    except HyperFusionError as error:
        # Layers as the network itself calls them.
        text = re.sub(r" in (network\.)+", " in ", str(error))
        raise ConfigError(
            f"network.import {config.network.imported}: cannot be exported, so it is not trained: "
            f"{text}",
            code=error.code,
        ) from error
