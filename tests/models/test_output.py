"""A number gets its unit in the last layer, whatever the network."""

from typing import get_args

import pytest
import torch

from hyperfusion_rt.config import NetworkConfig
from hyperfusion_rt.config.network import Fusion
from hyperfusion_rt.models.output import in_unit, start_at
from hyperfusion_rt.models.registry import build_network

SHAPE = (36, 36, 36)


FIELDS = [{"fusion": fusion} for fusion in get_args(Fusion)]
FIELDS += [{"hyper_layers": ["*"]}, {"hyper_layers": ["*"], "generator_rank": 1}]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
@pytest.mark.parametrize("architecture", ["ad", "brain-age"])
def test_the_last_layer_answers_in_the_targets_unit(architecture, fields):
    torch.manual_seed(0)
    config = NetworkConfig(architecture=architecture, features=2, **fields)
    network = build_network(config, shape=SHAPE, tabular_width=3, outputs=2).eval()
    start_at(network, 0.3)
    inputs = torch.randn(2, 1, *SHAPE), torch.randn(2, 3)
    with torch.inference_mode():
        before = network(*inputs)
        network.load_state_dict(in_unit(network, mean=1500.0, spread=80.0))
        after = network(*inputs)
    assert torch.allclose(after, 1500 + 80 * before, rtol=1e-6, atol=0)
