"""A 3D CNN that knows nothing of a table. A study names it: `import: own_network.py:make`."""

import torch
from torch import nn


class Net(nn.Module):
    """image [B, channels, D, H, W] -> logits, or a number, [B, outputs]."""

    def __init__(self, channels: int, outputs: int, width: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv3d(channels, width, 3, 2, 1), nn.BatchNorm3d(width))
        self.layer2 = nn.Sequential(nn.Conv3d(width, 2 * width, 3, 2, 1), nn.BatchNorm3d(2 * width))
        self.fc = nn.Linear(2 * width, outputs)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """What a study does with a row of the table is not said here."""
        x = self.layer2(self.layer1(image).relu()).relu()
        answer: torch.Tensor = self.fc(x.mean((2, 3, 4)))
        return answer


def make(channels: int, outputs: int, width: int = 8) -> nn.Module:
    """What `hfrt train` calls: `channels` and `outputs` are the study's, `width` is an argument."""
    return Net(channels, outputs, width)


if __name__ == "__main__":
    print(make(1, 3)(torch.zeros(2, 1, 16, 24, 16)).shape)
