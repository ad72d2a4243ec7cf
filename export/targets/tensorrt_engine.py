"""A network as a TensorRT engine: written as ONNX with its types, built, then compared."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hyperfusion_rt.artifact.manifest import Build, Comparison, Part
from hyperfusion_rt.errors import EngineError, MissingExtraError
from hyperfusion_rt.export.compare import Expected, compare
from hyperfusion_rt.export.ir.ensemble import Ensemble
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.export.precision import Emulated, check_drift, choose
from hyperfusion_rt.files import replacing, sha256
from hyperfusion_rt.runtime.engines.choose import open_file
from hyperfusion_rt.runtime.engines.trt import TrtEngine
from hyperfusion_rt.runtime.engines.trt_build import BuildOptions, Built, build

OnPhase = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Exported:
    """The files of one TensorRT engine and what was found."""

    files: list[tuple[Part, Path]]
    device: str
    comparison: Comparison
    build: Build


def export_tensorrt(
    engine: str,
    ensemble: Ensemble,
    expected: Expected,
    folder: Path,
    precision: str,
    options: BuildOptions,
    on_progress: OnPhase | None = None,
) -> Exported:
    """Write `model.trt` (or `.trt-rtx`), the ONNX file it is built from, and the build's log.

    Raises:
        HyperFusionError: the precision drifts, the engine cannot be built, or it differs.
    """
    typed = choose(ensemble, precision, expected)
    rounding = check_drift(ensemble, typed, expected)
    source = folder / f"{engine}-source.onnx"
    write_onnx(ensemble, source, typed)
    built = build(engine, source, options, on_progress)
    path, log = folder / f"model.{engine}", folder / f"{engine}-build.log.gz"
    with replacing(path) as temporary:
        temporary.write_bytes(built.content)
    with replacing(log) as temporary:
        # No time of day in it: the same build gives the same file.
        text = ("\n".join(built.log) + "\n").encode()
        temporary.write_bytes(gzip.compress(text, mtime=0))
    ran = runs_here(engine, built, options)
    if ran:
        comparison = compare(TrtEngine(path), expected, name=path.name, precision=precision)
    else:
        comparison = in_its_place(ensemble, source, expected, precision, typed.narrow)
    capabilities = options.capabilities if engine == "trt-rtx" else ()
    return Exported(
        files=[("whole", path), ("source", source), ("log", log)],
        device=built.gpu.name
        if built.gpu and engine == "trt"
        else ", ".join(f"sm_{c}" for c in capabilities),
        comparison=comparison,
        build=Build(
            version=built.version,
            batch=options.batch,
            workspace_gib=options.workspace,
            capabilities=capabilities,
            gpu=built.gpu.name if built.gpu else None,
            driver=built.gpu.driver if built.gpu else None,
            seconds=built.seconds,
            layers=built.layers,
            narrow=len(typed.narrow),
            kept=dict(typed.kept),
            emulated_drift=rounding,
            source_sha256=sha256(source),
            status="run and compared" if ran else "built, not run",
        ),
    )


def runs_here(engine: str, built: Built, options: BuildOptions) -> bool:
    """Whether there is a GPU, and it is one that the engine was built for."""
    if built.gpu is None:
        return False
    return engine == "trt" or built.gpu.capability in options.capabilities


def in_its_place(
    ensemble: Ensemble, source: Path, expected: Expected, precision: str, narrow: frozenset[str]
) -> Comparison:
    """What is compared without a GPU: ONNX Runtime on the same file, or the rounding emulated.

    ONNX Runtime has no bfloat16 convolutions on the CPU.
    """
    if precision != "bf16":
        try:
            runner = open_file("onnx", source)
        except (MissingExtraError, EngineError):
            pass
        else:
            found = compare(runner, expected, name=source.name, precision=precision)
            return found.model_copy(update={"by": "ONNX Runtime, same graph"})
    found = compare(
        Emulated(ensemble, precision, narrow),
        expected,
        name=f"{source.name} (emulated)",
        precision=precision,
    )
    return found.model_copy(update={"by": "emulated"})
