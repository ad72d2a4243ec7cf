"""Clocks: contenders that take turns, one scan from its file, and the limits of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hyperfusion_rt import _native
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.runtime.predictor import Predictor

# Long enough for the last contender's threads to stop spinning; then so long that the clock has
# risen again and the caches hold this contender's data (seconds).
_PAUSE, _WARM = 0.1, 0.05


def race(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    on_round: Callable[[int], None] = lambda turn: None,
) -> dict[str, list[float]]:
    """The ms of `rounds` calls of each contender, which take turns: A B C, A B C, ..."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        on_round(turn)
        for name, call in calls.items():
            time.sleep(_PAUSE)
            warm = time.perf_counter() + _WARM
            call()
            while time.perf_counter() < warm:
                call()
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def end_to_end(predictor: Predictor, cases: Sequence[Case]) -> dict[str, float]:
    """Median ms per scan from the file to the prediction, in parts, one scan after the other."""
    list(predictor.stream(cases[:1]))
    found = [item for case in cases for item in predictor.stream([case]) if item.status == "ok"]
    if not found:
        return {}
    parts = {
        "decode": [1e3 * item.seconds.decode for item in found],
        "preprocess": [1e3 * item.seconds.preprocess for item in found],
        "infer": [1e3 * item.seconds.infer for item in found],
        "total": [1e3 * item.seconds.total for item in found],
    }
    return {"scans": len(found), **{name: statistics.median(v) for name, v in parts.items()}}


def machine_limits(threads: int, repeat: int = 5) -> tuple[float, float]:
    """Float32 multiply-adds in registers (GFLOP/s) and a large copy (GB/s, read and write)."""
    peak = max(_native.peak_gflops(threads) for _ in range(repeat))
    source = torch.randn(1 << 26)
    target = torch.empty_like(source)
    copy = []
    for _ in range(repeat):
        start = time.perf_counter()
        target.copy_(source)
        copy.append(time.perf_counter() - start)
    return peak, 2 * source.numel() * 4 / min(copy) / 1e9
