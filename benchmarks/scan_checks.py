"""The checks of scans in `hfrt infer`: who is refused, who is warned of, who passes.

    python benchmarks/scan_checks.py --artifact demo/demo.hfrt --cache scans-cache
    python benchmarks/scan_checks.py --half choose ...   # while thresholds are chosen

Right scans: simulated subjects and brains that packages ship, as they are and in harmless variants.
Wrong scans: other modalities, labels, masks, heads with their skulls, what is not registered, and
right scans spoilt on purpose. The collection has two halves without a brain in common: thresholds
are chosen with `choose`; the reported figures are those of `judge`, which writes
benchmarks/scan_checks.md and .json. File names say nothing of what is in a file.
"""

from __future__ import annotations

import csv
import inspect
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parent))
from scan_collection import Half, Real, fetch, load
from scan_variants import ORIENTATIONS, STORED, WRONG, harmless, moved, on_grid, store
from scan_variants import __file__ as variants_file

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.machine import describe_machine, usable_cores

HERE = Path(__file__).parent
# Seeds of the simulated subjects: by 1 mm and by 2 mm.
SEEDS: dict[Half, tuple[int, int]] = {"choose": (9101, 9102), "judge": (9201, 9202)}
SUBJECTS = {1: 8, 2: 24}
VARIANTS_SIMULATED = {1: 5, 2: 3}
VARIANTS_REAL = 10
BASES = 5  # right scans that each way to be wrong is tried with
TABLE = {"AGE": 72, "PTGENDER": "Female", "PTEDUCAT": 16, "APOE4": 0, "ABETA": 1000, "TAU": 250,
         "PTAU": 25, "FDG": 1.2, "AV45": 1.1}  # fmt: skip
# What no check of the voxels can tell: brains are almost symmetric.
BLIND = "left and right exchanged"
Truth = Literal["right", "wrong"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A scan to make. `how`: `as it is`, `harmless`, `jittered` or a key of `WRONG`."""

    number: int
    name: str
    truth: Truth
    group: str
    source: Path
    how: str = "as it is"
    scale: float = 1.0

    @property
    def subject(self) -> str:
        """Also the file's name."""
        return f"S{self.number:04d}"


def plan(half: Half, cache: Path, simulated: dict[int, list[Path]]) -> list[Job]:
    """Every scan of one half."""
    jobs: list[Job] = []

    def add(*values: Any) -> None:
        jobs.append(Job(len(jobs), *values))

    real = [r for r in fetch(cache) if r.half == half]
    brains = [r for r in real if r.kind == "brain"]
    for mm, paths in simulated.items():
        for path in paths:
            name = f"simulated {path.name.split('.')[0]}"
            add(name, "right", f"simulated, {mm} mm", path)
            for k in range(VARIANTS_SIMULATED[mm]):
                add(f"{name} variant {k}", "right", f"simulated, {mm} mm: variants", path,
                    "harmless")  # fmt: skip
    for brain in brains:
        add(brain.name, "right", "real brains", brain.path(cache))
        for k in range(VARIANTS_REAL):
            add(f"{brain.name} variant {k}", "right", "real brains: variants", brain.path(cache),
                "harmless")  # fmt: skip
    for other in real:
        if other.kind == "brain":
            continue
        path = other.path(cache)
        add(other.name, "wrong", other.what, path)
        if other.kind in ("head", "raw"):
            for k in range(3):
                add(f"{other.name} jittered {k}", "wrong", other.what, path, "jittered")
        if other.name == "macaque":
            add("macaque of human size", "wrong", other.what, path, "jittered", 2.3)
    _spoilt(add, brains, cache, simulated)
    return jobs


def _spoilt(add: Any, brains: list[Real], cache: Path, simulated: dict[int, list[Path]]) -> None:
    bases = [(r.name, r.path(cache)) for r in brains]
    bases += [(f"simulated {p.name.split('.')[0]}", p) for p in simulated[2][:4] + simulated[1][:2]]
    for i, how in enumerate(WRONG):
        for k in range(BASES):
            name, path = bases[(3 * i + k * 4) % len(bases)]
            add(f"{name}, {how}", "wrong", how, path, how)


def make(job: Job, folder: Path) -> None:
    """Write the job's scan: the same bits every time."""
    rng = np.random.default_rng([job.number, 20])
    if job.how == "as it is":
        ending = ".nii.gz" if job.source.suffix == ".gz" else ".nii"
        shutil.copyfile(job.source, folder / f"{job.subject}{ending}")
        return
    scan = load(job.source)
    if job.how == "harmless":
        scan = harmless(scan, rng)
    elif job.how == "jittered":
        values, affine = scan
        degrees = tuple(rng.uniform(-2, 2, 3))
        scan = moved((values, np.diag([job.scale] * 3 + [1.0]) @ affine), degrees,
                     rng.uniform(-2, 2, 3))  # fmt: skip
        scan = on_grid(scan, (2.0, 2.0, 2.0), rng) if job.number % 2 else scan
    else:
        scan = WRONG[job.how](scan, rng)
    orientation = ORIENTATIONS[(7 * job.number) % len(ORIENTATIONS)]
    kinds = STORED if scan[0].min() >= 0 else ("float32",)
    ending = ".nii.gz" if job.number % 4 == 0 else ".nii"
    store(scan, folder / f"{job.subject}{ending}", rng, orientation, kinds[job.number % len(kinds)])


def _recipe(jobs: list[Job]) -> str:
    """What the scans of a folder are made by: with another recipe they are made again."""
    code = Path(variants_file).read_text(encoding="utf-8") + inspect.getsource(make)
    return json.dumps([*map(str, jobs), code])


def simulate(half: Half, folder: Path, jobs: int) -> dict[int, list[Path]]:
    """Scans of subjects that nothing else uses, mm → paths; those that are there are used."""
    found = {}
    for mm, seed in zip((1, 2), SEEDS[half], strict=True):
        out = folder / f"simulated-{half}-{mm}mm"
        if not (out / "data.csv").exists():
            options = ("--subjects", SUBJECTS[mm], "--seed", seed, "--spacing", mm, "--jobs", jobs)
            command = [sys.executable, "-m", "hyperfusion_rt.cli", "simulate", str(out)]
            subprocess.run([*command, *map(str, options)], check=True, stdout=subprocess.DEVNULL)
        found[mm] = sorted((out / "scans").iterdir())
    return found


def infer(folder: Path, jobs: list[Job], artifact: Path) -> dict[str, Row]:
    """`hfrt infer` on all scans at once; subject → its row of the table."""
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["subject", *TABLE])
        writer.writeheader()
        writer.writerows({"subject": job.subject, **TABLE} for job in jobs)
    command = [sys.executable, "-m", "hyperfusion_rt.cli", "infer", "scans", "--tabular",
               "table.csv", "--artifact", str(artifact), "--engine", "native", "--force",
               "--json"]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    table = folder / "predictions.csv"
    if not table.exists():
        raise SystemExit(f"hfrt infer wrote no table:\n{done.stdout}\n{done.stderr}")
    with open(table, newline="", encoding="utf-8") as file:
        return {row["subject"]: row for row in csv.DictReader(file)}


def judge(jobs: list[Job], predictions: dict[str, Row]) -> list[Row]:
    """A row per scan: `outcome` is refused, warned or silent; the table's columns follow."""
    rows = []
    for job in jobs:
        found = predictions[job.subject]
        refused = found["status"] != "ok"
        said = found["reason"] if refused else found.get("warnings") or found["reason"]
        outcome = "refused" if refused else "warned" if said else "silent"
        rows.append({"scan": job.name, "truth": job.truth, "group": job.group, "outcome": outcome,
                     "said": said, "columns": found})  # fmt: skip
    return rows


def _names(rows: list[Row], outcome: str, most: int = 12) -> str:
    names = [
        row["scan"].removesuffix(f", {row['group']}") for row in rows if row["outcome"] == outcome
    ]
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + rest


def _counts(rows: list[Row]) -> Counter[str]:
    return Counter(row["outcome"] for row in rows)


def report(rows: list[Row], half: Half, artifact: Path, seconds: dict[str, float]) -> str:
    """The page."""
    machine = describe_machine()
    right, wrong = ([r for r in rows if r["truth"] == truth] for truth in ("right", "wrong"))
    seen = [r for r in wrong if r["group"] != BLIND]
    manifest = Artifact.open(artifact).manifest
    lines = [
        "# The checks of scans",
        "",
        "Written by `python benchmarks/scan_checks.py`. One run of `hfrt infer` on right and on "
        "wrong scans, all with the same row of the table. The right ones: simulated subjects and "
        "skull-stripped T1 brains in MNI space that packages ship, as they are and in harmless "
        "variants (up to 2 mm and 2 degrees off, 1 to 3 mm voxels, all orientations, a smooth "
        "field up to ±15 %, gamma 0.8 to 1.25, noise up to 4 %, other types of voxels). Half of "
        f"the collection: `{half}`; the halves share no brain, and no threshold was chosen with "
        "`judge`.",
        "",
        f"Machine: {'; '.join(f'{k} {v}' for k, v in machine.items())}. Artifact: task "
        f"{manifest.task}, {len(manifest.preprocessing.boxes)} boxes at "
        f"{manifest.preprocessing.spacing:g} mm. "
        + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
        + ".",
        "",
        "| | scans | refused | predicted with a warning | predicted without a word |",
        "|---|---|---|---|---|",
    ]
    blind = [r for r in wrong if r["group"] == BLIND]
    for name, part in (("right", right), ("wrong", seen), (f"wrong: {BLIND}", blind)):
        n = _counts(part)
        lines.append(f"| {name} | {len(part)} | {n['refused']} | {n['warned']} | {n['silent']} |")
    lines += ["", "A brain is almost symmetric: nothing in the voxels tells left from right."]
    rule = "|---|---|---|---|---|"
    lines += ["", "## False alarms", ""]
    lines += ["| right scans | scans | refused | warned | which |", rule]
    lines += _groups(right, ("refused", "warned"))
    lines += ["", "## Misses", ""]
    lines += ["| wrong scans | scans | refused | warned | predicted without a word |", rule]
    lines += _groups(wrong, ("silent",))
    return "\n".join(lines) + "\n"


def _groups(rows: list[Row], named: tuple[str, ...]) -> list[str]:
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows):
        part = [row for row in rows if row["group"] == group]
        n = _counts(part)
        which = "; ".join(filter(None, (_names(part, outcome) for outcome in named)))
        if named == ("silent",) and n["silent"]:
            which = f"{n['silent']}: {which}"
        lines.append(f"| {group} | {len(part)} | {n['refused']} | {n['warned']} | {which} |")
    return lines


def figures(rows: list[Row], path: Path) -> None:
    """A line per scan with all columns of the output table, for choosing thresholds."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        names = ["scan", "truth", "group", "outcome", *rows[0]["columns"]]
        writer = csv.DictWriter(file, names, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, **row["columns"]} for row in rows)


def main(
    artifact: Annotated[Path, typer.Option(help="The network that predicts.")],
    cache: Annotated[Path, typer.Option(help="Keep the fetched volumes here.")],
    half: Annotated[
        str, typer.Option(help="choose or judge; only judge writes the tables.")
    ] = "judge",
    keep: Annotated[
        Path | None, typer.Option(help="Keep the scans here, and use those that are there.")
    ] = None,
    figures_to: Annotated[
        Path | None, typer.Option("--figures", help="Write a line per scan here, as TSV.")
    ] = None,
) -> None:
    """Make the scans, predict them, write the table."""
    assert half in ("choose", "judge"), half
    cores, start = usable_cores(), time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = ((keep or Path(scratch)) / half).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        jobs = plan(half, cache.resolve(), simulate(half, folder, cores))
        marker = folder / "made.json"
        wanted = _recipe(jobs)
        new = not marker.exists() or marker.read_text(encoding="utf-8") != wanted
        if new:
            shutil.rmtree(folder / "scans", ignore_errors=True)
            (folder / "scans").mkdir()
            with ProcessPoolExecutor(cores) as pool:
                list(pool.map(make, jobs, [folder / "scans"] * len(jobs), chunksize=4))
            marker.write_text(wanted, encoding="utf-8")
        made = time.perf_counter()
        predictions = infer(folder, jobs, artifact.resolve())
        end = time.perf_counter()
    rows = judge(jobs, predictions)
    seconds = {"Predicting the scans": end - made}
    if new:
        seconds["making them"] = made - start
    text = report(rows, half, artifact, seconds)
    if figures_to is not None:
        figures(rows, figures_to)
    if half == "judge":
        (HERE / "scan_checks.md").write_text(text, encoding="utf-8")
        kept = [{k: v for k, v in row.items() if k != "columns"} for row in rows]
        listed = ",\n".join(map(json.dumps, kept))  # a line per scan: easy to compare
        content = f'{{"machine": {json.dumps(describe_machine())}, "rows": [\n{listed}\n]}}\n'
        (HERE / "scan_checks.json").write_text(content, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    typer.run(main)
