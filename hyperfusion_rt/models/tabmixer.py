"""TabMixer: the table takes part in an MLP mixer over positions and channels of a feature map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIDE = 2  # the map is averaged over so many parts of each axis


class Mixing(nn.Module):
    """A perceptron along one axis of `[outer, size, inner]`, the same at all other places.

        y = m + W2 gelu(W1 m + V e + b1) + b2

    The row's embedding e `[B, E]` is read at every place. It acts on the flattened map: W is
    repeated along the other axes, so that all is a linear map of a vector.
    """

    def __init__(self, outer: int, size: int, inner: int, embedding: int) -> None:
        super().__init__()
        self.outer, self.inner, hidden = outer, inner, 2 * size
        self.up, self.down = nn.Linear(size, hidden), nn.Linear(hidden, size)
        self.table = nn.Linear(embedding, hidden, bias=False)

    def forward(self, m: Tensor, e: Tensor) -> Tensor:
        """`m [B, outer * size * inner]`, `e [B, E]` → the shape of m."""
        table = self._everywhere(self.table.weight)
        hidden = self._along(self.up, m) + F.linear(e, table)
        return m + self._along(self.down, F.gelu(hidden))

    def _along(self, layer: nn.Linear, m: Tensor) -> Tensor:
        of, on = layer.weight.dtype, layer.weight.device
        outer, inner = (torch.eye(n, dtype=of, device=on) for n in (self.outer, self.inner))
        weight = torch.kron(outer, torch.kron(layer.weight, inner))
        return F.linear(m, weight, self._everywhere(layer.bias))

    def _everywhere(self, rows: Tensor) -> Tensor:
        """`[size, ...]` → `[outer * size * inner, ...]`."""
        shape = (self.outer, len(rows), self.inner, *rows.shape[1:])
        return rows[None, :, None].expand(shape).flatten(0, 2)


class TabMixer(nn.Module):
    """TabMixer (Grzeszczyk et al., MICCAI 2024), which mixes a feature map and a row with MLPs.

        m = BN(conv1(mean of x over 2x2x2 parts)),   e = W t
        m = mixing over positions (m, e),   m = mixing over channels (m, e)
        (a, b) = W' m,   y = (1 + a) · x + b

    Taken from the paper's abstract: perceptrons that mix along one axis after the other, as in
    MLP-Mixer (Tolstikhin et al., NeurIPS 2021), exchange what the row and the features of a network
    say. The rest is ours: a scan has no time, so that only space and channels are mixed; the map is
    averaged to 2x2x2 positions and mapped to `width` channels first, so that a box may have any
    size; each perceptron reads the embedded row; batch norm in front instead of layer norm, for it
    folds away at export; and the result comes back as a scale and a shift of the channels, as in
    FiLM. Features `[B, C]` have one position, and only channels are mixed.
    """

    def __init__(
        self, channels: int, condition_features: int, *, volume: bool, width: int = 16
    ) -> None:
        super().__init__()
        positions = _SIDE**3 if volume else 1
        self.reduce = nn.Conv3d(channels, width, 1, bias=False)
        self.norm = nn.BatchNorm3d(width)
        self.embed = nn.Linear(condition_features, width)
        self.over_positions = Mixing(width, positions, 1, width) if volume else None
        self.over_channels = Mixing(1, width, positions, width)
        self.expand = nn.Linear(width * positions, 2 * channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x [B, C, D, H, W]` or `[B, C]`, `condition [B, T]` → the shape of x."""
        volume = x.dim() == 5
        parts = F.adaptive_avg_pool3d(x, _SIDE) if volume else x[..., None, None, None]
        m, e = self.norm(self.reduce(parts)).flatten(1), self.embed(condition)
        if self.over_positions is not None:
            m = self.over_positions(m, e)
        factors = self.expand(self.over_channels(m, e))
        scale, shift = (factors[..., None, None, None] if volume else factors).chunk(2, 1)
        y: Tensor = (1 + scale) * x + shift
        return y
