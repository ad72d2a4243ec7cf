"""What this machine has, which engines it can use, and which versions are known to be bad."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import hyperfusion_rt
from hyperfusion_rt.machine import describe_machine, installed
from hyperfusion_rt.runtime.engines.gpu import nvidia_driver
from hyperfusion_rt.runtime.engines.ort import PROVIDERS
from hyperfusion_rt.runtime.engines.registry import ENGINES, TENSORRT


@dataclass(frozen=True)
class Facts:
    """What was found. Versions are texts; None is what is not here.

    `native`: instruction sets. `capability`: of the first GPU, 9.0 as (9, 0). `onnxruntime`: the
    packages that own this import name. `problems`: what is installed and cannot be imported, and
    why.
    """

    native: tuple[str, ...] | None = None
    torch: str | None = None
    cuda: str | None = None  # that torch was built for
    driver: str | None = None  # of NVIDIA's kernel module
    devices: tuple[str, ...] = ()
    capability: tuple[int, int] | None = None
    cudnn: tuple[int, int, int] | None = None
    triton: str | None = None
    tensorrt: str | None = None
    tensorrt_rtx: str | None = None
    cuda_python: str | None = None
    onnxruntime: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    provider: str | None = None  # that HFRT_ONNX_PROVIDER names


@dataclass(frozen=True)
class Diagnosis:
    """`rows`: (name, value) of the machine; `engines`: (engine, usable, how or why not)."""

    rows: list[tuple[str, str]]
    engines: list[tuple[str, bool, str]]
    warnings: list[str]


def _cudnn(number: int | None) -> tuple[int, int, int] | None:
    """91002 is 9.10.2; before version 9, 8902 was 8.9.2."""
    if not number:
        return None
    if number >= 90000:
        return number // 10000, number // 100 % 100, number % 100
    return number // 1000, number // 100 % 10, number % 100


def look() -> Facts:
    """What is here. Imports what it reports on: a package that cannot be imported is a problem."""
    found: dict[str, Any] = {}
    problems = []

    def load(name: str) -> Any:
        try:
            return importlib.import_module(name)
        except Exception as error:  # whatever a broken installation raises
            problems.append(f"{name} is installed but cannot be imported: {error}")
            return None

    if (native := load("hyperfusion_rt._native")) is not None:
        found["native"] = tuple(native.available_isas())
    found["driver"] = nvidia_driver()
    for package in ("torch", "triton", "tensorrt", "tensorrt_rtx"):
        found[package] = installed(package)
    found["cuda_python"] = installed("cuda-bindings")
    for package in ("tensorrt", "tensorrt_rtx"):
        if found[package]:
            load(package)
    if found["torch"] and (torch := load("torch")) is not None:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = _cudnn(torch.backends.cudnn.version())
        if torch.cuda.is_available():
            count = torch.cuda.device_count()
            found["devices"] = tuple(torch.cuda.get_device_name(i) for i in range(count))
            found["capability"] = torch.cuda.get_device_capability(0)
    owners = {p: installed(p) for p in ("onnxruntime", "onnxruntime-gpu")}
    found["onnxruntime"] = tuple(f"{p} {v}" for p, v in owners.items() if v)
    if found["onnxruntime"] and (ort := load("onnxruntime")) is not None:
        found["providers"] = tuple(ort.get_available_providers())
    found["provider"] = os.environ.get("HFRT_ONNX_PROVIDER") or None
    return Facts(**found, problems=tuple(problems))


def engines(facts: Facts) -> list[tuple[str, bool, str]]:
    """(engine, usable, how it would run or why it cannot)."""
    return [
        ("native", *_native(facts)),
        ("onnx", *_onnx(facts)),
        ("torch", *_torch(facts)),
        *((name, *_tensorrt(facts, name)) for name in TENSORRT),
    ]


def _native(facts: Facts) -> tuple[bool, str]:
    if facts.native:
        return True, f"CPU, {facts.native[0]} instructions"
    if facts.native is None:
        return False, "the compiled module is missing: reinstall hyperfusion_rt"
    return False, "needs a processor with AVX2 and FMA, AVX-512 or NEON"


def _onnx(facts: Facts) -> tuple[bool, str]:
    if not facts.providers:
        need = "pip install 'hyperfusion_rt[cpu]' (or [gpu], never both)"
        return False, f"onnxruntime is missing: {need}"
    offered = [name for name, p in PROVIDERS.items() if p.name in facts.providers]
    choices = [name for name, p in PROVIDERS.items() if name in offered or p.plugin]
    if facts.provider is None:
        first = "cuda" if "cuda" in offered else "cpu"
        others = [name for name in offered if name != first]
        more = f"; HFRT_ONNX_PROVIDER may be {' or '.join(others)}" if others else ""
        return True, first.upper() + more
    if facts.provider in choices:
        return True, f"{facts.provider}, as HFRT_ONNX_PROVIDER says"
    chosen = f"HFRT_ONNX_PROVIDER={facts.provider} is not here: unset it, or choose from "
    return False, chosen + ", ".join(choices)


def _torch(facts: Facts) -> tuple[bool, str]:
    if facts.torch is None:
        return False, "torch is missing: pip install 'hyperfusion_rt[train]'"
    if facts.devices and facts.triton:
        return True, "CUDA, fused Triton kernels"
    if facts.devices:
        return True, "CUDA, torch's own convolutions (Triton is missing)"
    return True, "CPU"


def _tensorrt(facts: Facts, name: str) -> tuple[bool, str]:
    package = ENGINES[name].package
    version: str | None = getattr(facts, package)
    need = f"pip install 'hyperfusion_rt[{name}]'"
    if version is None:
        return False, f"{package} is missing: {need}"
    if facts.driver and facts.cuda_python is None:
        return False, f"{package} {version} needs cuda-python: {need}"
    if facts.driver:
        return True, f"{package} {version}, driver {facts.driver}"
    if name == "trt-rtx":
        return False, f"{package} {version} builds engines here; to run them needs a GPU"
    return False, f"{package} {version} needs a GPU to build and to run"


def warnings(facts: Facts) -> list[str]:
    """What is known to be bad here, and how to repair it."""
    found = list(facts.problems)
    release = tuple(int(n) for n in (facts.torch or "0.0").split("+")[0].split(".")[:2])
    if release == (2, 9):
        found.append(
            f"torch {facts.torch}: 3D convolutions regressed in 2.9 (pytorch #166122, #166643): "
            "slow, and short of memory in bfloat16; install 2.8, or 2.10 and later"
        )
    if facts.devices and facts.cudnn and facts.cudnn < (9, 15, 0):
        version = ".".join(map(str, facts.cudnn))
        found.append(
            f"cuDNN {version}: bfloat16 3D convolutions are slow before 9.15; "
            "pip install -U 'nvidia-cudnn-cu12>=9.15' (cu13 for CUDA 13)"
        )
    if facts.capability and facts.capability < (8, 0):
        major, minor = facts.capability
        found.append(
            f"{facts.devices[0]} has compute capability {major}.{minor}: the Triton kernels are "
            "compiled for 8.0 and later, bfloat16 is emulated; train with training.amp=false"
        )
    if facts.torch and facts.driver and not facts.devices:
        built = f"for CUDA {facts.cuda}" if facts.cuda else "without CUDA"
        found.append(
            f"there is an NVIDIA driver ({facts.driver}), but torch {facts.torch}, built {built}, "
            "sees no GPU: install the build for your driver, https://pytorch.org/get-started"
        )
    if facts.devices and not facts.triton:
        found.append(
            "Triton is missing: generated convolutions run as compositions; pip install triton"
        )
    if len(facts.onnxruntime) > 1:
        found.append(
            f"{' and '.join(facts.onnxruntime)} overwrite each other; repair with: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them"
        )
    elif facts.driver and facts.onnxruntime and "CUDAExecutionProvider" not in facts.providers:
        found.append(
            f"{facts.onnxruntime[0]} offers no CUDA: for the GPU, pip uninstall -y onnxruntime "
            "onnxruntime-gpu, then pip install 'hyperfusion_rt[gpu]'"
        )
    return found


def diagnose(facts: Facts | None = None) -> Diagnosis:
    """This machine, or the one that `facts` describes."""
    facts = facts or look()

    def text(values: Any) -> str:
        return ", ".join(map(str, values)) if values else "none"

    cudnn = f", cuDNN {'.'.join(map(str, facts.cudnn))}" if facts.cudnn else ""
    built = f" (built for CUDA {facts.cuda}{cudnn})" if facts.cuda else " (CPU build)"
    rows = [
        ("hyperfusion_rt", hyperfusion_rt.__version__),
        *describe_machine().items(),
        ("native kernels", text(facts.native)),
        ("NVIDIA driver", facts.driver or "none"),
        ("GPU", text(facts.devices)),
        ("torch", f"{facts.torch}{built}" if facts.torch else "not installed"),
        ("triton", facts.triton or "not installed"),
        ("tensorrt", facts.tensorrt or "not installed"),
        ("tensorrt_rtx", facts.tensorrt_rtx or "not installed"),
        ("cuda-python", facts.cuda_python or "not installed"),
        ("onnxruntime", text(facts.onnxruntime)),
        ("execution providers", text(facts.providers)),
    ]
    return Diagnosis(rows, engines(facts), warnings(facts))


def as_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    """For `--json`."""
    return {
        "machine": dict(diagnosis.rows),
        "engines": [
            {"engine": name, "usable": usable, "note": note}
            for name, usable, note in diagnosis.engines
        ],
        "warnings": diagnosis.warnings,
    }
