"""A network some of whose layers have generated weights.

How the condition reaches them: `HyperFied.forward` runs the network on copies of the modules on the
way to its generated layers, and the copy of each layer's `Seat` holds the condition of this call.
Parameters, buffers, hooks and all other modules are the same objects in every copy. So calls in
several threads, calls within calls, and checkpoints that run a part again during `backward` each
find their own condition. A compiler or an exporter traces without copies: there the seats
themselves hold the condition while the network is traced.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.models.addition import FullRank, Joined
from hyperfusion_rt.models.layers import LowRank


class Counts(NamedTuple):
    """Numbers in a hyperfied network: those of the network as it was, what was added, and how many
    of both are trained."""

    base: int
    generated: int
    trained: int


class Seat(nn.Module):
    """Stands in the network in a layer's place, and hands the layer the condition of the call.

    `layer.static` is the layer as it was. The seat has no `weight`: a network that reads a layer's
    weights instead of calling it fails, where it would miss the condition.
    """

    condition: Tensor | None = None

    def __init__(self, name: str, layer: FullRank | LowRank | Joined) -> None:
        super().__init__()
        self.name, self.layer = name, layer
        static = layer.static
        self.axes = 0 if isinstance(static, nn.Linear) else static.weight.dim()  # type: ignore[operator]
        for constant in static.__constants__:  # type: ignore[union-attr]
            setattr(self, constant, getattr(static, constant))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, with the weights of each sample."""
        condition = self.condition
        if condition is None:
            raise HyperFusionError(
                f"{self.name} was called without a condition: call the whole hyperfied network, "
                "not a part of it; modules that are called must be reached as submodules, not by a "
                "plain list, and may not be compiled by themselves",
                code="condition-wrong",
            )
        if x.dim() != self.axes if self.axes else x.dim() < 2:
            raise HyperFusionError(
                f"{self.name} got an input of shape {tuple(x.shape)}: a layer with generated "
                "weights needs the batch as its first axis",
                code="condition-wrong",
            )
        if x.shape[0] != condition.shape[0]:
            raise HyperFusionError(
                f"{self.name} got {x.shape[0]} samples, but the condition has "
                f"{condition.shape[0]}: give a row of the condition for each sample, and generate "
                "no layer that reads parts of samples as samples",
                code="condition-wrong",
            )
        y: Tensor = self.layer(x, condition)
        return y


class HyperFied(nn.Module):
    """A network some of whose layers have generated weights; made by `hyperfy`.

    `module(*inputs, condition) -> the network's output`, `condition [B, T]` floating, in the dtype
    of the weights, as the last argument or by name. Nobody looks for NaN: it passes on to the
    output, as in the layers of `hyperfusion_rt.models`.

    What a module on the way to a generated layer writes to itself during a call is lost, unless it
    is a buffer: such modules are copied for the call. In a compiler's or exporter's trace they are
    not.
    """

    def __init__(
        self, network: nn.Module, width: int, *, frozen: bool = False, trained: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.network, self.width = network, width
        self.frozen, self._trained = frozen, tuple(trained)
        everything = network.named_modules(remove_duplicate=False)
        self._names = tuple(name for name, module in everything if isinstance(module, Seat))
        # As names, which stay right in copies of this module.
        self._tree: dict[str, Any] = {}
        for name in self._names:
            branch = self._tree
            for part in name.split("."):
                branch = branch.setdefault(part, {})
        self.training = network.training
        self._still()

    @property
    def generated(self) -> tuple[str, ...]:
        """The names, in the network, of the layers whose weights are generated."""
        found = self.network.named_modules()
        return tuple(name for name, module in found if isinstance(module, Seat))

    @property
    def counts(self) -> Counts:
        """How many numbers are parameters."""
        of = list(self.parameters())
        base = sum(p.numel() for name, p in self.network.named_parameters() if self._plain(name))
        total = sum(p.numel() for p in of)
        return Counts(base, total - base, sum(p.numel() for p in of if p.requires_grad))

    def extra_repr(self) -> str:
        """What `print` says of it."""
        counts = self.counts
        return (
            f"condition={self.width}, generated={list(self.generated)}, "
            f"parameters={counts.base}+{counts.generated}, trained={counts.trained}"
        )

    def train(self, mode: bool = True) -> HyperFied:
        """As of any module; of a frozen network only the parts that are trained change."""
        super().train(mode)
        self._still()
        return self

    def _still(self) -> None:
        """Frozen parts are in eval mode."""
        if self.frozen:
            self.network.eval()
            for name in self._trained:
                self.network.get_submodule(name).train(self.training)
            for name in self._names:
                for part, module in self.network.get_submodule(f"{name}.layer").named_children():
                    if part != "static":
                        module.train(self.training)

    def forward(self, *inputs: Any, condition: Tensor | None = None, **options: Any) -> Any:
        """The network's output for `inputs` (and `options`, by name).

        Raises:
            HyperFusionError: no condition, or not `[B, T]`, or another B than a generated layer's
                input.
        """
        if condition is None and inputs:
            *inputs, condition = inputs  # type: ignore[assignment]
        self._check(condition)
        if torch.compiler.is_compiling():
            seats = [self.network.get_submodule(name) for name in self._names]
            for seat in seats:
                seat.condition = condition  # type: ignore[assignment]
            try:
                return self.network(*inputs, **options)
            finally:
                for seat in seats:
                    seat.condition = None  # type: ignore[assignment]
        return _copy_along(self.network, self._tree, condition, {})(*inputs, **options)

    def resumed(self, parts: Mapping[str, nn.Module], *inputs: Any, condition: Tensor) -> Any:
        """The network's output with other modules in the places of `parts`, in this call alone.

        `parts` are reached by calls, and lead to no generated layer: those of `constant`.
        """
        tree = copy.deepcopy(self._tree)
        others = {id(self.network.get_submodule(name)): part for name, part in parts.items()}
        done: list[str] = []
        for name, module in self.network.named_modules(remove_duplicate=False):
            if id(module) in others and not any(_within(name, above) for above in done):
                done.append(name)
                *above, last = name.split(".")
                branch = tree
                for step in above:
                    branch = branch.setdefault(step, {})
                branch[last] = others[id(module)]
        return _copy_along(self.network, tree, condition, {})(*inputs)

    def _check(self, condition: Any) -> None:
        if not isinstance(condition, Tensor):
            found = "nothing" if condition is None else type(condition).__name__
        elif condition.dim() != 2 or condition.shape[1] != self.width:
            found = f"shape {tuple(condition.shape)}"
        elif not condition.is_floating_point():
            found = str(condition.dtype)
        else:
            return
        raise HyperFusionError(
            f"the hyperfied network takes the condition, a floating tensor of shape "
            f"[B, {self.width}], as its last argument or by name, but got {found}",
            code="condition-wrong",
        )

    def _plain(self, key: str) -> str | None:
        """A parameter's name in the network as it was; None: it was added."""
        for name in self._names:
            if key.startswith(f"{name}.layer."):
                inner = key.removeprefix(f"{name}.layer.")
                kept = inner.startswith("static.")
                return f"{name}.{inner.removeprefix('static.')}" if kept else None
        return key

    def base_state_dict(self) -> dict[str, Any]:
        """The state dict of the network as it was, with its names: the constant parts g0, h0."""
        state = self.network.state_dict()
        return {plain: value for key, value in state.items() if (plain := self._plain(key))}

    def frozen_state_dict(self) -> dict[str, Any]:
        """The part of `base_state_dict` that training does not change; empty: nothing is frozen."""
        base = self.base_state_dict() if self.frozen else {}
        return {
            name: value
            for name, value in base.items()
            if not any(_within(name, trained) for trained in self._trained)
        }

    def load_base_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state dict of the network as it was; what was added stays as it is.

        Raises:
            ConfigError: a key is missing, unknown, or of another shape.
        """
        own = {plain: key for key in self.network.state_dict() if (plain := self._plain(key))}
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unknown:
            raise ConfigError(
                f"the weights are not those of {type(self.network).__name__}: "
                f"{few(missing)} missing, {few(unknown)} unknown",
                code="checkpoint-mismatch",
            )
        try:
            self.network.load_state_dict({own[k]: v for k, v in state.items()}, strict=False)
        except RuntimeError as error:
            raise ConfigError(
                f"the weights do not fit {type(self.network).__name__}: {error}",
                code="checkpoint-mismatch",
            ) from None

    @torch.no_grad()
    def unconditioned(self, *inputs: Any, **options: Any) -> tuple[str, ...]:
        """The parts of the network that do not depend on the condition, found by one call.

        `inputs`: as of `forward`, without the condition. Returns the names of modules all of whose
        calls end before the first generated layer is called; of a module and its parts, the module.
        Their outputs can be computed once for each scan, if these parts are frozen.
        """
        return self._before(self._names, *inputs, **options)

    def constant(self, *inputs: Any) -> tuple[str, ...]:
        """As `unconditioned`, of a frozen network: and before the first module that is trained."""
        named = dict(self.network.named_modules())
        trained = [n for n in named if any(_within(n, above) for above in self._trained)]
        found = self._before((*self._names, *trained), *inputs)
        return tuple(n for n in found if not any(p.requires_grad for p in named[n].parameters()))

    def _before(self, stops: Sequence[str], *inputs: Any, **options: Any) -> tuple[str, ...]:
        """The largest modules all of whose calls end before the first call of one of `stops`."""
        network = copy.deepcopy(self.network).eval()
        calls: list[str] = []
        for name, module in network.named_modules():
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
        first: list[int] = []
        for name in stops:
            stop = network.get_submodule(name)
            stop.register_forward_pre_hook(lambda *_: first.append(len(calls)))
        parameter = next(self.network.parameters())
        condition = parameter.new_zeros(len(inputs[0]), self.width)
        _copy_along(network, self._tree, condition, {})(*inputs, **options)
        start = first[0] if first else len(calls)
        before = set(calls[:start]) - set(calls[start:])
        return tuple(
            name
            for name in dict.fromkeys(calls[:start])
            if name in before and not any(_within(name, o) for o in before if o != name)
        )


def _within(name: str, above: str) -> bool:
    """Whether a module is `above`, or a part of it."""
    return name == above or name.startswith(f"{above}.") or not above


def _copy_along(
    module: nn.Module, tree: dict[str, Any], condition: Any, done: dict[int, nn.Module]
) -> nn.Module:
    """`module`, copied with all that leads to the seats of `tree`; these hold the condition.

    A module in `tree` stands in that place of the copy.
    """
    if id(module) in done:
        return done[id(module)]
    made: nn.Module = object.__new__(type(module))
    done[id(module)] = made
    for name, value in module.__dict__.items():
        bound = isinstance(value, MethodType) and value.__self__ is module
        made.__dict__[name] = MethodType(value.__func__, made) if bound else value
    if isinstance(made, Seat):
        made.__dict__["condition"] = condition
        return made
    parts = module._modules.copy()
    made.__dict__["_modules"] = parts
    for name, branch in tree.items():
        if isinstance(branch, nn.Module):
            parts[name] = branch
            continue
        part = parts[name]
        assert part is not None
        parts[name] = _copy_along(part, branch, condition, done)
    return made


def few(names: Sequence[str]) -> str:
    """The first few of a list, for a message."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more or "none"
