"""A network that the study brings (`network.import`), and how a row of the table meets it.

Making it imports a module, and so runs its code: training, comparing and exporting do that.
Predicting with an artifact never does.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperfusion_rt.config import NetworkConfig, Shape
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.files import sha256
from hyperfusion_rt.models.checkpoint import read_state
from hyperfusion_rt.models.distribution import Distribution
from hyperfusion_rt.models.gaussian import Gaussian
from hyperfusion_rt.models.hyperfied import HyperFied, few
from hyperfusion_rt.models.hyperfy import hyperfy, joined, seated
from hyperfusion_rt.models.trunk import Trunk

# In a folder that keeps a network: what it was made of. A file is kept beside it by its name.
RECORD = "network.json"
# What the module of a file is called, before a hash of its text.
_FILE = "hfrt_network_"
# What the parameters of `hyperfy` and `joined` are called in a configuration.
_FIELDS = {
    "layers": "network.hyper_layers",
    "layer": "network.fusion_at",
    "rank": "network.generator_rank",
    "train": "network.train",
}
_NOT_THEIRS = ("torch", "hyperfusion_rt", "builtins")


class OwnNetwork(nn.Module):
    """`forward(image, tabular) -> shift + scale * network(image, tabular)`, `[B, outputs]`.

    `image [B, C, D, H, W]`, or with a `trunk` the features `[B, F]` of images. In training, scale
    is 1; of a number that was learned on another scale, both lead back to its unit.
    """

    scale: Tensor
    shift: Tensor
    trunk: Trunk | None = None

    def __init__(self, network: HyperFied, outputs: int) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs
        self.register_buffer("scale", torch.ones(1, 1))
        self.register_buffer("shift", torch.zeros(1, 1))

    def forward(self, image: Tensor, tabular: Tensor) -> Tensor:
        """`tabular [B, T]` → `[B, outputs]`."""
        if self.trunk is not None and image.dim() == 2:
            found = self.trunk.rest(self.network, image, tabular)
        else:
            found = self.network(image, tabular)
        result: Tensor = found * self.scale + self.shift
        return result


def own_of(network: nn.Module) -> OwnNetwork | None:
    """The study's own network in what `network_of` made; None if that is another one."""
    if isinstance(network, (Distribution, Gaussian)):
        network = network.network
    return network if isinstance(network, OwnNetwork) else None


def build_own(
    config: NetworkConfig, place: Path, *, shape: Shape, width: int, outputs: int, channels: int
) -> OwnNetwork:
    """The network that `network.import` names, as the fusion says, with the weights it makes.

    Args:
        place: the folder that a file is seen from.
        width: T, the table's inputs.

    Raises:
        ConfigError: it cannot be imported or made, or has no such layers.
    """
    made = make(config, place, shape=shape, outputs=outputs, channels=channels)
    frozen: dict[str, Any] = {"freeze": config.freeze, "train": config.train}
    init = config.init or ("zero" if config.weights else "principled")
    size = config.embedding
    try:
        if config.fusion == "hyper":
            network = hyperfy(
                made, config.hyper_layers, condition=width, embedding=size,
                rank=config.generator_rank, init=init, **frozen,
            )  # fmt: skip
        elif config.fusion == "concat":
            assert config.fusion_at is not None
            network = joined(
                made, config.fusion_at, condition=width, embedding=size,
                slope=config.embedding_slope, init=init, **frozen,
            )  # fmt: skip
        else:
            network = seated(made, {}, width, **frozen)
    except ConfigError as error:
        text = re.sub(r"`(\w+)`", lambda found: _FIELDS.get(found[1], found[0]), str(error))
        raise ConfigError(f"network.import {config.imported}: {text}", code=error.code) from None
    return OwnNetwork(network, outputs)


def make(
    config: NetworkConfig, place: Path, *, shape: Shape, outputs: int, channels: int
) -> nn.Module:
    """What the callable of `network.import` returns.

    Raises:
        ConfigError: there is no such callable, it fails, or it returns no module.
    """
    text = config.imported
    function = find(str(text), place)
    given = {"channels": channels, "outputs": outputs, "shape": tuple(shape)}
    arguments = {name: _stands_for(value, given) for name, value in config.arguments.items()}
    try:
        parameters = inspect.signature(function).parameters
        arguments = {**{n: v for n, v in given.items() if n in parameters}, **arguments}
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"network.import {text}: {error}; network.arguments are {arguments or 'none'}",
            code="network-import",
        ) from None
    except ValueError:
        pass  # its signature is not known
    try:
        made = function(**arguments)
    except Exception as error:
        raise ConfigError(
            f"network.import {text}: failed with the arguments {arguments}: "
            f"{type(error).__name__}: {error}",
            code="network-import",
        ) from error
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"network.import {text}: returns {type(made).__name__}, not a torch.nn.Module",
            code="network-import",
        )
    return made


def _stands_for(value: Any, given: dict[str, Any]) -> Any:
    if isinstance(value, str) and value.startswith("$"):
        if value[1:] not in given:
            raise ConfigError(
                f"network.arguments: {value} stands for nothing; there are "
                f"{', '.join(f'${name}' for name in given)}",
                code="config-invalid",
            )
        return given[value[1:]]
    return value


def find(text: str, place: Path) -> Callable[..., Any]:
    """The callable that `package.module:callable` or `file.py:callable` names.

    Raises:
        ConfigError: there is none, or importing it fails.
    """
    where, _, name = (part.strip() for part in text.partition(":"))
    try:
        module = _module(where, place)
    except ConfigError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            why = (
                f"there is no module {error.name!r} here; install it, or name a file beside "
                "hfrt.yaml as net.py:make, which imports installed packages only"
            )
        raise ConfigError(
            f"network.import {text}: cannot be imported: {why}", code="network-import"
        ) from error
    found: Any = getattr(module, name, None)
    if callable(found) and not isinstance(found, nn.Module):
        function: Callable[..., Any] = found
        return function
    near = difflib.get_close_matches(name, dir(module), n=3)
    why = f"has no {name!r}" + (f"; near: {', '.join(near)}" if near else "")
    if found is not None:
        why = f"{name!r} is a {type(found).__name__}, and nothing that makes a network"
    raise ConfigError(f"network.import {text}: {where} {why}", code="network-import")


def _module(where: str, place: Path) -> types.ModuleType:
    return _of_file(file_in(where, place)) if is_file(where) else importlib.import_module(where)


def is_file(where: str) -> bool:
    """Whether `network.import` names a file, not a module of an installed package."""
    return where.partition(":")[0].strip().endswith(".py")


def file_in(where: str, place: Path) -> Path:
    """The file that `network.import` names, seen from `place`."""
    path = place / where.partition(":")[0].strip()
    return place / path.name if (place / RECORD).exists() else path


def _of_file(path: Path) -> types.ModuleType:
    """The module of a file, which leaves nothing beside it."""
    try:
        name = f"{_FILE}{sha256(path)[:16]}"
        text = path.read_bytes()
    except OSError:
        raise ConfigError(
            f"network.import: {path}: no such file; it is seen from hfrt.yaml's folder",
            code="network-import",
        ) from None
    if name in sys.modules:
        return sys.modules[name]
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def sources_of(text: str, network: nn.Module, place: Path) -> dict[str, str]:
    """SHA-256 of each file that defines the callable `text`, or the class of a part of `network`.

    Files of torch and of this package are not among them. By the name of the module; that of a
    file is the file's.
    """
    where = text.partition(":")[0].strip()
    names = {_module(where, place).__name__, getattr(find(text, place), "__module__", "")}
    names |= {type(module).__module__ for module in network.modules()}
    found = {}
    for name in sorted(names):
        if name.startswith(_FILE):
            path = file_in(where, place)
            found[path.name] = sha256(path)
            continue
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and name.partition(".")[0] not in _NOT_THEIRS:
            found[name] = sha256(file)
    return found


def load_weights(network: OwnNetwork, path: Path, without: Sequence[str] = ()) -> None:
    """Load the weights of the network as it was, before a row met it.

    Args:
        path: `.safetensors`, or a torch file of tensors alone.
        without: patterns of names, there or here, that are not loaded.

    Raises:
        ConfigError: the file cannot be read, or is of another network.
    """
    state, own = read_state(path), network.network.base_state_dict()

    def kept(name: str) -> bool:
        return not any(fnmatchcase(name, pattern) for pattern in without)

    for pattern in without:
        if not any(fnmatchcase(name, pattern) for name in (*state, *own)):
            raise ConfigError(
                f"network.weights_except: {pattern!r} matches no name in {path} or the network",
                code="checkpoint-mismatch",
            )
    # What older versions of torch did not count.
    counts = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    found = {**counts, **{name: value for name, value in state.items() if kept(name)}}
    left = {name: value for name, value in own.items() if not kept(name)}
    shapes = [
        f"{name} {tuple(value.shape)}, not {tuple(own[name].shape)}"
        for name, value in found.items()
        if name in own and value.shape != own[name].shape
    ]
    try:
        if shapes:
            raise ConfigError(f"of another shape: {few(shapes)}", code="checkpoint-mismatch")
        network.network.load_base_state_dict({**left, **found})
    except ConfigError as error:
        raise ConfigError(
            f"network.weights {path}: {error}; layers that shall start anew are named in "
            "network.weights_except",
            code=error.code,
        ) from None
