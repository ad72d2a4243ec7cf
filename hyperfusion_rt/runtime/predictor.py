"""Predicting a cohort: one load, then scans decode in threads while the engine runs."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.manifest import Artifact, Manifest
from hyperfusion_rt.artifact.typical_scans import Typical, pooled
from hyperfusion_rt.clock import Clock
from hyperfusion_rt.data.bids_columns import bids_readings, suggestions
from hyperfusion_rt.data.bids_dataset import session_rows
from hyperfusion_rt.data.bids_filter import read_filter
from hyperfusion_rt.data.channels import find_cases
from hyperfusion_rt.data.cohort import Case, Cohort, join
from hyperfusion_rt.data.column_map import (
    asked_readings,
    columns_of_members,
    own_readings,
    parse_map,
    read_through,
)
from hyperfusion_rt.data.fingerprint import Seen
from hyperfusion_rt.data.imports import import_nibabel
from hyperfusion_rt.data.raw.sidecar import agent_warnings, sidecar_warnings
from hyperfusion_rt.data.scan_search import find_chosen
from hyperfusion_rt.data.table_columns import read_table_for
from hyperfusion_rt.data.table_file import Duplicates, Row, Table
from hyperfusion_rt.data.volumes import Volume
from hyperfusion_rt.errors import (
    ConfigError,
    EngineError,
    HyperFusionError,
    ScanError,
    TableError,
    reason_of,
)
from hyperfusion_rt.files import stamp_of
from hyperfusion_rt.machine import give_back_memory, resident_memory, usable_cores
from hyperfusion_rt.runtime.case_input import CaseInput, CaseReader, as_batch
from hyperfusion_rt.runtime.certainty import certainty, check_level
from hyperfusion_rt.runtime.explain.answers import Cell, WhatIf
from hyperfusion_rt.runtime.explain.question import Question
from hyperfusion_rt.runtime.explain.what_if import what_if
from hyperfusion_rt.runtime.feature_cache import FeatureCache, Kept
from hyperfusion_rt.runtime.identity import identity
from hyperfusion_rt.runtime.network import Answer, Features, Network, joined
from hyperfusion_rt.runtime.options import PredictOptions
from hyperfusion_rt.runtime.pipeline import Budget, Stream, Usage
from hyperfusion_rt.runtime.pipeline import run as run_pipeline
from hyperfusion_rt.runtime.prediction import Prediction, Seconds, by_case, cohort_problems

PathLike = str | os.PathLike[str]
Floats = NDArray[np.float32]

# What tables, lists and pages take beside scans and the engine.
_SMALL = 16 * 2**20
# What features that are remembered take, at most.
_REMEMBERED = 64 * 2**20


@dataclass(frozen=True)
class _Inputs:
    case: Case
    scan: CaseInput
    tabular: Floats  # [ΣT]: one encoded row per member
    warnings: tuple[str, ...]
    seconds: Seconds
    memory: int
    stamp: str | None


class Predictor:
    """An opened artifact with its engine loaded once; see `load`."""

    def __init__(self, artifact: Artifact, options: PredictOptions | None = None) -> None:
        self.artifact = artifact
        self.options = options or PredictOptions()
        self.threads = self.options.threads or usable_cores()
        cached = self.options.feature_cache is not None
        self.network = Network(artifact, self.options.engine, self.threads, split=cached)
        self.engine = self.network.engine
        self._reference = artifact.reference()
        self.checks = self.options.scan_checks or (
            self._reference.checks if self._reference is not None else "refuse"
        )
        self.notes = (*self.network.notes, *self._notes())
        self.level = check_level(self.manifest, self.options.level)
        self._typical = self._open_typical()
        self._cache = None
        if self.options.feature_cache is not None:
            self._cache = FeatureCache(
                self.options.feature_cache, {**self.identity(), "scan_checks": self.checks}
            )
        self._reader = CaseReader(
            self.manifest.preprocessing,
            self.options.source,
            self._reference,
            self.checks,
            self._cache,
            fingerprints=self.manifest.training_cases is not None,
            figures=self._typical is not None,
        )
        self._free: int | None = None
        self._remembered: dict[tuple[Path, ...], Features] | None = None
        if self.options.max_memory is not None:
            give_back_memory()

    def _open_typical(self) -> Typical | None:
        """What scans are usual, where artifact and engine say it.

        Raises:
            ConfigError: they do not, and `refuse_ood` asks for it.
        """
        found, why = self.artifact.typical(), ""
        if found is None:
            why = f"{self.artifact.folder}: does not say what scans are usual; export it again"
        else:
            try:
                self.network.parts()
            except EngineError:
                why = (
                    f"the {self.engine} engine does not give a scan's features: whether a scan is "
                    "unlike the training's is not looked at; use `engine` native or onnx"
                )
                found = None
        if why and self.options.refuse_ood:
            raise ConfigError(f"`refuse_ood`: {why}", code="option-conflict")
        if why and self.artifact.manifest.typical_scans is not None:
            self.notes = (*self.notes, why)
        return found

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

    def identity(self) -> dict[str, str]:
        """What the numbers depend on besides scan and row: same identity, same bits."""
        return identity(self.artifact, self.engine, self.options.source)

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
        return sorted(found, key=by_case)

    def gather(
        self,
        paths: PathLike | Sequence[PathLike],
        table: PathLike,
        *,
        id_column: str | None = None,
        on_duplicate: Duplicates = "refuse",
    ) -> Cohort:
        """Find the scans, read the table, join both.

        Raises:
            HyperFusionError: no scan, or the table as a whole, or the filter, cannot be used.
        """
        spec = self.manifest.table
        channels = self.manifest.preprocessing.channels
        given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        choose = read_filter(self.options.bids_filter)
        if self.options.source == "raw":
            from hyperfusion_rt.data.raw.search import find_raw_scans

            if len(channels) > 1 or not channels[0].t1_weighted:
                names = ", ".join(channel.name for channel in channels)
                raise ConfigError(
                    f"`source` raw registers one T1-weighted image, and this artifact reads "
                    f"{names}: register its images to MNI space, and predict those",
                    code="option-conflict",
                )
            # A scan that is named twice, by itself and with its folder, is one scan.
            scans = find_chosen(map(Path, given), find_raw_scans, choose)
        else:
            scans = find_cases([Path(path) for path in given], channels, choose)
        path = Path(table)
        in_bids = path.name == "participants.tsv"
        # BIDS says how its columns are called, whatever the training's table had; what differs
        # from session to session stands in the participants' folders.
        rows = read_table_for(
            scans,
            path,
            id_column=id_column or ("participant_id" if in_bids else spec.id_column),
            session_column=None if in_bids else spec.session_column,
            on_duplicate=on_duplicate,
        )
        if in_bids:
            rows = session_rows(path.parent, rows)
        rows = self._mapped(rows, in_bids)
        return join(scans, rows, [column.name for column in self.manifest.members[0].columns])

    def _mapped(self, table: Table, in_bids: bool) -> Table:
        """`table` with the model's columns, read as `map`, the artifact or BIDS say.

        Raises:
            HyperFusionError: a map does not fit model or table, or a column is missing.
        """
        spec, members = self.manifest.table, self.manifest.members
        columns = columns_of_members([member.columns for member in members], spec)
        readings = own_readings(table, columns, spec.map, "as the artifact says")
        readings |= asked_readings(table, columns, parse_map(self.options.map))
        doubts: dict[str, str] = {}
        if in_bids:
            more, doubts = bids_readings(table, columns, readings)
            readings |= more
        found = read_through(table, readings)
        instead = suggestions(found, columns, doubts)
        for encoder in members:
            encoder.check_columns(found, instead)
        return found

    def stream(self, cases: Iterable[Case]) -> Stream[Prediction]:
        """Predict `cases`, in the order in which they are done; memory does not grow with them.

        A few threads read, unpack and crop while the engine runs. The engine's numbers do not
        depend on how cases meet in a batch (native), so neither do the predictions.
        """
        raw = self.options.source == "raw"
        usage = Usage()
        budget = Budget(self._free_memory())

        def prepare(case: Case) -> _Inputs | Prediction:
            return self._prepare(case, budget, usage)

        def execute(items: Sequence[_Inputs | Prediction]) -> list[Prediction]:
            done = [item for item in items if isinstance(item, Prediction)]
            inputs = [item for item in items if isinstance(item, _Inputs)]
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
        """Keep the features of scans that are predicted from now on, for `question`: some of them.

        Nothing where the engine cannot be split.
        """
        if self.network.splits:
            self._remembered = {}

    def remembers(self, case: Case) -> bool:
        """Whether the features of the scan of `case` were kept."""
        return self._remembered is not None and case.files in self._remembered

    def question(self, case: Case) -> Question:
        """The scan of `case`, read by the trunk, with its row: what can be asked about it.

        Raises:
            HyperFusionError: the scan or the row cannot be used, or the engine cannot be split.
        """
        self.network.parts()
        remembered = (self._remembered or {}).get(case.files)
        if remembered is not None:
            return Question.of(self.network, remembered, case.row)
        scan = self._reader.known(case.files) or self._reader.load(case.files, Clock())
        if scan.kept is not None:
            features = scan.kept.features
        elif self._cache is not None:
            features = self._features(scan).features
        else:
            assert scan.images is not None
            features = self.network.features(as_batch([scan.images]))
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
        first, *more = [scan] if isinstance(scan, (str, os.PathLike)) else scan
        names = [column.name for column in self.manifest.members[0].columns]
        if absent := [name for name in names if name not in row]:
            raise TableError(
                f"the row lacks {', '.join(absent)}; give None for what is not known",
                code="table-missing-column",
            )
        cells = {name: "" if row[name] is None else str(row[name]) for name in names}
        name = Path(first).name
        case = Case(name, None, Path(first), Row(name, None, 1, cells), (), tuple(map(Path, more)))
        return what_if(self.question(case), vary)

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

    def _prepare(self, case: Case, budget: Budget, usage: Usage) -> _Inputs | Prediction:
        memory = 0
        before = stamp_of(case.files)
        try:
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
            return _Inputs(case, found, row, warnings, Seconds(**clock.steps), memory, before)
        except Exception as error:
            budget.give(memory)
            return self._failed(case, error, before)

    def _finish(self, inputs: Sequence[_Inputs]) -> list[Prediction]:
        if not inputs:
            return []
        try:
            start = time.perf_counter()
            found, distances = self._execute(inputs)
            seconds = (time.perf_counter() - start) / len(inputs)
        except Exception as error:
            if len(inputs) == 1:
                return [self._failed(inputs[0].case, error, inputs[0].stamp)]
            # One odd case must not fail the others of its batch.
            return [prediction for item in inputs for prediction in self._finish([item])]
        done = []
        for index, item in enumerate(inputs):
            try:
                answer = self.network.answer(found, index)
                distance = None if distances is None else float(distances[index])
                done.append(self._predicted(item, answer, distance, seconds))
            except HyperFusionError as error:
                done.append(self._failed(item.case, error, item.stamp))
        return done

    def _predicted(
        self, item: _Inputs, answer: Answer, distance: float | None, seconds: float
    ) -> Prediction:
        """What becomes of an answer; `distance`: of the scan, in multiples of the threshold.

        Raises:
            ScanError: the scan is unlike the training's, and such scans are refused.
        """
        case = item.case
        unlike = self._unlike(case, distance)
        values = tuple(float(v) for v in answer.values)
        return Prediction(
            case.subject,
            case.session,
            "ok",
            values=values,
            sd=answer.sd,
            spread=answer.spread,
            seconds=replace(item.seconds, infer=seconds),
            quality=item.scan.quality,
            scan=case.scan,
            stamp=item.stamp,
            warnings=(*item.scan.warnings, *item.warnings, *unlike),
            truth=self._truth(case),
            seen=self._seen(case, item.scan.content),
            certainty=certainty(self.manifest, values, answer.sd, case.row, self.level, distance),
        )

    def _unlike(self, case: Case, distance: float | None) -> list[str]:
        """Whether a scan is unlike those of the training, as a warning.

        Raises:
            ScanError: it is, and `refuse_ood` is set.
        """
        stored = self.manifest.typical_scans
        if distance is None or stored is None or not distance > 1:
            return []
        text = (
            f"the scan is unlike the training's: its features lie {distance:.2f} times as far from "
            f"theirs as the threshold, which {stored.false_alarms:.1%} of usual scans exceed"
        )
        if self.options.refuse_ood:
            raise ScanError(f"{case.scan}: {text}", code="scan-unlike-training")
        return [text]

    def _truth(self, case: Case) -> str | None:
        return case.row.values.get(self.manifest.table.target)

    def _seen(self, case: Case, content: Sequence[str] = ()) -> Seen:
        known = self.manifest.training_cases
        return "" if known is None else known.seen(case.subject, content)

    def _failed(self, case: Case, error: Exception, before: str | None) -> Prediction:
        """One odd case must not end the night's run."""
        code, reason = reason_of(error, case.scan)
        return Prediction(
            case.subject,
            case.session,
            "error",
            reason,
            scan=case.scan,
            stamp=before,
            code=code,
            truth=self._truth(case),
            seen=self._seen(case),
        )

    def _execute(
        self, inputs: Sequence[_Inputs]
    ) -> tuple[dict[str, Floats], NDArray[np.float64] | None]:
        """The network's outputs, and each scan's distance in multiples of the threshold."""
        rows = np.stack([item.tabular for item in inputs])
        images = [item.scan.images for item in inputs if item.scan.images is not None]
        if self._cache is not None:
            features = joined([self._features(item.scan).features for item in inputs])
        elif self._typical is not None or self._remembered is not None:
            features = self.network.features(as_batch(images))
        else:
            return self.network.run(as_batch(images), rows), None
        self._keep(inputs, features)
        found = self.network.finish(features, rows)
        if self._typical is None:
            return found, None
        figures = np.array([item.scan.figures for item in inputs])
        distances = self._typical.distances(np.concatenate([pooled(features), figures], 1))
        stored = self.manifest.typical_scans
        assert stored is not None
        return found, distances / stored.threshold

    def _keep(self, inputs: Sequence[_Inputs], features: Features) -> None:
        """Remember features, as far as they are asked for and there is room."""
        if self._remembered is None:
            return
        size = sum(array[:1].nbytes for array in features.values())
        for index, item in enumerate(inputs):
            if (len(self._remembered) + 1) * size > _REMEMBERED:
                return
            one = {name: array[index : index + 1].copy() for name, array in features.items()}
            self._remembered[item.case.files] = one

    def _features(self, scan: CaseInput) -> Kept:
        """What the head reads of a scan: kept before, or made and kept now."""
        assert self._cache is not None
        if scan.kept is not None:
            return scan.kept
        assert scan.images is not None
        note = {
            "warnings": scan.warnings,
            "quality": scan.quality,
            "content": scan.content,
            "figures": scan.figures,
        }
        kept = Kept(self.network.features(as_batch([scan.images])), note)
        if scan.digest is not None:
            self._cache.put(scan.digest, kept)
        return kept


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
