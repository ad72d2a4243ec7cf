"""A number with its standard deviation: its loss, its unit, its engines, its mixture."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from hyperfusion_rt.artifact.plan import write_plan
from hyperfusion_rt.config import preset
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.export.compare import Expected, compare
from hyperfusion_rt.export.fuse.fuser import plan_ensemble
from hyperfusion_rt.export.ir.ensemble import join
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.models import answers_sd, initialise_generators, network_of
from hyperfusion_rt.models.gaussian import Gaussian, negative_log_likelihood
from hyperfusion_rt.models.output import in_unit, start_at
from hyperfusion_rt.rules import mixture
from hyperfusion_rt.runtime.engines.choose import open_file
from hyperfusion_rt.training.loss import Loss

SHAPE = (36, 36, 37)


def config(fusion="hyper"):
    change = {
        "preprocessing": {"shape": SHAPE},
        "network": {"features": 2, "fusion": fusion},
        "training": {"loss": "gaussian"},
    }
    return preset("brain-age-small", change)


def network(fusion, seed=0):
    torch.manual_seed(seed)
    made = network_of(config(fusion), 2).eval()
    if fusion == "hyper":
        initialise_generators(made.network, torch.eye(2).repeat(9, 1))
    return made


class Answers(torch.nn.Module):
    """Answers what it was given."""

    def __init__(self, found):
        super().__init__()
        self.found = torch.nn.Parameter(found)

    def forward(self, image, tabular):
        return self.found


def test_the_loss_is_the_likelihood_of_a_normal_distribution():
    answers = torch.tensor([[0.3, 0.5], [-1.0, 2.0]], dtype=torch.float64)
    targets = torch.tensor([0.1, 1.5], dtype=torch.float64)
    exact = -Normal(answers[:, 0], answers[:, 1]).log_prob(targets).mean()
    constant = 0.5 * math.log(2 * math.pi)
    loss = Loss(config(), torch.device("cpu"))
    assert float(loss(answers, targets)) == pytest.approx(float(exact) - constant)
    assert loss.of_validation(answers, targets) == pytest.approx(float(exact) - constant)
    # The table's own network answers a number alone.
    assert float(loss(torch.tensor([[1.0]]), torch.tensor([3.0]))) == 4


def test_the_loss_finds_mean_and_spread():
    """Of numbers that it knows nothing of, and from a start that is far away."""
    targets = 0.4 + 0.3 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    inner = Answers(torch.tensor([[-2.0, 1.5]]))
    made = Gaussian(inner)
    optimiser = torch.optim.Adam(inner.parameters(), lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        answers = made(None, None).expand(len(targets), 2)
        negative_log_likelihood(answers, targets).backward()
        optimiser.step()
    mean, deviation = made(None, None)[0].tolist()
    assert mean == pytest.approx(float(targets.mean()), abs=0.01)
    assert deviation == pytest.approx(float(targets.std()), abs=0.01)


def test_it_starts_from_the_spread_of_the_training_part_and_stays_positive():
    made = network("image")
    start_at(made.network, 0.0)
    image, tabular = torch.zeros(1, 1, *SHAPE), torch.eye(2)[:1]
    with torch.inference_mode():
        assert made(image, tabular)[0, 1] == pytest.approx(1, abs=0.3)
        for output, expected in ((0.0, 1.0), (-1e4, 0.05), (1e4, 1e4)):
            found = Gaussian(Answers(torch.tensor([[0.0, output]])))(None, None)
            assert float(found[0, 1]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("fusion", ["hyper", "image"])
def test_both_are_in_the_targets_unit(fusion):
    made = network(fusion)
    image, tabular = torch.randn(3, 1, *SHAPE), torch.eye(2)[[0, 1, 0]]
    with torch.inference_mode():
        before = made(image, tabular)
        made.load_state_dict(in_unit(made, mean=60.0, spread=12.0))
        after = made(image, tabular)
    torch.testing.assert_close(after[:, 0], 60 + 12 * before[:, 0], rtol=1e-5, atol=0)
    torch.testing.assert_close(after[:, 1], 12 * before[:, 1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("fusion", ["hyper", "image"])
def test_the_engines_answer_both(fusion, tmp_path):
    """Two members; torch in float64 against ONNX Runtime and the native engine."""
    members = [network(fusion, seed) for seed in (0, 1)]
    for member in members:
        member.load_state_dict(in_unit(member, mean=60.0, spread=12.0))
    rng = np.random.default_rng(0)
    image = rng.standard_normal((7, 1, 1, *SHAPE)).astype(np.float32)
    rows = [np.eye(2, dtype=np.float32)[rng.integers(2, size=7)] for _ in members]
    expected = Expected.of(
        members, image, rows, real=False, classes=False, rule="mean", spread=12.0, unit="years"
    )
    assert expected.outputs.shape == (7, 2, 1, 2)
    assert np.ptp(expected.outputs[..., 1]) > 0
    graphs = [fold(lower(member, {"image": (1, *SHAPE), "tabular": (2,)})) for member in members]
    ensemble = join(graphs, [2, 2], 1, classes=False, rule="mean")
    onnx, plan = tmp_path / "model.onnx", tmp_path / "model.native"
    write_onnx(ensemble, onnx, part="whole")
    write_plan(plan_ensemble(ensemble, precision="fp32"), plan)
    for engine, path in (("onnx", onnx), ("native", plan)):
        opened = open_file(engine, path)
        assert compare(opened, expected, name=engine).largest_difference < 1e-5
        found = opened.run(expected.image, np.concatenate(rows, 1))
        together = [mixture(raw.reshape(2, 1, 2)) for raw in found["members"]]
        exact = [mixture(raw) for raw in expected.outputs]
        np.testing.assert_allclose(together, exact, rtol=1e-5)
        np.testing.assert_allclose(found["output"][:, 0], np.array(exact)[:, 0], rtol=1e-5)


def test_a_mixture_has_the_moments_of_draws_from_it():
    rng = np.random.default_rng(0)
    outputs = np.stack([rng.normal(70, 3, (3, 2)), rng.uniform(2, 6, (3, 2))], -1)
    draws = rng.normal(outputs[..., 0], outputs[..., 1], (400_000, 3, 2))
    mean, deviation = mixture(outputs)
    assert mean == pytest.approx(draws.mean(), abs=0.02)
    assert deviation == pytest.approx(draws.std(), rel=0.003)
    assert deviation > outputs[..., 1].mean() + 0.1  # what the means differ by counts
    np.testing.assert_array_equal(mixture(np.array([[[5.0, 2.0]]])), [5, 2])


def test_the_tables_own_network_answers_a_number_alone():
    assert answers_sd(config())
    assert not answers_sd(config("tabular"))


def test_it_needs_a_scale():
    with pytest.raises(ConfigError, match=r"gaussian needs training\.standardise_target"):
        preset("brain-age-small", {"training": {"loss": "gaussian", "standardise_target": False}})
