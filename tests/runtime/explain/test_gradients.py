"""Integrated gradients: exact of linear networks, complete of others."""

import numpy as np
import pytest

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.artifact.operations import Concat, Linear, Reshape
from hyperfusion_rt.artifact.plan import Plan, Program, read_plan
from hyperfusion_rt.errors import EngineError

pytest.importorskip("captum")
from hyperfusion_rt.runtime.engines.eager import TorchEngine
from hyperfusion_rt.runtime.engines.gradients import integrated_gradients


def linear_plan(weights):
    """answer = image · w + table · 2."""
    size = weights.size
    trunk = Program(
        {"image": weights.shape},
        [Reshape(inputs=("image",), output="x", shape=(size,))],
        ["x"],
    )
    head = Program(
        {"x": (size,), "tabular": (1,)},
        [
            Concat(inputs=("x", "tabular"), output="both", shape=(size + 1,)),
            Linear(inputs=("both",), output="output", shape=(1,), weight="w", bias="b"),
        ],
        ["output"],
    )
    w = np.append(weights.ravel(), 2)[:, None].astype(np.float32)
    return Plan(trunk, head, {"w": w, "b": np.ones(1, np.float32)})


def test_of_a_linear_network_they_are_weights_times_difference():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((2, 4, 5, 3), np.float32)
    images, baseline = rng.standard_normal((2, 1, 2, 4, 5, 3), np.float32)
    row = np.array([0.5], np.float32)
    found = integrated_gradients(linear_plan(weights), images, baseline, row, 0, threads=1)
    np.testing.assert_allclose(found.values, weights * (images - baseline), atol=1e-6)
    assert found.answer == pytest.approx(float((weights * images).sum()) + 2, abs=1e-5)
    assert abs(found.gap) < 1e-5


def test_they_sum_up_to_the_difference_of_the_answers(session_artifact):
    artifact = Artifact.open(session_artifact)
    plan = read_plan(artifact.file("native"))
    rng = np.random.default_rng(0)
    shape = artifact.manifest.preprocessing.images_shape
    images, baseline = rng.standard_normal((2, *shape), np.float32)
    row = rng.standard_normal(sum(m.width for m in artifact.manifest.members)).astype(np.float32)
    few, many = (
        integrated_gradients(plan, images, baseline, row, 2, threads=1, steps=steps)
        for steps in (2, 32)
    )
    found = {
        name: float(
            TorchEngine(plan, 1).run(x.reshape(1, -1, *shape[2:]), row[None])["output"][0, 2]
        )
        for name, x in (("answer", images), ("baseline", baseline))
    }
    # Without gradients, by the ops: the same answers.
    assert many.answer == pytest.approx(found["answer"], abs=1e-5)
    assert many.baseline == pytest.approx(found["baseline"], abs=1e-5)
    assert many.answer != many.baseline
    # A network of ReLUs: the error of the integral falls with the steps.
    assert abs(many.gap) < 0.2 * abs(many.answer - many.baseline)
    assert abs(many.gap) < abs(few.gap)


def test_what_is_not_finite_is_an_error():
    images = np.full((1, 2, 4, 5, 3), np.inf, np.float32)
    plan = linear_plan(np.ones((2, 4, 5, 3), np.float32))
    with pytest.raises(EngineError, match="not finite"):
        integrated_gradients(plan, images, np.zeros_like(images), np.ones(1, np.float32), 0)
