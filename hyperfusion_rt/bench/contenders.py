"""What a benchmark times: one network, and who computes it: our engines, torch, ONNX Runtime,
OpenVINO.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.artifact.plan import write_plan
from hyperfusion_rt.export.build import folded, load_cases
from hyperfusion_rt.export.compare import reference_outputs
from hyperfusion_rt.export.fuse.fuser import plan
from hyperfusion_rt.export.imported import image_network
from hyperfusion_rt.export.ir.ensemble import IMAGE
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.graph import Graph
from hyperfusion_rt.export.ir.graph import run as run_graph
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.runtime.engines.choose import open_file
from hyperfusion_rt.runtime.engines.registry import ENGINES
from hyperfusion_rt.training.results import load_member
from hyperfusion_rt.training.run_folder import Run

Array = NDArray[np.float32]
Inputs = tuple[Array, Array]  # image [B, C, D, H, W], tabular [B, T]
Call = Callable[[Array, Array], NDArray[np.floating]]
Quantise = Callable[[Any], Any]  # an OpenVINO model as another


@dataclass(frozen=True)
class Contender:
    """`precision` of its arithmetic; `open` makes it ready, which may take long, or fail where a
    package of `extra` is missing."""

    precision: str
    open: Callable[[], Call]
    extra: str = "bench"


@dataclass(frozen=True)
class Subject:
    """What every contender computes: one member's network on one box of K cases.

    `image [K, C, D, H, W]`, `rows [K, T]`, `exact [K, ...]`: its outputs in float64. `scratch` has
    the network as it was trained, and folded, as ONNX files. `network`: None of an imported one,
    whose code is not known.
    """

    network: nn.Module | None
    graph: Graph
    image: Array
    rows: Array
    exact: NDArray[np.float64]
    scratch: Path

    @classmethod
    def of(cls, run: Run, scratch: Path) -> Subject:
        """Member 0 of `run` on its first box."""
        network = load_member(run, run.members[0])
        image, (rows, *_), _ = load_cases(run)
        image = image[:, 0]
        shapes = {"image": image.shape[1:], "tabular": rows.shape[1:]}
        graph = folded(network, image.shape[1:], run.members[0].encoder)
        found = cls(network, graph, image, rows, reference_outputs(network, image, rows), scratch)
        write_onnx(lower(network, shapes), found.files[1])
        write_onnx(graph, found.files[0])
        return found

    @classmethod
    def imported(cls, file: Path, artifact: Artifact, scratch: Path) -> Subject:
        """Of the ONNX file that `artifact` was imported from; two cases of random numbers.

        Raises:
            HyperFusionError: the file cannot be read.
        """
        manifest = artifact.manifest
        prep = manifest.preprocessing
        read = image_network(file, prep, manifest.provenance.network.get("output"))
        shape = (2, len(prep.channels), *prep.shape)
        image = np.random.default_rng(0).standard_normal(shape, np.float32)
        with torch.inference_mode():
            (exact,) = run_graph(read.graph, {IMAGE: torch.from_numpy(image).double()})
        rows = np.zeros((2, 0), np.float32)
        found = cls(None, fold(read.graph), image, rows, exact.numpy(), scratch)
        write_onnx(read.graph, found.files[1])
        write_onnx(found.graph, found.files[0])
        return found

    @property
    def files(self) -> tuple[Path, Path]:
        """The folded and the unfolded ONNX file."""
        return self.scratch / "folded.onnx", self.scratch / "unfolded.onnx"

    def inputs(self, batch: int) -> Inputs:
        """The first `batch` cases, from the start again where there are fewer."""
        index = np.arange(batch) % len(self.image)
        return self.image[index], self.rows[index]

    def difference(self, output: NDArray[np.floating], batch: int) -> float:
        """The largest one of `inputs(batch)`, relative to the largest output of all cases."""
        expected = self.exact[np.arange(batch) % len(self.exact)]
        return float(np.abs(output - expected).max()) / float(np.abs(self.exact).max())


def _torch_eager(network: nn.Module) -> Call:
    def call(image: Array, tabular: Array) -> NDArray[np.floating]:
        with torch.inference_mode():
            result: NDArray[np.floating] = network(
                torch.from_numpy(image), torch.from_numpy(tabular)
            ).numpy()
            return result

    return call


def _torch_compile(network: nn.Module) -> Call:
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


def open_onnxruntime(path: Path, threads: int) -> Call:
    """ONNX Runtime on the CPU with the file `path`."""
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


def open_openvino(
    path: Path, threads: int, batch: int, precision: str, quantised: Quantise | None = None
) -> Call:
    """OpenVINO on the CPU with the file `path`; `precision` is f32 or bf16.

    `quantised`: makes the model one of 8-bit integers.
    """
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    if quantised is not None:
        model = quantised(model)
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


def _int8(subject: Subject, model: Any) -> Any:
    """An OpenVINO model with 8-bit integers, calibrated by NNCF on the subject's cases."""
    import logging

    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    logging.getLogger("nncf").setLevel(logging.ERROR)
    names = [item.any_name for item in model.inputs]
    cases = [
        {"image": image[None], "tabular": row[None]}
        for image, row in zip(subject.image, subject.rows, strict=True)
    ]
    data = nncf.Dataset(cases, lambda case: {name: case[name] for name in names})
    # Means of ranges, as by default, cut off what generated weights make of an unusual row.
    ranges = nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
    )
    with contextlib.redirect_stdout(io.StringIO()):  # its bars, beside what --json prints
        return nncf.quantize(model, data, subset_size=len(cases), advanced_parameters=ranges)


def _faster(openers: Sequence[Callable[[], Call]], inputs: Inputs) -> Call:
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


def _own(subject: Subject, engine: str, precision: str, threads: int) -> Call:
    """One of our engines on the folded network."""
    path = subject.files[0]
    if ENGINES[engine].file == "plan":
        path = subject.scratch / f"{precision}.{engine}"
        write_plan(plan(subject.graph, folded=True, precision=precision), path)
    opened = open_file(engine, path, threads)
    return lambda image, tabular: opened.run(image, tabular)["output"]


def contenders(
    subject: Subject, engines: Mapping[str, str], threads: int, inputs: Inputs
) -> dict[str, Contender]:
    """Name → contender, for the batch `inputs`.

    `engines`: name → precision of ours, which run the folded network. ONNX Runtime and OpenVINO
    get that file and the network as it was; the faster counts.
    """
    batch = len(inputs[0])

    def faster(open_file: Callable[[Path], Call]) -> Callable[[], Call]:
        return lambda: _faster([partial(open_file, path) for path in subject.files], inputs)

    def vino(precision: str, quantised: Quantise | None = None) -> Callable[[], Call]:
        return faster(lambda path: open_openvino(path, threads, batch, precision, quantised))

    def own(engine: str, precision: str) -> Contender:
        return Contender(precision, partial(_own, subject, engine, precision, threads))

    ours = {f"hfrt {engine}": own(engine, precision) for engine, precision in engines.items()}
    if engines.get("native") == "fp32":
        ours["hfrt native bf16"] = own("native", "bf16")
    found = {
        **ours,
        "onnxruntime": Contender("fp32", faster(lambda path: open_onnxruntime(path, threads))),
        "openvino f32": Contender("fp32", vino("f32")),
        "openvino bf16": Contender("bf16", vino("bf16")),
        "openvino int8": Contender("int8", vino("f32", partial(_int8, subject)), "int8"),
    }
    if (network := subject.network) is not None:
        found["torch eager"] = Contender("fp32", partial(_torch_eager, network))
        found["torch.compile"] = Contender("fp32", partial(_torch_compile, network))
    return found
