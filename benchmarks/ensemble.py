"""The published protocol, four members on two hippocampi, as one engine call: how fast?

    python benchmarks/ensemble.py    # writes benchmarks/ensemble.md and .json

Random weights (time does not depend on them). Every contender computes all eight outputs of one
subject and what they say together; each is compared with the same outputs in float64 first. They
take turns, with the same threads; the figures are medians, the ratio the median of the rounds'
ratios. The fixed cost is the time of the same call on the smallest box that the network takes: what
a subject costs beyond its operations.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from torch import nn

from hyperfusion_rt.bench.race import race
from hyperfusion_rt.config import preset
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.export.build import folded
from hyperfusion_rt.export.compare import Expected
from hyperfusion_rt.export.fuse.fuser import plan, plan_ensemble
from hyperfusion_rt.export.ir.ensemble import join
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.machine import describe_machine, usable_cores
from hyperfusion_rt.models import network_of
from hyperfusion_rt.rules import combine
from hyperfusion_rt.runtime.engines.native import NativeEngine
from hyperfusion_rt.runtime.engines.ort import OnnxEngine

HERE = Path(__file__).parent
RULE = "confidence_weighted"
SMALLEST = (16, 16, 16)
BOXES, WIDTH = 2, 15
Row = dict[str, Any]
Call = Callable[[Any, Any], tuple[Any, Any]]  # image, rows → raw outputs, result


def contenders(
    networks: list[nn.Module], shape: tuple[int, ...], threads: int, scratch: Path
) -> dict[str, Call]:
    """One call and eight calls of each engine."""
    encoder = TabularEncoder.passthrough(WIDTH)
    graphs = [folded(network, (1, *shape), encoder) for network in networks]
    ensemble = join(graphs, [WIDTH] * len(graphs), BOXES, classes=True, rule=RULE)
    write_onnx(ensemble, scratch / "whole.onnx")
    singles: dict[str, list[Any]] = {"native": [], "onnx": []}
    for index, graph in enumerate(graphs):
        write_onnx(graph, scratch / f"{index}.onnx")
        singles["onnx"].append(OnnxEngine(scratch / f"{index}.onnx", threads))
        singles["native"].append(NativeEngine(plan(graph, folded=True), threads))
    whole = {
        "native": NativeEngine(plan_ensemble(ensemble), threads),
        "onnx": OnnxEngine(scratch / "whole.onnx", threads),
    }

    def one(engine: Any) -> Call:
        def call(image: Any, rows: Any) -> Any:
            found = engine.run(image, np.concatenate(rows, 1))
            return found["members"], found["output"][0]

        return call

    def eight(engines: list[Any]) -> Call:
        def call(image: Any, rows: Any) -> Any:
            raw = np.stack(
                [
                    [engine.run(image[:, n, None], row)["output"][0] for n in range(BOXES)]
                    for engine, row in zip(engines, rows, strict=True)
                ]
            )
            return raw.reshape(1, -1), combine(raw, True, RULE)

        return call

    def batched(engines: list[Any]) -> Call:
        def call(image: Any, rows: Any) -> Any:
            raw = np.stack(
                [
                    engine.run(image[0, :, None], np.repeat(row, BOXES, 0))["output"]
                    for engine, row in zip(engines, rows, strict=True)
                ]
            )
            return raw.reshape(1, -1), combine(raw, True, RULE)

        return call

    found: dict[str, Call] = {}
    for name in ("native", "onnx"):
        found[f"{name}, one call"] = one(whole[name])
        found[f"{name}, eight calls"] = eight(singles[name])
        found[f"{name}, a call per member"] = batched(singles[name])
    return found


def measure(rounds: int, threads: int, features: int, scratch: Path) -> list[Row]:
    """A row per contender: ms per subject, fixed cost, differences."""
    config = preset("ad", {"network": {"features": features}})
    networks = []
    for seed in range(4):
        torch.manual_seed(seed)
        networks.append(network_of(config, WIDTH).eval())
    rng = np.random.default_rng(0)
    times: dict[str, dict[str, list[float]]] = {}
    rows: list[Row] = []
    for kind, shape in (("subject", config.preprocessing.shape), ("fixed", SMALLEST)):
        image = rng.standard_normal((1, BOXES, *shape), np.float32)
        table = [rng.standard_normal((1, WIDTH), np.float32) for _ in networks]
        cases = image[:, :, None]
        expected = Expected.of(networks, cases, table, real=False, classes=True, rule=RULE)
        calls = contenders(networks, shape, threads, scratch)
        if kind == "subject":
            scale = float(np.abs(expected.outputs).max())
            made = {name: call(image, table) for name, call in calls.items()}
            for name, (raw, result) in made.items():
                eight = made[name.split(",")[0] + ", eight calls"]
                rows.append(
                    {
                        "features": features,
                        "contender": name,
                        "off_float64": float(
                            np.abs(raw - expected.outputs.reshape(1, -1)).max() / scale
                        ),
                        "result_off_float64": float(np.abs(result - expected.results[0]).max()),
                        "result_off_eight_calls": float(np.abs(result - eight[1]).max()),
                    }
                )
        timed = {n: partial(call, image, table) for n, call in calls.items()}
        times[kind] = race(timed, rounds)
    for row in rows:
        name = row["contender"]
        row["ms"] = statistics.median(times["subject"][name])
        row["fixed_ms"] = statistics.median(times["fixed"][name])
        # Of each round: what else the machine does in a round meets both.
        eight = times["subject"][name.split(",")[0] + ", eight calls"]
        pairs = zip(times["subject"][name], eight, strict=True)
        low, middle, high = statistics.quantiles([one / other for one, other in pairs], n=4)
        row |= {"times_eight_calls": middle, "quartiles": (low, high)}
    return rows


def main(rounds: int = 31, threads: int | None = None) -> None:
    """Measure and write the tables."""
    threads = threads or usable_cores()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for f in (16, 4) for row in measure(rounds, threads, f, Path(folder))]
    machine = describe_machine()
    lines = [
        "# The published protocol as one engine call",
        "",
        f"Written by `python benchmarks/ensemble.py`. Four members on two hippocampi (64x96x64), "
        f"combined by `{RULE}`; medians of {rounds}, in turn, {threads} threads, fp32. Fixed cost: "
        f"the same call on boxes of {'x'.join(map(str, SMALLEST))} voxels.",
        "",
        f"Machine: {'; '.join(f'{k} {v}' for k, v in machine.items())}.",
        "",
        "| f | contender | ms per subject | of eight calls' time (quartiles) | fixed ms "
        "| outputs off float64 by | result off float64 by | result off eight calls by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['features']} | {r['contender']} | {r['ms']:.1f} | {r['times_eight_calls']:.3f} "
            f"({r['quartiles'][0]:.3f} to {r['quartiles'][1]:.3f}) | {r['fixed_ms']:.2f} "
            f"| {r['off_float64']:.0e} | {r['result_off_float64']:.0e} "
            f"| {r['result_off_eight_calls']:.0e} |"
        )
    (HERE / "ensemble.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {"machine": machine, "threads": threads, "rounds": rounds, "rows": rows}
    (HERE / "ensemble.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
