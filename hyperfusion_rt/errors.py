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
    # models and training
    # artifacts
    # engines
    # export
    # outputs and runs
    "output-exists": "the place to write holds something that is not to be replaced",
    "output-unwritable": "the place to write cannot be written: no permission, or a full disk",
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
