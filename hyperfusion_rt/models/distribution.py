"""A number as the mean of a distribution over bins ("soft bins")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# The centres of the first and the last bin, in standard deviations from the mean of the targets.
_REACH = 3.0


class Distribution(nn.Module):
    """`forward(image, tabular) -> [B, 1]`: the mean of softmax(logits) over the bins' centres.

    `network(image, tabular) -> [B, n]` gives the logits of n bins. Peng et al., Accurate brain age
    prediction with lightweight deep neural networks, Medical Image Analysis 2021. An answer never
    lies beyond the centres of the outer bins: 3 standard deviations from the mean of the training
    part.
    """

    centres: Tensor

    def __init__(self, network: nn.Module, bins: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("centres", torch.linspace(-_REACH, _REACH, bins)[None])

    def forward(self, image: Tensor, tabular: Tensor) -> Tensor:
        """`image [B, C, D, H, W]`, `tabular [B, T]` → `[B, 1]`."""
        probabilities = self.network(image, tabular).softmax(1)
        result: Tensor = nn.functional.linear(probabilities, self.centres)
        return result


def soft_labels(targets: Tensor, bins: int) -> Tensor:
    """`targets [B]`, in standard deviations → `[B, bins]`: Gaussians as wide (SD) as a bin."""
    centres = torch.linspace(-_REACH, _REACH, bins, device=targets.device)
    width = centres[1] - centres[0]
    return (-0.5 * ((targets[:, None] - centres) / width).square()).softmax(1)
