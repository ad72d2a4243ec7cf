"""Every engine by its name: what is known of it before it is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hyperfusion_rt.config import Precision
from hyperfusion_rt.errors import EngineError

_PACKAGE = "hyperfusion_rt.runtime.engines"


@dataclass(frozen=True)
class Kind:
    """One engine.

    Attributes:
        module: where its class stands; imported when a file is opened.
        class_name: opens a file, `(path, threads)`; see `choose.Engine`.
        file: what it executes: a plan of fused operations, an ONNX file, or what TensorRT built.
        precisions: in which it can be exported.
        package: of TensorRT, what builds and runs it; the extra that installs it has the engine's
            name.
    """

    module: str
    class_name: str
    file: Literal["plan", "onnx", "tensorrt"]
    precisions: tuple[Precision, ...]
    package: str = ""


# In the order in which `auto` tries them.
ENGINES = {
    "trt": Kind(f"{_PACKAGE}.trt", "TrtEngine", "tensorrt", ("fp32", "fp16", "bf16"), "tensorrt"),
    "trt-rtx": Kind(
        f"{_PACKAGE}.trt", "TrtEngine", "tensorrt", ("fp32", "fp16", "bf16"), "tensorrt_rtx"
    ),
    "native": Kind(f"{_PACKAGE}.native", "NativeEngine", "plan", ("fp32", "bf16")),
    "onnx": Kind(f"{_PACKAGE}.ort", "OnnxEngine", "onnx", ("fp32",)),
    "torch": Kind(f"{_PACKAGE}.eager", "TorchEngine", "plan", ("fp32", "bf16")),
}
TENSORRT = tuple(name for name, kind in ENGINES.items() if kind.file == "tensorrt")
DEFAULT_ENGINES = ("native", "onnx")  # that an export makes unless told


def check_name(name: str) -> None:
    """Raise an EngineError unless there is an engine `name`."""
    if name not in ENGINES:
        raise EngineError(
            f"there is no engine '{name}'; choose from {', '.join(ENGINES)}", code="engine-unknown"
        )
