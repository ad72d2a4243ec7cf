"""The report: one HTML file that needs nothing else, neither scripts nor fonts nor a network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from hyperfusion_rt.artifact.description import figures
from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.files import write_text
from hyperfusion_rt.runtime.outputs.table import label
from hyperfusion_rt.runtime.prediction import Prediction

_STYLE = """
:root { --ink:#1c2430; --soft:#5b6675; --line:#dfe4ea; --a:#2b6cb0; --b:#d69e2e; --c:#c05640;
        --bad:#b3261e; --back:#fff; --card:#f6f8fa }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ee; --soft:#9aa5b4; --line:#333c48;
        --back:#14181e; --card:#1c222a } }
body { font:15px/1.5 system-ui,sans-serif; color:var(--ink); background:var(--back);
       max-width:60rem; margin:2rem auto; padding:0 1rem }
h1 { font-size:1.5rem; margin:0 0 .2rem } h2 { font-size:1.1rem; margin:2rem 0 .5rem }
p { margin:.4rem 0 } .soft { color:var(--soft) }
.cards { display:flex; flex-wrap:wrap; gap:.6rem; margin:1rem 0 }
.card { background:var(--card); border:1px solid var(--line); border-radius:8px;
        padding:.5rem .9rem; min-width:7rem }
.card b { display:block; font-size:1.35rem } .card span { color:var(--soft); font-size:.85rem }
table { border-collapse:collapse; width:100%; font-size:.88rem; font-variant-numeric:tabular-nums }
th,td { text-align:left; padding:.25rem .6rem; border-bottom:1px solid var(--line);
        vertical-align:top } th { color:var(--soft); font-weight:600 }
td.n, th.n { text-align:right } td:first-child { white-space:nowrap }
tr.error td { color:var(--bad) } tr.skipped td { color:var(--soft) }
.bar { display:flex; height:.8rem; width:9rem; border-radius:3px; overflow:hidden;
       margin-top:.3rem }
.bar i:nth-child(3n+1) { background:var(--a) } .bar i:nth-child(3n+2) { background:var(--b) }
.bar i:nth-child(3n) { background:var(--c) }
img { max-width:100%; background:#fff; border-radius:8px; border:1px solid var(--line) }
.scroll { overflow-x:auto }
"""

_SHOWN = 2000


@dataclass
class Page:
    """A page, built from the top down. Every text is escaped."""

    title: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """A section's heading."""
        self.parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str, soft: bool = False) -> None:
        """A paragraph."""
        self.parts.append(f"<p{' class=soft' if soft else ''}>{escape(text)}</p>")

    def cards(self, items: Sequence[tuple[str, str]]) -> None:
        """Large figures, each with what it is: (figure, caption)."""
        cells = "".join(
            f"<div class=card><b>{escape(value)}</b><span>{escape(name)}</span></div>"
            for value, name in items
        )
        self.parts.append(f"<div class=cards>{cells}</div>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; numbers stand to the right."""
        self._table(header, [("", [_cell(value) for value in row]) for row in rows])

    def _table(self, header: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> None:
        first = rows[0][1] if rows else [""] * len(header)
        head = "".join(
            f"<th{' class=n' if cell.startswith('<td class=n>') else ''}>{escape(name)}</th>"
            for name, cell in zip(header, first, strict=True)
        )
        body = "".join(f"<tr class='{kind}'>{''.join(cells)}</tr>" for kind, cells in rows)
        self.parts.append(
            f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
            "</table></div>"
        )

    def image(self, path: Path, alt: str) -> None:
        """A PNG, inside the page."""
        data = base64.b64encode(path.read_bytes()).decode()
        self.parts.append(f'<p><img alt="{escape(alt)}" src="data:image/png;base64,{data}"></p>')

    def predictions(self, manifest: Manifest, predictions: Sequence[Prediction]) -> None:
        """The table of predictions, failures first."""
        order = {"error": 0, "ok": 1, "skipped": 2}
        rows = []
        for item in sorted(predictions, key=lambda p: order[p.status])[:_SHOWN]:
            cells = [_cell(item.subject), _cell(item.session or ""), _cell(label(manifest, item))]
            if manifest.classes:
                bar = "".join(f"<i style='width:{100 * v:.1f}%'></i>" for v in item.values)
                numbers = " / ".join(f"{v:.2f}" for v in item.values)
                cells.append(
                    f"<td>{f'<div class=bar title={numbers!r}>{bar}</div>' if bar else ''}"
                )
                cells.append(_cell(numbers))
            cells.append(_cell("" if item.spread is None else f"{item.spread:.3g}"))
            cells += [_cell(item.status), _cell(item.reason)]
            rows.append((item.status, cells))
        header = ["subject", "session", "prediction" if manifest.classes else "years"]
        if manifest.classes:
            header += ["", " / ".join(manifest.classes)]
        self._table([*header, "spread", "status", "reason"], rows)
        if len(predictions) > _SHOWN:
            self.text(f"{len(predictions) - _SHOWN} more are in the table of predictions.", True)

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        body = "\n".join(self.parts)
        write_text(
            path,
            "<!doctype html><html lang=en><head><meta charset=utf-8>"
            "<meta name=viewport content='width=device-width'>"
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head>"
            f"<body><h1>{escape(self.title)}</h1>\n{body}\n</body></html>\n",
        )


def _cell(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
        return f"<td class=n>{text}</td>"
    return f"<td>{escape(str(value))}</td>"


def inference_page(
    manifest: Manifest,
    predictions: Sequence[Prediction],
    summary: dict[str, Any],
    engine: str,
    machine: dict[str, str],
    notes: Sequence[str] = (),
) -> Page:
    """The report of one inference over a cohort. `notes`: of how the engine was chosen."""
    page = Page(f"{manifest.name}: {manifest.task} predictions")
    page.text("For research. Not a medical device; not for diagnosis.", soft=True)
    ms = summary["ms_per_scan"]
    cards = [(str(summary["ok"]), "predicted"), (str(summary["error"]), "failed")]
    cards.append((str(summary["skipped"]), "without a scan"))
    if summary["ok"] and summary["wall_seconds"]:
        cards.append((f"{sum(ms.values()):.0f} ms", "per scan (median), one after the other"))
        cards.append((f"{summary['wall_seconds']:.1f} s", "for all, overlapped"))
    page.cards(cards)
    page.heading("Predictions")
    page.predictions(manifest, predictions)
    source = manifest.provenance
    if source.metrics:
        page.heading("What the model reached on its own test set")
        page.cards(figures(source.metrics))
    page.heading("Provenance")
    network = f"{source.network.get('fusion')}, f = {source.network.get('features')}"
    shape = "x".join(str(n) for n in manifest.preprocessing.shape)
    file = next(e for e in manifest.engines if (e.engine, e.part) == (engine, "whole"))
    by = "" if file.comparison.by == "engine" else f" (by {file.comparison.by})"
    compared = f"{file.comparison.largest_difference:.1e} of the outputs' scale{by}"
    rows: list[tuple[str, object]] = [
        (
            "model",
            f"{network}, {len(manifest.members)} member(s), {source.parameters:,} parameters",
        ),
        ("trained on", f"{source.cases.get('train', 'unknown')} cases, run {source.run}"),
        (
            "input",
            f"{shape} voxels at {manifest.preprocessing.spacing:g} mm, "
            f"{len(manifest.preprocessing.boxes)} box(es) per scan",
        ),
        ("engine", f"{engine}, {file.precision}; differs from torch float64 by {compared}"),
        *[("warning", note) for note in notes],
        ("exported", source.created),
        ("versions", ", ".join(f"{k} {v}" for k, v in source.versions.items())),
        *machine.items(),
    ]
    page.table(["", ""], rows)
    return page
