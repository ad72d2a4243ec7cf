"""How good the networks are on simulated subjects whose truth is known, beside their rivals.

    python benchmarks/accuracy.py ad                     # writes benchmarks/results/accuracy-ad.md
    python benchmarks/accuracy.py brain-age              # and .json
    python benchmarks/accuracy.py ad --variant place
    python benchmarks/accuracy.py ad --ablation          # the recipe, one ingredient less each
    python benchmarks/accuracy.py ad --subjects 150,300,600,1200 --seeds 63   # a curve
    python benchmarks/accuracy.py ad --subjects 2400 --add --seeds 63         # a size more

For each seed: a cohort to train with, and new subjects of another seed. Each network is trained by
`hfrt train`, exported by `hfrt export`, and run by `hfrt infer` on every new subject; on a second
scan (another noise, field, gain and pose) of the first of them; and on scans that lie half a
millimetre elsewhere. Jobs run on one thread each, as many as there are cores; what is done is kept
in build/accuracy, and a second call goes on, also in the middle of a training. About 9 minutes a
network and core, small presets. Beside the networks stand, on the very same subjects, a logistic
regression on the table; the exact observer; and two who see the true atrophy of each region but
know nothing of the model: logistic regressions on atrophy and table, without and with all their
products. What is between these two is what an interaction of image and table is worth.

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
from accuracy_figures import Floats, Page, Study, against, comparison, curve, hits, measured
from numpy.typing import NDArray
from scipy import ndimage

from hyperfusion_rt.config import load_config
from hyperfusion_rt.data.encoder import TabularEncoder, read_target
from hyperfusion_rt.data.simulate import OPTIMUM
from hyperfusion_rt.data.simulate.observer import observed
from hyperfusion_rt.data.simulate.population import AD, Model
from hyperfusion_rt.data.table_file import Row, read_table
from hyperfusion_rt.machine import describe_machine, usable_cores

HERE = Path(__file__).parent
WORK = HERE.parent / "build" / "accuracy"

# Seeds that were never looked at while the presets were chosen. New subjects: 100 more.
SEEDS = "63,64,65"
MODELS = "hyper,daft,film,concat,image,tabular"
AGAIN = 100  # new subjects with a second scan
MOVED, SHIFT_MM = 40, 0.5
AXES = "xyz"

# The recipe, and without one ingredient each.
ABLATION: dict[str, tuple[str, ...]] = {
    "hyper": ("network.fusion=hyper",),
    "no augmentation": ("augmentation.policy=none",),
    "weak decay (0.01)": ("training.weight_decay=0.01", "training.embedding_decay=0.01"),
    "no average of the weights": ("training.ema=0",),
    "best epoch of the validation part": ("training.keep=best",),
    "embedding from the table's network": ("training.embedding_start=table",),
    "embedding of 8 numbers": ("network.embedding=8",),
    "embedding with a bent PReLU": ("network.embedding_slope=0.25",),
    "generated weights alone at first": ("network.generated_part=1",),
    "three parts of five to train with": ("training.parts=5",),
    "as before this recipe": (
        "augmentation.policy=none", "training.optimizer=adam", "training.lr=5e-4",
        "training.weight_decay=1e-3", "training.warmup_epochs=0", "training.ema=0",
        "training.keep=best", "training.parts=5", "training.epochs=18",
        "training.embedding_epochs=100", "training.embedding_start=table",
        "network.bn_momentum=0.05", "network.generated_part=1", "network.embedding=8",
        "network.embedding_slope=0.25",
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
        made = root / "runs" / folder.name
        begun = (made / "config.json").exists()
        how = ["--resume", "--run", made] if begun else ["--name", made.name, *sets]
        hfrt("train", *how, folder=root, threads=1)
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


# ---- answers


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


# ---- who needs no training, or none of the image


def exact(cohorts: Cohorts, seed: int) -> Study:
    """The exact observer on the same subjects."""
    variant = cast(Model, cohorts.variant)
    answers = observed(cohorts.folder("new", seed), cohorts.task.value, variant)
    return Study(*in_order(truths(cohorts, seed), answers))


def regressions(cohorts: Cohorts, seed: int) -> dict[str, Study]:
    """Logistic regressions on all rows of the training cohort, encoded as for the networks.

    Of the table alone; with the true atrophy of each region; and with its products with the table's
    inputs. L2, C chosen by cross-validation within the training cohort.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    train, new = cohorts.folder("train", seed), cohorts.folder("new", seed)
    spec = load_config(train / "hfrt.yaml").tabular
    rows, asked = (read_table(folder / "data.csv").rows for folder in (train, new))
    encoder = TabularEncoder.fit(rows, spec)

    def inputs(folder: Path, rows: Sequence[Row]) -> tuple[Floats, Floats, Floats]:
        table = encoder.encode(rows).astype(np.float64)
        regions = AD[cast(Model, cohorts.variant)].regions
        truth = read_table(folder / "truth.csv").rows
        atrophy = np.array([[float(row.values[region]) for region in regions] for row in truth])
        linear = np.concatenate([table, atrophy], 1)
        products = (atrophy[:, :, None] * table[:, None]).reshape(len(rows), -1)
        return table, linear, np.concatenate([linear, products], 1)

    classes, truth = np.array([read_target(row, spec) for row in rows]), truths(cohorts, seed)
    names = (
        "logistic regression on the table",
        "linear in true atrophy and table",
        "with their products",
    )
    found = {}
    for name, known, seen in zip(names, inputs(train, rows), inputs(new, asked), strict=True):
        model = GridSearchCV(
            LogisticRegression(class_weight="balanced", max_iter=5000),
            {"C": np.logspace(-3, 1, 9)}, cv=5, scoring="neg_log_loss",
        ).fit(known, classes)  # fmt: skip
        answers = model.predict_proba(seen)
        of = {row.subject: answer for row, answer in zip(asked, answers, strict=True)}
        found[name] = Study(*in_order(truth, of))
    return found


def others(cohorts: Cohorts, seed: int) -> dict[str, Study]:
    """Who needs no network."""
    found = regressions(cohorts, seed) if cohorts.task is Task.ad else {}
    return found | {"exact observer": exact(cohorts, seed)}


TITLES = {
    "accuracy": "the networks and their rivals",
    "ablation": "the recipe, one ingredient less each",
    "curve": "more subjects to train with",
}


def explained(
    cohorts: Cohorts, sizes: Sequence[int], seeds: Sequence[int], optimum: Mapping[str, float]
) -> str:
    """What was simulated, and what the columns mean."""
    digits = 3 if cohorts.task is Task.ad else 2
    best = [f"{optimum[name]:.{digits}f}" for name in ("both", "image", "table")]
    text = (
        f"{', '.join(map(str, sizes))} simulated subjects to train with, {cohorts.new} new ones to "
        f"answer for, seeds {', '.join(map(str, seeds))} (new: 100 more). Optimum {best[0]}, of "
        f"the image alone {best[1]}, of the table alone {best[2]}"
    )
    if "both_without_apoe4" in optimum:
        text += f", of both without APOE4 {optimum['both_without_apoe4']:.{digits}f}"
    text += (
        "; the exact observer's row is what he reaches on these very subjects. Means over the "
        "seeds; intervals and p values of a bootstrap over the new subjects."
    )
    if len(sizes) == 1:
        text += (
            f" Moved: the median over {MOVED} subjects a seed and the axes of an answer's largest "
            f"change when a scan lies {SHIFT_MM} mm elsewhere along an axis; shifted: along all "
            f"three at once, the voxels interpolated. ICC(2,1): two scans of {AGAIN} subjects a "
            "seed, the mean over answers."
        )
    return text


def compare(
    cohorts: Cohorts, seeds: Sequence[int], variants: Mapping[str, tuple[str, ...]], jobs: int
) -> dict[str, list[Study]]:
    """The answers of all networks for each seed."""
    for seed in seeds:
        cohorts.make(seed)
    todo = [Job(name, seed, sets) for seed in seeds for name, sets in variants.items()]
    truth = {seed: truths(cohorts, seed) for seed in seeds}
    studies: dict[str, list[Study]] = {name: [] for name in variants}
    with ThreadPoolExecutor(jobs) as pool:
        for job, found in zip(todo, pool.map(lambda job: run(job, cohorts), todo), strict=True):
            study = study_of(found, truth[job.seed])
            studies[job.name].append(study)
            what = f"{cohorts.subjects} subjects, {job.name}, seed {job.seed}"
            print(f"{what}: {hits(study).mean():.3f}", flush=True)
    return studies


def main(
    task: Annotated[Task, typer.Argument()],
    variant: Annotated[str, typer.Option(help="The model that is simulated.")] = "additive",
    models: Annotated[
        str,
        typer.Option(help="Values of network.fusion, each with +section.field=value if need be."),
    ] = MODELS,
    ablation: Annotated[bool, typer.Option(help="The recipe without each ingredient.")] = False,
    seeds: Annotated[str, typer.Option(help="Of the cohorts.")] = SEEDS,
    subjects: Annotated[str, typer.Option(help="To train with; several make a curve.")] = "600",
    new: Annotated[int, typer.Option(help="New ones of each seed.")] = 600,
    add: Annotated[bool, typer.Option(help="Add these sizes to the curve that is there.")] = False,
    jobs: Annotated[int, typer.Option(help="Networks at once.")] = usable_cores(),
) -> None:
    """Train, export, predict, compare."""
    WORK.mkdir(parents=True, exist_ok=True)
    numbers, sizes = ([int(one) for one in text.split(",")] for text in (seeds, subjects))
    if ablation and (len(sizes) > 1 or add):
        raise SystemExit("--ablation takes one number of subjects")
    variants = ABLATION
    if not ablation:
        variants = {m: tuple(f"network.fusion={m}".split("+")) for m in models.split(",")}
    cohorts = [Cohorts(task, variant, size, new) for size in sizes]
    studies = {one.subjects: compare(one, numbers, variants, jobs) for one in cohorts}
    if not ablation:
        for one in cohorts:
            for seed in numbers:
                for name, study in others(one, seed).items():
                    studies[one.subjects].setdefault(name, []).append(study)
    networks = {
        size: {name: measured(found) for name, found in of.items()} for size, of in studies.items()
    }
    optimum_file = cohorts[0].folder("new", numbers[0]) / OPTIMUM
    optimum = json.loads(optimum_file.read_text(encoding="utf-8"))
    kind = "ablation" if ablation else "curve" if add or len(sizes) > 1 else "accuracy"
    parts = [kind, task, *([variant] if variant != "additive" else [])]
    if kind == "accuracy" and sizes != [600]:
        parts.append(str(sizes[0]))
    path = HERE / "results" / "-".join(parts)
    command = " ".join(["python", "benchmarks/accuracy.py", *sys.argv[1:]])
    runs = [{"command": command, "machine": describe_machine(), "date": time.strftime("%Y-%m-%d")}]
    about: dict[str, Any] = {"optimum": optimum}
    if kind == "curve":
        by_size = {str(size): networks[size] for size in sizes}
        if add:
            before = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            if next(iter(before["sizes"].values())).keys() != networks[sizes[0]].keys():
                raise SystemExit(f"{path}.json holds other networks: name the same --models")
            runs = before["runs"] + runs
            by_size = dict(sorted((before["sizes"] | by_size).items(), key=lambda one: int(one[0])))
        sizes = [int(size) for size in by_size]
        about |= {"sizes": by_size}
    else:
        [of], [figures] = studies.values(), networks.values()
        first = next(iter(variants))
        pairs = {n: against(of[first], found) for n, found in of.items() if n != first}
        about |= {"networks": figures, "first": first, "pairs": pairs}
    page = Page(
        path,
        f"{task}, model {variant}: {TITLES[kind]}",
        explained(cohorts[0], sizes, numbers, optimum),
        classes=task is Task.ad,
    )
    page.write({"runs": runs} | about, (curve if kind == "curve" else comparison)(page, about))


if __name__ == "__main__":
    typer.run(main)
