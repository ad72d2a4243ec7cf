"""What `hfrt infer` does: predict a cohort; write its journal, table, report and record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from hyperfusion_rt.artifact.manifest import Artifact, Manifest, only_artifact
from hyperfusion_rt.data.bids_dataset import dataset_of
from hyperfusion_rt.data.cohort import Case, Cohort, restrict
from hyperfusion_rt.errors import CohortError, ConfigError
from hyperfusion_rt.files import sha256
from hyperfusion_rt.runtime.cohort.explain import explain_image
from hyperfusion_rt.runtime.cohort.failures import mark_known
from hyperfusion_rt.runtime.cohort.journal import Ending, Journal, journal_path
from hyperfusion_rt.runtime.cohort.log import RunLog
from hyperfusion_rt.runtime.cohort.places import check_folder
from hyperfusion_rt.runtime.cohort.record import Outputs, Result
from hyperfusion_rt.runtime.cohort.shards import shard_of, shard_path
from hyperfusion_rt.runtime.cohort.subjects import Answers, Explain, SubjectReader
from hyperfusion_rt.runtime.explain.shapley import shapley
from hyperfusion_rt.runtime.explain.what_if import Curves
from hyperfusion_rt.runtime.options import CohortOptions, Shard
from hyperfusion_rt.runtime.outputs.bids_derivative import (
    check_labels,
    open_derivative,
    write_derivative,
)
from hyperfusion_rt.runtime.outputs.table import summarise
from hyperfusion_rt.runtime.pipeline import Stream, Usage
from hyperfusion_rt.runtime.prediction import Prediction, by_case, cohort_problems
from hyperfusion_rt.runtime.predictor import Predictor
from hyperfusion_rt.runtime.segmentation import LabelMaps

OnCase = Callable[[int, int], None]
# Rows that the report's Shapley values are measured against.
_BACKGROUND = 32


def infer(
    scans: Sequence[Path],
    tabular: Path | None = None,
    options: CohortOptions | None = None,
    *,
    on_case: OnCase | None = None,
) -> Result:
    """Predict the scans with their rows of `tabular`, which a network of images alone needs not.

    Writes the table (`options.out`), the report, and beside the table its journal (`.journal`), as
    cases are done, and a record of the run (`.run.json`); into `options.derivative` the same as a
    BIDS derivatives dataset of the one that `scans` names. With a `shard`, only its subjects, and
    the table gets its name. An interrupt (Ctrl-C) writes what is done; the rest are `not-tried`.

    Args:
        on_case: called with (done, all) after each case.

    Raises:
        HyperFusionError: nothing can be predicted, or nothing can be written.
    """
    options = options or CohortOptions()
    started = time.time()
    artifact = Artifact.open(options.artifact or only_artifact(Path()))
    outputs = Outputs(
        shard_path(options.out, options.shard),
        options.report,
        not options.no_ids_in_report,
        options.log_file,
        options.report_subjects,
    )
    inputs = [*filter(None, [tabular]), *scans]
    outputs.check(inputs, artifact.folder)
    derivative = Derivative.of(options.derivative, scans)
    maps = _label_maps(artifact.manifest, options)
    if maps is not None:
        check_folder(maps.folder, inputs, artifact.folder, name="label_maps")
    with RunLog(options.log_file) as log:
        predictor = Predictor(artifact, options, maps)
        reading = {**options.reading(), **predictor.rules}
        # What is no file (a pipe) can be read once only.
        table_sha256 = sha256(tabular) if tabular is not None and tabular.is_file() else ""
        cohort = predictor.gather(
            scans, tabular, id_column=options.id_column, on_duplicate=options.duplicates
        )
        cohort = _part(cohort, options.subjects, options.shard)
        _refuse_unmatched(cohort, options)
        if derivative is not None:
            derivative.open(predictor.manifest)
        if maps is not None:
            sessions: dict[str, dict[str | None, Case]] = {}
            for case in cohort.cases:
                sessions.setdefault(case.subject, {})[case.session] = case
            check_labels(sessions)
            maps.open(artifact.manifest.labels)
        manifest = predictor.manifest
        reader = SubjectReader(
            manifest,
            options.source,
            {(case.subject, case.session): case for case in cohort.cases},
            # One scan at a time, beside the engine, where memory is counted.
            1 if options.max_memory else predictor.threads,
            outputs.ids,
            _explain(predictor, options) if manifest.members[0].columns else None,
            options.feature_cache is not None,
            maps,
        )
        if options.source == "raw" and outputs.report is not None and options.report_subjects:
            predictor.watch(reader.kept.keep)
        with Journal(
            journal_path(outputs.table),
            predictor.identity(),
            artifact.folder,
            # The truth, too: a prediction that is taken over must stand beside today's.
            [*(c.name for c in manifest.members[0].columns), manifest.table.target],
            checks=json.dumps(predictor.rules),
            shard=options.shard,
            resume=options.resume,
            force=options.force,
        ) as journal:
            problems = cohort_problems(cohort, options.unmatched_scans, options.unmatched_rows)
            problems = mark_known(problems, [] if options.retry_failed else journal.record.told)
            result = _predict(predictor, cohort, problems, journal, log, options, on_case)
            record = {
                "options": options.model_dump(mode="json"),
                "inputs": {
                    "scans": [str(path.resolve()) for path in scans],
                    "table": str(tabular.resolve()) if tabular is not None else None,
                    "table_sha256": table_sha256,
                    "cases": len(cohort.cases),
                },
            }
            outputs.write(result, artifact, predictor.identity(), record, started, reader)
            if derivative is not None:
                derivative.write(result)
            journal.end(
                result.ending,
                cohort.cases,
                problems,
                table_sha256,
                known=[item for item in result.failed if item.known and item.scan],
                counts=result.counts,
                reading=reading,
            )
        log.ended(result.ending, result.counts)
    return result if not log.note else replace(result, notes=(*result.notes, log.note))


def _predict(
    predictor: Predictor,
    cohort: Cohort,
    problems: Sequence[Prediction],
    journal: Journal,
    log: RunLog,
    options: CohortOptions,
    on_case: OnCase | None,
) -> Result:
    """Predict what the journal does not know, and write it down as it comes.

    Args:
        problems: what could not be joined.
    """
    maps = predictor.label_maps
    known = [journal.known(case, failures=not options.retry_failed) for case in cohort.cases]
    if maps is not None:  # a prediction whose label map is gone is made again
        known = [item if item is None or maps.has(item) else None for item in known]
    before = [item for item in known if item is not None]
    todo = [case for case, item in zip(cohort.cases, known, strict=True) if item is None]
    older = frozenset((item.subject, item.session) for item in before if item.status == "ok")
    notes = (*predictor.notes, *([journal.note] if journal.note else []))
    log.started(
        predictor.artifact,
        predictor.engine,
        {
            "cases": len(cohort.cases),
            "taken_over": len(older),
            "known": sum(item.known for item in [*before, *problems]),
        },
        options.shard,
    )
    for note in notes:
        log.write("warning", "run-warning", note)
    for item in problems:
        if not item.known:
            log.case(item)
    start = time.perf_counter()
    stream = _stream(predictor, todo, options)
    done, ending = _run(stream, todo, journal, log, options.max_errors, len(before), on_case)
    wall = time.perf_counter() - start
    for note in predictor.notes:
        if note not in notes:  # of a worker
            log.write("warning", "run-warning", note)
            notes = (*notes, note)
    everything = sorted([*before, *done, *problems], key=by_case)
    return Result(
        predictor.manifest,
        predictor.engine,
        notes,
        everything,
        summarise(everything, wall),
        stream.usage if isinstance(stream, Stream) else Usage(),
        len(older),
        ending,
        cohort.notes,
        predictor.artifact,
        options.artifact is None,
        older,
        None if maps is None else maps.folder,
    )


def _label_maps(manifest: Manifest, options: CohortOptions) -> LabelMaps | None:
    """Where label maps are written; None of a network that does not segment.

    Raises:
        ConfigError: it does not, and they are asked for.
    """
    given = options.label_maps
    if manifest.labels:
        named = given or options.derivative
        return LabelMaps.beside(options.out) if named is None else LabelMaps(named)
    if given is not None:
        raise ConfigError(
            f"`label_maps` {given}: {manifest.name} answers {manifest.table.target}, and no label "
            "for every voxel; leave it out",
            code="artifact-segments",
        )
    return None


def _explain(predictor: Predictor, options: CohortOptions) -> Explain | None:
    """What the report asks of each subject that it shows; None where it asks nothing."""
    if options.explain == "none" or options.report is None or not options.report_subjects:
        return None
    return questions_of(predictor, image=options.explain == "image")


def questions_of(predictor: Predictor, *, image: bool = False) -> Explain | None:
    """What a report asks of a case: answers to other rows, what each cell adds, perhaps a map.

    None where the engine cannot be asked. The features of scans that are predicted from now on are
    kept. Raw scans are not registered again: only those are asked about whose features are there.
    """
    predictor.remember()
    if not predictor.network.splits:
        return None
    curves = Curves(predictor.manifest.members[0].columns)
    raw = predictor.options.source == "raw"

    def explain(case: Case) -> Answers:
        if raw and not predictor.remembers(case):
            return [], None, None
        question = predictor.question(case)
        reasons = None if question.summary is None else shapley(question, _BACKGROUND)
        found = explain_image(predictor, case) if image and not raw else None
        return curves.of(question), reasons, found

    return explain


@dataclass(frozen=True)
class Derivative:
    """The BIDS derivatives dataset `folder` that is written of the dataset `source`."""

    folder: Path
    source: Path

    @classmethod
    def of(cls, folder: Path | None, scans: Sequence[Path]) -> Derivative | None:
        """The dataset that holds the first of `scans`; None where no derivative is asked for.

        Raises:
            ConfigError: it is no BIDS dataset.
        """
        if folder is None:
            return None
        source = dataset_of(scans[0]) if scans[0].is_dir() else None
        if source is None:
            raise ConfigError(
                f"`derivative` {folder}: {scans[0]} is no BIDS dataset", code="bids-no-dataset"
            )
        return cls(folder, source)

    def open(self, manifest: Manifest) -> None:
        """Make the folder, or check that it is one of this artifact."""
        open_derivative(self.folder, manifest, self.source)

    def write(self, result: Result) -> None:
        """Write the predictions."""
        write_derivative(self.folder, result.manifest, result.predictions, self.source)


def _stream(
    predictor: Predictor, todo: Sequence[Case], options: CohortOptions
) -> Stream[Prediction] | Generator[Prediction, None, None]:
    """What becomes of the cases that are still to be done."""
    if options.executor == "local":
        return predictor.stream(todo)
    from hyperfusion_rt.runtime.cohort.ray_executor import stream

    return stream(predictor, todo, workers=options.workers, address=options.address)


def _part(cohort: Cohort, subjects: Sequence[str], shard: Shard | None) -> Cohort:
    """The subjects that are asked for, of this shard."""
    if subjects:
        cohort = restrict(cohort, subjects)
    if shard is None:
        return cohort
    index, count = shard

    def here(subject: str) -> bool:
        return shard_of(subject, count) == index

    return replace(
        cohort,
        cases=[case for case in cohort.cases if here(case.subject)],
        problems=[problem for problem in cohort.problems if here(problem.subject)],
    )


def _refuse_unmatched(cohort: Cohort, options: CohortOptions) -> None:
    for name, kind, of in (
        ("unmatched_scans", "scan-without-row", "scans have no row"),
        ("unmatched_rows", "row-without-scan", "rows have no scan"),
    ):
        found = [problem for problem in cohort.problems if problem.kind == kind]
        if getattr(options, name) == "fail" and found:
            raise CohortError(
                f"{len(found)} {of} and `{name}` is fail; the first: {found[0].subject} "
                f"({found[0].where})",
                code=kind,
            )


def _run(
    stream: Stream[Prediction] | Generator[Prediction, None, None],
    todo: Sequence[Case],
    journal: Journal,
    log: RunLog,
    max_errors: int | None,
    before: int,
    on_case: OnCase | None,
) -> tuple[list[Prediction], Ending]:
    """Write down every prediction as it comes; each case once, whatever the stream repeats."""
    left = {(case.subject, case.session): case for case in todo}
    done: list[Prediction] = []
    errors = 0
    ending: Ending = "finished"
    reason = "not tried: interrupted before this case"
    try:
        with closing(stream):
            for item in stream:
                case = left.get((item.subject, item.session))
                if case is None:
                    continue
                journal.append(case, item)
                log.case(item)
                done.append(item)
                del left[item.subject, item.session]
                if on_case is not None:
                    on_case(before + len(done), before + len(todo))
                errors += item.status == "error"
                if max_errors is not None and errors > max_errors and left:
                    ending = "stopped"
                    reason = f"not tried: the run was stopped after {errors} failed cases"
                    break
    except KeyboardInterrupt:
        ending = "interrupted"
    done += [
        Prediction(
            case.subject, case.session, "not-tried", reason, scan=case.scan, code="not-tried"
        )
        for case in left.values()
    ]
    return done, ending
