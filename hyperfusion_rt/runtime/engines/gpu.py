"""The NVIDIA GPU of this machine, by cuda-python: what an engine is built for and runs on."""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperfusion_rt.errors import EngineError, MissingExtraError


@dataclass(frozen=True)
class Gpu:
    """`capability`: 9.0 is 90. `driver`: of the kernel module."""

    name: str
    capability: int
    driver: str


def nvidia_driver() -> str | None:
    """The version of NVIDIA's kernel module, if it is loaded."""
    with contextlib.suppress(OSError):
        words = Path("/proc/driver/nvidia/version").read_text().split()
        return next((word for word in words if word[0].isdigit() and "." in word), None)
    return None


def cudart() -> Any:
    """cuda-python's runtime bindings.

    Raises:
        MissingExtraError: they are not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        raise MissingExtraError("cuda-python", "trt", "a TensorRT engine") from None


def checked(result: tuple[Any, ...]) -> Any:
    """What a call of the bindings returned beside its status.

    Raises:
        EngineError: the status is not success.
    """
    status, *values = result
    if int(status) != 0:
        rt = cudart()
        _, text = rt.cudaGetErrorString(status)
        raise EngineError(
            f"CUDA: {getattr(status, 'name', status)}: {bytes(text).decode()}", code="gpu-failed"
        )
    return values[0] if len(values) == 1 else values


def find_gpu() -> Gpu:
    """The first GPU.

    Raises:
        MissingExtraError: cuda-python is not installed.
        EngineError: there is no GPU that CUDA can use, and what to do.
    """
    rt = cudart()
    try:
        count = checked(rt.cudaGetDeviceCount())
        if not count:
            raise EngineError("CUDA finds no device", code="gpu-missing")
        properties = checked(rt.cudaGetDeviceProperties(0))
    except EngineError as error:
        raise EngineError(
            f"no NVIDIA GPU can be used here ({error}); use `engine` native or `engine` onnx, or "
            "see 'hfrt doctor'",
            code="gpu-missing",
        ) from None
    name = bytes(properties.name).split(b"\0")[0].decode()
    capability = 10 * int(properties.major) + int(properties.minor)
    return Gpu(name, capability, nvidia_driver() or str(checked(rt.cudaDriverGetVersion())))
