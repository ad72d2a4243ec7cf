"""`hfrt bench`: engines and peers in one run, on the same inputs, after a check of correctness.

Every contender gets the same thread count. They take turns (A B C, A B C, ...), so that a noisy
neighbour hits all of them; the figure is the median. Beside it stand the operations over the time
(GFLOP/s) and the machine's own limit, measured in the same run.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from hyperfusion_rt.artifact.manifest import Artifact, only_artifact
from hyperfusion_rt.bench.chart import chart
from hyperfusion_rt.bench.contenders import Call, Contender, Inputs, Subject, contenders
from hyperfusion_rt.bench.options import BenchOptions
from hyperfusion_rt.bench.race import end_to_end, machine_limits, race
from hyperfusion_rt.bench.result import Benchmark, Timing
from hyperfusion_rt.config import preset
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.errors import ConfigError, HyperFusionError, MissingExtraError
from hyperfusion_rt.export import export_run
from hyperfusion_rt.files import sha256, write_text
from hyperfusion_rt.machine import describe_machine, usable_cores
from hyperfusion_rt.models import network_of
from hyperfusion_rt.runtime.options import PredictOptions
from hyperfusion_rt.runtime.predictor import Predictor
from hyperfusion_rt.training.imported import run_from_state
from hyperfusion_rt.training.run_folder import Run

OnStep = Callable[[str], None]
# Largest difference from float64, relative to the outputs' scale, that still counts as right.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "int8": 0.25}
# End-to-end times are medians over at most so many scans.
_SCANS = 20


def bench(options: BenchOptions, on_step: OnStep | None = None) -> Benchmark:
    """Find or make the network, time it, and write `OUT.json` and `OUT.png`.

    `on_step` is told what is done now.

    Raises:
        HyperFusionError: there is no artifact or run, or nothing could be timed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", "bench", "the chart") from None
    with tempfile.TemporaryDirectory() as scratch:
        if (name := options.preset_name) is not None:
            if on_step is not None:
                on_step("exporting the preset with random weights")
            run = random_run(name, options.features, Path(scratch))
            source: Run | Path = run
            artifact = export_run(run, Path(scratch) / f"{name}.hfrt")
        else:
            artifact = Artifact.open(options.artifact or only_artifact(Path()))
            source = _source_of(artifact, options.run)
        found = measure(source, artifact, options, _cases(artifact, options), on_step)
        found.artifact = "" if options.preset_name is not None else artifact.label
    out = options.out
    write_text(out.with_name(f"{out.name}.json"), json.dumps(found.as_dict(), indent=2) + "\n")
    chart(found, out.with_name(f"{out.name}.png"))
    return found


def random_run(preset_name: str, features: int | None, parent: Path, width: int = 15) -> Run:
    """A run with the preset's network and random weights, in `parent`; for timing only."""
    change = {"network": {"features": features}} if features else {}
    config = preset(preset_name, change)
    width = width if config.network.architecture == "ad" else 2
    torch.manual_seed(0)
    network = network_of(config, width)
    encoder = TabularEncoder.passthrough(width)
    state = network.state_dict()
    return run_from_state(state, config, encoder, parent, name=preset_name, source="random")


def _source_of(artifact: Artifact, run: Path | None) -> Run | Path:
    """What the artifact was made of: its run, or the ONNX file that was imported.

    Raises:
        ConfigError: it is not there, or another.
    """
    network = artifact.manifest.provenance.network
    if network.get("architecture") == "imported":
        file = run or artifact.folder.resolve().parent / network["file"]
        if not file.is_file():
            raise ConfigError(
                f"{file}: the ONNX file behind {artifact.folder} is not there, and every contender "
                "needs it; name it with `run`",
                code="bench-no-run",
            )
        if sha256(file) != network["sha256"]:
            raise ConfigError(
                f"{artifact.folder} was imported from another {network['file']} than {file}",
                code="bench-no-run",
            )
        return file
    name = artifact.manifest.provenance.run
    folder = run or artifact.folder.resolve().parent / "runs" / name
    if not folder.exists():
        raise ConfigError(
            f"{folder}: the run behind {artifact.folder} is not there, and the torch contenders "
            "need its weights; name it with `run`",
            code="bench-no-run",
        )
    found = Run.open(folder)
    if found.folder.name != name:
        raise ConfigError(
            f"{artifact.folder} was exported from run '{name}', not from {folder}",
            code="bench-no-run",
        )
    return found


def _cases(artifact: Artifact, options: BenchOptions) -> list[Case]:
    """The scans to time from the file: those given, or the ones that stand beside the artifact."""
    if options.preset_name is not None:
        return []
    root = artifact.folder.resolve().parent
    scans = options.scans or root / "scans"
    tabular = options.tabular
    if artifact.manifest.members[0].columns:
        tabular = tabular or root / "data.csv"
    if not scans.exists() or (tabular is not None and not tabular.exists()):
        return []
    predictor = Predictor(artifact, PredictOptions(threads=options.threads))
    return predictor.gather(scans, tabular).cases[:_SCANS]


def measure(
    source: Run | Path,
    artifact: Artifact,
    options: BenchOptions,
    cases: Sequence[Case] = (),
    on_step: OnStep | None = None,
) -> Benchmark:
    """Time the artifact's engines and their peers on one box and member 0's network.

    `source`: the run, or the ONNX file that was imported. `cases`: scans with rows for the
    end-to-end time.

    Raises:
        HyperFusionError: the artifact, an engine or the run cannot be used.
    """
    threads = options.threads or usable_cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        predictor = Predictor(artifact, PredictOptions(threads=threads))
        with tempfile.TemporaryDirectory() as scratch:
            if isinstance(source, Run):
                subject = Subject.of(source, Path(scratch))
            else:
                subject = Subject.imported(source, artifact, Path(scratch))
            found = _empty(artifact, subject, threads, options.rounds)
            engines = {entry.engine: entry.precision for entry in artifact.manifest.engines}
            for batch in options.batches:
                inputs = subject.inputs(batch)
                named = contenders(subject, engines, threads, inputs)
                chosen = {name: one for name, one in named.items() if _wanted(name, options.only)}
                opened = dict(_open(chosen, inputs, found, on_step))
                found.timings += _time(opened, inputs, subject, found, on_step)
        if cases:
            found.end_to_end = end_to_end(predictor, cases)
    finally:
        torch.set_num_threads(before)
    return found


def _wanted(name: str, only: Sequence[str]) -> bool:
    return not only or any(name.startswith(beginning) for beginning in only)


def _empty(artifact: Artifact, subject: Subject, threads: int, rounds: int) -> Benchmark:
    """The network and this machine with its limits; no timing yet."""
    limit, copy = machine_limits(threads)
    provenance = artifact.manifest.provenance
    network = provenance.network
    kind = network.get("import") or network.get("architecture") or network["task"]
    size = f", f = {network['features']}" if "features" in network else ""
    return Benchmark(
        network=f"{kind}, {network['fusion']}{size}, {'x'.join(map(str, subject.image.shape[2:]))}",
        gflop_per_box=provenance.gflop,
        threads=threads,
        rounds=rounds,
        limit_gflops=limit,
        limit_gbs=copy,
        machine=describe_machine(),
    )


def _open(
    chosen: dict[str, Contender], inputs: Inputs, found: Benchmark, on_step: OnStep | None
) -> Iterator[tuple[str, tuple[str, Call]]]:
    """(name, (precision, call)) of every contender that runs here; `found` notes the others."""
    flags = found.machine["instruction sets"]
    for name, contender in chosen.items():
        if contender.precision == "bf16" and "bf16" not in flags:
            found.left_out[name] = "this processor has no bf16 instructions"
            continue
        if on_step is not None:
            on_step(f"batch {len(inputs[0])}: preparing {name}")
        try:
            call = contender.open()
            call(*inputs)
        except ImportError as error:
            package = error.name or name.split()[0]
            found.left_out[name] = str(MissingExtraError(package, contender.extra, name))
            continue
        except Exception as error:  # a peer that fails is a row of the report, not its end
            found.left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        yield name, (contender.precision, call)


def _time(
    opened: dict[str, tuple[str, Call]],
    inputs: Inputs,
    subject: Subject,
    found: Benchmark,
    on_step: OnStep | None,
) -> list[Timing]:
    """Compare every contender with float64, then race them."""
    if not opened:
        raise HyperFusionError(
            "no contender is left to time: see which names `only` takes", code="bench-no-contender"
        )
    batch = len(inputs[0])
    differences = {
        name: subject.difference(call(*inputs), batch) for name, (_, call) in opened.items()
    }

    def on_round(turn: int) -> None:
        if on_step is not None:
            on_step(f"batch {batch}: round {turn + 1} of {found.rounds}")

    calls = {name: partial(call, *inputs) for name, (_, call) in opened.items()}
    times = race(calls, found.rounds, on_round)
    timings = []
    for name, (precision, _) in opened.items():
        median = statistics.median(times[name])
        low, _, high = statistics.quantiles(times[name], n=4)
        timings.append(
            Timing(
                contender=name,
                precision=precision,
                batch=batch,
                median_ms=median,
                spread_ms=high - low,
                low_ms=low,
                high_ms=high,
                ms_per_box=median / batch,
                gflops=found.gflop_per_box * batch / median * 1e3,
                difference=differences[name],
                correct=differences[name] <= TOLERANCE[precision],
            )
        )
    return timings
