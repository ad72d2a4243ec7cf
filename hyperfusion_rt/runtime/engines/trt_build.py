"""From an ONNX file to a TensorRT engine, with `tensorrt` or `tensorrt_rtx`: one common API.

`trt` (package tensorrt) builds for the GPU of this machine, on it. `trt-rtx` (package tensorrt_rtx)
needs no GPU: it builds for compute capabilities and compiles the rest where the engine is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperfusion_rt.errors import ConfigError, EngineError, HyperFusionError, MissingExtraError
from hyperfusion_rt.files import cache_folder, replacing, sha256
from hyperfusion_rt.runtime.engines.gpu import Gpu, find_gpu
from hyperfusion_rt.runtime.engines.registry import ENGINES

# What trt-rtx builds for unless told: Ampere, Ada Lovelace, Blackwell.
CAPABILITIES = (80, 86, 89, 120)
_MOST_CASES, _MOST_GIB = 65536, 65536
_LOCK = threading.Lock()  # the package has one logger


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        batch: the smallest, the usual and the largest batch of cases.
        workspace: GiB that a layer may use while it runs.
        capabilities: of trt-rtx, 80 is 8.0.
    """

    batch: tuple[int, int, int] = (1, 8, 32)
    workspace: float = 4.0
    capabilities: tuple[int, ...] = CAPABILITIES

    def __post_init__(self) -> None:
        low, usual, high = self.batch
        if not 1 <= low <= usual <= high:
            raise ConfigError(
                f"`batch` {low}:{usual}:{high}: write it as SMALLEST:USUAL:LARGEST, from 1 upwards",
                code="option-wrong",
            )
        if high > _MOST_CASES:
            raise ConfigError(
                f"`batch` {low}:{usual}:{high}: at most {_MOST_CASES} cases", code="option-wrong"
            )
        if not 0 < self.workspace <= _MOST_GIB:
            raise ConfigError(
                f"`workspace` {self.workspace:g}: must be more than 0 GiB, and at most {_MOST_GIB}",
                code="option-wrong",
            )


@dataclass(frozen=True)
class Built:
    """An engine: its bytes, and what is to be known of the build."""

    content: bytes
    version: str
    seconds: float
    layers: int
    gpu: Gpu | None
    log: list[str] = field(default_factory=list)


def load_package(engine: str) -> Any:
    """The package of the engine `trt` or `trt-rtx`.

    Raises:
        MissingExtraError: it is not installed.
        EngineError: it is, and cannot be imported.
    """
    package = ENGINES[engine].package
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, engine, f"the {engine} engine")
    try:
        return importlib.import_module(package)
    except Exception as error:  # a missing library of CUDA, for one
        raise EngineError(
            f"{package} is installed but cannot be imported: {error}", code="engine-cannot-load"
        ) from None


def engine_key(engine: str, source: str, options: BuildOptions, version: str, gpu: Gpu) -> str:
    """What a built engine depends on, as a hash: `source` is the ONNX file's SHA-256."""
    parts = [engine, source, version, gpu.name, gpu.driver, options.batch, options.workspace]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


_SINKS: dict[str, list[str]] = {}
_LOGGERS: dict[str, Any] = {}


def _logger(engine: str, trt: Any) -> Any:
    """The package keeps the first logger that it is given: it writes to the present sink."""
    if engine not in _LOGGERS:

        class Log(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                name = str(severity).rsplit(".", 1)[-1]
                _SINKS.setdefault(engine, []).append(f"[{name}] {text}")

        _LOGGERS[engine] = Log()
    return _LOGGERS[engine]


def runtime_of(engine: str, trt: Any) -> Any:
    """The package's Runtime, with the common logger; with what it said last on errors."""
    _SINKS[engine] = []
    return trt.Runtime(_logger(engine, trt))


def complaints(engine: str, count: int = 3) -> str:
    """The last errors that the package logged."""
    lines = [line for line in _SINKS.get(engine, []) if "ERROR" in line.split("]")[0]]
    return (
        "; ".join(line.split("] ", 1)[-1].strip() for line in lines[-count:]) or "no reason given"
    )


def build(
    engine: str,
    source: Path,
    options: BuildOptions,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Built:
    """Build an engine from the ONNX file `source`.

    Strongly typed: every operation has the type that the file gives it. `on_progress(phase, done,
    steps)` is told of the phases directly below the build.

    Raises:
        EngineError: no GPU where one is needed, or the file cannot be parsed or built: which node.
        MissingExtraError: the package is not installed.
    """
    trt = load_package(engine)
    gpu = None
    with contextlib.suppress(EngineError, MissingExtraError):
        gpu = find_gpu()
    if engine == "trt" and gpu is None:
        find_gpu()  # says why
    with _LOCK:
        sink = _SINKS[engine] = []
        builder = trt.Builder(_logger(engine, trt))
        network = builder.create_network(_strongly_typed(trt))
        parser = trt.OnnxParser(network, _logger(engine, trt))
        if not parser.parse(source.read_bytes()):
            errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
            raise EngineError(
                f"{source.name}: {engine} cannot read it: {'; '.join(errors)}",
                code="engine-build-failed",
            )
        config = _config(engine, trt, builder, network, options)
        monitor = _monitor(trt, on_progress)
        config.progress_monitor = monitor
        cache = _timing_cache(engine, trt, config, gpu)
        start = time.perf_counter()
        serialized = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - start
        if serialized is None:
            raise EngineError(
                f"{source.name}: {engine} cannot build it: {complaints(engine)}",
                code="engine-build-failed",
            )
        if cache is not None:
            with contextlib.suppress(HyperFusionError), replacing(cache) as temporary:
                temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
        version = str(trt.__version__)
        return Built(bytes(serialized), version, seconds, network.num_layers, gpu, sink)


def _config(engine: str, trt: Any, builder: Any, network: Any, options: BuildOptions) -> Any:
    """The builder's configuration: memory, exact products, the range of batches, the chips."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * 2**30))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # it would keep ten bits of every fp32 product
    if engine == "trt-rtx":  # what a captured graph needs
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((batch, *rest) for batch in options.batch))
    config.add_optimization_profile(profile)
    if engine == "trt-rtx":
        _set_capabilities(trt, config, options.capabilities)
    return config


def _strongly_typed(trt: Any) -> int:
    """TensorRT 11 types every network strongly and may drop the flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _set_capabilities(trt: Any, config: Any, wanted: Sequence[int]) -> None:
    known = {
        int(name[2:]): getattr(trt.ComputeCapability, name)
        for name in dir(trt.ComputeCapability)
        if name.startswith("SM")
    }
    for capability in wanted:
        if capability not in known or capability < 80:
            choices = ", ".join(str(c) for c in sorted(known) if c >= 80)
            raise EngineError(
                f"compute capability {capability}: this tensorrt_rtx builds for {choices}",
                code="engine-build-failed",
            )
    config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        if not config.set_compute_capability(known[capability], index):
            raise EngineError(
                f"compute capability {capability}: refused by tensorrt_rtx",
                code="engine-build-failed",
            )


def _monitor(trt: Any, on_progress: Callable[[str, int, int], None] | None) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            if on_progress is not None:
                on_progress(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if on_progress is not None:
                on_progress(phase, step + 1, self.steps.get(phase, step + 1))
            return True

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


def _timing_cache(engine: str, trt: Any, config: Any, gpu: Gpu | None) -> Path | None:
    """Where measured kernels are kept between builds on the same GPU; trt-rtx measures nothing."""
    if engine != "trt" or gpu is None:
        return None
    name = f"{gpu.name}-{gpu.driver}-{trt.__version__}".replace(" ", "-").replace("/", "-")
    path = cache_folder() / "trt-timing" / f"{name}.cache"
    content = b""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
    config.set_timing_cache(config.create_timing_cache(content), False)
    return path


def cached_engine(key: str) -> Path:
    """Where an engine that was built on this machine is kept."""
    return cache_folder() / "engines" / f"{key}.engine"


def rebuild(engine: str, source: Path, options: BuildOptions, gpu: Gpu) -> tuple[bytes, Path]:
    """The engine of `source` for this machine, from the cache or built into it, and its place.

    A cache that cannot be written costs another build next time.
    """
    trt = load_package(engine)
    path = cached_engine(engine_key(engine, sha256(source), options, str(trt.__version__), gpu))
    with contextlib.suppress(OSError):
        return path.read_bytes(), path
    content = build(engine, source, options).content
    with contextlib.suppress(HyperFusionError), replacing(path) as temporary:
        temporary.write_bytes(content)
    return content, path
