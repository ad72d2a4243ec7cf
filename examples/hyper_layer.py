"""A layer with generated weights in a model of your own, and one training step."""

import torch
from torch import nn

from hyperfusion_rt.models import HyperConv3d


class Net(nn.Module):
    """image [B, 1, D, H, W] and row [B, 3] (age, sex, scanner) -> logits [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 8, 3, padding=1)
        # Of each row an embedding of 4 numbers makes the 16 x 8 x 3 x 3 x 3 weights.
        self.generated = HyperConv3d(
            8, 16, 3, padding=1, condition_features=3, embedding_features=4
        )
        self.last = nn.Linear(16, 2)

    def forward(self, image: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Each sample of the batch has its own weights; there is no loop over samples."""
        x = self.first(image).relu()
        x = self.generated(x, row).relu()
        logits: torch.Tensor = self.last(x.mean((2, 3, 4)))
        return logits


torch.manual_seed(0)
net = Net()
optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
image, row, label = torch.randn(4, 1, 16, 16, 16), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])

before = nn.functional.cross_entropy(net(image, row), label)
before.backward()
optimiser.step()
after = nn.functional.cross_entropy(net(image, row), label)
print(f"loss {before.item():.4f} -> {after.item():.4f}")
