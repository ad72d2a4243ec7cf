"""What `hfrt evaluate` does: predict a cohort, compare with the truth, write what was found."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import hyperfusion_rt
from hyperfusion_rt.artifact.manifest import Artifact, Manifest
from hyperfusion_rt.data.bids_columns import suggestions
from hyperfusion_rt.data.cohort import Case, Cohort
from hyperfusion_rt.data.column_map import columns_of_spec
from hyperfusion_rt.data.table_file import Table, suggest
from hyperfusion_rt.errors import CohortError, TableError
from hyperfusion_rt.files import sha256, write_text
from hyperfusion_rt.machine import describe_machine
from hyperfusion_rt.runtime.cohort.places import check_folder
from hyperfusion_rt.runtime.evaluation import (
    SEEN_NOTE,
    EvaluatedCase,
    Evaluation,
    ages_of,
    cases_of,
    columns_of_groups,
    figures_by_group,
    measure,
    read_truth,
    sexes_of,
)
from hyperfusion_rt.runtime.evaluation_certainty import certainty_figures
from hyperfusion_rt.runtime.options import EvaluateOptions
from hyperfusion_rt.runtime.outputs.evaluation_page import evaluation_page
from hyperfusion_rt.runtime.outputs.table import record
from hyperfusion_rt.runtime.prediction import Prediction, by_case, cohort_problems
from hyperfusion_rt.runtime.predictor import Predictor
from hyperfusion_rt.runtime.segmentation import refuse_labels

OnCase = Callable[[int, int], None]
FILES = ("evaluation.json", "cases.csv", "evaluation.html")
_Key = tuple[str, str | None]


def evaluate(
    artifact: Path,
    scans: Sequence[Path],
    tabular: Path,
    options: EvaluateOptions | None = None,
    *,
    on_case: OnCase | None = None,
) -> Evaluation:
    """Predict the scans with their rows of `tabular` and compare with the target's column.

    Writes into the folder `options.out`: `evaluation.json` (all figures), `cases.csv` (a line per
    case) and `evaluation.html`. A case that stood in the training (`options.seen_by`), has no truth
    or failed is listed and not counted.

    Args:
        on_case: called with (done, all) after each case.

    Raises:
        TableError: the table has no column of the target.
        CohortError: no case has a truth, or all stood in the training.
        HyperFusionError: nothing can be predicted, or nothing can be written.
    """
    options = options or EvaluateOptions()
    started = time.time()
    check_folder(options.out, [tabular, *scans], artifact, FILES)
    opened = Artifact.open(artifact)
    refuse_labels(opened.manifest, "figures need")
    predictor = Predictor(opened, options)
    table_sha256 = sha256(tabular) if tabular.is_file() else ""
    cohort = predictor.gather(
        scans, tabular, id_column=options.id_column, on_duplicate=options.duplicates
    )
    manifest = predictor.manifest
    truths, unclear, notes = _truths(manifest, cohort, tabular)
    _refuse_seen(manifest, cohort, truths, options)
    with closing(predictor.stream([c for c in cohort.cases if _key(c) in truths])) as stream:
        done = []
        for item in stream:
            done.append(item)
            if on_case is not None:
                on_case(len(done), len(truths))
    predictions = [*done, *unclear, *cohort_problems(cohort)]
    sex, age = columns_of_groups(manifest.table, list(cohort.cases[0].row.values))
    cases = _evaluated(cohort, predictions, truths, sex, age, options)
    new = [case for case in cases if case.counted]
    seen = [case for case in cases if _is_known(case) and not case.counted]
    if seen and not new and not options.include_seen:
        raise _all_seen([case.prediction.seen for case in seen])

    def figures(of: Sequence[EvaluatedCase]) -> dict[str, Any]:
        known = [(case.prediction, case.truth) for case in of if case.truth is not None]
        return measure(manifest, [item for item, _ in known], [truth for _, truth in known])

    groups, why = figures_by_group(new, figures, sex, age) if new else ({}, [])
    sure, unsaid = certainty_figures(manifest, new)
    found = Evaluation(
        manifest,
        predictor.engine,
        cases,
        figures(new),
        groups,
        figures(seen) if seen and options.include_seen else None,
        (*predictor.notes, *_notes(manifest, options, seen), *notes, *why, *unsaid),
        cohort.notes,
        sure,
        {
            "program": f"hyperfusion_rt {hyperfusion_rt.__version__}",
            "artifact": {"folder": str(artifact.resolve()), "name": manifest.name},
            "identity": predictor.identity(),
            "options": options.model_dump(mode="json"),
            "inputs": {
                "scans": [str(path.resolve()) for path in scans],
                "table": str(tabular.resolve()),
                "table_sha256": table_sha256,
            },
            "machine": describe_machine(),
            "seconds": time.time() - started,
        },
    )
    write_evaluation(options.out, found)
    return found


def _key(case: Case | Prediction) -> _Key:
    return case.subject, case.session


def _truths(
    manifest: Manifest, cohort: Cohort, tabular: Path
) -> tuple[dict[_Key, float], list[Prediction], list[str]]:
    """The truth of every case that has one; the others, skipped; what else is to be said.

    Raises:
        TableError: the table has no column of the target.
        CohortError: no case has a truth.
    """
    target = manifest.table.target
    if not cohort.cases:
        first = f"; the first: {cohort.problems[0].reason}" if cohort.problems else ""
        raise CohortError(f"{tabular}: no scan has a row{first}", code="evaluation-no-truth")
    columns = list(cohort.cases[0].row.values)
    if target not in columns:
        rows = [case.row for case in cohort.cases]
        own = {target: columns_of_spec(manifest.table)[target]}
        maps = suggestions(Table(tabular, tuple(columns), rows, ",", ""), own, {})
        advice = f"; or read another in its place: {maps[target]}" if maps else ""
        raise TableError(
            f"{tabular}: has no column {target!r}, the target of {manifest.name}"
            f"{suggest(target, columns)}; the columns are {', '.join(columns)}{advice}",
            code="table-missing-column",
        )
    truths: dict[_Key, float] = {}
    without = []
    unclear: Counter[str] = Counter()
    for case in cohort.cases:
        code, reason = "table-missing-value", f"no value of {target}"
        try:
            truth = read_truth(manifest, case.row)
        except TableError as error:
            code, reason = error.code, f"{tabular}: {error}"
            unclear[case.row.values[target]] += 1
            truth = None
        if truth is not None:
            truths[_key(case)] = truth
            continue
        text = case.row.values[target]
        without.append(
            Prediction(
                case.subject, case.session, "skipped", reason, scan=case.scan, code=code, truth=text
            )
        )
    what = f"none of the classes {', '.join(manifest.classes)}" if manifest.classes else "unusable"
    shown = [f"{text!r} in {count}" for text, count in unclear.most_common(5)]
    more = f" and {len(unclear) - 5} more values" if len(unclear) > 5 else ""
    notes = [f"column {target!r}: {', '.join(shown)}{more}: {what}, not counted"] if unclear else []
    if not truths:
        said = f"; {notes[0]}" if notes else ": the column is empty"
        raise CohortError(
            f"{tabular}: none of the {len(cohort.cases)} scans with a row has a value of "
            f"{target!r}{said}",
            code="evaluation-no-truth",
        )
    return truths, without, notes


def _refuse_seen(
    manifest: Manifest, cohort: Cohort, truths: dict[_Key, float], options: EvaluateOptions
) -> None:
    """Before the work: refuse a cohort whose ids are all of the training."""
    known = manifest.training_cases
    if known is None or options.include_seen or options.seen_by == "scan":
        return
    found = [known.seen(case.subject) for case in cohort.cases if _key(case) in truths]
    if all(found):
        raise _all_seen(found)


def _all_seen(seen: Sequence[str]) -> CohortError:
    counts = Counter(seen)
    how = ", ".join(f"{n} by {name}" for name, n in counts.most_common())
    return CohortError(
        f"all {len(seen)} cases with a truth {SEEN_NOTE} (known {how}); give new ones, see the "
        "figures of these all the same with `include_seen`, or, where other people happen to have "
        "these ids, tell them by their scans with `seen_by` scan",
        code="evaluation-all-seen",
    )


def _is_known(case: EvaluatedCase) -> bool:
    return case.prediction.status == "ok" and case.truth is not None


def _evaluated(
    cohort: Cohort,
    predictions: Sequence[Prediction],
    truths: dict[_Key, float],
    sex: str | None,
    age: str | None,
    options: EvaluateOptions,
) -> list[EvaluatedCase]:
    """Every case with its truth and groups, by subject and session."""
    rows = [case.row for case in cohort.cases]
    keys = [_key(case) for case in cohort.cases]
    sexes = dict(zip(keys, sexes_of(rows, sex), strict=True)) if sex else {}
    ages = dict(zip(keys, ages_of(rows, age), strict=True)) if age else {}
    as_seen = ("scan", "both") if options.seen_by == "scan" else ("id", "scan", "both")
    found = []
    for item in sorted(predictions, key=by_case):
        key = _key(item)
        case = EvaluatedCase(item, truths.get(key), sexes.get(key, ""), ages.get(key))
        counted = _is_known(case) and item.seen not in as_seen
        found.append(replace(case, counted=counted))
    return found


def _notes(
    manifest: Manifest, options: EvaluateOptions, seen: Sequence[EvaluatedCase]
) -> list[str]:
    """What is known, and not, of cases of the training."""
    if manifest.training_cases is None:
        return [
            f"{manifest.name}: carries no hashes of its training: whether a case stood in it is "
            "not known"
        ]
    notes = []
    if seen:
        notes.append(f"{cases_of(len(seen))} {SEEN_NOTE}; not counted")
    if options.source == "raw":
        notes.append("raw scans: cases of the training are known by their subject's id alone")
    return notes


# ---- what is written


def write_evaluation(out: Path, found: Evaluation) -> None:
    """Write the three files, each whole or not at all.

    Raises:
        HyperFusionError: the folder cannot be written, or the disk is full.
    """
    content = json.dumps(as_dict(found), indent=2) + "\n"
    write_text(out / "evaluation.json", content, private=True)
    write_text(out / "cases.csv", _table(found), private=True)
    evaluation_page(found, found.about["machine"]).write(out / "evaluation.html")


def as_dict(found: Evaluation) -> dict[str, Any]:
    """What `evaluation.json` holds."""
    manifest = found.manifest
    seen = found.seen_figures
    return {
        "target": manifest.table.target,
        "classes": list(manifest.classes),
        "unit": manifest.unit,
        "engine": found.engine,
        "counts": {
            "cases": len(found.cases),
            "counted": len(found.counted),
            "failed": len(found.failed),
        },
        "not_counted": found.left_out,
        "figures": found.figures,
        "groups": found.groups,
        "certainty": found.certainty,
        "seen_in_training": None if seen is None else {"not_a_test": True, "figures": seen},
        "own_test_set": manifest.provenance.metrics,
        "notes": list(found.notes),
        "joined": list(found.joined),
        **found.about,
    }


def _table(found: Evaluation) -> str:
    """The text of `cases.csv`."""
    lines = [_line(found.manifest, case) for case in found.cases]
    names = list(dict.fromkeys(name for line in lines for name in line))
    names.sort(key=lambda name: name in _LAST)  # figures of quality do not come after the reason
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()})
    return stream.getvalue()


_LAST = ("status", "code", "reason", "warnings", "seconds")


def _line(manifest: Manifest, case: EvaluatedCase) -> dict[str, Any]:
    """A line of `cases.csv`: what `record` says, and the comparison."""
    cells = record(manifest, case.prediction)
    cells.pop("truth", None)
    first = {name: cells.pop(name) for name in ("subject", "session")}
    last = {name: cells.pop(name) for name in _LAST}
    last.pop("seconds")
    truth: str | float | None = case.prediction.truth or None
    compared: dict[str, Any] = {"correct" if manifest.classes else "error": None}
    if case.truth is not None:
        truth = manifest.classes[int(case.truth)] if manifest.classes else case.truth
    if _is_known(case) and case.truth is not None:
        if manifest.classes:
            compared["correct"] = "yes" if cells["prediction"] == truth else "no"
        else:
            compared["error"] = case.prediction.values[0] - case.truth
    return {
        **first,
        "truth": truth,
        **cells,
        **compared,
        "sex": case.sex or None,
        "age": case.age,
        "counted": "yes" if case.counted else "no",
        **last,
    }
