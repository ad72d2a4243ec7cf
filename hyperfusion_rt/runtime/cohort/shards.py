"""Shards: a part of the subjects for each process, and their results joined again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.machine import usable_cores
from hyperfusion_rt.runtime.cohort.journal import (
    SUFFIX,
    JournalContent,
    journal_path,
    read_journal,
)
from hyperfusion_rt.runtime.cohort.record import Outputs, Result
from hyperfusion_rt.runtime.cohort.subjects import SubjectReader
from hyperfusion_rt.runtime.options import MergeOptions, Shard
from hyperfusion_rt.runtime.outputs.table import summarise
from hyperfusion_rt.runtime.prediction import Prediction, by_case
from hyperfusion_rt.runtime.segmentation import LabelMaps


def shard_of(subject: str, count: int) -> int:
    """The shard, 1 to `count`, of a subject: the same whatever else is in the cohort."""
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") % count + 1


def shard_path(path: Path, shard: Shard | None) -> Path:
    """`predictions.shard-2-of-8.csv` for `predictions.csv`."""
    if shard is None:
        return path
    return path.with_name(f"{path.stem}.shard-{shard[0]}-of-{shard[1]}{path.suffix}")


def merge(shards: Iterable[Path], options: MergeOptions | None = None) -> Result:
    """Join the tables of all shards of a run (`CohortOptions.shard`), from their journals.

    `shards`: the shards' tables, their journals, or folders that hold them. Nothing is merged
    unless every shard is there, finished, and of the same artifact and engine.

    Raises:
        ConfigError: one is missing, unfinished, of another run, or given twice.
    """
    options = options or MergeOptions()
    started = time.time()
    records = _read_shards(shards)
    first = next(iter(records.values()))[1]
    opened = Artifact.open(options.artifact or Path(first.artifact))
    journals = [path for path, _ in records.values()]
    tables = [path.with_name(path.name.removesuffix(SUFFIX)) for path in journals]
    outputs = Outputs(
        options.out,
        options.report,
        not options.no_ids_in_report,
        subjects=options.report_subjects,
    )
    outputs.check([*journals, *tables], opened.folder)
    if opened.manifest.checksum != first.identity["artifact"]:
        raise ConfigError(
            f"{opened.folder}: is not the artifact that made these shards",
            code="shard-of-another-run",
        )
    predictions: dict[tuple[str, str | None], Prediction] = {}
    problems: list[Prediction] = []
    for path, found in records.values():
        for item in found.predictions:
            key = (item.subject, item.session)
            if key in predictions:
                raise ConfigError(
                    f"{path}: {item.subject} is in another shard, too", code="shard-of-another-run"
                )
            predictions[key] = item
        problems += found.problems
    everything = sorted([*predictions.values(), *problems], key=by_case)
    result = Result(
        opened.manifest,
        first.identity["engine"],
        (),
        everything,
        summarise(everything, 0.0),
        taken_over=sum(item.status == "ok" for item in predictions.values()),
        artifact=opened,
    )
    inputs = {"shards": [str(path.resolve()) for path, _ in records.values()]}
    # The rows are not in the journals, and raw scans are not registered again.
    reader = None
    if first.identity["source"] == "registered":
        maps = LabelMaps.beside(options.out)
        reader = SubjectReader(
            opened.manifest,
            "registered",
            {},
            usable_cores(),
            not options.no_ids_in_report,
            label_maps=maps if opened.manifest.labels and maps.folder.is_dir() else None,
        )
    outputs.write(result, opened, first.identity, {"inputs": inputs}, started, reader)
    return result


def _read_shards(given: Iterable[Path]) -> dict[int, tuple[Path, JournalContent]]:
    """The shards' journals by their number, checked."""
    paths: dict[Path, None] = {}
    for path in given:
        if path.is_dir():
            found = sorted(path.glob("*.shard-*-of-*.journal"))
            if not found:
                raise ConfigError(
                    f"{path}: holds no journal of a shard (*.shard-*-of-*.journal)",
                    code="shard-missing",
                )
            paths |= dict.fromkeys(found)
        else:
            paths[path if path.name.endswith(".journal") else journal_path(path)] = None
    records: dict[int, tuple[Path, JournalContent]] = {}
    for path in paths:
        content = read_journal(path)
        if content is None:
            raise ConfigError(
                f"{path}: is not there, or empty; give the shards' tables", code="shard-missing"
            )
        if content.shard is None:
            raise ConfigError(
                f"{path}: is of a whole run, not of a shard", code="shard-of-another-run"
            )
        index, count = content.shard
        if not content.finished:
            raise ConfigError(
                f"{path}: shard {index}/{count} has not finished ({len(content.cases)} cases are "
                f"done); continue it with 'hfrt infer ... `shard` {index}/{count} `resume`'",
                code="shard-missing",
            )
        if index in records:
            raise ConfigError(
                f"{path}: shard {index}/{count} is given twice: {records[index][0]}",
                code="shard-of-another-run",
            )
        for other, known in records.values():
            differ = [n for n in known.identity if content.identity.get(n) != known.identity[n]]
            if known.shard is not None and known.shard[1] != count:
                differ.append("number of shards")
            for name in ("table", "map", "bids_filter", "scan_checks", "level", "refuse_ood"):
                if known.end and content.end and known.end.get(name) != content.end.get(name):
                    differ.append(name)
            if differ:
                raise ConfigError(
                    f"{path} and {other}: not of one run, they have another {', '.join(differ)}; "
                    "run the older one again",
                    code="shard-of-another-run",
                )
        records[index] = path, content
    if not records:
        raise ConfigError("no shard is given", code="shard-missing")
    count = next(r.shard[1] for _, r in records.values() if r.shard)
    missing = [str(n) for n in range(1, count + 1) if n not in records]
    if missing:
        raise ConfigError(
            f"of {count} shards, {', '.join(missing)} is missing", code="shard-missing"
        )
    return records
