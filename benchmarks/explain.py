"""Do maps show what the simulator changed, do they depend on the weights, how long do they take?

    python benchmarks/explain.py --artifact demo/demo.hfrt   # writes explain.md and .json

The artifact is of the preset ad-small, trained on a simulated cohort, with its run in `runs/`
beside it; new subjects are simulated here. Time is of the preset ad with random weights, f = 16. A
linear network, whose map is known, is checked before anything is measured.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from scipy import ndimage, stats

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.artifact.plan import read_plan
from hyperfusion_rt.bench.measure import random_run
from hyperfusion_rt.bench.race import machine_limits
from hyperfusion_rt.config import Box, Preprocessing
from hyperfusion_rt.data.simulate import population, simulate_cohort
from hyperfusion_rt.data.simulate.anatomy import (
    COARSE_MM,
    exponential,
    jacobian,
    make_head,
    strength,
)
from hyperfusion_rt.data.simulate.template import Template, load_template
from hyperfusion_rt.data.volumes import load_boxes, sampling_matrix
from hyperfusion_rt.export import export_run
from hyperfusion_rt.machine import describe_machine, usable_cores
from hyperfusion_rt.models import network_of
from hyperfusion_rt.runtime.cohort.explain import box_maps
from hyperfusion_rt.runtime.engines.native import NativeEngine
from hyperfusion_rt.runtime.explain.occlusion import neutral, occlude
from hyperfusion_rt.runtime.explain.passes import Passes
from hyperfusion_rt.runtime.options import ExplainOptions, PredictOptions
from hyperfusion_rt.runtime.predictor import Predictor
from hyperfusion_rt.training.imported import run_from_state
from hyperfusion_rt.training.run_folder import Run

HERE = Path(__file__).parent
Row = dict[str, Any]
Floats = NDArray[np.float32]

NEAR_MM = 10.0
# Tissue that the atrophy's field grows or shrinks by more than this part has been moved by it.
CHANGED = 0.10
SEED, SUBJECTS, KEPT = 412, 200, 20
# So many of them also hidden otherwise, and with cubes half an edge apart: eight times the work.
OTHERWISE, HALF = 5, 1


def check_linear() -> float:
    """The largest error of the map of a linear network, relative to the map."""

    class Linear:
        def __init__(self, weights: Floats) -> None:
            self.weights = weights

        def run(self, image: Floats, tabular: Floats) -> dict[str, Floats]:
            flat = image.reshape(len(image), -1).astype(np.float64)
            value = (flat @ self.weights.ravel().astype(np.float64))[:, None] + tabular
            return {"output": value.astype(np.float32), "members": value.astype(np.float32)}

    box = Box(name="box", center=(0.0, 0.0, 0.0))
    preprocessing = Preprocessing(boxes=(box,), shape=(16, 16, 16), spacing=2.0)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((1, 1, 16, 16, 16), np.float32)
    images, fill = rng.standard_normal((2, 1, 1, 16, 16, 16), np.float32)
    passes = Passes(Linear(weights), None, images, np.zeros(1, np.float32), 0)
    found = occlude(passes, preprocessing, fill)
    drops = (weights * (images - fill))[0, 0].reshape(4, 4, 4, 4, 4, 4).sum((1, 3, 5))
    expected = drops.repeat(4, 0).repeat(4, 1).repeat(4, 2)
    return float(np.abs(found.voxels[0] - expected).max() / np.abs(expected).max())


def speed(threads: int, scratch: Path, rounds: int) -> Row:
    """Seconds of a scan of the preset ad, f = 16, in the parts that the floor needs."""
    artifact = export_run(random_run("ad", 16, scratch), scratch / "ad.hfrt", engines=["native"])
    predictor = Predictor(artifact, PredictOptions(engine="native", threads=threads))
    preprocessing = predictor.manifest.preprocessing
    simulate_cohort(scratch / "one", task="ad", subjects=1, seed=1, spacing=1, jobs=1)
    (scan,) = (scratch / "one" / "scans").iterdir()
    images = load_boxes(scan, preprocessing).images
    width = sum(member.width for member in predictor.manifest.members)
    row = np.random.default_rng(0).standard_normal(width).astype(np.float32)
    plan = read_plan(artifact.file("native"))
    fill = neutral(images, None, preprocessing.spacing)
    engine = NativeEngine(artifact.file("native"), threads)
    case = images.reshape(1, -1, *images.shape[2:])
    seconds, whole = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        maps = box_maps(predictor, images, row, 0, ExplainOptions(), fill=fill)
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(8):
            engine.features(case)
        whole.append((time.perf_counter() - start) / 16)
    alone = Predictor(artifact, PredictOptions(engine="native", threads=1))
    start = time.process_time()
    box_maps(alone, images, row, 0, ExplainOptions(), fill=fill)
    cpu = time.process_time() - start
    gflop = sum(op.gflop for op in plan.trunk.ops)
    limit, _ = machine_limits(threads)
    found: Row = {
        "load": os.getloadavg()[0],
        "cpu_seconds_of_one_thread": cpu,
        "boxes": "x".join(map(str, preprocessing.shape)),
        "passes": maps.passes,
        "gflop_per_box": gflop,
        "limit_gflops": limit,
        "seconds": statistics.median(seconds),
        "least_seconds": min(seconds),
        "floor_seconds": maps.passes * gflop / limit,
        "whole_passes_seconds": maps.passes * statistics.median(whole),
    }
    # The same answers as by whole passes.
    both = [
        occlude(
            Passes(predictor.network, predictor.network, images, row, 0, plan=p, threads=threads),
            preprocessing, fill, cube=32.0,
        ).voxels
        for p in (plan, None)
    ]  # fmt: skip
    found["off_whole_passes"] = float(np.abs(both[0] - both[1]).max() / np.abs(both[1]).max())
    return found


def atrophy_of(index: int) -> float:
    """Of a subject of the new cohort."""
    rng = np.random.default_rng([SEED, 0, index])
    return float(population.draw_subject("ad", rng, "additive").atrophy[0])


def moved(template: Template, index: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of a subject of the new cohort, on the template's coarse grid: where its own atrophy grows or
    shrinks tissue by more than `CHANGED`, and the hippocampi and ventricles."""
    rng = np.random.default_rng([SEED, 0, index])
    subject = population.draw_subject("ad", rng, "additive")
    head = make_head(template, subject.atrophy, rng)
    # The subject's field has a random part that shrinks and grows everywhere a little. What the
    # atrophy does is the flow of the rest.
    strengths = tuple(map(strength, subject.atrophy))
    usual = tuple(strength(0.0) for _ in strengths)
    more = [s - u for s, u in zip(strengths, usual, strict=True)]
    field = (torch.tensor(more)[:, None, None, None, None] * template.fields).sum(0)
    grown = jacobian(exponential(field.float())).numpy()
    changed = np.abs(np.log(np.maximum(grown, 1e-3))) > np.log1p(CHANGED)
    # The structures of the template, carried to the subject.
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in changed.shape], indexing="ij"))
    points = (grid + 0.5) * COARSE_MM / template.spacing - 0.5
    points = points + head.displacement.numpy() / template.spacing
    masks = template.channels[1:4].numpy().max(0)
    structures = ndimage.map_coordinates(masks, points, order=1) > 0.3
    return changed, structures


def near(
    mask: NDArray[np.bool_], template: Template, preprocessing: Preprocessing
) -> NDArray[np.bool_]:
    """Which voxels of the boxes `[N, D, H, W]` lie within `NEAR_MM` of a coarse mask."""
    away = COARSE_MM * ndimage.distance_transform_edt(~mask)
    affine = template.affine.copy()
    step = COARSE_MM / template.spacing
    affine[:3, 3] += affine[:3, :3] @ np.full(3, (step - 1) / 2)
    affine[:3, :3] *= step
    index = np.stack(np.meshgrid(*[np.arange(n) for n in preprocessing.shape], indexing="ij"))
    found = []
    for box in preprocessing.boxes:
        matrix = sampling_matrix(affine, box, preprocessing)
        points = np.tensordot(matrix[:, :3], index, 1) + matrix[:, 3][:, None, None, None]
        found.append(ndimage.map_coordinates(away, points, order=1, mode="nearest") <= NEAR_MM)
    return np.stack(found)


def share(values: Floats, mask: NDArray[np.bool_]) -> float:
    """The part of a map's mass that lies in a mask."""
    mass = np.abs(values)
    return float(mass[mask].sum() / mass.sum())


def randomised(run: Run, scratch: Path) -> Artifact:
    """The network of a run with new random weights, and its encoder."""
    torch.manual_seed(1)
    encoder = run.members[0].encoder
    network = network_of(run.config, encoder.width)
    made = run_from_state(
        network.state_dict(), run.config, encoder, scratch, name="random", source="random"
    )
    return export_run(made, scratch / "random.hfrt", engines=["native"])


def sanity(artifact: Path, run: Path, threads: int, scratch: Path) -> Row:
    """The shares of the maps of the most atrophied new subjects, and how alike random ones are."""
    cohort = scratch / "new"
    simulate_cohort(cohort, task="ad", subjects=SUBJECTS, seed=SEED, jobs=threads)
    template = load_template(2)
    most = sorted(range(SUBJECTS), key=atrophy_of, reverse=True)[:KEPT]
    options = PredictOptions(engine="native", threads=threads)
    trained = Predictor(Artifact.open(artifact), options)
    random = Predictor(randomised(Run.open(run), scratch), options)
    preprocessing, reference = trained.manifest.preprocessing, trained.artifact.reference()
    assert reference is not None
    cases = {case.subject: case for case in
             trained.gather(cohort / "scans", cohort / "data.csv").cases}  # fmt: skip
    rows = []
    of = trained.manifest.classes.index("AD")
    for index in most:
        changed, structures = moved(template, index)
        case = next(c for name, c in cases.items() if name.upper().endswith(f"-{index + 1:04d}"))
        scan, row = trained.read(case)
        images = scan.images
        assert images is not None
        brain = (images != 0).any(1)
        within = near(changed, template, preprocessing)
        around = near(structures, template, preprocessing)
        options = ExplainOptions()
        usual = neutral(images, reference, preprocessing.spacing)
        ways: dict[str, Row] = {"mean box": {"fill": usual}}
        if len(rows) < OTHERWISE:
            ways |= {
                "blurred scan": {"fill": neutral(images, None, preprocessing.spacing)},
                "background": {"fill": np.zeros_like(images)},
                "integrated gradients": {"fill": usual, "method": "gradients"},
            }
        if len(rows) < HALF:
            ways["mean box, half a cube apart"] = {"fill": usual, "stride": 4.0}
        maps = {}
        for name, way in ways.items():
            how = ExplainOptions(method=way.pop("method", "occlusion"))
            maps[name] = box_maps(trained, images, row, of, how, **way)
        other = box_maps(random, images, row, of, options, fill=usual).voxels[brain]
        mine = maps["mean box"].voxels[brain]
        rows.append(
            {
                "subject": case.subject,
                "atrophy": atrophy_of(index),
                "answer": maps["mean box"].answer,
                "chance": float(within[brain].mean()),
                "chance_structures": float(around[brain].mean()),
                "shares": {n: share(m.voxels, within) for n, m in maps.items()},
                "shares_structures": {n: share(m.voxels, around) for n, m in maps.items()},
                "spearman": float(stats.spearmanr(mine, other)[0]),
                "pearson": float(np.corrcoef(mine, other)[0, 1]),
                "spearman_size": float(stats.spearmanr(np.abs(mine), np.abs(other))[0]),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return {"subjects": rows, "of": "AD"}


def _range(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def markdown(content: Row) -> str:
    """The page."""
    machine = "; ".join(f"{k} {v}" for k, v in content["machine"].items())
    t, rows = content["time"], content["sanity"]["subjects"]
    lines = [
        "# Maps of what an answer rests on", "",
        "Written by `python benchmarks/explain.py`.", "",
        f"Machine: {machine}. {content['threads']} threads.", "",
        f"Before anything is measured: the map of a linear network is right to "
        f"{content['linear_off']:.0e}; maps by crops are those by whole passes to "
        f"{t['off_whole_passes']:.0e}.", "",
        "## Time", "",
        f"Occlusion of a scan, preset ad, f = 16, two boxes of {t['boxes']} voxels of 1 mm, cubes "
        f"of 8 mm: **{t['seconds']:.1f} s**, the least {t['least_seconds']:.1f} s (wanted: at most "
        f"10 s on two cores). The load average was {t['load']:.1f}: beyond the threads' number, "
        "other processes shared the cores, and times are to be read beside the machine's limit in "
        f"the same run. One thread took {t['cpu_seconds_of_one_thread']:.1f} s of CPU time. "
        f"{t['passes']} passes of {t['gflop_per_box']:.2f} GFLOP at the limit of "
        f"{t['limit_gflops']:.0f} GFLOP/s would be {t['floor_seconds']:.1f} s by the direct "
        f"algorithm; as whole passes of the native engine they would take "
        f"{t['whole_passes_seconds']:.1f} s. The rest is saved by running the first layers around "
        "the cube alone.", "",
        "## Where the map lies", "",
        f"The {len(rows)} most atrophied of {SUBJECTS} new simulated subjects, seed {SEED}; maps "
        f"of the class AD. The share of the map's mass within {NEAR_MM:g} mm of where the "
        f"subject's own field of atrophy grows or shrinks tissue by more than {CHANGED:.0%} "
        "against the average subject's (Jacobian determinant; without the field's random part, "
        "which is no atrophy), and of the template's hippocampi, ventricles and temporal horns, "
        "carried to the subject by its displacement field. Chance: the share of an even map over "
        "the brain in the boxes. Mean and range over subjects.", "",
        "| what hides a cube | share near the field | share near the structures |",
        "|---|---|---|",
    ]  # fmt: skip
    for name in rows[0]["shares"]:
        some = [r for r in rows if name in r["shares"]]
        label = name if len(some) == len(rows) else f"{name} (first {len(some)})"
        lines.append(
            f"| {label} | {_range([r['shares'][name] for r in some])} | "
            f"{_range([r['shares_structures'][name] for r in some])} |"
        )
    lines += [
        f"| chance | {_range([r['chance'] for r in rows])} | "
        f"{_range([r['chance_structures'] for r in rows])} |", "",
        "## Random weights", "",
        "Similarity of the maps of the trained network and of one with random weights, over the "
        "brain's voxels; mean and range over subjects. A map that shows the image, not the model, "
        "would be alike.", "",
        "| Spearman | Pearson | Spearman of absolute values |", "|---|---|---|",
        f"| {_range([r['spearman'] for r in rows])} | {_range([r['pearson'] for r in rows])} | "
        f"{_range([r['spearman_size'] for r in rows])} |",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(
    artifact: Annotated[Path, typer.Option(help="Of the preset ad-small.")],
    run: Annotated[Path | None, typer.Option(help="Its run; default: in runs/ beside it.")] = None,
    rounds: Annotated[int, typer.Option(help="Of the timing.")] = 3,
    threads: Annotated[int | None, typer.Option(help="Default: all cores.")] = None,
) -> None:
    """Measure everything and write the page."""
    opened = Artifact.open(artifact).manifest
    run = run or artifact.resolve().parent / "runs" / opened.provenance.run
    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    content: Row = {
        "machine": describe_machine(), "threads": threads, "seed": SEED,
        "training_cases": opened.provenance.cases,
    }  # fmt: skip
    content["linear_off"] = check_linear()
    assert content["linear_off"] < 1e-5
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        content["sanity"] = sanity(artifact, run, threads, scratch)
        content["time"] = speed(threads, scratch, rounds)
    assert content["time"]["off_whole_passes"] < 1e-3
    (HERE / "explain.md").write_text(markdown(content), encoding="utf-8")
    (HERE / "explain.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
