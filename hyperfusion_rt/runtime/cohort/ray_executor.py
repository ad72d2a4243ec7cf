"""The pipeline on a Ray cluster: Ray Data actors, one engine each, for more than one machine.

Every actor loads the artifact once and runs the local pipeline on the blocks of cases that it gets.
An actor, worker or machine that dies costs its block a second try elsewhere; the caller takes each
case's first prediction only. Artifact, scans and feature cache must have the same paths on all
machines.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.cluster import connect
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.runtime.options import PredictOptions
from hyperfusion_rt.runtime.prediction import Prediction, as_json, from_json
from hyperfusion_rt.runtime.predictor import Predictor
from hyperfusion_rt.runtime.segmentation import LabelMaps

# Cases that an actor gets at a time: enough to overlap decoding with the engine.
_BLOCK = 8


class _Actor:
    """Holds a predictor; see `ray.data.Dataset.map_batches`."""

    def __init__(self, path: Path, options: PredictOptions, maps: LabelMaps | None) -> None:
        self._predictor = Predictor(Artifact.open(path), options, maps)
        self._isa = self._predictor.identity()["instruction_sets"]

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        try:
            found = [as_json(item) for item in self._predictor.stream(list(batch["case"]))]
        except HyperFusionError as error:  # of the run; Ray would lose what it says
            found = [{"error": str(error), "code": error.code}]
        return {"prediction": [json.dumps([self._isa, item]) for item in found]}


def stream(
    predictor: Predictor,
    cases: Sequence[Case],
    *,
    workers: int | None = None,
    address: str | None = None,
) -> Generator[Prediction, None, None]:
    """Predict `cases` on a cluster, in the order in which they are done.

    Args:
        predictor: says which artifact, engine and options the actors use.
        workers: how many actors, of `predictor.threads` cores each; None: as many as fit.
        address: the cluster's; None takes `RAY_ADDRESS`, or starts one on this machine.

    Raises:
        MissingExtraError: Ray is not installed.
        HyperFusionError: the cluster cannot be reached, or gives up; a worker lacks a package.
    """
    if not cases:
        return
    ray = connect(address)
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    cores = int(ray.cluster_resources().get("CPU", 1))
    threads = min(predictor.threads, cores)
    blocks = -(-len(cases) // _BLOCK)
    actors = min(workers or max(1, cores // threads), blocks)
    path, cache = predictor.artifact.folder.resolve(), predictor.options.feature_cache
    maps = predictor.label_maps
    # What `auto` chose here is what all of them take.
    options = PredictOptions.model_validate(
        {
            **{name: getattr(predictor.options, name) for name in PredictOptions.model_fields},
            "engine": predictor.engine,
            "threads": threads,
            "feature_cache": cache and cache.resolve(),
        }
    )
    # A worker's folder is not this one.
    placed = [{"case": _placed(case)} for case in cases]
    scans = {(case.subject, case.session): case.scan for case in cases}
    data = ray.data.from_items(placed, override_num_blocks=blocks)
    made = data.map_batches(
        _Actor,
        fn_constructor_args=(path, options, maps and LabelMaps(maps.folder.resolve())),
        batch_size=_BLOCK,
        batch_format="numpy",
        num_cpus=threads,
        compute=ActorPoolStrategy(size=actors),
    )
    try:
        own = predictor.identity()["instruction_sets"]
        for row in made.iter_rows():
            isa, content = json.loads(row["prediction"])
            note = f"a worker has other instruction sets ({isa}): last digits may differ"
            if isa != own and note not in predictor.notes:
                predictor.notes = (*predictor.notes, note)
            if "error" in content:
                kind = content["code"]
                raise HyperFusionError(content["error"], code=kind)
            item = from_json(content)
            yield replace(item, scan=scans[item.subject, item.session])
    except ray.exceptions.RayError as error:
        raise HyperFusionError(
            f"Ray: the cluster gave up: {str(error).splitlines()[0]}; what is done is kept: "
            "continue with `resume`",
            code="ray-failed",
        ) from None


def _placed(case: Case) -> Case:
    """The case with paths that hold in any folder."""
    more = tuple(path.absolute() for path in case.more)
    return replace(case, scan=case.scan.absolute(), more=more)
