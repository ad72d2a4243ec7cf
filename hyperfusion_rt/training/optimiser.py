"""The optimiser, its learning rate over the steps, and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hyperfusion_rt.config import TrainingConfig
from hyperfusion_rt.models.addition import Joined
from hyperfusion_rt.models.layers import HyperNetwork

# The rate of a one-cycle schedule starts and ends at this part of its highest.
_LOWEST = 0.04
_RISING = 0.3


def make_optimiser(
    network: nn.Module, training: TrainingConfig, *, fused: bool = False
) -> torch.optim.Optimizer:
    """As `training.optimizer` says.

    `adam`: the published protocol, an L2 penalty on every parameter. `adamw`: weights decay apart
    from the gradient (Loshchilov & Hutter, ICLR 2019), and only those that multiply: no biases and
    nothing of batch norm or PReLU.
    """
    if training.optimizer == "adam":
        return torch.optim.Adam(
            network.parameters(), lr=training.lr, weight_decay=training.weight_decay, fused=fused
        )
    groups = _groups(network, training)
    return torch.optim.AdamW(groups, lr=training.lr, weight_decay=0.0, fused=fused)


def _groups(network: nn.Module, training: TrainingConfig) -> list[dict[str, object]]:
    """The parameters by their decay, in an order that depends on the network alone."""
    own: dict[int, float] = {}
    ordinary: set[int] = set()  # weights, though they have the shape of a bias
    for module in network.modules():
        if isinstance(module, Joined):
            embedding = module.embedding_model.parameters()
            own |= {id(p): training.decay_of_embedding for p in embedding}
        if isinstance(module, HyperNetwork):
            decay = training.decay_of_generators
            parts = [module.weights_gen, module.bias_gen]
            own |= {id(p): decay for part in parts for p in part.parameters()}
            embedding = module.embedding_model.parameters()
            own |= {id(p): training.decay_of_embedding for p in embedding}
            if module.generated_part < 1 and module.weights_gen.bias is not None:
                ordinary.add(id(module.weights_gen.bias))
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in network.parameters():
        decay = own.get(id(parameter), training.weight_decay) if parameter.ndim > 1 else 0.0
        decay = training.weight_decay if id(parameter) in ordinary else decay
        groups.setdefault(decay, []).append(parameter)
    return [{"params": found, "weight_decay": decay} for decay, found in groups.items()]


def rate(training: TrainingConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` of `steps`; `steps` counts all epochs."""
    warm = training.warmup_epochs / training.epochs * steps
    rising = min(1.0, (step + 1) / warm) if warm else 1.0
    if training.schedule == "constant":
        return training.lr * rising
    if training.schedule == "cosine":
        return training.lr * rising * 0.5 * (1 + math.cos(math.pi * step / steps))
    # One cycle (Smith & Topin 2019), along two halves of a cosine.
    top = _RISING * steps
    along = (1 - step / top) if step < top else (step - top) / (steps - top)
    return training.lr * (_LOWEST + (1 - _LOWEST) * 0.5 * (1 + math.cos(math.pi * along)))


def set_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Let all parameters learn at this rate."""
    for group in optimiser.param_groups:
        group["lr"] = value


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """A moving average of the network's parameters and running statistics.

    Step n weighs at least 9 / (10 + n), so that the first average is not one of initial weights.
    """

    def update(
        averages: Sequence[Tensor] | Iterable[Tensor],
        values: Sequence[Tensor] | Iterable[Tensor],
        count: Tensor | int,
    ) -> None:
        n = int(count)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        pairs = [(a, v.to(a.device)) for a, v in zip(averages, values, strict=True)]
        with torch.no_grad():
            mixed = [pair for pair in pairs if pair[0].is_floating_point()]
            if mixed:
                torch._foreach_lerp_([a for a, _ in mixed], [v for _, v in mixed], weight)
            for average, value in pairs:
                if not average.is_floating_point():
                    average.copy_(value)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)
