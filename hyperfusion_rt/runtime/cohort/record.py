"""The result of a cohort, and what is written of it: table, report, record of the run."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import hyperfusion_rt
from hyperfusion_rt.artifact.manifest import Artifact, Manifest
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.files import sha256, write_text
from hyperfusion_rt.machine import describe_machine
from hyperfusion_rt.runtime.cohort.journal import (
    Ending,
    journal_path,
)
from hyperfusion_rt.runtime.cohort.places import check_file
from hyperfusion_rt.runtime.cohort.report import ReportWriter, check_folder
from hyperfusion_rt.runtime.cohort.subjects import SubjectReader
from hyperfusion_rt.runtime.evaluation import Agreement, agreement, certainty_lines, seen_text
from hyperfusion_rt.runtime.identity import versions
from hyperfusion_rt.runtime.outputs.table import COUNTS, check_format, record, write_predictions
from hyperfusion_rt.runtime.pipeline import Usage
from hyperfusion_rt.runtime.prediction import Prediction


@dataclass(frozen=True)
class Result:
    """The predictions of a cohort and their summary.

    `taken_over`: how many predictions are of an earlier run. `ending`: `finished`; `stopped` by
    `max_errors`; `interrupted`. `joined`: which columns were taken for what, how many scans have a
    row. `artifact`: that was used; `by_default`: the only one that was there, and not named.
    `older`: subjects and sessions that an earlier run had predicted. `label_maps`: the folder that
    has them.
    """

    manifest: Manifest
    engine: str
    notes: tuple[str, ...]
    predictions: list[Prediction]
    summary: dict[str, Any]
    usage: Usage = field(default_factory=Usage)
    taken_over: int = 0
    ending: Ending = "finished"
    joined: tuple[str, ...] = ()
    artifact: Artifact | None = None
    by_default: bool = False
    older: frozenset[tuple[str, str | None]] = frozenset()
    label_maps: Path | None = None

    @property
    def failed(self) -> list[Prediction]:
        """The cases that failed."""
        return [item for item in self.predictions if item.status == "error"]

    @property
    def new(self) -> list[Prediction]:
        """Those of them that alarm: that failed now, not only before."""
        return [item for item in self.failed if not item.known]

    @property
    def counts(self) -> dict[str, int]:
        """How many rows of which kind; see `outputs.table.COUNTS`."""
        return {name: self.summary[name] for name in COUNTS}

    @cached_property
    def agreement(self) -> Agreement | None:
        """How the predictions go with the truth; None where the table does not have it."""
        return agreement(self.manifest, self.predictions)

    @property
    def remarks(self) -> list[str]:
        """What else is to be said of the predictions: seen in training, how sure, how right."""
        found = [text for text in (seen_text(self.predictions),) if text]
        found += certainty_lines(self.manifest, self.predictions)
        if self.agreement is not None:
            found += self.agreement.lines
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON. A row has what the table has, and whether its failure is known."""
        truth = {} if self.agreement is None else {"truth": asdict(self.agreement)}
        rows = [{**record(self.manifest, p), "known": p.known} for p in self.predictions]
        return {
            "artifact": None if self.artifact is None else _artifact(self.artifact),
            "engine": self.engine,
            "notes": list(self.notes),
            "joined": list(self.joined),
            "ending": self.ending,
            "taken_over": self.taken_over,
            "summary": self.summary,
            "usage": self.usage.as_dict(),
            **({} if self.label_maps is None else {"label_maps": str(self.label_maps)}),
            **truth,
            "predictions": rows,
        }


@dataclass(frozen=True)
class Outputs:
    """The files of one run: the table, beside it the journal and the record; report and log.

    `ids`: whether the report names subjects; `subjects`: how many it shows one by one.
    """

    table: Path
    report: Path | None
    ids: bool = True
    log: Path | None = None
    subjects: int = 0

    @property
    def record(self) -> Path:
        """The record of the run that made the table: beside it."""
        return self.table.with_name(self.table.name + ".run.json")

    def check(self, inputs: Sequence[Path], artifact: Path) -> None:
        """Before the work: refuse a file that cannot be, or would replace what is read.

        Raises:
            ConfigError: a folder, an input, a scan, part of the artifact or another output.
        """
        beside = {path.resolve() for path in (self.table, journal_path(self.table), self.record)}
        named = {"out": self.table, "report": self.report, "log_file": self.log}
        for name, path in named.items():
            if path is None:
                continue
            check_file(name, path, inputs, artifact)
            place = path.resolve()
            if name != "out" and place in beside:
                raise ConfigError(
                    f"`{name}` {path}: is `out`, or of it, or the report; choose another name",
                    code="output-wrong-name",
                )
            beside.add(place)
        check_format(self.table)
        if self.report is not None:
            check_folder(self.report)

    def write(
        self,
        result: Result,
        artifact: Artifact,
        identity: dict[str, str],
        about: dict[str, Any],
        started: float,
        reader: SubjectReader | None = None,
    ) -> None:
        """Write the table, the report, and the record of the run.

        Args:
            about: what else the record holds: inputs, options.
            started: seconds since 1970.
            reader: makes the subjects of the report, one by one.
        """
        write_predictions(self.table, result.manifest, result.predictions)
        if self.report is not None:
            ReportWriter(self.report, self.ids, self.subjects, reader).write(result)
        now = time.time()
        content = {
            "program": f"hyperfusion_rt {hyperfusion_rt.__version__}",
            "command": sys.argv,
            "folder": _folder(),
            "started": _utc(started),
            "finished": _utc(now),
            "seconds": now - started,
            "ending": result.ending,
            "artifact": _artifact(artifact),
            "identity": identity,
            **about,
            "output": {"path": str(self.table.resolve()), "sha256": sha256(self.table)},
            "counts": result.counts,
            "taken_over": result.taken_over,
            "usage": result.usage.as_dict(),
            "notes": list(result.notes),
            "joined": list(result.joined),
            "host": platform.node(),
            "machine": describe_machine(),
            "packages": versions(),
        }
        write_text(self.record, json.dumps(content, indent=2) + "\n", private=True)


def _artifact(artifact: Artifact) -> dict[str, str]:
    manifest = artifact.manifest
    return {
        "folder": str(artifact.folder.resolve()),
        "name": manifest.name,
        "checksum": manifest.checksum,
    }


def _folder() -> str | None:
    """The working folder; None where it was deleted in the meantime."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
