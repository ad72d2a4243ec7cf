"""Where the features of an image meet the table, without generated weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hyperfusion_rt.config import NetworkConfig
from hyperfusion_rt.data.encoder_columns import InputColumn, width_of
from hyperfusion_rt.models.attention import TableAttention
from hyperfusion_rt.models.tabmixer import TabMixer


def _along(row: Tensor, x: Tensor) -> Tensor:
    """`row [B, C]` in the shape in which it meets `x [B, C, ...]`."""
    return row[..., None, None, None] if x.dim() == 5 else row


class ChannelAffine(nn.Module):
    """FiLM and DAFT: the table scales and shifts the channels of `x [B, C, D, H, W]` or `[B, C]`.

        (a, b) = W2 relu(W1 t),   y = (1 + a) · x + b,   both linear maps without bias

    FiLM (Perez et al., AAAI 2018): t is the row `[B, T]`. DAFT (Pölsterl et al., MICCAI 2021): t is
    the row joined with the global average of x. The 1 keeps the layer near the identity at first.
    """

    def __init__(
        self, channels: int, condition_features: int, *, with_image: bool, bottleneck: int
    ) -> None:
        super().__init__()
        self.with_image = with_image
        width = condition_features + (channels if with_image else 0)
        self.reduce = nn.Linear(width, bottleneck, bias=False)
        self.expand = nn.Linear(bottleneck, 2 * channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x [B, C, ...]`, `condition [B, T]` → the shape of x."""
        if self.with_image:
            pooled = x.mean((2, 3, 4)) if x.dim() == 5 else x
            condition = torch.cat([pooled, condition], 1)
        scale, shift = _along(self.expand(self.reduce(condition).relu()), x).chunk(2, 1)
        y: Tensor = (1 + scale) * x + shift
        return y


class ChannelShift(nn.Module):
    """Concatenation in front of convolutions: `y = x + W t + b`, `x [B, C, D, H, W]`.

    It is what a 1x1x1 convolution makes of the row broadcast as T more channels, where it leaves
    the C of the image as they are.
    """

    def __init__(self, channels: int, condition_features: int) -> None:
        super().__init__()
        self.shift = nn.Linear(condition_features, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x [B, C, D, H, W]`, `condition [B, T]` → the shape of x."""
        return x + _along(self.shift(condition), x)


class Join(nn.Module):
    """Concatenation of vectors."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x [B, C]`, `condition [B, T]` → `[B, C + T]`."""
        return torch.cat([x, condition], 1)


def meeting(
    config: NetworkConfig, channels: int, columns: Sequence[InputColumn], *, volume: bool
) -> tuple[nn.Module, int]:
    """What a fusion with one place does to features there, and how many come out of it.

    `columns`: of the table; `volume`: the features are `[B, C, D, H, W]`, not `[B, C]`.
    """
    fusion, condition_features = config.fusion, width_of(columns)
    if fusion == "attention":
        return TableAttention(channels, columns), channels
    if fusion == "tabmixer":
        return TabMixer(channels, condition_features, volume=volume), channels
    if fusion == "concat" and volume:
        return ChannelShift(channels, condition_features), channels
    if fusion == "concat":
        return Join(), channels + condition_features
    daft, size = fusion == "daft", config.bottleneck
    return ChannelAffine(channels, condition_features, with_image=daft, bottleneck=size), channels
