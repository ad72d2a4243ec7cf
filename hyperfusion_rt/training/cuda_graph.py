"""Forward and backward of a training step as CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Captured(nn.Module):
    """`network(image, tabular)`, its forward and backward replayed as CUDA graphs.

    The first batch's size is captured; batches of another size (an epoch's last) run as they are.
    Several processes wrap it for the exchange of gradients: that comes after the capture.
    """

    def __init__(
        self, network: nn.Module, amp: torch.autocast, image: Tensor, tabular: Tensor
    ) -> None:
        super().__init__()
        self.plain = network.forward
        self.network = network
        self.size = image.shape
        # Capturing runs the network a few times: running statistics and the seed are put back.
        kept = [buffer.clone() for buffer in network.buffers()]
        seed = torch.cuda.get_rng_state(image.device)
        with amp:
            torch.cuda.make_graphed_callables(network, (image.clone(), tabular.clone()))
        for buffer, value in zip(network.buffers(), kept, strict=True):
            buffer.copy_(value)
        torch.cuda.set_rng_state(seed, image.device)

    def forward(self, image: Tensor, tabular: Tensor) -> Tensor:
        """`image [B, 1, D, H, W]`, `tabular [B, T]` → `[B, C]`."""
        forward = self.network if image.shape == self.size else self.plain
        outputs: Tensor = forward(image, tabular)
        return outputs
