"""What `hfrt infer` does: predict a cohort, write the table and the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hyperfusion_rt.data.volumes import SUFFIXES
from hyperfusion_rt.errors import CohortError, ConfigError
from hyperfusion_rt.machine import describe_machine
from hyperfusion_rt.runtime.artifact import latest_artifact
from hyperfusion_rt.runtime.output import record, summarise, write_predictions
from hyperfusion_rt.runtime.predictor import Prediction, Predictor, cohort_problems, load
from hyperfusion_rt.runtime.report import inference_page

Unmatched = Literal["list", "ignore", "fail"]


@dataclass(frozen=True)
class Result:
    """The predictions of a cohort and their summary."""

    predictor: Predictor
    predictions: list[Prediction]
    summary: dict[str, Any]

    @property
    def failed(self) -> list[Prediction]:
        """The cases that have no prediction though they have a scan."""
        return [item for item in self.predictions if item.status == "error"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        manifest = self.predictor.manifest
        rows = [record(manifest, item) for item in self.predictions]
        return {
            "engine": self.predictor.engine,
            "notes": list(self.predictor.notes),
            "summary": self.summary,
            "predictions": rows,
        }


def _check_outputs(out: Path, report: Path | None, inputs: Sequence[Path], artifact: Path) -> None:
    """Refuse an output that would replace an input, the artifact or the other output."""
    taken = {path.resolve() for path in inputs}
    for option, path in (("--out", out), ("--report", report)):
        if path is None:
            continue
        place = path.resolve()
        in_artifact = artifact.resolve() in (place, *place.parents)
        if place in taken or in_artifact or place.name.endswith(SUFFIXES):
            raise ConfigError(
                f"{option} {path}: would write over what is read; choose another name"
            )
    if report is not None and report.resolve() == out.resolve():
        raise ConfigError(f"--report {report}: is --out too; choose another name")


def infer(
    scans: Sequence[Path],
    tabular: Path,
    *,
    artifact: Path | None = None,
    out: Path = Path("predictions.csv"),
    report: Path | None = None,
    engine: str = "auto",
    threads: int | None = None,
    id_column: str | None = None,
    duplicates: Literal["refuse", "first"] = "refuse",
    unmatched_scans: Unmatched = "list",
    unmatched_rows: Unmatched = "list",
    on_case: Callable[[int, int], None] | None = None,
) -> Result:
    """Predict the cohort and write `out` and `report`; see `hfrt infer --help`.

    An interrupt (Ctrl-C) writes what is done; the rest are errors with that reason.

    Raises:
        HyperFusionError: nothing can be predicted, or nothing can be written.
    """
    artifact = artifact or latest_artifact(Path())
    _check_outputs(out, report, [tabular, *scans], artifact)
    predictor = load(artifact, engine=engine, threads=threads)
    cohort = predictor.gather(scans, tabular, id_column=id_column, on_duplicate=duplicates)
    for policy, option, kind, of in (
        (unmatched_scans, "--unmatched-scans", "scan-without-row", "scans have no row"),
        (unmatched_rows, "--unmatched-rows", "row-without-scan", "rows have no scan"),
    ):
        found = [problem for problem in cohort.problems if problem.kind == kind]
        if policy == "fail" and found:
            raise CohortError(
                f"{len(found)} {of} and {option} is fail; the first: {found[0].subject} "
                f"({found[0].where})"
            )
    start = time.perf_counter()
    predictions: list[Prediction] = []
    try:
        for item in predictor.stream(cohort.cases):
            predictions.append(item)
            if on_case is not None:
                on_case(len(predictions), len(cohort.cases))
    except KeyboardInterrupt:
        predictions += [
            Prediction(case.subject, case.session, "error", "interrupted before this case")
            for case in cohort.cases[len(predictions) :]
        ]
    wall = time.perf_counter() - start
    predictions += cohort_problems(
        cohort,
        "ignore" if unmatched_scans == "ignore" else "list",
        "ignore" if unmatched_rows == "ignore" else "list",
    )
    predictions.sort(key=lambda item: (item.subject, item.session or ""))
    result = Result(predictor, predictions, summarise(predictions, wall))
    write_predictions(out, predictor.manifest, predictions)
    if report is not None:
        inference_page(
            predictor.manifest,
            predictions,
            result.summary,
            predictor.engine,
            describe_machine(),
            predictor.notes,
        ).write(report)
    return result
