"""Reading weights, ours and the published networks', without unpickling code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperfusion_rt.config import NetworkConfig, Shape
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.models.registry import build_network

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_AGE_FIRST = "linear1.layer.hyper_net."
_AD_EMBEDDING = "block4.downsample.0.layer.hyper_net.embedding_model.0.weight"


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from `.safetensors`, or from a torch file that holds tensors only.

    Raises:
        ConfigError: unreadable, not a state dict, or not finite.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint", code="checkpoint-not-found")
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{path}: cannot be read as weights ({reason}); only tensors are accepted, "
            "save state_dict() or convert to .safetensors",
            code="checkpoint-unreadable",
        ) from None
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: holds no state dict", code="checkpoint-unreadable")
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"{path}: {name!r} is no tensor; save state_dict() alone",
                code="checkpoint-unreadable",
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ConfigError(f"{path}: {name} holds NaN or infinity", code="checkpoint-not-finite")
        state[str(name).removeprefix("module.")] = value
    return state


class Described(NamedTuple):
    """What network some weights belong to.

    `width`: T, the table's inputs. `channels`: C, the images of a case. `flat`: the inputs of the
    brain-age network's first linear layer; None for the AD network.
    """

    network: NetworkConfig
    width: int
    outputs: int
    channels: int
    flat: int | None


def describe_state(state: dict[str, Tensor]) -> Described:
    """What network these weights belong to, every name and shape compared with the network's own.

    Raises:
        ConfigError: neither of the published HyperFusion networks, or not a whole one.
    """
    if "conv_bn_relu.0.weight" in state:
        f = _size(state, "conv_bn_relu.0.weight", 5)
        channels = _size(state, "conv_bn_relu.0.weight", 5, axis=1)
        k, width = _size(state, _AD_EMBEDDING, 2), _size(state, _AD_EMBEDDING, 2, axis=1)
        outputs = _size(state, "fc2.layer.bias", 1)
        config = NetworkConfig(architecture="ad", features=f, embedding=k)
        _compare(state, config, (2, 2, 2), width, outputs, channels)
        return Described(config, width, outputs, channels, None)
    if "conv1_a.weight" in state:
        f = _size(state, "conv1_a.weight", 5)
        channels = _size(state, "conv1_a.weight", 5, axis=1)
        width = _size(state, f"{_AGE_FIRST}embedding_model.weight", 2, axis=1)
        outputs = _size(state, "final_layer.layer.hyper_net.bias_gen.bias", 1)
        made = _size(state, f"{_AGE_FIRST}bias_gen.bias", 1)
        flat = _size(state, f"{_AGE_FIRST}weights_gen.bias", 1) // made
        config = NetworkConfig(architecture="brain-age", features=f)
        # Any volume with this many features will do: 36 voxels leave one along an axis, 8 n + 28
        # leave n. A number that no volume gives shows as a wrong shape.
        shape = (36, 36, 8 * max(flat // (4 * f), 1) + 28)
        _compare(state, config, shape, width, outputs, channels)
        return Described(config, width, outputs, channels, flat)
    raise ConfigError(
        "these weights belong to neither of the published HyperFusion networks: expected "
        f"'conv_bn_relu.0.weight' (AD) or 'conv1_a.weight' (brain age), found {_some(list(state))}",
        code="checkpoint-mismatch",
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _size(state: dict[str, Tensor], name: str, dims: int, *, axis: int = 0) -> int:
    """The length of `state[name]` along `axis`."""
    if name not in state:
        raise ConfigError(
            f"{name} is missing: the layers look like a published network's, but only the "
            "HyperFusion variant with generated weights can be read",
            code="checkpoint-mismatch",
        )
    shape = tuple(state[name].shape)
    if len(shape) != dims or 0 in shape:
        raise ConfigError(
            f"{name} has shape {shape}, but needs {dims} dimensions, none empty",
            code="checkpoint-mismatch",
        )
    return shape[axis]


def _compare(
    state: dict[str, Tensor],
    config: NetworkConfig,
    shape: Shape,
    width: int,
    outputs: int,
    channels: int,
) -> None:
    """Refuse a state whose names or shapes are not those of the network that it suggests."""
    with torch.device("meta"):
        network = build_network(
            config, shape=shape, tabular_width=width, outputs=outputs, channels=channels
        )
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = [
        f"{name} {found[name]}, not {size}"
        for name, size in expected.items()
        if name in found and found[name] != size
    ]
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": wrong,
    }
    if any(faults.values()):
        listed = "; ".join(f"{fault}: {_some(names)}" for fault, names in faults.items() if names)
        raise ConfigError(
            f"these weights are not a whole {config.architecture} HyperFusion network with "
            f"f = {config.features} and T = {width}: {listed}",
            code="checkpoint-mismatch",
        )
