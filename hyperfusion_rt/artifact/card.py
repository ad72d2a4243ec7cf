"""The card of an artifact: what a reader should know of a network before using it, in Markdown.

It is made from the manifest alone. `hfrt inspect` prints it so, and `card.md` of the artifact is
the same text as it was at export. Jinja is imported only when a card is made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from hyperfusion_rt.artifact.calibration import LEVEL
from hyperfusion_rt.artifact.card_facts import (
    PARTS,
    WITHHELD,
    count_text,
    facts,
    known_failures,
    usual_boxes,
)
from hyperfusion_rt.artifact.certainty_facts import calibration_rows, chose_weights, usual_text
from hyperfusion_rt.artifact.description import describe_file, image_text
from hyperfusion_rt.artifact.manifest import CardFile, Manifest
from hyperfusion_rt.artifact.population import (
    FEWEST_PEOPLE,
    QUANTILES,
    Counts,
    GroupFigures,
    PartCounts,
)
from hyperfusion_rt.config import Frozen
from hyperfusion_rt.data.encoder_columns import CategoricalColumn
from hyperfusion_rt.files import sha256, write_text
from hyperfusion_rt.metrics.groups import FEWEST, in_order
from hyperfusion_rt.metrics.words import figures_in_words
from hyperfusion_rt.number_text import number
from hyperfusion_rt.yaml_text import read_yaml

FILE = "card.md"
_TEMPLATE = "card.md.jinja"
_ITEMS = "reporting_items.yaml"
Row = Sequence[str]


class Item(Frozen):
    """One item of a guideline; see `reporting_items.yaml`."""

    item: int | str
    topic: str
    answer: str = ""
    open: str = ""

    def said(self, known: dict[str, str]) -> str:
        """What the artifact answers from the facts `known`, and what is open."""
        try:
            answer = self.answer.format_map(known)
        except KeyError:
            return f"open: {self.open or 'not known of this artifact'}"
        return "; ".join(filter(None, (answer, self.open and f"open: {self.open}")))


@lru_cache(maxsize=1)
def reporting_items() -> dict[str, tuple[Item, ...]]:
    """The items of `tripod_ai` and of `claim_2024`, in their order."""
    text = files("hyperfusion_rt.artifact").joinpath(_ITEMS).read_text(encoding="utf-8")
    content: dict[str, list[Any]] = read_yaml(text, _ITEMS)
    return {name: tuple(map(Item.model_validate, items)) for name, items in content.items()}


def write_card(folder: Path, manifest: Manifest) -> CardFile:
    """Write the card of `manifest` into the artifact's `folder`."""
    path = folder / FILE
    write_text(path, card(manifest))
    return CardFile(file=FILE, sha256=sha256(path))


def card(manifest: Manifest) -> str:
    """The card in Markdown. What the manifest does not hold, the card says is not known."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # Markdown: `cell` escapes what it must
        loader=PackageLoader("hyperfusion_rt.artifact"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    template = environment.get_template(_TEMPLATE)
    text = template.render(m=manifest, fewest_people=FEWEST_PEOPLE, **_view(manifest))
    return re.sub(r"\n{3,}", "\n\n", text)


def cell(value: object) -> str:
    """A text in one cell of a table of Markdown, or in one line, that means just itself."""
    text = " ".join(str(value).split())
    for mark in ("\\", "|", "<", "*", "[", "`"):
        text = text.replace(mark, {"<": "&lt;"}.get(mark, f"\\{mark}"))
    return text


def _view(m: Manifest) -> dict[str, Any]:
    """What the template shows."""
    known, population = facts(m), m.population
    items = {
        name: [(str(one.item), one.topic, one.said(known)) for one in of]
        for name, of in reporting_items().items()
    }
    tested = population.performance if population else None
    return {
        "facts": known,
        "published": not m.provenance.network.get("import"),
        "failures": known_failures(m),
        "parts": [PARTS[part.name] for part in population.parts] if population else [],
        "groups_rows": _part_rows(population.parts, m) if population else [],
        "columns": _columns(m),
        "images": [(c.name, image_text(m.preprocessing, c)) for c in m.preprocessing.channels],
        "box_places": [
            (b.name, ", ".join(f"{x:g}" for x in b.center), "mirrored" if b.mirror else "")
            for b in m.preprocessing.boxes
        ],
        "figures": [
            (f.name, f.value, f.interval or f.note, f.chance, _few_hidden(f.cases))
            for f in figures_in_words(m.provenance.metrics)
        ],
        "by_group": [
            (kind, column, _group_rows(groups))
            for kind, column, groups in (
                ("sex", population.sex_column, tested.sex),
                ("age", population.age_column, tested.age),
            )
            if groups
        ]
        if population and tested
        else [],
        "tested": tested,
        "bins": [
            (str(one.cases), number(one.probability), number(one.accuracy))
            for one in (tested.reliability if tested else ())
        ],
        "boxes": usual_boxes(m),
        "engines": [
            (f"{e.engine} {e.precision}", e.file, describe_file(e, m.compared_in))
            for e in m.engines
            if e.part == "whole"
        ],
        "items": items,
        "open": {name: sum("open:" in said for _, _, said in of) for name, of in items.items()},
        "sure": calibration_rows(m.calibration, m) if m.calibration else [],
        "chose_weights": chose_weights(m),
        "level": LEVEL,
        "usual": usual_text(m.typical_scans) if m.typical_scans else "",
    }


def _few_hidden(cases: int) -> str:
    return f"{cases:,}" if cases >= FEWEST_PEOPLE else WITHHELD


def _part_rows(parts: Sequence[PartCounts], m: Manifest) -> list[Row]:
    """What each part holds: a row for each sex, band of age and class, or quantile."""
    rows: list[Row] = [
        ("scans", *(count_text(part.cases) for part in parts)),
        ("people", *(count_text(part.people) for part in parts)),
    ]
    for kind in ("sex", "age", "classes"):
        each: list[Counts] = [getattr(part, kind) for part in parts]
        known = [name for counts in each for name in counts]
        # Classes have their order; a part without any of a group has none of it.
        names = list(m.classes) if kind == "classes" else in_order(known)
        title = m.table.target if kind == "classes" else kind
        rows += [
            (f"{title} {name or 'not known'}", *(count_text(c.get(name, 0)) for c in each))
            for name in names
            if known
        ]
    unit = f" {m.unit}" if m.unit and not m.classes else ""
    if any(part.quantiles for part in parts):
        for at, share in enumerate(QUANTILES):
            said = [number(p.quantiles[at]) + unit if p.quantiles else WITHHELD for p in parts]
            rows.append((f"{m.table.target}: {share:.0%} are below", *said))
    return rows


def _columns(m: Manifest) -> list[Row]:
    """Name, kind, what training saw of it, how often it is empty in training and in all cases."""
    missing = m.population.missing if m.population else {}
    found: list[Row] = []
    for column in m.members[0].columns:
        if isinstance(column, CategoricalColumn):
            seen = ", ".join(name for name in column.categories if name not in column.unseen)
        elif column.fill is None:
            seen = "not known"
        else:
            seen = f"{column.low:g} to {column.high:g}, median {column.fill:g}"
        rate = f"{column.missing_rate:.0%}" if m.members[0].training_rows else "not known"
        every = f"{missing[column.name]:.0%}" if column.name in missing else "not known"
        found.append((column.name, column.kind, seen, rate, every))
    return found


def _group_rows(groups: Sequence[GroupFigures]) -> list[Row]:
    """Group, cases, figure, value, interval, chance: the first lines of each group's figures."""
    rows: list[Row] = []
    for group in groups:
        name = group.name or "not known"
        if group.cases is None:
            rows.append((name, WITHHELD, "", "", "", ""))
        elif not group.figures:
            rows.append((name, count_text(group.cases), f"too few (under {FEWEST})", "", "", ""))
        else:
            rows += [
                (name, count_text(group.cases), f.name, f.value, f.interval or f.note, f.chance)
                for f in figures_in_words(group.figures)
            ]
    return rows
