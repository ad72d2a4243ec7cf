"""`hfrt bench`: engines and peers in one run, on the same inputs, after a check of correctness.

Every contender gets the same thread count. They take turns (A B C, A B C, ...), so that a noisy
neighbour hits all of them; the figure is the median. Beside it stand the operations over the time
(GFLOP/s) and the machine's own limit, measured in the same run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hyperfusion_rt import _native
from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.bench.contenders import Array, Call, contenders
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.errors import HyperFusionError, MissingExtraError
from hyperfusion_rt.export.build import folded, load_cases
from hyperfusion_rt.export.compare import reference_outputs
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.machine import describe_machine, usable_cores
from hyperfusion_rt.runtime.predictor import Predictor
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.train import load_member

# Long enough for the last contender's threads to stop spinning; then so long that the clock has
# risen again and the caches hold this contender's data (seconds).
_PAUSE, _WARM = 0.1, 0.05
# Largest difference from float64, relative to the outputs' scale, that still counts as right.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}


@dataclass(frozen=True)
class Timing:
    """One contender at one batch size: ms per batch, `spread_ms` the interquartile range."""

    contender: str
    precision: str
    batch: int
    median_ms: float
    spread_ms: float
    ms_per_box: float
    gflops: float
    difference: float
    correct: bool


@dataclass
class Report:
    """What `hfrt bench` found."""

    network: str
    gflop_per_box: float
    threads: int
    rounds: int
    limit_gflops: float
    limit_gbs: float
    machine: dict[str, str]
    timings: list[Timing] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    end_to_end: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


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


def bench(
    run: Run,
    artifact: Artifact,
    *,
    engine: str = "auto",
    batches: Sequence[int] = (1, 4),
    threads: int | None = None,
    rounds: int = 9,
    only: Sequence[str] = (),
    cases: Sequence[Case] = (),
    on_step: Callable[[str], None] | None = None,
) -> Report:
    """Time the artifact's engines and their peers on one box and member 0's network.

    `only`: names (or their beginnings) of the contenders to run; all by default. `cases`: scans
    with rows for the end-to-end time.

    Raises:
        HyperFusionError: the artifact, an engine or the run cannot be used.
    """
    threads = threads or usable_cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    scratch = tempfile.TemporaryDirectory()
    try:
        predictor = Predictor(artifact, engine, threads)
        network = load_member(run, run.members[0])
        image, rows, _ = load_cases(run)
        image = image[:, :1]  # one box
        shapes = {"image": image.shape[1:], "tabular": rows[0].shape[1:]}
        write_onnx(lower(network, shapes), Path(scratch.name) / "unfolded.onnx")
        graph = folded(network, image.shape[2:], run.members[0].encoder)
        write_onnx(graph, Path(scratch.name) / "folded.onnx")
        engines = {entry.engine: entry.precision for entry in artifact.manifest.engines}
        limit, copy = machine_limits(threads)
        info = artifact.manifest.provenance.network
        report = Report(
            network=f"{info['task']}, {info['fusion']}, f = {info['features']}, "
            f"{'x'.join(map(str, image.shape[2:]))}",
            gflop_per_box=artifact.manifest.provenance.gflop,
            threads=threads,
            rounds=rounds,
            limit_gflops=limit,
            limit_gbs=copy,
            machine=describe_machine(),
        )
        everything = reference_outputs(network, image, rows[0])
        scale = float(np.abs(everything).max())
        for batch in batches:
            index = np.arange(batch) % len(image)
            inputs = image[index], rows[0][index]
            expected = everything[index]
            named = contenders(network, graph, engines, threads, inputs, Path(scratch.name))
            opened = dict(_open(report, named, batch, only, inputs, on_step))
            report.timings += _race(report, opened, batch, inputs, expected, scale, on_step)
        if cases:
            report.end_to_end = end_to_end(predictor, cases)
    finally:
        torch.set_num_threads(before)
        scratch.cleanup()
    return report


def _open(
    report: Report,
    named: dict[str, tuple[str, Callable[[], Call]]],
    batch: int,
    only: Sequence[str],
    inputs: tuple[Array, Array],
    on_step: Callable[[str], None] | None,
) -> Iterator[tuple[str, tuple[str, Call]]]:
    flags = report.machine["instruction sets"]
    for name, (precision, opener) in named.items():
        if only and not any(name.startswith(wanted) for wanted in only):
            continue
        if precision == "bf16" and "bf16" not in flags:
            report.left_out[name] = "this processor has no bf16 instructions"
            continue
        if on_step is not None:
            on_step(f"batch {batch}: preparing {name}")
        try:
            call = opener()
            call(*inputs)
        except ImportError as error:
            package = error.name or name.split()[0]
            report.left_out[name] = str(MissingExtraError(package, "bench", name))
            continue
        except Exception as error:  # a peer that fails is a row of the report, not its end
            report.left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        yield name, (precision, call)


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


def _race(
    report: Report,
    opened: dict[str, tuple[str, Call]],
    batch: int,
    inputs: tuple[Array, Array],
    expected: NDArray[np.float64],
    scale: float,
    on_step: Callable[[str], None] | None,
) -> list[Timing]:
    if not opened:
        raise HyperFusionError("no contender is left to time: see which names --only takes")
    differences = {
        name: float(np.abs(call(*inputs) - expected).max()) / scale
        for name, (_, call) in opened.items()
    }

    def on_round(turn: int) -> None:
        if on_step is not None:
            on_step(f"batch {batch}: round {turn + 1} of {report.rounds}")

    calls = {name: partial(call, *inputs) for name, (_, call) in opened.items()}
    times = race(calls, report.rounds, on_round)
    found = []
    for name, (precision, _) in opened.items():
        median = statistics.median(times[name])
        low, _, high = statistics.quantiles(times[name], n=4)
        found.append(
            Timing(
                contender=name,
                precision=precision,
                batch=batch,
                median_ms=median,
                spread_ms=high - low,
                ms_per_box=median / batch,
                gflops=report.gflop_per_box * batch / median * 1e3,
                difference=differences[name],
                correct=differences[name] <= TOLERANCE[precision],
            )
        )
    return found


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
