"""`hyperfy`: layers of any network get weights that are generated per sample from a condition."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.models.addition import (
    KINDS,
    FullRank,
    Joined,
    Ordinary,
    matrix_of,
    with_addition,
)
from hyperfusion_rt.models.hyperfied import HyperFied, Seat, few
from hyperfusion_rt.models.initialisation import initialise_addition
from hyperfusion_rt.models.layers import LowRank, is_low, tabular_embedding

# By `init`: how much what is added varies at first, over what the layer's own weights make. A tenth
# is what the recipes start with (`network.generated_part`): the condition is heard in every layer,
# and no layer's output varies by more than 5 % more than in the network as it was.
INITS = {"zero": 0.0, "principled": 0.1}

# These read the weights of their layers, and do not call them.
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def hyperfy(
    network: nn.Module,
    layers: str | Sequence[str],
    *,
    condition: int,
    embedding: int = 8,
    rank: int | None = None,
    init: Literal["principled", "zero"] = "principled",
    freeze: bool = False,
    train: str | Sequence[str] = (),
) -> HyperFied:
    """A copy of `network` in which a condition generates the weights of some layers.

        W(e) = W0 + Σ_k e[k] G[k],   beta(e) = beta0 + Σ_k e[k] h[k],   e = embedding(condition)

    W0 and beta0 (0 where there is none) are the layer's own weights and bias: they stay, and are
    trained on unless `freeze` is set. Each layer has generators and an embedding Linear(T → K) of
    its own. Patterns may name `Conv1d`, `Conv2d`, `Conv3d`, `ConvTranspose3d` and `Linear` layers,
    also with parametrizations, and layers that are called more than once.

    `network` itself is not changed; the result is `HyperFied`, on the same devices.

    Args:
        layers: patterns (`fnmatch`; `*` matches dots, too) over the names in `named_modules`. All
            layers of the kinds above that a pattern matches are generated: `layer4.*`.
        condition: T, the length of a sample's row. Its columns should be about standardised:
            with mean square 1, as the encoder of a table makes them.
        embedding: K, the length of the embedding.
        rank: r. What is added to the weights is U(e) V, with r filters V that all samples share
            and a generated U(e) `[Cout, r]` (`LowRank`), for layers whose matrix of a group,
            `[Cout, Cin·k³]`, has more rows and columns than r; others get the full form. None: all
            get it, which takes K times as many numbers as the layers have.
        init: "zero" adds nothing at first: the network starts as itself. That is for fine-tuning a
            pretrained network, whose features a random addition in each layer would disturb.
            "principled" is for training from scratch: generators as Chang et al. (ICLR 2020)
            derive, scaled to each layer's own weights, so that what is added varies a tenth as
            much as what is there: 1/11 of the whole variance. The condition's gradient then
            reaches the embedding from the first step on.
        freeze: train what was added and what `train` names, and nothing else; the rest stays in
            eval mode, so that batch statistics stay, too.
        train: patterns of further modules to train when the rest is frozen: `["fc"]`.

    Raises:
        ConfigError: a pattern matches nothing that can be generated, a layer is shared, hooked or
            has a forward of its own, the network is hyperfied already, or a number is out of range.
    """
    _check_numbers(condition, embedding, rank, init)
    if train and not freeze:
        raise ConfigError(
            "`train` says what is trained of a frozen network: set `freeze`, or leave it out",
            code="option-conflict",
        )
    network = _copy(network)
    chosen = _choose(network, [layers] if isinstance(layers, str) else layers)
    if rank is not None and not any(is_low(rank, *matrix_of(layer)) for layer in chosen.values()):
        sizes = [f"{name} {' x '.join(map(str, matrix_of(m)))}" for name, m in chosen.items()]
        raise ConfigError(
            f"`rank` {rank} is not below that of any layer ({few(sizes)}): choose a lower one, or "
            "none for full additions",
            code="hyperfy-rank",
        )
    added = {}
    for name, layer in chosen.items():
        added[name] = with_addition(layer, condition, embedding, rank)
        initialise_addition(added[name], INITS[init])
    return seated(network, added, condition, freeze=freeze, train=train)


def joined(
    network: nn.Module,
    layer: str,
    *,
    condition: int,
    embedding: int = 8,
    slope: float = 0.25,
    init: Literal["principled", "zero"] = "principled",
    freeze: bool = False,
    train: str | Sequence[str] = (),
) -> HyperFied:
    """A copy of `network` in which the input of the linear layer `layer` is joined with a row.

        e = PReLU(BN(Linear(condition))) [B, K],   y = [W V] [x; e] + b   (`Joined`)

    The baseline of `hyperfy`: only this layer's bias depends on the condition. Arguments as there;
    with `init` "zero" V is 0 at first, else it starts as that of a linear layer for [x; e].

    Raises:
        ConfigError: `layer` is no linear layer of the network, or one that `hyperfy` refuses.
    """
    network = _copy(network)
    chosen = _choose(network, [layer], "layer")
    if list(chosen) != [layer] or not isinstance(chosen[layer], nn.Linear):
        linear = [name for name, m in network.named_modules() if isinstance(m, nn.Linear)]
        raise ConfigError(
            f"{layer!r} in `layer` is no linear layer whose input a row could be joined with; "
            f"there are {few(linear[::-1])}",
            code="hyperfy-layer-unknown",
        )
    static = chosen[layer]
    assert isinstance(static, nn.Linear)
    made = Joined(static, tabular_embedding(condition, embedding, slope), embedding)
    limit = 0.0 if init == "zero" else (static.in_features + embedding) ** -0.5
    nn.init.uniform_(made.row.weight, -limit, limit)
    made.embedding_model.to(static.weight.device, static.weight.dtype)
    made.row.to(static.weight.device, static.weight.dtype)
    return seated(network, {layer: made}, condition, freeze=freeze, train=train)


def seated(
    network: nn.Module,
    added: Mapping[str, FullRank | LowRank | Joined],
    condition: int,
    *,
    freeze: bool = False,
    train: str | Sequence[str] = (),
) -> HyperFied:
    """`network` with `added` in the places of the layers of these names, which they hold.

    With none, it is the network as it is: it takes the condition and does not read it.
    """
    if freeze:
        network.requires_grad_(False)
    seats: dict[nn.Module, Seat] = {}
    for name, layer in added.items():
        seats[network.get_submodule(name)] = Seat(name, layer)
        for part, module in layer.named_children():
            if part != "static":
                module.requires_grad_(True)
    for module in list(network.modules()):
        for child, layer in module._modules.items():  # type: ignore[assignment]
            if layer in seats:
                module._modules[child] = seats[layer]
    trained = _match(network, [train] if isinstance(train, str) else train, "train")
    for name in trained:
        network.get_submodule(name).requires_grad_(True)
    return HyperFied(network, condition, frozen=freeze, trained=trained)


def _copy(network: nn.Module) -> nn.Module:
    if any(isinstance(module, (HyperFied, Seat)) for module in network.modules()):
        raise ConfigError(
            f"layers of {type(network).__name__} are generated already: name all layers in one "
            "call of hyperfy, on the network as it was",
            code="hyperfy-twice",
        )
    return copy.deepcopy(network)


def _check_numbers(condition: int, embedding: int, rank: int | None, init: str) -> None:
    for name, value in (("condition", condition), ("embedding", embedding), ("rank", rank)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(
                f"`{name}` {value!r}: must be a whole number from 1 on", code="option-wrong"
            )
    if init not in INITS:
        raise ConfigError(f"`init` {init!r}: must be one of {list(INITS)}", code="option-wrong")


def _match(network: nn.Module, patterns: Sequence[str], where: str) -> list[str]:
    """The names of modules that the patterns in `where` match; each must match one."""
    names = [name for name, _ in network.named_modules(remove_duplicate=False) if name]
    found: dict[str, None] = {}
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise _unknown(network, pattern, names, where)
        found |= dict.fromkeys(matching)
    return list(found)


def _choose(
    network: nn.Module, patterns: Sequence[str], where: str = "layers"
) -> dict[str, Ordinary]:
    """The layers that the patterns name; a layer of several names by the first.

    Raises:
        ConfigError: a pattern matches none, or a layer that cannot be generated.
    """
    if not patterns:
        raise ConfigError("`layers` names no layer", code="hyperfy-layer-unknown")
    everything = [(n, m) for n, m in network.named_modules(remove_duplicate=False) if n]
    kinds = {name: m for name, m in everything if isinstance(m, KINDS)}
    chosen: dict[str, Ordinary] = {}
    for pattern in patterns:
        matching = {name: m for name, m in everything if fnmatchcase(name, pattern)}
        if not matching:
            raise _unknown(network, pattern, list(kinds), where)
        fitting = [name for name in matching if name in kinds]
        if not fitting:
            others = [f"{name} is a {type(m).__name__}"
                      for name, m in matching.items()]  # fmt: skip
            raise ConfigError(
                f"{pattern!r} in `{where}`: {few(others)}; only "
                f"{', '.join(kind.__name__ for kind in KINDS)} can be generated",
                code="hyperfy-layer-unknown",
            )
        chosen |= {name: kinds[name] for name in fitting}
    unique = {id(layer): name for name, layer in reversed(chosen.items())}
    chosen = {name: layer for name, layer in chosen.items() if unique[id(layer)] == name}
    for name, layer in chosen.items():
        _check_layer(network, name, layer, where)
    return chosen


def _check_layer(network: nn.Module, name: str, layer: Ordinary, where: str) -> None:
    """Raise a ConfigError if hyperfy would change what the layer does, besides its weights."""
    (kind,) = (kind for kind in KINDS if isinstance(layer, kind))
    own = [
        method
        for method in ("forward", "_conv_forward")
        if getattr(type(layer), method, None) is not getattr(kind, method, None)
        or method in vars(layer)
    ]
    inside = {id(part) for part in layer.modules()}
    weights = {id(p) for p in layer.parameters()}
    why = None
    if isinstance(layer, LazyModuleMixin):
        why = "has no weights yet: call the network once before"
    elif own:
        why = f"is a {type(layer).__name__} with a forward of its own, which would be lost"
    elif layer._forward_hooks or layer._forward_pre_hooks:
        why = (
            "has forward hooks, which would not run: remove them (weight_norm and spectral_norm: "
            "take those of torch.nn.utils.parametrizations)"
        )
    for other, module in network.named_modules():
        if isinstance(module, _READERS) and any(part is layer for part in module.modules()):
            why = (
                f"belongs to {other or 'the network'}, a {type(module).__name__}, which reads its "
            )
            why += "weights without calling it"
        elif id(module) not in inside and weights & {id(p) for p in module._parameters.values()}:
            why = f"shares weights with {other}: only one of them would be generated; untie them"
    if why is not None:
        raise ConfigError(f"{name} in `{where}`: it {why}", code="hyperfy-layer-unfit")


def _unknown(network: nn.Module, pattern: str, names: list[str], where: str) -> ConfigError:
    near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.3) or names
    return ConfigError(
        f"{pattern!r} in `{where}` matches nothing in {type(network).__name__}; near: {few(near)}",
        code="hyperfy-layer-unknown",
    )
