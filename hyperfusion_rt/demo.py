"""`hfrt demo`: simulate, train, export, predict new subjects, measure, report."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.bench.measure import measure
from hyperfusion_rt.bench.options import BenchOptions
from hyperfusion_rt.bench.result import Benchmark
from hyperfusion_rt.config import load_config
from hyperfusion_rt.data.cohort import Case, join
from hyperfusion_rt.data.png import png
from hyperfusion_rt.data.scan_search import find_scans
from hyperfusion_rt.data.simulate import OPTIMUM, simulate_cohort
from hyperfusion_rt.data.table_file import read_table
from hyperfusion_rt.data.volumes import Volume, read_volume
from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.export import export_run
from hyperfusion_rt.machine import usable_cores
from hyperfusion_rt.metrics.words import headline, interval
from hyperfusion_rt.runtime.cohort.infer import infer, questions_of
from hyperfusion_rt.runtime.cohort.record import Result
from hyperfusion_rt.runtime.cohort.report import ReportWriter
from hyperfusion_rt.runtime.cohort.subjects import SubjectReader
from hyperfusion_rt.runtime.options import CohortOptions, PredictOptions
from hyperfusion_rt.runtime.outputs.chart import Axis, Chart, Charts
from hyperfusion_rt.runtime.outputs.report import Page, Picture, Pictures
from hyperfusion_rt.runtime.predictor import Predictor
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.train import Callbacks, train

Step = Callable[[str, int, int], None]
Say = Callable[[str], None]

_SPACING = 2
# A quarter of the preset's: the demo shall take minutes.
_EPOCHS = 10
# The second was never looked at while the preset was chosen.
_SEED, _NEW_SEED = 1, 101
# torch.compile is left to `hfrt bench`: it would compile for half a minute.
_CONTENDERS = ("hfrt", "onnxruntime", "openvino", "torch eager")


@dataclass(frozen=True)
class _Speed:
    """What the page says of speed: a bar and a row per contender and batch, the way of one scan."""

    chart: Charts
    rows: list[tuple[object, ...]]
    scan_ms: float
    text: str


@dataclass(frozen=True)
class _Findings:
    """What the page and the table at the end are made from; `trained`: seconds of training."""

    run: Run
    trained: float
    result: Result
    metrics: dict[str, Any]
    optimum: dict[str, Any]
    speed: _Speed


def demo(
    out: Path,
    *,
    subjects: int,
    held_out: int,
    force: bool = False,
    on_step: Step | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Run the whole way into the folder `out`.

    Returns `rows` (figure, value), `report` (the page's path), `metrics` and `optimum`.

    Raises:
        HyperFusionError: the folder exists, or a step failed.
    """
    step: Step = on_step or (lambda text, done, total: None)
    tell: Say = say or (lambda text: None)
    _prepare(out, force)
    started = time.perf_counter()
    train_root, new_root = out / "cohort", out / "new"
    _simulate(train_root, subjects, _SEED, step)
    _simulate(new_root, held_out, _NEW_SEED, step)
    tell(f"simulated {subjects} subjects to train with and {held_out} new ones")

    clock = time.perf_counter()
    run = _train(train_root, step)
    trained = time.perf_counter() - clock
    tell(f"trained in {trained:.0f} s; validation {_short(run.metrics['validation'][0])}")

    step("exporting", 0, 0)
    artifact = export_run(run, out / "demo.hfrt", force=True)
    comparison = artifact.manifest.engines[0].comparison
    tell(f"exported; differs from torch float64 by {comparison.largest_difference:.1e}")

    result = _predict(artifact, new_root, out / "predictions.csv", step)
    assert result.agreement is not None  # the table has the diagnoses; the engine never sees them
    metrics = result.agreement.figures
    tell(f"predicted {result.summary['ok']} new subjects: {_short(metrics)}")

    optimum = json.loads((new_root / OPTIMUM).read_text(encoding="utf-8"))
    speed = _time(run, artifact, new_root, step)
    found = _Findings(run, trained, result, metrics, optimum, speed)
    reader = SubjectReader(
        artifact.manifest,
        "registered",
        {(case.subject, case.session): case for case in _cases(new_root)},
        usable_cores(),
        explain=questions_of(Predictor(artifact, PredictOptions(engine=result.engine))),
    )
    writer = ReportWriter(out / "predictions.html", subjects=held_out, reader=reader)
    writer.write(result, _page(found, new_root))
    return {
        "rows": _rows(found, time.perf_counter() - started),
        "report": str(out / "predictions.html"),
        "metrics": metrics,
        "optimum": optimum,
    }


def _prepare(out: Path, force: bool) -> None:
    if not out.exists():
        return
    ours = (out / "cohort" / OPTIMUM).exists() or not any(out.iterdir())
    if not ours:
        raise ConfigError(
            f"{out}: exists and is not a demo's folder; choose another one", code="output-exists"
        )
    if not force and any(out.iterdir()):
        raise ConfigError(
            f"{out}: exists; choose another folder, or replace it with `force`",
            code="output-exists",
        )
    try:
        shutil.rmtree(out)
    except OSError as error:
        raise HyperFusionError(
            f"{out}: cannot be replaced: {error.strerror}", code="output-cannot-be-written"
        ) from None


def _simulate(folder: Path, count: int, seed: int, step: Step) -> None:
    done = 0

    def on_subject(_: int) -> None:
        nonlocal done
        done += 1
        step("simulating", done, count)

    simulate_cohort(
        folder, task="ad", subjects=count, seed=seed, spacing=_SPACING, on_subject=on_subject
    )


def _train(root: Path, step: Step) -> Run:
    config = load_config(root / "hfrt.yaml", {"training": {"epochs": _EPOCHS}})

    def on_epoch(member: int, epoch: int, row: dict[str, Any]) -> None:
        step("training", epoch + 1, config.training.epochs)

    def on_scan(done: int, total: int) -> None:
        step("decoding", done, total)

    return train(config, root, name="demo", callbacks=Callbacks(on_scan=on_scan, on_epoch=on_epoch))


def _predict(artifact: Artifact, root: Path, table: Path, step: Step) -> Result:
    return infer(
        [root / "scans"],
        root / "data.csv",
        CohortOptions(artifact=artifact.folder, out=table),
        on_case=lambda done, total: step("predicting", done, total),
    )


def _cases(root: Path) -> list[Case]:
    return join(find_scans(root / "scans"), read_table(root / "data.csv")).cases


def _time(run: Run, artifact: Artifact, root: Path, step: Step) -> _Speed:
    """Time the engines and their peers."""
    found = measure(
        run,
        artifact,
        BenchOptions(only=_CONTENDERS),
        _cases(root)[:20],
        on_step=lambda text: step(f"timing, {text}", 0, 0),
    )
    parts = ", ".join(f"{k} {v:.1f} ms" for k, v in found.end_to_end.items() if k != "scans")
    return _Speed(
        chart=_race(found),
        rows=[
            (t.contender, t.precision, t.batch, t.median_ms, t.gflops, f"{t.difference:.1e}")
            for t in found.timings
        ],
        scan_ms=found.end_to_end["total"],
        text=f"One scan from its file: {parts}. Limits of this machine: {found.limit_gflops:.0f} "
        f"GFLOP/s in float32, {found.limit_gbs:.0f} GB/s copied.",
    )


def contrast(root: Path) -> Pictures:
    """The least and the most atrophied subject of a cohort: slices in three directions.

    They pass through the hippocampi (y = -21 mm) and the lateral ventricles (z = 12 mm).
    """
    with open(root / "truth.csv", newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["atrophy"]))
    # In mm: the range of each axis; a range of one is the slice.
    views = {
        "y = -21 mm": ((-75, 75), (-21, -20), (-60, 80)),
        "z = 12 mm": ((-75, 75), (-108, 76), (12, 13)),
        "x = -26 mm, hippocampus": ((-26, -25), (-69, 27), (-47, 17)),
    }
    found = []
    for row in (rows[0], rows[-1]):
        volume = read_volume(root / "scans" / f"{row['subject']}.nii.gz")
        top = np.percentile(volume.voxels[volume.voxels > 0], 99)
        pictures = []
        for title, ranges in views.items():
            shown = np.rot90(np.clip(_slice(volume, ranges) / top, 0, 1))
            pictures.append(Picture(title, png(np.rint(255 * shown).astype(np.uint8))))
        age, atrophy = float(row["AGE"]), float(row["atrophy"])
        found.append((f"{row['DX']}, {age:.0f} years, atrophy {atrophy:+.1f}", tuple(pictures)))
    return Pictures(tuple(found))


def _learning(run: Run) -> Charts:
    """Loss and validation figure over the epochs, a colour for each member."""
    columns = []
    for member in run.members:
        with open(member.folder / "history.csv", newline="", encoding="utf-8") as file:
            columns.append([{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)])
    ends = [row["epoch"] + 1 for rows in columns for row in rows]
    losses = [row[k] for rows in columns for row in rows for k in ("train_loss", "validation_loss")]
    figure = "validation_balanced_accuracy"
    charts = (
        Chart(
            "Loss", "Loss over the epochs",
            Axis.around("epoch", ends), Axis.around("loss", losses),
        ),
        Chart(
            "Balanced accuracy", "Validation balanced accuracy over the epochs",
            Axis.around("epoch", ends),
            Axis.around("balanced accuracy", [row[figure] for rows in columns for row in rows]),
        ),
    )  # fmt: skip
    for n, rows in enumerate(columns):
        for chart, name, dashed in (
            (charts[0], "train_loss", True),
            (charts[0], "validation_loss", False),
            (charts[1], figure, False),
        ):
            chart.line([(row["epoch"] + 1, row[name]) for row in rows], n, dashed=dashed)
    charts[0].note = "Dashed: training; drawn through: validation."
    return Charts(charts)


def _race(found: Benchmark) -> Charts:
    """Milliseconds per box of every contender, a chart for each batch size."""
    charts = []
    for batch in sorted({timing.batch for timing in found.timings}):
        rows = [timing for timing in found.timings if timing.batch == batch]
        names = [
            f"{timing.contender.removeprefix('torch ')}, {timing.precision}" for timing in rows
        ]
        chart = Chart(
            f"Batch {batch}",
            "Milliseconds per box of every engine: shorter is faster",
            Axis("", 0, len(rows), numbers=False),
            Axis("ms per box", 0, 1.08 * max(timing.ms_per_box for timing in rows)),
        )
        for n, (name, timing) in enumerate(zip(names, rows, strict=True)):
            chart.bar(n + 0.15, n + 0.85, timing.ms_per_box, n)
            chart.legend.append((n, f"{name}: {timing.ms_per_box:.1f} ms"))
        charts.append(chart)
    return Charts(tuple(charts))


def _slice(volume: Volume, ranges: tuple[tuple[int, int], ...]) -> NDArray[Any]:
    """The nearest voxels on a grid of `_SPACING` over `ranges` in mm, singletons dropped.

    The browser draws what lies between.
    """
    axes = [np.arange(low, high, _SPACING if high - low > 1 else 1.0) for low, high in ranges]
    mm = np.stack([*np.meshgrid(*axes, indexing="ij"), np.ones([len(a) for a in axes])])
    index = np.rint(np.tensordot(np.linalg.inv(volume.affine)[:3], mm, 1)).astype(int)
    limits = np.reshape(volume.voxels.shape, (3, 1, 1, 1)) - 1
    plane: NDArray[Any] = volume.voxels[tuple(np.clip(index, 0, limits))].squeeze()
    return plane


def _short(metrics: dict[str, Any]) -> str:
    return f"balanced accuracy {_with_interval(metrics)}"


def _with_interval(metrics: dict[str, Any]) -> str:
    found = interval(metrics["balanced_accuracy_95"])
    return f"{metrics['balanced_accuracy']:.3f}" + (f" (95 % {found})" if found else "")


def _optimum_rows(optimum: dict[str, Any]) -> list[tuple[str, float]]:
    return [
        ("Bayes optimum, image and table", optimum["both"]),
        ("Bayes optimum, image only", optimum["image"]),
        ("Bayes optimum, table only", optimum["table"]),
    ]


def _rows(found: _Findings, seconds: float) -> list[list[str]]:
    result, metrics = found.result, found.metrics
    rows = [
        ["new subjects predicted", f"{result.summary['ok']} of {len(result.predictions)}"],
        ["balanced accuracy", _with_interval(metrics)],
        ["chance", f"{metrics['chance']:.3f}"],
    ]
    rows += [[name, f"{value:.3f}"] for name, value in _optimum_rows(found.optimum)]
    rows += [
        ["macro F1, AUC", f"{metrics['macro_f1']:.3f}, {metrics['auc']:.3f}"],
        ["one scan from its file", f"{found.speed.scan_ms:.1f} ms"],
        ["training", f"{found.trained:.0f} s"],
        ["everything", f"{seconds:.0f} s"],
    ]
    return rows


def _page(found: _Findings, root: Path) -> Page:
    """The demo's own sections, which stand before the report of the inference."""
    page = Page("HyperFusion demo: simulated subjects that the network has not seen")
    page.text(
        "Anatomy: the MNI152 template, deformed per subject. The diagnosis is simulated: an "
        "atrophy that also depends on age and sex, and biomarkers with gaps. Not a medical device.",
        soft=True,
    )
    page.cards(headline(found.metrics))
    _accuracy(page, found.metrics, found.optimum)
    page.heading("The least and the most atrophied of the new subjects")
    page.add(contrast(root))
    page.heading("Learning curve")
    page.add(_learning(found.run))
    page.heading("How fast")
    page.add(found.speed.chart)
    page.table(
        ["contender", "type", "batch", "median ms", "GFLOP/s", "difference from float64"],
        found.speed.rows,
    )
    page.text(found.speed.text)
    return page


def _accuracy(page: Page, metrics: dict[str, Any], optimum: dict[str, Any]) -> None:
    """The accuracy beside the best possible one, and which classes are taken for which."""
    page.heading("How near to the best possible")
    page.text(
        "The optimum is known because the cohort is simulated: it belongs to an observer who knows "
        "the generative model and reads the atrophy from the scan without error."
    )
    page.table(
        ["", "balanced accuracy"],
        [
            ("this network", _with_interval(metrics)),
            *[(name, f"{value:.3f}") for name, value in _optimum_rows(optimum)],
            ("chance", f"{metrics['chance']:.3f}"),
        ],
    )
