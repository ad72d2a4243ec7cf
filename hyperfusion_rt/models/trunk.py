"""What of a frozen network runs once for each image: its outputs, and the rest that reads them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.models.hyperfied import HyperFied, few

# The rest must say what the whole network says, up to the order of its sums.
_TOLERANCE = 1e-4


class _Output(NamedTuple):
    """One output of a module: that of its call number `call`, `[B, *shape]`, and who reads it."""

    part: str
    call: int
    shape: tuple[int, ...]
    read: bool


class _Found(Exception):
    """All that is looked for has been computed: the rest of the network need not run."""


class _Replay(nn.Module):
    """Stands in a module's place and gives outputs that are known, call by call."""

    def __init__(self, outputs: list[Tensor]) -> None:
        super().__init__()
        self._outputs = iter(outputs)

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """The next output, whatever the input."""
        return next(self._outputs)


class Trunk:
    """The parts of a frozen network that neither training nor the condition changes.

    They are modules all of whose calls end before the first that is trained or reads the condition
    (`HyperFied.constant`). The *features* of an image are those of their outputs that the rest of
    the network reads, as one row of numbers: `features` makes them, `rest` goes on from them.

    Args:
        image: `[B, C, D, H, W]`, to find the parts with. The rest is compared with the whole
            network on it.

    Raises:
        ConfigError: no part is frozen, the rest also reads the image, an output is no floating
            tensor, or the rest does not say what the whole network says.
    """

    def __init__(self, network: HyperFied, image: Tensor) -> None:
        self.parts = network.constant(image)
        if not self.parts:
            raise self._unfit("what is trained, or reads the row, comes first in the network")
        self._outputs: list[_Output] = []
        self._image = tuple(image.shape[1:])
        probe = copy.deepcopy(network).eval().requires_grad_(False)
        with torch.no_grad():
            for part, call, output in self._run(probe, image):
                if not (isinstance(output, Tensor) and output.is_floating_point()):
                    raise self._unfit(f"{part} gives {type(output).__name__}, not one tensor")
                self._outputs.append(_Output(part, call, tuple(output.shape[1:]), True))
        self._outputs = self._those_read(probe, image)
        self._compare(probe, image)

    @property
    def size(self) -> int:
        """How many numbers the features of an image are."""
        return sum(torch.Size(one.shape).numel() for one in self._outputs if one.read)

    @torch.no_grad()
    def features(self, network: HyperFied, image: Tensor) -> Tensor:
        """The features `[B, size]` of `image [B, C, D, H, W]`."""
        found = {(part, call): output.flatten(1).clone()
                 for part, call, output in self._run(network, image)}  # fmt: skip
        return torch.cat([found[one.part, one.call] for one in self._outputs if one.read], 1)

    def rest(self, network: HyperFied, features: Tensor, condition: Tensor) -> Any:
        """What the network says of images with these features `[B, size]`."""
        sizes = [torch.Size(one.shape).numel() for one in self._outputs if one.read]
        read = iter(features.split(sizes, 1))
        outputs = [
            next(read).unflatten(1, one.shape).contiguous()
            if one.read
            else features.new_empty(len(features), *one.shape)
            for one in self._outputs
        ]
        return self._resumed(network, features.new_empty(1), outputs, condition)

    def _resumed(
        self, network: HyperFied, image: Tensor, outputs: list[Tensor], condition: Tensor
    ) -> Any:
        """The network on outputs that are known; of an image that is a number, any image."""
        by_part: dict[str, list[Tensor]] = {}
        for one, output in zip(self._outputs, outputs, strict=True):
            by_part.setdefault(one.part, []).append(output)
        replays = {part: _Replay(found) for part, found in by_part.items()}
        if image.dim() == 1:
            image = image.view(1, 1, 1, 1, 1).expand(len(condition), *self._image)
        return network.resumed(replays, image, condition=condition)

    def _run(self, network: HyperFied, image: Tensor) -> list[tuple[str, int, Any]]:
        """(part, call, output) of every call of the parts."""
        found: list[tuple[str, int, Any]] = []
        wanted = len(self._outputs) or -1
        calls: dict[str, int] = {}

        def keep(part: str, output: Any) -> None:
            call = calls[part] = calls.get(part, -1) + 1
            # What follows may write to it.
            found.append((part, call, output.clone() if isinstance(output, Tensor) else output))
            if len(found) == wanted:
                raise _Found

        row = image.new_zeros(len(image), network.width)
        with _hooks(network, self.parts, keep), torch.no_grad(), suppress(_Found):
            network(image, row)
        return found

    def _those_read(self, network: HyperFied, image: Tensor) -> list[_Output]:
        """The outputs, and which of them the rest reads: those that its output has a gradient of.

        Raises:
            ConfigError: it also reads the image, or nothing of both.
        """
        given = [image.detach().requires_grad_()]
        given += [image.new_zeros(len(image), *one.shape, requires_grad=True)
                  for one in self._outputs]  # fmt: skip
        row = image.new_zeros(len(image), network.width)
        with torch.enable_grad():
            # Copies: the rest may write to them.
            copies = [tensor.clone() for tensor in given]
            answer = self._resumed(network, copies[0], copies[1:], row)
        known = isinstance(answer, Tensor) and answer.requires_grad
        found = torch.autograd.grad(answer.sum(), given, allow_unused=True) if known else ()
        of_image, *gradients = found or (None,) * len(given)
        if of_image is not None:
            raise self._unfit("its later parts read the image, too")
        if all(gradient is None for gradient in gradients):
            raise self._unfit("its answer does not depend on the frozen parts")
        pairs = zip(self._outputs, gradients, strict=True)
        return [one._replace(read=gradient is not None) for one, gradient in pairs]

    @torch.no_grad()
    def _compare(self, network: HyperFied, image: Tensor) -> None:
        row = torch.linspace(-1, 1, len(image) * network.width).view(len(image), -1).to(image)
        whole = network(image, row)
        found = self.rest(network, self.features(network, image), row)
        largest = float((found - whole).abs().max())
        if not largest <= _TOLERANCE * max(1.0, float(whole.abs().max())):
            raise self._unfit(f"its later parts do not say the same of them ({largest:.1e} off)")

    def _unfit(self, why: str) -> ConfigError:
        parts = f"; its frozen parts are {few(self.parts)}" if self.parts else ""
        return ConfigError(
            f"the features of this network cannot be kept: {why}{parts}; set "
            "network.keep_features to false: the frozen layers then run in each epoch",
            code="network-features",
        )


@contextmanager
def _hooks(network: HyperFied, parts: tuple[str, ...], keep: Any) -> Iterator[None]:
    """`keep(part, output)` is told of each call of a part that is not within another's."""
    inside = 0

    def enter(*_: Any) -> None:
        nonlocal inside
        inside += 1

    def leave(part: str, output: Any) -> None:
        nonlocal inside
        inside -= 1
        if not inside:
            keep(part, output)

    handles = []
    for part in parts:
        module = network.network.get_submodule(part)
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(
            module.register_forward_hook(lambda _, __, output, part=part: leave(part, output))
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
