"""Damaged ONNX files: each becomes a graph that means what ONNX Runtime says, or an error of ours.

    python -m tests.export.onnx_import.fuzz --files 100000

Each number makes one file: bytes that are changed, an end that is cut off, or a network of
`seeds.py` whose nodes, attributes, sizes, types, numbers and names are changed. Processes of their
own, with bounded memory, read them; one that dies, hangs, or raises something else is a failure,
and its number makes it again: `--first 4711 --files 1`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx

from .damage import damaged_file

ROOT = Path(__file__).parents[3]
MEMORY = 3 << 30  # bytes of address space that a process may take besides what it has at first
SECONDS = 30  # for one file
SILENCE = 400  # seconds without a word, after which a process hangs
CHUNK = 5000  # files of one process
CHECKED = 0.3  # of the graphs, those that run
SMALL = 1 << 20  # numbers of a value, above which a graph does not run
AGREE = 1e-3  # numbers of a damaged network may be of any size


def forked(model, known) -> dict:
    """As `rules.inferred_apart`, without the start of a Python: a copy of this process; and that
    for some files only, as it is what takes longest.
    """
    from hyperfusion_rt.export.onnx_import.rules import inferred

    if len(model.SerializeToString()) % 4:
        return {}
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.write(send, json.dumps(inferred(model, known)[0]).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as file:
        said = file.read()
    os.waitpid(child, 0)
    return {name: tuple(shape) for name, shape in json.loads(said or b"{}").items()}


# --- one file -------------------------------------------------------------------------------------


def outcome(content: bytes, folder: Path, checked: bool, tell) -> str:
    """What becomes of a file: an error's code, `graph`, or `graph, checked`.

    Raises:
        AssertionError: the engines and ONNX Runtime do not agree.
    """
    from hyperfusion_rt.errors import HyperFusionError
    from hyperfusion_rt.export.onnx_import.read import read_onnx

    path = folder / "x.onnx"
    path.write_bytes(content)
    tell("reading")
    try:
        graph = read_onnx(path)
    except HyperFusionError as error:
        return error.code if len(str(error)) < 10_000 else "failed"
    return compared(graph, content, tell) if checked else "graph"


def compared(graph, content: bytes, tell) -> str:
    """The graph by itself, folded and in the native engine, beside ONNX Runtime."""
    from hyperfusion_rt.export.ir.fold import fold

    from .models import by_onnxruntime, given, in_float64, natively

    if any(math.prod(shape) > SMALL for shape in graph.shapes.values()) or _work(graph) > 1e9:
        return "graph, too large to run"
    batch = _batch(content)
    feeds = {name: x[:batch] for name, x in given(graph).items()}
    tell("running")
    found = [in_float64(graph, feeds), in_float64(fold(graph), feeds)]
    if list(graph.inputs) == ["image"]:
        found.append(natively(graph, feeds))
    tell("onnxruntime")
    try:
        expected = by_onnxruntime(onnx.ModelProto.FromString(content), feeds)
    except Exception:  # it has many
        return "graph, but not in ONNX Runtime"
    tell("comparing")
    same = True
    for outputs in found:
        for one, other in zip(outputs, expected, strict=True):
            same &= _agree(one, np.asarray(other))
    assert same, "ONNX Runtime says something else"
    return "graph, compared"


def _batch(content: bytes) -> int:
    """The samples that ONNX Runtime takes: those of a file that fixes them."""
    model = onnx.ModelProto.FromString(content)
    held = {tensor.name for tensor in model.graph.initializer}
    first = next(item for item in model.graph.input if item.name not in held)
    return first.type.tensor_type.shape.dim[0].dim_value or 3


def _work(graph) -> float:
    """Multiplications, at most."""
    sizes = [a.size for node in graph.nodes for a in node.arrays.values()]
    return max(sizes, default=0) * max(map(math.prod, graph.shapes.values()))


def _agree(found: np.ndarray, expected: np.ndarray) -> bool:
    """Where both are finite and neither is beyond float32's comfort."""
    if found.shape != expected.shape:
        return False
    with np.errstate(all="ignore"):
        found, expected = found.astype(np.float64), expected.astype(np.float64)
        plain = np.isfinite(found) & np.isfinite(expected) & (np.abs(expected) < 1e6)
        if not plain.any():
            return True
        scale = max(np.abs(expected[plain]).max(), 1.0)
        return float(np.abs(found - expected)[plain].max() / scale) < AGREE


# --- processes ------------------------------------------------------------------------------------


class TooLongError(BaseException):
    """Nothing that could be caught by mistake."""


def _alarm(*_):
    raise TooLongError


def work(first: int, count: int, checked: float) -> None:
    """In a process of its own: a line of JSON for each file, and before it where it is."""
    import torch

    from hyperfusion_rt.export.onnx_import import read

    from . import models  # noqa: F401

    torch.set_num_threads(1)
    read.inferred_apart = forked
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
    signal.signal(signal.SIGALRM, _alarm)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + count):

            def tell(stage: str, number: int = number) -> None:
                os.write(1, f"{json.dumps([number, stage])}\n".encode())

            tell("making")
            content = damaged_file(number)
            chosen = np.random.default_rng([number, 1]).random() < checked
            start, failed = time.perf_counter(), ""
            signal.alarm(SECONDS)
            try:
                kind = outcome(content, Path(folder), chosen, tell)
            except TooLongError:
                kind, failed = "failed", f"longer than {SECONDS} s"
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                kind, failed = "failed", f"{type(error).__name__}: {error}"[:300]
            signal.alarm(0)
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            line = [number, kind, failed, time.perf_counter() - start, used]
            os.write(1, f"{json.dumps(line)}\n".encode())


class Figures:
    """What became of all files."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.failures: list[tuple[int, str]] = []
        self.slowest, self.memory = (0.0, 0), 0

    def __str__(self) -> str:
        lines = [f"{sum(self.kinds.values())} files"]
        lines += [f"  {count:7d} {kind}" for kind, count in self.kinds.most_common()]
        lines.append(f"slowest {self.slowest[0]:.2f} s (file {self.slowest[1]})")
        lines.append(f"most memory {self.memory / 1024:.0f} MiB")
        lines += [f"FAILED {number}: {what}" for number, what in self.failures]
        return "\n".join(lines)


def fuzz(first: int, files: int, checked: float = CHECKED) -> Figures:
    """Read `files` damaged files from number `first` on."""
    figures, at = Figures(), first
    while at < first + files:
        at = _chunk(figures, at, min(CHUNK, first + files - at), checked)
    return figures


def _chunk(figures: Figures, first: int, count: int, checked: float) -> int:
    """One process; returns the number of the next file."""
    command = [sys.executable, "-m", "tests.export.onnx_import.fuzz", "--work"]
    command += ["--first", str(first), "--files", str(count), "--checked", str(checked)]
    stage, at = "starting", first
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, cwd=ROOT
    ) as process:
        for line in _lines(process):
            match json.loads(line):
                case [number, now]:
                    at, stage = number, now
                case [number, kind, failed, seconds, used]:
                    figures.kinds[kind] += 1
                    figures.slowest = max(figures.slowest, (seconds, number))
                    figures.memory = max(figures.memory, used)
                    if failed:
                        figures.failures.append((number, f"{stage}: {failed}"))
                    at, stage = number + 1, "between"
    if process.returncode == 0 and at == first + count:
        return at
    if stage == "starting":
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    if stage == "onnxruntime":  # not ours
        figures.kinds["graph, ONNX Runtime died or hung"] += 1
        return at + 1
    figures.kinds["failed"] += 1
    figures.failures.append((at, f"{stage}: the process ended with {process.returncode}"))
    return at + 1


def _lines(process):
    """Its lines; it is killed after a long silence."""
    rest = b""
    signal.signal(signal.SIGALRM, _alarm)
    while True:
        signal.alarm(SILENCE)
        try:
            read = os.read(process.stdout.fileno(), 1 << 16)
        except TooLongError:
            process.kill()
            read = b""
        finally:
            signal.alarm(0)
        if not read:
            return
        *lines, rest = (rest + read).split(b"\n")
        yield from lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--checked", type=float, default=CHECKED)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.first, given.files, given.checked)
        return
    figures = fuzz(given.first, given.files, given.checked)
    print(figures)
    sys.exit(bool(figures.failures))


if __name__ == "__main__":
    main()
