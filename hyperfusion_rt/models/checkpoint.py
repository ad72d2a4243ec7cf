"""Reading weights, ours and the published networks', without unpickling code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperfusion_rt.config import NetworkConfig
from hyperfusion_rt.errors import ConfigError, MissingExtraError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_AD_EMBEDDING = "block4.downsample.0.layer.hyper_net.embedding_model.0.weight"


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from `.safetensors`, or from a torch file that holds tensors only.

    Raises:
        ConfigError: unreadable, not a state dict, or not finite.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint")
    content: Any
    try:
        if path.suffix == ".safetensors":
            try:
                from safetensors.torch import load_file
            except ImportError:
                raise MissingExtraError("safetensors", "train", "reading weights") from None
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MissingExtraError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{path}: cannot be read as weights ({reason}); only tensors are accepted, "
            "save state_dict() or convert to .safetensors"
        ) from None
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: holds no state dict")
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ConfigError(f"{path}: {name!r} is no tensor; save state_dict() alone")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ConfigError(f"{path}: {name} holds NaN or infinity")
        state[str(name).removeprefix("module.")] = value
    return state


def describe_state(
    state: dict[str, Tensor],
) -> tuple[NetworkConfig, int, int, int | None]:
    """What network these weights belong to: (config, table inputs T, outputs, flat features).

    The last is the input of the brain-age network's first linear layer, None for the AD network.

    Raises:
        ConfigError: neither of the published HyperFusion networks.
    """
    if _AD_EMBEDDING in state and "conv_bn_relu.0.weight" in state and "fc2.layer.bias" in state:
        size, width = state[_AD_EMBEDDING].shape
        config = NetworkConfig(
            task="ad", features=state["conv_bn_relu.0.weight"].shape[0], embedding=size
        )
        return config, width, state["fc2.layer.bias"].shape[0], None
    first = "linear1.layer.hyper_net."
    final = "final_layer.layer.hyper_net.bias_gen.bias"
    if f"{first}weights_gen.bias" in state and "conv1_a.weight" in state and final in state:
        config = NetworkConfig(task="brain-age", features=state["conv1_a.weight"].shape[0])
        flat = state[f"{first}weights_gen.bias"].shape[0] // state[f"{first}bias_gen.bias"].shape[0]
        width = state[f"{first}embedding_model.weight"].shape[1]
        return config, width, state[final].shape[0], flat
    names = ", ".join(list(state)[:3])
    raise ConfigError(
        "these weights belong to neither of the published HyperFusion networks: expected "
        f"'{_AD_EMBEDDING}' (AD) or '{first}weights_gen.bias' (brain age), found {names}, ..."
    )
