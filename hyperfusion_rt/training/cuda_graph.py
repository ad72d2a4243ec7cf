"""Forward and backward of a training step as CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Captured:
    """`network(image, tabular)`, its forward and backward replayed as CUDA graphs.

    The first batch's size is captured; batches of another size (an epoch's last) run as they are.
    """

    def __init__(self, network: nn.Module, amp: torch.autocast) -> None:
        self.network, self.amp = network, amp
        self.plain = network.forward
        self.captured: torch.Size | None = None

    def __call__(self, image: Tensor, tabular: Tensor) -> Tensor:
        """`image [B, 1, D, H, W]`, `tabular [B, T]` → `[B, C]`."""
        if self.captured is None:
            self._capture(image, tabular)
        forward = self.network if image.shape == self.captured else self.plain
        outputs: Tensor = forward(image, tabular)
        return outputs

    def _capture(self, image: Tensor, tabular: Tensor) -> None:
        """Capturing runs the network a few times: running statistics and the seed are put back."""
        kept = [buffer.clone() for buffer in self.network.buffers()]
        seed = torch.cuda.get_rng_state(image.device)
        with self.amp:
            torch.cuda.make_graphed_callables(self.network, (image.clone(), tabular.clone()))
        for buffer, value in zip(self.network.buffers(), kept, strict=True):
            buffer.copy_(value)
        torch.cuda.set_rng_state(seed, image.device)
        self.captured = image.shape
