"""The report of a cohort: the page, and beside it a folder of the subjects that it has no room for.

predictions.html                    the cohort, its cases, the first subjects one by one
predictions_subjects/00501.html     a subject more, by its row in the table of predictions
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.files import PRIVATE, replacing_folder
from hyperfusion_rt.machine import describe_machine
from hyperfusion_rt.runtime.cohort.subjects import VOLUMES, Chosen, SubjectReader
from hyperfusion_rt.runtime.outputs.inference_page import Details, inference_page
from hyperfusion_rt.runtime.outputs.report import Page, without_ids
from hyperfusion_rt.runtime.outputs.subject_view import flags
from hyperfusion_rt.runtime.outputs.subjects import Subjects
from hyperfusion_rt.runtime.outputs.table import FORMATS
from hyperfusion_rt.runtime.outputs.viewer import load_viewer
from hyperfusion_rt.runtime.prediction import Prediction

if TYPE_CHECKING:
    from hyperfusion_rt.runtime.cohort.record import Result

_ABOUT = "about.txt"  # tells a folder of ours
_SAYS = "Subjects of a report of hfrt infer, which writes this folder anew each time: "


def report_of(table: Path) -> Path:
    """Where the report of a table stands unless told: beside it, `predictions.html`.

    Of two tables in a folder each has its own: all but `.csv` keep their ending, as in
    `predictions.tsv.html`.
    """
    stem = table.with_suffix("")
    plain = table.suffix == ".csv" and stem.suffix.lower() not in FORMATS
    return stem.with_name(f"{stem.name if plain else table.name}.html")


def folder_of(report: Path) -> Path:
    """Where the subjects stand that a report has no room for."""
    return report.with_name(f"{report.name.removesuffix('.html')}_subjects")


def check_folder(report: Path) -> None:
    """Before the work: refuse to replace a folder that is none of ours.

    Raises:
        ConfigError: there is another one.
    """
    folder = folder_of(report)
    try:
        inside = list(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError:
        inside = [folder]
    if inside and not _is_ours(folder):
        raise ConfigError(
            f"`report` {report}: {folder} would be written, and is there: not by a report; choose "
            "another name, or move it",
            code="output-wrong-name",
        )


@dataclass(frozen=True)
class ReportWriter:
    """Writes a report. `subjects`: how many stand on the page itself, one by one; 0: none at all.

    `reader`: makes them; None leaves them out.
    """

    path: Path
    ids: bool = True
    subjects: int = 0
    reader: SubjectReader | None = None

    def write(self, result: Result, before: Page | None = None) -> None:
        """Write the page and the folder.

        Args:
            before: a page that stands first, and names the whole.

        Raises:
            HyperFusionError: the folder cannot be written, or the disk is full.
        """
        shown = result.predictions if self.ids else without_ids(result.predictions)
        chosen = self._chosen(result, shown)
        here, beyond = chosen[: self.subjects], chosen[self.subjects :]
        folder = folder_of(self.path)
        if beyond and self.reader is not None:
            with replacing_folder(folder) as new:
                self._write_folder(new, result, beyond, self.reader)
        elif _is_ours(folder):
            shutil.rmtree(folder)
        page = inference_page(
            result.manifest,
            shown,
            result.summary,
            result.engine,
            describe_machine(),
            result.notes,
            result.agreement,
            result.usage,
            self._details(result, here, beyond),
        )
        if before is not None:
            before.append(page)
            page = before
        page.write(self.path)

    def _chosen(self, result: Result, shown: Sequence[Prediction]) -> list[Chosen]:
        """The subjects that can be shown: flagged ones first, failed ones last."""
        # Who interrupts a run does not want to wait for pictures.
        if self.reader is None or not self.subjects or result.ending == "interrupted":
            return []
        found = [
            Chosen(n, item, prediction)
            for n, (item, prediction) in enumerate(zip(shown, result.predictions, strict=True), 1)
            if prediction.status == "ok" or (prediction.status == "error" and prediction.scan)
        ]
        classes = result.manifest.classes

        def weight(item: Chosen) -> int:
            failed = item.prediction.status != "ok"
            return 2 if failed else 0 if flags(classes, item.prediction) else 1

        return sorted(found, key=weight)

    def _details(
        self, result: Result, here: Sequence[Chosen], beyond: Sequence[Chosen]
    ) -> Details | None:
        if self.reader is None or not here:
            return None
        links = {item.number: f"#s{item.number}" for item in here}
        name = folder_of(self.path).name
        links |= {item.number: f"{name}/{_page_name(item)}" for item in beyond}
        # A head in 3D has a face: a page that names nobody does not show it.
        older = frozenset() if self.reader.again else result.older
        asked = [(item.prediction.subject, item.prediction.session) not in older for item in here]
        marked = [
            replace(item, volume=self.ids and n < VOLUMES, asked=of_this_run)
            for n, (item, of_this_run) in enumerate(zip(here, asked, strict=True))
        ]
        every = len(here) + len(beyond)
        text = f"{len(here):,} of {every:,} subjects are here, those with flags first."
        if beyond:
            text += f" The others have a page each in the folder {name}."
        text += " Open one from the table of cases."
        if self.ids:
            text += f" The 3D viewer has the scans of the first {min(VOLUMES, len(here))}."
        if self.reader.explain is not None and not all(asked):
            text += (
                f" {asked.count(False):,} of them an earlier run predicted: the model was not "
                "asked about them again, which needs their features (`feature_cache`)."
            )
        subjects = Subjects(
            result.manifest,
            self.reader.shapes,
            self.reader.views(marked),
            tuple(item.number for item in here),
            viewer=load_viewer(),
        )
        return Details(subjects, links, text)

    def _write_folder(
        self, folder: Path, result: Result, chosen: Sequence[Chosen], reader: SubjectReader
    ) -> None:
        folder.chmod(0o700)
        (folder / _ABOUT).write_text(f"{_SAYS}{self.path.name}\n", encoding="utf-8")
        (folder / _ABOUT).chmod(PRIVATE)
        target = result.manifest.table.target
        for item, view in zip(chosen, reader.views(chosen), strict=True):
            page = Page(f"{item.shown.subject}: prediction of {target}")
            page.text("For research. Not a medical device; not for diagnosis.", soft=True)
            page.add(
                Subjects(
                    result.manifest,
                    reader.shapes,
                    (view,),
                    (item.number,),
                    back=f"../{self.path.name}",
                )
            )
            page.write_quickly(folder / _page_name(item))


def _page_name(item: Chosen) -> str:
    return f"{item.number:05d}.html"


def _is_ours(folder: Path) -> bool:
    try:
        return (folder / _ABOUT).read_text(encoding="utf-8").startswith(_SAYS)
    except (OSError, ValueError):
        return False
