"""What `hfrt what-if` does: find the scan and its row, ask the model, write what it answers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperfusion_rt.artifact.manifest import Artifact, only_artifact
from hyperfusion_rt.errors import CohortError, ConfigError, HyperFusionError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.runtime.cohort.places import check_file
from hyperfusion_rt.runtime.explain.answers import Flip, WhatIf
from hyperfusion_rt.runtime.explain.flip import nearest_flip
from hyperfusion_rt.runtime.explain.what_if import parse_vary, what_if
from hyperfusion_rt.runtime.options import AskOptions
from hyperfusion_rt.runtime.outputs.what_if_page import what_if_page
from hyperfusion_rt.runtime.prediction import Prediction
from hyperfusion_rt.runtime.predictor import Predictor


@dataclass(frozen=True)
class Asked:
    """The answers about one case.

    `prediction`: the answer to the row as it is; `names`: of its numbers. `what_if`, `flips`: None
    where they were not asked for.
    """

    artifact: Artifact
    prediction: Prediction
    names: tuple[str, ...]
    what_if: WhatIf | None
    flips: list[Flip] | None


def ask(
    scan: Path, tabular: Path, vary: Sequence[str], options: AskOptions, out: Path | None = None
) -> Asked:
    """Ask the model about one case.

    Args:
        out: where `write` shall write the points; looked at before the work.

    Raises:
        ConfigError: nothing is asked, or `out` cannot be written so.
        CohortError: there is no case, or there are several.
        HyperFusionError: scan, row, column or value cannot be used.
    """
    values = parse_vary(vary)
    if not values and not options.nearest_flip:
        raise ConfigError(
            "nothing is asked: give `vary`, such as AGE=55:90:1, or `nearest_flip`",
            code="option-conflict",
        )
    artifact = Artifact.open(options.artifact or only_artifact(Path()))
    if out is not None:
        _check_out(out, bool(values), [scan, tabular], artifact.folder)
    predictor = Predictor(artifact, options)
    cohort = predictor.gather([scan], tabular, id_column=options.id_column)
    if len(cohort.cases) > 1:
        raise CohortError(
            f"{scan}: {len(cohort.cases)} scans have a row of the table; name one scan",
            code="scan-ambiguous",
        )
    if not cohort.cases:
        problems = [problem for problem in cohort.problems if problem.kind != "row-without-scan"]
        why = "; ".join(f"{problem.where}: {problem.reason}" for problem in problems)
        raise CohortError(
            f"{scan}: cannot be asked about: {why or 'it has no row of the table'}",
            code="cohort-no-scan",
        )
    predictor.remember()
    (prediction,) = predictor.stream(cohort.cases)
    if prediction.status == "error":
        raise HyperFusionError(prediction.reason, code=prediction.code)
    question = predictor.question(cohort.cases[0])
    return Asked(
        artifact,
        prediction,
        artifact.manifest.table.answers,
        what_if(question, values) if values else None,
        nearest_flip(question, options.at) if options.nearest_flip else None,
    )


def as_dict(found: Asked) -> dict[str, Any]:
    """For JSON."""
    content: dict[str, Any] = {
        "artifact": str(found.artifact.folder.resolve()),
        "subject": found.prediction.subject,
        "answer": dict(zip(found.names, found.prediction.values, strict=True)),
        "warnings": list(found.prediction.warnings),
    }
    if found.what_if is not None:
        content["what_if"] = _rows(found.what_if, found.names)
    if found.flips is not None:
        content["flips"] = [
            {
                "changes": [
                    {"column": name, "from": before, "to": after}
                    for name, before, after in flip.changes
                ],
                "distance": flip.distance,
                "answer": dict(zip(found.names, flip.values.tolist(), strict=True)),
                "unusual": flip.unusual,
            }
            for flip in found.flips
        ]
    return content


def _rows(given: WhatIf, names: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for index, point in enumerate(given.points):
        row: dict[str, Any] = dict(zip(given.columns, point, strict=True))
        row |= dict(zip(names, given.values[index].tolist(), strict=True))
        if given.low is not None and given.high is not None:
            row |= {f"{n}_5": v for n, v in zip(names, given.low[index].tolist(), strict=True)}
            row |= {f"{n}_95": v for n, v in zip(names, given.high[index].tolist(), strict=True)}
        found.append({**row, "unusual": given.unusual[index]})
    return found


def _check_out(out: Path, points: bool, inputs: Sequence[Path], artifact: Path) -> None:
    if out.suffix.lower() not in (".csv", ".tsv"):
        raise ConfigError(
            f"`out` {out}: its name must end in .csv or .tsv", code="output-wrong-name"
        )
    if not points:
        raise ConfigError("`out` is the table of points: give `vary`", code="option-conflict")
    check_file("out", out, inputs, artifact)


def write(out: Path, found: Asked) -> Path | None:
    """Write the points as a table, and beside it a page with curves of the first column.

    Returns the page; None where nothing was varied but the nearest changes asked for.

    Raises:
        HyperFusionError: it cannot be written.
    """
    if found.what_if is None:
        return None
    rows = _rows(found.what_if, found.names)
    stream = io.StringIO()
    separator = "\t" if out.suffix.lower() == ".tsv" else ","
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_text(out, stream.getvalue(), private=True)
    page = out.with_suffix(".html")
    what_if_page(found.artifact.manifest, found.prediction, found.what_if, found.flips).write(page)
    return page
