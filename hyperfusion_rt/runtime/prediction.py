"""What a prediction is: the types that the pipeline makes and the outputs write."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hyperfusion_rt.data.cohort import Cohort
from hyperfusion_rt.data.fingerprint import Seen
from hyperfusion_rt.runtime.options import Unmatched

Status = Literal["ok", "error", "not-tried", "skipped"]


@dataclass(frozen=True)
class Seconds:
    """Where one case's time went."""

    read: float = 0.0
    decode: float = 0.0
    preprocess: float = 0.0
    infer: float = 0.0

    @property
    def total(self) -> float:
        """The sum of the four."""
        return self.read + self.decode + self.preprocess + self.infer


@dataclass(frozen=True)
class Certainty:
    """How sure a prediction is, after cases whose truth was known; see `artifact.calibration`.

    `classes`: the prediction set, which holds the true class with probability `level`; of numbers
    `low` and `high`, the interval that does. Of a predicted age, where the table knows the true
    one: `corrected`, the prediction without the bias of age; `gap`, that minus the true age, with
    its interval `gap_low` to `gap_high`; `p_positive`, the probability that the gap is positive;
    `percentile`, 0 to 100, of the gap among people of this age and sex. `distance`: of the scan's
    features from the training's, in multiples of the threshold: beyond 1 it is unlike them. None:
    the artifact does not say it.
    """

    level: float | None = None
    classes: tuple[str, ...] | None = None
    low: float | None = None
    high: float | None = None
    corrected: float | None = None
    gap: float | None = None
    gap_low: float | None = None
    gap_high: float | None = None
    p_positive: float | None = None
    percentile: float | None = None
    distance: float | None = None


@dataclass(frozen=True)
class Prediction:
    """One case's result.

    `values`: probabilities in the order of `manifest.classes`, or the number in `manifest.unit`;
    empty unless `status` is `ok`. `sd`: the standard deviation of that number as the network
    answers it, None where it answers none. `spread`: standard deviation over the members, None for
    one member. `reason`: why there is no prediction; `code`: the kind of fault (`errors.CODES`),
    empty where there is a prediction. `known`: it failed before, and neither scan nor row has
    changed since. `warnings`: what a reader of this prediction should know. `quality`: of a raw
    scan's registration, figures by name. `scan`: the file, where there is one, and `stamp` what
    tells it from a changed one (`files.stamp`), taken before it was read. `truth`: the cell of the
    target's column, None where the table has no such column. `seen`: whether the case stood in the
    training or validation part, by its subject's id, its scan or both. `certainty`: how sure it is,
    None where the artifact says nothing of that.
    """

    subject: str
    session: str | None
    status: Status
    reason: str = ""
    values: tuple[float, ...] = ()
    spread: float | None = None
    seconds: Seconds = field(default_factory=Seconds)
    quality: dict[str, float] = field(default_factory=dict)
    scan: Path | None = None
    stamp: str | None = None
    code: str = ""
    known: bool = False
    warnings: tuple[str, ...] = ()
    truth: str | None = None
    seen: Seen = ""
    sd: float | None = None
    certainty: Certainty | None = None


def by_case(item: Prediction) -> tuple[str, str]:
    """The order of a table: by subject and session."""
    return item.subject, item.session or ""


def cohort_problems(
    cohort: Cohort,
    unmatched_scans: Unmatched = "list",
    unmatched_rows: Unmatched = "list",
) -> list[Prediction]:
    """What could not be joined. Rows without a scan and further runs are skipped, not errors.

    `unmatched_scans`, `unmatched_rows`: `ignore` leaves them out.
    """
    found = []
    for problem in cohort.problems:
        no_scan, no_row = problem.kind == "row-without-scan", problem.kind == "scan-without-row"
        if (no_scan and unmatched_rows == "ignore") or (no_row and unmatched_scans == "ignore"):
            continue
        harmless = no_scan or problem.kind == "passed-over"
        status: Status = "skipped" if harmless else "error"
        reason = f"{problem.where}: {problem.reason}"
        found.append(
            Prediction(problem.subject, problem.session, status, reason, code=problem.code)
        )
    return found


def as_json(prediction: Prediction) -> dict[str, Any]:
    """A prediction for JSON, which keeps its float64 numbers bit for bit."""
    return {**asdict(prediction), "scan": str(prediction.scan) if prediction.scan else None}


def from_json(content: dict[str, Any]) -> Prediction:
    """The prediction that `as_json` wrote."""
    scan, sure = content["scan"], content.get("certainty")
    if sure is not None and sure["classes"] is not None:
        sure = {**sure, "classes": tuple(sure["classes"])}
    return Prediction(
        **{
            **content,
            "certainty": None if sure is None else Certainty(**sure),
            "values": tuple(content["values"]),
            "warnings": tuple(content["warnings"]),
            "seconds": Seconds(**content["seconds"]),
            "scan": Path(scan) if scan else None,
        }
    )
