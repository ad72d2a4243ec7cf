"""A cohort of 1 mm scans, from the files to the table: how fast is the whole command?

    python benchmarks/cohort.py    # writes benchmarks/cohort.md and .json

Simulated scans and random weights (time does not depend on them), f = 16: the published protocol
(four members on two hippocampi) and brain age. Contenders, each a process of its own, timed from
its start to its exit, in turn, with the same threads:

    hfrt infer        this package's command line, native engine
    plain + torch     per scan: nibabel's get_fdata, NumPy, torch eager
    plain + OpenVINO  per scan: the same, OpenVINO in float32 with all members in one graph

What the three predict is compared before anything is timed; the networks against float64 at their
export.
"""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from hyperfusion_rt.config import Preprocessing, preset
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.table_file import read_table
from hyperfusion_rt.machine import describe_machine, usable_cores

HERE = Path(__file__).parent
NAMES = ("hfrt infer", "plain + torch", "plain + OpenVINO")
NETWORKS = {"ad": 4, "brain-age": 1}  # members
Row = dict[str, Any]
app = typer.Typer(add_completion=False)


def make_cohort(task: Literal["ad", "brain-age"], subjects: int, folder: Path) -> None:
    """Simulated scans, and `model.hfrt` beside them: random weights, all engines."""
    import torch
    from safetensors.torch import save_file

    from hyperfusion_rt.data.simulate import simulate_cohort
    from hyperfusion_rt.export import export_run
    from hyperfusion_rt.files import write_text
    from hyperfusion_rt.models import network_of
    from hyperfusion_rt.training.run_folder import Run

    if not (folder / "data.csv").exists():
        simulate_cohort(folder, task=task, subjects=subjects, seed=1, spacing=1)
    if (folder / "model.hfrt").exists():
        return
    config = preset(task, {"training": {"members": NETWORKS[task]}})
    encoder = TabularEncoder.fit(read_table(folder / "data.csv").rows, config.tabular)
    run = Run.create(folder / "runs", config)
    for index in range(NETWORKS[task]):
        torch.manual_seed(index)
        member = run.member(index)
        write_text(member.folder / "encoder.json", encoder.model_dump_json())
        save_file(network_of(config, encoder.width).eval().state_dict(), member.weights)
    run.write_metrics({})
    export_run(run, folder / "model.hfrt")


def plain_boxes(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """`float32 [N, 1, D, H, W]` as one would write it with nibabel, SciPy and NumPy."""
    import nibabel as nib
    from scipy.ndimage import affine_transform

    scan = nib.as_closest_canonical(nib.load(path))
    data = scan.get_fdata()
    to_voxel = np.linalg.inv(scan.affine)
    found = []
    for box in preprocessing.boxes:
        shape = np.array(preprocessing.shape)
        first = np.array(box.center) - preprocessing.spacing * (shape - 1) / 2
        start = to_voxel[:3, :3] @ first + to_voxel[:3, 3]
        step = preprocessing.spacing * np.diag(to_voxel)[:3]
        if np.allclose(step, 1):
            i, j, k = np.floor(start + 0.5 + 1e-4).astype(int)
            image = data[i : i + shape[0], j : j + shape[1], k : k + shape[2]]
        else:
            image = affine_transform(data, step, start, tuple(shape), order=1, mode="constant")
        image = image[::-1] if box.mirror else image
        inside = np.abs(image) > 1e-6  # SciPy leaves 1e-13 where a weight should be 0
        values = image[inside]
        image = np.where(inside, (image - values.mean()) / values.std(), 0)
        found.append(image.astype(np.float32)[None])
    return np.stack(found)


@app.command()
def plain(folder: Path, kind: str, out: Path, threads: int) -> None:
    """One plain pipeline over the cohort; writes a CSV."""
    from hyperfusion_rt.artifact.manifest import Artifact
    from hyperfusion_rt.data.cohort import join
    from hyperfusion_rt.data.scan_search import find_scans

    manifest = Artifact.open(folder / "model.hfrt").manifest
    cases = join(find_scans(folder / "scans"), read_table(folder / "data.csv")).cases
    encoders = manifest.members
    if kind == "torch":
        import torch

        from hyperfusion_rt.training.results import load_member
        from hyperfusion_rt.training.run_folder import Run

        torch.set_num_threads(threads)
        run = Run.latest(folder / "runs")
        networks = [load_member(run, member).eval() for member in run.members]

        def predict(images: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
            made = []
            with torch.inference_mode():
                for network, row in zip(networks, rows, strict=True):
                    tabular = torch.from_numpy(np.repeat(row[None], len(images), 0))
                    made.append(network(torch.from_numpy(images), tabular))
                raw = torch.stack(made)
                if manifest.classes:
                    raw = raw.softmax(-1)
                return raw.mean((0, 1)).numpy()
    else:
        import openvino as ov

        core = ov.Core()
        model = core.read_model(folder / "model.hfrt" / "model.onnx")
        model.reshape(
            {
                item.any_name: [1, *(d.get_length() for d in list(item.partial_shape)[1:])]
                for item in model.inputs
            }
        )
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
        }
        request = core.compile_model(model, "CPU", options).create_infer_request()

        def predict(images: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
            feed = {"image": images[None, :, 0], "tabular": np.concatenate(rows)[None]}
            request.infer(feed, share_inputs=True)
            return np.array(request.get_tensor("output").data[0])

    with open(out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for case in cases:
            images = plain_boxes(case.scan, manifest.preprocessing)
            rows = [encoder.encode_row(case.row) for encoder in encoders]
            writer.writerow([case.subject, *map(float, predict(images, rows))])


def command(name: str, folder: Path, out: Path, threads: int) -> list[str]:
    """The command of one contender."""
    if name == "hfrt infer":
        arguments = ["infer", folder / "scans", "--tabular", folder / "data.csv"]
        arguments += ["--artifact", folder / "model.hfrt", "--out", out, "--threads", threads]
        arguments += ["--engine", "native", "--force"]
        start = [sys.executable, "-m", "hyperfusion_rt.cli"]
    else:
        kind = "torch" if name.endswith("torch") else "openvino"
        start = [sys.executable, __file__, "plain"]
        arguments = [folder, kind, out, threads]
    return [*start, *map(str, arguments)]


def read_values(path: Path, columns: int) -> dict[str, list[float]]:
    """Subject → probabilities or years, of either kind of table."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    if rows[0][0] == "subject":
        first = next(n for n, name in enumerate(rows[0]) if name.startswith(("p_", "years")))
        return {row[0]: [float(v) for v in row[first : first + columns]] for row in rows[1:]}
    return {row[0]: [float(v) for v in row[1:]] for row in rows}


def measure(task: Literal["ad", "brain-age"], folder: Path, rounds: int, threads: int) -> Row:
    """Seconds of each contender, differences, and the stages of the last run of our own."""
    columns = 3 if task == "ad" else 1
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    outs = {name: folder / f"{name.replace(' ', '')}.csv" for name in NAMES}
    stages: list[Row] = []
    for turn in range(rounds + 1):
        for name in NAMES:
            start = time.perf_counter()
            subprocess.run(
                command(name, folder, outs[name], threads), check=True, stdout=subprocess.DEVNULL
            )
            if turn:  # the first round warms the disk's cache, and is compared
                seconds[name].append(time.perf_counter() - start)
                if name == "hfrt infer":
                    record = outs[name].with_name(outs[name].name + ".run.json")
                    stages.append(json.loads(record.read_text(encoding="utf-8"))["usage"])
        if not turn:
            found = {name: read_values(outs[name], columns) for name in NAMES}
            ours = found["hfrt infer"]
            off = {
                name: max(float(np.abs(np.subtract(v[s], ours[s])).max()) for s in ours)
                for name, v in found.items()
            }
            # Six digits are in our table; the pipelines differ in their interpolation's rounding.
            bound = 1e-4 if task == "ad" else 1e-2
            assert all(v.keys() == ours.keys() for v in found.values())
            assert max(off.values()) < bound, off
    own = seconds["hfrt infer"]
    ratios = {
        name: statistics.quantiles([a / b for a, b in zip(seconds[name], own, strict=True)], n=4)
        for name in NAMES[1:]
    }
    middle = sorted(stages, key=lambda use: use["wall_seconds"])[len(stages) // 2]
    return {
        "task": task,
        "scans": len(ours),
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratios": ratios,
        "largest_difference": off,
        "usage": middle,
    }


def write(rows: list[Row], rounds: int, threads: int) -> str:
    """The page, and the figures as JSON."""
    machine = describe_machine()
    lines = [
        "# A cohort from files to table",
        "",
        f"Written by `python benchmarks/cohort.py`. {rows[0]['scans']} simulated 1 mm scans "
        f"(.nii.gz, int16), f = 16, {threads} threads, fp32; whole commands from start to exit, "
        f"medians of {rounds} in turn; ratios round by round, with quartiles.",
        "",
        f"Machine: {'; '.join(f'{k} {v}' for k, v in machine.items())}.",
        "",
        "| network | contender | seconds | ms per scan | times hfrt's | differs from hfrt by |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name in NAMES:
            low, middle, high = row["ratios"].get(name, (1.0, 1.0, 1.0))
            ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})" if name != NAMES[0] else "1"
            taken = row["seconds"][name]
            lines.append(
                f"| {row['task']} | {name} | {taken:.2f} | {1e3 * taken / row['scans']:.1f} "
                f"| {ratio} | {row['largest_difference'][name]:.0e} |"
            )
    lines += [
        "",
        "The stages of `hfrt infer` (of the run with the median time): seconds of work, and the "
        "part of the stage's threads' time in which they worked. `prepare` is read, unpack, crop.",
        "",
        "| network | stage | threads | seconds of work | utilisation | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        use = row["usage"]
        for name, stage in use["stages"].items():
            steps = ""
            if name == "prepare":
                steps = ", ".join(f"{step} {s:.2f} s" for step, s in use["steps"].items())
            if name == use["bound"]:
                steps = "bounds the throughput"
            lines.append(
                f"| {row['task']} | {name} | {stage['workers']} | {stage['busy_seconds']:.2f} "
                f"| {stage['utilisation']:.1%} | {steps} |"
            )
    content = {"machine": machine, "threads": threads, "rounds": rounds, "rows": rows}
    (HERE / "cohort.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    text = "\n".join(lines) + "\n"
    (HERE / "cohort.md").write_text(text, encoding="utf-8")
    return text


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    rounds: int = 5,
    subjects: int = 64,
    threads: int | None = None,
    keep: Annotated[
        Path | None, typer.Option(help="Make the cohorts here, or use those that are there.")
    ] = None,
) -> None:
    """Measure and write the tables."""
    if context.invoked_subcommand:
        return
    threads = threads or usable_cores()
    with tempfile.TemporaryDirectory() as scratch:
        rows = []
        for task in NETWORKS:
            folder = (keep or Path(scratch)) / task
            make_cohort(task, subjects, folder)  # type: ignore[arg-type]
            rows.append(measure(task, folder, rounds, threads))  # type: ignore[arg-type]
    print(write(rows, rounds, threads))


if __name__ == "__main__":
    app()
