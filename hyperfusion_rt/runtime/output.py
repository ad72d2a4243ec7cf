"""The table of predictions, and its summary."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyperfusion_rt.files import write_text
from hyperfusion_rt.runtime.artifact import Manifest
from hyperfusion_rt.runtime.predictor import Prediction


def value_columns(manifest: Manifest) -> list[str]:
    """`p_CN`, `p_MCI`, ... or `years`."""
    return [f"p_{name}" for name in manifest.classes] or ["years"]


def label(manifest: Manifest, prediction: Prediction) -> str:
    """The class of the highest probability, or the age as text; empty without a prediction."""
    if not prediction.values:
        return ""
    if not manifest.classes:
        return f"{prediction.values[0]:.2f}"
    return manifest.classes[prediction.values.index(max(prediction.values))]


def record(manifest: Manifest, prediction: Prediction) -> dict[str, Any]:
    """One line of the table: a name and a value per column, None where there is nothing."""
    values: Sequence[float | None] = prediction.values or [None] * len(value_columns(manifest))
    row: dict[str, Any] = {"subject": prediction.subject, "session": prediction.session}
    if manifest.classes:
        row["prediction"] = label(manifest, prediction) or None
    row |= dict(zip(value_columns(manifest), values, strict=True))
    row["member_spread"] = prediction.spread
    row["status"] = prediction.status
    row["reason"] = prediction.reason or None
    row["seconds"] = prediction.seconds.total if prediction.status == "ok" else None
    return row


def write_predictions(path: Path, manifest: Manifest, predictions: Sequence[Prediction]) -> None:
    """Write `predictions.csv` (a tab-separated table when the name ends in .tsv)."""
    columns = ["subject", "session"]
    columns += ["prediction"] if manifest.classes else []
    columns += [*value_columns(manifest), "member_spread", "status", "reason", "seconds"]
    stream = io.StringIO()
    separator = "\t" if path.suffix == ".tsv" else ","
    writer = csv.DictWriter(stream, columns, delimiter=separator, lineterminator="\n")
    writer.writeheader()
    for prediction in predictions:
        row = record(manifest, prediction)
        # Six digits lose nothing that a float32 network knows.
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_text(path, stream.getvalue())


def summarise(predictions: Sequence[Prediction], wall: float) -> dict[str, Any]:
    """Counts, and where the time went: medians in ms per scan, and the whole in seconds."""
    good = [p.seconds for p in predictions if p.status == "ok"]

    def median(values: list[float]) -> float | None:
        return 1e3 * statistics.median(values) if values else None

    return {
        "ok": len(good),
        "error": sum(p.status == "error" for p in predictions),
        "skipped": sum(p.status == "skipped" for p in predictions),
        "wall_seconds": wall,
        "ms_per_scan": {
            "decode": median([s.decode for s in good]),
            "preprocess": median([s.preprocess for s in good]),
            "infer": median([s.infer for s in good]),
        },
    }
