"""Predicting a cohort: one load, then scans decode in threads while the engine runs."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.manifest import Artifact, Manifest
from hyperfusion_rt.clock import Clock
from hyperfusion_rt.data.cohort import Case, Cohort
from hyperfusion_rt.data.imports import import_nibabel
from hyperfusion_rt.data.raw.sidecar import agent_warnings, sidecar_warnings
from hyperfusion_rt.data.table_file import Duplicates, Row
from hyperfusion_rt.data.volumes import Volume
from hyperfusion_rt.errors import (
    ConfigError,
    HyperFusionError,
    TableError,
)
from hyperfusion_rt.files import stamp_of
from hyperfusion_rt.machine import give_back_memory, resident_memory, usable_cores
from hyperfusion_rt.runtime.case_input import CaseInput, CaseReader, as_batch
from hyperfusion_rt.runtime.explain.answers import Cell, WhatIf
from hyperfusion_rt.runtime.explain.question import Question
from hyperfusion_rt.runtime.explain.what_if import what_if
from hyperfusion_rt.runtime.feature_cache import FeatureCache
from hyperfusion_rt.runtime.gather import gather
from hyperfusion_rt.runtime.identity import identity
from hyperfusion_rt.runtime.network import Answer, Network
from hyperfusion_rt.runtime.options import PredictOptions
from hyperfusion_rt.runtime.pipeline import Budget, Stream, Usage
from hyperfusion_rt.runtime.pipeline import run as run_pipeline
from hyperfusion_rt.runtime.prediction import Prediction, Seconds, by_case, cohort_problems
from hyperfusion_rt.runtime.scan_features import ScanFeatures
from hyperfusion_rt.runtime.segmentation import LabelMaps, Segmentation, refuse_labels
from hyperfusion_rt.runtime.verdict import Prepared, Verdict

PathLike = str | os.PathLike[str]
Floats = NDArray[np.float32]

# What tables, lists and pages take beside scans and the engine.
_SMALL = 16 * 2**20


class Predictor:
    """An opened artifact with its engine loaded once; see `load`.

    Args:
        label_maps: where labels are written of a network that segments; None: nowhere.
    """

    def __init__(
        self,
        artifact: Artifact,
        options: PredictOptions | None = None,
        label_maps: LabelMaps | None = None,
    ) -> None:
        self.artifact = artifact
        self.options = options or PredictOptions()
        self.threads = self.options.threads or usable_cores()
        cached = self.options.feature_cache is not None
        self.label_maps = label_maps if self.manifest.labels else None
        if cached:
            refuse_labels(self.manifest, "`feature_cache` keeps what leads to")
        self.network = Network(artifact, self.options.engine, self.threads, split=cached)
        self.engine = self.network.engine
        self._reference = artifact.reference()
        self.checks = self.options.scan_checks or (
            self._reference.checks if self._reference is not None else "refuse"
        )
        self.notes = (*self.network.notes, *self._notes())
        self.verdict = Verdict(self.network, self.options)
        self.notes = (*self.notes, *self.verdict.notes)
        self._cache = None
        if self.options.feature_cache is not None:
            self._cache = FeatureCache(
                self.options.feature_cache, {**self.identity(), "scan_checks": self.checks}
            )
        self._features = ScanFeatures(self.network, self._cache)
        self._reader = CaseReader(
            self.manifest.preprocessing,
            self.options.source,
            self._reference,
            self.checks,
            self._cache,
            fingerprints=self.manifest.training_cases is not None,
            figures=self.verdict.typical is not None,
        )
        self._free: int | None = None
        if self.options.max_memory is not None:
            give_back_memory()

    def watch(self, on_registered: Callable[[Path, Volume], None]) -> None:
        """Tell `on_registered` of every raw scan that is registered from now on, in any thread."""
        self._reader = replace(self._reader, on_registered=on_registered)

    def _notes(self) -> list[str]:
        """What a user of an older artifact should know."""
        found = []
        if self.manifest.preprocessing.normalisation == "zscore-nonzero":
            found.append(
                f"{self.artifact.folder}: was trained when only voxels of exactly 0 counted as "
                "background: a scan with another background, or one that was resampled, gets "
                "another answer; train and export again"
            )
        if self._reference is None:
            found.append(
                f"{self.artifact.folder}: carries nothing to check scans against: whether they are "
                "registered T1 brains is not checked; export again"
            )
        return found

    @property
    def rules(self) -> dict[str, str]:
        """By which answers are judged: other rules, other answers from the same numbers."""
        return {
            "scan_checks": self.checks,
            "level": f"{self.verdict.level:g}",
            "refuse_ood": "yes" if self.options.refuse_ood else "no",
        }

    def identity(self) -> dict[str, str]:
        """What the numbers depend on besides scan and row: same identity, same bits."""
        return identity(self.artifact, self.engine, self.options.source)

    @property
    def manifest(self) -> Manifest:
        """What the artifact says of itself."""
        return self.artifact.manifest

    def predict(
        self, paths: PathLike | Sequence[PathLike], table: PathLike | None = None
    ) -> list[Prediction]:
        """Predict every scan under `paths` (files or folders) with its row of `table`, which a
        network that reads images alone does not need.

        A case that fails is a prediction with status `error` and its reason; a row without a scan
        has status `skipped`. In the order of subject and session.

        Raises:
            HyperFusionError: no scan, or the table as a whole cannot be used.
        """
        cohort = self.gather(paths, table)
        found = [*self.stream(cohort.cases), *cohort_problems(cohort)]
        return sorted(found, key=by_case)

    def gather(
        self,
        paths: PathLike | Sequence[PathLike],
        table: PathLike | None,
        *,
        id_column: str | None = None,
        on_duplicate: Duplicates = "refuse",
    ) -> Cohort:
        """Find the scans, read the table, join both.

        Raises:
            HyperFusionError: no scan, or the table as a whole, or the filter, cannot be used.
        """
        return gather(
            self.manifest,
            self.options,
            paths,
            table,
            id_column=id_column,
            on_duplicate=on_duplicate,
        )

    def stream(self, cases: Iterable[Case]) -> Stream[Prediction]:
        """Predict `cases`, in the order in which they are done; memory does not grow with them.

        A few threads read, unpack and crop while the engine runs. The engine's numbers do not
        depend on how cases meet in a batch (native), so neither do the predictions.
        """
        raw = self.options.source == "raw"
        usage = Usage()
        budget = Budget(self._free_memory())

        def prepare(case: Case) -> Prepared | Prediction:
            return self._prepare(case, budget, usage)

        def execute(items: Sequence[Prepared | Prediction]) -> list[Prediction]:
            done = [item for item in items if isinstance(item, Prediction)]
            inputs = [item for item in items if isinstance(item, Prepared)]
            try:
                return [*done, *self._finish(inputs)]
            finally:
                for item in inputs:
                    budget.give(item.memory)

        return run_pipeline(
            cases,
            prepare,
            execute,
            workers=self.threads if raw else min(4, max(2, self.threads)),
            batch=self.options.batch,
            usage=usage,
            on_stop=budget.lift,
        )

    def run(
        self, images: Floats, tabular: Sequence[Floats]
    ) -> tuple[NDArray[np.float64], float | None]:
        """Run every member on the boxes `images [N, C, D, H, W]` of one case and combine.

        `tabular`: one encoded row `[T]` per member. Returns probabilities or a number `[C]` (`[2]`
        with its standard deviation, where the network answers one), and the members' spread.

        Raises:
            EngineError: an output is not finite.
        """
        row = np.concatenate(tabular, dtype=np.float32)[None]
        answer = self.network.answer(self.network.run(as_batch([images]), row), 0)
        deviation = [] if answer.sd is None else [answer.sd]
        return np.concatenate([answer.values, deviation]), answer.spread

    def read(self, case: Case) -> tuple[CaseInput, Floats]:
        """A case's boxes, whatever was kept of it, and its encoded rows `[ΣT]`, member by member.

        Raises:
            HyperFusionError: what is wrong with scan or row.
        """
        row = np.concatenate(
            [encoder.encode_row(case.row) for encoder in self.manifest.members], dtype=np.float32
        )
        return replace(self._reader, cache=None).load(case.files, Clock()), row

    def remember(self) -> None:
        """Keep features of scans that are predicted from now on in memory, for `question`."""
        self._features.remember()

    def remembers(self, case: Case) -> bool:
        """Whether the features of the scan of `case` are in memory."""
        return self._features.remembered(case.files) is not None

    def question(self, case: Case) -> Question:
        """The scan of `case`, read by the trunk, with its row: what can be asked about it.

        Raises:
            HyperFusionError: the scan or the row cannot be used, or the engine cannot be split.
        """
        refuse_labels(self.manifest, "what is asked needs")
        self.network.parts()
        features = self._features.remembered(case.files)
        if features is None:
            scan = self._reader.known(case.files) or self._reader.load(case.files, Clock())
            features = self._features.of([scan], [case.files])
        return Question.of(self.network, features, case.row)

    def what_if(
        self,
        scan: PathLike | Sequence[PathLike],
        row: Mapping[str, Cell],
        vary: Mapping[str, Sequence[Cell]],
    ) -> WhatIf:
        """The model's answers to `scan` with other rows; the trunk reads it once.

            predictor.what_if("S1.nii.gz", {"AGE": 71.2, "SEX": "F"}, vary={"AGE": range(55, 91)})

        Args:
            scan: a file, or one of each channel.
            row: a cell for every column that the model reads; None: not known.
            vary: columns, each with the values that it takes; every combination is answered.

        Raises:
            HyperFusionError: the scan, a cell, a column or a value cannot be used.
        """
        if not isinstance(row, Mapping):
            raise TableError("the row: give a mapping of columns to cells", code="option-wrong")
        names = [column.name for column in self.manifest.members[0].columns]
        if absent := [name for name in names if name not in row]:
            raise TableError(
                f"the row lacks {', '.join(absent)}; give None for what is not known",
                code="table-missing-column",
            )
        cells = {name: "" if row[name] is None else str(row[name]) for name in names}
        return what_if(self.question(self._case(scan, cells)), vary)

    def segment(self, scan: PathLike | Sequence[PathLike]) -> Segmentation:
        """The labels of one scan, on its own grid; of a network that segments.

            found = hyperfusion_rt.load("x.hfrt").segment("S1.nii.gz")
            found.labels, found.names, found.volumes
            found.write(Path("S1_dseg.nii.gz"), Path("S1.nii.gz"))

        Args:
            scan: a file, or one of each channel.

        Raises:
            HyperFusionError: the scan cannot be used, or the network answers a class or a number.
        """
        if not self.manifest.labels:
            raise ConfigError(
                f"{self.manifest.name}: answers {self.manifest.table.target}, and no label for "
                "every voxel; use predict",
                code="artifact-segments",
            )
        case = self._case(scan, {})
        read, row = self.read(case)
        assert read.images is not None
        found = self.network.run(as_batch([read.images]), row[None])
        return Segmentation.of(self.manifest, self.network.scores(found, 0), read)

    def _case(self, scan: PathLike | Sequence[PathLike], cells: Mapping[str, str]) -> Case:
        """A case of a scan, one file of each channel, with a row of these cells.

        Raises:
            ConfigError: the files are not one of each channel.
        """
        images = [scan] if isinstance(scan, (str, os.PathLike)) else list(scan or ())
        channels = [channel.name for channel in self.manifest.preprocessing.channels]
        if len(images) != len(channels):
            raise ConfigError(
                f"the scan: {len(images)} files, and the model reads {len(channels)} "
                f"({', '.join(channels)}); give one of each",
                code="option-wrong",
            )
        first, *more = map(Path, images)
        row = Row(first.name, None, 1, dict(cells))
        return Case(first.name, None, first, row, (), tuple(more))

    def _free_memory(self) -> int | None:
        """What `max_memory` leaves for scans, now that the engine is loaded.

        Raises:
            ConfigError: nothing.
        """
        if self.options.max_memory is None:
            return None
        if self._free is not None:
            return self._free
        width = sum(member.width for member in self.manifest.members)
        # Once, so that the engine's workspace, and what reading imports, are there.
        import_nibabel()
        importlib.import_module("isal.igzip")
        self.network.run(
            np.zeros((self.options.batch, *self.manifest.image_shape), np.float32),
            np.zeros((self.options.batch, width), np.float32),
        )
        used = resident_memory() + _SMALL
        if used >= self.options.max_memory:
            raise ConfigError(
                f"`max_memory` {self.options.max_memory / 2**20:,.0f} MiB: the program and its "
                f"{self.engine} engine take {used / 2**20:,.0f} MiB before any scan; allow more",
                code="out-of-budget",
            )
        self._free = self.options.max_memory - used
        return self._free

    def _prepare(self, case: Case, budget: Budget, usage: Usage) -> Prepared | Prediction:
        memory = 0
        before = stamp_of(case.files)
        try:
            if self.label_maps is not None:  # an older one must not stand beside another outcome
                self.label_maps.path(case.subject, case.session).unlink(missing_ok=True)
            encoders = self.manifest.members
            tabular = [encoder.encode_row(case.row) for encoder in encoders]
            warnings = (*case.warnings, *encoders[0].warnings(case.row))
            told = sidecar_warnings if self.options.source == "registered" else agent_warnings
            odd = [text for file in case.files for text in told(file)]
            # What the name says was known when the scan was registered, too.
            fresh = [text for text in warnings if not any(text in other for other in odd)]
            warnings = (*odd, *fresh)
            clock = Clock()
            found = self._reader.known(case.files)
            if found is None:
                if budget.limit is not None:
                    need = self._reader.memory_needed(case.files)
                    waited = budget.take(need, str(case.scan))
                    memory = need
                    usage.work("prepare", -waited)
                found = self._reader.load(case.files, clock)
            for name, seconds in clock.steps.items():
                usage.step(name, seconds)
            row = np.concatenate(tabular, dtype=np.float32)
            return Prepared(case, found, row, warnings, Seconds(**clock.steps), memory, before)
        except Exception as error:
            budget.give(memory)
            return self.verdict.failed(case, error, before)

    def _finish(self, inputs: Sequence[Prepared]) -> list[Prediction]:
        if not inputs:
            return []
        try:
            start = time.perf_counter()
            found, distances = self._execute(inputs)
            seconds = (time.perf_counter() - start) / len(inputs)
        except Exception as error:
            if len(inputs) == 1:
                return [self.verdict.failed(inputs[0].case, error, inputs[0].stamp)]
            # One odd case must not fail the others of its batch.
            return [prediction for item in inputs for prediction in self._finish([item])]
        done = []
        for index, item in enumerate(inputs):
            try:
                answer, labels = self._answer(found, index, item)
                distance = None if distances is None else float(distances[index])
                done.append(self.verdict.predicted(item, answer, distance, seconds))
            except HyperFusionError as error:
                done.append(self.verdict.failed(item.case, error, item.stamp))
                continue
            if labels is not None and self.label_maps is not None:
                place = self.label_maps.path(item.case.subject, item.case.session)
                labels.write(place, item.case.scan)  # a full disk ends the run: no case's fault
        return done

    def _answer(
        self, found: dict[str, Floats], index: int, item: Prepared
    ) -> tuple[Answer, Segmentation | None]:
        if not self.manifest.labels:
            return self.network.answer(found, index), None
        labels = Segmentation.of(self.manifest, self.network.scores(found, index), item.scan)
        return Answer(labels.volumes, None, None), labels

    def _execute(
        self, inputs: Sequence[Prepared]
    ) -> tuple[dict[str, Floats], NDArray[np.float64] | None]:
        """The network's outputs, and each scan's distance in multiples of the threshold."""
        rows = np.stack([item.tabular for item in inputs])
        scans = [item.scan for item in inputs]
        if not (self._features.kept or self.verdict.typical is not None):
            images = [scan.images for scan in scans if scan.images is not None]
            return self.network.run(as_batch(images), rows), None
        features = self._features.of(scans, [item.case.files for item in inputs])
        return self.network.finish(features, rows), self.verdict.distances(features, scans)


def load(path: PathLike, options: PredictOptions | None = None, **fields: Any) -> Predictor:
    """Open the artifact `path` and load its engine.

        hyperfusion_rt.load("x.hfrt").predict("scans/", "data.csv")
        hyperfusion_rt.load("x.hfrt", engine="native", threads=4)

    Args:
        options: how scans are read and the engine is run.
        fields: or the fields of `PredictOptions` by name.

    Raises:
        HyperFusionError: the artifact is damaged, or the engine is not there or not installed.
    """
    if not (options is None or isinstance(options, PredictOptions)):
        raise ConfigError(
            f"`options` {options!r}: give a PredictOptions, or name the option, such as "
            f"engine={options!r}",
            code="option-wrong",
        )
    if options is not None and fields:
        raise ConfigError(
            f"give `options`, or single ones ({', '.join(fields)}), not both",
            code="option-conflict",
        )
    return Predictor(Artifact.open(Path(path)), options or PredictOptions(**fields))
