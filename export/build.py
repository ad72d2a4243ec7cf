"""From a run to an artifact."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hyperfusion_rt
from hyperfusion_rt.artifact.card import write_card
from hyperfusion_rt.artifact.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Artifact,
    EngineFile,
    Manifest,
    Part,
    Provenance,
)
from hyperfusion_rt.artifact.plan import write_plan
from hyperfusion_rt.artifact.scan_reference import ScanReference, write_reference
from hyperfusion_rt.config import Config, Precision, Rule
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.encoder_columns import CategoricalColumn
from hyperfusion_rt.data.raw.landmarks import template_landmarks
from hyperfusion_rt.data.scan_check import Reference
from hyperfusion_rt.errors import ConfigError, HyperFusionError, MissingExtraError
from hyperfusion_rt.export.certainty import certainty_of, table_summary_of
from hyperfusion_rt.export.compare import Expected, compare
from hyperfusion_rt.export.fuse.fuser import plan_ensemble
from hyperfusion_rt.export.ir.ensemble import Ensemble, join
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.graph import Graph
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.export.options import ExportOptions
from hyperfusion_rt.export.population import how_trained, population_of
from hyperfusion_rt.export.precision import check_drift, choose
from hyperfusion_rt.export.targets.tensorrt_engine import OnPhase, export_tensorrt
from hyperfusion_rt.export.targets.triton_server import check_target, write_repository
from hyperfusion_rt.files import replacing_folder, sha256
from hyperfusion_rt.machine import installed
from hyperfusion_rt.models import answers_sd, image_shape
from hyperfusion_rt.runtime.engines.choose import open_file
from hyperfusion_rt.runtime.engines.registry import ENGINES, TENSORRT
from hyperfusion_rt.training.dataset import Dataset
from hyperfusion_rt.training.own_network import versions_of
from hyperfusion_rt.training.results import EXPORT_CASES, load_member
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.scan_reference import kept_reference
from hyperfusion_rt.training.train import SPLITS, dataset_again
from hyperfusion_rt.training.training_cases import kept_training_cases

# Of an imported network's target, whose cohort is not known: that of adults' ages in years.
UNKNOWN_SPREAD = 10.0
Cases = tuple[NDArray[np.float32], list[NDArray[np.float32]], bool]


def gflop(network: nn.Module, image: Sequence[int], width: int) -> float:
    """10⁹ floating-point operations (multiply and add are two) of one forward pass of one box.

    `image` is its shape, `[C, D, H, W]`.
    """
    # On `meta` nothing runs, and generated layers are made of operations that the counter knows.
    counted = copy.deepcopy(network).eval().requires_grad_(False).to("meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.device("meta"):
        counted(torch.zeros(1, *image), torch.zeros(1, width))
    return float(counter.get_total_flops()) / 1e9


def load_cases(run: Run) -> Cases:
    """Images `[K, N, C, D, H, W]` and each member's encoded rows `[K, T]`: real ones where kept.

    An imported checkpoint has no cohort; its cases are drawn, images and numbers from a normal
    distribution, and the manifest says so.
    """
    from safetensors.numpy import load_file

    path = run.folder / "cases.safetensors"
    if path.exists():
        content = load_file(path)
        image = content["image"]
        if image.ndim == 5:  # an older run: one channel, not an axis
            image = image[:, :, None]
        if image.shape[1] < len(run.config.preprocessing.boxes):  # an older run kept one box
            shifts = range(len(run.config.preprocessing.boxes))
            image = np.concatenate([np.roll(image, -n, 0) for n in shifts], 1)
        return image, [content[f"tabular_{i}"] for i in range(len(run.members))], True
    rng = np.random.default_rng(0)
    shape = (EXPORT_CASES, len(run.config.preprocessing.boxes), *image_shape(run.config))
    rows = [_random_rows(member.encoder, rng) for member in run.members]
    return rng.standard_normal(shape, np.float32), rows, False


def _random_rows(encoder: TabularEncoder, rng: np.random.Generator) -> NDArray[np.float32]:
    """`[K, T]` as the encoder could make them: one category each, flags 0 or 1."""
    parts = []
    for column in encoder.columns:
        if isinstance(column, CategoricalColumn):
            count = len(column.categories)
            parts.append(np.eye(count)[rng.integers(count, size=EXPORT_CASES)])
        else:
            parts.append(rng.standard_normal((EXPORT_CASES, 1)))
    flags = rng.integers(2, size=(EXPORT_CASES, len(encoder.columns)))
    return np.concatenate([*parts, flags], 1)[:, encoder.order].astype(np.float32)


def versions() -> dict[str, str]:
    """The packages that an export depends on, with their versions."""
    found = {"hyperfusion_rt": hyperfusion_rt.__version__}
    for package in ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "numpy", "nibabel"):
        if version := installed(package):
            found[package] = version
    return found


def export_run(
    run: Run,
    out: Path,
    options: ExportOptions | None = None,
    *,
    on_progress: OnPhase | None = None,
    **fields: Any,
) -> Artifact:
    """Write the artifact `out` (a folder `NAME.hfrt`) from `run`, with every engine compared.

    Args:
        options: what is written, and how.
        on_progress: told (phase, done, steps) while TensorRT builds one.
        fields: of `ExportOptions`; they overrule those of `options`.

    It is built in a temporary folder and put in place whole: after an error, an older artifact of
    the same name still stands.

    Raises:
        HyperFusionError: the folder exists, or an engine is unknown, missing, or differs.
    """
    options = ExportOptions(**{**dict(options or ()), **fields})
    _check(run, out, options)
    with replacing_folder(out) as folder:
        made = _build(run, folder, out.stem, options, on_progress)
        check_place(
            out, force=options.force or options.replace
        )  # another export may have made it meanwhile
    return Artifact(out, made.manifest, made.notes)


def _check(run: Run, out: Path, options: ExportOptions) -> None:
    """Refuse, before anything is built, what cannot become an artifact.

    Raises:
        HyperFusionError: what is wrong with the run, the place or the options.
    """
    if options.rule not in (None, "mean") and not run.config.tabular.classes:
        raise ConfigError(
            f"`rule` {options.rule}: needs classes, and this run predicts a number",
            code="rule-needs-classes",
        )
    if out.suffix != ".hfrt":
        raise ConfigError(f"{out}: an artifact's name ends in .hfrt", code="export-place")
    check_place(out, force=options.force or options.replace)
    if (serve := options.serve) is not None:
        served, made = serve.resolve(), out.resolve()
        if served == made or served in made.parents or made in served.parents:
            raise ConfigError(
                f"`serve` {serve}: the artifact {out} and the repository must be apart; choose "
                "another folder",
                code="export-place",
            )
        check_target(serve, out.stem, options.backend, options.precision, options.force)
    members = run.members
    if len(members) < run.config.training.members:
        raise ConfigError(
            f"{run.folder}: {len(members)} of {run.config.training.members} members are trained; "
            "finish it with 'hfrt train' and `resume`",
            code="export-run-unfinished",
        )


def check_place(out: Path, *, force: bool) -> None:
    """Refuse a place where something else stands, or, without `force`, an artifact.

    Raises:
        ConfigError: it cannot be written there.
    """
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not (out / MANIFEST).is_file():
        raise ConfigError(
            f"{out}: exists and is no artifact's folder; choose another `out`", code="export-place"
        )
    if not force:
        raise ConfigError(
            f"{out}: exists; choose another `out`, or replace it with `force`",
            code="export-exists",
        )


def folded(network: nn.Module, image: Sequence[int], encoder: TabularEncoder) -> Graph:
    """`network` as a folded graph; a table that is one category alone folds to its states.

    `image` is a box's shape, `[C, D, H, W]`.
    """
    graph = lower(network, {"image": tuple(image), "tabular": (encoder.width,)})
    only = encoder.columns[0] if len(encoder.columns) == 1 else None
    categorical = isinstance(only, CategoricalColumn) and only.missing_rate == 0
    return fold(graph, np.eye(encoder.width) if categorical else None)


def prepare(
    networks: Sequence[nn.Module],
    encoders: Sequence[TabularEncoder],
    cases: Cases,
    config: Config,
    rule: Rule,
    spread: float | None = None,
) -> tuple[Ensemble, Expected]:
    """The members `networks` as one folded network, and what it must say of `cases`.

    `spread`: the standard deviation of a target that is a number, where it is known.
    """
    image, rows, real = cases
    classes = bool(config.tabular.classes)
    widths = [encoder.width for encoder in encoders]
    graphs = [folded(n, image.shape[2:], e) for n, e in zip(networks, encoders, strict=True)]
    ensemble = join(graphs, widths, image.shape[1], classes=classes, rule=rule)
    expected = Expected.of(
        networks,
        image,
        rows,
        real=real,
        classes=classes,
        rule=rule,
        spread=1.0 if classes else spread or UNKNOWN_SPREAD,
        unit=config.tabular.unit,
    )
    return ensemble, expected


def _write_engine(
    engine: str, ensemble: Ensemble, folder: Path, precision: Precision
) -> Iterator[tuple[Part, Path]]:
    """Write the files of `engine`; yields (part, path), the whole network first."""
    if ENGINES[engine].file == "plan":
        path = folder / f"model.{engine}"
        write_plan(plan_ensemble(ensemble, precision=precision), path)
        yield "whole", path
        return
    parts: list[Literal["whole", "trunk", "head"]] = ["whole", "trunk", "head"]
    for part in parts:
        if part == "trunk" and not ensemble.trunk.nodes:
            continue
        if part != "whole" and not ensemble.head.nodes:
            continue  # the trunk is all there is
        path = folder / f"{'model' if part == 'whole' else part}.onnx"
        write_onnx(ensemble, path, part=part)
        yield part, path


def export_engine(
    engine: str,
    ensemble: Ensemble,
    expected: Expected,
    folder: Path,
    options: ExportOptions,
    on_progress: OnPhase | None = None,
) -> list[EngineFile]:
    """Write and compare one engine."""
    wanted = options.precision
    precision: Precision = wanted if wanted in ENGINES[engine].precisions else "fp32"
    device, made = "any", None
    written: list[tuple[Part, Path]]
    if engine in TENSORRT:
        build = options.build_options()
        exported = export_tensorrt(
            engine, ensemble, expected, folder, precision, build, on_progress
        )
        written, device = exported.files, exported.device
        comparison, made = exported.comparison, exported.build
    else:
        written = list(_write_engine(engine, ensemble, folder, precision))
        path = written[0][1]
        comparison = compare(open_file(engine, path), expected, name=path.name, precision=precision)
    return [
        EngineFile(
            engine=engine,
            part=part,
            file=path.name,
            sha256=sha256(path),
            size=path.stat().st_size,
            precision=precision,
            device=device,
            comparison=comparison,
            build=made,
        )
        for part, path in written
    ]


def _build(
    run: Run, folder: Path, name: str, options: ExportOptions, on_progress: OnPhase | None
) -> Artifact:
    """Write the engines, the served models and the manifest of `run` into `folder`."""
    config, members = run.config, run.members
    rule = options.rule or config.training.combine
    networks, encoders = [load_member(run, m) for m in members], [m.encoder for m in members]
    ensemble, expected = prepare(
        networks, encoders, load_cases(run), config, rule, run.target_spread
    )
    files = [
        file
        for engine in options.engines
        for file in export_engine(engine, ensemble, expected, folder, options, on_progress)
    ]
    if options.serve is not None:
        typed = choose(ensemble, options.precision, expected)
        check_drift(ensemble, typed, expected)
        classes = tuple(config.tabular.classes)
        write_repository(
            options.serve,
            name,
            ensemble,
            encoders,
            classes,
            expected.image,
            typed=typed,
            backend=options.backend,
            options=options.build_options(),
            force=options.force,
        )
    manifest = _manifest(run, name, rule, networks[0], files)
    dataset, note = _study_of(run)
    change: dict[str, Any] = {"scan_reference": _scan_reference(run, folder)}
    if dataset is not None:
        change["population"] = population_of(run, dataset)
        change["table_summary"] = table_summary_of(run, dataset)
    if not options.no_training_hashes:
        change["training_cases"] = kept_training_cases(run.folder)
    notes = [note] if note else []
    manifest = manifest.model_copy(update=change)
    measured, why = certainty_of(Artifact(folder, manifest), run, dataset, options)
    manifest = manifest.model_copy(update=measured)
    manifest = manifest.model_copy(update={"card": write_card(folder, manifest)})
    return Artifact(folder, manifest, (*notes, *why)).write()


def _study_of(run: Run) -> tuple[Dataset | None, str]:
    """The cases that `run` was trained on; or None, and what the artifact lacks and why."""
    lacks = (
        "the artifact does not say whom it was trained on or what scans are usual, nor, without "
        "`calibration` cases, how sure its answers are"
    )
    if not (run.folder / SPLITS).is_file():
        return None, f"{run.folder}: was not trained here; {lacks}"
    try:
        return dataset_again(run), ""
    except (HyperFusionError, OSError) as error:
        what = str(error)
        if getattr(error, "code", "") == "run-cohort-changed":
            what = f"{run.study}: the study is not what it was when {run.folder} was trained"
        return None, f"{what}; {lacks}: export again where the study is as it was"


def _scan_reference(run: Run, folder: Path) -> ScanReference | None:
    """Copy what the run's scans look like; of an imported or older run, the template alone."""
    kept = kept_reference(run.folder)
    if kept is not None:
        shutil.copyfile(run.folder / kept.file, folder / kept.file)
        return kept
    try:
        return write_reference(folder, Reference(template_landmarks()))
    except MissingExtraError:
        return None


def _manifest(
    run: Run, name: str, rule: Rule, network: nn.Module, files: Sequence[EngineFile]
) -> Manifest:
    """What the artifact says of itself; `network` is one member's."""
    config, encoders, metrics = run.config, [m.encoder for m in run.members], run.metrics
    return Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        task=config.task,
        classes=tuple(config.tabular.classes),
        unit="probability" if config.tabular.classes else config.tabular.unit,
        answers_sd=answers_sd(config),
        target_spread=run.target_spread,
        preprocessing=config.preprocessing,
        table=config.tabular,
        members=tuple(encoders),
        combine=rule,
        engines=tuple(files),
        provenance=Provenance(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            run=run.folder.name,
            network=config.network.described(),
            parameters=sum(p.numel() for p in network.parameters()),
            gflop=gflop(network, image_shape(config), encoders[0].width),
            versions=versions() | versions_of(run.network),
            cases=metrics.get("cases", {}),
            metrics=metrics.get("test", {}),
            **how_trained(run),
        ),
    )
