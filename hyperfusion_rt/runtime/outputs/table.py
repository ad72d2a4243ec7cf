"""The table of predictions, and its summary."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.config import SD, answer_columns
from hyperfusion_rt.errors import ConfigError, MissingExtraError
from hyperfusion_rt.files import replacing, shown, write_text
from hyperfusion_rt.runtime.outputs.subject_view import answer_text
from hyperfusion_rt.runtime.prediction import Certainty, Prediction

FORMATS = (".csv", ".tsv", ".parquet", ".jsonl")


@dataclass(frozen=True)
class Column:
    """A column of the table of predictions. `unit`: as SI writes it; empty for text."""

    name: str
    kind: Literal["text", "number"]
    meaning: str
    unit: str = ""
    levels: Mapping[str, str] = field(default_factory=dict)


# What is counted of a table: its rows by status, and of the errors which are news.
COUNTS = {
    "ok": "predicted",
    "error": "failed: `new` and `known`",
    "new": "failed now, for the first time or because they were tried again",
    "known": "failed before, have not changed, and were not tried again",
    "not_tried": "the run ended before them",
    "skipped": "nothing to predict",
}
STATUS_LEVELS = {
    "ok": "Predicted",
    "error": "Failed; the reason says why",
    "not-tried": "The run ended before this case",
    "skipped": "Nothing to predict, such as a row without a scan",
}


TRUTH = Column(
    "truth",
    "text",
    "What the table says of the target; only where the table has its column",
)
SEEN = Column(
    "seen",
    "text",
    "How the case is known from the training or validation part: a prediction of it says nothing "
    "about new patients; empty where it is not known. Only of artifacts that carry hashes",
    levels={
        "id": "Its subject's id",
        "scan": "Its scan; of raw scans never",
        "both": "Its subject's id and its scan",
    },
)

# Of a raw scan's registration: (meaning, unit).
_QUALITY = {
    "doubt": ("probability that the place is more than 2 mm off, mean over the brain", "1"),
    "disagreement": ("how far the places found in wide and in narrow windows lie apart", "mm"),
    "misfit": ("mean square of the differences from the template, local and weighted; 0: none", ""),
    "inside": ("the part of the brain, and of 4 mm around it, that lies in the scan, 0 to 1", ""),
    "residual": ("spread of the brightness that neither bias field nor tissues explain", ""),
    "csf": ("brightness of CSF relative to white matter's", ""),
    "grey": ("brightness of grey matter relative to white matter's", ""),
    "correlation": ("Pearson's r of the registered scan and the template inside the brain", ""),
    "overlap": ("Dice coefficient of the scan's tissue and the template's, 0 to 1", ""),
    "snr": ("signal to noise ratio in white matter", ""),
    "rotation": ("of the head against the template", "degree"),
    "scale": ("volume of the brain relative to the template's", ""),
}
_COVERAGE = ("the part of a box that lies inside the scan, 0 to 1; one column per box", "")


def si_unit(unit: str) -> str:
    """A unit as SI writes it."""
    return "year" if unit == "years" else unit


def quality_column(name: str) -> Column:
    """The column of a figure of a raw scan's registration."""
    meaning, unit = _QUALITY.get(name, _COVERAGE)
    return Column(name, "number", f"Raw scans only: {meaning}", unit)


def sd_column(unit: str) -> Column:
    """The column of a number's standard deviation."""
    meaning = (
        "Standard deviation of the predicted number as the network answers it, members and boxes "
        "together; only where training.loss was gaussian"
    )
    return Column(SD, "number", meaning, si_unit(unit))


def value_columns(manifest: Manifest) -> list[Column]:
    """The columns of an answer: probabilities, a number, or the volumes of labels."""
    if manifest.labels:
        return [
            Column(f"volume_{name}", "number", f"Volume of {name}, where the scan lies", "ml")
            for name in manifest.labels[1:]
        ]
    names = answer_columns(manifest.classes, manifest.table.target, manifest.unit)
    if not manifest.classes:
        meaning = f"Predicted {manifest.table.target}"
        columns = [Column(names[0], "number", meaning, si_unit(manifest.unit))]
        return [*columns, sd_column(manifest.unit)] if manifest.answers_sd else columns
    scaled = ", calibrated (scaled by the artifact's temperature)"
    how = "" if manifest.calibration is None else scaled
    return [
        Column(name, "number", f"Probability of the class {label}{how}", "1")
        for name, label in zip(names, manifest.classes, strict=True)
    ]


def certainty_columns(
    manifest: Manifest, level: float | None = None, *, truth: bool = True
) -> dict[str, Column]:
    """What the table says of how sure an answer is, by the field of `Certainty`.

    Args:
        level: of sets and intervals; None: whatever was asked for.
        truth: whether the table knows the target: a gap needs a true age.
    """
    made, unit = manifest.calibration, si_unit(manifest.unit)
    asked = "the probability that was asked for, 0.9 by default"
    at = asked if level is None else f"probability {level:g}"
    found: dict[str, Column] = {}
    if made is not None and manifest.classes:
        found["classes"] = Column(
            "prediction_set",
            "text",
            f"Classes that hold the true one with {at}, joined by |; empty where the calibration "
            "cases are too few for that",
        )
    elif made is not None:
        for name, end in (("low", "Lower"), ("high", "Upper")):
            meaning = f"{end} end of the interval that holds the true number with {at}"
            found[name] = Column(f"interval_{name}", "number", meaning, unit)
    if made is not None and made.age_bias is not None and truth:
        found |= {name: replace(c, unit=c.unit and unit) for name, c in _GAP.items()}
        for name, end in (("gap_low", "Lower"), ("gap_high", "Upper")):
            meaning = f"{end} end of the interval that holds the gap with {at}"
            found[name] = replace(found[name], meaning=meaning)
    if manifest.typical_scans is not None:
        found["distance"] = _DISTANCE
    return found


_GAP = {
    "corrected": Column(
        "corrected",
        "number",
        "The predicted age without the bias of age, which needs the true age: never a prediction "
        "of it; the prediction as it is stands beside it",
        "year",
    ),
    "gap": Column("gap", "number", "corrected - true age", "year"),
    "gap_low": Column("gap_low", "number", "", "year"),
    "gap_high": Column("gap_high", "number", "", "year"),
    "p_positive": Column(
        "gap_p_positive",
        "number",
        "Probability that the gap is positive, from the gaps of the calibration cases",
    ),
    "percentile": Column(
        "gap_percentile",
        "number",
        "Percentile of the gap, 0 to 100, among calibration cases of this sex and decade of age, "
        "or among all where these are fewer than 100",
    ),
}
_DISTANCE = Column(
    "scan_distance",
    "number",
    "Distance of the scan's features from those of the training's scans, in multiples of the "
    "threshold: beyond 1 the scan is unlike them; empty where the engine gives no features",
)


def _level_of(predictions: Sequence[Prediction]) -> float | None:
    """The level of the sets and intervals; None where there are none, or of several levels."""
    known = {p.certainty.level for p in predictions if p.certainty is not None} - {None}
    return known.pop() if len(known) == 1 else None


def columns_of(manifest: Manifest, predictions: Sequence[Prediction] = ()) -> list[Column]:
    """The table's columns; the truth and figures of quality only where a case has them."""
    truth = any(item.truth is not None for item in predictions)
    of = "probability of the predicted class" if manifest.classes else "number"
    unit = "1" if manifest.classes else si_unit(manifest.unit)
    levels = {name: f"The class {name}" for name in manifest.classes}
    quality = dict.fromkeys(name for item in predictions for name in item.quality)
    return [
        Column("subject", "text", "The subject's id, without sub-"),
        Column("session", "text", "The session's id, without ses-; empty where there is none"),
        *(
            [Column("prediction", "text", "The most probable class", levels=levels)]
            if manifest.classes
            else []
        ),
        *value_columns(manifest),
        *([TRUTH] if truth else []),
        Column(
            "member_spread",
            "number",
            f"Standard deviation of the {of} over the ensemble's members; empty for one member",
            unit,
        ),
        *certainty_columns(manifest, _level_of(predictions), truth=truth).values(),
        *map(quality_column, quality),
        *([SEEN] if manifest.training_cases is not None else []),
        Column("status", "text", "Whether there is a prediction", levels=STATUS_LEVELS),
        Column("code", "text", "The kind of fault, a stable name; empty with a prediction"),
        Column("reason", "text", "Why there is no prediction; empty with a prediction"),
        Column("warnings", "text", "What a reader of the prediction should know"),
        Column("seconds", "number", "Time that the prediction took", "s"),
    ]


def label(manifest: Manifest, prediction: Prediction) -> str:
    """The class of the highest probability, or numbers as text; empty without a prediction."""
    if not prediction.values:
        return ""
    if not manifest.classes:
        return answer_text((), "", prediction)
    return manifest.classes[prediction.values.index(max(prediction.values))]


def record(manifest: Manifest, prediction: Prediction) -> dict[str, Any]:
    """One line of the table: a name and a value per column, None where there is nothing."""
    names = [column.name for column in value_columns(manifest)]
    values: Sequence[float | None] = prediction.values
    if manifest.answers_sd:
        values = [*values, prediction.sd]
    if not prediction.values:
        values = [None] * len(names)
    row: dict[str, Any] = {"subject": prediction.subject, "session": prediction.session}
    if manifest.classes:
        row["prediction"] = label(manifest, prediction) or None
    row |= dict(zip(names, values, strict=True))
    if prediction.truth is not None:
        row["truth"] = prediction.truth or None
    row["member_spread"] = prediction.spread
    row |= _certainty_cells(manifest, prediction)
    row |= prediction.quality
    if manifest.training_cases is not None:
        row["seen"] = prediction.seen or None
    row["status"] = prediction.status
    row["code"] = prediction.code or None
    row["reason"] = prediction.reason or None
    row["warnings"] = "; ".join(prediction.warnings) or None
    row["seconds"] = prediction.seconds.total if prediction.status == "ok" else None
    return row


def _certainty_cells(manifest: Manifest, prediction: Prediction) -> dict[str, Any]:
    """The cells of `certainty_columns`."""
    columns = certainty_columns(manifest, truth=prediction.truth is not None)
    sure = prediction.certainty or Certainty()
    found = {column.name: getattr(sure, name) for name, column in columns.items()}
    if sure.classes is not None:
        found["prediction_set"] = "|".join(sure.classes)
    return found


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
    names = [column.name for column in columns]
    rows = [{name: row.get(name) for name in names} for row in rows]
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _write_parquet(path, rows, columns)
    if suffix == ".jsonl":
        return write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows), private=True)
    stream = io.StringIO()
    separator = "\t" if suffix == ".tsv" else ","
    writer = csv.DictWriter(stream, names, delimiter=separator, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return write_text(path, stream.getvalue(), private=True)


def check_format(path: Path) -> None:
    """Before the work: whether the table can be written in the format of its name.

    Raises:
        ConfigError: there is no such format.
        MissingExtraError: pyarrow is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"`out` {path}: its name must end in {', '.join(FORMATS)}", code="output-wrong-name"
        )
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "parquet", f"{path}: a Parquet table")


def _write_parquet(path: Path, rows: list[dict[str, Any]], columns: Sequence[Column]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"text": pa.string(), "number": pa.float64()}
    rows = [{k: shown(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
    kinds = [(column.name, types[column.kind]) for column in columns]
    table = pa.Table.from_pylist(rows, schema=pa.schema(kinds))
    with replacing(path, private=True) as temporary, open(temporary, "wb") as file:
        pq.write_table(table, file)


def summarise(predictions: Sequence[Prediction], wall: float) -> dict[str, Any]:
    """`COUNTS`, and where the time went: medians in ms per scan, and the whole in seconds."""
    good = [p.seconds for p in predictions if p.status == "ok"]

    def median(values: list[float]) -> float | None:
        return 1e3 * statistics.median(values) if values else None

    failed = [p for p in predictions if p.status == "error"]
    known = sum(p.known for p in failed)
    return {
        "ok": len(good),
        "error": len(failed),
        "new": len(failed) - known,
        "known": known,
        "not_tried": sum(p.status == "not-tried" for p in predictions),
        "skipped": sum(p.status == "skipped" for p in predictions),
        "with_warnings": sum(bool(p.warnings) for p in predictions if p.status == "ok"),
        "wall_seconds": wall,
        "ms_per_scan": {
            "read": median([s.read for s in good]),
            "decode": median([s.decode for s in good]),
            "preprocess": median([s.preprocess for s in good]),
            "infer": median([s.infer for s in good]),
        },
    }


def in_words(counts: Mapping[str, int]) -> str:
    """`COUNTS` for a reader: `16 predicted, 4 failed (1 new), 0 skipped`."""
    new = f" ({counts['new']} new)" if counts["known"] else ""
    left = f", {counts['not_tried']} not tried" if counts["not_tried"] else ""
    failed = f"{counts['error']} failed{new}{left}"
    return f"{counts['ok']} predicted, {failed}, {counts['skipped']} skipped"
