"""Raw scans: does a moved, biased, anisotropic copy of a subject give the subject's prediction?

    python benchmarks/raw.py    # writes benchmarks/raw.md and .json; about 20 minutes

Simulates cohorts, trains a small network on each task as `hfrt train` does, and takes new subjects
at 1 mm. Of each a copy is made: turned by 20 degrees, shifted, resampled to 1 x 1 x 1.5 mm (the
thick axis differs), multiplied by a smooth field of ±30 %, padded, and stored in another
orientation. Compared are predictions of the original (read as it is), of the original registered,
and of the copy registered. How much the network itself reacts to a harmless change is measured by
the original shifted by half a millimetre and interpolated once.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import nibabel as nib
import numpy as np
import typer
from scipy import ndimage

import hyperfusion_rt
from hyperfusion_rt.data.mni_template import template_files
from hyperfusion_rt.data.raw.image import turn
from hyperfusion_rt.data.raw.register import Registered, register
from hyperfusion_rt.data.volumes import Volume, extract, read_volume
from hyperfusion_rt.errors import ScanError
from hyperfusion_rt.machine import describe_machine, usable_cores

HERE = Path(__file__).parent
Row = dict[str, Any]
TASKS: dict[str, tuple[Literal["ad", "brain-age"], int, str]] = {
    "ad": ("ad", 400, "probability"),
    "age": ("brain-age", 300, "years"),
}
# How far a copy's prediction may lie from the original's: about twice what these small networks do
# when the original is shifted by half a millimetre.
TOLERANCE = {"ad": 0.2, "age": 8.0}
# Degrees about x, y and z; shift in mm; spacing in mm; orientation in the file.
MOVES = [
    ((20, 0, 0), (6, -9, 12), (1, 1, 1.5), "LPI"),
    ((0, 20, 0), (-10, 5, -6), (1.5, 1, 1), "PSR"),
    ((0, 0, -20), (12, 14, 3), (1, 1.5, 1), "AIL"),
    ((-12, 11, 12), (-4, -12, 9), (1, 1, 1.5), "RAS"),
    ((-20, 0, 0), (0, 0, 0), (1.5, 1, 1), "SPL"),
    ((0, -20, 0), (8, 8, 8), (1, 1, 1.5), "IRP"),
    ((0, 0, 20), (-8, -8, -8), (1, 1.5, 1), "LAS"),
    ((12, -11, -12), (5, 10, -10), (1.5, 1, 1), "RSA"),
]


def hfrt(folder: Path, *arguments: object) -> None:
    """Run a command of the command line."""
    start = [sys.executable, "-m", "hyperfusion_rt.cli", *map(str, arguments)]
    subprocess.run(start, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def prepare(name: str, folder: Path, subjects: int) -> tuple[Path, Path]:
    """A trained artifact and a cohort of new subjects at 1 mm; those that are there are used."""
    task, training, _ = TASKS[name]
    test = folder / f"test-{name}"
    if not test.exists():
        one = ("--spacing", 1, "--subjects", subjects, "--seed", 77)
        hfrt(folder, "simulate", test.name, "--task", task, *one)
    artifact = folder / name / f"{name}.hfrt"
    if not artifact.exists():
        hfrt(folder, "simulate", name, "--task", task, "--subjects", training, "--seed", 1)
        hfrt(folder / name, "train", "--name", name)
        hfrt(folder / name, "export", "--engine", "native", "--run", f"runs/{name}")
    return artifact, test


def moved_copy(source: Path, out: Path, index: int) -> np.ndarray:
    """Write the copy; returns `[4, 4]` from the original's mm to the copy's."""
    degrees, shift, spacing, orientation = MOVES[index % len(MOVES)]
    image = nib.as_closest_canonical(nib.load(source))
    voxels = np.asarray(image.dataobj, np.float32)
    middle = (image.affine @ np.r_[(np.array(voxels.shape) - 1) / 2, 1])[:3]
    motion = np.eye(4)
    motion[:3, :3] = turn(degrees)
    motion[:3, 3] = middle - motion[:3, :3] @ middle + shift
    shape = np.ceil(np.array([230, 260, 240]) / spacing).astype(int)
    grid = np.diag([*spacing, 1.0])
    grid[:3, 3] = middle + 0.5 * np.array(shift) - np.array(spacing) * (shape - 1) / 2
    m = np.linalg.inv(image.affine) @ np.linalg.inv(motion) @ grid
    values = ndimage.affine_transform(voxels, m[:3, :3], m[:3, 3], tuple(shape), np.float32, 3)
    c = np.random.default_rng(index).normal(size=9)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    terms = (x, y, z, x * x, y * y, z * z, x * y, y * z, x * z)
    field = sum(weight * term for weight, term in zip(c, terms, strict=True))
    brain = field[values > 10]
    field = 2 * (field - brain.min()) / (brain.max() - brain.min()) - 1
    values = np.clip(values * (1 + 0.3 * field), 0, None)
    made = nib.Nifti1Image(np.rint(values).astype(np.int16), grid)
    way = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    )
    made = made.as_reoriented(way)
    made.set_qform(made.affine, 1)
    made.set_sform(made.affine, 1)
    made.to_filename(out)
    return motion


def half_a_millimetre(volume: Volume) -> Volume:
    """The scan shifted by half a millimetre along each axis, interpolated with cubic splines."""
    shift = np.linalg.inv(volume.affine[:3, :3]) @ np.full(3, 0.5)
    values = np.asarray(volume.voxels, np.float32)
    inside = ndimage.shift(np.asarray(values > 0, np.float32), shift, order=1) >= 0.5
    moved = np.where(inside, np.maximum(ndimage.shift(values, shift, order=3), 0), 0)
    return Volume(volume.path, moved.astype(np.float32), volume.affine, volume.slope, volume.inter)


def brain_points() -> np.ndarray:
    """Some points of the template's brain, mm `[3, N]`."""
    volume = read_volume(template_files("raw", "the benchmark")["t1"])
    index = np.stack(np.nonzero(volume.voxels))[:, ::97]
    return volume.affine[:3, :3] @ index + volume.affine[:3, 3:]


def measure(name: str, artifact: Path, test: Path, threads: int) -> list[Row]:
    """A row per subject."""
    predictor = hyperfusion_rt.load(artifact, engine="native")
    preprocessing = predictor.manifest.preprocessing
    cases = predictor.gather(test / "scans", test / "data.csv").cases
    points = brain_points()

    def predict(case: Any, volume: Volume) -> np.ndarray:
        rows = [encoder.encode_row(case.row) for encoder in predictor.manifest.members]
        return predictor.run(extract(volume, preprocessing).images, rows)[0]

    def place(found: Registered) -> np.ndarray:
        return found.transform[:3, :3] @ points + found.transform[:3, 3:]

    def one(index: int) -> Row:
        case = cases[index]
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "copy.nii.gz"
            motion = moved_copy(case.scan, copy, index)
            own, moved = (register(path, preprocessing) for path in (case.scan, copy))
        original = read_volume(case.scan)
        base, registered, found = (predict(case, v) for v in (original, own.volume, moved.volume))
        error = motion[:3, :3] @ place(own) + motion[:3, 3:] - place(moved)
        distance = np.linalg.norm(error, axis=0)
        return {
            "task": name,
            "subject": case.subject,
            "rotation": moved.quality.rotation,
            "copy_original": float(np.abs(found - base).max()),
            "registered_original": float(np.abs(registered - base).max()),
            "copy_registered": float(np.abs(found - registered).max()),
            "shifted_original": float(
                np.abs(predict(case, half_a_millimetre(original)) - base).max()
            ),
            "tre_mean": float(distance.mean()),
            "tre_max": float(distance.max()),
            "correlation": moved.quality.correlation,
            "overlap": moved.quality.overlap,
            "snr": moved.quality.snr,
            "warnings": list(moved.warnings),
            "seconds": moved.seconds,
        }

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(len(cases))))


def alone(scans: list[Path]) -> dict[str, float]:
    """Medians over copies, one after the other: CPU seconds together, wall seconds of each step."""
    rows = []
    for index, scan in enumerate(scans):
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "copy.nii.gz"
            moved_copy(scan, copy, index)
            start = time.process_time()
            steps = register(copy).seconds
            rows.append({"CPU": time.process_time() - start} | steps)
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def spoilt(scan: Path) -> list[tuple[str, str]]:
    """What becomes of scans that must not pass, or only with a remark."""
    image = nib.as_closest_canonical(nib.load(scan))
    values, affine = np.asarray(image.dataobj, np.float32), image.affine
    rng = np.random.default_rng(0)
    grid = np.indices(values.shape).astype(np.float32)
    middle = np.array(values.shape)[:, None, None, None] / 2
    sphere = (((grid - middle) / 70) ** 2).sum(0) < 1
    upside = affine @ np.diag([1, 1, -1, 1.0])
    upside[:3, 3] = affine[:3, 3] + affine[:3, 2] * (values.shape[2] - 1)
    large = affine.copy()
    large[:3, :3] *= 1.6
    brain = values > 0
    noisy = np.where(brain, values + rng.normal(0, 0.35 * values[brain].mean(), values.shape), 0)
    cases = {
        "noise alone": (rng.gamma(2, 100, values.shape), affine),
        "a homogeneous sphere": (sphere * 1000 + rng.normal(0, 10, values.shape), affine),
        "header upside down": (values, upside),
        "header's voxels 1.6 times too large": (values, large),
        "inverted contrast (as T2)": (np.where(brain, values[brain].max() - values, 0), affine),
        "noise of 35 % of the mean": (np.maximum(noisy, 0), affine),
        "lower half missing": (values[:, :, values.shape[2] // 2 :],
                               affine @ np.vstack([np.c_[np.eye(3), [0, 0, values.shape[2] // 2]],
                                                   [0, 0, 0, 1]])),
    }  # fmt: skip
    found = []
    for name, (voxels, place) in cases.items():
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "scan.nii.gz"
            nib.Nifti1Image(np.rint(voxels).astype(np.int16), place).to_filename(path)
            try:
                made = register(path, hyperfusion_rt.config.preset("ad").preprocessing)
                said = "flagged: " + "; ".join(made.warnings) if made.warnings else "accepted"
                said += f" (correlation {made.quality.correlation:.2f}, overlap "
                said += f"{made.quality.overlap:.2f}, SNR {made.quality.snr:.0f})"
            except ScanError as error:
                said = "refused: " + str(error).removeprefix(f"{path}: ")
        found.append((name, said))
    return found


def write(
    rows: list[Row],
    odd: list[tuple[str, str]],
    head: Row | None,
    threads: int,
    times: dict[str, float],
) -> str:
    """The page, and the figures as JSON."""
    machine = describe_machine()
    lines = [
        "# Raw scans",
        "",
        "Written by `python benchmarks/raw.py`. Copies of simulated subjects: turned by 20 "
        "degrees, shifted, 1.5 mm along one axis, multiplied by a smooth field of ±30 %, padded, "
        "in another orientation. Differences of predictions; the half-millimetre shift of the "
        "original says how much the network itself reacts to a harmless change. Tolerance of a "
        f"copy's prediction: {TOLERANCE['ad']} in probability, {TOLERANCE['age']} years.",
        "",
        f"Machine: {'; '.join(f'{k} {v}' for k, v in machine.items())}; {threads} scans at a time.",
        "",
        "| network | subjects | | median | largest |",
        "|---|---|---|---|---|",
    ]
    kinds = {
        "copy_original": "copy through registration, original as it is",
        "registered_original": "original through registration, original as it is",
        "copy_registered": "copy and original, both through registration",
        "shifted_original": "original shifted by 0.5 mm, original as it is",
    }
    for name in dict.fromkeys(row["task"] for row in rows):
        part = [row for row in rows if row["task"] == name]
        for key, text in kinds.items():
            values = [row[key] for row in part]
            lines.append(
                f"| {TASKS[name][0]}, {TASKS[name][2]} | {len(part)} | {text} "
                f"| {statistics.median(values):.3f} | {max(values):.3f} |"
            )
        for key, text in (("tre_mean", "mean"), ("tre_max", "largest")):
            values = [row[key] for row in part]
            lines.append(
                f"| {TASKS[name][0]}, mm | {len(part)} | target registration error in the brain, "
                f"{text} of a subject | {statistics.median(values):.2f} | {max(values):.2f} |"
            )
    lines += ["", "| figure of the copies | smallest | median | largest |", "|---|---|---|---|"]
    for key in ("correlation", "overlap", "snr", "rotation"):
        values = [row[key] for row in rows]
        lines.append(
            f"| {key} | {min(values):.3g} | {statistics.median(values):.3g} | {max(values):.3g} |"
        )
    cpu = times["CPU"]
    lines += [
        "",
        f"One scan alone, 1 x 1 x 1.5 mm (medians): {cpu:.2f} s of CPU; seconds of each step: "
        + ", ".join(f"{s} {t:.2f}" for s, t in times.items() if s != "CPU" and t > 0.005)
        + ".",
        "",
        "| scan | outcome |",
        "|---|---|",
        *[f"| {name} | {said} |" for name, said in odd],
    ]
    if head is not None:
        figures = ", ".join(f"{k} {v:.3g}" for k, v in head["figures"].items())
        said = "; ".join(head["warnings"]) or "no warning"
        lines.append(f"| {head['name']} | {figures}; {said}; {head['seconds']:.1f} s |")
    content = {"machine": machine, "threads": threads, "rows": rows, "odd": odd,
               "head": head, "alone": times}  # fmt: skip
    (HERE / "raw.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    text = "\n".join(lines) + "\n"
    (HERE / "raw.md").write_text(text, encoding="utf-8")
    return text


def main(
    subjects: int = 8,
    threads: int | None = None,
    keep: Annotated[
        Path | None, typer.Option(help="Make cohorts and networks here, or use those there.")
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(help="A head with its skull, such as pydeface's mean_reg2mean.nii.gz."),
    ] = None,
) -> None:
    """Measure and write the tables."""
    threads = threads or usable_cores()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (keep or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[Row] = []
        for name in TASKS:
            artifact, test = prepare(name, folder, subjects)
            rows += measure(name, artifact, test, threads)
        for row in rows:
            assert row["copy_original"] < TOLERANCE[row["task"]], row
        odd = spoilt(next((folder / "test-ad" / "scans").iterdir()))
        times = alone(sorted((folder / "test-ad" / "scans").iterdir()))
    found = None
    if head is not None:
        made = register(head)
        found = {
            "name": f"{head.name}, a head with its skull",
            "figures": made.quality.figures(),
            "warnings": list(made.warnings),
            "seconds": sum(made.seconds.values()),
        }
    print(write(rows, odd, found, threads, times))


if __name__ == "__main__":
    typer.run(main)
