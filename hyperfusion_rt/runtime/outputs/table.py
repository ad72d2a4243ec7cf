"""The table of predictions, and its summary."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.errors import ConfigError, MissingExtraError
from hyperfusion_rt.files import replacing, write_text
from hyperfusion_rt.runtime.prediction import Prediction

FORMATS = (".csv", ".tsv", ".parquet", ".jsonl")


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
    row |= prediction.quality
    row["status"] = prediction.status
    row["reason"] = prediction.reason or None
    row["seconds"] = prediction.seconds.total if prediction.status == "ok" else None
    return row


def columns_of(manifest: Manifest, predictions: Sequence[Prediction]) -> list[str]:
    """The table's columns; figures of quality only where a scan has them."""
    columns = ["subject", "session"]
    columns += ["prediction"] if manifest.classes else []
    columns += [*value_columns(manifest), "member_spread"]
    columns += dict.fromkeys(name for item in predictions for name in item.quality)
    return [*columns, "status", "reason", "seconds"]


def write_predictions(path: Path, manifest: Manifest, predictions: Sequence[Prediction]) -> None:
    """Write the table, whole or not at all, as its name says.

    `.csv`; `.tsv`: tab-separated; `.jsonl`: a JSON object a line; `.parquet`: needs pyarrow. Text
    has six digits, which lose nothing that a float32 network knows; JSON and Parquet have all bits.

    Raises:
        MissingExtraError: pyarrow is not installed.
        HyperFusionError: the folder cannot be written, or the disk is full.
    """
    columns = columns_of(manifest, predictions)
    rows = [record(manifest, prediction) for prediction in predictions]
    rows = [{name: row.get(name) for name in columns} for row in rows]
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _write_parquet(path, rows, columns)
    if suffix == ".jsonl":
        return write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))
    stream = io.StringIO()
    separator = "\t" if suffix == ".tsv" else ","
    writer = csv.DictWriter(stream, columns, delimiter=separator, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return write_text(path, stream.getvalue())


def check_format(path: Path) -> None:
    """Before the work: whether the table can be written in the format of its name.

    Raises:
        ConfigError: there is no such format.
        MissingExtraError: pyarrow is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out {path}: its name must end in {', '.join(FORMATS)}")
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "parquet", f"{path}: a Parquet table")


def _write_parquet(path: Path, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = {"subject", "session", "prediction", "status", "reason"}
    kinds = [(name, pa.string() if name in text else pa.float64()) for name in columns]
    table = pa.Table.from_pylist(rows, schema=pa.schema(kinds))
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


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
            "read": median([s.read for s in good]),
            "decode": median([s.decode for s in good]),
            "preprocess": median([s.preprocess for s in good]),
            "infer": median([s.infer for s in good]),
        },
    }
