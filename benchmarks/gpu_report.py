"""`gpu_static.md`: the compiled kernels as tables, and the rooflines of the layers. A model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any, NamedTuple

from gpu_layers import LAYERS, SIZE, Layer

from hyperfusion_rt.kernels.gpu import configs, cost

# Shared memory that one program may have, in KiB (CUDA C++ Programming Guide).
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


class Peak(NamedTuple):
    """Public figures: dense TFLOP/s by dtype, and memory in TB/s."""

    flop: dict[str, float]
    memory: float


PEAKS = {
    "A100 SXM 40 GB": Peak({"fp32": 19.5, "tf32": 156, "fp16": 312, "bf16": 312}, 1.555),
    "H100 SXM": Peak({"fp32": 67, "tf32": 494, "fp16": 989, "bf16": 989}, 3.35),
    "B200": Peak({"fp32": 75, "tf32": 1100, "fp16": 2250, "bf16": 2250}, 8.0),
}


def floor(flop: float, moved: float, peak: Peak, dtype: str) -> tuple[float, str]:
    """Microseconds that no kernel can beat, and what bounds it."""
    times = {"FLOP": flop / peak.flop[dtype] / 1e6, "bytes": moved / peak.memory / 1e6}
    bound = max(times, key=lambda name: times[name])
    return times[bound], bound


def backward(layer: Layer, dtype: str) -> tuple[int, int]:
    """FLOP and bytes of all gradients: dX and dW, and dW with G and with ẽ."""
    s = layer.shape
    if layer.op == "hyper_linear":
        return 3 * layer.flop(), 2 * layer.bytes(dtype)
    products = 2 * 2 * s.batch * prod(s.out) * s.weights
    generators = 3 * 2 * s.batch * (s.k + 1) * s.weights
    volumes = s.batch * (2 * layer.channels * prod(s.size) + s.cout * prod(s.out)) * SIZE[dtype]
    return products + generators, volumes + 2 * (s.k + 1) * s.weights * 4


def needed(layer: Layer, part: str) -> int:
    """FLOP of one part, without masked lanes."""
    s = layer.shape
    if part == "write W":
        return 2 * s.batch * (s.k + 1) * s.weights
    if layer.op == "hyper_linear" or part == "block":
        return layer.flop()
    made = 2 * s.batch * (s.k + 1) * s.weights if part.endswith("made") else 0
    if part.endswith("kept"):
        made = 2 * 2 * s.batch * s.k * s.weights
    return 2 * s.batch * prod(s.out) * s.weights + made


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """In Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *(list(map(str, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _span(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _kernels(rows: list[dict[str, Any]]) -> Iterator[list[object]]:
    def key(r: dict[str, Any]) -> tuple[str, str, str]:
        return r["kernel"], r["config"], r["dtype"]

    for (kernel, config, dtype), of in itertools.groupby(sorted(rows, key=key), key):
        group = list(of)
        tightest = max(r["shared"] / SHARED_LIMIT[r["chip"]] / 1024 for r in group)
        found = []
        for chips in ((80, 86, 89, 120), (90,), (100,)):
            names = {" ".join(r["matrix"]) or "none" for r in group if r["chip"] in chips}
            found.append(", ".join(sorted(names)))
        yield [
            kernel, config, dtype, len(group), _span(r["registers"] for r in group),
            max(r["spilled"] for r in group), f"{max(r['shared'] for r in group) / 1024:.0f}",
            f"{tightest:.0%}", *found,
        ]  # fmt: skip


def _programs(rows: list[dict[str, Any]]) -> Iterator[list[object]]:
    seen = set()
    for r in rows:
        key = r["layer"], r["part"]
        if r["dtype"] != "fp16" or r["chip"] != 80 or key in seen:
            continue
        seen.add(key)
        grid = prod(r["grid"])
        ratio = r["flop"] * grid / needed(LAYERS[r["layer"]], r["part"])
        yield [
            *key, r["config"], grid, f"{r['flop'] / 1e3:,.0f}", f"{r['bytes'] / 1024:,.0f}",
            f"{ratio:.2f}", f"{r['flop'] / max(r['bytes'], 1):.0f}",
        ]  # fmt: skip


def _rooflines(dtype: str) -> Iterator[list[object]]:
    parts: tuple[tuple[str, Callable[[Layer], tuple[int, int]]], ...] = (
        ("forward", lambda layer: (layer.flop(), layer.bytes(dtype))),
        ("backward", lambda layer: backward(layer, dtype)),
    )
    for name, layer in LAYERS.items():
        for part, work in parts:
            if part == "backward" and layer.op == "conv3d_block":
                continue
            flop, moved = work(layer)
            found = (floor(flop, moved, peak, dtype) for peak in PEAKS.values())
            yield [
                name, part, f"{flop / 1e9:.2f}", f"{moved / 1e6:.2f}",
                *(f"{time:.1f} ({bound})" for time, bound in found),
            ]  # fmt: skip


def _strategies() -> Iterator[list[object]]:
    for name, layer in LAYERS.items():
        if layer.op != "hyper_conv3d":
            continue
        for batch in (1, 2, 4, 8, 16, 32):
            shape = layer.shape._replace(batch=batch)
            found = cost.costs(shape, 4, 2)
            yield [
                name, batch, *(f"{found[s].bytes / 1e6:.2f}" for s in ("generate", "write")),
                *(f"{found[s].seconds * 1e6:.1f}" for s in ("generate", "write")),
                cost.choose_strategy(shape, 4, 2),
            ]  # fmt: skip


def report(rows: list[dict[str, Any]], versions: str) -> str:
    """The whole page."""
    limits = ", ".join(f"sm_{chip} {limit}" for chip, limit in SHARED_LIMIT.items())
    chips = ", ".join(f"sm_{chip}" for chip in configs.CHIPS)
    peaks = "; ".join(
        f"{name} " + ", ".join(f"{d} {v:g}" for d, v in p.flop.items() if d != "bf16")
        + f" TFLOP/s, {p.memory:g} TB/s" for name, p in PEAKS.items()
    )  # fmt: skip
    found = {
        "compiled": table(
            ["kernel", "configuration", "dtype", "compiled", "registers", "spilled", "shared KiB",
             "of the limit", "sm_80, 86, 89, 120", "sm_90", "sm_100"],
            _kernels(rows),
        ),
        "programs": table(
            ["layer", "part", "configuration", "programs", "kFLOP each", "KiB each", "work",
             "FLOP per byte"],
            _programs(rows),
        ),
        "strategies": table(
            ["layer", "batch", "MB generate", "MB write", "µs generate", "µs write", "taken"],
            _strategies(),
        ),
    }  # fmt: skip
    floors = "\n".join(
        f"### {name}\n\n{table(['layer', 'part', 'GFLOP', 'MB', *PEAKS], _rooflines(dtype))}"
        for name, dtype in (("float16", "fp16"), ("TF32", "tf32"), ("float32", "fp32"))
    )
    return f"""# The GPU kernels, compiled and counted, not run

Written by `python benchmarks/gpu_static.py` with {versions}, on a machine without a GPU.
Every kernel below was compiled ahead of time for {chips}.
**None of it was run on a GPU, and no time here was measured.**

## Compiled: {len(rows)} kernels

Registers of a thread (255 at most); bytes spilled, which must be 0; shared memory of a program, the
largest, and as a share of the chip's limit where that is tightest (KiB: {limits}); the matrix
instructions found in the code. Tiles of fewer than 64 rows are meant to use `mma.sync` everywhere,
float32 sums of float32 products (fp32) none.

{found["compiled"]}
## One program

Counted in the code for sm_80 in float16, loops multiplied out. `work` is the FLOP of all programs
over those that the layer needs: what is above 1 is lanes beyond the edge of a tile, or weights
generated by several tiles.

{found["programs"]}
## When each strategy wins

`generate`: weights are made in registers, inside the convolution. `write`: they are written once
per sample, then read. MB of weights that a batch moves (generators float32, volumes of two bytes),
the model's microseconds for that traffic and the launches on an A100, and what the op takes.

{found["strategies"]}
## Rooflines: a model, not a measurement

The least time in microseconds that the FLOP and the bytes of the layer (each number moved once)
allow, and which of the two bounds it. Real kernels are slower. From public peak figures: {peaks}.

{floors}"""
