"""The engine protocol and the choice of an engine. A backend is imported when it is opened."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import EngineError
from hyperfusion_rt.runtime.artifact import Artifact


class Engine(Protocol):
    """Executes an artifact's network: all members on all boxes. Several threads may call it."""

    def run(
        self, image: NDArray[np.float32], tabular: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float32]]:
        """Run one batch of cases, float32.

        `image [B, N, D, H, W]` of N boxes, `tabular [B, ΣT]` (the members' encoded rows in turn) →
        `output [B, C]`: probabilities, or years; `members [B, M·N·C]`: the M members' raw outputs.
        """
        ...


# name → (module, class); in the order in which `auto` prefers them.
_ENGINES = {
    "native": ("hyperfusion_rt.runtime.engine_native", "NativeEngine"),
    "onnx": ("hyperfusion_rt.runtime.engine_onnx", "OnnxEngine"),
    "torch": ("hyperfusion_rt.runtime.engine_torch", "TorchEngine"),
}
_LATER = {
    "trt": "TensorRT engines are not part of this version; they will need an NVIDIA GPU and "
    "pip install 'hyperfusion_rt[trt]'",
    "trt-rtx": "TensorRT-RTX engines are not part of this version; they will need "
    "pip install tensorrt_rtx",
}
DEFAULT_ENGINES = ("native", "onnx")  # that an export makes unless told
# The precisions in which each engine can be exported.
PRECISIONS = {"native": ("fp32", "bf16"), "onnx": ("fp32",), "torch": ("fp32", "bf16")}


def check_name(name: str) -> None:
    """Raise an EngineError that says why `name` cannot be used, unless it can."""
    if name in _ENGINES:
        return
    if name in _LATER:
        raise EngineError(f"engine '{name}': {_LATER[name]}. Use: {', '.join(_ENGINES)}")
    raise EngineError(f"there is no engine '{name}'; choose from {', '.join(_ENGINES)}")


def open_file(name: str, path: Path, threads: int | None = None) -> Engine:
    """Open one engine file.

    Raises:
        EngineError, MissingExtraError: it cannot be used, and why.
    """
    check_name(name)
    module, kind = _ENGINES[name]
    found: Engine = getattr(importlib.import_module(module), kind)(path, threads)
    return found


def open_engine(
    artifact: Artifact, name: str = "auto", threads: int | None = None
) -> tuple[str, Engine]:
    """Open an engine of `artifact`; returns its name and the engine.

    `auto` takes the artifact's first engine in the order of preference: native, onnx, torch.
    `threads`: None uses every core that the process may use.

    Raises:
        EngineError, MissingExtraError, ArtifactError: what is wrong and how to repair it.
    """
    if name == "auto":
        name = next((known for known in _ENGINES if known in artifact.engines), "onnx")
    check_name(name)
    return name, open_file(name, artifact.file(name), threads)
