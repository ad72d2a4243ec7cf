"""Files and studies with networks that their owners wrote, for tests."""

NET = '''\
"""A small residual network that knows nothing of a table."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, channels, outputs, width=4, answer=None):
        super().__init__()
        self.answer = answer
        self.stem = nn.Sequential(nn.Conv3d(channels, width, 3, 2, 1), nn.BatchNorm3d(width))
        self.act = nn.ReLU(inplace=True)
        self.layer1 = nn.Conv3d(width, width, 3, padding=1)
        self.layer2 = nn.Sequential(
            nn.Conv3d(width, 2 * width, 3, 2, 1), nn.BatchNorm3d(2 * width), nn.ReLU()
        )
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(2 * width, outputs)

    def forward(self, image):
        x = self.act(self.stem(image))
        x = self.layer2(torch.relu(self.layer1(x) + x))
        y = self.fc(self.drop(x.mean((2, 3, 4))))
        return torch.roll(y, 1, 1) if self.answer == "rolled" else y


def make(channels, outputs, width=4, answer=None):
    return Net(channels, outputs, width, answer)


class Flat(nn.Module):
    """A 2D network on the slices as channels."""

    def __init__(self, channels, outputs, depth):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(channels * depth, 6, 3, 2, 1), nn.Linear(6, outputs)

    def forward(self, image):
        return self.fc(self.conv(image.flatten(1, 2)).relu().mean((2, 3)))


def flat(channels, outputs, shape):
    return Flat(channels, outputs, shape[0])


def number():
    return 3


def failing():
    raise RuntimeError("no such luck")


def fixed(classes=7, inputs=2):
    return Net(inputs, classes)


network = nn.Linear(2, 2)
'''

HYPER = {"import": "net.py:make", "hyper_layers": ["layer2.0", "fc"]}
SMALL = {
    "preprocessing": {"shape": [12, 16, 12], "spacing": 4.0},
    "tabular": {"features": [{"name": "AGE", "kind": "numeric"},
                             {"name": "PTGENDER", "kind": "categorical"}]},
    "training": {"epochs": 2, "embedding_epochs": 2, "members": 1, "batch_size": 8, "parts": 5},
    "augmentation": {"policy": "none"},
}  # fmt: skip


def study(root, network=HYPER, **changes):
    """The configuration of the study in `root` with this network."""
    from hyperfusion_rt.config import load_config

    (root / "net.py").write_text(NET, encoding="utf-8")
    change = {**SMALL, "network": network}
    for section, fields in changes.items():
        both = isinstance(fields, dict) and isinstance(change.get(section), dict)
        change[section] = {**change[section], **fields} if both else fields
    return load_config(root / "hfrt.yaml", change)
