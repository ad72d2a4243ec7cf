"""What `hfrt infer` and `hfrt merge` do: predict a cohort; write journal, table, report, record."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import hyperfusion_rt
from hyperfusion_rt.data.bids import dataset_of
from hyperfusion_rt.data.cohort import Case, Cohort, restrict
from hyperfusion_rt.data.volumes import SUFFIXES
from hyperfusion_rt.errors import CohortError, ConfigError
from hyperfusion_rt.files import sha256, write_text
from hyperfusion_rt.machine import describe_machine
from hyperfusion_rt.runtime.artifact import Artifact, Manifest, latest_artifact
from hyperfusion_rt.runtime.identity import versions
from hyperfusion_rt.runtime.journal import (
    SUFFIX,
    Ending,
    Journal,
    Record,
    Shard,
    journal_path,
    read_journal,
)
from hyperfusion_rt.runtime.output import check_format, record, summarise, write_predictions
from hyperfusion_rt.runtime.pipeline import Usage
from hyperfusion_rt.runtime.predictor import (
    Prediction,
    Source,
    by_case,
    cohort_problems,
    load,
)
from hyperfusion_rt.runtime.report import inference_page

Unmatched = Literal["list", "ignore", "fail"]
Executor = Literal["local", "ray"]
_NOT_TRIED = "not tried"


@dataclass(frozen=True)
class Result:
    """The predictions of a cohort and their summary.

    `taken_over`: how many are of an earlier run. `ending`: `finished`; `stopped` by `max_errors`;
    `interrupted`.
    """

    manifest: Manifest
    engine: str
    notes: tuple[str, ...]
    predictions: list[Prediction]
    summary: dict[str, Any]
    usage: Usage = field(default_factory=Usage)
    taken_over: int = 0
    ending: Ending = "finished"

    @property
    def failed(self) -> list[Prediction]:
        """The cases that have no prediction though they have a scan; those not tried come last."""
        found = [item for item in self.predictions if item.status == "error"]
        return sorted(found, key=lambda item: item.reason.startswith(_NOT_TRIED))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [record(self.manifest, item) for item in self.predictions]
        return {
            "engine": self.engine,
            "notes": list(self.notes),
            "ending": self.ending,
            "taken_over": self.taken_over,
            "summary": self.summary,
            "usage": self.usage.as_dict(),
            "predictions": rows,
        }


def _check_outputs(out: Path, report: Path | None, inputs: Sequence[Path], artifact: Path) -> None:
    """Refuse an output that cannot be, or would replace an input, the artifact, another output."""
    taken = {path.resolve() for path in inputs}
    beside = {path.resolve() for path in (out, journal_path(out), _record_path(out))}
    for option, path in (("--out", out), ("--report", report)):
        if path is None:
            continue
        place = path.resolve()
        if path.is_dir():
            raise ConfigError(f"{option} {path}: is a folder; name a file")
        in_artifact = artifact.resolve() in (place, *place.parents)
        if place in taken or in_artifact or place.name.endswith(SUFFIXES):
            raise ConfigError(
                f"{option} {path}: would write over what is read; choose another name"
            )
    if report is not None and report.resolve() in beside:
        raise ConfigError(f"--report {report}: is --out, or of it; choose another name")
    check_format(out)


def shard_of(subject: str, count: int) -> int:
    """The shard, 1 to `count`, of a subject: the same whatever else is in the cohort."""
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") % count + 1


def shard_path(path: Path, shard: Shard | None) -> Path:
    """`predictions.shard-2-of-8.csv` for `predictions.csv`."""
    if shard is None:
        return path
    return path.with_name(f"{path.stem}.shard-{shard[0]}-of-{shard[1]}{path.suffix}")


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
    _check_outputs(out, report, [tabular, *scans], artifact)
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
        from hyperfusion_rt.runtime.bids import open_derivative, write_derivative

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
            from hyperfusion_rt.runtime.ray_executor import stream

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
        _write(result, predictor.artifact, identity, out, report, inputs, started)
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
    reason = f"{_NOT_TRIED}: interrupted before this case"
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
                    reason = f"{_NOT_TRIED}: the run was stopped after {errors} failed cases"
                    break
    except KeyboardInterrupt:
        ending = "interrupted"
    done += [
        Prediction(case.subject, case.session, "error", reason, scan=case.scan)
        for case in left.values()
    ]
    return done, ending


def merge(
    shards: Iterable[Path],
    *,
    artifact: Path | None = None,
    out: Path = Path("predictions.csv"),
    report: Path | None = None,
) -> Result:
    """Join the tables of all shards of a run (`hfrt infer --shard`), from their journals.

    `shards`: the shards' tables, their journals, or folders that hold them. Nothing is merged
    unless every shard is there, finished, and of the same artifact and engine.

    Raises:
        ConfigError: one is missing, unfinished, of another run, or given twice.
    """
    started = time.time()
    records = _read_shards(shards)
    first = next(iter(records.values()))[1]
    opened = Artifact.open(artifact or Path(first.artifact))
    journals = [path for path, _ in records.values()]
    tables = [path.with_name(path.name.removesuffix(SUFFIX)) for path in journals]
    _check_outputs(out, report, [*journals, *tables], opened.folder)
    if opened.manifest.checksum != first.identity["artifact"]:
        raise ConfigError(f"{opened.folder}: is not the artifact that made these shards")
    predictions: dict[tuple[str, str | None], Prediction] = {}
    problems: list[Prediction] = []
    for path, found in records.values():
        for item in found.predictions:
            key = (item.subject, item.session)
            if key in predictions:
                raise ConfigError(f"{path}: {item.subject} is in another shard, too")
            predictions[key] = item
        problems += found.problems
    everything = sorted([*predictions.values(), *problems], key=by_case)
    result = Result(
        opened.manifest,
        first.identity["engine"],
        (),
        everything,
        summarise(everything, 0.0),
        taken_over=len(predictions),
    )
    inputs = {"shards": [str(path.resolve()) for path, _ in records.values()]}
    _write(result, opened, first.identity, out, report, inputs, started)
    return result


def _read_shards(given: Iterable[Path]) -> dict[int, tuple[Path, Record]]:
    """The shards' journals by their number, checked."""
    paths: dict[Path, None] = {}
    for path in given:
        if path.is_dir():
            found = sorted(path.glob("*.shard-*-of-*.journal"))
            if not found:
                raise ConfigError(f"{path}: holds no journal of a shard (*.shard-*-of-*.journal)")
            paths |= dict.fromkeys(found)
        else:
            paths[path if path.name.endswith(".journal") else journal_path(path)] = None
    records: dict[int, tuple[Path, Record]] = {}
    for path in paths:
        content = read_journal(path)
        if content is None:
            raise ConfigError(f"{path}: is not there, or empty; give the shards' tables")
        if content.shard is None:
            raise ConfigError(f"{path}: is of a whole run, not of a shard")
        index, count = content.shard
        if not content.finished:
            raise ConfigError(
                f"{path}: shard {index}/{count} has not finished ({len(content.cases)} cases are "
                f"done); continue it with 'hfrt infer ... --shard {index}/{count} --resume'"
            )
        if index in records:
            raise ConfigError(f"{path}: shard {index}/{count} is given twice: {records[index][0]}")
        for other, known in records.values():
            differ = [n for n in known.identity if content.identity.get(n) != known.identity[n]]
            if known.shard is not None and known.shard[1] != count:
                differ.append("number of shards")
            if known.end and content.end and known.end.get("table") != content.end.get("table"):
                differ.append("table")
            if differ:
                raise ConfigError(
                    f"{path} and {other}: not of one run, they have another {', '.join(differ)}; "
                    "run the older one again"
                )
        records[index] = path, content
    if not records:
        raise ConfigError("no shard is given")
    count = next(r.shard[1] for _, r in records.values() if r.shard)
    missing = [str(n) for n in range(1, count + 1) if n not in records]
    if missing:
        raise ConfigError(f"of {count} shards, {', '.join(missing)} is missing")
    return records


def _record_path(out: Path) -> Path:
    return out.with_name(out.name + ".run.json")


def _write(
    result: Result,
    artifact: Artifact,
    identity: dict[str, str],
    out: Path,
    report: Path | None,
    inputs: dict[str, Any],
    started: float,
) -> None:
    """The table, the report, and the record of the run."""
    write_predictions(out, result.manifest, result.predictions)
    if report is not None:
        inference_page(
            result.manifest,
            result.predictions,
            result.summary,
            result.engine,
            describe_machine(),
            result.notes,
        ).write(report)
    now = time.time()
    content = {
        "program": f"hyperfusion_rt {hyperfusion_rt.__version__}",
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "started": _utc(started),
        "finished": _utc(now),
        "seconds": now - started,
        "ending": result.ending,
        "artifact": {"folder": str(artifact.folder.resolve()), "name": artifact.manifest.name},
        "identity": identity,
        "inputs": inputs,
        "output": {"path": str(out.resolve()), "sha256": sha256(out)},
        "counts": {name: result.summary[name] for name in ("ok", "error", "skipped")},
        "taken_over": result.taken_over,
        "usage": result.usage.as_dict(),
        "notes": list(result.notes),
        "host": platform.node(),
        "machine": describe_machine(),
        "packages": versions(),
    }
    write_text(_record_path(out), json.dumps(content, indent=2) + "\n")


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
