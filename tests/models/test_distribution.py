"""A number as the mean of a distribution: its loss, its unit, its engines."""

import numpy as np
import pytest
import torch

from hyperfusion_rt.config import preset
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.export.fuse.fuser import plan
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.models import bins_count, initialise_generators, network_of
from hyperfusion_rt.models.distribution import soft_labels
from hyperfusion_rt.models.output import in_unit
from hyperfusion_rt.runtime.engines.native import NativeEngine
from hyperfusion_rt.training.loss import Loss

SHAPE = (36, 36, 37)


def config(fusion="hyper"):
    change = {
        "preprocessing": {"shape": SHAPE},
        "network": {"features": 2, "fusion": fusion},
        "training": {"loss": "bins", "bins": 12},
    }
    return preset("brain-age-small", change)


def test_soft_labels_have_their_number_as_mean():
    targets = torch.linspace(-1.5, 1.5, 7)
    found = soft_labels(targets, 40)
    torch.testing.assert_close(found.sum(1), torch.ones(7))
    torch.testing.assert_close(found @ torch.linspace(-3, 3, 40), targets, atol=1e-4, rtol=0)


def test_the_loss_is_smallest_where_the_distribution_is_right():
    loss = Loss(config(), torch.device("cpu"))
    right = soft_labels(torch.tensor([0.4]), 12).log().requires_grad_()
    value = loss(right, torch.tensor([0.4]))
    value.backward()
    assert abs(float(value.detach())) < 1e-6
    assert float(right.grad.abs().max()) < 1e-6
    assert float(loss(right, torch.tensor([1.4])).detach()) > 0.5
    assert loss.of_validation(torch.tensor([[1.0]]), torch.tensor([3.0])) == 4


@pytest.mark.parametrize("fusion", ["hyper", "image"])
def test_the_engine_answers_the_mean_in_the_targets_unit(fusion):
    torch.manual_seed(0)
    network = network_of(config(fusion), 2).eval()
    if fusion == "hyper":
        initialise_generators(network.network, torch.eye(2).repeat(9, 1))
    image, tabular = torch.randn(3, 1, *SHAPE), torch.eye(2)[[0, 1, 0]]
    with torch.inference_mode():
        before = network(image, tabular)
        network.load_state_dict(in_unit(network, mean=60.0, spread=12.0))
        after = network(image, tabular)
        exact = network.double()(image.double(), tabular.double()).numpy()
    torch.testing.assert_close(after, 60 + 12 * before, rtol=1e-5, atol=0)
    graph = lower(network.float(), {"image": (1, *SHAPE), "tabular": (2,)})
    engine = NativeEngine(plan(fold(graph), folded=True), threads=1)
    np.testing.assert_allclose(engine(image.numpy(), tabular.numpy()), exact, rtol=1e-5)


def test_the_tables_own_network_has_no_bins():
    assert bins_count(config()) == 12
    assert bins_count(config("tabular")) == 0


def test_bins_need_a_scale():
    with pytest.raises(ConfigError, match=r"needs training\.standardise_target"):
        preset("brain-age-small", {"training": {"loss": "bins", "standardise_target": False}})
