"""Maps of what of a scan the model's answer rests on, for a case and for a cohort."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.manifest import Artifact, Manifest, only_artifact
from hyperfusion_rt.artifact.plan import read_plan
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.errors import ConfigError, EngineError, reason_of
from hyperfusion_rt.files import write_text
from hyperfusion_rt.runtime.cohort.places import check_folder
from hyperfusion_rt.runtime.engines.registry import ENGINES
from hyperfusion_rt.runtime.explain.answers import ImageMap
from hyperfusion_rt.runtime.explain.occlusion import BoxMaps, check_cubes, neutral, occlude
from hyperfusion_rt.runtime.explain.passes import Passes
from hyperfusion_rt.runtime.explain.regions import Atlas, load_atlas, regions_of
from hyperfusion_rt.runtime.options import ExplainOptions
from hyperfusion_rt.runtime.prediction import cohort_problems
from hyperfusion_rt.runtime.predictor import PathLike, Predictor
from hyperfusion_rt.runtime.segmentation import refuse_labels
from hyperfusion_rt.runtime.space import Overlap, to_scan, write_voxels


@dataclass(frozen=True)
class Explained:
    """A case and its map; or why there is none: `reason`, and its `code` of `errors.CODES`.

    `answer`: the model's, of what the map explains. `written`: the map and the table of regions.
    """

    subject: str
    session: str | None
    map: ImageMap | None = None
    answer: float | None = None
    reason: str = ""
    code: str = ""
    written: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()


def explain_image(
    predictor: Predictor,
    case: Case,
    options: ExplainOptions | None = None,
    atlas: Atlas | None = None,
) -> ImageMap:
    """The map of one case, on its (first) scan's own grid.

    `options`: method, cube and of what; how scans are read and the engine is run was said when the
    predictor was loaded. `atlas`: for the map's regions.

    Raises:
        HyperFusionError: scan, row, option or engine cannot be used.
    """
    return _explained(predictor, case, options or ExplainOptions(), atlas)[0]


def explain_images(
    scans: PathLike | Sequence[PathLike],
    table: PathLike,
    options: ExplainOptions | None = None,
    *,
    on_case: Callable[[int, int], None] | None = None,
) -> list[Explained]:
    """Explain every scan under `scans` with its row of `table`; write maps and regions.

    Writes `SUBJECT[_SESSION]_map.nii.gz`, and with an atlas `..._regions.csv`, into the folder
    `options.out`. A case that fails has its reason, and the others go on. `on_case` is called with
    (done, all).

    Raises:
        HyperFusionError: no scan, or the table as a whole, the artifact, the atlas or an option
            cannot be used; or nothing can be written.
    """
    options = options or ExplainOptions()
    atlas = None if options.atlas is None else load_atlas(options.atlas)
    artifact = Artifact.open(options.artifact or only_artifact(Path()))
    _index_of(artifact.manifest, options.of)
    check_cubes(artifact.manifest.preprocessing, options.cube, options.cube)
    check_folder(options.out, [Path(table)], artifact.folder)
    predictor = Predictor(artifact, options)
    cohort = predictor.gather(scans, table, id_column=options.id_column)
    found = []
    for case in cohort.cases:
        found.append(_one(predictor, case, options, atlas))
        if on_case is not None:
            on_case(len(found), len(cohort.cases))
    for problem in cohort_problems(cohort):
        if problem.status == "error":
            found.append(
                Explained(
                    problem.subject, problem.session, reason=problem.reason, code=problem.code
                )
            )
    return sorted(found, key=lambda item: (item.subject, item.session or ""))


def _one(
    predictor: Predictor, case: Case, options: ExplainOptions, atlas: Atlas | None
) -> Explained:
    try:
        found, answer, warnings = _explained(predictor, case, options, atlas)
    except ConfigError:
        raise
    except Exception as error:
        code, reason = reason_of(error, case.scan)
        return Explained(case.subject, case.session, reason=reason, code=code)
    name = "_".join(part for part in (case.subject, case.session) if part)
    written = [options.out / f"{name}_map.nii.gz"]
    write_voxels(written[0], found.voxels, found.affine, case.scan)
    if atlas is not None:
        written.append(options.out / f"{name}_regions.csv")
        write_text(written[1], _table(found), private=True)
    return Explained(
        case.subject, case.session, found, answer, written=tuple(written), warnings=warnings
    )


def _table(found: ImageMap) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["region", "share", "mean"])
    writer.writerows([r.name, f"{r.share:.6g}", f"{r.mean:.6g}"] for r in found.regions)
    return stream.getvalue()


def _index_of(manifest: Manifest, of: str | None) -> int | None:
    """Which number of the answer `of` is; None: the predicted class."""
    refuse_labels(manifest, "a map explains")
    if not manifest.classes:
        if of is not None and of != manifest.table.target:
            raise ConfigError(
                f"`of` {of!r}: the model answers one number, {manifest.table.target}; leave it out",
                code="option-wrong",
            )
        return 0
    if of is None:
        return None
    folded = [name.casefold() for name in manifest.classes]
    if of.casefold() not in folded:
        raise ConfigError(
            f"`of` {of!r}: choose one of the model's classes: {', '.join(manifest.classes)}",
            code="option-wrong",
        )
    return folded.index(of.casefold())


def _explained(
    predictor: Predictor, case: Case, options: ExplainOptions, atlas: Atlas | None
) -> tuple[ImageMap, float, tuple[str, ...]]:
    manifest = predictor.manifest
    index = _index_of(manifest, options.of)
    scan, row = predictor.read(case)
    images, grid = scan.images, scan.grid
    assert images is not None
    assert grid is not None
    if index is None:
        widths = np.cumsum([member.width for member in manifest.members])[:-1]
        index = int(predictor.run(images, np.split(row, widths))[0].argmax())
    maps = box_maps(predictor, images, row, index, options)
    summed = options.method == "gradients"
    overlap: Overlap = "sum" if summed else "mean"
    voxels = to_scan(maps.voxels, manifest.preprocessing, scan.to_mni, grid.shape, overlap)
    of = manifest.classes[index] if manifest.classes else manifest.table.target
    method = "integrated gradients" if summed else "occlusion"
    found = ImageMap(voxels, grid.affine, of, method)
    if atlas is not None:
        found = replace(found, regions=regions_of(found, atlas, scan.to_mni), atlas=atlas.name)
    said = manifest.members[0].warnings(case.row)
    if atlas is not None and not found.regions and voxels.any():
        said.append(f"no region of {atlas.name} holds any of the map: is it an atlas of MNI space?")
    return found, maps.answer, (*case.warnings, *scan.warnings, *said)


def box_maps(
    predictor: Predictor,
    images: NDArray[np.float32],
    row: NDArray[np.float32],
    index: int,
    options: ExplainOptions,
    *,
    fill: NDArray[np.float32] | None = None,
    stride: float | None = None,
) -> BoxMaps:
    """The map of a case on its boxes' grids.

    `images [N, C, D, H, W]` and `row [ΣT]` as `Predictor.read` gives them; `index`: which number of
    the answer. `fill`: what hides, of the images' shape; default: `occlusion.neutral`. `stride`: as
    of `occlude`.

    Raises:
        HyperFusionError: as `explain_image`.
    """
    preprocessing = predictor.manifest.preprocessing
    if fill is None:
        fill = neutral(images, predictor.artifact.reference(), preprocessing.spacing)
    if options.method == "occlusion":
        network, native = predictor.network, predictor.engine == "native"
        passes = Passes(
            network,
            network if network.splits else None,
            images,
            row,
            index,
            plan=read_plan(predictor.artifact.file("native")) if native else None,
            threads=predictor.threads,
            values=lambda found: network.values(found)[0],
        )
        return occlude(passes, preprocessing, fill, cube=options.cube, stride=stride)
    from hyperfusion_rt.runtime.engines.gradients import integrated_gradients

    plan = _plan_of(predictor.artifact)
    found = integrated_gradients(plan, images, fill, row, index, threads=predictor.threads)
    return BoxMaps(found.values.sum(1), found.answer, 0)


def _plan_of(artifact: Artifact) -> Path:
    """The file of an engine that torch can run.

    Raises:
        EngineError: the artifact has none.
    """
    for name, kind in ENGINES.items():
        if kind.file == "plan" and name in artifact.engines:
            return artifact.file(name)
    raise EngineError(
        f"{artifact.folder}: `method` gradients runs the native or the torch engine's file, and "
        f"the artifact has only {', '.join(artifact.engines)}; export again with `engines` native",
        code="artifact-lacks-engine",
    )
