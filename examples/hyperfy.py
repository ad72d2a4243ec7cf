"""A trained network whose last layers learn to read a row of a table; nothing else is trained."""

import torch
from torch import nn

from hyperfusion_rt import hyperfy


class Net(nn.Module):
    """image [B, 1, D, H, W] -> logits [B, 2]. It knows nothing of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv3d(8, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU())
        self.fc = nn.Linear(16, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The network's own code stays as it is."""
        x = self.layer2(self.layer1(image))
        logits: torch.Tensor = self.fc(x.mean((2, 3, 4)))
        return logits


torch.manual_seed(0)
trained = Net()  # with the weights of a training, say

# The weights of two layers now depend on a row of 3 numbers: age, sex, scanner.
net = hyperfy(trained, ["layer2.*", "fc"], condition=3, init="zero", freeze=True)
print(net.generated, net.counts)
assert net.generated == ("layer2.0", "fc")

image, row, label = torch.randn(4, 1, 8, 8, 8), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
optimiser = torch.optim.Adam((p for p in net.parameters() if p.requires_grad), lr=1e-2)
losses = []
for _ in range(5):
    loss = nn.functional.cross_entropy(net(image, row), label)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")

# It was frozen: without what was added it is the network that it was.
for name, weight in net.base_state_dict().items():
    assert torch.equal(weight, trained.state_dict()[name])
