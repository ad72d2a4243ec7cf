"""The frozen part of a network, run once, and the rest that goes on from it."""

import pytest
import torch
from torch import nn

from hyperfusion_rt import hyperfy
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.models.hyperfy import joined, seated
from hyperfusion_rt.models.trunk import Trunk

from .networks import ResNet, inputs_of


class UNet(nn.Module):
    """Skips from every level, one activation for all, and sums between the modules."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.down1, self.down2 = nn.Conv3d(1, 4, 3, 2, 1), nn.Conv3d(4, 8, 3, 2, 1)
        self.up2 = nn.ConvTranspose3d(8, 4, 2, 2)
        self.up1 = nn.ConvTranspose3d(4, 2, 2, 2)

    def forward(self, x):
        a = self.act(self.down1(x))
        b = torch.relu_(self.down2(a) + 0.1)
        return self.up1(self.act(self.up2(b) + a)).mean((2, 3, 4))


class Again(nn.Module):
    """Reads the image again behind its first layer."""

    def __init__(self):
        super().__init__()
        self.first, self.fc = nn.Conv3d(1, 2, 1), nn.Linear(3, 2)

    def forward(self, x):
        y = torch.cat([self.first(x), x], 1)
        return self.fc(y.mean((2, 3, 4)))


def check(network, image, row):
    """The rest says what the whole says, with gradients for what is trained."""
    trunk = Trunk(network, image)
    features = trunk.features(network, image)
    assert features.shape == (len(image), trunk.size)
    network.train()
    expected, found = network(image, row), trunk.rest(network, features, row)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    trained = [p for p in network.parameters() if p.requires_grad]
    pairs = [torch.autograd.grad(y, trained, upstream) for y in (expected, found)]
    torch.testing.assert_close(pairs[1], pairs[0])
    return trunk


def test_a_residual_network():
    torch.manual_seed(0)
    image, row = inputs_of(ResNet, 3)
    network = hyperfy(ResNet(), ["layer2.1.conv1", "fc"], condition=5, freeze=True, train="fc")
    trunk = check(network, image, row)
    assert "layer1" in trunk.parts
    assert "layer2.0" in trunk.parts
    assert trunk.size == 8 * 3 * 2 * 2  # what layer2.0 gives: nothing else is read later
    whole = check(joined(ResNet(), "fc", condition=5, freeze=True), image, row)
    assert whole.size == 8 * 3 * 2 * 2  # the mean is no module
    check(seated(ResNet(), {}, 5, freeze=True, train=["fc"]), image, row)


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
def test_skips_are_read_later():
    torch.manual_seed(0)
    image, row = torch.randn(2, 1, 8, 8, 8), torch.randn(2, 3)
    trunk = check(hyperfy(UNet(), "up*", condition=3, freeze=True), image, row)
    # `act` is called again later, so what it made of down1 is no frozen output; down1's is.
    assert trunk.parts == ("down1", "down2")
    assert trunk.size == 4 * 4**3 + 8 * 2**3


def test_what_cannot_be_kept():
    image = torch.randn(2, 1, 4, 4, 4)
    with pytest.raises(ConfigError, match="read the image, too") as caught:
        Trunk(hyperfy(Again(), "fc", condition=3, freeze=True), image)
    assert caught.value.code == "network-features"
    with pytest.raises(ConfigError, match="comes first"):
        Trunk(hyperfy(UNet(), "down1", condition=3, freeze=True), image.repeat(1, 1, 2, 2, 2))
    with pytest.raises(ConfigError, match="comes first"):
        Trunk(hyperfy(Again(), "fc", condition=3), image)  # nothing is frozen


def test_trained_buffers_are_not_frozen():
    network = hyperfy(ResNet(), "fc", condition=5, freeze=True, train=["layer2"])
    assert {name.split(".")[0] for name in network.frozen_state_dict()} == {
        "conv1",
        "bn1",
        "layer1",
        "fc",
    }
    assert hyperfy(ResNet(), "fc", condition=5).frozen_state_dict() == {}
    assert not network.network.layer1.training
    assert network.network.layer2.training


def test_a_row_joined_to_a_linear_layer():
    torch.manual_seed(0)
    image, row = inputs_of(ResNet, 3)
    plain = ResNet().eval()
    same = joined(plain, "fc", condition=5, init="zero").eval()
    assert torch.equal(same(image, row), plain(image))
    network = joined(plain, "fc", condition=5, embedding=4, freeze=True).eval()
    seat = network.network.fc.layer
    x = plain.layer2(plain.layer1(plain.relu(plain.bn1(plain.conv1(image))))).mean((2, 3, 4))
    both = torch.cat([x, seat.embedding_model(row)], 1)
    weights = torch.cat([plain.fc.weight, seat.row.weight], 1)
    expected = nn.functional.linear(both, weights, plain.fc.bias)
    torch.testing.assert_close(network(image, row), expected)
    # Its embedding learns, batch norm too, where the network is frozen.
    assert network.train().network.fc.layer.embedding_model.training
    assert not network.network.fc.layer.static.training
    assert network.counts.trained == 5 * 4 + 4 + 2 * 4 + 1 + 4 * 2
    with pytest.raises(ConfigError, match=r"no linear layer .* fc"):
        joined(plain, "layer2.*", condition=5)


def test_vectors_of_a_sample_meet_the_same_row():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    network = joined(net, "0", condition=2, init="principled").eval()
    x, row = torch.randn(2, 5, 3), torch.randn(2, 2)
    rows = [network(x[:, i], row) for i in range(5)]
    torch.testing.assert_close(network(x, row), torch.stack(rows, 1))
