"""Sixty-four raw heads, from files to predictions.csv: `hfrt infer --from raw`.

    python benchmarks/raw_night.py --artifact demo/demo.hfrt   # writes raw_night.md and .json

Three people's heads of `scan_collection.py`, each turned at random, with noise and a field of ±30 %
of its own, on a grid of 256 x 256 x 192 voxels of 1 mm, int16, .nii.gz. Measured is the whole
command as a new process: its seconds, the CPU's seconds a scan, and the largest resident memory.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import nibabel as nib
import numpy as np
import typer
from scan_collection import fetch
from spoil import noisy, with_field

from hyperfusion_rt.data.raw.image import Image, read_raw, sample, turn
from hyperfusion_rt.machine import describe_machine

HERE = Path(__file__).parent
HEADS = ("Colin27 head", "pydeface head", "ROBEX head")
SHAPE = (256, 256, 192)
ROW = {
    "AGE": "71", "PTGENDER": "Female", "PTEDUCAT": "14", "APOE4": "1", "ABETA": "900",
    "TAU": "260", "PTAU": "24", "FDG": "1.2", "AV45": "1.2",
}  # fmt: skip


def one(head: Image, rng: np.random.Generator, path: Path) -> None:
    """A head on the grid."""
    grid = np.eye(4)
    grid[:3, :3] = turn(tuple(rng.uniform(-15, 15, 3)))
    middle = (head.affine @ np.r_[(np.array(head.voxels.shape) - 1) / 2, 1])[:3]
    grid[:3, 3] = middle - grid[:3, :3] @ ((np.array(SHAPE) - 1) / 2) + rng.uniform(-8, 8, 3)
    voxels = sample(head.voxels, np.linalg.inv(head.affine) @ grid, SHAPE)
    made = with_field(Image(path, voxels, grid), 0.3, int(rng.integers(10**9)))
    made = noisy(made, 0.02, int(rng.integers(10**9)))
    values = np.rint(made.voxels * (4000 / made.voxels.max())).astype(np.int16)
    nib.Nifti1Image(values, grid).to_filename(path)


def resident(process: int) -> float:
    """The largest resident memory so far, MB; of a child's `ru_maxrss` its parent is a part."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines.get("VmHWM", "0 kB").split()[0]) / 1024


def night(folder: Path, artifact: Path, threads: int) -> dict[str, Any]:
    """The command, once."""
    command = [
        sys.executable, "-m", "hyperfusion_rt.cli", "infer", "scans", "--from", "raw",
        "--tabular", "data.csv", "--artifact", artifact.absolute(), "--engine", "native",
        "--threads", threads, "--out", f"{threads}.csv",
    ]  # fmt: skip
    start, null = time.perf_counter(), subprocess.DEVNULL
    process = subprocess.Popen(list(map(str, command)), cwd=folder, stdout=null, stderr=null)
    memory = 0.0
    while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        memory = max(memory, resident(process.pid))
        time.sleep(0.1)
    _, status, used = ended
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{command} failed")
    with open(folder / f"{threads}.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        "threads": threads,
        "seconds": seconds,
        "cpu": used.ru_utime + used.ru_stime,
        "predicted": sum(row["status"] == "ok" for row in rows),
        "flagged": sum(row["status"] == "ok" and bool(row["warnings"]) for row in rows),
        "memory": memory,
        "rows": [{name: row[name] for name in row if name != "path"} for row in rows],
    }


def page(content: dict[str, Any]) -> str:
    """The table."""
    machine = "; ".join(f"{k} {v}" for k, v in content["machine"].items())
    head = ("threads", "s", "CPU s a scan", "largest memory, MB", "predicted", "of these flagged")
    lines = [
        "# A night of raw heads", "",
        f"Written by `python benchmarks/raw_night.py`. Machine: {machine}.", "",
        (__doc__ or "").split("\n\n")[2].replace("\n", " "), "",
        "| " + " | ".join(head) + " |", "|---" * len(head) + "|",
    ]  # fmt: skip
    for run in content["runs"]:
        cpu = run["cpu"] / content["scans"]
        cells = (run["threads"], f"{run['seconds']:.0f}", f"{cpu:.2f}", f"{run['memory']:.0f}",
                 run["predicted"], run["flagged"])  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main(
    artifact: Annotated[Path, typer.Option(help="Of a network of ADNI's columns.")],
    scans: Annotated[int, typer.Option(help="How many.")] = 64,
    cache: Annotated[Path, typer.Option(help="Of the volumes.")] = HERE.parent / "build" / "scans",
) -> None:
    """Make the heads, predict them with one thread and with two, and write the page."""
    volumes = {real.name: real.path(cache) for real in fetch(cache)}
    heads = [read_raw(volumes[name]) for name in HEADS]
    rng = np.random.default_rng(7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scans").mkdir()
        rows = []
        for number in range(scans):
            rows.append({"subject": f"S{number:02}"} | ROW)
            path = folder / "scans" / f"S{number:02}.nii.gz"
            one(heads[number % len(heads)], rng, path)
        with open(folder / "data.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        runs = [night(folder, artifact, threads) for threads in (1, 2)]
    content = {"machine": describe_machine(), "scans": scans, "runs": runs}
    text = json.dumps(content, indent=1) + "\n"
    (HERE / "raw_night.json").write_text(text, encoding="utf-8")
    (HERE / "raw_night.md").write_text(page(content), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
