"""What takes part in a benchmark: our engines, torch, ONNX Runtime, OpenVINO."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hyperfusion_rt.artifact.plan import write_plan
from hyperfusion_rt.export.fuse.fuser import plan
from hyperfusion_rt.export.ir.graph import Graph
from hyperfusion_rt.runtime.engines.choose import open_file

Array = NDArray[np.float32]
Call = Callable[[Array, Array], NDArray[np.floating]]


def _torch_eager(network: nn.Module, batch: int) -> Call:
    def call(image: Array, tabular: Array) -> NDArray[np.floating]:
        with torch.inference_mode():
            result: NDArray[np.floating] = network(
                torch.from_numpy(image), torch.from_numpy(tabular)
            ).numpy()
            return result

    return call


def _torch_compile(network: nn.Module, batch: int) -> Call:
    import warnings

    import torch._inductor.config as inductor

    torch._dynamo.reset()
    compiled = torch.compile(network)

    def call(image: Array, tabular: Array) -> NDArray[np.floating]:
        # Freezing folds the weights into the program; it needs the gradient off.
        with torch.no_grad(), inductor.patch(freezing=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result: NDArray[np.floating] = compiled(
                torch.from_numpy(image), torch.from_numpy(tabular)
            ).numpy()
            return result

    return call


def _onnxruntime(path: Path, threads: int) -> Call:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {item.name for item in session.get_inputs()}

    def call(image: Array, tabular: Array) -> NDArray[np.floating]:
        feed = {"image": image, "tabular": tabular}
        result: NDArray[np.floating] = session.run(
            None, {k: v for k, v in feed.items() if k in names}
        )[0]
        return result

    return call


def _openvino(path: Path, threads: int, batch: int, precision: str) -> Call:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    # A fixed batch, as OpenVINO's documentation advises for latency.
    model.reshape(
        {
            item.any_name: [batch, *(d.get_length() for d in list(item.partial_shape)[1:])]
            for item in model.inputs
        }
    )
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
        },
    )
    names = [item.any_name for item in compiled.inputs]
    request = compiled.create_infer_request()

    def call(image: Array, tabular: Array) -> NDArray[np.floating]:
        feed = {"image": image, "tabular": tabular}
        request.infer([feed[name] for name in names], share_inputs=True)
        result: NDArray[np.floating] = request.get_output_tensor(0).data.copy()
        return result

    return call


def _faster(openers: Sequence[Callable[[], Call]], inputs: tuple[Array, Array]) -> Call:
    """The contender that takes less time on `inputs`."""
    best: tuple[float, Call] | None = None
    for opener in openers:
        call = opener()
        call(*inputs)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call(*inputs)
            times.append(time.perf_counter() - start)
        if best is None or min(times) < best[0]:
            best = min(times), call
    assert best is not None
    return best[1]


def contenders(
    network: nn.Module,
    graph: Graph,
    engines: Mapping[str, str],
    threads: int,
    inputs: tuple[Array, Array],
    scratch: Path,
) -> dict[str, tuple[str, Callable[[], Call]]]:
    """Name → (precision, how to open it), for one batch.

    `engines`: name → precision of ours, which run the folded `graph`. onnxruntime and OpenVINO get
    our folded file and the network as it was; the faster counts.
    """
    batch = len(inputs[0])
    files = [scratch / "folded.onnx", scratch / "unfolded.onnx"]

    def ort() -> Call:
        def opener(path: Path) -> Callable[[], Call]:
            return lambda: _onnxruntime(path, threads)

        return _faster([opener(path) for path in files], inputs)

    def vino(precision: str) -> Callable[[], Call]:
        def opener(path: Path) -> Callable[[], Call]:
            return lambda: _openvino(path, threads, batch, precision)

        return lambda: _faster([opener(path) for path in files], inputs)

    def own(engine: str, precision: str) -> Call:
        path = files[0]
        if engine != "onnx":
            path = scratch / f"{precision}.{engine}"
            write_plan(plan(graph, folded=True, precision=precision), path)
        opened = open_file(engine, path, threads)
        return lambda image, tabular: opened.run(image, tabular)["output"]

    ours = {f"hfrt {name}": (p, partial(own, name, p)) for name, p in engines.items()}
    if engines.get("native") == "fp32":
        ours["hfrt native bf16"] = ("bf16", partial(own, "native", "bf16"))
    return {
        **ours,
        "onnxruntime": ("fp32", ort),
        "openvino f32": ("fp32", vino("f32")),
        "openvino bf16": ("bf16", vino("bf16")),
        "torch eager": ("fp32", lambda: _torch_eager(network, batch)),
        "torch.compile": ("fp32", lambda: _torch_compile(network, batch)),
    }
