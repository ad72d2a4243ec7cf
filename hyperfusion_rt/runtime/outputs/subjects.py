"""The part of the report that shows subjects one by one; `templates/subject.html` draws it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.number_text import number
from hyperfusion_rt.runtime.outputs.chart import Chart
from hyperfusion_rt.runtime.outputs.planes import PlaneShape
from hyperfusion_rt.runtime.outputs.subject_charts import ReasonBars, reason_bars, what_if_charts
from hyperfusion_rt.runtime.outputs.subject_view import (
    Flag,
    SubjectView,
    answer_text,
    candidates,
    certain_text,
    flags,
)
from hyperfusion_rt.runtime.outputs.table import quality_column
from hyperfusion_rt.runtime.outputs.viewer import Viewer


@dataclass(frozen=True)
class Chance:
    """A class with its probability: whether the answer names it, and the set holds it."""

    name: str
    value: float
    colour: int
    named: bool
    in_set: bool


@dataclass(frozen=True)
class Drawn:
    """A subject, in the words of the page."""

    manifest: Manifest
    view: SubjectView

    @property
    def number(self) -> int:
        """Its row on the page."""
        return self.view.number

    @property
    def title(self) -> str:
        """Subject and session."""
        item = self.view.prediction
        return item.subject + (f", session {item.session}" if item.session else "")

    @cached_property
    def answer(self) -> str:
        """The class (or the close ones), or the number with its unit; of labels their volumes."""
        return answer_text(self.manifest.classes, self._unit, self.view.prediction)

    @property
    def certain(self) -> str:
        """The prediction set or the interval."""
        return certain_text(self._unit, self.view.prediction)

    @property
    def level(self) -> str:
        """At which level: `90 %`."""
        sure = self.view.prediction.certainty
        return "" if sure is None or sure.level is None else f"{100 * sure.level:.0f} %"

    @cached_property
    def chances(self) -> list[Chance]:
        """The classes; empty of a number."""
        item = self.view.prediction
        if not (self.manifest.classes and item.values):
            return []
        named = candidates(item.values)
        sure = item.certainty
        inside = () if sure is None or sure.classes is None else sure.classes
        return [
            Chance(name, value, c, c in named, name in inside)
            for c, (name, value) in enumerate(zip(self.manifest.classes, item.values, strict=True))
        ]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What else is known of the answer: (name, value)."""
        item, unit = self.view.prediction, self._unit
        found = []
        if item.values:
            for name, value in zip(self.manifest.labels[1:], item.values, strict=False):
                found.append((name, f"{number(value)} {unit}"))
        if item.truth:
            found.append((f"{self.manifest.table.target} in the table", item.truth))
        if item.sd is not None:
            found.append(("standard deviation", f"{number(item.sd)} {unit}".rstrip()))
        if item.spread is not None:
            found.append(("spread of the members", number(item.spread)))
        sure = item.certainty
        if sure is not None:
            if sure.corrected is not None:
                found.append(("without the bias of age", f"{sure.corrected:.1f} {unit}".rstrip()))
            if sure.gap is not None:
                text = f"{sure.gap:+.1f}".replace("-", "−")
                if sure.gap_low is not None and sure.gap_high is not None:
                    text += f" ({sure.gap_low:+.1f} to {sure.gap_high:+.1f})".replace("-", "−")
                found.append(("gap to the true age", f"{text} {unit}".rstrip()))
            if sure.p_positive is not None:
                found.append(("probability of a gap above 0", f"{sure.p_positive:.2f}"))
            if sure.percentile is not None:
                found.append(("percentile of the gap", f"{sure.percentile:.0f}"))
            if sure.distance is not None:
                found.append(("distance from the training's scans", f"{sure.distance:.2f} of 1"))
        return found

    @cached_property
    def flags(self) -> list[Flag]:
        """What a reader should look at."""
        return flags(self.manifest.classes, self.view.prediction)

    @property
    def charts(self) -> list[Chart]:
        """The model's answer to other rows."""
        return what_if_charts(self.manifest.classes, self._unit, self.view.what_if)

    @property
    def reasons(self) -> ReasonBars | None:
        """What each cell adds to the answer."""
        if self.view.reasons is None:
            return None
        return reason_bars(self.manifest.classes, self.manifest.table.target, self.view.reasons)

    @property
    def quality(self) -> list[tuple[str, str, str]]:
        """Of a raw scan's registration: (figure, value, meaning)."""
        return [
            (
                name,
                number(value),
                quality_column(name).meaning.removeprefix("Raw scans only: "),
            )
            for name, value in self.view.prediction.quality.items()
        ]

    @property
    def _unit(self) -> str:
        return "" if self.manifest.classes else self.manifest.unit


@dataclass(frozen=True)
class Subjects:
    """Subjects, each opened by its address (`#s12`): without a script, too.

    `views` is read once, while the page is written, so that not all are in memory. `order`: the
    numbers of the subjects, in their order. `back`: where the page of all stands, where this is
    another; the addresses of the table's rows are there. `viewer`: for volumes, and files of the
    reader's own; None leaves it out.
    """

    template: ClassVar[str] = "subjects.html"
    styles: ClassVar[tuple[str, ...]] = ("subject.css",)
    manifest: Manifest
    shapes: tuple[PlaneShape, ...]
    views: Iterable[SubjectView]
    order: tuple[int, ...]
    back: str = ""
    viewer: Viewer | None = None

    @property
    def scripts(self) -> tuple[str, ...]:
        """What the part needs of `templates/`."""
        return ("subject.js", "viewer.js") if self.viewer is not None else ("subject.js",)

    @property
    def hashes(self) -> tuple[str, ...]:
        """Of the scripts that run on demand, as a Content-Security-Policy names them."""
        return () if self.viewer is None else (self.viewer.hash,)

    @property
    def alone(self) -> bool:
        """Whether the page is of one subject."""
        return len(self.order) == 1 and bool(self.back)

    @property
    def drawn(self) -> Iterator[Drawn]:
        """The subjects, as they are made."""
        return (Drawn(self.manifest, view) for view in self.views)
