"""Predicting a cohort: one load, then scans decode in threads while the engine runs."""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.data.cohort import Case, Cohort, find_scans, join
from hyperfusion_rt.data.table import read_table
from hyperfusion_rt.data.volumes import extract, read_volume
from hyperfusion_rt.ensemble import spread
from hyperfusion_rt.errors import EngineError, HyperFusionError
from hyperfusion_rt.machine import usable_cores
from hyperfusion_rt.runtime.artifact import Artifact, Manifest
from hyperfusion_rt.runtime.engines import open_engine

PathLike = str | os.PathLike[str]
Status = Literal["ok", "error", "skipped"]


@dataclass(frozen=True)
class Seconds:
    """Where one case's time went."""

    decode: float = 0.0
    preprocess: float = 0.0
    infer: float = 0.0

    @property
    def total(self) -> float:
        """The sum of the three."""
        return self.decode + self.preprocess + self.infer


@dataclass(frozen=True)
class Prediction:
    """One case's result.

    `values`: probabilities in the order of `manifest.classes`, or the age in years; empty unless
    `status` is `ok`. `spread`: standard deviation over the members, None for one member. `reason`:
    why there is no prediction, or what a reader of this one should know.
    """

    subject: str
    session: str | None
    status: Status
    reason: str = ""
    values: tuple[float, ...] = ()
    spread: float | None = None
    seconds: Seconds = field(default_factory=Seconds)


@dataclass(frozen=True)
class _Inputs:
    images: NDArray[np.float32]  # [N boxes, 1, D, H, W]
    tabular: list[NDArray[np.float32]]  # one [T] per member
    warnings: tuple[str, ...]
    decode: float
    preprocess: float


class Predictor:
    """An opened artifact with its engine loaded; see `load`."""

    def __init__(
        self, artifact: Artifact, engine: str = "auto", threads: int | None = None
    ) -> None:
        self.artifact = artifact
        self.threads = threads or usable_cores()
        opened = open_engine(artifact, engine, self.threads)
        self.engine, self._network, self.notes = opened.name, opened.engine, opened.notes

    @property
    def manifest(self) -> Manifest:
        """What the artifact says of itself."""
        return self.artifact.manifest

    def predict(self, paths: PathLike | Sequence[PathLike], table: PathLike) -> list[Prediction]:
        """Predict every scan under `paths` (files or folders) with its row of `table`.

        A case that fails is a prediction with status `error` and its reason; a row without a scan
        has status `skipped`. In the order of subject and session.

        Raises:
            HyperFusionError: no scan, or the table as a whole cannot be used.
        """
        cohort = self.gather(paths, table)
        found = [*self.stream(cohort.cases), *cohort_problems(cohort)]
        return sorted(found, key=lambda p: (p.subject, p.session or ""))

    def gather(
        self,
        paths: PathLike | Sequence[PathLike],
        table: PathLike,
        *,
        id_column: str | None = None,
        on_duplicate: Literal["refuse", "first"] = "refuse",
    ) -> Cohort:
        """Find the scans, read the table, join both.

        Raises:
            HyperFusionError: no scan, or the table as a whole cannot be used.
        """
        spec = self.manifest.table
        given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        scans = [scan for path in given for scan in find_scans(Path(path))]
        rows = read_table(
            Path(table),
            id_column=id_column or spec.id_column,
            session_column=spec.session_column,
            on_duplicate=on_duplicate,
        )
        for encoder in self.manifest.members:
            encoder.check_columns(rows)
        return join(scans, rows)

    def stream(self, cases: Iterable[Case]) -> Iterator[Prediction]:
        """Predict `cases` in order; a few are decoded ahead, so memory does not grow with them."""
        workers = min(4, max(2, self.threads))
        window: collections.deque[tuple[Case, Future[_Inputs]]] = collections.deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        try:
            for case in cases:
                window.append((case, pool.submit(self._prepare, case)))
                if len(window) > 2 * workers:
                    yield self._finish(*window.popleft())
            while window:
                yield self._finish(*window.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def run(
        self, images: NDArray[np.float32], tabular: Sequence[NDArray[np.float32]]
    ) -> tuple[NDArray[np.float64], float | None]:
        """Run every member on the boxes `images [N, 1, D, H, W]` of one case and combine.

        `tabular`: one encoded row `[T]` per member. Returns probabilities or years `[C]`, and the
        members' spread.

        Raises:
            EngineError: an output is not finite.
        """
        boxes, _, *shape = images.shape
        found = self._network.run(
            images.reshape(1, boxes, *shape), np.concatenate(tabular, dtype=np.float32)[None]
        )
        values, raw = found["output"][0].astype(np.float64), found["members"]
        if not (np.isfinite(raw).all() and np.isfinite(values).all()):
            raise EngineError("the network's output is not finite; are the inputs plausible?")
        members = raw.reshape(len(tabular), boxes, -1)
        return values, spread(members, self.manifest.task, int(values.argmax()))

    def _prepare(self, case: Case) -> _Inputs:
        encoders = self.manifest.members
        tabular = [encoder.encode_row(case.row) for encoder in encoders]
        warnings = encoders[0].warnings(case.row)
        start = time.perf_counter()
        volume = read_volume(case.scan)
        decoded = time.perf_counter()
        boxes = extract(volume, self.manifest.preprocessing)
        return _Inputs(
            boxes.images,
            tabular,
            (*boxes.warnings, *warnings),
            decoded - start,
            time.perf_counter() - decoded,
        )

    def _finish(self, case: Case, future: Future[_Inputs]) -> Prediction:
        try:
            inputs = future.result()
            start = time.perf_counter()
            values, spread = self.run(inputs.images, inputs.tabular)
            seconds = Seconds(inputs.decode, inputs.preprocess, time.perf_counter() - start)
        except HyperFusionError as error:
            return Prediction(case.subject, case.session, "error", str(error))
        except Exception as error:  # one odd case must not end the night's run
            reason = f"{case.scan}: unexpected {type(error).__name__}: {error}"
            return Prediction(case.subject, case.session, "error", reason)
        return Prediction(
            case.subject,
            case.session,
            "ok",
            "; ".join(inputs.warnings),
            tuple(float(v) for v in values),
            spread,
            seconds,
        )


def cohort_problems(
    cohort: Cohort,
    unmatched_scans: Literal["list", "ignore"] = "list",
    unmatched_rows: Literal["list", "ignore"] = "list",
) -> list[Prediction]:
    """What could not be joined. Rows without a scan and further runs are skipped, not errors."""
    found = []
    for problem in cohort.problems:
        no_scan, no_row = problem.kind == "row-without-scan", problem.kind == "scan-without-row"
        if (no_scan and unmatched_rows == "ignore") or (no_row and unmatched_scans == "ignore"):
            continue
        harmless = no_scan or problem.kind == "passed-over"
        status: Status = "skipped" if harmless else "error"
        reason = f"{problem.where}: {problem.reason}"
        found.append(Prediction(problem.subject, problem.session, status, reason))
    return found


def load(path: PathLike, *, engine: str = "auto", threads: int | None = None) -> Predictor:
    """Open the artifact `path` and load its engine.

        hyperfusion_rt.load("x.hfrt").predict("scans/", "data.csv")

    Raises:
        HyperFusionError: the artifact is damaged, or the engine is not there or not installed.
    """
    return Predictor(Artifact.open(Path(path)), engine, threads)
