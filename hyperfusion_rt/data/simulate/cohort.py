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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from hyperfusion_rt.config import Published
from hyperfusion_rt.data.simulate import population
from hyperfusion_rt.data.simulate.optimum import bayes_optimum
from hyperfusion_rt.errors import ConfigError, HyperFusionError, MissingExtraError
from hyperfusion_rt.files import replacing, write_text
from hyperfusion_rt.machine import usable_cores

_TASKS: tuple[Published, ...] = get_args(Published)
# How scanners and converters store volumes: most of them RAS or LAS, some sagittal.
_ORIENTATIONS = ("RAS", "LAS", "LPS", "PIR")

if TYPE_CHECKING:
    from hyperfusion_rt.data.simulate.anatomy import Template

_CHANNELS = """\
preprocessing:
  channels:
  - {name: T1w, files: "*_T1w.nii.gz"}
  - {name: FLAIR, files: "*_FLAIR.nii.gz", t1_weighted: false}
"""
_template: Template | None = None


def subject_id(seed: int, index: int) -> str:
    """The id of subject `index` (from 0): ids of different seeds differ."""
    return f"S{seed}-{index + 1:04d}"


def _start(spacing: float) -> None:
    """In each worker: one thread, and a template of its own.

    Preparing it takes about as long as importing torch; sending it would need 200 MB of shared
    memory at 1 mm, more than a container has by default.
    """
    import torch

    from hyperfusion_rt.data.simulate.anatomy import load_template

    global _template
    torch.set_num_threads(1)
    _template = load_template(spacing)


@contextlib.contextmanager
def _here(spacing: float) -> Iterator[None]:
    """`_start` in this process, undone afterwards."""
    import torch

    global _template
    threads = torch.get_num_threads()
    try:
        _start(spacing)
        yield
    finally:
        torch.set_num_threads(threads)
        _template = None


def _make(
    index: int, *, scans: Path, task: Published, seed: int, flair: bool, volumes: bool
) -> tuple[dict[str, str], dict[str, Any]]:
    """Draw and write subject `index`; returns its row and its truth."""
    from hyperfusion_rt.data.simulate.anatomy import make_brain

    assert _template is not None, "the worker was not started"
    rng = np.random.default_rng([seed, _TASKS.index(task), index])
    subject = population.draw_subject(task, rng)
    # Of its own: the rest of the subject is the same with and without a FLAIR image.
    further = np.random.default_rng([seed, _TASKS.index(task), index, 1])
    lesions = population.draw_lesions(subject, further)
    with_flair = (lesions, further) if flair else None
    brain = make_brain(_template, subject.atrophy, rng, with_flair)
    name = subject_id(seed, index)
    orientation = str(rng.choice(_ORIENTATIONS, p=[0.45, 0.35, 0.1, 0.1]))
    ending = "_T1w.nii.gz" if flair else ".nii.gz"
    _write_scan(scans / f"{name}{ending}", brain.voxels, brain.affine, orientation)
    if brain.flair is not None:
        path = scans / f"{name}_FLAIR.nii.gz"
        _write_scan(path, brain.flair, brain.flair_affine, orientation)
    truth = {
        "subject": name,
        "atrophy": f"{subject.atrophy:.5f}",
        "hippocampi_ml": f"{brain.hippocampi_ml:.4f}",
        "ventricles_ml": f"{brain.ventricles_ml:.4f}",
        "smallest_jacobian": f"{brain.smallest_jacobian:.4f}",
        "orientation": orientation,
        **{k: f"{v:.4f}" if isinstance(v, float) else v for k, v in subject.truth.items()},
    }
    measured = {
        "HIPPOCAMPI_ML": f"{brain.hippocampi_ml:.3f}",
        "VENTRICLES_ML": f"{brain.ventricles_ml:.3f}",
    }
    return {"subject": name, **subject.row, **(measured if volumes else {})}, truth


def _write_scan(path: Path, voxels: Any, affine: Any, orientation: str) -> None:
    import nibabel as nib
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
    flair: bool = False,
    volumes: bool = False,
    jobs: int | None = None,
    force: bool = False,
    on_subject: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Write a cohort into the folder `out`.

    `scans/*.nii.gz`: int16, `spacing` (1 or 2) mm, in several orientations. `data.csv`: the table,
    with gaps; with `volumes` also those of hippocampi and ventricles, in ml. With `flair`, each
    subject has two images, `*_T1w` and `*_FLAIR`, of different grids. `truth.csv`: atrophy, the
    volumes that the deformation achieved (ml), the values behind the gaps. `hfrt.yaml`: the
    configuration to train with. `optimum.json`: how well anybody can do (`bayes_optimum`). Subject
    i depends on `task`, `seed`, `spacing` and i alone, not on `subjects` or on `jobs`, the worker
    processes (as many as there are cores).

    `force` replaces an earlier cohort in `out`, and nothing else. `on_subject(i)` is called in this
    process after subject i is written. Workers are spawned: a script that calls this needs
    `if __name__ == "__main__":`.

    Raises:
        ConfigError: `out` is not empty (and `force` is off, or it holds something else than a
            cohort), or an argument is out of range.
        MissingExtraError: the simulate extra is not installed.
    """
    if subjects < 1 or seed < 0:
        raise ConfigError(
            f"{subjects} subjects, seed {seed}: use at least 1, and a seed from 0",
            code="option-wrong",
        )
    if spacing not in (1, 2):
        raise ConfigError(
            f"spacing {spacing}: a cohort is simulated at 1 or 2 mm", code="option-wrong"
        )
    if task not in _TASKS:
        raise ConfigError(f"task {task!r}: choose from {', '.join(_TASKS)}", code="option-wrong")
    _require_extras()
    _prepare(out, force)
    make = partial(_make, scans=out / "scans", task=task, seed=seed, flair=flair, volumes=volumes)
    rows, truths = [], []
    workers = max(1, min(jobs or usable_cores(), subjects))
    with contextlib.ExitStack() as stack:
        made: Iterator[tuple[dict[str, str], dict[str, Any]]]
        if workers == 1:
            stack.enter_context(_here(spacing))
            made = map(make, range(subjects))
        else:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, spawn, _start, (spacing,))
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
    optimum = bayes_optimum(task)
    write_text(out / "optimum.json", json.dumps(optimum, indent=2) + "\n")
    preset = f"{task}-small" if spacing == 2 else task
    write_text(out / "hfrt.yaml", f"preset: {preset}\n{_CHANNELS if flair else ''}")
    return {
        "folder": str(out),
        "task": task,
        "subjects": subjects,
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
    from hyperfusion_rt.data.simulate.anatomy import PURPOSE

    template_files("simulate", PURPOSE)


def _prepare(out: Path, force: bool) -> None:
    try:
        if out.exists() and any(out.iterdir()):
            ours = (out / "truth.csv").exists() and (out / "scans").is_dir()
            if not force or not ours:
                hint = "replace it with `force`" if ours else "it holds something else"
                raise ConfigError(
                    f"{out}: is not empty; choose another folder ({hint})", code="output-exists"
                )
            for name in ("data.csv", "truth.csv", "optimum.json", "hfrt.yaml"):
                (out / name).unlink(missing_ok=True)
            shutil.rmtree(out / "scans")
        (out / "scans").mkdir(parents=True)
    except OSError as error:
        raise HyperFusionError(
            f"{out}: cannot be written: {error.strerror or error}", code="output-cannot-be-written"
        ) from None
