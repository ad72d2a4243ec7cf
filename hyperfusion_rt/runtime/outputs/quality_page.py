"""The page of `hfrt preprocess`: a picture of every registered scan, the most doubtful first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hyperfusion_rt.runtime.outputs.report import Gallery, Page, Pictured

# What stands under a picture, and how.
_FIGURES = {
    "doubt": ("doubt", ".2f"),
    "disagreement": ("two ways differ by (mm)", ".2f"),
    "overlap": ("overlap", ".2f"),
    "snr": ("SNR", ".0f"),
    "rotation": ("turned by (degrees)", ".0f"),
    "scale": ("volume", ".2f"),
}


@dataclass(frozen=True)
class Looked:
    """A registered scan: its name, its picture's file (relative to the page), figures, warnings."""

    name: str
    file: str
    figures: dict[str, float]
    warnings: tuple[str, ...]


def quality_page(scans: Sequence[Looked], failed: Sequence[tuple[str, str]]) -> Page:
    """`failed`: scan and reason."""
    page = Page("Registered scans", images="'self' data: file:")
    page.text(
        "Does the yellow outline, the template's brain, lie around this brain? Blue: what is kept "
        "of the scan. A doubtful scan comes first. The pictures show faces: keep them as you keep "
        "the scans."
    )
    flagged = sum(bool(scan.warnings) for scan in scans)
    page.cards(
        [(str(len(scans)), "registered"), (str(flagged), "with warnings"),
         (str(len(failed)), "not registered")]
    )  # fmt: skip
    if failed:
        page.heading("Not registered")
        page.table(["scan", "reason"], failed)
    page.heading("Pictures")
    by_doubt = sorted(scans, key=lambda scan: (-scan.figures.get("doubt", 1.0), scan.name))
    place = {scan.name: number for number, scan in enumerate(by_doubt)}
    items = [
        Pictured(
            scan.name,
            scan.file,
            tuple(
                (text, format(scan.figures[name], how))
                for name, (text, how) in _FIGURES.items()
                if name in scan.figures
            ),
            scan.warnings,
            (place[scan.name], number),
        )
        for number, scan in enumerate(sorted(scans, key=lambda scan: scan.name))
    ]
    page.add(Gallery(("doubt", "name"), tuple(items)))
    return page
