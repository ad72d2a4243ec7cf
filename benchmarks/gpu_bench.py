"""The ops on this machine's GPU against what PyTorch offers, timed as CUDA graphs.

    python benchmarks/gpu_bench.py                 # every layer; writes gpu_bench-<device>.json
    python benchmarks/gpu_bench.py --layer late    # those whose name holds `late`; writes nothing
    python benchmarks/gpu_bench.py --dtype bf16    # one type alone, in a file of its own

Each contender is compared with float64 first. A CUDA graph holds several calls, so launches from
Python are not timed; the contenders take turns, and the median of their times is kept. Without a
GPU nothing is run and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from gpu_layers import LAYERS, Layer
from torch import Tensor
from torch.nn.functional import conv3d, max_pool3d

from hyperfusion_rt.kernels import conv3d_block, hyper_conv3d, hyper_linear, reference
from hyperfusion_rt.kernels.epilogue import Epilogue
from hyperfusion_rt.kernels.gpu import hyper_conv3d as gpu
from hyperfusion_rt.kernels.hyper_conv3d import _conv3d as grouped_conv3d
from hyperfusion_rt.kernels.hyper_linear import _linear as composed_linear

HERE = Path(__file__).parent
CALLS = 10  # of one graph
TURNS = 15
OURS = ("hyper_conv3d", "hyper_linear", "conv3d_block")
Contender = Callable[[dict[str, Tensor]], Tensor]


def _own_conv(x: Tensor, e: Tensor, G: Tensor, h: Tensor, g0: Tensor, h0: Tensor, g: Any) -> Tensor:
    """One sample, for vmap."""
    weight = g0 + torch.einsum("k,koidhw->oidhw", e, G)
    bias = h0 + e @ h
    y = conv3d(x[None], weight.to(x.dtype), bias.to(x.dtype), g.stride, g.padding, g.dilation,
               g.groups)  # fmt: skip
    return y[0]


def _block(layer: Layer, x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """A block in PyTorch's own operations."""
    g = layer.shape.geometry
    groups = 1 if layer.shared else g.groups
    y = conv3d(x, weight, shift, g.stride, g.padding, g.dilation, groups).relu()
    return max_pool3d(y, 2) if layer.pool else y


def contenders(layer: Layer) -> dict[str, Contender]:
    """name → call of one layer. The first one is ours."""
    g = layer.shape.geometry
    options = {"stride": g.stride, "padding": g.padding, "dilation": g.dilation, "groups": g.groups}

    def narrow(a: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """All tensors in the dtype of x, which PyTorch's convolutions need."""
        return tuple(t.to(a["x"].dtype) for t in a.values())

    if layer.op == "conv3d_block":
        plain = lambda a: _block(layer, *narrow(a))  # noqa: E731
        return {
            "conv3d_block": lambda a: conv3d_block(
                a["x"], a["weight"], **options, epilogue=layer.epilogue(a), pool=layer.pool
            ),
            "cuDNN": plain,
            "torch.compile": torch.compile(plain),
        }
    if layer.op == "hyper_linear":
        composed = lambda a: composed_linear(*narrow(a))  # noqa: E731
        return {
            "hyper_linear": lambda a: hyper_linear(*a.values()),
            "composition": composed,
            "torch.compile": torch.compile(composed),
        }
    positions = g.stride, g.padding, g.dilation, g.groups
    grouped = lambda a: grouped_conv3d(*narrow(a), *positions)  # noqa: E731
    found: dict[str, Contender] = {"hyper_conv3d": lambda a: hyper_conv3d(*a.values(), **options)}
    if torch.cuda.is_available():
        for strategy in ("generate", "write"):
            found[f"hyper_conv3d, {strategy}"] = lambda a, strategy=strategy: gpu.forward(
                *a.values(), g, Epilogue(), strategy
            )
    return found | {
        "loop over samples": lambda a: reference.hyper_conv3d(*narrow(a), *positions),
        "grouped cuDNN": grouped,
        "torch.compile": torch.compile(grouped),
        "vmap": lambda a: torch.vmap(_own_conv, (0, 0, None, None, None, None, None))(
            *a.values(), g
        ),
    }


def exact(layer: Layer, arguments: dict[str, Tensor]) -> Tensor:
    """The layer in float64, sample by sample."""
    a = {name: t.double() for name, t in arguments.items()}
    g = layer.shape.geometry
    if layer.op == "hyper_linear":
        return reference.hyper_linear(*a.values())
    if layer.op == "hyper_conv3d":
        return reference.hyper_conv3d(*a.values(), g.stride, g.padding, g.dilation, g.groups)
    return _block(layer, *a.values())


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value; infinite where shapes differ or NaN is."""
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    return float((found.double() - expected).abs().max() / expected.abs().max())


# What rounding of inputs and weights to this type may cost.
LIMIT = {"tf32": 5e-3, "fp16": 5e-3, "bf16": 4e-2}


def _graph(call: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """CALLS calls, as one graph.

    Autograd remembers the stream that it first saw a leaf on: calls before the capture are on its
    own stream, or the capture would depend on another one and fail.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(CALLS):
            call()
    return graph


def _times(graphs: dict[str, torch.cuda.CUDAGraph]) -> dict[str, float]:
    """Median microseconds of one call, the contenders in turn."""
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(TURNS + 2):
        for name, graph in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn >= 2:
                taken[name].append(begin.elapsed_time(end) * 1e3 / CALLS)
    return {name: statistics.median(of) for name, of in taken.items()}


def measure(name: str, layer: Layer, dtype: str, skip: str) -> list[dict[str, Any]]:
    """Forward, and where there are gradients forward and backward, of all contenders but one."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    arguments = layer.arguments(dtype, "cuda")
    if layer.op != "hyper_linear":
        last = torch.channels_last_3d
        arguments["x"] = arguments["x"].contiguous(memory_format=last)
        if "weight" in arguments:
            arguments["weight"] = arguments["weight"].contiguous(memory_format=last)
    expected = exact(layer, arguments)
    # PyTorch's convolutions need one type: its contenders get weights that were cast before.
    cast = {n: t.to(arguments["x"].dtype) for n, t in arguments.items()}
    rows, forward, both = [], {}, {}
    for who, call in contenders(layer).items():
        if who == skip:
            continue
        row = {"layer": name, "dtype": dtype, "contender": who}
        rows.append(row)
        try:
            with torch.no_grad():
                given = arguments if who.split(",")[0] in OURS else cast
                y = call(given)
                row["error"] = error(y, expected)
                if row["error"] > LIMIT[dtype]:
                    row["failed"] = f"off float64 by {row['error']:.1e}"
                    continue
                forward[who] = _graph(lambda call=call, given=given: call(given))
            if layer.op != "conv3d_block" and ", " not in who:
                dy = torch.randn_like(y)
                trained = {n: t.detach().requires_grad_() for n, t in arguments.items()}
                both[who] = _graph(
                    lambda call=call, dy=dy, leaves=trained: torch.autograd.grad(
                        call(leaves), list(leaves.values()), dy
                    )
                )
        except Exception as problem:  # a contender that cannot do it is a result
            row["failed"] = f"{type(problem).__name__}: {str(problem).splitlines()[0]}"
            torch.cuda.synchronize()
    for key, graphs in (("forward_us", forward), ("forward_backward_us", both)):
        for who, time in _times(graphs).items():
            next(r for r in rows if r["contender"] == who)[key] = round(time, 2)
    return rows


def apart(name: str, dtype: str, skip: str) -> list[dict[str, Any]]:
    """`measure` in a process of its own: a kernel that reads beyond its memory ends that alone."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, name, LAYERS[name], dtype, skip).result()
        except Exception as problem:
            why = f"{type(problem).__name__}: {str(problem).splitlines()[0]}"
            return [{"layer": name, "dtype": dtype, "contender": "all", "failed": why}]


def main() -> None:
    """Measure, print, write; exit status 1 where our own result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layer", default="", help="only layers whose name holds this")
    parser.add_argument("--dtype", default="", choices=["", *LIMIT], help="only this type")
    parser.add_argument("--skip", default="", help="a contender to leave out: it compiles long")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU on this machine: nothing was timed and nothing is written")
        return
    properties = torch.cuda.get_device_properties(0)
    machine = {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    device = re.sub("[^A-Za-z0-9]+", "-", properties.name)
    path = HERE / f"gpu_bench-{'-'.join([device, *filter(None, [chosen.dtype])])}.json"
    rows = []
    for name in LAYERS:
        if chosen.layer not in name:
            continue
        for dtype in [chosen.dtype] if chosen.dtype else LIMIT:
            found = apart(name, dtype, chosen.skip)
            rows += found
            for row in found:
                times = [str(row.get(k, "")) for k in ("forward_us", "forward_backward_us")]
                cells = [name, dtype, row["contender"], *times, row.get("failed", "")]
                print(" | ".join(cells), flush=True)
        if not chosen.layer:  # after every layer: what is cut off has measured the ones before
            made = {"machine": machine, "layers": len(LAYERS), "rows": rows}
            path.write_text(json.dumps(made, indent=1) + "\n")
    if not chosen.layer:
        print(path)
    wrong = [r for r in rows if "failed" in r and r["contender"].split(",")[0] in (*OURS, "all")]
    for row in wrong:
        print(f"{row['layer']}, {row['dtype']}, {row['contender']}: {row['failed']}",
              file=sys.stderr)  # fmt: skip
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
