"""The cache of decoded scans: what reading a case costs, and a study of 40,000 scans.

    python benchmarks/cache.py read     # a case's boxes from several kinds of file
    python benchmarks/cache.py study    # 40,000 scans, each of the four parts of a start

Each writes its part of `cache.json`, and `cache.md` of both. `read` needs `pip install blosc2 zarr`
beside the package; what it reads is simulated scans of 1 mm. Another version of the package stands
beside this one under a label of its own, if the interpreter finds it:

    PYTHONPATH=OLD:SITE-PACKAGES python benchmarks/cache.py study --label before \\
        --python "python -S" --no-asked
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from hyperfusion_rt.config import Preprocessing, load_config, preset
from hyperfusion_rt.data.volumes import load_boxes
from hyperfusion_rt.machine import describe_machine

HERE = Path(__file__).parent
PRESETS = {"ad-small": "ad", "ad": "ad", "brain-age": "brain-age"}  # preset: simulated cohort
SCANS = "the scan, decoded"
Floats = NDArray[np.float32]
Row = dict[str, Any]
app = typer.Typer(add_completion=False)


# ---- one case


def _raw(kind: Any, shape: tuple[int, ...]) -> tuple[Callable[..., None], Callable[..., Floats]]:
    def write(path: Path, boxes: Floats) -> None:
        path.write_bytes(boxes.astype(kind).tobytes())

    def read(path: Path) -> Floats:
        return np.array(np.memmap(path, kind, "r", shape=shape), np.float32)

    return write, read


def _blosc(
    codec: str, kind: Any, shape: tuple[int, ...]
) -> tuple[Callable[..., None], Callable[..., Floats]]:
    import blosc2

    blosc2.set_nthreads(1)
    how = {
        "codec": blosc2.Codec[codec],
        "typesize": np.dtype(kind).itemsize,
        "filters": [blosc2.Filter.BITSHUFFLE],
        "nthreads": 1,
    }

    def write(path: Path, boxes: Floats) -> None:
        path.write_bytes(blosc2.compress2(boxes.astype(kind).tobytes(), **how))

    def read(path: Path) -> Floats:
        found = blosc2.decompress2(path.read_bytes(), nthreads=1)
        return np.frombuffer(found, kind).reshape(shape).astype(np.float32, copy=False)

    return write, read


def _zarr(shape: tuple[int, ...]) -> tuple[Callable[..., None], Callable[..., Floats]]:
    import zarr

    def write(path: Path, boxes: Floats) -> None:
        array = zarr.create_array(str(path), shape=shape, chunks=shape, dtype="float32")
        array[:] = boxes

    def read(path: Path) -> Floats:
        return np.asarray(zarr.open_array(str(path), mode="r")[:])

    return write, read


def _forget(path: Path) -> None:
    """Take a file (a folder's files) out of the page cache."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _per_case(read: Callable[[Path], Floats], files: Sequence[Path], threads: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        for _ in pool.map(read, files):
            pass
        return (time.perf_counter() - start) / len(files) * 1e3


def _kinds(preprocessing: Preprocessing) -> dict[str, Any]:
    shape = preprocessing.images_shape
    return {
        "float32, mapped": _raw(np.float32, shape),
        "float16, mapped": _raw(np.float16, shape),
        "blosc2 lz4, float32": _blosc("LZ4", np.float32, shape),
        "blosc2 lz4, float16": _blosc("LZ4", np.float16, shape),
        "blosc2 zstd, float32": _blosc("ZSTD", np.float32, shape),
        "blosc2 zstd, float16": _blosc("ZSTD", np.float16, shape),
        "zarr v3, zstd, float32": _zarr(shape),
    }


def _measure(name: str, scans: Sequence[Path], folder: Path, rounds: int) -> list[Row]:
    """Milliseconds a case and bytes of every kind; each is compared with what was decoded."""
    preprocessing = preset(name).preprocessing
    decoded = [load_boxes(scan, preprocessing).images for scan in scans]
    ways: dict[str, tuple[list[Path], Callable[[Path], Floats]]] = {}
    errors: dict[str, float] = {}
    for number, (kind, (write, read)) in enumerate(_kinds(preprocessing).items()):
        place = folder / f"{name}-{number}"
        place.mkdir()
        files = [place / str(i) for i in range(len(scans))]
        for file, boxes in zip(files, decoded, strict=True):
            write(file, boxes)
        errors[kind] = max(
            float(np.abs(read(f) - b).max()) for f, b in zip(files, decoded, strict=True)
        )
        ways[kind] = files, read
    ways[SCANS] = list(scans), lambda path: load_boxes(path, preprocessing).images
    found: dict[str, Row] = {
        kind: {
            "preset": name,
            "shape": list(preprocessing.images_shape),
            "kind": kind,
            "bytes": sum(map(_size, files)) / len(files),
            "error": errors.get(kind, 0.0),
        }
        for kind, (files, _) in ways.items()
    }
    # In turn, so that what else the machine does meets all of them; the best of the rounds.
    for _ in range(rounds):
        for kind, (files, read) in ways.items():
            for threads in (1, 2):
                for state in ("cold", "warm"):
                    if state == "cold":
                        for file in files:
                            _forget(file)
                    key = f"{state}_{threads}"
                    took = _per_case(read, files, threads)
                    found[kind][key] = min(found[kind].get(key, took), took)
    return list(found.values())


@app.command()
def read(
    subjects: Annotated[int, typer.Option(help="Cases of each cohort.")] = 16,
    rounds: Annotated[int, typer.Option(help="The best of so many.")] = 5,
    scans: Annotated[Path, typer.Option(help="Where simulated scans are kept.")] = Path(
        "build/cache-scans"
    ),
) -> None:
    """Time reading a case from each kind of file, warm and cold, on 1 and 2 threads."""
    from hyperfusion_rt.data.simulate import simulate_cohort

    rows = []
    for name, task in PRESETS.items():
        place = scans / task
        if not (place / "data.csv").exists():
            simulate_cohort(place, task=task, subjects=subjects, seed=1, spacing=1)
        files = sorted((place / "scans").glob("*.nii.gz"))[:subjects]
        with tempfile.TemporaryDirectory(dir=scans) as folder:
            rows += _measure(name, files, Path(folder), rounds)
    _keep("read", {"machine": describe_machine(), "cases": subjects, "rows": rows})


# ---- a study


STUDY = """\
preset: ad-small
scan_checks: "off"
preprocessing:
  boxes: [{name: all, center: [0, 0, 0]}]
  shape: [8, 8, 8]
  spacing: 1.0
training: {parts: 5}
tabular:
  features:
  - {name: AGE, kind: numeric}
  - {name: SEX, kind: categorical}
  - {name: EDU, kind: numeric}
  stratify: [SEX]
"""


def make_study(root: Path, count: int, images: int = 8) -> None:
    """`count` scans of 11 x 11 x 11 voxels, hard links of a few files, and a table of them."""
    import nibabel as nib

    (root / "scans").mkdir(parents=True)
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, 3] = -5
    for image in range(images):
        made = nib.Nifti1Image(rng.integers(1, 900, (11, 11, 11)).astype(np.int16), affine)
        made.set_sform(affine, 4)
        nib.save(made, root / f"{image}.nii.gz")
    with open(root / "data.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "AGE", "SEX", "EDU", "DX"])
        for i in range(count):
            os.link(root / f"{i % images}.nii.gz", root / "scans" / f"S{i:06d}.nii.gz")
            age = f"{55 + 30 * rng.random():.1f}"
            writer.writerow(
                [f"S{i:06d}", age, "FM"[i % 2], rng.integers(8, 21), ("CN", "MCI", "AD")[i % 3]]
            )
    (root / "hfrt.yaml").write_text(STUDY)


def start_once(root: Path) -> dict[str, float]:
    """Seconds of each part of a training's start, in this process."""
    from hyperfusion_rt.training import dataset as module
    from hyperfusion_rt.training.dataset import inputs_of, splits_csv

    spent: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **more)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - start

        return call

    parts = {
        "find the scans": "find_cases",
        "read the table": "read_table_for",
        "join": "join",
        "check the columns": "check_columns",
        "scans and cache": "_look_at_scans",
        "parts": "parts_of",
    }
    for name, function in parts.items():
        setattr(module, function, timed(name, getattr(module, function)))
    config = load_config(root / "hfrt.yaml")
    begin, busy = time.perf_counter(), time.process_time()
    dataset = timed("all of gather", module.gather)(config, root)
    timed("splits.csv", splits_csv)(dataset, config, root)
    timed("inputs.json", inputs_of)(dataset, config)
    spent |= {"all": time.perf_counter() - begin, "processor": time.process_time() - busy}
    return {"cases": len(dataset.cases), **spent}


@app.command(hidden=True)
def ask(root: Path) -> None:
    """Ask the cache, in this process, all that a training asks of it; prints JSON."""
    from hyperfusion_rt.data.raw.landmarks import template_landmarks
    from hyperfusion_rt.data.volume_cache import VolumeCache

    config = load_config(root / "hfrt.yaml")
    scans = sorted((root / "scans").iterdir())
    landmarks = template_landmarks()
    begin, busy = time.perf_counter(), time.process_time()
    cache = VolumeCache(root / ".hfrt_cache", config.preprocessing, landmarks, config.scan_checks)
    missing = len(cache.reserve(scans))
    for scan in scans:
        cache.figures(scan)
        cache.content(scan)
    spent = {"opened": time.perf_counter() - begin, "processor": time.process_time() - busy}
    begin = time.perf_counter()
    for scan in scans:
        cache.get(scan)
    spent["read"] = time.perf_counter() - begin
    print(json.dumps({"cases": len(scans), "missing": missing, **spent}))


@app.command(hidden=True)
def start(root: Path) -> None:
    """One start of a training, in this process; prints JSON."""
    print(json.dumps(start_once(root)))


@app.command()
def study(
    label: Annotated[str, typer.Option(help="What this version is called.")] = "now",
    count: Annotated[int, typer.Option(help="Scans.")] = 40_000,
    python: Annotated[str, typer.Option(help="The interpreter that starts.")] = sys.executable,
    asked: Annotated[bool, typer.Option(help="Ask the cache alone, too.")] = True,
) -> None:
    """Time a training's start on many scans: the first time, and when all are decoded."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        root = Path(folder) / "study"
        make_study(root, count)
        seconds = {}
        for name in ("first", "again", *(["asked"] if asked else [])):
            what = "ask" if name == "asked" else "start"
            command = [*shlex.split(python), __file__, what, str(root)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds[name] = json.loads(said)
    kept = _kept().get("study", {}).get("rows", {})
    rows = {**kept, label: {"machine": describe_machine(), "scans": count, **seconds}}
    _keep("study", {"rows": rows})


# ---- what is written


def _kept() -> dict[str, Any]:
    path = HERE / "cache.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _keep(part: str, content: dict[str, Any]) -> None:
    found = {**_kept(), part: content}
    (HERE / "cache.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    text = "\n".join(_page(found)) + "\n"
    (HERE / "cache.md").write_text(text, encoding="utf-8")
    print(text)


def _machine(said: dict[str, str]) -> str:
    return "Machine: " + ", ".join(f"{name} {value}" for name, value in said.items()) + "."


def _page(found: dict[str, Any]) -> list[str]:
    lines = ["# The cache of decoded scans", ""]
    if "read" in found:
        part = found["read"]
        lines += [
            "## Reading one case",
            "",
            f"Written by `python benchmarks/cache.py read`: {part['cases']} simulated scans of "
            "1 mm; ms a case, the best of several rounds. Cold: the file was taken out of this "
            "machine's page cache first (its disk is virtual: the host may still have it). "
            "A case's boxes become a float32 array each time. Largest error: of voxels whose "
            "standard deviation is 1.",
            "",
            _machine(part["machine"]),
            "",
            "| boxes | from | MB | cold | cold, 2 threads | warm | warm, 2 threads | error |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in part["rows"]:
            shape = " × ".join(map(str, row["shape"]))
            times = " | ".join(
                f"{row[key]:.2f}" for key in ("cold_1", "cold_2", "warm_1", "warm_2")
            )
            error = f"{row['error']:.1g}" if row["error"] else "0"
            lines.append(
                f"| {row['preset']}, {shape} | {row['kind']} | {row['bytes'] / 1e6:.2f} | {times} "
                f"| {error} |"
            )
        lines.append("")
    if "study" in found:
        rows = found["study"]["rows"]
        first = next(iter(rows.values()))
        names = list(dict.fromkeys(n for r in rows.values() for n in r["again"] if n != "cases"))
        titles = [f"{label}, {when}" for label in rows for when in ("first", "again")]
        lines += [
            "## A study of many scans",
            "",
            f"Written by `python benchmarks/cache.py study`: {first['scans']:,} scans, hard links "
            "of 8 files of 11 × 11 × 11 voxels, with boxes of 8 × 8 × 8; seconds of a training's "
            "start in a new process, the first time and when all scans are decoded; beside the "
            "time by the clock, that of the processor. Last: all that a training's start asks of "
            "the cache (is each scan there and unchanged, what is it like, the key of its "
            "content), alone in a new process; and then the boxes of all, compared with their "
            "checksums. "
            "The version before was measured while the machine had other work.",
            "",
            _machine(first["machine"]),
            "",
            f"| | {' | '.join(titles)} |",
            f"|---|{'---|' * len(titles)}",
        ]
        for name in names:
            cells = [
                f"{row[when][name]:.1f}" for row in rows.values() for when in ("first", "again")
            ]
            title = "all, of the processor" if name == "processor" else name
            lines.append(f"| {title} | {' | '.join(cells)} |")
        for what, key in (
            ("the cache alone", "opened"),
            ("the cache alone, of the processor", "processor"),
            ("all boxes read", "read"),
        ):
            cells = [f"{row['asked'][key]:.1f}" if "asked" in row else "" for row in rows.values()]
            lines.append(f"| {what} | {' | '.join(f' | {c}' for c in cells)} |")
        lines.append("")
    return lines[:-1]


if __name__ == "__main__":
    app()
