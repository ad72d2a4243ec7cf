"""The engine protocol and the choice of an engine. A backend is imported when it is opened."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import hyperfusion_rt
from hyperfusion_rt.artifact.manifest import Artifact, Build
from hyperfusion_rt.errors import ArtifactError, EngineError, HyperFusionError, MissingExtraError
from hyperfusion_rt.files import cache_folder, write_text
from hyperfusion_rt.machine import at_most_cores, describe_machine
from hyperfusion_rt.runtime.engines.gpu import Gpu, nvidia_driver
from hyperfusion_rt.runtime.engines.registry import ENGINES, TENSORRT, check_name
from hyperfusion_rt.runtime.identity import versions


class Engine(Protocol):
    """Executes an artifact's network: all members on all boxes. Several threads may call it."""

    def run(
        self, image: NDArray[np.float32], tabular: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float32]]:
        """Run one batch of cases, float32.

        `image [B, N·C, D, H, W]` of N boxes with C channels each (box 0's, then box 1's), `tabular
        [B, ΣT]` (the members' encoded rows in turn) → `output [B, C]`: probabilities, or a number;
        `members [B, M·N·C]`: the M members' raw outputs.
        """
        ...


class TrunkAndHead(Protocol):
    """An engine in two steps: what the head reads of an image can be kept, and used again."""

    def features(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """`image [B, N·C, D, H, W]` → the trunk's features by name, `[B, ...]` each."""
        ...

    def finish(
        self, features: dict[str, NDArray[np.float32]], tabular: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float32]]:
        """Features and `tabular [B, ΣT]` → as `Engine.run`."""
        ...


_TRIAL_SECONDS = 0.5  # for all engines together, after one run each; at least three runs of each


@dataclass(frozen=True)
class Opened:
    """An engine that is ready. `notes`: what its user should know of how it was chosen."""

    name: str
    engine: Engine
    notes: tuple[str, ...] = ()


def open_file(name: str, path: Path, threads: int | None = None) -> Engine:
    """Open one engine file.

    Raises:
        EngineError, MissingExtraError: it cannot be used, and why.
    """
    check_name(name)
    kind = ENGINES[name]
    found: Engine = getattr(importlib.import_module(kind.module), kind.class_name)(path, threads)
    return found


def open_engine(artifact: Artifact, name: str = "auto", threads: int | None = None) -> Opened:
    """Open an engine of `artifact`.

    `auto` takes the fastest of the artifact's engines that run here, by a short trial whose outcome
    is kept in the cache folder. A TensorRT engine of another GPU, driver or version is built again
    from its ONNX file, into the cache folder; where that cannot be, the onnx engine takes over.
    `threads`: at most the cores that the process may use; None uses them all.

    Raises:
        EngineError, MissingExtraError, ArtifactError: what is wrong and how to repair it.
    """
    threads = at_most_cores(threads)
    if name != "auto":
        check_name(name)
        return _open(artifact, name, threads)
    names = [known for known in ENGINES if known in artifact.engines]
    if len(names) == 1:
        return _open(artifact, names[0], threads)
    trials = _Trials(artifact, threads)
    if trials.chosen in names:
        with contextlib.suppress(EngineError, MissingExtraError):
            chosen = _open(artifact, trials.chosen, threads, stand_in=False)
            return _noted(chosen, trials.left_out)
    opened: list[Opened] = []
    left_out: list[str] = []
    example = _example(artifact)
    for candidate in names:
        try:
            found = _open(artifact, candidate, threads, stand_in=False)
            found.engine.run(*example)
            opened.append(found)
        except ArtifactError:
            raise
        except Exception as error:  # whatever its library raises: another engine may run
            left_out.append(f"the {candidate} engine cannot be used ({error})")
    if not opened:
        raise EngineError(
            f"{artifact.folder}: no engine runs here: {'; '.join(left_out)}",
            code="engine-none-runs",
        )
    fastest = opened[0] if len(opened) == 1 else trials.fastest(opened, left_out, *example)
    return _noted(fastest, left_out)


def open_parts(artifact: Artifact, opened: Opened, threads: int | None = None) -> TrunkAndHead:
    """The two steps of the engine that `open_engine` gave.

    Raises:
        EngineError: it cannot be split.
    """
    if opened.name == "native":
        split: TrunkAndHead = opened.engine  # type: ignore[assignment]
        return split
    if opened.name == "onnx" and any(e.part == "trunk" for e in artifact.manifest.engines):
        from hyperfusion_rt.runtime.engines.ort import OnnxParts

        files = (artifact.file("onnx", "trunk"), artifact.file("onnx", "head"))
        return OnnxParts(*files, at_most_cores(threads))
    raise EngineError(
        f"the {opened.name} engine does not give a scan's features, which `feature_cache` keeps; "
        "use `engine` native or onnx, or leave out `feature_cache`",
        code="engine-cannot-split",
    )


def _noted(opened: Opened, notes: Sequence[str]) -> Opened:
    return replace(opened, notes=(*opened.notes, *notes))


def _open(artifact: Artifact, name: str, threads: int | None, *, stand_in: bool = True) -> Opened:
    path = artifact.file(name)
    if name not in TENSORRT:
        return Opened(name, open_file(name, path, threads))
    try:
        return _open_tensorrt(artifact, name, path)
    except (EngineError, MissingExtraError) as error:
        if not stand_in or "onnx" not in artifact.engines:
            raise
        reason = f"the {name} engine cannot be used ({error}); the onnx engine takes over"
        return Opened("onnx", open_file("onnx", artifact.file("onnx"), threads), (reason,))


def _open_tensorrt(artifact: Artifact, name: str, path: Path) -> Opened:
    from hyperfusion_rt.runtime.engines import trt_build
    from hyperfusion_rt.runtime.engines.gpu import find_gpu
    from hyperfusion_rt.runtime.engines.trt import TrtEngine

    gpu = find_gpu()
    version = str(trt_build.load_package(name).__version__)
    made = artifact.entry(name).build
    if made is None:
        raise EngineError(
            f"{path}: the manifest does not say how it was built; export again",
            code="artifact-too-old",
        )
    stale = _stale(made, name, version, gpu)
    if not stale:
        return Opened(name, TrtEngine(path))
    options = trt_build.BuildOptions(made.batch, made.workspace_gib, (gpu.capability,))
    content, place = trt_build.rebuild(name, artifact.file(name, "source"), options, gpu)
    note = f"the {name} engine was built for {stale}: built again for this machine, in {place}"
    return Opened(name, TrtEngine(place, engine=name, content=content), (note,))


def _stale(made: Build, name: str, version: str, gpu: Gpu) -> str:
    """What an engine was built for, if that is not this machine; otherwise nothing."""
    if made.version != version:
        return f"version {made.version}, not {version}"
    if name == "trt-rtx":
        if gpu.capability not in made.capabilities:
            known = ", ".join(map(str, made.capabilities))
            return f"compute capabilities {known}, not {gpu.capability}"
    elif (made.gpu, made.driver) != (gpu.name, gpu.driver):
        return f"{made.gpu} with driver {made.driver}, not {gpu.name} with {gpu.driver}"
    return ""


def _example(artifact: Artifact) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The inputs of one case, zeros."""
    manifest = artifact.manifest
    image = np.zeros((1, *manifest.image_shape), np.float32)
    return image, np.zeros((1, sum(member.width for member in manifest.members)), np.float32)


class _Trials:
    """Which engine was the fastest, by artifact, machine and threads; kept as JSON."""

    def __init__(self, artifact: Artifact, threads: int | None) -> None:
        self.name = artifact.manifest.name
        self.path = cache_folder() / "trials.json"
        machine = {**describe_machine(), "driver": nvidia_driver(), "threads": threads}
        # What is installed or chosen later is another trial.
        packages = versions(*ENGINES)
        provider = os.environ.get("HFRT_ONNX_PROVIDER")
        version = hyperfusion_rt.__version__
        parts = [artifact.manifest.checksum, version, machine, packages, provider]
        self.key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        entry = self._known().get(self.key)
        entry = entry if isinstance(entry, dict) else {}
        chosen, left_out = entry.get("engine"), entry.get("left_out")
        # The fastest engine of an earlier trial, and why others took no part in it.
        self.chosen = chosen if isinstance(chosen, str) else None
        self.left_out = [str(note) for note in left_out] if isinstance(left_out, list) else []

    def _known(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def fastest(
        self,
        opened: Sequence[Opened],
        left_out: Sequence[str],
        image: NDArray[np.float32],
        tabular: NDArray[np.float32],
    ) -> Opened:
        """Time one case on each, which has run before; the first of equals."""
        taken: dict[str, list[float]] = {item.name: [] for item in opened}
        end = time.perf_counter() + _TRIAL_SECONDS
        rounds = 0
        while rounds < 3 or time.perf_counter() < end:
            rounds += 1
            for item in opened:  # in turn: what else the machine does meets all of them
                start = time.perf_counter()
                item.engine.run(image, tabular)
                taken[item.name].append(1e3 * (time.perf_counter() - start))
        times = {name: min(values) for name, values in taken.items()}
        best = min(opened, key=lambda item: times[item.name])
        entry = {
            "engine": best.name,
            "ms": times,
            "left_out": list(left_out),
            "artifact": self.name,
        }
        # A folder that cannot be written only means another trial next time.
        with contextlib.suppress(HyperFusionError):
            write_text(self.path, json.dumps({**self._known(), self.key: entry}, indent=1) + "\n")
        return best
