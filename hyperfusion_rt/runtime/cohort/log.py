"""The log of a run: what happened and when, one JSON object a line, appended.

{"time": "2026-11-28T01:00:07Z", "level": "error", "code": "scan-truncated", "subject": "S7", ...}
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.files import PRIVATE, shown
from hyperfusion_rt.runtime.options import Shard
from hyperfusion_rt.runtime.outputs.table import in_words
from hyperfusion_rt.runtime.prediction import Prediction

Level = Literal["info", "warning", "error", "critical"]
_FIRST = b'{"time":'  # how every line begins


class RunLog:
    """An open log. Use it as a context manager.

    Lines of several runs may alternate: each is one write. A line that cannot be written does not
    end the run; `note` says it.

    Args:
        path: the file, new ones are their owner's alone; None: nothing is written.

    Raises:
        ConfigError: the file holds something else.
        HyperFusionError: it cannot be opened.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.note = ""
        self._file = None if path is None else _open(path)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)

    def write(self, level: Level, code: str, message: str, **about: Any) -> None:
        """Append a line; of `about`, what is None is left out."""
        if self._file is None or self.note:
            return
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "level": level,
            "code": code,
            **{name: _plain(value) for name, value in about.items() if value is not None},
            "message": shown(message),
        }
        data = (json.dumps(line) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            self.note = (
                f"`log_file` {self.path}: cannot be written: {error.strerror or error}; "
                "lines are missing"
            )

    def started(
        self, artifact: Artifact, engine: str, counts: Mapping[str, int], shard: Shard | None
    ) -> None:
        """The run begins. `counts`: `cases`; `taken_over` and `known` of an earlier run."""
        self.write(
            "info",
            "run-started",
            f"{artifact.label}, {engine} engine: {counts['cases']} cases, {counts['taken_over']} "
            f"were done before; {counts['known']} failed before and have not changed",
            artifact=artifact.manifest.name,
            checksum=artifact.manifest.checksum,
            engine=engine,
            shard=shard,
            counts=counts,
        )

    def case(self, item: Prediction) -> None:
        """What a prediction has to say: why it failed, and its warnings, a line each."""
        about = {"subject": item.subject, "session": item.session, "scan": item.scan}
        if item.status == "error":
            self.write("error", item.code, item.reason, **about)
        for text in item.warnings:
            self.write("warning", "case-warning", text, **about)

    def ended(self, ending: str, counts: Mapping[str, int]) -> None:
        """The run is over, and everything is written."""
        message = f"{ending}: {in_words(counts)}"
        self.write("info", "run-ended", message, ending=ending, counts=counts)


def _plain(value: Any) -> Any:
    return shown(str(value)) if isinstance(value, (str, Path)) else value


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, PRIVATE)
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            return file  # a terminal, a pipe, a new file
        start, end = os.pread(file, len(_FIRST), 0), os.pread(file, 1, found.st_size - 1)
        if start == _FIRST and end != b"\n":
            os.write(file, b"\n")  # a kill, or a full disk, left half a line
    except OSError as error:
        raise HyperFusionError(
            f"`log_file` {path}: cannot be written: {error.strerror or error}",
            code="output-cannot-be-written",
        ) from None
    if start != _FIRST:
        os.close(file)
        raise ConfigError(
            f"`log_file` {path}: holds something else than a log of hfrt; choose another name",
            code="output-wrong-name",
        )
    return file
