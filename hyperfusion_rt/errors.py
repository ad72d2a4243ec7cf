"""The errors that users meet. Every message says what, where, and what to do.

A message names a parameter of the function that was called in backticks, as Python spells it:
"`max_memory` 20 MiB: ...". The command line writes its own option there instead (`--max-memory`);
nothing else in the package knows how options are spelt.
"""

from __future__ import annotations

import re
from typing import Any

# Every code, and what it means. A code is stable: programs may branch on it. A message may change.
CODES: dict[str, str] = {
    # scans
    # raw scans
    # tables
    # cohorts
    # configuration
    # options
    "option-conflict": "two options exclude each other, or one needs another",
    "option-wrong": "there is no such option, or its value is out of range or of another type",
    # models and training
    # artifacts
    # engines
    # export
    # outputs and runs
    "engine-output-not-finite": "the network gave NaN or infinity; are the inputs plausible?",
    "feature-cache-unusable": "the kept features cannot be read or written",
    "journal-damaged": "the journal is not one, or is of another version",
    "journal-locked": "another process writes the same table",
    "journal-of-another-run": "what is done was done by another artifact, engine or program",
    "journal-unfinished": "the run before did not finish: resume it, or begin anew",
    "not-tried": "the run ended before this case",
    "out-of-budget": "more memory is needed than the run may take",
    "output-cannot-be-written": "the folder cannot be written, or the disk is full",
    "output-wrong-name": "the output's name has no known ending, or would replace what is read",
    "ray-failed": "the Ray cluster cannot be reached, or gave up",
    "shard-missing": "not all shards are there and finished",
    "shard-of-another-run": "the shards are not of one run",
    "bids-label": "ids that are not different as BIDS labels",
    "bids-no-dataset": "the folder is no BIDS dataset, or its table is missing",
    "bids-no-result": "no participant has a result yet, or one cannot be read",
    "bids-other-dataset": "the output folder holds another dataset or another artifact's results",
    "bids-unknown-label": "a participant or session that the dataset does not have",
    # everything
    "missing-extra": "an optional package is not installed; the message gives the command",
    "out-of-memory": "there was not enough memory for this case",
    "unexpected": "an error that the program does not know; please report it",
}

_PARAMETER = re.compile(r"`([a-z_]+)`")


class HyperFusionError(Exception):
    """Base class: the command line prints it as one line, without a traceback.

    Attributes:
        code: one of `CODES`.
    """

    def __init__(self, message: str, *, code: str = "unexpected") -> None:
        super().__init__(message)
        if code not in CODES:
            raise ValueError(f"{code!r} is not in CODES")
        self.code = code

    @property
    def parameter(self) -> str | None:
        """The parameter that the message speaks of first, if it does."""
        found = _PARAMETER.search(str(self))
        return found[1] if found else None

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross processes: keyword arguments must come along.
        return _again, (type(self), str(self), self.code)


def _again(kind: type[HyperFusionError], message: str, code: str) -> HyperFusionError:
    error = kind.__new__(kind)
    HyperFusionError.__init__(error, message, code=code)
    return error


class ScanError(HyperFusionError):
    """A scan that cannot be used: unreadable, malformed, or not where the box is."""


class TableError(HyperFusionError):
    """A table, or one of its rows, that cannot be used."""


class CohortError(HyperFusionError):
    """Scans and rows that cannot be joined."""


class ConfigError(HyperFusionError):
    """A configuration that is wrong or cannot be found."""


class ArtifactError(HyperFusionError):
    """An artifact that is damaged, incomplete, or of another format version."""


class EngineError(HyperFusionError):
    """An engine that is unknown, not installed, or not in the artifact."""


class MissingExtraError(HyperFusionError):
    """A package that an optional feature needs is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs '{package}', which is not installed: "
            f"pip install 'hyperfusion_rt[{extra}]'",
            code="missing-extra",
        )


def reason_of(error: Exception, where: object) -> tuple[str, str]:
    """(code, one line) for a case that failed, whatever raised.

    An error of ours says it all itself.
    """
    if isinstance(error, MemoryError):
        return "out-of-memory", f"{where}: there was not enough memory for it"
    if isinstance(error, HyperFusionError):
        return error.code, str(error)
    return "unexpected", f"{where}: unexpected {type(error).__name__}: {error}"
