"""A network of the study's own in training: looked at before, kept with what is made of it."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperfusion_rt.config import Config
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.files import replacing, sha256, write_text
from hyperfusion_rt.machine import installed
from hyperfusion_rt.models import image_shape, network_of, raw_outputs_count
from hyperfusion_rt.models.own import (
    RECORD,
    OwnNetwork,
    file_in,
    is_file,
    load_weights,
    make,
    own_of,
    sources_of,
)
from hyperfusion_rt.models.trunk import Trunk

# Told of a network before it is trained: the network in eval mode, the shape of its image
# `[C, D, H, W]`, and its configuration. It raises what the network must not be trained with.
OnNetwork = Callable[[nn.Module, tuple[int, ...], Config], None]
# Inputs of the table while the network is looked at: any number shows the same.
_WIDTH = 3


def check_network(config: Config, place: Path, on_network: OnNetwork | None = None) -> None:
    """Make the network that `network.import` names, and refuse what could not be trained.

    Args:
        place: the folder that its files are seen from: the study's, or one that keeps a network.

    Raises:
        ConfigError: it cannot be made, its weights are others, or it takes or gives another shape.
        HyperFusionError: as `on_network` says.
    """
    if not config.network.own:
        return
    with torch.random.fork_rng(devices=[]):
        network = network_of(config, _WIDTH, place=place).eval()
        own = own_of(network)
        assert own is not None
        start_weights(own, config, place)
        image = torch.randn(2, *image_shape(config))
    _check_shapes(config, own, image)
    if config.network.keeps_features:
        Trunk(own.network, image)
    if on_network is not None:
        on_network(network, image_shape(config), config)


def _check_shapes(config: Config, own: OwnNetwork, image: Tensor) -> None:
    what = f"network.import {config.network.imported}"
    shape = [len(image), own.outputs]
    try:
        with torch.no_grad():
            answer: Any = own.network(image, torch.zeros(len(image), _WIDTH))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise ConfigError(
            f"{what}: fails on an image {list(image.shape)}, which is [batch, channels, ...] of "
            f"this study: {type(error).__name__}: {reason}",
            code="network-unfit",
        ) from error
    if not isinstance(answer, Tensor) or list(answer.shape) != shape:
        found = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        wanted = "logit for each class" if config.tabular.classes else "output of a number"
        raise ConfigError(
            f"{what}: gives {found} for {len(image)} images, and must give {shape}: one {wanted}; "
            "an argument called outputs is set to that number, another one by $outputs in "
            "network.arguments",
            code="network-unfit",
        )


def keep_network(folder: Path, config: Config, place: Path) -> None:
    """Write what the network is made of to `folder`, or compare it with what stands there.

    Args:
        place: the folder that its files are seen from: the study's, or one that keeps a network.

    Raises:
        ConfigError: it is not what it was.
    """
    if not config.network.own:
        return
    if (folder / RECORD).exists():
        _refuse_changed(folder, record_of(config, folder))
        return
    if (place / RECORD).exists():
        _refuse_changed(place, record_of(config, place))
    record = record_of(config, place)
    imported = str(config.network.imported)
    if is_file(imported):
        source = file_in(imported, place)
        with replacing(folder / source.name) as temporary:
            shutil.copyfile(source, temporary)
    # The weights' place is a path of this machine.
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n", private=True)


def record_of(config: Config, place: Path) -> dict[str, Any]:
    """What the network is made of: `network.json`."""
    imported = str(config.network.imported)
    with torch.random.fork_rng(devices=[]):
        made = make(
            config.network,
            place,
            shape=config.preprocessing.shape,
            outputs=raw_outputs_count(config),
            channels=len(config.preprocessing.channels),
        )
    files = sources_of(imported, made, place)
    tops = {name.partition(".")[0] for name in files if not name.endswith(".py")} | {"torch"}
    weights = None
    if config.network.weights:
        path = _weights(config, place)
        weights = {"file": str(path.resolve()), "sha256": sha256(path)}
    return {
        "import": imported,
        "arguments": config.network.arguments,
        "files": files,
        "versions": {
            "python": platform.python_version(),
            **{name: version for name in sorted(tops) if (version := installed(name))},
        },
        "weights": weights,
    }


def check_kept(folder: Path, config: Config) -> None:
    """Refuse a network that would not be made as when it was trained.

    Its weights need not be there any more: those of the training have taken their place.

    Raises:
        ConfigError: its code has changed, or nothing is kept of it.
    """
    if config.network.own:
        without = config.network.model_copy(update={"weights": None})
        found = record_of(config.model_copy(update={"network": without}), folder)
        _refuse_changed(folder, found | {"weights": _read(folder)["weights"]})


def versions_of(folder: Path) -> dict[str, str]:
    """The packages that the kept network's code is of, with their versions; else none."""
    if not (folder / RECORD).exists():
        return {}
    aside = ("python", "torch")
    return {name: text for name, text in _read(folder)["versions"].items() if name not in aside}


def start_weights(network: OwnNetwork, config: Config, folder: Path) -> None:
    """Load `network.weights`, where the configuration names some."""
    if config.network.weights:
        load_weights(network, _weights(config, folder), config.network.weights_except)


def _weights(config: Config, place: Path) -> Path:
    """Where the weights are; a folder that keeps a network says where they were."""
    path = place / str(config.network.weights)
    if (place / RECORD).exists():
        path = Path((_read(place)["weights"] or {}).get("file", path))
    if not path.is_file():
        raise ConfigError(
            f"network.weights {path}: no such file; it is seen from hfrt.yaml's folder, and a run "
            "that goes on needs it where it was",
            code="checkpoint-not-found",
        )
    return path


def _read(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("import", "files", "versions", "weights")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", code="run-unreadable") from None


def _refuse_changed(folder: Path, new: dict[str, Any]) -> None:
    old = _read(folder)
    names = sorted({*old["files"], *new["files"]})
    changed = [name for name in names if old["files"].get(name) != new["files"].get(name)]
    if (old["weights"] or {}).get("sha256") != (new["weights"] or {}).get("sha256"):
        changed.append("its weights")
    if not changed:
        return
    others = [
        f"{name} {version}, now {new['versions'].get(name, 'not installed')}"
        for name, version in old["versions"].items()
        if version != new["versions"].get(name)
    ]
    versions = f"; it was made with {', '.join(others)}" if others else ""
    raise ConfigError(
        f"{folder}: the network {old['import']} would not be the one that was trained: "
        f"{', '.join(changed)} changed{versions}. Put back what was there",
        code="network-changed",
    )
