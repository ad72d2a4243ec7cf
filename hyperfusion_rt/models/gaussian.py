"""A number as a normal distribution whose standard deviation the network answers, too."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

# Of a standard deviation, in units of the training part's: the smallest one, ...
_FLOOR = 0.05
# ... and what makes an output of 0 a standard deviation of 1.
_START = math.log(math.expm1(1 - _FLOOR))


class Gaussian(nn.Module):
    """`forward(image, tabular) -> [B, 2]`: the mean and the standard deviation.

        mean = shift + scale · m,    sd = scale · (0.05 + softplus(r + 0.46))

    of `network(image, tabular) -> [B, 2]`, which answers m and r. Below 0, the softplus is an
    exponential, and r the logarithm of the standard deviation; above, it grows more gently. In
    training, scale is 1 and shift 0. Nix & Weigend, Estimating the mean and variance of the target
    probability distribution, ICNN 1994.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", torch.ones(1, 2))
        self.register_buffer("shift", torch.zeros(1, 2))

    def forward(self, image: Tensor, tabular: Tensor) -> Tensor:
        """`image [B, C, D, H, W]`, `tabular [B, T]` → `[B, 2]`."""
        found = self.network(image, tabular)
        deviation = softplus(found[:, 1:] + _START) + _FLOOR
        result: Tensor = torch.cat([found[:, :1], deviation], 1) * self.scale + self.shift
        return result


def negative_log_likelihood(answers: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log p(target) without its constant; `answers [B, 2]` as above, `targets [B]`."""
    mean, deviation = answers.unbind(1)
    return (deviation.log() + 0.5 * ((targets - mean) / deviation).square()).mean()
