"""A cohort with everything that a report can show, made up: no network, no training, no patient.

`benchmarks/report.py` measures pages of it, and the tests of the report draw it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from hyperfusion_rt.artifact.manifest import Comparison, EngineFile, Manifest, Provenance
from hyperfusion_rt.config import Box, Preprocessing, TableSpec
from hyperfusion_rt.config.tabular import Feature
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.table_file import Row
from hyperfusion_rt.files import stamp
from hyperfusion_rt.runtime.cohort.record import Result
from hyperfusion_rt.runtime.cohort.subjects import Answers, SubjectReader
from hyperfusion_rt.runtime.explain.answers import ImageMap, Reasons, Region, WhatIf
from hyperfusion_rt.runtime.outputs.table import summarise
from hyperfusion_rt.runtime.pipeline import Usage
from hyperfusion_rt.runtime.prediction import Certainty, Prediction, Seconds

CLASSES = ("CN", "MCI", "AD")
FEATURES = (
    Feature(name="AGE", kind="numeric"),
    Feature(name="SEX", kind="categorical", categories=("Female", "Male")),
    Feature(name="EDUCATION", kind="numeric"),
    Feature(name="APOE4", kind="categorical", categories=("0", "1", "2")),
    Feature(name="MMSE", kind="numeric"),
    Feature(name="ABETA", kind="numeric"),
    Feature(name="TAU", kind="numeric"),
    Feature(name="FDG", kind="numeric"),
)


def row_of(n: int, rng: np.random.Generator, gaps: float = 0.15) -> dict[str, str]:
    """A row of the table; a number is missing in some."""
    values = {
        "AGE": f"{rng.normal(73, 7):.1f}",
        "SEX": str(rng.choice(["Female", "Male"])),
        "EDUCATION": str(int(rng.integers(8, 21))),
        "APOE4": str(int(rng.choice([0, 1, 2], p=[0.6, 0.3, 0.1]))),
        "MMSE": str(int(rng.integers(18, 31))),
        "ABETA": f"{rng.normal(1000, 300):.0f}",
        "TAU": f"{rng.normal(280, 80):.0f}",
        "FDG": f"{rng.normal(1.2, 0.15):.3f}",
    }
    return {k: "" if k in ("ABETA", "TAU", "FDG") and rng.random() < gaps else v
            for k, v in values.items()}  # fmt: skip


def manifest(classes: tuple[str, ...] = CLASSES, name: str = "made-up") -> Manifest:
    """Of a model of two boxes at the hippocampi; without classes, one of ages."""
    rng = np.random.default_rng(0)
    features = FEATURES if classes else FEATURES[1:]
    rows = [Row(f"T{n}", None, n, row_of(n, rng)) for n in range(60)]
    table = TableSpec(features=features, target="DX" if classes else "AGE",
                      classes=dict.fromkeys(classes, ()))  # fmt: skip
    found = Comparison(
        against="torch float64", cases=4, real_cases=True, batches=(1,), largest_difference=1e-6,
        tolerance=1e-4, drift=1e-7, drift_tolerance=1e-3,
    )  # fmt: skip
    file = EngineFile(
        engine="native", part="whole", file="model.native", sha256="0" * 64, size=1,
        precision="fp32", device="cpu", comparison=found,
    )  # fmt: skip
    source = Provenance(
        created="2025-01-01T00:00:00+00:00", run=name, network={"fusion": "hyper", "features": 8},
        parameters=1234567, gflop=1.0, versions={"numpy": "2.0"}, cases={"train": 60}, metrics={},
    )  # fmt: skip
    boxes = (Box(name="left", center=(-26.5, -20.5, -14.5)),
             Box(name="right", center=(26.5, -20.5, -14.5), mirror=True))  # fmt: skip
    return Manifest(
        format_version=3, name=name, task="classification" if classes else "regression",
        classes=classes, unit="probability" if classes else "years",
        preprocessing=Preprocessing(boxes=boxes, shape=(32, 48, 32), spacing=2.0), table=table,
        members=(TabularEncoder.fit(rows, table),), combine="mean", engines=(file,),
        provenance=source,
    )  # fmt: skip


def write_scan(path: Path, seed: int, mm: float = 4.0) -> Path:
    """Something like a brain in MNI space: an ellipsoid with folds, dark in the middle."""
    rng = np.random.default_rng(seed)
    size = np.array([160, 200, 170]) // mm
    affine = np.diag([mm, mm, mm, 1.0])
    affine[:3, 3] = -80, -115, -75
    index = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"))
    place = index * mm + affine[:3, 3].reshape(3, 1, 1, 1)
    x, y, z = place
    radius = np.sqrt((x / 68) ** 2 + ((y + 18) / 86) ** 2 + ((z - 8) / 66) ** 2)
    folds = np.sin(x / 6 + rng.normal()) * np.sin(y / 7) * np.sin(z / 6 + rng.normal())
    inner = np.sqrt((x / 14) ** 2 + ((y + 10) / 34) ** 2 + ((z - 16) / 14) ** 2)
    value = np.where(inner < 1, 60, 170 - 60 * (radius > 0.8) + 25 * folds)
    value = np.where(radius < 1, value + rng.normal(0, 6, value.shape), 0)
    nib.Nifti1Image(value.astype(np.int16), affine).to_filename(path)
    return path


def explain(case: Case) -> Answers:
    """What-if curves of four columns, Shapley values, a map: of no model, but of their size."""
    rng = np.random.default_rng(int.from_bytes(case.subject.encode()[-4:], "big"))
    answer = rng.dirichlet([2, 2, 2])
    curves = []
    for column in ("AGE", "MMSE", "ABETA"):
        cells = np.linspace(50, 95, 25)
        tilt = rng.normal(0, 0.03)
        logits = np.log(answer)[None] + tilt * (cells - 70)[:, None] * np.array([[-1, 0.2, 1]])
        values = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        wide = 0.06 if column == "ABETA" else 0.0
        low, high = np.clip(values - wide, 0, 1), np.clip(values + wide, 0, 1)
        curves.append(
            WhatIf(
                (column,), tuple((float(c),) for c in cells), values,
                low if wide else None, high if wide else None,
                tuple("rare" if c > 92 else "" for c in cells), (float(cells[12]),), answer,
            )
        )  # fmt: skip
    values = rng.dirichlet([2, 2, 2], 3)
    curves.append(
        WhatIf(("APOE4",), (("0",), ("1",), ("2",)), values, None, None, ("", "", ""), ("0",),
               answer)
    )  # fmt: skip
    names = tuple(feature.name for feature in FEATURES)
    parts = rng.normal(0, 0.06, (len(names), 3))
    parts -= parts.mean(1, keepdims=True)
    cells = tuple(case.row.values.get(name) or None for name in names)
    reasons = Reasons(names, cells, parts, answer - parts.sum(0), answer)
    voxels = np.zeros((28, 34, 28), np.float32)
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    affine[:3, 3] = -82, -118, -72
    x, y, z = np.stack(np.meshgrid(*map(np.arange, voxels.shape), indexing="ij"))
    for middle, sign in (((9, 16, 10), 1.0), ((18, 16, 10), -0.7)):
        away = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 + (z - middle[2]) ** 2
        voxels += (sign * 0.1 * np.exp(-away / 8)).astype(np.float32)
    voxels[np.abs(voxels) < 0.004] = 0
    regions = (Region("Left Hippocampus", 0.41, 0.05), Region("Right Hippocampus", 0.22, -0.03))
    return (
        curves,
        reasons,
        ImageMap(voxels, affine, "P(AD)", "occlusion", regions, "Harvard-Oxford"),
    )


@dataclass(frozen=True)
class MadeUp:
    """A result, and what makes its subjects."""

    result: Result
    reader: SubjectReader


def made_up(
    count: int,
    scans: Sequence[Path],
    *,
    classes: tuple[str, ...] = CLASSES,
    names: Callable[[int], str] = "S{:05d}".format,
    ids: bool = True,
    answers: bool = True,
    failures: int = 0,
    threads: int = 2,
) -> MadeUp:
    """`count` subjects, each with one of `scans`; the last `failures` have no prediction."""
    rng = np.random.default_rng(1)
    described = manifest(classes)
    stamps = {path: stamp(path) for path in scans}
    predictions, cases = [], {}
    for n in range(count):
        scan = scans[n % len(scans)]
        values = row_of(n, rng)
        case = Case(names(n), None, scan, Row(names(n), None, n + 2, values))
        cases[case.subject, None] = case
        item = Prediction(
            case.subject, None, "ok", scan=scan, stamp=stamps[scan],
            seconds=Seconds(0.004, 0.02, 0.003, 0.02), spread=float(rng.uniform(0.01, 0.08)),
            warnings=("AGE 95.2 is outside the training range 55 to 91",) if n % 17 == 3 else (),
        )  # fmt: skip
        if n >= count - failures:
            code = ("scan-truncated", "scan-truncated", "table-unknown-category")[n % 3]
            item = replace(item, status="error", code=code, reason=f"{scan}: truncated")
        elif classes:
            p = (0.34, 0.33, 0.33) if n == 1 else tuple(map(float, rng.dirichlet([1.5, 1.5, 1.5])))
            kept = tuple(c for c, value in zip(classes, p, strict=True) if value > 0.2)
            sure = Certainty(level=0.9, classes=kept, distance=float(rng.gamma(8, 0.09)))
            truth = str(rng.choice(classes, p=np.array(p) / sum(p)))
            item = replace(item, values=p, certainty=sure, truth=truth)
        else:
            age, true = float(rng.normal(72, 8)), float(rng.normal(72, 8))
            sure = Certainty(level=0.9, low=age - 6, high=age + 6, corrected=age + 0.5,
                             gap=age - true, gap_low=age - true - 6, gap_high=age - true + 6,
                             p_positive=0.6, percentile=70.0, distance=0.8)  # fmt: skip
            item = replace(item, values=(age,), certainty=sure, truth=f"{true:.1f}")
        predictions.append(item)
    usage = Usage()
    usage.workers, usage.wall = {"prepare": 2, "engine": 1}, 0.03 * count
    usage.busy = {"prepare": 0.054 * count, "engine": 0.02 * count}
    result = Result(
        described, "native", ("a note",), predictions, summarise(predictions, usage.wall), usage
    )
    reader = SubjectReader(
        described, "registered", cases, threads, ids, explain if answers and classes else None
    )
    return MadeUp(result, reader)
