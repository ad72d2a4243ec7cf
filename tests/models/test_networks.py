"""Every network builds, runs, learns from what its name says, and exports its shape."""

import itertools
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hyperfusion_rt.config import LAYERS, PLACES, NetworkConfig
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.models import (
    HyperConv3d,
    HyperLinear,
    build_network,
    initialise_generators,
    load_embedding,
)
from hyperfusion_rt.models.baselines import TabularNetwork
from hyperfusion_rt.models.layers import HyperNetwork
from hyperfusion_rt.models.meeting import ChannelShift

TASKS = {"ad": ((32, 32, 32), 9, 3), "brain-age": ((40, 38, 36), 2, 1)}
FUSIONS = ["hyper", "image", "tabular", "concat", "film", "daft", "tabmixer", "attention"]
PAIRS = list(itertools.product(TASKS, FUSIONS))


def network_for(task, fusion, features=2, **fields):
    shape, width, outputs = TASKS[task]
    torch.manual_seed(0)
    network = build_network(
        NetworkConfig(architecture=task, fusion=fusion, features=features, **fields),
        shape=shape,
        tabular_width=width,
        outputs=outputs,
    )
    return network, torch.randn(3, 1, *shape), torch.randn(3, width), outputs


@pytest.mark.parametrize(("task", "fusion"), PAIRS)
def test_uses_what_its_name_says(task, fusion):
    network, image, tabular, outputs = network_for(task, fusion)
    image.requires_grad_()
    tabular.requires_grad_()
    y = network(image, tabular)
    assert y.shape == (3, outputs)
    y.backward(torch.randn_like(y))
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    used = image.grad is not None and bool(image.grad.abs().max() > 0)
    assert used == (fusion != "tabular")
    used = tabular.grad is not None and bool(tabular.grad.abs().max() > 0)
    assert used == (fusion != "image")


@pytest.mark.parametrize(("task", "fusion"), PAIRS)
def test_a_sample_does_not_depend_on_its_batch(task, fusion):
    network, image, tabular, _ = network_for(task, fusion)
    network.eval()
    with torch.inference_mode():
        whole = network(image, tabular)
        alone = torch.cat([network(i[None], t[None]) for i, t in zip(image, tabular, strict=True)])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "shape", "width", "gflop"),
    [("ad", (64, 96, 64), 15, 8.1), ("brain-age", (90, 120, 99), 2, 24.0)],
)
def test_operations_of_the_published_networks(task, shape, width, gflop):
    with torch.device("meta"):
        network = build_network(
            NetworkConfig(architecture=task), shape=shape, tabular_width=width, outputs=1
        )
        counter = FlopCounterMode(display=False)
        with counter:
            network.eval().requires_grad_(False)(torch.zeros(1, 1, *shape), torch.zeros(1, width))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=0.02)


def test_generator_variances_follow_chang():
    network, _, tabular, _ = network_for("ad", "hyper", features=8)
    torch.manual_seed(1)
    tabular = torch.randn(500, 9)
    initialise_generators(network, tabular)
    (net,) = [m for m in network.modules() if isinstance(m, HyperNetwork)]
    net.eval()
    variance = net.embedding_model(tabular).var().item()
    fan_in = 64
    expected = 1 / (2 * fan_in * 8 * variance)
    assert net.weights_gen.weight.var().item() == pytest.approx(expected, rel=0.05)
    limit = math.sqrt(3 * expected)
    assert net.weights_gen.weight.abs().max().item() <= limit
    assert net.bias_gen.weight.var().item() == pytest.approx(1 / (2 * 8 * variance), rel=0.2)
    assert net.weights_gen.bias.abs().max() == 0

    network, _, _, _ = network_for("brain-age", "hyper", features=4)
    initialise_generators(network, torch.eye(2)[torch.arange(50) % 2])
    net = network.linear1.layer.hyper_net
    assert torch.equal(net.embedding_model.weight, torch.ones(1, 2))
    assert torch.equal(net.embedding_model.bias, torch.zeros(1))
    fan_in = net.weight_shape[1]
    expected = 2 / (2 * fan_in * 1 * 0.25)
    assert net.weights_gen.weight.var().item() == pytest.approx(expected, rel=0.15)


def test_a_table_of_many_columns_does_not_explode():
    """Four layers multiply the embedding: with weights of 1 the sum of 30 columns did."""
    torch.manual_seed(0)
    tabular = torch.randn(200, 30) + 0.3
    config = NetworkConfig(architecture="brain-age", features=2)
    network = build_network(config, shape=(36, 36, 36), tabular_width=30, outputs=1)
    initialise_generators(network, tabular)
    for module in network.modules():
        if isinstance(module, HyperNetwork):
            e = module.embedding_model(tabular)
            assert e.mean().item() == pytest.approx(1, abs=1e-5)
            assert e.std(correction=0).item() == pytest.approx(0.1, rel=1e-4)
    answers = network(torch.randn(200, 1, 36, 36, 36), tabular)
    assert answers.std() < 10


@pytest.mark.parametrize(("layers", "count"), [([], 1), (["block4.*", "fc1"], 4)])
def test_the_embedding_is_taken_over(layers, count):
    network, _, tabular, _ = network_for("ad", "hyper", hyper_layers=layers)
    trained = TabularNetwork(9, 3)
    load_embedding(network, trained)
    nets = [m for m in network.modules() if isinstance(m, HyperNetwork)]
    assert len(nets) == count
    for net in nets:
        torch.testing.assert_close(
            net.embedding_model.eval()(tabular), trained.embedding_model.eval()(tabular)
        )
    with pytest.raises(ConfigError, match="fusion 'hyper'"):
        load_embedding(network_for("ad", "film")[0], trained)
    with pytest.raises(ConfigError, match="does not fit"):
        load_embedding(network, TabularNetwork(4, 3))


def by_their_names(network):
    """The convolutions and linear layers outside of generators, and those with generators."""
    generated = (HyperConv3d, HyperLinear)
    return {
        name.removesuffix(".layer"): isinstance(module, generated)
        for name, module in network.named_modules()
        if isinstance(module, (torch.nn.Conv3d, torch.nn.Linear, *generated))
        and "hyper_net" not in name
    }


@pytest.mark.parametrize("task", TASKS)
def test_the_layers_have_the_names_of_the_configuration(task):
    assert set(by_their_names(network_for(task, "image")[0])) == set(LAYERS[task])
    for layer in LAYERS[task]:
        found = by_their_names(network_for(task, "hyper", hyper_layers=[layer])[0])
        assert [name for name, generated in found.items() if generated] == [layer]


@pytest.mark.parametrize("task", TASKS)
def test_every_layer_generated_starts_and_learns(task):
    network, image, _, _ = network_for(task, "hyper", features=4, hyper_layers=["*"])
    torch.manual_seed(1)
    tabular = torch.randn(200, TASKS[task][1])
    initialise_generators(network, tabular)
    nets = dict(network.named_modules())
    for layer in LAYERS[task]:
        net = nets[f"{layer}.layer.hyper_net" if f"{layer}.layer" in nets else f"{layer}.hyper_net"]
        net.eval()
        with torch.no_grad():
            spread = 0.25 if task == "brain-age" else net.embedding_model(tabular).var().item()
        relu = "conv1" in layer or task == "brain-age" or layer in ("fc1", "conv_bn_relu.0")
        gain = 2 if relu and layer not in ("fc2", "final_layer") else 1
        size = net.weights_gen.in_features * math.prod(net.weight_shape[1:])
        found = net.weights_gen.weight.square().mean().item()
        assert found == pytest.approx(gain / (2 * size * spread), rel=0.25), layer
    network.train()
    y = network(image, tabular[:3])
    assert torch.isfinite(y).all()
    y.backward(torch.randn_like(y))
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("part", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("task", "layer"), [("ad", "block1.conv1"), ("brain-age", "linear3")])
def test_how_much_of_a_layer_is_generated_at_first(task, layer, part, rank):
    """The variance of its output is the same in any case; inputs of variance 1, Var(e) as set."""
    fields = {"hyper_layers": [layer], "generated_part": part, "generator_rank": rank}
    network, _, _, _ = network_for(task, "hyper", features=8, **fields)
    torch.manual_seed(1)
    tabular = torch.randn(200, TASKS[task][1])
    initialise_generators(network, tabular)
    made = dict(network.named_modules())
    made = made.get(f"{layer}.layer", made[layer])
    net = made.hyper_net
    with torch.no_grad():
        variance = net.eval().embedding_model(tabular).var().item() if task == "ad" else 0.25
        net.embedding_model = torch.nn.Identity()
        shape = (400, 8, 3, 3, 3) if task == "ad" else (4000, 32)
        x = torch.randn(shape)
        e = torch.randn(len(x), net.weights_gen.in_features) * variance**0.5
        zero = made(x, 0 * e)
        found = [y[..., 1, 1, 1] if task == "ad" else y for y in (zero, made(x, e) - zero)]
    ordinary, generated = (y.square().mean().item() for y in found)
    assert ordinary == pytest.approx(2 * (1 - part), rel=0.25, abs=1e-6)
    assert generated == pytest.approx(2 * part, rel=0.3, abs=1e-6)


def test_the_table_adds_weights_of_the_rank_that_is_asked_for():
    layer = network_for("ad", "hyper", hyper_layers=["block3.conv1"], generator_rank=2)[0]
    layer = layer.block3.conv1.eval()
    assert sum(p.numel() for p in layer.mix.hyper_net.weights_gen.parameters()) == 8 * 16 * 2
    rows, x = torch.randn(2, 9), torch.randn(60, 8, 5, 5, 5)
    with torch.no_grad():
        first, second = (layer(x, row.expand(60, 9)) for row in rows)
        change = (first - second)[..., 1, 1, 1]  # [60, Cout]: of the rank, and the bias
    assert torch.linalg.matrix_rank(change, rtol=1e-5) == 3
    final = network_for("ad", "hyper", hyper_layers=["fc2"], generator_rank=3)[0].fc2.layer
    assert isinstance(final, HyperLinear)  # three rows have no higher rank


def test_dropout_of_the_embedding_acts_in_training_only():
    layers = ["block4.downsample.0", "fc1"]
    fields = {"dropout": 0, "embedding_dropout": 0.5, "hyper_layers": layers}
    network, image, tabular, _ = network_for("ad", "hyper", **fields)
    for module in network.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm3d)):
            module.eval()
    with torch.no_grad():
        assert not torch.equal(network(image, tabular), network(image, tabular))
        network.eval()
        assert torch.equal(network(image, tabular), network(image, tabular))


# Of a new network: Σ_i i Σ |i-th tensor of its state|, from before layers could be chosen.
INITIAL = {
    ("ad", "hyper"): 172698.1542,
    ("ad", "film"): 120746.8940,
    ("ad", "daft"): 121307.0206,
    ("ad", "concat"): 115146.7097,
    ("ad", "image"): 115022.5190,
    ("brain-age", "hyper"): 46996.9231,
    ("brain-age", "film"): 11716.6806,
    ("brain-age", "daft"): 11808.8369,
    ("brain-age", "concat"): 10804.7028,
    ("brain-age", "image"): 10717.0955,
}


@pytest.mark.parametrize(("task", "fusion"), INITIAL)
def test_a_seed_gives_the_weights_that_it_gave(task, fusion):
    shape, width, outputs = ((16,) * 3, 5, 3) if task == "ad" else ((36,) * 3, 2, 1)
    torch.manual_seed(7)
    config = NetworkConfig(architecture=task, fusion=fusion, features=2)
    network = build_network(config, shape=shape, tabular_width=width, outputs=outputs)
    if fusion == "hyper":
        if task == "ad":
            load_embedding(network, TabularNetwork(width, outputs))
        initialise_generators(network, torch.randn(20, width))
    sums = [value.double().abs().sum().item() for value in network.state_dict().values()]
    found = sum(i * each for i, each in enumerate(sums, 1))
    assert found == pytest.approx(INITIAL[task, fusion], rel=1e-6)


@pytest.mark.parametrize("fusion", ["film", "daft", "concat", "tabmixer", "attention"])
@pytest.mark.parametrize(("task", "place"), [(a, p) for a in PLACES for p in PLACES[a]])
def test_the_table_acts_at_its_place_and_not_before(task, place, fusion):
    network, image, tabular, _ = network_for(task, fusion, fusion_at=place)
    before = {"block1": "max_pool3d_1", "stage2": "batchnorm1", "stage3": "batchnorm2"}
    before |= {f"block{n}": f"block{n - 1}" for n in (2, 3, 4)}
    before |= {"features": "block4" if task == "ad" else "batchnorm3", "linear2": "linear1"}
    behind = {"block1": "block1", "features": "fc1" if task == "ad" else "linear1"}
    behind |= {f"block{n}": f"block{n}" for n in (2, 3, 4)}
    behind |= {"stage2": "conv2_a", "stage3": "conv3_a", "linear2": "linear2"}
    seen = {}
    for name in (before[place], behind[place]):
        module = getattr(network, name)
        module.register_forward_hook(lambda _, __, y, name=name: seen.setdefault(name, y))
    network.eval()
    both = []
    for row in (tabular, tabular + 1):
        seen.clear()
        network(image, row)
        both.append((seen[before[place]], seen[behind[place]]))
    (first, changed), (second, other) = both
    assert torch.equal(first, second)
    assert not torch.equal(changed, other)


@pytest.mark.parametrize("fusion", ["film", "daft"])
def test_what_scales_and_shifts_channels_is_as_wide_as_told(fusion):
    for width in (7, 20):
        given = {} if width == 7 else {"bottleneck": width}
        network, image, tabular, _ = network_for("ad", fusion, **given)
        assert network.affine.reduce.out_features == width
        assert torch.isfinite(network(image, tabular)).all()


def test_an_embedding_can_start_as_a_linear_map():
    rows = torch.randn(5, 9)
    for fusion in ("tabular", "hyper"):
        curved = network_for("ad", fusion)[0]
        network = network_for("ad", fusion, embedding_slope=1.0)[0]
        bent, straight = (
            next(m.embedding_model for m in one.modules() if hasattr(m, "embedding_model")).eval()
            for one in (curved, network)
        )
        torch.testing.assert_close(straight(-rows), 2 * straight(0 * rows) - straight(rows))
        assert not torch.allclose(bent(-rows), 2 * bent(0 * rows) - bent(rows))


def test_a_row_before_convolutions_is_a_convolution_of_its_broadcast():
    torch.manual_seed(0)
    shift = ChannelShift(3, 4)
    x, row = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 4)
    joined = torch.cat([x, row[..., None, None, None].expand(2, 4, 4, 5, 6)], 1)
    weight = torch.cat([torch.eye(3), shift.shift.weight], 1)[..., None, None, None]
    expected = torch.nn.functional.conv3d(joined, weight, shift.shift.bias)
    torch.testing.assert_close(shift(x, row), expected)


def test_a_table_with_gaps_cannot_initialise():
    network, _, tabular, _ = network_for("ad", "hyper")
    tabular[0, 0] = math.nan
    with pytest.raises(ConfigError, match="no finite variance"):
        initialise_generators(network, tabular)


def test_dropout_and_momentum_follow_the_configuration():
    def rates(task, dropout):
        config = NetworkConfig(architecture=task, features=2, dropout=dropout, bn_momentum=0.3)
        network = build_network(config, shape=TASKS[task][0], tabular_width=4, outputs=1)
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm3d)]
        assert {m.momentum for m in norms} == {0.3}
        kinds = (torch.nn.Dropout, torch.nn.Dropout3d)
        return [m.p for m in network.modules() if isinstance(m, kinds)]

    assert sorted(rates("ad", 1)) == [0.1, 0.2, 0.2, 0.3, 0.5, 0.6]
    assert rates("brain-age", 1) == [0.2]
    for task in TASKS:
        assert rates(task, 0.5) == pytest.approx([p / 2 for p in rates(task, 1)])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_ad_network_takes_any_volume_of_two_voxels_or_more(fusion):
    config = NetworkConfig(architecture="ad", fusion=fusion, features=2)
    for shape in [(2, 2, 2), (9, 7, 5)]:
        network = build_network(config, shape=shape, tabular_width=4, outputs=3).eval()
        assert network(torch.randn(2, 1, *shape), torch.randn(2, 4)).shape == (2, 3)


@pytest.mark.parametrize(("task", "fusion"), PAIRS)
def test_every_image_counts_and_any_number_of_outputs_comes_out(task, fusion):
    """One number from the AD network, three classes from the brain-age network."""
    shape, width, outputs = TASKS[task]
    outputs = 1 if outputs == 3 else 3
    torch.manual_seed(0)
    network = build_network(
        NetworkConfig(architecture=task, fusion=fusion, features=4),
        shape=shape,
        tabular_width=width,
        outputs=outputs,
        channels=3,
    )
    image = torch.randn(2, 3, *shape, requires_grad=True)
    y = network(image, torch.randn(2, width))
    assert y.shape == (2, outputs)
    y.backward(torch.randn_like(y))
    if fusion != "tabular":
        assert (image.grad.abs().amax((0, 2, 3, 4)) > 0).all()


def test_too_small_a_volume_is_refused():
    with pytest.raises(ConfigError, match="at least 2 voxels"):
        build_network(
            NetworkConfig(architecture="ad"), shape=(1, 90, 90), tabular_width=2, outputs=1
        )
    with pytest.raises(ConfigError, match="at least 36 voxels"):
        build_network(
            NetworkConfig(architecture="brain-age"), shape=(35, 90, 90), tabular_width=2, outputs=1
        )


def test_the_layers_stand_alone():
    conv = HyperConv3d(4, 6, 3, condition_features=5, stride=2, padding=1, groups=2)
    assert conv(torch.randn(2, 4, 7, 8, 9), torch.randn(2, 5)).shape == (2, 6, 4, 4, 5)
    assert HyperLinear(4, 6, condition_features=5)(torch.randn(2, 4), torch.randn(2, 5)).shape == (
        2,
        6,
    )
    with pytest.raises(ValueError, match="groups"):
        HyperConv3d(3, 6, 3, condition_features=5, groups=2)
