"""Training on a CPU: epochs beside an older version and a plain loop, loader, processes.

    python benchmarks/training.py                       # writes benchmarks/training.md and .json
    python benchmarks/training.py --before OLD/bin/python   # beside an older version, in turn

Simulated cohorts. Epochs are whole: samples read and augmented, every step, the validation part.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as `hfrt train` does

import numpy as np
import torch
import typer

from hyperfusion_rt.config import load_config
from hyperfusion_rt.data.simulate import simulate_cohort
from hyperfusion_rt.machine import describe_machine
from hyperfusion_rt.training import train as training
from hyperfusion_rt.training.learner import Learner
from hyperfusion_rt.training.options import TrainOptions
from hyperfusion_rt.training.run_folder import Member

HERE = Path(__file__).parent
EPOCH = HERE / "training_epoch.py"
ROUNDS = 3
OVERLAP_ROUNDS = 9
EPOCHS = 3  # the first warms up
PLAIN = {"augmentation": {"policy": "none"}, "training": {"ema": 0, "epochs": EPOCHS}}
PRESET = {"training": {"epochs": EPOCHS}}
# name: (preset, subjects, mm of the scans)
STUDIES: dict[str, tuple[str, int, int]] = {
    "ad-small, scans of 2 mm": ("ad-small", 240, 2),
    "ad-small, scans of 1 mm": ("ad-small", 120, 1),
    "brain-age-small, scans of 2 mm": ("brain-age-small", 160, 2),
    "ad, scans of 1 mm": ("ad", 48, 1),
}
PROCESSES = (1, 2, 4)
# (study, what is changed) of which the memory is measured.
MEMORY: list[tuple[str, dict[str, Any]]] = [
    ("ad-small, scans of 2 mm", {}),
    ("ad-small, scans of 2 mm", {"training": {"batch_size": 64}}),
    ("ad-small, scans of 2 mm", {"training": {"batch_size": 64, "accumulate": 4}}),
    ("ad-small, scans of 2 mm", {"network": {"features": 16}}),
    ("ad-small, scans of 2 mm", {"network": {"fusion": "film"}}),
    ("brain-age-small, scans of 2 mm", {}),
    ("ad, scans of 1 mm", {}),
]


def study(folder: Path, preset: str, subjects: int, spacing: int) -> Path:
    """A simulated cohort, made once."""
    root = folder / f"{preset}-{subjects}-{spacing}mm"
    if not (root / "hfrt.yaml").exists():
        task = "ad" if preset.startswith("ad") else "brain-age"
        simulate_cohort(root, task=task, subjects=subjects, seed=7, spacing=spacing)
        (root / "hfrt.yaml").write_text(f"preset: {preset}\n")
    return root


def told(python: str, way: str, root: Path, change: dict[str, Any]) -> Any:
    """What `training_epoch.py` says, in a process of its own."""
    done = subprocess.run(
        [python, str(EPOCH), way, str(root), json.dumps(change)],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def race(root: Path, before: str | None) -> dict[str, Any]:
    """Seconds of an epoch: ours, an older version's, the plain loop's; in turn."""
    ways: list[tuple[str, str, str, dict[str, Any]]] = [
        ("ours", sys.executable, "ours", PRESET),
        ("ours, not augmented", sys.executable, "ours", PLAIN),
        ("plain loop, not augmented", sys.executable, "plain", PLAIN),
    ]
    if before:
        ways.insert(1, ("before", before, "ours", PRESET))
    seconds: dict[str, list[float]] = {name: [] for name, *_ in ways}
    losses: dict[str, float] = {}
    for _, (name, python, way, change) in itertools.product(range(ROUNDS), ways):
        found = told(python, way, root, change)
        seconds[name] += [row["seconds"] for row in found[1:]]
        losses[name] = found[-1]["loss"]
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "loss": losses,
    }


def check_plain(root: Path) -> float:
    """The largest relative difference of the plain loop's convolution from ours, in a gradient."""
    sys.path.insert(0, str(HERE))
    from training_epoch import convolve

    from hyperfusion_rt.kernels import hyper_conv3d

    torch.manual_seed(0)
    made = [(4, 6, 5, 6, 5), (4, 3), (3, 8, 6, 3, 3, 3), (3, 8), (8, 6, 3, 3, 3), (8,)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in made]
    found = []
    for op in (lambda x, *g: convolve(x, g, padding=1), lambda *a: hyper_conv3d(*a, padding=1)):
        y = op(*tensors)
        torch.manual_seed(1)
        found.append(torch.autograd.grad(y, tensors, torch.randn_like(y)))
    pairs = zip(*found, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def overlap(root: Path, augmented: bool) -> dict[str, float]:
    """Batches a second of the loader alone, of the steps alone, and of both, a core for each."""
    torch.set_num_threads(1)
    config = load_config(root / "hfrt.yaml", {} if augmented else PLAIN)
    dataset = training.gather(config, root)
    trainer = training.Trainer(config, dataset, Member(root / "unused"), 0, torch.device("cpu"))
    learner = Learner(trainer.build(), config.training, trainer.loss, trainer.device)
    train = trainer.split.train
    order = [train[i : i + 16] for i in range(0, len(train) - 15, 16)]
    feed = trainer.feed

    def loader() -> list[Any]:
        return list(feed(order, 0, np.random.default_rng(0)))

    ready = loader()

    def steps() -> None:
        learner.network.train()
        for parts in ready:
            learner.step(parts, 1e-4)

    def both() -> None:
        learner.network.train()
        for parts in feed(order, 0, np.random.default_rng(0)):
            learner.step(parts, 1e-4)

    works = {"loader": loader, "step": steps, "together": both}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _, (name, work) in itertools.product(range(OVERLAP_ROUNDS), works.items()):
        began = time.perf_counter()
        work()
        seconds[name].append((time.perf_counter() - began) / len(order))
    slower = np.maximum(seconds["loader"], seconds["step"])
    kept = float(np.median(slower / np.array(seconds["together"])))
    return {**{name: statistics.median(found) for name, found in seconds.items()}, "kept": kept}


def processes(root: Path, scratch: Path) -> dict[str, Any]:
    """Curves of one, two and four processes; and of one whose first weights differ by one ulp."""
    config = load_config(root / "hfrt.yaml", {"training": {"epochs": 5}})
    found: dict[str, Any] = {}
    for count in PROCESSES:
        rows: list[dict[str, Any]] = []
        run = training.train(
            config,
            root,
            name=f"{count}-processes",
            parent=scratch,
            options=TrainOptions(devices=count, threads=1),
            callbacks=training.Callbacks(on_epoch=lambda m, e, row, rows=rows: rows.append(row)),
        )
        resources = json.loads((run.folder / "resources.json").read_text())
        found[str(count)] = {
            "train": [row["train_loss"] for row in rows],
            "validation": [row["validation_loss"] for row in rows],
            "seconds": statistics.median(row["seconds"] for row in rows[1:]),
            "peak_memory_mib": resources["peak_memory_mib"],
        }
    build = training.Trainer.build

    def other(self: Any) -> Any:
        network = build(self)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.nextafter(parameter, parameter + 1))
        return network

    training.Trainer.build = other  # type: ignore[method-assign]
    rows = []
    try:
        training.train(
            config, root, name="ulp", parent=scratch,
            options=TrainOptions(threads=1),
            callbacks=training.Callbacks(on_epoch=lambda m, e, row: rows.append(row)),
        )  # fmt: skip
    finally:
        training.Trainer.build = build  # type: ignore[method-assign]
    found["1 process, weights one ulp off"] = {
        "train": [row["train_loss"] for row in rows],
        "validation": [row["validation_loss"] for row in rows],
    }
    return found


def memory(root: Path, change: dict[str, Any]) -> dict[str, int]:
    """MiB that `--max-memory` expects, and that a training of two epochs takes."""
    change = {**change, "training": {**change.get("training", {}), "epochs": 2}}
    found: dict[str, int] = told(sys.executable, "memory", root, change)
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """The loss curves of all numbers of processes."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = itertools.cycle([("-", 3.0), ("--", 2.0), (":", 1.5), ("-.", 1.0)])
    for index, (name, curve) in enumerate(found.items()):
        line, width = next(styles)
        look = {"lw": width, "color": f"C{index}"}
        label = f"{name} process{'es' * (name != '1')}" if name.isdecimal() else name
        x = range(1, len(curve["train"]) + 1)
        left.plot(x, curve["train"], line, label=label, **look)
        first = np.array(found["1"]["train"])
        apart = np.abs(np.array(curve["train"]) - first)
        if name != "1":
            right.semilogy(x, np.maximum(apart, 1e-9), line, label=label, **look)
    left.set(xlabel="epoch", ylabel="training loss", title="Loss")
    right.set(xlabel="epoch", ylabel="|difference|", title="Apart from one process")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def page(found: dict[str, Any]) -> str:
    """benchmarks/training.md, of the parts that were measured."""
    machine = "; ".join(f"{k} {v}" for k, v in found["machine"].items())
    lines = [
        "# Training",
        "",
        "Written by `python benchmarks/training.py`"
        + (" `--before` the version before." if found["before"] else "."),
        "",
        f"Machine: {machine}; torch {found['torch']}, {found['threads']} threads.",
        "",
    ]
    for name, section in (
        ("epochs", _epochs), ("overlap", _overlap), ("processes", _processes), ("memory", _memory)
    ):  # fmt: skip
        if name in found:
            lines += section(found)
    return "\n".join([*lines, "None of this has run on a GPU.", ""])


def _epochs(found: dict[str, Any]) -> list[str]:
    lines = [
        "## An epoch",
        "",
        f"Seconds: the median of {ROUNDS} rounds in turn, {EPOCHS - 1} epochs each, in processes "
        "of their own. Reading, augmentation, steps and the validation part. *Plain loop*: nibabel "
        "reads and SciPy resamples each scan in every epoch, a loop over the samples makes each "
        "one's weights and convolves; the network, optimiser and order of samples are ours, and "
        f"its convolution has our gradients to {found['plain_difference']:.0e} (float64).",
        "",
        "| study | before | now | before / now | plain loop | now, not augmented | plain / now |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, race_ in found["epochs"].items():
        s = race_["seconds"]
        now, bare, slow = s["ours"], s["ours, not augmented"], s["plain loop, not augmented"]
        old = s.get("before")
        first = f"{old:.2f} | {now:.2f} | **{old / now:.2f}**" if old else f"- | {now:.2f} | -"
        lines.append(f"| {name} | {first} | {slow:.2f} | {bare:.2f} | **{slow / bare:.1f}** |")
    return [*lines, ""]


def _overlap(found: dict[str, Any]) -> list[str]:
    lines = [
        "## The loader beside the step",
        "",
        "Milliseconds a batch of 16, the loader and the steps with one thread each, so that each "
        "has a core, as on a GPU the step takes none; in turn, medians of "
        f"{OVERLAP_ROUNDS} rounds. *Kept*: the slower of the two over both together. Where the "
        "step itself uses all cores, what the loader takes is added.",
        "",
        "| samples | loader alone | step alone | together | kept |",
        "|---|---|---|---|---|",
    ]
    for name, part in found["overlap"].items():
        cells = (f"{1e3 * part[key]:.1f}" for key in ("loader", "step", "together"))
        lines.append(f"| {name} | {' | '.join(cells)} | **{part['kept']:.0%}** |")
    return [*lines, ""]


def _processes(found: dict[str, Any]) -> list[str]:
    lines = [
        "## Several processes",
        "",
        "The same run in 1, 2 and 4 processes (gloo), a thread each, on a machine of two cores. "
        "*Apart*: the largest difference of a training loss from one process's. Rounding alone, as "
        "of first weights that are one unit in the last place larger, is the measure.",
        "",
        "![Loss curves](training-processes.png)",
        "",
        "| processes | seconds an epoch | apart | peak memory of each, MiB |",
        "|---|---|---|---|",
    ]
    first = np.array(found["processes"]["1"]["train"])
    for name, curve in found["processes"].items():
        apart = np.abs(np.array(curve["train"]) - first).max()
        seconds = f"{curve['seconds']:.2f}" if "seconds" in curve else "-"
        memory = ", ".join(map(str, curve.get("peak_memory_mib", []))) or "-"
        lines.append(f"| {name} | {seconds} | {apart:.1e} | {memory} |")
    return [*lines, ""]


def _memory(found: dict[str, Any]) -> list[str]:
    lines = [
        "## Memory",
        "",
        "MiB of a training of two epochs: what `--max-memory` expects before the first, and what "
        "the process occupied at most, without the mapped scans, of which the system takes back "
        "what it needs.",
        "",
        "| study | changed | expected | taken | expected / taken |",
        "|---|---|---|---|---|",
    ]
    for row in found["memory"]:
        taken = row["taken"] - row["mapped"]
        what = "; ".join(f"{k} {v}" for part in row["change"].values() for k, v in part.items())
        lines.append(
            f"| {row['study']} | {what or '-'} | {row['expected']} | {taken} "
            f"| {row['expected'] / taken:.2f} |"
        )
    return [*lines, ""]


def main(
    before: Annotated[
        str | None, typer.Option(help="The Python of an environment with an older version.")
    ] = None,
    studies: Annotated[Path, typer.Option(help="Where cohorts are kept.")] = Path("build/training"),
    only: Annotated[str | None, typer.Option(help="epochs, overlap, processes or memory.")] = None,
) -> None:
    """Measure, and write the page."""
    kept = HERE / "training.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if only and kept.exists() else {}
    found |= {
        "machine": describe_machine(), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "plain_difference": check_plain(studies),
        "before": bool(before) or found.get("before", False),
    }  # fmt: skip
    studies.mkdir(parents=True, exist_ok=True)
    roots = {name: study(studies, *made) for name, made in STUDIES.items()}
    small = roots["ad-small, scans of 2 mm"]

    def keep() -> None:
        kept.write_text(json.dumps(found, indent=1) + "\n")
        (HERE / "training.md").write_text(page(found))

    if only in (None, "epochs"):
        found["epochs"] = {}
        for name, root in roots.items():
            found["epochs"][name] = race(root, before)
            keep()
    if only in (None, "processes"):
        with tempfile.TemporaryDirectory() as scratch:
            found["processes"] = processes(small, Path(scratch))
        draw(found["processes"], HERE / "training-processes.png")
    if only in (None, "overlap"):
        found["overlap"] = {
            "augmented (`light`)": overlap(small, True),
            "as they are": overlap(small, False),
        }
    if only in (None, "memory"):
        found["memory"] = [
            {"study": name, "change": change, **memory(roots[name], change)}
            for name, change in MEMORY
        ]
    keep()


if __name__ == "__main__":
    typer.run(main)
