"""The page of `hfrt what-if`: curves of the model's answers to one scan with other rows."""

from __future__ import annotations

from collections.abc import Sequence

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.number_text import number
from hyperfusion_rt.runtime.explain.answers import Flip, WhatIf
from hyperfusion_rt.runtime.outputs.chart import Charts
from hyperfusion_rt.runtime.outputs.report import Page
from hyperfusion_rt.runtime.outputs.subject_charts import cell_text, what_if_charts
from hyperfusion_rt.runtime.outputs.subject_view import certain_text
from hyperfusion_rt.runtime.prediction import Prediction


def what_if_page(
    manifest: Manifest, prediction: Prediction, found: WhatIf, flips: Sequence[Flip] | None
) -> Page:
    """The curves, the row's own answer, and the smallest changes that give another one."""
    page = Page(f"{prediction.subject}: the model's answers to other rows")
    page.text(
        "The model's answers to this scan with other cells in its row. They say nothing of what "
        "a change would do to a person. For research. Not a medical device.",
        soft=True,
    )
    names = manifest.classes or (manifest.table.target,)
    page.cards([(number(v), n) for n, v in zip(names, found.answer.tolist(), strict=True)])
    unit = "" if manifest.classes else manifest.unit
    for name, text in (
        ("Set" if manifest.classes else "Interval", certain_text(unit, prediction)),
        ("Warnings", "; ".join(prediction.warnings)),
    ):
        if text:
            page.text(f"{name}: {text}.")
    page.add(Charts(tuple(what_if_charts(manifest.classes, manifest.unit, [found]))))
    if flips:
        page.heading("The smallest changes that give another answer")
        page.table(
            ["change", "size (sd of the training)", "answer then", "unlike the training table"],
            [
                (
                    "; ".join(f"{n} {cell_text(a)} → {cell_text(b)}" for n, a, b in flip.changes),
                    flip.distance,
                    (f"{names[int(flip.values.argmax())]}: " if manifest.classes else "")
                    + ", ".join(
                        f"{n} {number(v)}" for n, v in zip(names, flip.values.tolist(), strict=True)
                    ),
                    flip.unusual,
                )
                for flip in flips
            ],
        )
    page.heading("Provenance")
    page.table(["", ""], [("model", manifest.name), ("run", manifest.provenance.run)])
    return page
