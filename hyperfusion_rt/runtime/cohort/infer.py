"""What `hfrt infer` does: predict a cohort; write its journal, table, report and record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

from hyperfusion_rt.artifact.manifest import latest_artifact
from hyperfusion_rt.data.bids_dataset import dataset_of
from hyperfusion_rt.data.cohort import Case, Cohort, restrict
from hyperfusion_rt.errors import CohortError, ConfigError
from hyperfusion_rt.files import sha256
from hyperfusion_rt.runtime.cohort.journal import (
    Ending,
    Journal,
    Shard,
    journal_path,
)
from hyperfusion_rt.runtime.cohort.record import NOT_TRIED, Result, check_outputs, write_result
from hyperfusion_rt.runtime.cohort.shards import shard_of, shard_path
from hyperfusion_rt.runtime.outputs.table import summarise
from hyperfusion_rt.runtime.prediction import Prediction, by_case, cohort_problems
from hyperfusion_rt.runtime.predictor import Source, load

Unmatched = Literal["list", "ignore", "fail"]
Executor = Literal["local", "ray"]


def infer(
    scans: Sequence[Path],
    tabular: Path,
    *,
    artifact: Path | None = None,
    out: Path = Path("predictions.csv"),
    report: Path | None = None,
    engine: str = "auto",
    threads: int | None = None,
    source: Source = "registered",
    id_column: str | None = None,
    duplicates: Literal["refuse", "first"] = "refuse",
    unmatched_scans: Unmatched = "list",
    unmatched_rows: Unmatched = "list",
    subjects: Sequence[str] = (),
    shard: Shard | None = None,
    resume: bool = False,
    force: bool = False,
    max_errors: int | None = None,
    max_memory: int | None = None,
    batch: int = 1,
    feature_cache: Path | None = None,
    executor: Executor = "local",
    workers: int | None = None,
    address: str | None = None,
    derivative: Path | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> Result:
    """Predict the cohort; see `hfrt infer --help`.

    Writes `out`, `report`, and beside the table its journal (`.journal`), as cases are done, and a
    record of the run (`.run.json`); into the folder `derivative` the same as a BIDS derivatives
    dataset of the one that `scans` names. With a `shard`, only its subjects, and `out` gets its
    name. An interrupt (Ctrl-C) writes what is done; the rest are errors with that reason.

    Raises:
        HyperFusionError: nothing can be predicted, or nothing can be written.
    """
    started = time.time()
    if resume and force:
        raise ConfigError("--resume keeps what is done, --force throws it away: choose one")
    if derivative is not None and (shard or subjects):
        raise ConfigError(
            "--derivative describes the whole dataset: leave out --shard and --subject, or use "
            "hfrt bids-app"
        )
    artifact = artifact or latest_artifact(Path())
    out = shard_path(out, shard)
    check_outputs(out, report, [tabular, *scans], artifact)
    dataset = dataset_of(scans[0]) if derivative is not None and scans[0].is_dir() else None
    if derivative is not None and dataset is None:
        raise ConfigError(f"--derivative {derivative}: {scans[0]} is no BIDS dataset")
    predictor = load(
        artifact,
        engine=engine,
        threads=threads,
        source=source,
        batch=batch,
        feature_cache=feature_cache,
        max_memory=max_memory,
    )
    # What is no file (a pipe) can be read once only.
    table_sha256 = sha256(tabular) if tabular.is_file() else ""
    cohort = predictor.gather(scans, tabular, id_column=id_column, on_duplicate=duplicates)
    cohort = _part(cohort, subjects, shard)
    _refuse_unmatched(cohort, unmatched_scans, unmatched_rows)
    if derivative is not None and dataset is not None:
        from hyperfusion_rt.runtime.outputs.bids_derivative import open_derivative, write_derivative

        open_derivative(derivative, predictor.manifest, dataset)
    identity = predictor.identity()
    columns = [column.name for column in predictor.manifest.members[0].columns]
    with Journal(
        journal_path(out),
        identity,
        artifact,
        columns,
        shard=shard,
        resume=resume,
        force=force,
    ) as journal:
        known = [journal.known(case) for case in cohort.cases]
        predictions = [item for item in known if item is not None]
        todo = [case for case, item in zip(cohort.cases, known, strict=True) if item is None]
        taken_over = len(predictions)
        if executor == "ray":
            from hyperfusion_rt.runtime.cohort.ray_executor import stream

            source_of = stream(predictor, todo, workers=workers, address=address)
        else:
            source_of = predictor.stream(todo)
        start = time.perf_counter()
        done, ending = _run(source_of, todo, journal, max_errors, taken_over, on_case)
        wall = time.perf_counter() - start
        predictions += done
        problems = cohort_problems(
            cohort,
            "ignore" if unmatched_scans == "ignore" else "list",
            "ignore" if unmatched_rows == "ignore" else "list",
        )
        notes = (*predictor.notes, *([journal.note] if journal.note else []))
        everything = sorted([*predictions, *problems], key=by_case)
        result = Result(
            predictor.manifest,
            predictor.engine,
            notes,
            everything,
            summarise(everything, wall),
            predictor.usage,
            taken_over,
            ending,
        )
        inputs = {
            "scans": [str(path.resolve()) for path in scans],
            "table": str(tabular.resolve()),
            "table_sha256": table_sha256,
            "cases": len(cohort.cases),
        }
        write_result(result, predictor.artifact, identity, out, report, inputs, started)
        if derivative is not None and dataset is not None:
            write_derivative(derivative, result.manifest, result.predictions, dataset)
        journal.end(ending, cohort.cases, problems, table_sha256)
    return result


def _part(cohort: Cohort, subjects: Sequence[str], shard: Shard | None) -> Cohort:
    """The subjects that are asked for, of this shard."""
    if subjects:
        cohort = restrict(cohort, subjects)
    if shard is None:
        return cohort
    index, count = shard

    def here(subject: str) -> bool:
        return shard_of(subject, count) == index

    return Cohort(
        [case for case in cohort.cases if here(case.subject)],
        [problem for problem in cohort.problems if here(problem.subject)],
    )


def _refuse_unmatched(cohort: Cohort, scans: Unmatched, rows: Unmatched) -> None:
    for policy, option, kind, of in (
        (scans, "--unmatched-scans", "scan-without-row", "scans have no row"),
        (rows, "--unmatched-rows", "row-without-scan", "rows have no scan"),
    ):
        found = [problem for problem in cohort.problems if problem.kind == kind]
        if policy == "fail" and found:
            raise CohortError(
                f"{len(found)} {of} and {option} is fail; the first: {found[0].subject} "
                f"({found[0].where})"
            )


def _run(
    stream: Iterator[Prediction],
    todo: Sequence[Case],
    journal: Journal,
    max_errors: int | None,
    before: int,
    on_case: Callable[[int, int], None] | None,
) -> tuple[list[Prediction], Ending]:
    """Write down every prediction as it comes; each case once, whatever the stream repeats."""
    left = {(case.subject, case.session): case for case in todo}
    done: list[Prediction] = []
    errors = 0
    ending: Ending = "finished"
    reason = f"{NOT_TRIED}: interrupted before this case"
    try:
        with closing(stream):  # type: ignore[type-var]
            for item in stream:
                case = left.get((item.subject, item.session))
                if case is None:
                    continue
                journal.append(case, item)
                done.append(item)
                del left[item.subject, item.session]
                if on_case is not None:
                    on_case(before + len(done), before + len(todo))
                errors += item.status == "error"
                if max_errors is not None and errors > max_errors and left:
                    ending = "stopped"
                    reason = f"{NOT_TRIED}: the run was stopped after {errors} failed cases"
                    break
    except KeyboardInterrupt:
        ending = "interrupted"
    done += [
        Prediction(case.subject, case.session, "error", reason, scan=case.scan)
        for case in left.values()
    ]
    return done, ending
