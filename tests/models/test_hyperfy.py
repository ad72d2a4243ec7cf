"""`hyperfy`: every kind of layer against the network run sample by sample, state, errors."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import hyperfusion_rt
from hyperfusion_rt import HyperFusionError, hyperfy
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.models import initialise_generators
from hyperfusion_rt.models.hyperfied import Counts
from hyperfusion_rt.models.layers import LowRank

from .networks import Decoder, ResNet, inputs_of

# A layer without bias gets a generated one; its constant part is 0.
LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1), (4, 9)),
    "conv1d circular": (lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"), (4, 9)),
    "conv1d same": (lambda: nn.Conv1d(4, 6, 3, padding="same", dilation=2, groups=2), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 0), (1, 2), bias=False), (3, 7, 6)),
    "conv2d even same": (lambda: nn.Conv2d(3, 4, (2, 4), padding="same"), (3, 7, 6)),
    "conv2d reflect": (lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect"),
                       (3, 5, 6)),
    "conv2d 1x1": (lambda: nn.Conv2d(3, 4, 1, 2), (3, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3, 2, 1, groups=2, bias=False), (4, 5, 6, 4)),
    "conv3d valid": (lambda: nn.Conv3d(2, 4, (1, 3, 2), padding="valid", dilation=(1, 2, 1)),
                     (2, 3, 6, 4)),
    "conv3d replicate": (lambda: nn.Conv3d(2, 4, 3, padding=1, padding_mode="replicate"),
                         (2, 3, 4, 3)),
    "deconv3d": (lambda: nn.ConvTranspose3d(4, 4, 2, 2, groups=2), (4, 3, 2, 4)),
    "deconv3d output": (lambda: nn.ConvTranspose3d(3, 4, 3, 2, 1, (1, 0, 1), bias=False),
                        (3, 3, 2, 4)),
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "linear of tokens": (lambda: nn.Linear(7, 5, bias=False), (4, 7)),
    "linear of a grid": (lambda: nn.Linear(7, 5), (2, 3, 7)),
}  # fmt: skip


def weights_of(seat, row):
    """The weights and the bias that a generated layer has for one row, one number at a time."""
    layer, static = seat.layer, seat.layer.static
    net = layer.hyper_net
    e = net.embedding_model(row)
    made = sum(e[k] * net.weights_gen.weight[:, k] for k in range(len(e)))
    bias = sum(e[k] * net.bias_gen.weight[:, k] for k in range(len(e)))
    if isinstance(layer, LowRank):
        groups = getattr(static, "groups", 1)
        u = made.view(groups, len(bias) // groups, -1)  # [groups, Cout / groups, r]
        v = layer.filters.weight
        if isinstance(static, nn.ConvTranspose3d):
            v = v.unflatten(0, (groups, -1))
            made = torch.einsum("gor,girdhw->giodhw", u, v)
        else:
            v = v.unflatten(0, (groups, -1)).flatten(2)
            made = torch.einsum("gor,gri->goi", u, v)
    weight = static.weight + made.reshape(static.weight.shape)
    return weight, bias if static.bias is None else static.bias + bias


def sample_by_sample(plain, module, x, condition):
    """The network as it was, with the weights of each sample in turn."""
    plain = copy.deepcopy(plain)
    for name in module.generated:
        layer = plain.get_submodule(name)
        if layer.bias is None:
            count = getattr(layer, "out_channels", None) or layer.out_features
            layer.bias = nn.Parameter(layer.weight.new_zeros(count))
    made = []
    for b in range(len(x)):
        weights = {}
        for name in module.generated:
            weight, bias = weights_of(module.network.get_submodule(name), condition[b])
            weights |= {f"{name}.weight": weight, f"{name}.bias": bias}
        made.append(functional_call(plain, weights, x[b : b + 1]))
    return torch.cat(made)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer_is_the_network_sample_by_sample(name, rank):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    plain = nn.Sequential(layer(), nn.Tanh()).double()
    module = hyperfy(plain, ["0"], condition=4, embedding=3, rank=rank)
    assert isinstance(module.network[0].layer, LowRank) == (rank is not None)
    x = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    row = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    found, expected = module(x, row), sample_by_sample(plain, module, x, row)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert (found - module(x, row.roll(1, 0))).abs().amax() > 1e-3
    upstream = torch.randn_like(found)
    of = [x, row, *module.parameters()]
    pairs = [torch.autograd.grad(y, of, upstream) for y in (found, expected)]
    torch.testing.assert_close(*pairs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("kind", [ResNet, Decoder])
def test_a_network_is_itself_sample_by_sample(kind, rank):
    plain = kind().double().eval()
    module = hyperfy(plain, kind.layers, condition=5, rank=rank)
    assert module.generated == kind.names
    x, row = (t.double() for t in inputs_of(kind, 3))
    expected = sample_by_sample(plain, module, x, row)
    torch.testing.assert_close(module(x, row), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_zero_starts_as_the_network_and_learns(name, rank):
    layer, shape = LAYERS[name]
    plain = nn.Sequential(layer(), nn.Tanh())
    module = hyperfy(plain, "0", condition=4, rank=rank, init="zero")
    x, row = torch.randn(3, *shape), torch.randn(3, 4)
    terms = plain[0].weight[0].numel()
    atol = 8 * torch.finfo(torch.float32).eps * math.sqrt(terms)
    torch.testing.assert_close(module(x, row), plain(x), rtol=0, atol=atol)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        module(x, row).square().sum().backward()
        optimiser.step()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), name


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv2d(16, 32, 3), (16, 6, 6)),
        (lambda: nn.ConvTranspose3d(16, 32, 2, 2), (16, 2, 2, 2)),
        (lambda: nn.Linear(64, 32), (64,)),
    ],
)
def test_a_tenth_is_added_at_first(layer, shape, rank):
    torch.manual_seed(0)
    plain = nn.Sequential(layer())
    nn.init.zeros_(plain[0].bias)
    plain[0].weight.data *= 0.3  # of a pretrained network, whatever its scale
    module = hyperfy(plain, "0", condition=6, embedding=16, rank=rank)
    x, row = torch.randn(500, *shape), torch.randn(500, 6)
    with torch.no_grad():
        own, added = plain(x), module(x, row) - plain(x)
    ratio = (added.square().mean() / own.square().mean()).item()
    assert ratio == pytest.approx(0.1, rel=0.4)


def test_measured_generators_leave_the_layers_as_they_are():
    plain = ResNet()
    module = hyperfy(plain, ["layer*", "fc"], condition=5, rank=1)
    before = copy.deepcopy(module.base_state_dict())
    initialise_generators(module, 10 * torch.randn(300, 5))
    torch.testing.assert_close(module.base_state_dict(), before, rtol=0, atol=0)


def test_the_network_is_copied_and_layers_keep_their_parameters():
    plain = ResNet()
    state = copy.deepcopy(plain.state_dict())
    module = hyperfy(plain, ["*conv1", "fc"], condition=5)
    torch.optim.SGD(module.parameters(), lr=1.0)
    for parameter in module.parameters():
        parameter.data += 1
    torch.testing.assert_close(plain.state_dict(), state, rtol=0, atol=0)
    assert plain.fc.weight.shape == module.network.fc.layer.static.weight.shape
    assert module.network.fc.in_features == 8  # what networks ask their layers


def test_state_dicts_both_ways():
    plain, other = ResNet(), ResNet()
    module = hyperfy(plain, ["layer2.*", "fc"], condition=5, rank=1)
    assert list(module.base_state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(module.base_state_dict(), dict(plain.state_dict()), rtol=0, atol=0)
    again = hyperfy(other, ["layer2.*", "fc"], condition=5, rank=1)
    again.load_state_dict(module.state_dict())
    x, row = inputs_of(ResNet, 2)
    assert torch.equal(again.eval()(x, row), module.eval()(x, row))
    again.load_base_state_dict(other.state_dict())
    torch.testing.assert_close(again.base_state_dict(), dict(other.state_dict()), rtol=0, atol=0)
    plain.load_state_dict(module.base_state_dict())
    state = plain.state_dict()
    del state["fc.bias"]
    with pytest.raises(ConfigError, match=r"fc\.bias missing, more unknown"):
        again.load_base_state_dict({**state, "more": torch.zeros(1)})
    with pytest.raises(ConfigError, match="size mismatch"):
        again.load_base_state_dict({**plain.state_dict(), "fc.bias": torch.zeros(9)})


def test_numbers_and_names_are_reported():
    module = hyperfy(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "1", condition=5, embedding=2)
    assert module.generated == ("1",)
    added = 5 * 2 + 2 + 2 * (4 * 2 + 2)
    assert module.counts == Counts(16 + 10, added, 26 + added)
    assert "generated=['1']" in repr(module)


def test_a_frozen_network_stays():
    plain = ResNet()
    module = hyperfy(plain, ["layer2.*.conv1"], condition=5, init="zero", freeze=True, train=["fc"])
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert {"network.fc.weight", "network.fc.bias"} < trained
    assert all("hyper_net" in name for name in trained if ".fc." not in name)
    assert module.counts.trained == module.counts.generated + 8 * 2 + 2
    before = copy.deepcopy(module.state_dict())
    x, row = inputs_of(ResNet, 4)
    optimiser = torch.optim.SGD(module.train().parameters(), lr=0.1)
    for _ in range(2):
        module(x, row).square().sum().backward()
        optimiser.step()
    assert module.network.fc.training
    assert not module.network.bn1.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trained), name


def test_modes_are_those_of_the_network():
    plain = ResNet().train()
    plain.bn1.eval()
    module = hyperfy(plain, "fc", condition=5)
    assert module.training
    assert not module.network.bn1.training
    assert not hyperfy(plain.eval(), "fc", condition=5).training


def test_what_does_not_depend_on_the_condition():
    x, row = inputs_of(ResNet, 2)
    module = hyperfy(ResNet(), ["layer2.1.conv1", "fc"], condition=5)
    # The ReLU is called again behind the first generated layer.
    assert module.unconditioned(x) == ("conv1", "bn1", "layer1", "layer2.0")
    assert module.training
    assert module(x, row).shape == (2, 2)


def test_a_layer_that_is_called_twice_is_one_layer():
    first = nn.Linear(4, 4)
    plain = nn.Sequential(first, nn.ReLU(), first, nn.Linear(4, 2)).double()
    module = hyperfy(plain, ["2"], condition=3)
    assert module.generated == ("0",)
    x, row = torch.randn(2, 4).double(), torch.randn(2, 3).double()
    torch.testing.assert_close(module(x, row), sample_by_sample(plain, module, x, row))
    assert list(module.base_state_dict()) == list(plain.state_dict())
    module.load_base_state_dict(plain.state_dict())


def test_parametrized_layers_stay_so():
    plain = nn.Sequential(parametrizations.weight_norm(nn.Conv1d(2, 3, 3)), nn.ReLU())
    module = hyperfy(plain, "0", condition=3, init="zero")
    x, row = torch.randn(2, 2, 5), torch.randn(2, 3)
    torch.testing.assert_close(module(x, row), plain(x))
    assert list(module.base_state_dict()) == list(plain.state_dict())
    module(x, row + 1).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_small_layers_are_generated_in_full():
    module = hyperfy(ResNet(), ["layer2.*.conv1", "fc"], condition=5, rank=4)
    full = [n for n in module.generated
            if not isinstance(module.network.get_submodule(n).layer, LowRank)]  # fmt: skip
    assert full == ["fc"]


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def hooked():
    network = nn.Sequential(nn.Linear(2, 2))
    network[0].register_forward_hook(lambda *_: None)
    return network


def tied():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    return network


@pytest.mark.parametrize(
    ("network", "layers", "code", "text"),
    [
        (ResNet, ["layer4.*.conv1"], "layer-unknown", "near: layer2.1.conv1, layer"),
        (ResNet, ["fc", "bn1"], "layer-unknown", "bn1 is a BatchNorm3d; only Conv1d, .*Linear can"),
        (ResNet, [], "layer-unknown", "names no layer"),
        (lambda: nn.Linear(2, 2), ["*"], "layer-unknown", "matches nothing in Linear"),
        (lambda: nn.Sequential(Standardised(1, 1, 1)), ["0"], "layer-unfit", "forward of its own"),
        (lambda: nn.Sequential(nn.LazyLinear(2)), ["0"], "layer-unfit", "has no weights yet"),
        (hooked, ["0"], "layer-unfit", "forward hooks"),
        (tied, ["1"], "layer-unfit", "shares weights with 0"),
        (lambda: nn.TransformerEncoderLayer(4, 2), ["linear1"], "layer-unfit", "without calling"),
        (lambda: nn.Sequential(nn.MultiheadAttention(4, 2)), ["*proj"], "layer-unfit", "to 0, a M"),
        (lambda: hyperfy(ResNet(), "fc", condition=2), ["fc"], "twice", "generated already"),
    ],
)
def test_what_cannot_be_generated_is_named(network, layers, code, text):
    with pytest.raises(ConfigError, match=text) as error:
        hyperfy(network(), layers, condition=3)
    assert error.value.code == f"hyperfy-{code}"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"condition": 0}, "`condition` 0"),
        ({"embedding": 0}, "`embedding` 0"),
        ({"rank": 0}, "`rank` 0"),
        ({"rank": 2}, r"`rank` 2 is not below that of any layer \(fc 2 x 8\)"),
        ({"init": "ones"}, "`init` 'ones'"),
        ({"train": ["fc"]}, "set `freeze`"),
        ({"train": ["head"], "freeze": True}, "'head' in `train` matches nothing"),
    ],
)
def test_options_out_of_range_are_named(options, text):
    with pytest.raises(ConfigError, match=text):
        hyperfy(ResNet(), "fc", **{"condition": 3, **options})


def test_a_condition_that_does_not_fit_is_named():
    module = hyperfy(ResNet(), ["layer2.*", "fc"], condition=5)
    x, row = inputs_of(ResNet, 2)
    for arguments, text in [
        ((x,), r"got shape \(2, 1, 9, 8, 7\)"),
        ((), "got nothing"),
        ((x, None), "got nothing"),
        ((x, [1.0]), "got list"),
        ((x, row[:, :3]), r"\[B, 5\].*got shape \(2, 3\)"),
        ((x, row.long()), "got torch.int64"),
        ((x, row[:1]), r"layer2.0.conv1 got 2 samples, but the condition has 1"),
    ]:
        with pytest.raises(HyperFusionError, match=text) as error:
            module(*arguments)
        assert error.value.code == "condition-wrong"
    assert module.eval()(x, row * torch.nan).isnan().all()
    with pytest.raises(HyperFusionError, match="fc was called without a condition"):
        module.network.fc(torch.zeros(2, 8))
    alone = hyperfy(nn.Sequential(nn.Conv3d(1, 1, 1)), "0", condition=5)
    with pytest.raises(HyperFusionError, match="the batch as its first axis"):
        alone(x[0], row)


def test_it_is_there_at_the_top():
    assert hyperfusion_rt.hyperfy is hyperfy
