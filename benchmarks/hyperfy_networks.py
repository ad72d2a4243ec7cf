"""The networks of `benchmarks/hyperfy.py`: others wrote them, and they know nothing of a table.

A study names them as `network.import`: this file is copied beside its hfrt.yaml.
"""

from __future__ import annotations

import torch
from monai.networks import nets
from torch import Tensor, nn


def resnet18(channels: int, outputs: int, widen_factor: float = 0.25) -> nn.Module:
    """MONAI's 3D ResNet18; the first convolution has a stride of 2, as in the ResNet of images.

    `widen_factor`: its channels over the usual ones.
    """
    made: nn.Module = nets.resnet18(
        spatial_dims=3,
        n_input_channels=channels,
        num_classes=outputs,
        conv1_t_stride=2,
        widen_factor=widen_factor,
    )
    return made


class Mean(nn.Module):
    """`[B, C, D, H, W] -> [B, outputs]`: the mean of what a U-Net makes of each voxel."""

    def __init__(self, network: nn.Module, features: int, outputs: int) -> None:
        super().__init__()
        self.network, self.fc = network, nn.Linear(features, outputs)

    def forward(self, image: Tensor) -> Tensor:
        """`image [B, C, D, H, W]` → `[B, outputs]`."""
        logits: Tensor = self.fc(self.network(image).mean((2, 3, 4)))
        return logits


def unet(channels: int, outputs: int) -> nn.Module:
    """MONAI's 3D U-Net of three levels; a linear layer reads the mean over its output."""
    network = nets.UNet(
        spatial_dims=3,
        in_channels=channels,
        out_channels=16,
        channels=(8, 16, 32),
        strides=(2, 2),
        norm="batch",
    )
    return Mean(network, 16, outputs)


class Slices(nn.Module):
    """`[B, C, D, H, W] -> [B, outputs]`: a 2D network on the slice in the middle of each third."""

    def __init__(self, network: nn.Module, depth: int) -> None:
        super().__init__()
        self.network = network
        self.at = [depth * (2 * i + 1) // 6 for i in range(3)]

    def forward(self, image: Tensor) -> Tensor:
        """`image [B, C, D, H, W]` → `[B, outputs]`; the slices are channels."""
        logits: Tensor = self.network(torch.cat([image[:, :, i] for i in self.at], 1))
        return logits


def slices(channels: int, outputs: int, shape: tuple[int, int, int]) -> nn.Module:
    """MONAI's 2D ResNet18 on three sagittal slices."""
    network = nets.resnet18(
        spatial_dims=2, n_input_channels=3 * channels, num_classes=outputs, widen_factor=0.25
    )
    return Slices(network, shape[0])
