"""What the compiler makes of every shipped GPU kernel, on a machine without a GPU.

The launches of the layers below are recorded on tensors without memory, compiled ahead of time
for every chip and dtype, and read: registers, stack (spills), shared memory, matrix instructions,
and the floating-point operations and bytes of one program, its loops counted. Nothing is run.

    python benchmarks/gpu_static.py            # all; writes gpu_static.json, gpu_static.md
    python benchmarks/gpu_static.py --check    # one layer on two chips, against gpu_static.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from gpu_layers import LAYERS, TORCH, Layer
from gpu_report import SHARED_LIMIT, report
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hyperfusion_rt.kernels.epilogue import Epilogue
from hyperfusion_rt.kernels.gpu import (
    configs,
    conv3d,
    conv3d_block,
    cost,
    hyper_conv3d,
    hyper_linear,
    launch,
    linear,
)
from hyperfusion_rt.machine import usable_cores

HERE = Path(__file__).parent
MATRIX = {80: "mma.sync", 86: "mma.sync", 89: "mma.sync", 90: "wgmma", 100: "tcgen05.mma",
          120: "mma.sync"}  # fmt: skip
KERNELS = {"conv3d": conv3d.conv3d, "generate": conv3d.generate,
           "conv3d_weight_gradient": conv3d.conv3d_weight_gradient,
           "hyper_linear": linear.hyper_linear}  # fmt: skip
CONFIGS = {"conv3d": configs.CONV3D, "generate": configs.GENERATE,
           "conv3d_weight_gradient": configs.WEIGHT_GRADIENT,
           "hyper_linear": configs.LINEAR}  # fmt: skip
CHECKED = ("64 to 64, 3x3x3, 24x24x28", (80, 90))


@dataclass(frozen=True)
class Launch:
    """One recorded launch: what `triton.compile` needs, and how often its loops turn."""

    layer: str
    part: str
    dtype: str
    kernel: str
    config: str
    grid: tuple[int, ...]
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]

    @property
    def tile(self) -> configs.Config:
        """Its configuration."""
        return CONFIGS[self.kernel][self.config]


class _Recorder:
    """Takes the place of the kernels and keeps what they are launched with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, kernel: str) -> Any:
        recorder = self

        class _At:
            def __getitem__(self, grid: tuple[int, ...]) -> Any:
                return lambda *a, **k: recorder.calls.append((kernel, grid, a, k))

        return _At()


_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


def _launch(layer: str, part: str, dtype: str, call: tuple[Any, ...]) -> Launch:
    """As Triton specialises a call: ones are constants, multiples of 16 are known to be."""
    kernel, grid, arguments, options = call
    names = KERNELS[kernel].arg_names
    options = dict(options)
    table = CONFIGS[kernel]
    flags = [options.pop(n) for n in next(iter(table.values())).options]
    signature, constants, divisible = {}, {}, []
    for i, (name, value) in enumerate(zip(names, arguments, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
            divisible.append(i)
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                divisible.append(i)
    for name in names[len(arguments) :]:
        signature[name], constants[name] = "constexpr", options[name]
    tile = (options.get("BM", options.get("SAMPLES")), options.get("BN", options.get("BLOCK")),
            options.get("BK", 1), *flags[:3])  # fmt: skip
    config = next(name for name, known in table.items() if known == tile)
    return Launch(layer, part, dtype, kernel, config, tuple(grid), tuple(signature.items()),
                  tuple(constants.items()), tuple(divisible))  # fmt: skip


def _recorded(call: Any) -> list[tuple[Any, ...]]:
    """The launches that `call()` makes, none of which runs."""
    recorder = _Recorder()
    kept = launch.kernels, hyper_linear.kernels
    launch.kernels = hyper_linear.kernels = recorder  # type: ignore[assignment]
    try:
        call()
    finally:
        launch.kernels, hyper_linear.kernels = kept
    return recorder.calls


def launches(name: str, layer: Layer, dtype: str) -> list[Launch]:
    """Every launch of `layer`, forward and backward; of `hyper_conv3d` in both strategies."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    made, shape = layer.arguments(dtype, "meta"), layer.shape
    found: list[tuple[str, Any]] = []
    if layer.op == "conv3d_block":
        calls = _recorded(
            lambda: conv3d_block.forward(
                made["x"], made["weight"], shape.geometry, layer.epilogue(made), layer.pool
            )
        )
        return [_launch(name, "block", dtype, call) for call in calls]
    x, e, G, h, g0, h0 = made.values()
    dy = torch.empty((shape.batch, shape.cout, *shape.out), dtype=TORCH[dtype], device="meta")
    if layer.op == "hyper_linear":
        back = lambda: hyper_linear.forward(  # noqa: E731
            dy[..., 0, 0, 0], e, G.transpose(1, 2), None, g0.T, None
        )
        for part, call in (("forward", lambda: hyper_linear.forward(*made.values())), ("dX", back)):
            found += [(part, c) for c in _recorded(call)]
        return [_launch(name, part, dtype, call) for part, call in found]
    after = Epilogue(made["h0"], made["h0"], dy, 0.0)
    arguments = (x, e, G, h, g0, h0, shape.geometry)
    for strategy in ("generate", "write"):
        keep = strategy == "generate"
        how = "made" if keep else "read"
        for call in _recorded(
            lambda strategy=strategy: hyper_conv3d.forward(*arguments, after, strategy)
        ):
            part = "write W" if call[0] == "generate" else f"forward, W {how}"
            found.append((part, call))
        for call in _recorded(
            lambda strategy=strategy, keep=keep: hyper_conv3d.backward(
                dy, *arguments, [True] * 6, strategy, keep
            )
        ):
            if call[0] == "conv3d":
                found.append((f"dX, W {how}", call))
            elif call[0] == "conv3d_weight_gradient":
                found.append((f"dW, {'kept' if keep else 'written'}", call))
    return [_launch(name, part, dtype, call) for part, call in found]


# ---- reading what came out

_BYTES = re.compile(r"\b(ld|st)\.global(?:\.[a-zA-Z0-9:_]+)*?(?:\.v(\d))?\.[bfus](\d+)\b")
_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global[^;]*, 0x([0-9a-f]+)[,;]?")
_MMA = re.compile(r"\b(mma\.sync|wgmma\.mma_async\.sync)\.aligned\.m(\d+)n(\d+)k(\d+)")


def _taps(shape: cost.Shape) -> list[int]:
    """The taps that each phase of the stride meets in the gradient of x."""
    along = [
        [sum((f + p - t * step) % s == 0 for t in range(k)) for f in range(s)]
        for k, s, p, step in zip(*shape.geometry[:4], strict=True)
    ]
    return [d * h * w for d in along[0] for h in along[1] for w in along[2]]


def _turns(launch: Launch) -> dict[str, float]:
    """How often the loops turn: over the reduction, over generators, over samples.

    The phases of a strided gradient of x differ: their mean.
    """
    c, shape = dict(launch.constants), LAYERS[launch.layer].shape
    if launch.kernel == "conv3d_weight_gradient":
        splits = launch.grid[2] // shape.batch if c["WRITE"] else 1
        share = triton.cdiv(prod(shape.out), splits)
        return {"reduction": triton.cdiv(share, c["BM"]), "samples": shape.batch}
    if launch.kernel == "hyper_linear":
        length = shape.cout if launch.part == "dX" else shape.cin
        return {"reduction": triton.cdiv(length, c["BK"] * launch.grid[2]), "generators": shape.k}
    found: dict[str, float] = {"generators": c["K1"]}
    if launch.kernel == "conv3d":
        taps = _taps(shape) if c["TRANSPOSED"] else [prod(shape.kernel)]
        found["reduction"] = sum(triton.cdiv(n * c["CIN"], c["BK"]) for n in taps) / len(taps)
    return found


def _count(ptx: str, launch: Launch) -> tuple[int, int]:
    """FLOP and bytes from and to global memory of one program (all lanes, masked ones too)."""
    turns = _turns(launch)
    threads = 32 * launch.tile.warps
    lines = ptx.splitlines()
    labels = {
        m[1]: i for i, line in enumerate(lines) if (m := re.match(r"\$?(\S+):", line.strip()))
    }
    loops = []
    for i, line in enumerate(lines):
        if (m := re.search(r"\bbra(?:\.uni)?\s+\$?(\S+);", line)) and labels.get(m[1], i) < i:
            loops.append((labels[m[1]], i))
    has_dot = [any("mma" in line or "fma.rn" in line for line in lines[a:b]) for a, b in loops]
    times = [1.0] * len(lines)
    for (a, b), dot in zip(loops, has_dot, strict=True):
        outer = any(a < other[0] and other[1] < b for other in loops)
        inner = any(other[0] < a and b < other[1] for other in loops)
        if launch.kernel == "conv3d_weight_gradient":
            turn = turns["samples"] if outer else turns["reduction"]
        elif launch.kernel == "hyper_linear":
            turn = turns["generators"] if outer else turns["reduction"]
        elif launch.kernel == "conv3d" and not inner and dot:
            turn = turns["reduction"]
        else:
            turn = turns["generators"]
        for i in range(a, b + 1):
            times[i] *= turn
    flop = moved = 0.0
    for line, n in zip(lines, times, strict=True):
        if m := _MMA.search(line):
            # mma.sync is issued by each warp, wgmma by each group of four.
            units = launch.tile.warps if m[1] == "mma.sync" else launch.tile.warps // 4
            flop += n * units * 2 * int(m[2]) * int(m[3]) * int(m[4])
        elif "fma.rn.f32" in line:
            flop += n * threads * (4 if "fma.rn.f32x2" in line else 2)
        if m := _COPY.search(line):
            moved += n * threads * int(m[1], 16)
        elif m := _BYTES.search(line):
            moved += n * threads * int(m[2] or 1) * int(m[3]) // 8
    return round(flop), round(moved)


def compile_(job: tuple[Launch, int]) -> dict[str, Any]:
    """Compile one launch for one chip and read the result."""
    launch, chip = job
    source = ASTSource(
        fn=KERNELS[launch.kernel],
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(i,): [["tt.divisibility", 16]] for i in launch.divisible},
    )
    made = triton.compile(
        source,
        target=GPUTarget("cuda", chip, 32),
        options=launch.tile.options,
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    used = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    registers, stack, local = (int(used[n]) for n in ("REG", "STACK", "LOCAL"))
    ptx = made.asm["ptx"]
    matrix = [
        n for n in ("mma.sync", "wgmma", "tcgen05.mma") if re.search(rf"\b{re.escape(n)}", ptx)
    ]
    flop, moved = _count(ptx, launch)
    return {
        "layer": launch.layer, "part": launch.part, "dtype": launch.dtype, "chip": chip,
        "kernel": launch.kernel, "config": launch.config, "grid": list(launch.grid),
        "registers": registers, "spilled": stack + local, "shared": made.metadata.shared,
        "matrix": matrix,
        # The shape of a tcgen05.mma is data, not text: its operations cannot be read.
        "flop": None if "tcgen05.mma" in matrix else flop,
        "bytes": moved,
    }  # fmt: skip


def problems(row: dict[str, Any]) -> list[str]:
    """What is wrong with one compiled kernel."""
    found = []
    if row["spilled"]:
        found.append(f"{row['spilled']} bytes spilled")
    if row["shared"] > SHARED_LIMIT[row["chip"]] * 1024:
        found.append(f"{row['shared']} bytes of shared memory, the chip has {SHARED_LIMIT[row['chip']]} KiB")  # noqa: E501 # fmt: skip
    # Tiles of fewer than 64 rows are too small for the instructions of warp groups.
    config = CONFIGS[row["kernel"]][row["config"]]
    height = config.step if row["kernel"] == "conv3d_weight_gradient" else config.rows
    wanted = "mma.sync" if height < 64 else MATRIX[row["chip"]]
    if row["dtype"] != "fp32" and row["kernel"] != "generate" and wanted not in row["matrix"]:
        found.append(f"no {wanted}, but {row['matrix'] or 'no matrix instruction'}")
    where = f"{row['layer']}, {row['part']}, {row['dtype']}, sm_{row['chip']}"
    return [f"{where}: {text}" for text in found]


def compiled(layers: tuple[str, ...], chips: tuple[int, ...]) -> list[dict[str, Any]]:
    """All launches of `layers` for all `chips` and dtypes."""
    jobs = [
        (item, chip)
        for name in layers
        for dtype in configs.DTYPES
        for item in launches(name, LAYERS[name], dtype)
        for chip in chips
    ]
    with ProcessPoolExecutor(usable_cores()) as pool:
        return list(pool.map(compile_, jobs, chunksize=8))


def main() -> None:
    """Compile, compare or record, and report; exit status 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    record = HERE / "gpu_static.json"
    rows = compiled((CHECKED[0],), CHECKED[1]) if check else compiled(tuple(LAYERS), configs.CHIPS)
    wrong = [text for row in rows for text in problems(row)]
    if check:
        known = json.loads(record.read_text())
        if known["triton"] != triton.__version__:
            print(f"counts of Triton {known['triton']} NOT compared: this is {triton.__version__}")
        else:
            key = ("layer", "part", "dtype", "chip")
            golden = {tuple(r[k] for k in key): (r["flop"], r["bytes"]) for r in known["rows"]}
            for row in rows:
                at = tuple(row[k] for k in key)
                if golden.get(at) != (row["flop"], row["bytes"]):
                    wrong.append(f"{at}: {row['flop']} FLOP, {row['bytes']} bytes per program, recorded {golden.get(at)}")  # noqa: E501 # fmt: skip
    else:
        shipped = {(k, name) for k, table in CONFIGS.items() for name in table}
        taken = {(row["kernel"], row["config"]) for row in rows}
        wrong += [f"{k}, {name}: no layer takes it" for k, name in shipped - taken]
        lines = ",\n".join(json.dumps(row) for row in rows)
        head = f'"triton": "{triton.__version__}", "torch": "{torch.__version__}"'
        record.write_text(f'{{{head}, "rows": [\n{lines}\n]}}\n')
        versions = f"Triton {triton.__version__} and torch {torch.__version__}"
        (HERE / "gpu_static.md").write_text(report(rows, versions))
    for text in wrong:
        print(text, file=sys.stderr)
    print(f"{len(rows)} kernels compiled with Triton {triton.__version__}, {len(wrong)} problems")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
