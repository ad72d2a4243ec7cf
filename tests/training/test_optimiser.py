"""What decays, how fast it learns, and the average of the weights."""

import numpy as np
import pytest
import torch
from torch import nn

from hyperfusion_rt.config import preset
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.models import network_of
from hyperfusion_rt.training.loss import Loss
from hyperfusion_rt.training.optimiser import averaged, make_optimiser, rate
from hyperfusion_rt.training.sampling import epoch_samples


def training(**change):
    return preset("ad-small", {"training": change}).training


def test_only_what_multiplies_decays():
    config = preset("ad-small", {"network": {"features": 2, "generated_part": 1.0}, "training": {
        "weight_decay": 0.1, "generator_decay": 0.3, "embedding_decay": 0.7}})  # fmt: skip
    network = network_of(config, 5)
    optimiser = make_optimiser(network, config.training)
    decay = {id(p): g["weight_decay"] for g in optimiser.param_groups for p in g["params"]}
    assert len(decay) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        expected = 0.1
        if parameter.ndim < 2:
            expected = 0.0
        elif "_gen." in name:
            expected = 0.3
        elif "embedding_model" in name:
            expected = 0.7
        assert decay[id(parameter)] == expected, name


def test_ordinary_weights_beside_generated_ones_decay():
    name = "block4.downsample.0.layer.hyper_net.weights_gen.bias"
    for part, expected in ((1.0, 0.0), (0.1, 0.2)):
        change = {"features": 2, "generated_part": part}
        config = preset("ad-small", {"network": change, "training": {"weight_decay": 0.2}})
        network = network_of(config, 5)
        optimiser = make_optimiser(network, config.training)
        decay = {id(p): g["weight_decay"] for g in optimiser.param_groups for p in g["params"]}
        assert decay[id(network.get_parameter(name))] == expected


def test_the_published_penalty_is_on_everything():
    config = preset("ad", {"network": {"features": 2}})
    optimiser = make_optimiser(network_of(config, 5), config.training)
    assert type(optimiser) is torch.optim.Adam
    assert [group["weight_decay"] for group in optimiser.param_groups] == [1e-5]


def test_rates():
    constant = training(schedule="constant", warmup_epochs=0, lr=2.0)
    assert {rate(constant, step, 100) for step in range(100)} == {2.0}
    cosine = training(schedule="cosine", warmup_epochs=2, epochs=10, lr=2.0)
    found = [rate(cosine, step, 100) for step in range(100)]
    assert found[0] == pytest.approx(0.1)
    assert np.argmax(found) == 19
    assert found[60] == pytest.approx(1 + np.cos(0.6 * np.pi))
    assert found[-1] < 0.001
    cycle = training(schedule="one-cycle", epochs=10, lr=2.0)
    found = [rate(cycle, step, 100) for step in range(100)]
    assert (np.argmax(found), max(found)) == (30, 2.0)
    assert found[0] == pytest.approx(0.08)
    assert found[-1] < 0.09


def test_the_average_is_one_of_weights_and_running_statistics():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = averaged(network, 0.9)
    weights, means = [], []
    torch.manual_seed(0)
    for _ in range(60):
        with torch.no_grad():
            network[0].weight.normal_()
            network[1].running_mean.normal_()
        weights.append(network[0].weight.clone())
        means.append(network[1].running_mean.clone())
        average.update_parameters(network)
    expected, mean = weights[0], means[0]
    for n, (one, other) in enumerate(zip(weights[1:], means[1:], strict=True), 1):
        kept = min(0.9, (1 + n) / (10 + n))
        expected, mean = kept * expected + (1 - kept) * one, kept * mean + (1 - kept) * other
    torch.testing.assert_close(average.module[0].weight, expected)
    torch.testing.assert_close(average.module[1].running_mean, mean)


def test_balanced_samples():
    train, targets = np.arange(100, 160), np.zeros(200)
    targets[100:103] = 1
    targets[103:110] = 2
    rng = np.random.default_rng(0)
    found = epoch_samples(train, targets, True, rng)
    assert len(found) == 60
    assert set(found) <= set(train)
    assert np.bincount(targets[found].astype(int)).tolist() == [20, 20, 20]
    assert np.bincount(found)[100:103].min() >= 6  # the rare ones about equally often
    assert epoch_samples(train, targets, False, rng) is train


@pytest.mark.parametrize(("name", "value"), [("mse", 4.0), ("l1", 2.0), ("huber", 1.5)])
def test_losses_of_numbers(name, value):
    config = preset("brain-age-small", {"training": {"loss": name}})
    loss = Loss(config, torch.device("cpu"))
    assert float(loss(torch.tensor([[1.0]]), torch.tensor([3.0]))) == value
    assert loss.of_validation(torch.tensor([[1.0]]), torch.tensor([3.0])) == value


def test_label_smoothing_is_of_training_only():
    config = preset("ad-small", {"training": {"label_smoothing": 0.3, "class_weights": []}})
    loss = Loss(config, torch.device("cpu"))
    sure = torch.tensor([[20.0, 0.0, 0.0]])
    assert float(loss(sure, torch.zeros(1))) == pytest.approx(0.3 * 40 / 3, rel=1e-3)
    assert loss.of_validation(sure, torch.zeros(1)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("brain-age-small", {"label_smoothing": 0.1}, "needs classes"),
        ("brain-age-small", {"sampling": "balanced"}, "needs classes"),
        ("ad-small", {"loss": "l1"}, "is of a number"),
    ],
)
def test_what_does_not_go_together(name, change, said):
    with pytest.raises(ConfigError, match=said):
        preset(name, {"training": change})
