"""The baseline without an image. The others are the `fusion` choices of the two networks."""

from __future__ import annotations

from torch import Tensor, nn

from hyperfusion_rt.models.layers import tabular_embedding


class TabularNetwork(nn.Module):
    """Linear(T → K) · BN · PReLU · Linear(K → outputs); ignores the image.

    Its `embedding_model` is what the AD network's hypernetwork starts from.
    """

    def __init__(
        self, tabular_width: int, outputs: int, embedding: int = 8, slope: float = 0.25
    ) -> None:
        super().__init__()
        self.embedding_model = tabular_embedding(tabular_width, embedding, slope)
        self.final_layer = nn.Linear(embedding, outputs)

    def forward(self, image: Tensor, tabular: Tensor) -> Tensor:
        """`tabular [B, T]` → `[B, outputs]`."""
        result: Tensor = self.final_layer(self.embedding_model(tabular))
        return result
