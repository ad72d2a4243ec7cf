"""The AD network: CN / MCI / AD from a hippocampal crop and the table (arXiv 2403.13319).

Pre-activation residual blocks; the last block's shortcut is the generated layer. The attribute
names are those of the published checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyperfusion_rt.config import Fusion, NetworkConfig, Shape
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.models.layers import (
    ChannelAffine,
    Conditioned,
    HyperConv3d,
    tabular_embedding,
)


def check_shape(shape: Shape) -> None:
    """Refuse a volume that the first pooling would leave empty; all else pads.

    Raises:
        ConfigError: fewer than 2 voxels along an axis.
    """
    if min(shape) < 2:
        raise ConfigError(
            f"the AD network needs at least 2 voxels along each axis, not {shape}",
            code="model-volume-too-small",
        )


class Block(nn.Module):
    """`conv2(drop(relu(bn2(conv1(drop(relu(bn1(x)))))))) + shortcut(x)`, convolutions 3x3x3.

    The shortcut is BN, then a 1x1x1 convolution.
    """

    def __init__(self, cin: int, cout: int, stride: int, dropout: float, momentum: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm3d(cin, momentum=momentum)
        self.conv1 = nn.Conv3d(cin, cout, 3, stride, 1)
        self.bn2 = nn.BatchNorm3d(cout, momentum=momentum)
        self.conv2 = nn.Conv3d(cout, cout, 3, 1, 1)
        self.drop = nn.Dropout3d(dropout)
        self.downsample = nn.Sequential(
            nn.BatchNorm3d(cin, momentum=momentum), nn.Conv3d(cin, cout, 1, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, Cin, D, H, W]` → `[B, Cout, D/stride, H/stride, W/stride]`."""
        y = self.conv1(self.drop(self.bn1(x).relu()))
        y = self.conv2(self.drop(self.bn2(y).relu()))
        result: Tensor = y + self.downsample(x)
        return result


class LastBlock(nn.Module):
    """As `Block`, but the shortcut is a convolution, generated or not, and then BN."""

    def __init__(
        self, cin: int, cout: int, dropout: float, momentum: float, shortcut: nn.Module
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm3d(cin, momentum=momentum)
        self.conv1 = Conditioned(nn.Conv3d(cin, cout, 3, 2, 1))
        self.bn2 = nn.BatchNorm3d(cout, momentum=momentum)
        self.conv2 = Conditioned(nn.Conv3d(cout, cout, 3, 1, 1))
        self.drop = nn.Dropout3d(dropout)
        self.downsample = nn.ModuleList(
            [Conditioned(shortcut), nn.BatchNorm3d(cout, momentum=momentum)]
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x [B, Cin, D, H, W]`, `condition [B, T]` → `[B, Cout, D/2, H/2, W/2]`."""
        y = self.conv1(self.drop(self.bn1(x).relu()), condition)
        y = self.conv2(self.drop(self.bn2(y).relu()), condition)
        conv, norm = self.downsample
        result: Tensor = y + norm(conv(x, condition))
        return result


class ADNetwork(nn.Module):
    """`forward(image [B, C, D, H, W], tabular [B, T]) -> [B, outputs]`: logits, or numbers.

    `channels`: C, the images of a case; a volume may have any size. `fusion`: where the table comes
    in: `hyper` generates the last shortcut, `film` and `daft` scale and shift the last block's
    input, `concat` joins the row to the pooled features, `image` ignores the table.
    """

    def __init__(
        self, config: NetworkConfig, *, tabular_width: int, outputs: int, channels: int = 1
    ) -> None:
        super().__init__()
        f, momentum, rate = config.features, config.bn_momentum, config.dropout
        self.fusion: Fusion = config.fusion
        self.conv_bn_relu = nn.Sequential(
            nn.Conv3d(channels, f, 3, padding=1), nn.BatchNorm3d(f, momentum=momentum), nn.ReLU()
        )
        self.max_pool3d_1 = nn.MaxPool3d(2)
        self.block1 = Block(f, 2 * f, 1, 0.1 * rate, momentum)
        self.block2 = Block(2 * f, 4 * f, 2, 0.2 * rate, momentum)
        self.block3 = Block(4 * f, 8 * f, 2, 0.2 * rate, momentum)
        if config.fusion in ("film", "daft"):
            self.affine = ChannelAffine(8 * f, tabular_width, with_image=config.fusion == "daft")
        shortcut: nn.Module = nn.Conv3d(8 * f, 16 * f, 1, 2)
        if config.fusion == "hyper":
            shortcut = HyperConv3d(
                8 * f,
                16 * f,
                1,
                stride=2,
                condition_features=tabular_width,
                embedding_features=config.embedding,
                embedding=tabular_embedding(tabular_width, config.embedding),
            )
        self.block4 = LastBlock(8 * f, 16 * f, 0.3 * rate, momentum, shortcut)
        joined = 16 * f + (tabular_width if config.fusion == "concat" else 0)
        self.drop1, self.drop2 = nn.Dropout(0.6 * rate), nn.Dropout(0.5 * rate)
        self.fc1 = Conditioned(nn.Linear(joined, 4 * f))
        self.fc2 = Conditioned(nn.Linear(4 * f, outputs))

    def forward(self, image: Tensor, tabular: Tensor) -> Tensor:
        """`image [B, C, D, H, W]`, `tabular [B, T]` → `[B, outputs]`."""
        x = self.max_pool3d_1(self.conv_bn_relu(image))
        x = self.block3(self.block2(self.block1(x)))
        if self.fusion in ("film", "daft"):
            x = self.affine(x, tabular)
        x = self.block4(x, tabular).mean((2, 3, 4))
        if self.fusion == "concat":
            x = torch.cat([x, tabular], 1)
        x = self.fc1(self.drop1(x), tabular).relu()
        logits: Tensor = self.fc2(self.drop2(x), tabular)
        return logits
