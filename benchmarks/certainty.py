"""Do sets and intervals hold the truth as often as they say, and is an odd scan known as one?

    python benchmarks/certainty.py    # writes certainty.md and .json; trains twice, an hour or two

Simulated cohorts: one to train on, others to calibrate with and to test with, whose seeds were
never looked at before. Scans are spoilt one way each, and their distance from the training's is
compared with that of scans that are as they should be.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import nibabel as nib
import numpy as np
import typer
from numpy.typing import NDArray
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent))
from scan_variants import WRONG, Scan, _far, _flipped, _inverted

import hyperfusion_rt
from hyperfusion_rt.data.simulate import simulate_cohort
from hyperfusion_rt.machine import describe_machine, usable_cores
from hyperfusion_rt.metrics import classification
from hyperfusion_rt.runtime.cohort.evaluate import evaluate
from hyperfusion_rt.runtime.explain.shapley import shapley
from hyperfusion_rt.runtime.explain.what_if import Curves, what_if
from hyperfusion_rt.runtime.options import EvaluateOptions
from hyperfusion_rt.runtime.predictor import Predictor

HERE = Path(__file__).parent
Row = dict[str, Any]
Floats = NDArray[np.float64]
TASKS = {"ad": "ad-small", "brain-age": "brain-age-small"}
TRAIN = {"ad": 2400, "brain-age": 1200}
CALIBRATE, TEST = 1000, 2400
SEEDS = {"train": 1, "calibrate": 301, "test": 402}
LEVEL = 0.9
SPOILT = 100  # scans of each kind; three times as many are left as they are
EXPLAINED = 100
assert WRONG  # the list that the kinds below are of


def _noisy(scan: Scan, rng: np.random.Generator) -> Scan:
    """Noise of 30 % of the brain's mean, inside the brain."""
    values, affine = scan
    brain = values > 0
    noise = 0.3 * values[brain].mean() * rng.standard_normal(values.shape, np.float32)
    return np.where(brain, np.maximum(values + noise, 1e-3), 0), affine


def _with_skull(scan: Scan, rng: np.random.Generator) -> Scan:
    """Grey around the brain, dark bone, bright fat 9 to 14 mm off."""
    values, affine = scan
    inside = ndimage.binary_closing(values > 0, iterations=2)
    size = np.linalg.norm(affine[:3, :3], axis=0)
    away = ndimage.distance_transform_edt(~inside, sampling=size)
    mean = values[values > 0].mean()
    made = values.copy()
    for low, high, times in ((0, 5, 0.35), (5, 9, 0.15), (9, 14, 1.6)):
        shell = (away > low) & (away <= high)
        made[shell] = times * mean * (1 + 0.1 * rng.standard_normal(int(shell.sum())))
    return made, affine


KINDS: dict[str, Callable[[Scan, np.random.Generator], Scan]] = {
    "wrong contrast (inverted)": _inverted,
    "noise of 30 %": _noisy,
    "skull left on": _with_skull,
    "5 mm off": _far(5),
    "left and right exchanged": _flipped(0),
}


@dataclass
class Study:
    """The folders of one task, made once below `cache`."""

    task: str
    cache: Path

    def cohort(self, part: str, count: int) -> Path:
        """Simulated with the seed of `part`."""
        root = self.cache / f"{self.task}-{part}-{SEEDS[part]}-{count}"
        if not (root / "hfrt.yaml").exists():
            shutil.rmtree(root, ignore_errors=True)
            simulate_cohort(
                root, task=self.task, subjects=count, seed=SEEDS[part], spacing=2,
                jobs=usable_cores(),
            )  # fmt: skip
        return root

    def run(self) -> Path:
        """The trained run."""
        root = self.cohort("train", TRAIN[self.task])
        place = root / "runs" / "certainty"
        if not (place / "metrics.json").exists():
            command(
                "train", "--name", "certainty", *(["--resume"] if place.exists() else []), at=root
            )
        return place

    def artifact(self, run: Path) -> Path:
        """Calibrated on cases of its own."""
        out = self.cache / f"{self.task}.hfrt"
        cases = self.cohort("calibrate", CALIBRATE)
        command(
            "export", "--run", run, "--out", out, "--force", "--engine", "native",
            "--calibration", cases / "scans", "--calibration-table", cases / "data.csv", at=run,
        )  # fmt: skip
        return out


def command(*words: object, at: Path) -> None:
    """`hfrt` in a folder."""
    start = [sys.executable, "-m", "hyperfusion_rt.cli", *map(str, words)]
    subprocess.run(start, cwd=at, check=True, stdout=subprocess.DEVNULL)


def auc(odd: Floats, usual: Floats) -> float:
    """The probability that an odd scan lies farther than a usual one; ties count half."""
    pairs = odd[:, None] - usual[None]
    return float((pairs > 0).mean() + (pairs == 0).mean() / 2)


def distances(predictor: Predictor, scans: list[Path], table: Path) -> Floats:
    """Of each scan, in multiples of the threshold; infinite where it was refused."""
    made = predictor.predict(scans, table)
    by = {item.subject: item for item in made}
    names = [path.name.split(".")[0] for path in scans]
    return np.array([
        by[name].certainty.distance if by[name].status == "ok" else np.inf for name in names
    ], np.float64)  # fmt: skip


def out_of_distribution(artifact: Path, cohort: Path) -> Row:
    """AUC of each kind, by the features alone: the scan checks refuse nothing here."""
    predictor = hyperfusion_rt.load(artifact, engine="native", scan_checks="off")
    checked = hyperfusion_rt.load(artifact, engine="native")
    scans = sorted((cohort / "scans").iterdir())
    table = cohort / "data.csv"
    usual = distances(predictor, scans[SPOILT : 4 * SPOILT], table)
    found: Row = {"usual": {"cases": len(usual), "beyond": float((usual > 1).mean())}}
    for kind, change in KINDS.items():
        with tempfile.TemporaryDirectory() as scratch:
            made = []
            for index, path in enumerate(scans[:SPOILT]):
                image = nib.as_closest_canonical(nib.load(path))
                scan = np.asarray(image.dataobj, np.float32), image.affine
                values, affine = change(scan, np.random.default_rng([index, len(kind)]))
                made.append(Path(scratch) / path.name)
                spoilt = nib.Nifti1Image(values.astype(np.float32), affine)
                spoilt.set_sform(affine, 4)
                nib.save(spoilt, made[-1])
            odd = distances(predictor, made, table)
            refused = [item.status == "error" for item in checked.predict(made, table)
                       if item.code != "row-without-scan" and item.scan is not None]  # fmt: skip
        found[kind] = {
            "auc": auc(odd, usual),
            "beyond": float((odd > 1).mean()),
            "refused": float(np.mean(refused)),
        }
    return found


def questions(artifact: Path, cohort: Path) -> Row:
    """What-if points a second on a core, curves of 1,000 subjects, what each column adds."""
    predictor = hyperfusion_rt.load(artifact, engine="native", threads=1)
    cases = predictor.gather(cohort / "scans", cohort / "data.csv").cases
    columns = predictor.manifest.members[0].columns
    if len(columns) < 2:
        return {}
    known = [c for c in cases if all(c.row.values[column.name] for column in columns)]
    question = predictor.question((known or cases)[0])
    vary = {columns[0].name: list(np.linspace(60, 85, 1000)),
            columns[-1].name: list(np.linspace(1, 1.5, 100))}  # fmt: skip
    rates = []
    for _ in range(5):
        start = time.process_time()
        points = len(what_if(question, vary).points)
        rates.append(points / (time.process_time() - start))
    made: Row = {"points": points, "points_per_second": float(np.median(rates))}
    for threads in (1, 2):
        predictor = hyperfusion_rt.load(artifact, engine="native", threads=threads)
        asked = [predictor.question(case) for case in cases[:200]]
        curves = Curves(columns, points=100, draws=0)
        many = itertools.islice(itertools.cycle(asked), 1000)
        start = time.perf_counter()
        for one in many:
            curves.of(one)
        made[f"curves_of_1000_{threads}"] = time.perf_counter() - start
    shares = np.zeros(len(columns))
    for one in asked[:EXPLAINED]:
        reasons = shapley(one)
        shares += np.abs(reasons.values[:, int(reasons.answer.argmax())])
    names = [column.name for column in columns]
    made["shapley_shares"] = dict(zip(names, (shares / shares.sum()).tolist(), strict=True))
    return made


def measure(task: str, cache: Path, run: Path | None) -> Row:
    """All figures of one task."""
    study = Study(task, cache)
    artifact = study.artifact(run or study.run())
    test = study.cohort("test", TEST)
    options = EvaluateOptions(engine="native", level=LEVEL, out=cache / f"{task}-evaluation")
    found = evaluate(artifact, [test / "scans"], test / "data.csv", options)
    manifest, counted = found.manifest, [case for case in found.cases if case.counted]
    assert manifest.calibration is not None
    made: Row = {
        "calibration": {
            "cases": manifest.calibration.cases,
            "temperature": manifest.calibration.temperature,
        },
        "cases": len(counted),
        "figures": {
            name: value for name, value in found.figures.items()
            if name in ("auc", "balanced_accuracy", "ece", "mae")
        },
        "certainty": found.certainty,
        "ood": out_of_distribution(artifact, test),
    }  # fmt: skip
    if manifest.classes:
        truth = np.array([int(case.truth or 0) for case in counted])
        values = np.array([case.prediction.values for case in counted])
        raw = values**manifest.calibration.temperature
        raw /= raw.sum(1, keepdims=True)
        made["ece"] = {
            "before": classification(truth, raw, list(manifest.classes))["ece"],
            "after": found.figures["ece"],
        }
        made["questions"] = questions(artifact, test)
        return made
    sure = [case.prediction.certainty for case in counted]
    inside = [one.gap_low <= 0 <= one.gap_high for one in sure
              if one and one.gap_low is not None and one.gap_high is not None]  # fmt: skip
    ranks = np.array([one.percentile for one in sure if one], np.float64)
    made["gap"] = {
        "interval_holds_0": float(np.mean(inside)),
        "percentiles_below_10": float((ranks < 10).mean()),
        "percentiles_above_90": float((ranks > 90).mean()),
    }
    return made


def page(results: dict[str, Row]) -> str:
    """As Markdown."""
    machine = "; ".join(f"{name} {value}" for name, value in describe_machine().items())
    lines = [
        "# How sure: coverage, calibration, odd scans",
        "",
        "Written by `python benchmarks/certainty.py`. Simulated cohorts: networks of the presets "
        f"{' and '.join(TASKS.values())}, trained on cohorts of "
        f"{' and '.join(f'{n:,}' for n in TRAIN.values())}; {CALIBRATE:,} others to calibrate "
        f"with, {TEST:,} others to test with. It says nothing about patients.",
        "",
        f"Machine: {machine}.",
    ]
    for task, found in results.items():
        lines += ["", f"## {task}", "", *_certain(found), "", *_odd(found)]
        if asked := found.get("questions"):
            shares = ", ".join(f"{n} {v:.1%}" for n, v in asked["shapley_shares"].items())
            lines += [
                "",
                f"What-if: **{asked['points_per_second']:,.0f}** points a second of CPU time "
                f"({asked['points']:,} points, one core); curves of 9 columns x 100 points of "
                f"1,000 subjects with kept features: **{asked['curves_of_1000_2']:.1f} s** with "
                f"two threads, {asked['curves_of_1000_1']:.1f} s with one. What columns add "
                f"(shares of the Shapley values' sizes, {EXPLAINED} subjects): {shares}. Education "
                "says nothing in this simulation.",
            ]
    return "\n".join(lines) + "\n"


def _certain(found: Row) -> list[str]:
    """Sets or intervals, and what was corrected."""
    sure = found["certainty"]
    of_all, groups = sure["all"], sure["groups"]
    lines = [
        f"Sets or intervals of {LEVEL:.0%} hold the truth of **{of_all['coverage']:.1%}** "
        f"(95 % {_range(of_all['coverage_95'])}) of {found['cases']:,} new subjects."
    ]
    if "classes" in groups:
        of = ", ".join(f"{name} {row['coverage']:.1%}" for name, row in groups["classes"].items())
        ece = found["ece"]
        lines += [
            f"By class: {of}; {of_all['size']:.2f} classes in a set. Expected calibration error "
            f"{ece['before']:.3f} before scaling, **{ece['after']:.3f}** after (temperature "
            f"{found['calibration']['temperature']:.2f})."
        ]
    else:
        plain, corrected = sure["ages"]["uncorrected"], sure["ages"]["corrected"]
        gap = found["gap"]
        lines += [
            f"The intervals are {of_all['size']:.1f} years wide. Mean absolute error "
            f"{plain['mae']:.2f} years as predicted (slope of the error on age "
            f"{plain['bias_slope']:.2f}), {corrected['mae']:.2f} corrected "
            f"({corrected['bias_slope']:.2f}), which needs the true age and is no accuracy. "
            f"The gap's interval holds 0 in {gap['interval_holds_0']:.1%}; "
            f"{gap['percentiles_below_10']:.1%} of the gaps have a percentile below 10, "
            f"{gap['percentiles_above_90']:.1%} one above 90."
        ]
    lines += ["", "| sex and age | cases | coverage |", "|---|---|---|"]
    lines += [
        f"| {name} | {row['cases']} | "
        + (f"{row['coverage']:.1%} ({_range(row['coverage_95'])}) |" if "coverage" in row else "|")
        for name, row in groups["sex_age"].items()
    ]
    return lines


def _range(ends: list[float] | None) -> str:
    """Of a bootstrap; there is none where all cases are alike."""
    if ends is None:
        return "no interval"
    return f"{ends[0]:.1%} to {ends[1]:.1%}"


def _odd(found: Row) -> list[str]:
    usual = found["ood"]["usual"]
    return [
        f"Distance of scans from the training's; of {usual['cases']} that are as they should be, "
        f"{usual['beyond']:.1%} lie beyond the threshold:",
        "",
        "| scan | AUC, by features | beyond the threshold | refused by the scan checks |",
        "|---|---|---|---|",
        *(
            f"| {kind} | {row['auc']:.3f} | {row['beyond']:.0%} | {row['refused']:.0%} |"
            for kind, row in found["ood"].items()
            if kind != "usual"
        ),
    ]


def main(
    cache: Annotated[Path, typer.Option(help="Cohorts and runs are kept here.")] = Path(
        "build/certainty"
    ),
    only: Annotated[str | None, typer.Option(help="Only this task: ad or brain-age.")] = None,
    run: Annotated[Path | None, typer.Option(help="With only: a run trained before.")] = None,
) -> None:
    """Measure, and write certainty.json and certainty.md."""
    cache.mkdir(parents=True, exist_ok=True)
    place = HERE / "certainty.json"
    results = json.loads(place.read_text()) if only and place.exists() else {}
    for task in TASKS:
        if only in (None, task):
            results[task] = measure(task, cache.resolve(), run)
            place.write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "certainty.md").write_text(page(results))


if __name__ == "__main__":
    typer.run(main)
