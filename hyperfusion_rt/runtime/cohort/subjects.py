"""The subjects of a report, one by one: made in a second pass, after all are predicted.

Each scan is read again, and three planes are cut out of it: some 20 ms a scan, in threads, while
the page is written. Raw scans are not registered again: their planes are kept as they are
predicted.
"""

from __future__ import annotations

import collections
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.volumes import Volume, read_volume
from hyperfusion_rt.errors import CODES, TableError, reason_of
from hyperfusion_rt.files import stamp_of
from hyperfusion_rt.runtime.explain.answers import ImageMap, Reasons, WhatIf
from hyperfusion_rt.runtime.options import Source
from hyperfusion_rt.runtime.outputs.planes import (
    PlaneShape,
    legend_of,
    legend_of_labels,
    pictures,
    plane_shapes,
    small_volume,
)
from hyperfusion_rt.runtime.outputs.subject_view import PlanePicture, RowCell, SubjectView
from hyperfusion_rt.runtime.prediction import Prediction
from hyperfusion_rt.runtime.segmentation import LabelMaps

# What-if curves, Shapley values and a map of a case, as far as they were asked for.
Answers = tuple[list[WhatIf], Reasons | None, ImageMap | None]
Explain = Callable[[Case], Answers]

VOLUMES = 24  # subjects whose scan the 3D viewer has


@dataclass(frozen=True)
class Chosen:
    """A subject that is to be shown: its row on the page, and how the page calls it.

    `volume`: whether the 3D viewer shall have its scan; `asked`: whether the model is asked about
    it. Asking takes longer than predicting: those in the report's folder are not asked about.
    """

    number: int
    shown: Prediction
    prediction: Prediction
    volume: bool = False
    asked: bool = False


class KeptPictures:
    """The planes of raw scans, and the volumes of the first of them, in a file without a name."""

    def __init__(self, shapes: tuple[PlaneShape, ...]) -> None:
        self._shapes = shapes
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._places: dict[Path, list[tuple[int, int]]] = {}
        self._lock = threading.Lock()

    def keep(self, path: Path, volume: Volume) -> None:
        """Of a scan that was registered; any thread."""
        first = len(self._places) < VOLUMES
        found = [plane.picture for plane in pictures(volume, self._shapes)]
        found += [small_volume(volume)] if first else []
        with self._lock:
            places = []
            for content in found:
                places.append((self._file.seek(0, 2), len(content)))
                self._file.write(content)
            self._places[path] = places

    def get(self, path: Path) -> tuple[tuple[PlanePicture, ...], bytes]:
        """Its planes and its volume; empty where there are none."""
        with self._lock:
            found = []
            for at, size in self._places.get(path, []):
                self._file.seek(at)
                found.append(self._file.read(size))
        count = len(self._shapes)
        return tuple(map(PlanePicture, found[:count])), b"".join(found[count:])


@dataclass(frozen=True)
class SubjectReader:
    """Makes the subjects of a report.

    `cases`: by subject and session; a case that is not there has no row to show. `threads`: that
    read scans. `ids`: whether what it says may name files. `explain`: called for each subject that
    is shown and was predicted, one after the other. `again`: also for those of an earlier run.
    `label_maps`: that are drawn over registered scans.
    """

    manifest: Manifest
    source: Source
    cases: Mapping[tuple[str, str | None], Case]
    threads: int
    ids: bool = True
    explain: Explain | None = None
    again: bool = False
    label_maps: LabelMaps | None = None

    @cached_property
    def shapes(self) -> tuple[PlaneShape, ...]:
        """The planes; over raw scans with the outline of the template's brain."""
        if self.source == "registered":
            return plane_shapes(self.manifest.preprocessing)
        from hyperfusion_rt.data.raw.template import load_template

        template = load_template()
        return plane_shapes(self.manifest.preprocessing, (template.mask, template.affine))

    @cached_property
    def kept(self) -> KeptPictures:
        """What `Predictor.watch` is to tell of raw scans."""
        return KeptPictures(self.shapes)

    def views(self, chosen: Iterable[Chosen]) -> Iterator[SubjectView]:
        """The subjects in this order, a few ahead of the one that is written."""
        ahead: collections.deque[Future[SubjectView]] = collections.deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="report") as pool:
            try:
                for item in chosen:
                    answers, note = self._answers(item)
                    ahead.append(pool.submit(self._view, item, answers, note))
                    if len(ahead) > 2 * self.threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _answers(self, item: Chosen) -> tuple[Answers, str]:
        """The model's answers to other rows; why they are not there, where that is a fault."""
        case = self._case(item)
        if self.explain is None or case is None or not item.asked or item.prediction.status != "ok":
            return ([], None, None), ""
        try:
            return self.explain(case), ""
        except Exception as error:  # one odd case must not end the report of a night
            return ([], None, None), self._reason(error, case.scan)

    def _view(self, item: Chosen, answers: Answers, note: str) -> SubjectView:
        what_if, reasons, image_map = answers
        planes, volume, missing = self._pictures(item, image_map)
        case = self._case(item)
        return SubjectView(
            item.number,
            item.shown,
            () if case is None else cells(self.manifest.members, case),
            planes,
            missing,
            tuple(what_if),
            reasons,
            legend_of(image_map) if image_map is not None and planes else None,
            volume=volume if item.volume else b"",
            no_answers=note,
            labels=legend_of_labels(self.manifest.labels) if planes and planes[0].overlay else (),
        )

    def _pictures(
        self, item: Chosen, image_map: ImageMap | None
    ) -> tuple[tuple[PlanePicture, ...], bytes, str]:
        """Planes, volume, and why there are none."""
        scan = item.prediction.scan
        if scan is None:
            return (), b"", "No picture: there is no scan."
        if self.source == "raw":
            planes, volume = self.kept.get(scan)
            return planes, volume, "" if planes else "No picture: registered in an earlier run."
        case = self._case(item)
        try:
            before = item.prediction.stamp
            now = stamp_of([scan] if case is None else case.files)
            if before is not None and now != before:
                what = "is not there any more" if now is None else "has changed"
                return (), b"", f"No picture: the scan {what} since it was predicted."
            found = read_volume(scan)
            planes = pictures(found, self.shapes, image_map, self._labels(item.prediction))
            return planes, small_volume(found) if item.volume else b"", ""
        except Exception as error:  # it was there a moment ago
            return (), b"", f"No picture: {self._reason(error, scan)}"

    def _labels(self, prediction: Prediction) -> Volume | None:
        if self.label_maps is None or prediction.status != "ok":
            return None
        return read_volume(self.label_maps.path(prediction.subject, prediction.session))

    def _reason(self, error: Exception, scan: Path) -> str:
        code, reason = reason_of(error, scan)
        return reason if self.ids else CODES.get(code, "it cannot be read")

    def _case(self, item: Chosen) -> Case | None:
        return self.cases.get((item.prediction.subject, item.prediction.session))


def cells(members: tuple[TabularEncoder, ...], case: Case) -> tuple[RowCell, ...]:
    """The cells that the model reads, with what stands in for each gap: of all its members."""
    try:
        found = [member.stand_ins(case.row) for member in members]
    except TableError:
        found = [{}]
    return tuple(
        RowCell(
            column.name,
            case.row.values.get(column.name, ""),
            _between([one[column.name] for one in found if column.name in one]),
        )
        for column in members[0].columns
    )


def _between(values: list[float | str]) -> str:
    """`3.12`, or `3.12 to 3.4` where the members differ."""
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) < len(values) or not numbers:
        return ", ".join(dict.fromkeys(map(str, values)))
    ends = dict.fromkeys(f"{value:.4g}" for value in (min(numbers), max(numbers)))
    return " to ".join(ends)
