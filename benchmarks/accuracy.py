"""How good the networks are on simulated subjects whose truth is known, beside their rivals.

    python benchmarks/accuracy.py ad                     # writes benchmarks/results/accuracy-ad.md
    python benchmarks/accuracy.py brain-age              # and .json
    python benchmarks/accuracy.py ad --variant place
    python benchmarks/accuracy.py ad --ablation          # the recipe, one ingredient less each

For each seed: a cohort to train with, and new subjects of another seed. Each network is trained by
`hfrt train`, exported by `hfrt export`, and run by `hfrt infer` on every new subject; on a second
scan (another noise, field, gain and pose) of the first of them; and on scans that lie half a
millimetre elsewhere. Jobs run on one thread each, as many as there are cores; what is done is kept
in build/accuracy, and a second call goes on. About 9 minutes a network and core, small presets.
The exact observer stands beside the networks: what he reaches on the very same subjects.

Figures are means over the seeds; intervals and p values are of a bootstrap over the new subjects,
the same for all networks of a seed. They tell nothing of other training cohorts; the seeds beside
each other do.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import nibabel as nib
import numpy as np
import typer
from numpy.typing import NDArray
from scipy import ndimage

from hyperfusion_rt.config import load_config
from hyperfusion_rt.data.encoder import TabularEncoder, read_target
from hyperfusion_rt.data.simulate.observer import observed
from hyperfusion_rt.data.simulate.population import Model
from hyperfusion_rt.data.table_file import read_table
from hyperfusion_rt.machine import describe_machine, usable_cores
from hyperfusion_rt.metrics.repeatability import repeatability

HERE = Path(__file__).parent
WORK = HERE.parent / "build" / "accuracy"
Floats = NDArray[np.float64]

# Seeds that were never looked at while the presets were chosen. New subjects: 100 more.
SEEDS = "51,52,53"
MODELS = "hyper,daft,film,concat,image,tabular"
AGAIN = 100  # new subjects with a second scan
MOVED, SHIFT_MM = 40, 0.5
AXES = "xyz"
SAMPLES = 10000

# Each takes one ingredient of the recipe away.
ABLATION: dict[str, tuple[str, ...]] = {
    "the recipe": (),
    "no augmentation": ("augmentation.policy=none",),
    "weak decay (0.01)": ("training.weight_decay=0.01", "training.embedding_decay=0.01"),
    "no average of the weights": ("training.ema=0",),
    "best epoch of the validation part": ("training.keep=best",),
    "embedding from random weights": ("training.embedding_epochs=0",),
    "three parts of five to train with": ("training.parts=5",),
    "as before this recipe": (
        "augmentation.policy=none", "training.optimizer=adam", "training.lr=5e-4",
        "training.weight_decay=1e-3", "training.warmup_epochs=0", "training.ema=0",
        "training.keep=best", "training.parts=5", "training.epochs=18",
        "training.embedding_epochs=100", "network.bn_momentum=0.05",
    ),
}  # fmt: skip


class Task(StrEnum):
    """What is predicted."""

    ad = "ad"
    age = "brain-age"


@dataclass(frozen=True)
class Job:
    """One network on one cohort."""

    name: str
    seed: int
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Cohorts:
    """Where the cohorts of one study lie."""

    task: Task
    variant: str
    subjects: int
    new: int

    def folder(self, kind: str, seed: int) -> Path:
        """`train`, `new`, `again` (two scans), `moved` or `shifted`."""
        size = self.subjects if kind == "train" else AGAIN if kind == "again" else self.new
        return WORK / f"{self.task}-{self.variant}-{kind}-{seed}-{size}"

    def make(self, seed: int) -> None:
        """Simulate what is not there."""
        model = ["--model", self.variant] if self.task is Task.ad else []
        common = ["--task", self.task, *model]
        for kind, count, own, scans in (
            ("train", self.subjects, seed, 1),
            ("new", self.new, 100 + seed, 1),
            ("again", AGAIN, 100 + seed, 2),
        ):
            folder = self.folder(kind, seed)
            if not (folder / "hfrt.yaml").exists():
                arguments = ["--subjects", count, "--seed", own, "--scans", scans, "--force"]
                hfrt("simulate", folder, *common, *arguments)
        for kind in ("moved", "shifted"):
            folder = self.folder(kind, seed)
            if not (folder / "data.csv").exists():
                elsewhere(self.folder("new", seed), folder, interpolated=kind == "shifted")


def hfrt(*arguments: object, folder: Path = WORK, threads: int | None = None) -> None:
    """Run a command of the command line; its output is shown if it fails."""
    environment = dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "hyperfusion_rt.cli", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


def elsewhere(source: Path, target: Path, *, interpolated: bool) -> None:
    """Copies of the first scans that lie half a millimetre elsewhere.

    The same voxels with another origin, for each axis; or, `interpolated`, new voxels, along all
    three axes at once: 0.87 mm, and smoother.
    """
    for path in sorted(source.glob("scans/*.nii.gz"))[:MOVED]:
        name, image = path.name.removesuffix(".nii.gz"), nib.load(path)
        for axis in ["all"] if interpolated else AXES:
            to = target / "scans" / name / f"ses-{axis}" / path.name
            to.parent.mkdir(parents=True, exist_ok=True)
            affine, voxels = image.affine.copy(), np.asarray(image.dataobj)
            if interpolated:
                voxels = _shifted(voxels, np.linalg.inv(affine)[:3, :3] @ np.full(3, SHIFT_MM))
            else:
                affine[AXES.index(axis), 3] += SHIFT_MM
            nib.save(nib.Nifti1Image(voxels, affine, image.header), to)
    header, *rows = (source / "data.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [row for row in rows if (target / "scans" / row.split(",")[0]).exists()]
    (target / "data.csv").write_text("".join([header, *kept]), encoding="utf-8")


def _shifted(voxels: NDArray[np.int16], step: Floats) -> NDArray[np.int16]:
    """Interpolated once between voxels; the background stays 0."""
    moved = ndimage.shift(voxels.astype(np.float32), step, order=1, mode="nearest")
    inside = ndimage.shift((voxels > 0).astype(np.float32), step, order=1) > 0.5
    made: NDArray[np.int16] = np.where(inside, np.clip(np.rint(moved), 1, 32000), 0).astype(
        np.int16
    )
    return made


def run(job: Job, cohorts: Cohorts) -> dict[str, Any]:
    """Train, export and predict; the answers, from earlier where they are kept."""
    folder = WORK / "jobs" / f"{cohorts.task}-{cohorts.variant}-{cohorts.subjects}"
    folder = folder / f"{re.sub('[^a-z0-9.]+', '-', job.name)}-{job.seed}"
    kept = folder / "answers.json"
    if kept.exists():
        known: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return known
    folder.mkdir(parents=True, exist_ok=True)
    root = cohorts.folder("train", job.seed)
    sets = [part for setting in job.settings for part in ("--set", setting)]
    artifact, trained = folder / "network.hfrt", folder / "seconds.json"
    if not trained.exists():
        name = f"{folder.name}-{os.getpid()}-{time.time_ns()}"
        hfrt("train", "--name", name, *sets, folder=root, threads=1)
        made = root / "runs" / name
        hfrt("export", "--run", made, "--out", artifact, "--force", threads=1)
        with open(made / "member-0" / "history.csv", newline="", encoding="utf-8") as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
        trained.write_text(json.dumps(sum(seconds)), encoding="utf-8")
    answers = {}
    for kind in ("new", "again", "moved", "shifted"):
        where, out = cohorts.folder(kind, job.seed), folder / f"{kind}.csv"
        options = ["--tabular", where / "data.csv", "--out", out, "--force"]
        hfrt("infer", where / "scans", "--artifact", artifact, *options, threads=1)
        answers[kind] = read_answers(out)
    found = {"seconds": json.loads(trained.read_text(encoding="utf-8")), **answers}
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def read_answers(path: Path) -> dict[str, list[float]]:
    """`subject/session` → probabilities of the classes, or one number."""
    found = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["status"] != "ok":
                raise SystemExit(f"{path}: {row['subject']}: {row['status']} {row['reason']}")
            columns = [name for name in row if name.startswith("p_") or name == "years"]
            key = f"{row['subject']}/{row['session']}"
            found[key] = [float(row[name]) for name in columns]
    return found


# ---- figures


@dataclass(frozen=True)
class Study:
    """The answers of one network for one seed."""

    truth: Floats  # [N], of the new subjects in order
    answers: Floats  # [N, C]
    scans: tuple[Floats, Floats] | None = None  # [n, C] each: two scans of the same subjects
    # Pairs [m, C] of a scan and of the same half a millimetre elsewhere.
    moved: tuple[Floats, Floats] | None = None
    shifted: tuple[Floats, Floats] | None = None
    seconds: float = 0.0


def truths(cohorts: Cohorts, seed: int) -> dict[str, float]:
    """The class index or the number of every new subject."""
    folder = cohorts.folder("new", seed)
    spec = load_config(folder / "hfrt.yaml").tabular
    rows = read_table(folder / "data.csv").rows
    return {row.subject: float(read_target(row, spec) or 0) for row in rows}


def study_of(found: dict[str, Any], truth: dict[str, float]) -> Study:
    """What a job answered."""
    new = {key.split("/")[0]: value for key, value in found["new"].items()}

    def pairs(kind: str) -> tuple[Floats, Floats]:
        keys = sorted(found[kind])
        first = np.array([new[key.split("/")[0]] for key in keys])
        return first, np.array([found[kind][key] for key in keys])

    again = sorted({key.split("/")[0] for key in found["again"]})
    first, second = (np.array([found["again"][f"{one}/{s}"] for one in again]) for s in "12")
    more = (first, second), pairs("moved"), pairs("shifted"), found["seconds"]
    return Study(*in_order(truth, new), *more)


def in_order(
    truth: dict[str, float], answers: Mapping[str, Sequence[float] | Floats]
) -> tuple[Floats, Floats]:
    """Truth `[N]` and answers `[N, C]` of the new subjects."""
    ids = sorted(truth)
    return np.array([truth[one] for one in ids]), np.array([answers[one] for one in ids])


def exact(cohorts: Cohorts, seed: int) -> Study:
    """The exact observer on the same subjects."""
    variant = cast(Model, cohorts.variant)
    answers = observed(cohorts.folder("new", seed), cohorts.task.value, variant)
    return Study(*in_order(truths(cohorts, seed), answers))


def logistic(cohorts: Cohorts, seed: int) -> Study:
    """Logistic regression (L2, C = 0.1) on all rows of the training cohort, encoded alike."""
    from sklearn.linear_model import LogisticRegression

    train, new = cohorts.folder("train", seed), cohorts.folder("new", seed)
    spec = load_config(train / "hfrt.yaml").tabular
    rows = read_table(train / "data.csv").rows
    encoder = TabularEncoder.fit(rows, spec)
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=3000)
    model.fit(encoder.encode(rows), np.array([read_target(row, spec) for row in rows]))
    rows = read_table(new / "data.csv").rows
    answers = model.predict_proba(encoder.encode(rows))
    of = {row.subject: answer for row, answer in zip(rows, answers, strict=True)}
    return Study(*in_order(truths(cohorts, seed), of))


def hits(study: Study) -> Floats:
    """What a subject adds to the figure: its class's share of the mean recall, or its error."""
    if study.answers.shape[1] == 1:
        return np.abs(study.answers[:, 0] - study.truth)
    right = (study.answers.argmax(1) == study.truth).astype(np.float64)
    counts = np.bincount(study.truth.astype(int), minlength=study.answers.shape[1])
    weight: Floats = right * len(right) / (counts[study.truth.astype(int)] * len(counts))
    return weight


def resampled(values: Sequence[Floats], truths_of: Sequence[Floats], samples: int) -> Floats:
    """Means `[samples]` over seeds of bootstrap means over subjects, by class."""
    total = np.zeros(samples)
    for seed, (value, truth) in enumerate(zip(values, truths_of, strict=True)):
        rng = np.random.default_rng([seed, 7])
        classes = np.unique(truth) if len(np.unique(truth)) < 10 else np.zeros(1)
        mean = np.zeros(samples)
        for one in classes:
            chosen = np.flatnonzero(truth == one) if len(classes) > 1 else np.arange(len(truth))
            drawn = rng.integers(len(chosen), size=(samples, len(chosen)))
            mean += value[chosen][drawn].sum(1) / len(truth)
        total += mean / len(values)
    return total


def icc(studies: Sequence[Study], column: int) -> list[float]:
    """ICC(2,1) of one answer between the two scans, for each seed."""
    found = []
    for first, second in (study.scans for study in studies if study.scans):
        values = np.concatenate([first[:, column], second[:, column]])
        subjects = [str(n) for n in range(len(first))]
        sessions = ["1"] * len(subjects) + ["2"] * len(subjects)
        found.append(float(repeatability(values, 2 * subjects, sessions)["icc_agreement"]))
    return found


def change(pairs: Sequence[tuple[Floats, Floats] | None]) -> float:
    """The median over scans of an answer's largest change."""
    return float(np.median(np.concatenate([np.abs(a - b).max(1) for a, b in filter(None, pairs)])))


def measured(studies: Sequence[Study]) -> dict[str, Any]:
    """The figures of one network over the seeds."""
    each = [hits(study) for study in studies]
    spread = resampled(each, [study.truth for study in studies], SAMPLES)
    found: dict[str, Any] = {
        "each": [float(one.mean()) for one in each],
        "mean": float(np.mean([one.mean() for one in each])),
        "95": np.percentile(spread, [2.5, 97.5]).tolist(),
        "seconds": float(np.mean([study.seconds for study in studies])),
    }
    if studies[0].answers.shape[1] > 1:
        logs = [
            -np.log(
                np.maximum(s.answers[np.arange(len(s.truth)), s.truth.astype(int)], 1e-9)
            ).mean()
            for s in studies
        ]
        found["log_loss"] = float(np.mean(logs))
    pairs = [study.moved for study in studies]
    if any(pair is not None and (pair[0] != pair[1]).any() for pair in pairs):  # reads scans
        found["moved_median"] = change(pairs)
        found["shift_median"] = change([study.shifted for study in studies])
        agreed = [icc(studies, column) for column in range(studies[0].answers.shape[1])]
        found["icc"] = float(np.mean(agreed))
        found["icc_lowest"] = float(np.min(agreed))
    return found


def against(studies: Sequence[Study], others: Sequence[Study]) -> dict[str, Any]:
    """The difference of two networks on the same subjects, with the bootstrap's p."""
    pairs = [hits(a) - hits(b) for a, b in zip(studies, others, strict=True)]
    spread = resampled(pairs, [study.truth for study in studies], SAMPLES)
    beyond = min((spread <= 0).mean(), (spread >= 0).mean())
    return {
        "difference": float(np.mean([pair.mean() for pair in pairs])),
        "95": np.percentile(spread, [2.5, 97.5]).tolist(),
        "p": float(min(1.0, 2 * max(beyond, 1 / SAMPLES))),
        "each": [float(pair.mean()) for pair in pairs],
    }


# ---- the report


def report(
    path: Path, command: str, cohorts: Cohorts, seeds: Sequence[int], found: dict[str, Any]
) -> None:
    """Write the figures as JSON and as a page."""
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    classes = cohorts.task is Task.ad
    digits, unit = (3, "") if classes else (2, " y")
    what = "balanced accuracy" if classes else "mean absolute error (years)"
    optimum = found["optimum"]
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    lines = [
        f"# {what.capitalize()} on simulated subjects: `{cohorts.task}`, model {cohorts.variant}",
        "",
        f"`{command}` · {machine} · {found['date']}",
        "",
        f"{cohorts.subjects} subjects to train with, {cohorts.new} new ones, seeds "
        f"{', '.join(map(str, seeds))} (new: 100 more). Optimum {optimum['both']:.{digits}f}; of "
        f"the image alone {optimum['image']:.{digits}f}, of the table alone "
        f"{optimum['table']:.{digits}f}; the observer's row is what he reaches on these very "
        f"subjects. Moved: the median over {MOVED} subjects a seed and the axes of an answer's "
        f"largest change when a scan lies {SHIFT_MM} mm elsewhere along an axis; shifted: along "
        "all three at once, the voxels interpolated. ICC(2,1): two scans of "
        f"{AGAIN} subjects a seed, the mean over answers.",
        "",
        f"| | {what} (95 %) | each seed | "
        + ("log loss | " if classes else "")
        + "moved | shifted | ICC | minutes to train, one core |",
        "|---|---|---|" + ("---|" if classes else "") + "---|---|---|---|",
    ]
    for name, one in found["networks"].items():
        low, high = one["95"]
        each = ", ".join(f"{value:.{digits}f}" for value in one["each"])
        cells = [name, f"{one['mean']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})", each]
        if classes:
            cells.append(f"{one['log_loss']:.3f}")
        read = "icc" in one
        moves = [f"{one[k]:.3f}{unit}" for k in ("moved_median", "shift_median")] if read else []
        cells += [*moves, f"{one['icc']:.3f}"] if read else ["", "", ""]
        cells.append(f"{one['seconds'] / 60:.1f}" if one["seconds"] else "")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"| {found['first']} minus | difference (95 %) | p | each seed |",
              "|---|---|---|---|"]  # fmt: skip
    for name, one in found["pairs"].items():
        low, high = one["95"]
        each = ", ".join(f"{value:+.{digits}f}" for value in one["each"])
        between = f"{one['difference']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
        lines.append(f"| {name} | {between} | {one['p']:.4f} | {each} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(
    task: Annotated[Task, typer.Argument()],
    variant: Annotated[str, typer.Option(help="The model that is simulated.")] = "additive",
    models: Annotated[
        str,
        typer.Option(help="Values of network.fusion, each with +section.field=value if need be."),
    ] = MODELS,
    ablation: Annotated[bool, typer.Option(help="The recipe without each ingredient.")] = False,
    seeds: Annotated[str, typer.Option(help="Of the cohorts.")] = SEEDS,
    subjects: Annotated[int, typer.Option(help="To train with.")] = 600,
    new: Annotated[int, typer.Option(help="New ones of each seed.")] = 600,
    jobs: Annotated[int, typer.Option(help="Networks at once.")] = usable_cores(),
) -> None:
    """Train, export, predict, compare."""
    WORK.mkdir(parents=True, exist_ok=True)
    cohorts = Cohorts(task, variant, subjects, new)
    numbers = [int(seed) for seed in seeds.split(",")]
    for seed in numbers:
        cohorts.make(seed)
    variants = ABLATION
    if not ablation:
        variants = {m: tuple(f"network.fusion={m}".split("+")) for m in models.split(",")}
    todo = [Job(name, seed, sets) for seed in numbers for name, sets in variants.items()]
    truth = {seed: truths(cohorts, seed) for seed in numbers}
    studies: dict[str, list[Study]] = {name: [] for name in variants}
    with ThreadPoolExecutor(jobs) as pool:
        for job, found in zip(todo, pool.map(lambda job: run(job, cohorts), todo), strict=True):
            studies[job.name].append(study_of(found, truth[job.seed]))
            value = hits(studies[job.name][-1]).mean()
            print(f"{job.name}, seed {job.seed}: {value:.3f}", flush=True)
    if task is Task.ad and not ablation:
        studies["logistic"] = [logistic(cohorts, seed) for seed in numbers]
    if not ablation:
        studies["exact observer"] = [exact(cohorts, seed) for seed in numbers]
    first = next(iter(variants))
    optimum = (cohorts.folder("new", numbers[0]) / "optimum.json").read_text(encoding="utf-8")
    made = {
        "machine": describe_machine(),
        "date": time.strftime("%Y-%m-%d"),
        "optimum": json.loads(optimum),
        "networks": {name: measured(found) for name, found in studies.items()},
        "first": first,
        "pairs": {
            name: against(studies[first], found) for name, found in studies.items() if name != first
        },
    }
    kind = "ablation" if ablation else "accuracy"
    name = f"{kind}-{task}" + (f"-{variant}" if variant != "additive" else "")
    if subjects != 600:
        name += f"-{subjects}"
    command = " ".join(["python", "benchmarks/accuracy.py", *sys.argv[1:]])
    report(HERE / "results" / f"{name}.md", command, cohorts, numbers, made)


if __name__ == "__main__":
    typer.run(main)
