"""What a night may bring: kills, a dead worker, a dead machine, a new table for 10,000 subjects.

    python benchmarks/night.py    # writes benchmarks/night.md and .json; about ten minutes

The published protocol (f = 16, four members on two hippocampi; random weights) on simulated scans
at 1 mm. Every part ends with a comparison of all bits with an undisturbed run.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).parent))
from cohort import make_cohort

from hyperfusion_rt.machine import describe_machine
from hyperfusion_rt.runtime.cohort.journal import read_journal

HERE = Path(__file__).parent
Values = dict[str, tuple[Any, ...]]


def command(out: str, *options: object) -> list[str]:
    """`hfrt infer` in a cohort's folder."""
    start = [sys.executable, "-m", "hyperfusion_rt.cli", "infer", "scans", "--tabular", "data.csv"]
    return [*start, "--engine", "native", "--out", out, *map(str, options)]


def infer(folder: Path, out: str, *options: object) -> float:
    """Run it; the seconds from start to exit."""
    start = time.perf_counter()
    subprocess.run(
        command(out, *options), cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=-1
    )
    return time.perf_counter() - start


def values(folder: Path, out: str) -> Values:
    """Subject → all bits of its numbers; each subject once in journal and table."""
    path = folder / f"{out}.journal"
    lines = [line for line in path.read_bytes().splitlines() if line.startswith(b'{"case"')]
    found = {p.subject: (p.status, *p.values, p.spread) for p in read_journal(path).predictions}
    with open(folder / out, newline="", encoding="utf-8") as file:
        rows = [row["subject"] for row in csv.DictReader(file)]
    assert len(lines) == len(found) == len(rows) == len(set(rows))
    return found


def start(folder: Path, out: str, *options: object) -> subprocess.Popen[bytes]:
    """Start it, to be killed."""
    null = subprocess.DEVNULL
    return subprocess.Popen(command(out, *options), cwd=folder, stdout=null, stderr=null)


def kills(folder: Path, expected: Values, count: int, seconds: float) -> dict[str, Any]:
    """`kill -9` at random moments, resumed each time."""
    rng = random.Random(1)
    path = folder / "killed.csv.journal"
    path.unlink(missing_ok=True)
    progress, moments = [], []
    while len(progress) < count:
        process = start(folder, "killed.csv", "--resume")
        moment = rng.uniform(0, 0.5 + seconds / count)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise SystemExit(f"done after {len(progress)} kills: take more scans or fewer kills")
        record = read_journal(path) if path.exists() else None
        progress.append(len(record.cases) if record else 0)
        moments.append(round(moment, 2))
    infer(folder, "killed.csv", "--resume")
    found = values(folder, "killed.csv")
    assert found == expected
    return {
        "kills": count,
        "moments_seconds": moments,
        "done_after_each_kill": progress,
        "subjects": len(found),
        "identical": found == expected,
    }


def ray_worker(folder: Path, expected: Values) -> dict[str, Any]:
    """Two actors on this machine, one killed in the middle."""
    path = folder / "ray.csv.journal"
    path.unlink(missing_ok=True)
    process = start(folder, "ray.csv", "--executor", "ray", "--workers", 2, "--threads", 1)
    done = wait_for(path, 10, process)
    actors = [pid for pid, name in processes() if name.startswith("ray::MapWorker")]
    os.kill(actors[0], signal.SIGKILL)
    assert process.wait() == 0
    found = values(folder, "ray.csv")
    assert found == expected
    return {"actors": len(actors), "done_before": done, "subjects": len(found), "identical": True}


def ray_machine(folder: Path, expected: Values) -> dict[str, Any]:
    """A cluster of a head and two workers, raylets of their own, in another folder; one killed."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        path = folder / "cluster.csv.journal"
        path.unlink(missing_ok=True)
        ray = ("--executor", "ray", "--workers", 2, "--threads", 1)
        process = start(folder, "cluster.csv", *ray, "--ray-address", cluster.address)
        done = wait_for(path, 10, process)
        cluster.remove_node(workers[0], allow_graceful=False)
        assert process.wait() == 0
    finally:
        cluster.shutdown()
    found = values(folder, "cluster.csv")
    assert found == expected
    return {"machines": 2, "done_before": done, "subjects": len(found), "identical": True}


def wait_for(path: Path, cases: int, process: subprocess.Popen[bytes]) -> int:
    """Until the journal has so many cases; how many it has."""
    while process.poll() is None:
        record = read_journal(path) if path.exists() else None
        if record and len(record.cases) >= cases:
            return len(record.cases)
        time.sleep(0.02)
    raise SystemExit(f"{path}: the run ended before {cases} cases")


def processes() -> list[tuple[int, str]]:
    """Process ids and command lines."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            text = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        found.append((int(place.name), text))
    return found


def rescoring(folder: Path, root: Path, subjects: int) -> dict[str, Any]:
    """Many subjects, kept features, another table."""
    many = root / "many"
    shutil.rmtree(many, ignore_errors=True)
    (many / "scans").mkdir(parents=True)
    shutil.copytree(folder / "model.hfrt", many / "model.hfrt")
    scans = sorted((folder / "scans").iterdir())
    with open(folder / "data.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    column = next(iter(rows[0]))
    listed = [{**rows[n % len(rows)], column: f"M{n:05d}"} for n in range(subjects)]
    for n, row in enumerate(listed):
        # Names of their own for the same content: the content's hash decides.
        os.link(scans[n % len(scans)], many / "scans" / f"{row[column]}.nii.gz")

    def write(age: int) -> None:
        with open(many / "data.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in listed:
                writer.writerow({**row, "AGE": f"{float(row['AGE']) + age:.2f}"})

    write(0)
    kept = ("--feature-cache", "cache", "--force")
    first = infer(many, "first.csv", *kept)
    write(1)
    again = infer(many, "again.csv", *kept)
    rescored = values(many, "again.csv")
    sample = [row[column] for row in listed[:: max(1, subjects // 48)]]
    direct = infer(many, "direct.csv", "--force", *[f"--subject={name}" for name in sample])
    plain = values(many, "direct.csv")
    assert plain == {name: rescored[name] for name in plain}
    return {
        "subjects": subjects,
        "first_seconds": first,
        "rescoring_seconds": again,
        "changed": sum(rescored[s] != v for s, v in values(many, "first.csv").items()),
        "compared_without_cache": len(plain),
        "without_cache_seconds": direct,
        "identical": True,
        "cache_bytes": (many / "cache" / "features.sqlite").stat().st_size,
    }


def write(found: dict[str, Any]) -> str:
    """The page, and the figures as JSON."""
    machine = describe_machine()
    k, w, m, r = (found[name] for name in ("kills", "ray_worker", "ray_machine", "rescoring"))
    lines = [
        "# A night's accidents",
        "",
        f"Written by `python benchmarks/night.py`. {k['subjects']} simulated 1 mm scans, the "
        "published protocol (f = 16, four members on two hippocampi), native engine.",
        "",
        f"Machine: {'; '.join(f'{key} {v}' for key, v in machine.items())}.",
        "",
        "| what happened | outcome |",
        "|---|---|",
        f"| `kill -9` at {k['kills']} random moments, `--resume` after each | all "
        f"{k['subjects']} subjects exactly once, all bits as in an undisturbed run; done after "
        f"each kill: {', '.join(map(str, k['done_after_each_kill']))} |",
        f"| `--executor ray`, {w['actors']} workers, one killed when {w['done_before']} subjects "
        f"were done | all {w['subjects']} exactly once, all bits the same |",
        f"| a Ray cluster of {m['machines']} machines (raylets on this one), one killed when "
        f"{m['done_before']} were done | all {m['subjects']} exactly once, all bits the same |",
        "",
        f"**A new table** (`--feature-cache`): {r['subjects']:,} subjects (hard links to the "
        f"scans). First run, every file read and hashed: {r['first_seconds']:.1f} s. With "
        f"everybody's age changed: **{r['rescoring_seconds']:.1f} s**, {r['changed']:,} results "
        f"changed; {r['compared_without_cache']} of them compared with a run without the cache: "
        f"all bits the same (that run: {r['without_cache_seconds']:.1f} s). The cache has "
        f"{r['cache_bytes'] / 1e6:.1f} MB.",
    ]
    content = {"machine": machine, **found}
    (HERE / "night.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    text = "\n".join(lines) + "\n"
    (HERE / "night.md").write_text(text, encoding="utf-8")
    return text


def main(
    subjects: int = 64,
    many: int = 10_000,
    count: int = 20,
    keep: Annotated[
        Path | None, typer.Option(help="Make the cohort here, or use the one that is there.")
    ] = None,
) -> None:
    """Run everything and write the page."""
    with tempfile.TemporaryDirectory() as scratch:
        root = (keep or Path(scratch)).resolve()
        folder = root / "ad"
        make_cohort("ad", subjects, folder)
        seconds = infer(folder, "expected.csv", "--force")
        expected = values(folder, "expected.csv")
        found = {
            "kills": kills(folder, expected, count, seconds),
            "ray_worker": ray_worker(folder, expected),
            "ray_machine": ray_machine(folder, expected),
            "rescoring": rescoring(folder.resolve(), root, many),
        }
    print(write(found))


if __name__ == "__main__":
    typer.run(main)
