"""The clock of steps: it adds up, also what raises."""

import time

import pytest

from hyperfusion_rt.clock import Clock


def test_steps_add_up_and_a_step_that_raises_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 1.5, 2.0, 4.0, 10.0, 11.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    clock = Clock()
    with clock.step("read"):
        pass
    with pytest.raises(KeyError), clock.step("read"):
        raise KeyError
    with clock.step("infer"):
        pass
    assert clock.steps == {"read": 2.5, "infer": 1.0}
