"""Writing a simulated cohort: scans, table, truth, configuration."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from hyperfusion_rt.config import Published
from hyperfusion_rt.data.imports import import_nibabel
from hyperfusion_rt.data.simulate import population
from hyperfusion_rt.data.simulate.optimum import bayes_optimum
from hyperfusion_rt.data.simulate.population import Model
from hyperfusion_rt.errors import ConfigError, HyperFusionError, MissingExtraError
from hyperfusion_rt.files import replacing, write_text
from hyperfusion_rt.machine import usable_cores

_TASKS: tuple[Published, ...] = get_args(Published)
_MODELS: tuple[Model, ...] = get_args(Model)
# How scanners and converters store volumes: most of them RAS or LAS, some sagittal.
_ORIENTATIONS = ("RAS", "LAS", "LPS", "PIR")

if TYPE_CHECKING:
    from hyperfusion_rt.data.simulate.anatomy import Brain
    from hyperfusion_rt.data.simulate.template import Template

_CHANNELS = """\
preprocessing:
  channels:
  - {name: T1w, files: "*_T1w.nii.gz"}
  - {name: FLAIR, files: "*_FLAIR.nii.gz", t1_weighted: false}
"""
# Written first: what has it is a cohort, perhaps an unfinished one. `hfrt.yaml` is written last.
OPTIMUM = "optimum.json"
_template: Template | None = None


def subject_id(seed: int, index: int) -> str:
    """The id of subject `index` (from 0): ids of different seeds differ."""
    return f"S{seed}-{index + 1:04d}"


def _start(spacing: float, model: Model) -> None:
    """In each worker: one thread, and a template of its own.

    Preparing it takes about as long as importing torch; sending it would need 200 MB of shared
    memory at 1 mm, more than a container has by default.
    """
    import torch

    from hyperfusion_rt.data.simulate.template import load_template

    global _template
    torch.set_num_threads(1)
    _template = load_template(spacing, model)


@contextlib.contextmanager
def _here(spacing: float, model: Model) -> Iterator[None]:
    """`_start` in this process, undone afterwards."""
    import torch

    global _template
    threads = torch.get_num_threads()
    try:
        _start(spacing, model)
        yield
    finally:
        torch.set_num_threads(threads)
        _template = None


@dataclass(frozen=True)
class _Plan:
    """What every subject of a cohort has in common."""

    folder: Path  # of the scans
    task: Published
    model: Model
    seed: int
    scans: int
    flair: bool
    volumes: bool


def _make(index: int, plan: _Plan) -> tuple[dict[str, str], dict[str, Any]]:
    """Draw and write subject `index`; returns its row and its truth."""
    from hyperfusion_rt.data.simulate.anatomy import make_head, pose, scan

    assert _template is not None, "the worker was not started"
    seed = [plan.seed, _TASKS.index(plan.task), index]
    rng = np.random.default_rng(seed)
    subject = population.draw_subject(plan.task, rng, plan.model)
    # Of its own: the rest of the subject is the same with and without a FLAIR image.
    further = np.random.default_rng([*seed, 1])
    lesions = population.draw_lesions(subject, further)
    head = make_head(_template, subject.atrophy, rng)
    flair = (lesions, further) if plan.flair else None
    brain = scan(_template, head, rng, flair=flair)
    orientation = _draw_orientation(rng)
    name = subject_id(plan.seed, index)
    _write_images(plan, name, 1, brain, orientation)
    for session in range(2, plan.scans + 1):
        again = np.random.default_rng([*seed, 2, session])
        stored, moved = _draw_orientation(again), pose(_template, again)
        flair = (lesions, again) if plan.flair else None
        image = scan(_template, head, again, moved=moved, flair=flair)
        _write_images(plan, name, session, image, stored)
    measured = {"hippocampi_ml": brain.hippocampi_ml, "ventricles_ml": brain.ventricles_ml}
    regions = ("atrophy",) if plan.task == "brain-age" else population.AD[plan.model].regions
    truth = {
        "subject": name,
        **{region: f"{a:.5f}" for region, a in zip(regions, subject.atrophy, strict=True)},
        **{k: f"{v:.4f}" for k, v in measured.items()},
        **({} if brain.fissures_ml is None else {"fissures_ml": f"{brain.fissures_ml:.4f}"}),
        "smallest_jacobian": f"{brain.smallest_jacobian:.4f}",
        "orientation": orientation,
        **{k: f"{v:.4f}" if isinstance(v, float) else v for k, v in subject.truth.items()},
    }
    row = {"subject": name, **subject.row}
    if plan.volumes:
        row |= {k.upper(): f"{v:.3f}" for k, v in measured.items()}
    return row, truth


def _draw_orientation(rng: np.random.Generator) -> str:
    return str(rng.choice(_ORIENTATIONS, p=[0.45, 0.35, 0.1, 0.1]))


def _write_images(plan: _Plan, name: str, session: int, brain: Brain, orientation: str) -> None:
    """The images of one scan: in a folder of their own if the subject has several scans."""
    folder = plan.folder
    if plan.scans > 1:
        folder = folder / name / f"ses-{session}"
        folder.mkdir(parents=True)
    ending = "_T1w.nii.gz" if plan.flair else ".nii.gz"
    _write_scan(folder / f"{name}{ending}", brain.voxels, brain.affine, orientation)
    if brain.flair is not None:
        path = folder / f"{name}_FLAIR.nii.gz"
        _write_scan(path, brain.flair, brain.flair_affine, orientation)


def _write_scan(path: Path, voxels: Any, affine: Any, orientation: str) -> None:
    nib = import_nibabel()
    from isal import igzip

    image = nib.Nifti1Image(voxels, affine)
    ras, stored = nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    image = image.as_reoriented(nib.orientations.ornt_transform(ras, stored))
    image.header.set_xyzt_units("mm")
    for kind in ("qform", "sform"):
        getattr(image, f"set_{kind}")(image.affine, code=4)  # 4: MNI space
    with replacing(path) as temporary:
        temporary.write_bytes(igzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _csv(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def simulate_cohort(
    out: Path,
    *,
    task: Published,
    subjects: int,
    seed: int,
    spacing: float = 2,
    model: Model = "additive",
    scans: int = 1,
    flair: bool = False,
    volumes: bool = False,
    jobs: int | None = None,
    force: bool = False,
    on_subject: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Write a cohort into the folder `out`.

    `scans/SUBJECT.nii.gz`: int16, `spacing` (1 or 2) mm, in several orientations. `data.csv`: the
    table, with gaps; with `volumes` also those of hippocampi and ventricles, in ml. With `flair`,
    each subject has two images, `*_T1w` and `*_FLAIR`, of different grids. `truth.csv`: atrophy,
    the volumes that the deformation achieved (ml), the values behind the gaps. `hfrt.yaml`: the
    configuration to train with. `optimum.json`: how well anybody can do (`bayes_optimum`). Subject
    i depends on `task`, `model`, `seed`, `spacing` and i alone, not on `subjects` or on `jobs`, the
    worker processes (as many as there are cores).

    `model`, of the task `ad`: with `additive`, the table shifts what the atrophy means; with
    `place`, APOE4 says which region's atrophy is the disease's (`population`). `scans`: how often
    each subject is scanned. With several, the files are `scans/SUBJECT/ses-1/SUBJECT.nii.gz`, ...;
    the first is the one of a cohort with one scan, the others are the same brain with new noise,
    bias field, gain and orientation, in a pose that differs by what a registration leaves. All use
    the subject's one row of the table.

    `force` replaces an earlier cohort in `out`, and nothing else. `on_subject(i)` is called in this
    process after subject i is written. Workers are spawned: a script that calls this needs
    `if __name__ == "__main__":`.

    Raises:
        ConfigError: `out` is not empty (and `force` is off, or it holds something else than a
            cohort), or an argument is out of range.
        MissingExtraError: the simulate extra is not installed.
    """
    if subjects < 1 or scans < 1 or seed < 0:
        raise ConfigError(
            f"{subjects} subjects, {scans} scans, seed {seed}: use at least 1, and a seed from 0",
            code="option-wrong",
        )
    if spacing not in (1, 2):
        raise ConfigError(
            f"spacing {spacing}: a cohort is simulated at 1 or 2 mm", code="option-wrong"
        )
    if task not in _TASKS:
        raise ConfigError(f"task {task!r}: choose from {', '.join(_TASKS)}", code="option-wrong")
    if model not in _MODELS:
        raise ConfigError(f"model {model!r}: choose from {', '.join(_MODELS)}", code="option-wrong")
    if model != "additive" and task != "ad":
        raise ConfigError(f"model {model!r}: only task 'ad' has it", code="option-wrong")
    _require_extras()
    optimum = bayes_optimum(task, model, volumes=volumes)
    _prepare(out, force, optimum)
    plan = _Plan(out / "scans", task, model, seed, scans, flair, volumes)
    make = partial(_make, plan=plan)
    rows, truths = [], []
    workers = max(1, min(jobs or usable_cores(), subjects))
    with contextlib.ExitStack() as stack:
        made: Iterator[tuple[dict[str, str], dict[str, Any]]]
        if workers == 1:
            stack.enter_context(_here(spacing, model))
            made = map(make, range(subjects))
        else:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, spawn, _start, (spacing, model))
            # After an error or Ctrl-C, what has not begun is dropped.
            stack.callback(pool.shutdown, cancel_futures=True)
            made = pool.map(make, range(subjects))
        for index, (row, truth) in enumerate(made):
            rows.append(row)
            truths.append(truth)
            if on_subject is not None:
                on_subject(index)
    write_text(out / "data.csv", _csv(rows))
    write_text(out / "truth.csv", _csv(truths))
    preset = f"{task}-small" if spacing == 2 else task
    write_text(out / "hfrt.yaml", f"preset: {preset}\n{_CHANNELS if flair else ''}")
    return {
        "folder": str(out),
        "task": task,
        "model": model,
        "subjects": subjects,
        "scans": scans,
        "seed": seed,
        "optimum": optimum,
    }


def _require_extras() -> None:
    """Say what is missing before anything is written, and in this process.

    Raises:
        MissingExtraError: torch, scipy or nilearn is not installed.
    """
    for package, extra in (("torch", "train"), ("scipy", "simulate")):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra, "the simulated cohort")
    from hyperfusion_rt.data.mni_template import template_files
    from hyperfusion_rt.data.simulate.template import PURPOSE

    template_files("simulate", PURPOSE)


def _prepare(out: Path, force: bool, optimum: dict[str, Any]) -> None:
    try:
        if out.exists() and any(out.iterdir()):
            ours = (out / OPTIMUM).exists()
            if not force or not ours:
                hint = "replace it with `force`" if ours else "it holds something else"
                raise ConfigError(
                    f"{out}: is not empty; choose another folder ({hint})", code="output-exists"
                )
            for name in ("hfrt.yaml", "data.csv", "truth.csv"):
                (out / name).unlink(missing_ok=True)
            if (out / "scans").exists():
                shutil.rmtree(out / "scans")
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / OPTIMUM, json.dumps(optimum, indent=2) + "\n")
        (out / "scans").mkdir()
    except OSError as error:
        raise HyperFusionError(
            f"{out}: cannot be written: {error.strerror or error}", code="output-cannot-be-written"
        ) from None
