"""A network and all that changes it: a step of training, and the state to go on from."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hyperfusion_rt.config import TrainingConfig
from hyperfusion_rt.machine import keep_memory
from hyperfusion_rt.models.distribution import Distribution
from hyperfusion_rt.models.own import own_of
from hyperfusion_rt.training.cuda_graph import Captured
from hyperfusion_rt.training.group import Group, losses
from hyperfusion_rt.training.loss import Loss
from hyperfusion_rt.training.optimiser import averaged, make_optimiser, set_rate
from hyperfusion_rt.training.whole_batch import Share, share_layers


class Part(NamedTuple):
    """What one process runs of a part of a step.

    `image [B, C, D, H, W]`, `tabular [B, T]`, `targets float [B]`; `whole`: samples of this part in
    all processes; `weight`: what these targets weigh in the mean over the step, 0 to 1.
    """

    image: Tensor
    tabular: Tensor
    targets: Tensor
    whole: int
    weight: float

    def to(self, device: torch.device) -> Part:
        """On another device; the copy of what is pinned does not wait."""
        image, tabular, targets = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.image, self.tabular, self.targets)
        )
        return self._replace(image=image, tabular=tabular, targets=targets)


class Learner:
    """`network` in training on `device`; `answers` is the network that is validated and kept.

    With a `group`, each process runs its part of a step's samples, and all make the same step.
    """

    def __init__(
        self,
        network: nn.Module,
        training: TrainingConfig,
        loss: Loss,
        device: torch.device,
        group: Group | None = None,
    ) -> None:
        cuda = device.type == "cuda"
        if device.type == "cpu":
            keep_memory()
        half = torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float16
        self.capture = training.cuda_graph and cuda
        self.network, self.loss, self.group = network, loss, group or Group()
        self.limit, self.whole_norms = training.clip_gradient, training.sync_batch_norm
        self.share = Share(self.group)
        if not self.group.alone:
            share_layers(network, self.share, norms=self.whole_norms)
        self.average = averaged(network, training.ema) if training.ema else None
        self.optimiser = make_optimiser(network, training, fused=cuda)
        # A graph cannot read casts that were kept from before it.
        self.amp = torch.autocast(
            device.type, half, enabled=training.amp and cuda, cache_enabled=not self.capture
        )
        self.forward: Any = None
        enabled = training.amp and cuda and half == torch.float16
        self.scaler = torch.amp.GradScaler(enabled=enabled)

    @property
    def answers(self) -> nn.Module:
        """The average of the weights where one is kept, or the network itself."""
        if self.average is None:
            return self.network
        module: nn.Module = self.average.module
        return module

    def step(self, parts: Sequence[Part], rate: float) -> Tensor:
        """One step at this learning rate; this process's share of the loss before it."""
        set_rate(self.optimiser, rate)
        self.optimiser.zero_grad(set_to_none=True)
        total = parts[0].targets.new_zeros(())
        for index, part in enumerate(parts):
            self.share.of(part.whole)
            last = index == len(parts) - 1
            with losses(), nullcontext() if last else self._alone():
                total += self._backward(part)
        if self.limit:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.limit)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return total

    def _backward(self, part: Part) -> Tensor:
        if self.forward is None:
            self.forward = self._made(part)
        with self.amp:
            outputs = self.forward(part.image, part.tabular)
        loss = self.loss(outputs.float(), part.targets) if part.weight else outputs.sum() * 0
        loss = loss * part.weight
        # The processes' gradients are averaged, and the loss is their sum.
        self.scaler.scale(loss * self.group.size).backward()
        return loss.detach()

    def _made(self, part: Part) -> Any:
        """What training calls: of a distribution, the network of its logits."""
        network = self.network
        trained = network.network if isinstance(network, Distribution) else network
        if self.capture:
            return self._together(Captured(trained, self.amp, part.image, part.tabular))
        return self._together(trained)

    def _together(self, module: nn.Module) -> nn.Module:
        """The module whose gradients are averaged over the processes."""
        if self.group.alone:
            return module
        # What no loss depends on, in a network of a study's own, must not be waited for.
        own = own_of(self.network) is not None
        # Weights of 1x1x1 lie both ways in memory at once: DDP takes one for the other, and warns.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return DistributedDataParallel(module, find_unused_parameters=own)

    def _alone(self) -> Any:
        """Gradients are kept for the parts to come, and not exchanged yet."""
        forward = self.forward
        return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()

    def agree(self) -> None:
        """All processes take rank 0's running statistics, where each has its own."""
        if not self.group.alone and not self.whole_norms:
            for buffer in (*self.network.buffers(), *self.answers.buffers()):
                with losses():
                    dist.broadcast(buffer, 0)

    def state(self) -> dict[str, Any]:
        """Tensors and numbers to go on from."""
        average = {} if self.average is None else self.average.state_dict()
        return {
            "network": self.network.state_dict(),
            "average": average,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`.

        Raises:
            KeyError, RuntimeError, ValueError: it is of another network or another configuration.
        """
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
