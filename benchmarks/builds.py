"""What each engine builds from a network, in each precision, and how it was checked.

    python benchmarks/builds.py    # writes benchmarks/builds.md and .json

The published protocols with random weights and random calibration cases; and the small presets,
trained for a few epochs on a simulated cohort, with cases from it. The drift is what the narrow
type changes of the result, emulated on the CPU: volumes rounded before and after every operation,
on 7 cases. Where a network drifts beyond the tolerance, the export refuses; here the engine is
built all the same, to have its size and time, and is marked. Building times are single: a build is
made once.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from hyperfusion_rt.artifact.plan import write_plan
from hyperfusion_rt.config import Config, load_config, preset
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.simulate import simulate_cohort
from hyperfusion_rt.errors import EngineError, HyperFusionError, MissingExtraError
from hyperfusion_rt.export.build import load_cases, prepare
from hyperfusion_rt.export.compare import Expected, compare
from hyperfusion_rt.export.fuse.fuser import plan_ensemble
from hyperfusion_rt.export.ir.ensemble import Ensemble
from hyperfusion_rt.export.ir.typed import Typed
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.export.precision import blame, choose, drift
from hyperfusion_rt.export.targets.tensorrt_engine import in_its_place, runs_here
from hyperfusion_rt.export.targets.triton_server import write_repository
from hyperfusion_rt.machine import describe_machine
from hyperfusion_rt.models import network_of
from hyperfusion_rt.runtime.engines.choose import open_file
from hyperfusion_rt.runtime.engines.registry import ENGINES, TENSORRT
from hyperfusion_rt.runtime.engines.trt_build import BuildOptions, build
from hyperfusion_rt.training.results import EXPORT_CASES, load_member
from hyperfusion_rt.training.train import train

HERE = Path(__file__).parent
RULE = "confidence_weighted"
Row = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """One to build. `weights`: where they come from."""

    name: str
    weights: str
    ensemble: Ensemble
    expected: Expected
    encoders: list[TabularEncoder]


def published(task: str, features: int, members: int) -> Network:
    """A published protocol; random weights."""
    config: Config = preset(task, {"network": {"features": features}})
    boxes, width = len(config.preprocessing.boxes), 15 if task == "ad" else 2
    networks = []
    for seed in range(members):
        torch.manual_seed(seed)
        networks.append(network_of(config, width).eval())
    rng = np.random.default_rng(0)
    image = rng.standard_normal((EXPORT_CASES, boxes, 1, *config.preprocessing.shape), np.float32)
    rows = [rng.standard_normal((EXPORT_CASES, width), np.float32) for _ in networks]
    encoders = [TabularEncoder.passthrough(width)] * members
    rule = RULE if task == "ad" else "mean"
    made = prepare(networks, encoders, (image, rows, False), config, rule)
    return Network(f"{task}, f = {features}, {members} x {boxes}", "random", *made, encoders)


def trained(task: str, members: int, subjects: int, epochs: int, folder: Path) -> Network:
    """A small preset, trained on a simulated cohort."""
    root = folder / task
    simulate_cohort(root, task=task, subjects=subjects, spacing=2, seed=1)
    change = {"training": {"members": members, "epochs": epochs}}
    config = load_config(root / "hfrt.yaml", change)
    run = train(config, root, name="builds")
    rule = RULE if task == "ad" else "mean"
    networks = [load_member(run, member) for member in run.members]
    encoders = [member.encoder for member in run.members]
    made = prepare(networks, encoders, load_cases(run), config, rule)
    boxes = len(config.preprocessing.boxes)
    name = f"{config.preset}, f = {config.network.features}, {members} x {boxes}"
    return Network(name, f"{epochs} epochs on {subjects} simulated subjects", *made, encoders)


def drifts(network: Network) -> Iterator[tuple[Typed, Row]]:
    """The narrow types of a network, and what each costs."""
    ensemble, expected = network.ensemble, network.expected
    for precision in ("fp32", "fp16", "bf16"):
        typed = choose(ensemble, precision, expected)
        found, limit = drift(ensemble, typed, expected), expected.drift
        layer, alone = blame(ensemble, typed, expected) if precision != "fp32" else ("", 0.0)
        yield (
            typed,
            {
                "network": network.name,
                "weights": network.weights,
                "precision": precision,
                "narrow": len(typed.narrow),
                "kept": dict(typed.kept),
                "drift": found,
                "tolerance": limit,
                "refused": found > limit,
                "worst_layer": layer,
                "alone": alone,
            },
        )


def made_by(engine: str, network: Network, typed: Typed, folder: Path) -> Row:
    """One engine of a network: its time, size and layers, and how it was checked."""
    ensemble, expected, precision = network.ensemble, network.expected, typed.precision
    path = folder / f"model.{engine}"
    row: Row = {"network": network.name, "engine": engine, "precision": precision}
    start = time.perf_counter()
    try:
        if engine in TENSORRT:
            write_onnx(ensemble, folder / "source.onnx", typed)
            built = build(engine, folder / "source.onnx", BuildOptions())
            row |= {"seconds": built.seconds, "layers": built.layers, "version": built.version}
            path.write_bytes(built.content)
            ran = runs_here(engine, built, BuildOptions())
            row["status"] = "run" if ran else "built, not run"
        else:
            if engine == "onnx":
                write_onnx(ensemble, path)
                row["layers"] = sum(len(g.nodes) for g in (ensemble.trunk, ensemble.head))
            else:
                plan = plan_ensemble(ensemble, precision=precision)
                write_plan(plan, path)
                row["layers"] = len(plan.trunk.ops) + len(plan.head.ops)
            row["seconds"] = time.perf_counter() - start
            row["status"] = "run"
        row["bytes"] = path.stat().st_size
        if row["status"] == "run":
            runner = open_file(engine, path)
            found = compare(runner, expected, name=path.name, precision=precision)
        else:
            found = in_its_place(
                ensemble, folder / "source.onnx", expected, precision, typed.narrow
            )
        row |= {
            "checked_by": found.by,
            "difference": found.largest_difference,
            "tolerance": found.tolerance,
            "drift": found.drift,
        }
    except (MissingExtraError, EngineError) as error:
        row |= {"status": "not built", "why": str(error)}
    except HyperFusionError as error:
        row |= {"status": f"{row['status']}, **refused**", "why": str(error)}
    return row


def repository(network: Network, typed: Typed, folder: Path) -> Row:
    """A model repository, which is validated when it is written."""
    classes = ("CN", "MCI", "AD") if network.expected.classes else ()
    task = "ad" if classes else "brain-age"
    models = write_repository(
        folder / f"served-{typed.precision}",
        task,
        network.ensemble,
        network.encoders,
        classes,
        network.expected.image,
        typed=typed,
        backend="onnx",
        options=BuildOptions(),
        force=True,
    )
    files = [path for model in models for path in model.rglob("*") if path.is_file()]
    return {
        "network": network.name,
        "precision": typed.precision,
        "models": [model.name for model in models],
        "bytes": sum(path.stat().st_size for path in files),
        "validated": "ModelConfig, as tritonclient ships it; against the graphs",
    }


def tables(content: Row) -> list[str]:
    """The page."""
    lines = [
        "# Engines built: time, size, layers, precision",
        "",
        "Written by `python benchmarks/builds.py`. Networks: members x boxes; `ad` and `brain-age` "
        "as published, with random weights on random cases; `-small` trained a little on a "
        "simulated cohort, with its cases. Every engine is one file with all members and boxes. "
        "TensorRT: batch 1 to 32, for compute capabilities "
        f"{', '.join(map(str, content['capabilities']))}; layers as its parser "
        "makes them, constants included. Times of one build, comparison not "
        "included. Refused: the export would stop; it is built here to have its size and time.",
        "",
        f"Machine: {'; '.join(f'{k} {v}' for k, v in content['machine'].items())}.",
        "",
        "| network | engine | precision | build s | MB | layers | status | checked by | "
        "outputs off float64 by, of tolerance | result off by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in content["builds"]:
        built = "bytes" in r
        size = f"{r['seconds']:.1f} | {r['bytes'] / 1e6:.1f} | {r['layers']}" if built else "| |"
        checked = f"{r.get('why', '')} | | "
        if "difference" in r:
            checked = (
                f"{r['checked_by']} | {r['difference']:.0e} of {r['tolerance']:.0e} "
                f"| {r['drift']:.0e}"
            )
        lines.append(
            f"| {r['network']} | {r['engine']} | {r['precision']} | {size} | {r['status']} "
            f"| {checked} |"
        )
    lines += [
        "",
        "## Model repositories for Triton Inference Server",
        "",
        "| network | precision of the trunk | models | MB | validated |",
        "|---|---|---|---|---|",
    ]
    for r in content["repositories"]:
        lines.append(
            f"| {r['network']} | {r['precision']} | {', '.join(r['models'])} "
            f"| {r['bytes'] / 1e6:.1f} | {r['validated']} |"
        )
    lines += [
        "",
        "## Drift of the result by precision, emulated",
        "",
        "Probability (tolerance 0.01) or years (0.1) on 7 cases. A layer's own drift: with that "
        "layer alone in the type.",
        "",
        "| network | weights | precision | operations in it | kept in fp32 by range | drift | "
        "export | layer with the largest drift of its own |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in content["drift"]:
        layer = f"{r['worst_layer']}: {r['alone']:.1e}" if r["worst_layer"] else ""
        lines.append(
            f"| {r['network']} | {r['weights']} | {r['precision']} | {r['narrow']} "
            f"| {len(r['kept'])} | {r['drift']:.1e} | {'**refused**' if r['refused'] else 'yes'} "
            f"| {layer} |"
        )
    return lines


def main() -> None:
    """Build, check and write the tables."""
    content: Row = {
        "machine": describe_machine(),
        "capabilities": BuildOptions().capabilities,
        "builds": [],
        "repositories": [],
        "drift": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for make in (
            partial(published, "ad", 16, 4),
            partial(published, "ad", 4, 4),
            partial(published, "brain-age", 16, 1),
            partial(trained, "ad", 2, 160, 8, folder),
            partial(trained, "brain-age", 1, 160, 8, folder),
        ):
            network = make()
            print(network.name, flush=True)
            for typed, row in drifts(network):
                content["drift"].append(row)
                for engine, kind in ENGINES.items():
                    if typed.precision in kind.precisions and engine != "torch":
                        content["builds"].append(made_by(engine, network, typed, folder))
                if typed.precision != "bf16":
                    content["repositories"].append(repository(network, typed, folder))
    lines = tables(content)
    (HERE / "builds.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (HERE / "builds.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
