"""The last layer of a network, generated or not: where a number gets its unit."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.models.distribution import Distribution
from hyperfusion_rt.models.gaussian import Gaussian
from hyperfusion_rt.models.own import OwnNetwork

_LAST = ("fc2", "final_layer")
# What the layer adds at the end; of a generated one, whatever the row.
_BIAS = re.compile(r"(.*\.)?(layer\.|bias_gen\.)bias|bias")


def _last(network: nn.Module) -> tuple[str, nn.Module]:
    for name in _LAST:
        found = getattr(network, name, None)
        if found is not None:
            return name, found
    raise ConfigError(
        f"{type(network).__name__} has no last layer called {' or '.join(_LAST)}",
        code="model-no-output",
    )


def start_at(network: nn.Module, value: float) -> None:
    """Let the last layer add `value` at first, instead of about 0."""
    if isinstance(network, OwnNetwork):
        network.shift.fill_(value)
        return
    _, last = _last(network)
    with torch.no_grad():
        for name, parameter in last.named_parameters():
            if _BIAS.fullmatch(name):
                parameter.fill_(value)


def in_unit(network: nn.Module, mean: float, spread: float) -> dict[str, Tensor]:
    """A copy of the state of `network`, changed to answer `mean + spread · output`.

    Of a `Gaussian`, the standard deviation is only multiplied.
    """
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    if isinstance(network, Distribution):
        return {**state, "centres": mean + spread * state["centres"]}
    if isinstance(network, OwnNetwork):
        shift = mean + spread * state["shift"]
        return {**state, "scale": spread * state["scale"], "shift": shift}
    if isinstance(network, Gaussian):
        shift = spread * state["shift"] + state["shift"].new_tensor([[mean, 0.0]])
        return {**state, "scale": spread * state["scale"], "shift": shift}
    prefix, last = _last(network)
    for name, _ in last.named_parameters():
        if "embedding_model" not in name and "filters" not in name:
            state[f"{prefix}.{name}"] *= spread
            if _BIAS.fullmatch(name):
                state[f"{prefix}.{name}"] += mean
    return state
