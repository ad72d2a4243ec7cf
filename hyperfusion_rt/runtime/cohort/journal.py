"""What a run has done, one line of JSON each, so that nothing is lost when it is killed.

    {"journal": 1, "identity": {...}, "artifact": PATH, "shard": [i, n]}
    {"start": {"host": ..., "pid": ..., "time": ...}}         one per run that wrote here
    {"case": {...}, "row": HASH}
    {"end": {"status": "finished", "cases": [[subject, session], ...], "problems": [...], ...}}

A line is one write, after each case; at least once a second they are forced to the disk. What a
kill leaves of a last line is dropped when the run is resumed. A prediction is taken over when the
identity (artifact, engine, code, instruction sets), the scan (path and stamp, taken before it was
read) and the row are the same. So is a failure, if it lasts (`failures.lasts`) and the run that met
it came to its end: what a killed run met, nobody was told. While a run writes it holds a lock,
which ends with it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.files import PRIVATE, stamp_of
from hyperfusion_rt.runtime.cohort.failures import again, lasts
from hyperfusion_rt.runtime.options import Shard
from hyperfusion_rt.runtime.prediction import Prediction, as_json, from_json

SUFFIX = ".journal"
_VERSION = 1
_SYNC_SECONDS = 1.0
Ending = Literal["finished", "stopped", "interrupted"]


def journal_path(out: Path) -> Path:
    """The journal of the table `out`: beside it."""
    return out.with_name(out.name + SUFFIX)


def row_hash(case: Case, columns: Sequence[str], checks: str = "") -> str:
    """A hash of the cells of the case's row that the network reads, and of the case's warnings.

    The cells count as a map has read them, and the columns that they stand in: a case whose cells
    mean the same under another map is the same.

    `checks`: by which rules answers are judged (`Predictor.rules`): how strictly scans are checked,
    the level of sets and intervals, whether scans unlike the training's are refused.
    """
    cells = [case.row.values.get(name) for name in columns]
    sources = [[name, case.row.sources[name]] for name in columns if name in case.row.sources]
    text = json.dumps([*cells, *case.warnings, checks, sources])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class JournalContent:
    """The content of a journal.

    `untold`: the cases that were written after the last end; `told`: what could not be joined in
    the last run that came to an end.
    """

    identity: dict[str, str]
    artifact: str
    shard: Shard | None
    cases: dict[tuple[str, str | None], dict[str, Any]] = field(default_factory=dict)
    end: dict[str, Any] | None = None  # of the last run, None if it was killed
    untold: set[tuple[str, str | None]] = field(default_factory=set)
    told: list[Prediction] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the last run came to its end."""
        return self.end is not None and self.end["status"] == "finished"

    @property
    def predictions(self) -> list[Prediction]:
        """Of the cases of the last run, or of all if it did not come to its end; no problems."""
        cases, known = self.cases, set()
        if self.end is not None:
            listed = {(subject, session) for subject, session in self.end["cases"]}
            cases = {key: line for key, line in cases.items() if key in listed}
            known = {(subject, session) for subject, session in self.end.get("known", [])}
        found = {key: from_json(line["case"]) for key, line in cases.items()}
        return [replace(item, known=key in known) for key, item in found.items()]

    @property
    def problems(self) -> list[Prediction]:
        """What could not be joined, as the last run found it."""
        return [from_json(item) for item in (self.end or {}).get("problems", [])]


def read_journal(path: Path) -> JournalContent | None:
    """What is in a journal; None where there is none, or one without its first line.

    Raises:
        HyperFusionError: not a journal, or of another version.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[JournalContent | None, int]:
    """The record, and the length of the journal's whole lines in bytes."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None, 0
    except OSError as error:
        raise HyperFusionError(
            f"{path}: cannot be read: {error.strerror or error}", code="journal-damaged"
        ) from None
    size = content.rfind(b"\n") + 1
    lines = content[:size].splitlines()
    if not lines:
        return None, 0
    try:
        head = json.loads(lines[0])
        version = head["journal"]
        record = JournalContent(
            head["identity"], head["artifact"], head["shard"] and tuple(head["shard"])
        )
    except (ValueError, KeyError, TypeError):
        raise HyperFusionError(
            f"{path}: is not a journal of hfrt infer, or its first line is damaged; move it away",
            code="journal-damaged",
        ) from None
    if version != _VERSION:
        raise HyperFusionError(
            f"{path}: of version {version}, not {_VERSION}; move it away", code="journal-damaged"
        )
    for text in lines[1:]:
        # A line that the disk has spoilt costs its case, which is predicted again.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            line = json.loads(text)
            if "case" in line:
                key = (line["case"]["subject"], line["case"]["session"])
                from_json(line["case"])
                record.cases[key] = {"case": line["case"], "row": line["row"]}
                record.untold.add(key)
            elif "start" in line:
                record.end = None
            elif "end" in line:
                record.end = line["end"]
                record.untold.clear()
                record.told = record.problems
    return record, size


class Journal:
    """An open journal. Use it as a context manager: leaving it gives the lock back.

    Args:
        path: the file.
        identity: what the numbers depend on besides scan and row; see `Predictor.identity`.
        artifact: its folder.
        columns: the table's columns that the network reads.
        checks: by which rules answers are judged; see `row_hash`.
        resume: take over what is there; otherwise begin anew.
        force: begin anew even if the run before did not finish.

    Raises:
        ConfigError: the run before did not finish and neither was asked for, or it had another
            identity; another process writes here.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, str],
        artifact: Path,
        columns: Sequence[str],
        *,
        checks: str = "",
        shard: Shard | None = None,
        resume: bool = False,
        force: bool = False,
    ) -> None:
        self.path = path
        self._columns, self._checks = columns, checks
        self._synced = time.monotonic()
        self.note = ""  # what a user should know of the run before
        self.record = JournalContent(identity, str(artifact.resolve()), shard)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, PRIVATE)
        except OSError as error:
            raise self._error(error) from None
        try:
            self._lock()
            self._begin(identity, shard, resume, force)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def known(self, case: Case, *, failures: bool = True) -> Prediction | None:
        """The prediction of the same scan with the same row, if the journal has it.

        `failures`: or why there is none, if that lasts; such a prediction is `known`.
        """
        key = case.subject, case.session
        line = self.record.cases.get(key)
        if line is None or not (
            line["case"]["scan"] == str(case.scan)
            and line["case"]["stamp"] == stamp_of(case.files)
            and line["row"] == row_hash(case, self._columns, self._checks)
        ):
            return None
        found = from_json(line["case"])
        if found.status == "ok":
            return found
        told = failures and key not in self.record.untold
        return again(found, case.row.line) if told and lasts(found.code) else None

    def append(self, case: Case, prediction: Prediction) -> None:
        """Write one case down.

        Raises:
            HyperFusionError: the disk is full, or the file cannot be written.
        """
        row = row_hash(case, self._columns, self._checks)
        line = {"case": as_json(prediction), "row": row}
        self._write(line)
        self.record.cases[(case.subject, case.session)] = line

    def end(
        self,
        status: Ending,
        cases: Sequence[Case],
        problems: Sequence[Prediction],
        table: str,
        known: Sequence[Prediction] = (),
        counts: Mapping[str, int] | None = None,
        reading: Mapping[str, Any] | None = None,
    ) -> None:
        """Write down that the run is over: its cases, what could not be joined, its table.

        Args:
            reading: how scans were chosen, the table was read (`ReadOptions.reading`) and answers
                were judged; shards that were told otherwise are not of one run.
            known: the cases that failed before and have not changed.
            counts: how many of which kind the table has; see `outputs.table.COUNTS`.
        """
        end = {
            "status": status,
            "cases": [(case.subject, case.session) for case in cases],
            "known": [(item.subject, item.session) for item in known],
            "problems": [as_json(problem) for problem in problems],
            "table": table,
            "counts": counts or {},
            **(reading or {}),
        }
        self._write({"end": end}, sync=True)

    def _begin(
        self, identity: dict[str, str], shard: Shard | None, resume: bool, force: bool
    ) -> None:
        found, size = (None, 0) if force else _read(self.path)
        if found is not None and found.cases and not (found.finished or resume):
            raise ConfigError(
                f"{self.path}: the run before did not finish ({len(found.cases)} cases are "
                "done): continue it with `resume`, or begin anew with `force`",
                code="journal-unfinished",
            )
        differ: list[str] = []
        if found is not None and resume:
            differ = [name for name in identity if found.identity.get(name) != identity[name]]
            differ += ["shard"] if found.shard != shard else []
            if differ and found.cases:
                raise ConfigError(
                    f"{self.path}: the run before had another {', '.join(differ)}: its numbers "
                    "cannot stand beside new ones; begin anew with `force`, or choose another "
                    "`out`",
                    code="journal-of-another-run",
                )
        if found is not None and resume and not differ and (found.cases or found.told):
            if found.end is None and found.cases:
                self.note = (
                    f"the run before ended without a word (killed, out of memory, or the machine "
                    f"stopped) after {len(found.cases)} cases; they are kept"
                )
            self.record = found
            os.ftruncate(self._file, size)
        else:
            os.ftruncate(self._file, 0)
            head = {
                "journal": _VERSION,
                "identity": identity,
                "artifact": self.record.artifact,
                "shard": shard,
            }
            self._write(head)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        start = {"host": platform.node(), "pid": os.getpid(), "time": now}
        self._write({"start": start}, sync=True)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network file systems have no locks: then nothing can be told.
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ConfigError(
                    f"{self.path}: another hfrt infer writes here; wait for it, or choose another "
                    "`out`",
                    code="journal-locked",
                ) from None

    def _write(self, line: dict[str, Any], *, sync: bool = False) -> None:
        data = (json.dumps(line, separators=(",", ":")) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
            if sync or time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> HyperFusionError:
        text = f"{self.path}: cannot be written: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            text += "; what it holds is kept and the table is unchanged: make room, then continue "
            text += "with `resume`"
        return HyperFusionError(text, code="output-cannot-be-written")
