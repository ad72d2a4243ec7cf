"""Networks of the kinds that people bring, small."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    def __init__(self, cin, cout, stride, relu):
        super().__init__()
        self.conv1 = nn.Conv3d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(cout)
        self.conv2 = nn.Conv3d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(cout)
        self.relu = relu
        self.downsample = nn.Conv3d(cin, cout, 1, stride) if cin != cout else nn.Identity()

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet(nn.Module):
    """`[B, 1, D, H, W] -> [B, 2]`; with a stage that runs again during backward, if asked for."""

    layers = ("layer2.*.conv1", "layer2.0.downsample", "fc")
    names = ("layer2.0.conv1", "layer2.0.downsample", "layer2.1.conv1", "fc")
    shape = (1, 9, 8, 7)

    def __init__(self, again=None):
        super().__init__()
        self.again = again
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv3d(1, 4, 3, 2, 1)
        self.bn1 = nn.BatchNorm3d(4)
        self.layer1 = nn.Sequential(Block(4, 4, 1, nn.ReLU()))
        self.layer2 = nn.Sequential(Block(4, 8, 2, self.relu), Block(8, 8, 1, self.relu))
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        if self.again is None:
            x = self.layer2(x)
        else:
            x = checkpoint(self.layer2, x, use_reentrant=self.again)
        return self.fc(x.mean((2, 3, 4)))


class Decoder(nn.Module):
    """Slices, tokens and volumes: `[B, 3, H, W] -> [B, 1, 4, 2 H, 2 W]`."""

    layers = ("slices", "tokens", "profile", "up")
    names = layers
    shape = (3, 4, 5)

    def __init__(self):
        super().__init__()
        self.slices = nn.Conv2d(3, 6, 3, padding="same", padding_mode="circular")
        self.tokens = nn.Linear(6, 8)
        self.profile = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose3d(8, 4, 2, 2)
        self.last = nn.Conv3d(4, 1, (1, 3, 3), (1, 1, 1), (1, 1, 1))

    def forward(self, x):
        h, w = x.shape[2:]
        x = self.tokens(self.slices(x).flatten(2).transpose(1, 2)).tanh()
        x = self.profile(x.transpose(1, 2)).tanh()
        return self.last(self.up(x.unflatten(2, (1, h, w))))


def inputs_of(kind, batch):
    """(x, condition) of one of these."""
    g = torch.Generator().manual_seed(batch)
    return torch.randn(batch, *kind.shape, generator=g), torch.randn(batch, 5, generator=g)
