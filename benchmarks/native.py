"""What does each kernel of the native engine reach, and what bounds it?

    python benchmarks/native.py             # writes native.md, native.json, native-roofline.png
    python benchmarks/native.py --redraw    # the picture alone, from the .json

Every layer of the published networks beside the same layer inside OpenVINO; `hyper_conv3d` with
weights of its own per sample; networks that others wrote (MONAI); one row through the head; memory
and start. Everything is compared with float64 before it is timed. Contenders take turns, the
figures are medians, the threads are the same.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from roofline import chart
from torch import nn

from hyperfusion_rt._native import StepKind
from hyperfusion_rt.artifact.operations import Conv, HyperConv
from hyperfusion_rt.bench.contenders import open_onnxruntime, open_openvino
from hyperfusion_rt.bench.measure import random_run
from hyperfusion_rt.bench.race import machine_limits, race
from hyperfusion_rt.data.simulate import simulate_cohort
from hyperfusion_rt.export import export_run
from hyperfusion_rt.export.build import folded
from hyperfusion_rt.export.fuse.fuser import plan
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.kernels import hyper_conv3d
from hyperfusion_rt.kernels.hyper_conv3d import _conv3d as composition
from hyperfusion_rt.machine import describe_machine, usable_cores
from hyperfusion_rt.models import HyperConv3d
from hyperfusion_rt.runtime.engines.native import NativeEngine
from hyperfusion_rt.training.results import load_member

HERE = Path(__file__).parent
NETWORKS = (("ad", 16), ("ad", 4), ("brain-age", 16))
Row = dict[str, Any]


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median ms of each, in turn."""
    return {name: statistics.median(ms) for name, ms in race(calls, rounds).items()}


def off(found: Any, expected: Any) -> float:
    """The largest difference, over the largest output."""
    expected = np.asarray(expected, np.float64)
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def openvino_layers(path: Path, threads: int, image: Any, tabular: Any, rounds: int) -> Row:
    """Median ms of each node inside OpenVINO f32, by its name in the ONNX file."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    shapes = {"image": image.shape, "tabular": tabular.shape}
    model.reshape({i.any_name: list(shapes[i.any_name]) for i in model.inputs})
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(
        model, "CPU", {**options, "INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
    )
    request = compiled.create_infer_request()
    feed = {"image": image, "tabular": tabular}
    times: dict[str, list[float]] = {}
    for _ in range(rounds + 2):
        request.infer({i.any_name: feed[i.any_name] for i in compiled.inputs})
        for node in request.profiling_info:
            times.setdefault(node.node_name, []).append(node.real_time.total_seconds() * 1e3)
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def _node(name: str) -> str:
    """The node of our ONNX file that OpenVINO's node came from."""
    return name.split("/")[0].split(".")[0]


def layers(preset: str, features: int, threads: int, rounds: int, scratch: Path) -> list[Row]:
    """One row per operation of the trunk."""
    run = random_run(preset, features, scratch)
    encoder = run.members[0].encoder
    shape = run.config.preprocessing.shape
    graph = folded(load_member(run, run.members[0]), (1, *shape), encoder)
    made = plan(graph, folded=True)
    engine = NativeEngine(made, threads)
    rounded = NativeEngine(plan(graph, folded=True, precision="bf16"), threads)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, 1, *shape), np.float32)
    tabular = rng.standard_normal((1, encoder.width), np.float32)
    write_onnx(graph, scratch / "layers.onnx")
    peers = openvino_layers(scratch / "layers.onnx", threads, image, tabular, rounds)
    seconds: list[list[list[float]]] = [[], []]
    for _ in range(rounds + 2):
        for engine_seconds, part in zip(seconds, (engine.trunk, rounded.trunk), strict=True):
            part.engine.profile(False)
            part([image])
            part.engine.profile(True)
            part([image])
            engine_seconds.append(part.engine.seconds)
    exact, half = (np.median(np.array(s[2:]), axis=0) * 1e3 for s in seconds)
    rows: list[Row] = []
    carried = 0.0
    before: tuple[str, ...] = ()
    for op, step, ms, bf16 in zip(
        made.trunk.ops, engine.trunk.engine.steps, exact, half, strict=True
    ):
        if step == StepKind.planar_ring:
            carried, before = op.gflop, op.nodes
            continue
        work, carried = op.gflop + carried, 0.0
        if work < 0.005:
            continue
        inside = [ms for name, ms in peers.items() if _node(name) in {*op.nodes, *before}]
        before = ()
        tile = op.tile if isinstance(op, Conv | HyperConv) else None
        rows.append(
            {
                "network": f"{preset}, f = {features}",
                "layer": op.layer,
                "how": " ".join([str(step), *(["x".join(map(str, tile))] if tile else [])]),
                "gflop": work,
                "mb": op.megabytes,
                "ms": float(ms),
                "bf16_ms": float(bf16),
                "openvino_ms": sum(inside),
            }
        )  # fmt: skip
    return rows


class OneHyper(nn.Module):
    """A generated convolution alone."""

    def __init__(self, channels: int, k: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = HyperConv3d(
            channels, channels, 3, padding=1, condition_features=k, embedding=nn.Identity(),
            embedding_features=k,
        )  # fmt: skip

    def forward(self, image: torch.Tensor, tabular: torch.Tensor) -> torch.Tensor:
        """`[B, C, D, H, W]`, `[B, K]` → `[B, C, D, H, W]`."""
        y: torch.Tensor = self.layer(image, tabular)
        return y


def hyper_conv(threads: int, rounds: int, scratch: Path) -> list[Row]:
    """`hyper_conv3d`, 64 → 64, 3x3x3, 16x24x16, K = 8: ours beside every form that others offer."""
    module, shape, k = OneHyper(64, 8).eval(), (64, 16, 24, 16), 8
    graph = fold(lower(module, {"image": shape, "tabular": (k,)}))
    engine = NativeEngine(plan(graph, folded=True), threads)
    write_onnx(graph, scratch / "hyper.onnx")
    e, big, h, g0, h0 = module.layer.hyper_net(torch.eye(k))
    del e
    rows = []
    for batch in (1, 8):
        rng = np.random.default_rng(batch)
        image = rng.standard_normal((batch, *shape), np.float32)
        tabular = rng.standard_normal((batch, k), np.float32)
        x, t = torch.from_numpy(image), torch.from_numpy(tabular)

        def loop(x: torch.Tensor = x, t: torch.Tensor = t) -> Any:
            with torch.inference_mode():
                return torch.cat(
                    [
                        F.conv3d(
                            x[i : i + 1],
                            g0 + torch.tensordot(t[i], big, 1),
                            h0 + torch.tensordot(t[i], h, 1),
                            padding=1,
                        )
                        for i in range(len(x))
                    ]
                ).numpy()

        def grouped(x: torch.Tensor = x, t: torch.Tensor = t) -> Any:
            weights = big, h, g0, h0
            with torch.inference_mode():
                return composition(x, t, *weights, [1] * 3, [1] * 3, [1] * 3, 1).numpy()

        def op(x: torch.Tensor = x, t: torch.Tensor = t) -> Any:
            with torch.inference_mode():
                return hyper_conv3d(x, t, big, h, g0, h0, padding=1).numpy()

        with torch.no_grad():
            exact = OneHyper(64, 8).double()
            expected = exact(x.double(), t.double()).numpy()
        path = scratch / "hyper.onnx"
        peers = {"onnxruntime": open_onnxruntime(path, threads)}
        peers["openvino f32"] = open_openvino(path, threads, batch, "f32")
        calls = {
            "hfrt native": lambda i=image, t=tabular: engine(i, t),
            "hfrt op, in torch": op,
            "torch, loop": loop,
            "torch, grouped": grouped,
            **{k: lambda c=c, i=image, t=tabular: c(i, t) for k, c in peers.items()},
        }
        found = {name: off(call(), expected) for name, call in calls.items()}
        for name, ms in medians(calls, rounds).items():
            rows.append({"batch": batch, "contender": name, "ms": ms, "off": found[name]})
    return rows


def monai_networks(threads: int, rounds: int, scratch: Path) -> list[Row]:
    """Networks that we did not write, one channel of 96³ voxels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks import nets

        torch.manual_seed(0)
        networks = {
            "ResNet18": nets.resnet18(spatial_dims=3, n_input_channels=1, num_classes=3),
            "DenseNet121": nets.DenseNet121(spatial_dims=3, in_channels=1, out_channels=3),
        }
    rows = []
    image = np.random.default_rng(0).standard_normal((1, 1, 96, 96, 96), np.float32)
    none = np.zeros((1, 0), np.float32)
    for name, network in networks.items():
        graph = lower(network, {"image": (1, 96, 96, 96)})
        better = fold(graph)
        engine = NativeEngine(plan(better, folded=True), threads)
        calls: dict[str, Callable[[], Any]] = {"hfrt native": lambda e=engine: e(image, none)}
        for form, content in (("folded", better), ("as it is", graph)):
            path = scratch / f"{name}-{form.split()[0]}.onnx"
            write_onnx(content, path)
            vino = open_openvino(path, threads, 1, "f32")
            calls[f"openvino f32, {form}"] = lambda v=vino: v(image, none)
        with torch.inference_mode():
            expected = network.double().eval()(torch.from_numpy(image).double()).numpy()
        network.float()
        found = {key: off(call(), expected) for key, call in calls.items()}
        for key, ms in medians(calls, rounds).items():
            rows.append({"network": name, "contender": key, "ms": ms, "off": found[key]})
    return rows


_START = """
import re, sys
import numpy as np
from hyperfusion_rt.runtime.engine_native import NativeEngine
from pathlib import Path
e = NativeEngine(Path(sys.argv[1]), int(sys.argv[2]))
shape = [int(n) for n in sys.argv[3].split(",")]
x = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
e(x, np.eye(1, int(sys.argv[4]), dtype=np.float32))
# Not ru_maxrss, which begins with the size of the process that started this one.
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def small_figures(threads: int, rounds: int, scratch: Path) -> Row:
    """One row through the head (µs), load time (ms), the whole process's memory (MB)."""
    found: Row = {}
    for preset in ("ad", "brain-age"):
        run = random_run(preset, 16, scratch / preset)
        artifact = export_run(run, scratch / f"{preset}.hfrt", engines=["native"])
        path = artifact.file("native")
        loads = []
        for _ in range(rounds):
            start = time.perf_counter()
            engine = NativeEngine(path, threads)
            loads.append(1e3 * (time.perf_counter() - start))
        shape, width = run.config.preprocessing.shape, run.members[0].encoder.width
        head = engine.head
        inputs = [np.zeros((1, *s), np.float32) for s in head.program.inputs.values()]
        points = []
        for _ in range(2000):
            start = time.perf_counter()
            head(inputs)
            points.append(1e6 * (time.perf_counter() - start))
        boxes = len(run.config.preprocessing.boxes)
        sizes = ",".join(map(str, (boxes, *shape)))
        command = [sys.executable, "-c", _START, str(path), str(threads), sizes, str(width)]
        memory = [float(subprocess.check_output(command)) for _ in range(3)]
        found[preset] = {
            "load_ms": statistics.median(loads),
            "head_us": statistics.median(points),
            "peak_mb": statistics.median(memory),
        }
    return found


def process_ms(rounds: int, scratch: Path) -> float:
    """Median ms of `hfrt infer` on one 1 mm scan, AD f = 16, from process start to exit."""
    scratch.mkdir()
    artifact = export_run(random_run("ad", 16, scratch), scratch / "x.hfrt", engines=["native"])
    simulate_cohort(scratch / "cohort", task="ad", subjects=1, seed=1, spacing=1)
    (scan,) = (scratch / "cohort" / "scans").iterdir()
    names = artifact.manifest.members[0].names
    row = [scan.name.split(".")[0], *["0.5"] * len(names)]
    table = scratch / "one.csv"
    table.write_text(",".join(["subject", *names]) + "\n" + ",".join(row) + "\n")
    command = [str(Path(sys.executable).with_name("hfrt")), "infer", str(scan), "--tabular"]
    command += [str(table), "--artifact", str(artifact.folder), "--out", str(scratch / "p.csv")]
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def markdown(content: Row) -> str:
    """The page."""
    machine = "; ".join(f"{k} {v}" for k, v in content["machine"].items())
    limit = content["limit_gflops"]
    lines = [
        "# The native engine, kernel by kernel", "",
        "Written by `python benchmarks/native.py`. Medians, contenders in turn, "
        f"{content['threads']} threads each, checked against float64 before timing.", "",
        f"Machine: {machine}.", "",
        f"Limits in this run: {limit:.0f} GFLOP/s (float32 multiply-adds in registers), "
        f"{content['limit_gbs']:.0f} GB/s (copy, read and write). GFLOP/s are those of the direct "
        "algorithm: Winograd multiplies less, so its share of the limit may pass 100 %. OpenVINO's "
        "time of a layer is the sum of its nodes that our operation fuses.", "",
        "![roofline](native-roofline.png)", "",
        "| network | layer | how | GFLOP | ms | GFLOP/s | of the limit | GB/s | OpenVINO f32 ms |"
        " ratio | bf16 ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in content["layers"]:
        rate = 1e3 * r["gflop"] / r["ms"]
        peer = r["openvino_ms"]
        lines.append(
            f"| {r['network']} | {r['layer']} | {r['how']} | {r['gflop']:.2f} | {r['ms']:.2f} | "
            f"{rate:.0f} | {rate / limit:.0%} | {r['mb'] / r['ms']:.0f} | "
            f"{peer:.2f} | {peer / r['ms']:.1f} | {r['bf16_ms']:.2f} |"
        )
    lines += ["", "## `hyper_conv3d`, 64 → 64, 3x3x3, 16x24x16, K = 8, weights per sample", "",
              "| batch | contender | ms | off float64 by |", "|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {r['batch']} | {r['contender']} | {r['ms']:.2f} | {r['off']:.0e} |"
        for r in content["hyper_conv"]
    ]
    lines += ["", "## MONAI's networks, 96³", "",
              "| network | contender | ms | off float64 by |", "|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {r['network']} | {r['contender']} | {r['ms']:.1f} | {r['off']:.0e} |"
        for r in content["monai"]
    ]
    lines += ["", "## Small figures", "",
              "| network | load, ms | one row through the head, µs | whole process, peak MB |",
              "|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {name} | {r['load_ms']:.0f} | {r['head_us']:.1f} | {r['peak_mb']:.0f} |"
        for name, r in content["small"].items()
    ]
    lines += [
        "",
        "`hfrt infer` on one 1 mm scan (AD, f = 16, both hippocampi), from process start to exit: "
        f"{content['infer_process_ms']:.0f} ms.",
    ]
    return "\n".join(lines) + "\n"


def main(rounds: int = 15, threads: int | None = None, redraw: bool = False) -> None:
    """Measure everything and write the page; with --redraw, draw the last roofline again."""
    if redraw:
        last = json.loads((HERE / "native.json").read_text(encoding="utf-8"))
        chart(last["layers"], last["limit_gflops"], last["limit_gbs"], HERE / "native-roofline.png")
        return
    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    limit, copy = machine_limits(threads)
    content: Row = {
        "machine": describe_machine(), "threads": threads, "rounds": rounds,
        "limit_gflops": limit, "limit_gbs": copy, "layers": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for preset, features in NETWORKS:
            print(f"layers of {preset}, f = {features}")
            place = scratch / f"{preset}-{features}"
            place.mkdir()
            content["layers"] += layers(preset, features, threads, rounds, place)
        print("hyper_conv3d")
        content["hyper_conv"] = hyper_conv(threads, rounds, scratch)
        print("MONAI")
        content["monai"] = monai_networks(threads, rounds, scratch)
        print("load, head, memory")
        content["small"] = small_figures(threads, rounds, scratch)
        content["infer_process_ms"] = process_ms(rounds, scratch / "process")
    chart(content["layers"], limit, copy, HERE / "native-roofline.png")
    (HERE / "native.md").write_text(markdown(content), encoding="utf-8")
    (HERE / "native.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
