"""The same brain, stored another way: how far does that move its prediction?

    python benchmarks/storage.py --artifact demo/demo.hfrt --cohort demo/new    # writes storage.md

Takes subjects of a cohort and stores each in many ways: other backgrounds, other numbers, resampled
as other programs do. Compares each prediction with that of the scan as it is; beside it, how far
the predictions of the subjects lie apart with the same row of the table, since a difference means
nothing without that. Several artifacts are several columns; each keeps its own rule of what is
background. No scan is refused here: only the numbers are looked at.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy import ndimage

import hyperfusion_rt
from hyperfusion_rt.data.raw.image import turn
from hyperfusion_rt.data.table_file import read_table
from hyperfusion_rt.data.volumes import Volume, extract, read_volume
from hyperfusion_rt.machine import describe_machine

HERE = Path(__file__).parent
Array = NDArray[Any]
Stored = tuple[Array, Array]  # voxels, affine

# What changes no anatomy and no place, and what interpolates.
STORAGE = (
    "background 1",
    "background -1024",
    "background 1e-6",
    "background NaN",
    "noise of 1e-3 around 0",
    "noise of 3 around 0",
    "magnitudes of noise of 5",
    "one corner voxel of -37, int16 with an offset",
    "times 0.013, plus 55",
    "z-scores",
)
RESAMPLED = (
    "header turned by 0.12 degrees",
    "turned by 0.12 degrees, cubic",
    "turned by 0.12 degrees, linear",
    "half the spacing, cubic",
    "half the spacing, cubic, clipped, int16",
    "half the spacing, linear",
    "1 mm grid, cubic",
    "half a voxel off, cubic",
    "half a voxel off, linear",
)


def resampled(v: Array, affine: Array, to: Array, shape: tuple[int, ...], order: int) -> Stored:
    """`v` on another grid, as programs that know of no background do it."""
    way = np.linalg.inv(affine) @ to
    found = ndimage.affine_transform(v, way[:3, :3], way[:3, 3], shape, np.float32, order)
    return found, to


def ways(v: Array, affine: Array) -> Iterator[tuple[str, Callable[[], Stored]]]:
    """(name, how to make it) for every way of storing the scan `v`."""
    empty, rng = v == 0, np.random.default_rng(0)

    def over(values: Any) -> Stored:
        return np.where(empty, values, v).astype(np.float32), affine

    def corner() -> Stored:
        other = v.copy()
        other[0, 0, 0] = -37
        step = (other.max() - other.min()) / 65535
        return np.rint((other - other.min()) / step) * step + other.min(), affine

    def z_scores() -> Stored:
        inside = v[~empty]
        return np.where(empty, 0, (v - inside.mean()) / inside.std()), affine

    def magnitudes() -> Stored:
        return over(np.abs(rng.normal(0, 5, v.shape) + 1j * rng.normal(0, 5, v.shape)))

    turned, half, off, fine = (affine.copy() for _ in range(4))
    turned[:3] = turn((0, 0, 0.12))[:3, :3] @ affine[:3]
    half[:3, :3] /= 2
    finer = tuple(2 * n - 1 for n in v.shape)
    off[:3, 3] += affine[:3, :3] @ np.full(3, 0.5)
    fine = np.diag([1.0, 1.0, 1.0, 1.0])
    fine[:3, 3] = [-98, -134, -72]
    whole = (197, 233, 189)
    makers: dict[str, Callable[[], Stored]] = {
        "background 1": lambda: (v + 1, affine),
        "background -1024": lambda: (v - 1024, affine),
        "background 1e-6": lambda: over(1e-6),
        "background NaN": lambda: over(np.nan),
        "noise of 1e-3 around 0": lambda: over(rng.normal(0, 1e-3, v.shape)),
        "noise of 3 around 0": lambda: over(rng.normal(0, 3, v.shape)),
        "magnitudes of noise of 5": magnitudes,
        "one corner voxel of -37, int16 with an offset": corner,
        "times 0.013, plus 55": lambda: (v * 0.013 + 55, affine),
        "z-scores": z_scores,
        "header turned by 0.12 degrees": lambda: (v, turned),
        "turned by 0.12 degrees, cubic": lambda: resampled(v, affine, turned, v.shape, 3),
        "turned by 0.12 degrees, linear": lambda: resampled(v, affine, turned, v.shape, 1),
        "half the spacing, cubic": lambda: resampled(v, affine, half, finer, 3),
        "half the spacing, cubic, clipped, int16": lambda: (
            np.rint(resampled(v, affine, half, finer, 3)[0].clip(0)), half
        ),
        "half the spacing, linear": lambda: resampled(v, affine, half, finer, 1),
        "1 mm grid, cubic": lambda: resampled(v, affine, fine, whole, 3),
        "half a voxel off, cubic": lambda: resampled(v, affine, off, v.shape, 3),
        "half a voxel off, linear": lambda: resampled(v, affine, off, v.shape, 1),
    }  # fmt: skip
    yield from makers.items()


def predict(predictor: Any, stored: Stored, row: Any) -> Array | None:
    """Probabilities or years of one scan; None where it is refused."""
    voxels, affine = stored
    volume = Volume(Path("scan"), np.asfortranarray(voxels, np.float32), affine, 1.0, 0.0)
    try:
        images = extract(volume, predictor.manifest.preprocessing).images
    except hyperfusion_rt.HyperFusionError:
        return None
    tabular = [member.encode_row(row) for member in predictor.manifest.members]
    found: Array = predictor.run(images, tabular)[0]
    return found


def differences(artifact: Path, cohort: Path, subjects: int) -> tuple[dict[str, Any], str]:
    """{way: (median, largest, refused)} of one artifact, and how far subjects lie apart."""
    predictor = hyperfusion_rt.load(artifact, engine="native")
    rows = {row.subject: row for row in read_table(cohort / "data.csv").rows}
    found: dict[str, list[float]] = {}
    refused: dict[str, int] = {}
    same_row, first = [], None
    for path in sorted((cohort / "scans").glob("*.nii.gz"))[:subjects]:
        volume = read_volume(path)
        v = np.asarray(volume.voxels, np.float64)
        row = rows[path.name.removesuffix(".nii.gz")]
        first = first or row
        own = predict(predictor, (v, volume.affine), row)
        apart = predict(predictor, (v, volume.affine), first)
        assert own is not None
        assert apart is not None
        same_row.append(apart)
        for name, make in ways(v, volume.affine):
            other = predict(predictor, make(), row)
            found.setdefault(name, [])
            if other is None:
                refused[name] = refused.get(name, 0) + 1
            else:
                found[name].append(float(np.abs(other - own).max()))
    values = np.stack(same_row)
    most = float(np.abs(values[:, None] - values[None]).max())
    summary = {
        name: (statistics.median(x), max(x), refused.get(name, 0)) if x else (None, None, subjects)
        for name, x in found.items()
    }
    return summary, f"{most:.3g}"


def main(
    artifact: Annotated[list[Path], typer.Option(help="An artifact; repeatable.")],
    cohort: Annotated[list[Path], typer.Option(help="Its cohort, in the same order.")],
    subjects: Annotated[int, typer.Option(help="Subjects of each.")] = 12,
) -> None:
    """Predict every way of storing, and write the table."""
    machine = ", ".join(f"{name} {value}" for name, value in describe_machine().items())
    columns = []
    for one, where in zip(artifact, cohort, strict=True):
        found, apart = differences(one, where, subjects)
        manifest = hyperfusion_rt.load(one, engine="native").manifest
        unit = manifest.unit
        title = f"{one.name}: {unit}, {manifest.preprocessing.normalisation}"
        columns.append({"title": title, "apart": apart, "rows": found})
    lines = [
        "# The same brain, stored another way",
        "",
        f"Written by `python benchmarks/storage.py`. {subjects} subjects; the difference from the "
        "prediction of the scan as it is: median, largest.",
        "",
        f"Machine: {machine}.",
        "",
        f"| | {' | '.join(c['title'] for c in columns)} |",
        f"|---|{'---|' * len(columns)}",
        f"| subjects, with one row of the table, lie apart by up to | "
        f"{' | '.join(c['apart'] for c in columns)} |",
    ]
    for names in (STORAGE, RESAMPLED):
        for name in names:
            cells = []
            for column in columns:
                median, most, none = column["rows"][name]
                cell = "refused" if median is None else f"{median:.2g}, {most:.2g}"
                cells.append(cell + (f" ({none} refused)" if none and median is not None else ""))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    (HERE / "storage.md").write_text(text, encoding="utf-8")
    content = {"machine": describe_machine(), "subjects": subjects, "artifacts": columns}
    (HERE / "storage.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
