"""The report: one HTML file that needs nothing else, neither scripts nor fonts nor a network.

A page is sections of parts; each kind of part has a template in `templates/`, which says how it is
drawn. Jinja escapes every text. It is imported only when a page is written.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.errors import CODES
from hyperfusion_rt.files import write_text
from hyperfusion_rt.metrics.words import headline
from hyperfusion_rt.runtime.evaluation import Agreement, seen_text
from hyperfusion_rt.runtime.outputs.table import label, value_columns
from hyperfusion_rt.runtime.prediction import Prediction

_SHOWN = 2000
_FIRST = {"error": 0, "not-tried": 1, "ok": 2, "skipped": 3}


class Part(Protocol):
    """What stands on a page; `template` draws it."""

    template: ClassVar[str]


@dataclass(frozen=True)
class Text:
    """A paragraph; `soft`: less prominent."""

    template: ClassVar[str] = "text.html"
    text: str
    soft: bool


@dataclass(frozen=True)
class Cards:
    """Large figures, each with what it is: (figure, caption)."""

    template: ClassVar[str] = "cards.html"
    figures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cell:
    """A cell of a table; numbers stand to the right."""

    text: str
    number: bool


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    template: ClassVar[str] = "table.html"
    header: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Image:
    """A PNG in base64, and what it shows in words."""

    template: ClassVar[str] = "image.html"
    data: str
    alt: str


@dataclass(frozen=True)
class Predictions:
    """Predictions, each with the class or the number as text; `left_out`: how many are not here."""

    template: ClassVar[str] = "predictions.html"
    classes: tuple[str, ...]
    number: str  # what the column of numbers is called, where there are no classes
    rows: tuple[tuple[Prediction, str], ...]
    left_out: int


@dataclass(frozen=True)
class Pictured:
    """A picture in a file beside the page, what is known of it, and its place in each order."""

    name: str
    file: str  # relative to the page; empty: there is none
    figures: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Gallery:
    """Pictures, in one of several orders that the reader chooses."""

    template: ClassVar[str] = "gallery.html"
    orders: tuple[str, ...]
    items: tuple[Pictured, ...]


@dataclass
class Section:
    """A heading (the first section of a page has none) and what stands under it."""

    heading: str
    parts: list[Part] = field(default_factory=list)


@dataclass
class Page:
    """A page, built from the top down."""

    title: str
    sections: list[Section] = field(default_factory=lambda: [Section("")])
    # Where its pictures may come from, as a Content-Security-Policy says it.
    images: str = "data:"

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.sections.append(Section(text))

    def add(self, part: Part) -> None:
        """Any part."""
        self.sections[-1].parts.append(part)

    def text(self, text: str, soft: bool = False) -> None:
        """A paragraph."""
        self.sections[-1].parts.append(Text(text, soft))

    def cards(self, items: Sequence[tuple[str, str]]) -> None:
        """Large figures, each with what it is: (figure, caption)."""
        self.sections[-1].parts.append(Cards(tuple(items)))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table. The first cell of a row names it; numbers stand to the right."""
        cells = tuple(tuple(_cell(value) for value in row) for row in rows)
        numbers = [cell.number for cell in cells[0]] if cells else [False] * len(header)
        titles = tuple(Cell(name, number) for name, number in zip(header, numbers, strict=True))
        self.sections[-1].parts.append(Table(titles, cells))

    def image(self, path: Path, alt: str) -> None:
        """A PNG, inside the page; `alt` says in words what it shows."""
        data = base64.b64encode(path.read_bytes()).decode()
        self.sections[-1].parts.append(Image(data, alt))

    def predictions(self, manifest: Manifest, predictions: Sequence[Prediction]) -> None:
        """The table of predictions, failures first; at most 2000 of them."""
        shown = sorted(predictions, key=lambda item: _FIRST[item.status])[:_SHOWN]
        rows = tuple((item, label(manifest, item)) for item in shown)
        left_out = len(predictions) - len(rows)
        number = value_columns(manifest)[0].name
        self.sections[-1].parts.append(Predictions(manifest.classes, number, rows, left_out))

    def append(self, page: Page) -> None:
        """Another page, as sections of this one; its title becomes a heading."""
        first, *others = page.sections
        self.sections += [Section(page.title, first.parts), *others]

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all.

        Raises:
            HyperFusionError: the folder cannot be written, or the disk is full.
        """
        write_text(path, _render(self), private=True)


def _render(page: Page) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("hyperfusion_rt.runtime.outputs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template("page.html").render(page=page)


def _cell(value: Any) -> Cell:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Cell(f"{value:.4g}" if isinstance(value, float) else f"{value:,}", number=True)
    return Cell(str(value), number=False)


def without_ids(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The predictions with their row's number in place of subject and session, 1 for the first.

    Reasons and warnings, which name files, become the meaning of the code, and a hint.
    """
    return [
        replace(
            item,
            subject=f"row {number}",
            session=None,
            scan=None,
            reason=CODES.get(item.code, ""),
            warnings=("see the table",) if item.warnings else (),
        )
        for number, item in enumerate(predictions, 1)
    ]


def inference_page(
    manifest: Manifest,
    predictions: Sequence[Prediction],
    summary: dict[str, Any],
    engine: str,
    machine: dict[str, str],
    notes: Sequence[str] = (),
    agreement: Agreement | None = None,
) -> Page:
    """The report of one inference over a cohort.

    Args:
        notes: of how the engine was chosen.
        agreement: with the truth, where the table has it.
    """
    page = Page(f"{manifest.name}: predictions of {manifest.table.target}")
    page.text("For research. Not a medical device; not for diagnosis.", soft=True)
    ms = summary["ms_per_scan"]
    cards = [
        (str(summary[name]), shown)
        for name, shown in (
            ("ok", "predicted"),
            ("with_warnings", "of them with warnings"),
            ("error", "failed"),
            ("known", "of them before, and unchanged"),
            ("not_tried", "not tried"),
            ("skipped", "skipped"),
        )
        if summary[name] or name not in ("known", "not_tried")
    ]
    if summary["ok"] and summary["wall_seconds"]:
        cards.append((f"{sum(ms.values()):.0f} ms", "per scan (median), one after the other"))
        cards.append((f"{summary['wall_seconds']:.1f} s", "for all, overlapped"))
    page.cards(cards)
    if seen := seen_text(predictions):
        page.text(f"{seen}.")
    if agreement is not None:
        page.heading(f"Against the truth, {agreement.text}")
        page.cards(headline(agreement.figures))
    page.heading("Predictions")
    page.predictions(manifest, predictions)
    if manifest.provenance.metrics:
        page.heading("What the model reached on its own test set")
        page.cards(headline(manifest.provenance.metrics))
    page.heading("Provenance")
    rows = [*origin(manifest, engine, notes), *machine.items()]
    page.table(["", ""], rows)
    return page


def origin(manifest: Manifest, engine: str, notes: Sequence[str]) -> list[tuple[str, str]]:
    """What the predictions come from: model, data, engine and how that was checked."""
    source, prep = manifest.provenance, manifest.preprocessing
    network = f"{source.network.get('fusion')}, f = {source.network.get('features')}"
    shape = "x".join(str(n) for n in prep.shape)
    file = next(e for e in manifest.engines if (e.engine, e.part) == (engine, "whole"))
    by = "" if file.comparison.by == "engine" else f" (by {file.comparison.by})"
    compared = f"{file.comparison.largest_difference:.1e} of the outputs' scale{by}"
    size = f"{len(manifest.members)} member(s), {source.parameters:,} parameters"
    names = ", ".join(channel.name for channel in prep.channels)
    boxes = f"{len(prep.boxes)} box(es) of {names}"
    return [
        ("model", f"{network}, {size}"),
        ("trained on", f"{source.cases.get('train', 'unknown')} cases, run {source.run}"),
        ("input", f"{shape} voxels at {prep.spacing:g} mm, {boxes}"),
        ("engine", f"{engine}, {file.precision}; differs from torch float64 by {compared}"),
        *[("warning", note) for note in notes],
        ("exported", source.created),
        ("versions", ", ".join(f"{k} {v}" for k, v in source.versions.items())),
    ]
