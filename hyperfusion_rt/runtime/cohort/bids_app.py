"""A BIDS App: `BIDS_DIR OUT participant|group`.

Beside the derivatives dataset (see `hyperfusion_rt.runtime.outputs.bids_derivative`) it writes

    logs/sub-XX/sub-XX[_ses-YY].json        what the group level reads, all bits
    group_report.html                       to look at
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hyperfusion_rt.artifact.manifest import Artifact, only_artifact
from hyperfusion_rt.data.bids_dataset import participants, subject_folders
from hyperfusion_rt.data.bids_filter import BidsFilter, read_filter
from hyperfusion_rt.data.bids_name import label_of
from hyperfusion_rt.data.cohort import Cohort, restrict
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_search import UNREADABLE, find_chosen, find_scans
from hyperfusion_rt.data.table_columns import read_table_for
from hyperfusion_rt.data.table_file import Table, normalise_id, suggest
from hyperfusion_rt.errors import CohortError, ConfigError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.machine import describe_machine
from hyperfusion_rt.runtime.cohort.bids_source import source_of
from hyperfusion_rt.runtime.cohort.infer import OnCase
from hyperfusion_rt.runtime.cohort.record import Result
from hyperfusion_rt.runtime.options import BidsOptions, Source
from hyperfusion_rt.runtime.outputs.bids_derivative import (
    RECORDS,
    REPORT,
    TABLE,
    below,
    check_labels,
    one_each,
    open_derivative,
    write_derivative,
    write_sessions,
)
from hyperfusion_rt.runtime.outputs.inference_page import inference_page
from hyperfusion_rt.runtime.outputs.table import summarise
from hyperfusion_rt.runtime.pipeline import Stream
from hyperfusion_rt.runtime.prediction import (
    Prediction,
    as_json,
    by_case,
    cohort_problems,
    from_json,
)
from hyperfusion_rt.runtime.predictor import Predictor
from hyperfusion_rt.runtime.segmentation import LabelMaps

Level = Literal["participant", "group"]


@dataclass(frozen=True)
class BidsResult:
    """What `bids_app` did.

    `result`: the predictions; at participant level those of this call, at group level all.
    `missing`: participants of the dataset (without `sub-`) that have no result in `out` yet.
    `source`: what the scans were taken for; None at group level.
    `table` and `report`: what the group level wrote.
    """

    result: Result
    out: Path
    missing: tuple[str, ...]
    table: Path | None = None
    report: Path | None = None
    source: Source | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.result.as_dict(),
            "out": str(self.out),
            "source": self.source,
            "missing": list(self.missing),
            "table": self.table and str(self.table),
            "report": self.report and str(self.report),
        }


def bids_app(
    bids_dir: Path,
    out: Path,
    level: Level,
    options: BidsOptions | None = None,
    *,
    on_case: OnCase | None = None,
) -> BidsResult:
    """Predict a BIDS dataset as a BIDS App does: `BIDS_DIR OUT participant|group`.

    `participant` predicts the labelled participants and sessions (by default all) and writes each
    participant's files as soon as she is done. Any number of such processes may share `out`, as
    long as no two have the same participant and session (where two have sessions of one, her table
    is whole after the group level). `group` predicts nothing: it collects what is there into the
    group's table and report.

    Without `source` in the options, scans are raw. They are registered where the dataset is a
    derivative, a scan's name says MNI space, `hfrt preprocess` made one, or the artifact reads
    other than one T1-weighted image.

    Args:
        options: at group level, its artifact is by default the one that was used.
        on_case: called with (done, all) after each case.

    Raises:
        ConfigError: no such dataset, table, participant or session; `out` holds something else;
            at group level: no result, or results of several artifacts.
        HyperFusionError: nothing can be predicted, or nothing can be written.
    """
    options = options or BidsOptions()
    if not (bids_dir.is_dir() and subject_folders(bids_dir)):
        raise ConfigError(
            f"{bids_dir}: is no BIDS dataset: there is no folder sub-* in it",
            code="bids-no-dataset",
        )
    participant_label, session_label = options.participant_label, options.session_label
    if level == "group":
        if participant_label or session_label:
            raise ConfigError(
                "the group level takes all participants that have a result: leave out "
                "`participant_label` and `session_label`",
                code="option-conflict",
            )
        known = participants(bids_dir, _table(bids_dir, options.tabular, needed=False))
        return _group(bids_dir, out, known, options.artifact)
    artifact = Artifact.open(options.artifact or only_artifact(Path()))
    needed = bool(artifact.manifest.members[0].columns)
    table = _table(bids_dir, options.tabular, needed=needed)
    known = participants(bids_dir, table)
    open_derivative(out, artifact.manifest, bids_dir)
    check_labels({subject: {} for subject in known})
    subjects = _labelled(participant_label, known, f"`participant_label`: {bids_dir}")
    choose = read_filter(options.bids_filter)
    searched = _folders(bids_dir, subjects, choose) if participant_label else [bids_dir]
    source, why = options.source, "as asked for"
    if source is None:
        source, why = source_of(bids_dir, searched, artifact.manifest, choose)
    maps = LabelMaps(out)
    maps.open(artifact.manifest.labels)
    predictor = Predictor(artifact, options.of_source(source), maps)
    reading = {**options.reading(), **predictor.rules}
    cohort, problems = _cohort(predictor, searched, table, subjects)
    if session_label:
        cohort, problems = _with_sessions(cohort, problems, session_label, bids_dir)
    start = time.perf_counter()
    predictions = [item for item in problems if not item.subject]
    stream = predictor.stream(cohort.cases)
    for subject, found in _by_participant(stream, cohort, problems, on_case):
        _write_participant(
            out, predictor, reading, subject, found, bids_dir, whole=not session_label
        )
        predictions += found
    predictions.sort(key=by_case)
    summary = summarise(predictions, time.perf_counter() - start)
    result = Result(
        predictor.manifest,
        predictor.engine,
        predictor.notes,
        predictions,
        summary,
        stream.usage,
        joined=(f"the scans are taken for {source}: {why}", *cohort.notes),
        artifact=artifact,
        by_default=options.artifact is None,
    )
    return BidsResult(result, out, _missing(out, known), source=source)


def _table(bids_dir: Path, given: Path | None, *, needed: bool) -> Table | None:
    """The participants' table; None where there is none and none is needed.

    Raises:
        ConfigError: the one that is named or needed is not there.
    """
    path = given or bids_dir / "participants.tsv"
    if not path.is_file():
        if given is None and not needed:
            return None
        raise ConfigError(
            f"{path}: no such table; name the participants' table with `tabular`",
            code="bids-no-dataset",
        )
    folders = [Scan(path, normalise_id(path.name)) for path in subject_folders(bids_dir)]
    # BIDS says how this column is called, whatever the table of the training had.
    return read_table_for(folders, path, id_column=None if given else "participant_id")


def _cohort(
    predictor: Predictor,
    folders: Sequence[Path],
    table: Table | None,
    subjects: Sequence[str],
) -> tuple[Cohort, list[Prediction]]:
    """The participants' cases, and what of them cannot be predicted."""
    path, id_column = (table.path, table.id_column) if table else (None, None)
    cohort = restrict(predictor.gather(folders, path, id_column=id_column), subjects)
    # `restrict` reports whom it finds nowhere; here these are participants with other data only.
    nothing = [problem for problem in cohort.problems if problem.source == "list"]
    cohort = replace(cohort, problems=[p for p in cohort.problems if p.source != "list"])
    reason = "neither a T1w scan nor a row of the table"
    skipped = [
        Prediction(item.subject, None, "skipped", reason, code=item.code) for item in nothing
    ]
    return cohort, [*cohort_problems(cohort), *skipped]


def _folders(bids_dir: Path, subjects: Sequence[str], choose: BidsFilter | None) -> list[Path]:
    """The participants' own folders, so that a large dataset is not searched for one of them."""
    folders = [bids_dir / f"sub-{subject}" for subject in subjects]
    try:
        found = find_chosen(folders, find_scans, choose)
        good = not any(scan.code in ("scan-name-conflict", UNREADABLE) for scan in found)
    except CohortError:
        good = False
    return folders if good else [bids_dir]


def _by_participant(
    stream: Stream[Prediction],
    cohort: Cohort,
    problems: Sequence[Prediction],
    on_case: OnCase | None,
) -> Iterator[tuple[str, list[Prediction]]]:
    """(participant, all her predictions), each as soon as she is done."""
    left = Counter(case.subject for case in cohort.cases)
    found: dict[str, list[Prediction]] = {}
    for item in problems:
        if item.subject:
            found.setdefault(item.subject, []).append(item)
    for subject in [subject for subject in found if subject not in left]:
        yield subject, found.pop(subject)
    with closing(stream):
        for done, item in enumerate(stream, 1):
            found.setdefault(item.subject, []).append(item)
            left[item.subject] -= 1
            if on_case is not None:
                on_case(done, len(cohort.cases))
            if left[item.subject] == 0:
                yield item.subject, sorted(found.pop(item.subject), key=by_case)


def _labelled(asked: Sequence[str], known: Sequence[str], where: str) -> list[str]:
    """The ids that are asked for, all if none is."""
    labels = list(dict.fromkeys(normalise_id(text) for text in asked)) or list(known)
    for label in labels:
        if label not in known:
            raise ConfigError(
                f"{where} has no {label!r}{suggest(label, known)}", code="bids-unknown-label"
            )
    return labels


def _with_sessions(
    cohort: Cohort, problems: Sequence[Prediction], asked: Sequence[str], bids_dir: Path
) -> tuple[Cohort, list[Prediction]]:
    known = {case.session for case in cohort.cases if case.session}
    known |= {item.session for item in problems if item.session}
    labels = _labelled(asked, sorted(known), f"`session_label`: of these participants, {bids_dir}")
    cases = [case for case in cohort.cases if case.session in labels]
    return replace(cohort, cases=cases, problems=[]), [
        item for item in problems if item.session in labels
    ]


def _group(bids_dir: Path, out: Path, known: Sequence[str], artifact: Path | None) -> BidsResult:
    paths = sorted((out / RECORDS).glob("sub-*/sub-*.json"))
    records = {path: _read(path) for path in paths}
    if not records:
        raise ConfigError(
            f"{out}: no participant has a result here; run the participant level first",
            code="bids-no-result",
        )
    path, first = next(iter(records.items()))
    for other, content in records.items():
        if content["identity"]["artifact"] != first["identity"]["artifact"]:
            raise ConfigError(
                f"{path} and {other}: made by different artifacts; run the participant level of "
                "one of them again, with the other's artifact",
                code="bids-other-dataset",
            )
    opened = Artifact.open(artifact or Path(first["artifact"]))
    if opened.manifest.checksum != first["identity"]["artifact"]:
        raise ConfigError(
            f"{opened.folder}: is not the artifact that made {path}", code="bids-other-dataset"
        )
    notes = {note: None for content in records.values() for note in content["notes"]}
    identities = [{**content["identity"]} for content in records.values()]
    for name in ("engine", "instruction_sets", "source", "version"):
        values = sorted({str(identity.get(name)) for identity in identities})
        if len(values) > 1:
            notes[f"not all of one {name.replace('_', ' ')}: {', '.join(values)}"] = None
    for name in ("map", "bids_filter", "scan_checks", "level", "refuse_ood"):
        told = sorted({_in_words(content.get(name)) for content in records.values()})
        if len(told) > 1:
            notes[f"not all of one {name}: {', '.join(told)}"] = None
    gone = {path.parent.name for path in records} - {f"sub-{label_of(name)}" for name in known}
    if gone:
        listed = ", ".join(sorted(gone))
        notes[f"results of participants that the dataset no longer has: {listed}"] = None
    predictions = [
        _placed(from_json(item), bids_dir)
        for content in records.values()
        for item in content["predictions"]
    ]
    predictions.sort(key=by_case)
    write_derivative(out, opened.manifest, predictions, bids_dir)
    engine = first["identity"]["engine"]
    result = Result(
        opened.manifest,
        engine,
        tuple(notes),
        predictions,
        summarise(predictions, 0.0),
        taken_over=sum(item.status == "ok" for item in predictions),
        artifact=opened,
    )
    missing = _missing(out, known)
    page = inference_page(
        opened.manifest, predictions, result.summary, engine, describe_machine(), tuple(notes)
    )
    page.heading("Participants without a result")
    page.text(", ".join(f"sub-{subject}" for subject in missing) or "None.")
    page.write(out / REPORT)
    return BidsResult(result, out, missing, out / TABLE, out / REPORT)


# ---- records: what a participant level leaves for the group level


def _in_words(told: str | Sequence[str] | None) -> str:
    return (told if isinstance(told, str) else " ".join(told or ())) or "none"


def _write_participant(
    out: Path,
    predictor: Predictor,
    reading: Mapping[str, Any],
    subject: str,
    predictions: Sequence[Prediction],
    bids_dir: Path,
    *,
    whole: bool,
) -> None:
    """A participant's records, and her table from all that she has.

    `reading`: how scans were chosen, the table was read (`ReadOptions.reading`) and answers were
    judged (`Predictor.rules`).
    `whole`: she has no sessions but these; else other sessions' records stay.
    """
    by_session: dict[str | None, list[Prediction]] = {}
    for item in predictions:
        by_session.setdefault(item.session, []).append(item)
    check_labels({subject: dict.fromkeys(by_session)})
    folder = _records(out, subject)
    written = set()
    for session, found in by_session.items():
        name = folder.name + (f"_ses-{label_of(session)}" if session else "")
        path = folder / f"{name}.json"
        content = {
            "artifact": str(predictor.artifact.folder.resolve()),
            "identity": predictor.identity(),
            "notes": list(predictor.notes),
            **reading,
            "predictions": [as_json(_relative(item, bids_dir)) for item in found],
        }
        write_text(path, json.dumps(content, indent=2) + "\n", private=True)
        written.add(path)
    everything = []
    for path in sorted(folder.glob("sub-*.json")):
        if whole and path not in written:
            path.unlink(missing_ok=True)
        else:
            everything += [from_json(item) for item in _read(path)["predictions"]]
    placed = [_placed(item, bids_dir) for item in everything]
    found_all = one_each(placed).get(subject, {})
    write_sessions(out, predictor.manifest, subject, found_all, bids_dir)


def _records(out: Path, subject: str) -> Path:
    return out / RECORDS / f"sub-{label_of(subject)}"


def _missing(out: Path, known: Iterable[str]) -> tuple[str, ...]:
    return tuple(s for s in known if not any(_records(out, s).glob("sub-*.json")))


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for item in content["predictions"]:
            from_json(item)
        if not {"artifact", "engine"} <= content["identity"].keys():
            raise ValueError("its identity is not complete")
        if not {"artifact", "notes"} <= content.keys():
            raise ValueError("it is not complete")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); delete it and run the "
            "participant level again for this participant",
            code="bids-no-result",
        ) from None
    return content


def _relative(item: Prediction, bids_dir: Path) -> Prediction:
    """With the scan's path in the dataset: the group level may see it at another place."""
    path = below(item.scan, bids_dir) if item.scan is not None else None
    return item if path is None else replace(item, scan=path)


def _placed(item: Prediction, bids_dir: Path) -> Prediction:
    return item if item.scan is None else replace(item, scan=bids_dir / item.scan)
