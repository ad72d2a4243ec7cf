"""A network and all that changes it: a step of training, and the state to go on from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hyperfusion_rt.config import TrainingConfig
from hyperfusion_rt.machine import keep_memory
from hyperfusion_rt.models.distribution import Distribution
from hyperfusion_rt.training.cuda_graph import Captured
from hyperfusion_rt.training.loss import Loss
from hyperfusion_rt.training.optimiser import averaged, make_optimiser, set_rate


class Learner:
    """`network` in training on `device`; `answers` is the network that is validated and kept."""

    def __init__(
        self, network: nn.Module, training: TrainingConfig, loss: Loss, device: torch.device
    ) -> None:
        cuda = device.type == "cuda"
        if device.type == "cpu":
            keep_memory()
        half = torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float16
        capture = training.cuda_graph and cuda
        self.network, self.loss = network, loss
        self.limit = training.clip_gradient
        self.average = averaged(network, training.ema) if training.ema else None
        self.optimiser = make_optimiser(network, training, fused=cuda or device.type == "cpu")
        # A graph cannot read casts that were kept from before it.
        self.amp = torch.autocast(
            device.type, half, enabled=training.amp and cuda, cache_enabled=not capture
        )
        # Of a distribution, training reads the logits.
        trained = network.network if isinstance(network, Distribution) else network
        self.forward = Captured(trained, self.amp) if capture else trained
        enabled = training.amp and cuda and half == torch.float16
        self.scaler = torch.amp.GradScaler(enabled=enabled)

    @property
    def answers(self) -> nn.Module:
        """The average of the weights where one is kept, or the network itself."""
        if self.average is None:
            return self.network
        module: nn.Module = self.average.module
        return module

    def step(self, image: Tensor, tabular: Tensor, targets: Tensor, rate: float) -> Tensor:
        """One step at this learning rate; the loss before it, on the device."""
        set_rate(self.optimiser, rate)
        self.optimiser.zero_grad(set_to_none=True)
        with self.amp:
            outputs = self.forward(image, tabular)
        loss = self.loss(outputs.float(), targets)
        self.scaler.scale(loss).backward()
        if self.limit:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.limit)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return loss.detach()

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
