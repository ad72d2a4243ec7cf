"""The report of `hfrt infer`: the cohort, its cases, its subjects one by one, and the run."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.errors import CODES
from hyperfusion_rt.metrics.words import headline
from hyperfusion_rt.number_text import number
from hyperfusion_rt.runtime.evaluation import Agreement, seen_text, truths_of
from hyperfusion_rt.runtime.outputs.cases import cases
from hyperfusion_rt.runtime.outputs.chart import Axis, Chart, Charts, Confusion
from hyperfusion_rt.runtime.outputs.report import Beside, Page, Shares, origin
from hyperfusion_rt.runtime.outputs.subject_view import CLOSE, is_close
from hyperfusion_rt.runtime.outputs.subjects import Subjects
from hyperfusion_rt.runtime.outputs.table import label
from hyperfusion_rt.runtime.outputs.truth_charts import reliability_chart, scatter_charts
from hyperfusion_rt.runtime.pipeline import Usage
from hyperfusion_rt.runtime.prediction import Prediction

_BINS = 16
_STAGES = {
    "prepare": "reading and preparing scans",
    "engine": "the engine",
    "write": "writing",
}


@dataclass(frozen=True)
class Failures:
    """Cases without a prediction by the code of their fault: (code, meaning, how many)."""

    template: ClassVar[str] = "failures.html"
    rows: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class Details:
    """Subjects one by one: those of the page, and where (row → address) each is shown alone.

    `text`: how many are where.
    """

    subjects: Subjects | None
    links: Mapping[int, str]
    text: str


def inference_page(
    manifest: Manifest,
    predictions: Sequence[Prediction],
    summary: dict[str, Any],
    engine: str,
    machine: dict[str, str],
    notes: Sequence[str] = (),
    agreement: Agreement | None = None,
    usage: Usage | None = None,
    details: Details | None = None,
) -> Page:
    """The report of one inference over a cohort.

    Args:
        notes: of how the engine was chosen.
        agreement: with the truth, where the table has it.
        usage: of the run, if it is known what bounded it.
        details: the subjects one by one.
    """
    page = Page(f"Predictions of {manifest.table.target}")
    page.text(
        f"Model {manifest.name}. For research. Not a medical device; not for diagnosis.", soft=True
    )
    page.cards(_counts(manifest, predictions, summary))
    if seen := seen_text(predictions):
        page.text(f"{seen}.")
    _distribution(page, manifest, predictions)
    if agreement is not None:
        _against_truth(page, manifest, predictions, agreement)
    _failures(page, predictions)
    page.heading("Cases")
    page.add(cases(manifest, predictions, details.links if details else None))
    if details is not None and (details.subjects is not None or details.text):
        page.heading("Subjects, one by one")
        page.text(details.text, soft=True)
        if details.subjects is not None:
            page.add(details.subjects)
    _bound(page, summary, usage)
    if manifest.provenance.metrics:
        page.heading("What the model reached on its own test set")
        page.cards(headline(manifest.provenance.metrics))
    page.heading("Provenance")
    page.table(["", ""], [*origin(manifest, engine, notes), *machine.items()])
    return page


def _counts(
    manifest: Manifest, predictions: Sequence[Prediction], summary: dict[str, Any]
) -> list[tuple[str, str]]:
    names = {
        "ok": "predicted",
        "with_warnings": "of them with warnings",
        "error": "failed",
        "known": "of them before, and unchanged",
        "not_tried": "not tried",
        "skipped": "skipped",
    }
    found = [
        (f"{summary[name]:,}", shown)
        for name, shown in names.items()
        if summary[name] or name == "ok"
    ]
    close = sum(is_close(manifest.classes, item) for item in predictions)
    if close:
        found.insert(1, (f"{close:,}", f"of them close: classes within {CLOSE:g}"))
    distances = [
        sure.distance
        for item in predictions
        if (sure := item.certainty) is not None and sure.distance is not None
    ]
    if distances:
        unlike = sum(distance > 1 for distance in distances)
        found.append((f"{unlike:,}", "unlike the training's scans"))
    return found


def _distribution(page: Page, manifest: Manifest, predictions: Sequence[Prediction]) -> None:
    """How many of each class, or a histogram of the numbers; beside them the truth. Of labels how
    large they are."""
    good = [item for item in predictions if item.values]
    if not good:
        return
    truths = [truth for _, truth in truths_of(manifest, good).pairs]
    target = manifest.table.target
    if manifest.classes:
        page.heading("Predicted classes")
        predicted = Counter(label(manifest, item) for item in good)
        true = Counter(manifest.classes[int(truth)] for truth in truths)
        kinds = ("predicted", *([f"{target} in the table"] if truths else []))
        page.add(
            Shares(
                kinds,
                tuple(
                    (name, (predicted[name], *([true[name]] if truths else [])))
                    for name in manifest.classes
                ),
            )
        )
        return
    if manifest.labels:
        page.heading("Volumes of the labels")
        page.table(
            ["label", f"median ({manifest.unit})", "least", "largest"],
            [
                (name, *(number(f(volumes)) for f in (statistics.median, min, max)))
                for name, *volumes in zip(
                    manifest.labels[1:], *(item.values for item in good), strict=True
                )
            ],
        )
        return
    page.heading(f"Predicted {target}")
    values = [item.values[0] for item in good]
    middle = statistics.median(values)
    unit = f" {manifest.unit}" if manifest.unit else ""
    page.text(f"Median {middle:.4g}{unit}, from {min(values):.4g} to {max(values):.4g}.")
    page.add(Charts((_histogram(manifest, values, truths),)))


def _histogram(manifest: Manifest, values: Sequence[float], truths: Sequence[float]) -> Chart:
    target = manifest.table.target
    unit = f" ({manifest.unit})" if manifest.unit else ""
    x = Axis.around(f"{target}{unit}", [*values, *truths])
    edges = np.linspace(x.low, x.high, _BINS + 1)
    counts = np.histogram(values, edges)[0]
    true = np.histogram(truths, edges)[0]
    chart = Chart(
        "Distribution",
        f"How many cases have which predicted {target}",
        x,
        Axis("cases", 0, 1.08 * max(1, int(counts.max()), int(true.max()))),
    )
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            chart.bar(float(low), float(high), float(count), 0)
    chart.legend.append((0, "predicted"))
    if truths:
        steps = [
            (float(edge), float(count))
            for low, high, count in zip(edges[:-1], edges[1:], true, strict=True)
            for edge in (low, high)
        ]
        chart.line(steps, 1)
        chart.legend.append((1, f"{target} in the table"))
    return chart


def _against_truth(
    page: Page, manifest: Manifest, predictions: Sequence[Prediction], agreement: Agreement
) -> None:
    page.heading(f"Against the truth, {agreement.text}")
    page.cards(headline(agreement.figures))
    new = truths_of(manifest, predictions).new
    if not new:
        return
    if manifest.classes:
        truth = np.array([int(value) for _, value in new])
        values = np.array([item.values for item, _ in new])
        confusion = Confusion(manifest.classes, tuple(map(tuple, agreement.figures["confusion"])))
        page.add(Beside((confusion, Charts((reliability_chart(truth, values),)))))
        return
    page.add(
        Charts(
            scatter_charts(
                manifest, [value for _, value in new], [item.values[0] for item, _ in new]
            )
        )
    )


def _failures(page: Page, predictions: Sequence[Prediction]) -> None:
    """What has no prediction, by code: failures, then what was skipped; the most frequent first."""
    found = Counter(item.code for item in predictions if item.status != "ok" and item.code)
    if not found:
        return
    failed = {item.code for item in predictions if item.status == "error"}
    order = sorted(found, key=lambda code: (code not in failed, -found[code], code))
    page.heading("Without a prediction, by code")
    page.add(Failures(tuple((code, CODES.get(code, ""), found[code]) for code in order)))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bound(page: Page, summary: dict[str, Any], usage: Usage | None) -> None:
    """Where the time went."""
    ms = {name: value for name, value in summary["ms_per_scan"].items() if value is not None}
    if not (summary["ok"] and summary["wall_seconds"] and ms):
        return
    page.heading("What bounded the run")
    busy = {} if usage is None else usage.utilisation()
    if usage is not None and busy:
        stage = usage.bound()
        page.text(
            f"{_capital(_STAGES.get(stage, stage))} bounded the run: "
            + "; ".join(
                f"{_STAGES.get(name, name)} {part:.0%} busy"
                f" ({usage.workers[name]} thread{'s' if usage.workers[name] != 1 else ''})"
                for name, part in busy.items()
            )
            + "."
        )
    page.cards(
        [
            (f"{summary['wall_seconds']:.1f} s", "for all, overlapped"),
            (f"{sum(ms.values()):.0f} ms", "per scan (median), one after the other"),
        ]
    )
    page.table(
        ["step", "ms per scan (median)"], [(name, f"{value:.1f}") for name, value in ms.items()]
    )
