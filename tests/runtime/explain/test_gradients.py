"""Integrated gradients: exact of linear networks, complete of others."""

import numpy as np
import pytest

from hyperfusion_rt.artifact.operations import (
    Activation,
    Concat,
    Conv,
    GlobalPool,
    Linear,
    Reshape,
    Softmax,
)
from hyperfusion_rt.artifact.plan import Plan, Program
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


def smooth_plan(rng):
    """A convolution, softplus, means of its channels, a linear layer and softmax."""
    conv = Conv(
        inputs=("image",), output="y", shape=(5, 6, 7, 5), kernel=(3, 3, 3), stride=(1, 1, 1),
        padding=(1, 1, 1), weight="w", bias="b", depthwise=False, algorithm="gather",
        act=Activation(kind="softplus"),
    )  # fmt: skip
    mean = GlobalPool(op="global_avg_pool", inputs=("y",), output="mean", shape=(5,))
    last = Linear(inputs=("mean",), output="z", shape=(3,), weight="w2", bias="b2")
    trunk = Program({"image": (2, 6, 7, 5)}, [conv, mean], ["mean"])
    softmax = Softmax(inputs=("z",), output="output", shape=(3,))
    head = Program({"mean": (5,), "tabular": (1,)}, [last, softmax], ["output"])
    sizes = {"w": (27, 2, 5), "b": (5,), "w2": (5, 3), "b2": (3,)}
    made = {name: 0.3 * rng.standard_normal(size, np.float32) for name, size in sizes.items()}
    return Plan(trunk, head, made)


def test_they_sum_up_to_the_difference_of_the_answers():
    rng = np.random.default_rng(3)
    plan = smooth_plan(rng)
    images, baseline = rng.standard_normal((2, 1, 2, 6, 7, 5), np.float32)
    images += 2
    row = np.zeros(1, np.float32)
    few, many = (
        integrated_gradients(plan, images, baseline, row, 1, threads=1, steps=steps)
        for steps in (1, 24)
    )
    engine = TorchEngine(plan, 1)
    # Without gradients, by the ops: the same answers.
    assert many.answer == pytest.approx(float(engine(images, row[None])[0, 1]), abs=1e-6)
    assert many.baseline == pytest.approx(float(engine(baseline, row[None])[0, 1]), abs=1e-6)
    assert abs(many.answer - many.baseline) > 0.01
    # Of a smooth function the rule converges at once; what is left is float32's.
    assert abs(many.gap) < 1e-5
    assert abs(few.gap) > 1e-5


def test_what_is_not_finite_is_an_error():
    images = np.full((1, 2, 4, 5, 3), np.inf, np.float32)
    plan = linear_plan(np.ones((2, 4, 5, 3), np.float32))
    with pytest.raises(EngineError, match="not finite"):
        integrated_gradients(plan, images, np.zeros_like(images), np.ones(1, np.float32), 0)
