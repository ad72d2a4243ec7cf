"""What the compiler makes of every shipped GPU kernel, on a machine without a GPU.

The launches of the layers below are recorded on tensors without memory, compiled ahead of time
for every chip and dtype, and read: registers, stack (spills), shared memory, matrix instructions,
and the floating-point operations and bytes of one program, its loops counted. Nothing is run.

    python benchmarks/gpu_static.py            # all; writes benchmarks/gpu_static.json
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
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hyperfusion_rt.kernels.epilogue import Epilogue
from hyperfusion_rt.kernels.gpu import configs, cost, launch
from hyperfusion_rt.kernels.gpu import conv3d as kernels
from hyperfusion_rt.kernels.gpu import hyper_conv3d as gpu
from hyperfusion_rt.machine import usable_cores

HERE = Path(__file__).parent
# Shared memory that one program may have, in KiB (CUDA C++ Programming Guide).
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
MATRIX = {80: "mma.sync", 86: "mma.sync", 89: "mma.sync", 90: "wgmma", 100: "tcgen05.mma",
          120: "mma.sync"}  # fmt: skip
TORCH = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

# Calls with generated weights: the published ones (late, 1x1x1), and 3x3x3 ones that others make.
# The channels are such that every configuration occurs.
LAYERS = {
    "AD f=16 block4 shortcut": cost.Shape(32, 8, 128, 256, (1, 1, 1), (8, 12, 8), (2, 2, 2)),
    "AD f=4 block4 shortcut": cost.Shape(32, 8, 32, 64, (1, 1, 1), (8, 12, 8), (2, 2, 2)),
    "64 to 64, 3x3x3, 24x24x28": cost.Shape(
        8, 8, 64, 64, (3, 3, 3), (24, 24, 28), padding=(1, 1, 1)
    ),
    "64 to 64, 3x3x3, 3x4x5": cost.Shape(8, 8, 64, 64, (3, 3, 3), (3, 4, 5), padding=(1, 1, 1)),
    "16 to 32, 3x3x3, stride 2": cost.Shape(
        8, 8, 16, 32, (3, 3, 3), (32, 48, 32), (2, 2, 2), (1, 1, 1)
    ),
    "1 to 16, 3x3x3": cost.Shape(8, 8, 1, 16, (3, 3, 3), (64, 96, 64), padding=(1, 1, 1)),
}
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
    warps: int
    stages: int
    registers: int

    @property
    def name(self) -> str:
        """Layer, part and dtype."""
        return f"{self.layer} | {self.part} | {self.dtype}"


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
    names = getattr(kernels, kernel).arg_names
    options = dict(options)
    warps, stages, registers = (options.pop(n) for n in ("num_warps", "num_stages", "maxnreg"))
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
    table = {"conv3d": configs.CONV3D, "generate": configs.GENERATE,
             "conv3d_weight_gradient": configs.WEIGHT_GRADIENT}[kernel]  # fmt: skip
    tile = (options.get("BM", options.get("SAMPLES")), options.get("BN", options.get("BLOCK")),
            options.get("BK", 1), warps, stages, registers)  # fmt: skip
    config = next(name for name, known in table.items() if known == tile)
    return Launch(layer, part, dtype, kernel, config, tuple(grid), tuple(signature.items()),
                  tuple(constants.items()), tuple(divisible), warps, stages, registers)  # fmt: skip


def launches(layer: str, shape: cost.Shape, dtype: str) -> list[Launch]:
    """Every launch of `layer` in both strategies, forward (with an epilogue) and backward."""
    kind = TORCH[dtype]
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"

    def empty(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    w = (shape.cout, shape.cin // shape.groups, *shape.kernel)
    x, e = empty(shape.batch, shape.cin, *shape.size, dtype=kind), empty(shape.batch, shape.k)
    arguments = (x, e, empty(shape.k, *w), empty(shape.k, shape.cout), empty(*w), empty(shape.cout))
    dy = empty(shape.batch, shape.cout, *shape.out, dtype=kind)
    after = Epilogue(empty(shape.cout), empty(shape.cout), dy, 0.0)
    found = []
    for strategy in ("generate", "write"):
        keep = strategy == "generate"
        recorder = _Recorder()
        launch.kernels, kept = recorder, launch.kernels  # type: ignore[assignment]
        try:
            gpu.forward(*arguments, shape.geometry, after, strategy)
            forward = len(recorder.calls)
            gpu.backward(dy, *arguments, shape.geometry, [True] * 6, strategy, keep)
        finally:
            launch.kernels = kept
        for i, call in enumerate(recorder.calls):
            if call[0] == "generate":
                part = "write W"
            elif call[0] == "conv3d":
                part = f"{'forward' if i < forward else 'dX'}, W {'made' if keep else 'read'}"
            else:
                part = f"dW, {'kept' if keep else 'written'}"
            if not (part == "write W" and i >= forward):
                found.append(_launch(layer, part, dtype, call))
    return found


# ---- reading what came out

_BYTES = re.compile(r"\b(ld|st)\.global(?:\.[a-zA-Z0-9:_]+)*?(?:\.v(\d))?\.[bfus](\d+)\b")
_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global[^;]*, 0x([0-9a-f]+)[,;]?")
_MMA = re.compile(r"\b(mma\.sync|wgmma\.mma_async\.sync)\.aligned\.m(\d+)n(\d+)k(\d+)")


def _turns(launch: Launch) -> dict[str, int]:
    """How often the loops turn: over the reduction, over generators, over samples."""
    c, shape = dict(launch.constants), LAYERS[launch.layer]
    if launch.kernel == "conv3d_weight_gradient":
        splits = launch.grid[2] // shape.batch if c["WRITE"] else 1
        share = triton.cdiv(prod(shape.out), splits)
        return {"reduction": triton.cdiv(share, c["BM"]), "samples": shape.batch}
    found = {"generators": c["K1"]}
    if launch.kernel == "conv3d":
        found["reduction"] = triton.cdiv(prod(shape.kernel) * c["CIN"], c["BK"])
    return found


def _count(ptx: str, launch: Launch) -> tuple[int, int]:
    """FLOP and bytes from and to global memory of one program (all lanes, masked ones too)."""
    turns = _turns(launch)
    threads = 32 * launch.warps
    lines = ptx.splitlines()
    labels = {
        m[1]: i for i, line in enumerate(lines) if (m := re.match(r"\$?(\S+):", line.strip()))
    }
    loops = []
    for i, line in enumerate(lines):
        if (m := re.search(r"\bbra(?:\.uni)?\s+\$?(\S+);", line)) and labels.get(m[1], i) < i:
            loops.append((labels[m[1]], i))
    has_dot = [any("mma" in line or "fma.rn" in line for line in lines[a:b]) for a, b in loops]
    times = [1] * len(lines)
    for (a, b), dot in zip(loops, has_dot, strict=True):
        outer = any(a < other[0] and other[1] < b for other in loops)
        inner = any(other[0] < a and b < other[1] for other in loops)
        if launch.kernel == "conv3d_weight_gradient":
            turn = turns["samples"] if outer else turns["reduction"]
        elif launch.kernel == "conv3d" and not inner and dot:
            turn = turns["reduction"]
        else:
            turn = turns["generators"]
        for i in range(a, b + 1):
            times[i] *= turn
    flop = moved = 0
    for line, n in zip(lines, times, strict=True):
        if m := _MMA.search(line):
            # mma.sync is issued by each warp, wgmma by each group of four.
            units = launch.warps if m[1] == "mma.sync" else launch.warps // 4
            flop += n * units * 2 * int(m[2]) * int(m[3]) * int(m[4])
        elif "fma.rn.f32" in line:
            flop += n * threads * (4 if "fma.rn.f32x2" in line else 2)
        if m := _COPY.search(line):
            moved += n * threads * int(m[1], 16)
        elif m := _BYTES.search(line):
            moved += n * threads * int(m[2] or 1) * int(m[3]) // 8
    return flop, moved


def compile_(job: tuple[Launch, int]) -> dict[str, Any]:
    """Compile one launch for one chip and read the result."""
    launch, chip = job
    source = ASTSource(
        fn=getattr(kernels, launch.kernel),
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(i,): [["tt.divisibility", 16]] for i in launch.divisible},
    )
    made = triton.compile(
        source,
        target=GPUTarget("cuda", chip, 32),
        options={
            "num_warps": launch.warps,
            "num_stages": launch.stages,
            "maxnreg": launch.registers,
        },
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
    # A tile that stays in registers has 16 rows: too few for the instructions of warp groups.
    wanted = "mma.sync" if row["config"] == "keep" else MATRIX[row["chip"]]
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
        shipped = {*configs.CONV3D, *configs.WEIGHT_GRADIENT, *configs.GENERATE}
        wrong += [f"{n}: no layer takes it" for n in shipped - {row["config"] for row in rows}]
        lines = ",\n".join(json.dumps(row) for row in rows)
        head = f'"triton": "{triton.__version__}", "torch": "{torch.__version__}"'
        record.write_text(f'{{{head}, "rows": [\n{lines}\n]}}\n')
    for text in wrong:
        print(text, file=sys.stderr)
    print(f"{len(rows)} kernels compiled with Triton {triton.__version__}, {len(wrong)} problems")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
