"""A page: one HTML file that needs nothing else, neither a network nor fonts; most need no script.

A page is sections of parts; each kind of part has a template in `templates/`, which says how it is
drawn, and names the styles and scripts there that it needs. Jinja escapes every text. It is
imported only when a page is written. Only scripts run whose hashes the page's policy names: ours.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.errors import CODES
from hyperfusion_rt.files import PRIVATE, replacing
from hyperfusion_rt.runtime.prediction import Prediction

if TYPE_CHECKING:
    from jinja2 import Environment


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
class Picture:
    """A PNG, and what it shows in words."""

    title: str
    content: bytes

    @property
    def data(self) -> str:
        """As base64."""
        return base64.b64encode(self.content).decode()


@dataclass(frozen=True)
class Pictures:
    """Rows of pictures, each with a caption."""

    template: ClassVar[str] = "pictures.html"
    rows: tuple[tuple[str, tuple[Picture, ...]], ...]


@dataclass(frozen=True)
class Shares:
    """Counts as bars: (name, count, of another kind, or None). `kinds`: what the two are."""

    template: ClassVar[str] = "shares.html"
    kinds: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def largest(self) -> int:
        """The longest bar."""
        return max((count for _, counts in self.rows for count in counts), default=0) or 1


@dataclass(frozen=True)
class Beside:
    """Parts side by side, where there is room."""

    template: ClassVar[str] = "beside.html"
    parts: tuple[Part, ...]


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

    def append(self, page: Page) -> None:
        """Another page, as sections of this one; its title becomes a heading."""
        first, *others = page.sections
        self.sections += [Section(page.title, first.parts), *others]

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all.

        Raises:
            HyperFusionError: the folder cannot be written, or the disk is full.
        """
        with (
            replacing(path, private=True) as temporary,
            open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file,
        ):
            file.writelines(_rendered(self))

    def write_quickly(self, path: Path) -> None:
        """Write the page into a folder that is not in use yet; its owner's alone."""
        with open(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE),
            "w",
            encoding="utf-8",
            errors="backslashreplace",
        ) as file:
            file.writelines(_rendered(self))

    @property
    def styles(self) -> tuple[str, ...]:
        """The files of `templates/` that its parts are drawn with."""
        return ("page.css", *self._of_parts("styles"))

    @property
    def scripts(self) -> tuple[Script, ...]:
        """What runs at the end of the page."""
        return tuple(map(load_script, self._of_parts("scripts")))

    @property
    def policy(self) -> str:
        """Its Content-Security-Policy: nothing is fetched, and nothing runs but its own scripts."""
        scripts = [script.hash for script in self.scripts]
        if scripts:
            scripts = [load_script("start.js").hash, *scripts, *self._of_parts("hashes")]
        allowed = " ".join(f"'{name}'" for name in scripts)
        return (
            f"default-src 'none'; img-src {self.images}; style-src 'unsafe-inline'"
            + (f"; script-src {allowed}" if scripts else "")
            + "; base-uri 'none'; form-action 'none'"
        )

    def _of_parts(self, name: str) -> tuple[str, ...]:
        parts = [part for section in self.sections for part in section.parts]
        return tuple(dict.fromkeys(file for part in parts for file in getattr(part, name, ())))


@dataclass(frozen=True)
class Script:
    """A script of a page, and its hash as the policy names it."""

    text: str
    hash: str


@lru_cache(maxsize=16)
def load_script(name: str) -> Script:
    """A script of `templates/`."""
    text = files(__package__).joinpath(f"templates/{name}").read_text(encoding="utf-8")
    return Script(text, script_hash(text))


def script_hash(text: str) -> str:
    """`sha256-...`: the source of a Content-Security-Policy that lets this very script run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _rendered(page: Page) -> Iterator[str]:
    """The page, piece by piece: its subjects need not be in memory together."""
    found: Iterator[str] = (
        _templates().get_template("page.html").generate(page=page, start=load_script("start.js"))
    )
    return found


@lru_cache(maxsize=1)
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("hyperfusion_rt.runtime.outputs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


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


def origin(manifest: Manifest, engine: str, notes: Sequence[str]) -> list[tuple[str, str]]:
    """What the predictions come from: model, data, engine and how that was checked."""
    source, prep = manifest.provenance, manifest.preprocessing
    own, file_name = source.network.get("import"), source.network.get("file")
    if file_name:
        network = f"imported from {file_name}"
    else:
        network = f"{source.network.get('fusion')}, "
        network += f"made by {own}" if own else f"f = {source.network.get('features')}"
    shape = "x".join(str(n) for n in prep.shape)
    file = next(e for e in manifest.engines if (e.engine, e.part) == (engine, "whole"))
    by = "" if file.comparison.by == "engine" else f" (by {file.comparison.by})"
    compared = f"{file.comparison.largest_difference:.1e} of the outputs' scale{by}"
    size = f"{len(manifest.members)} member(s), {source.parameters:,} parameters"
    names = ", ".join(channel.name for channel in prep.channels)
    boxes = f"{len(prep.boxes)} box(es) of {names}"
    return [
        ("model", f"{network}, {size}"),
        ("trained on", f"{source.cases.get('train', 'unknown')} cases, run {source.run}")
        if source.run
        else ("trained on", "unknown cases"),
        ("input", f"{shape} voxels at {prep.spacing:g} mm, {boxes}"),
        ("engine", f"{engine}, {file.precision}; differs from torch float64 by {compared}"),
        *[("warning", note) for note in notes],
        ("exported", source.created),
        ("versions", ", ".join(f"{k} {v}" for k, v in source.versions.items())),
    ]
