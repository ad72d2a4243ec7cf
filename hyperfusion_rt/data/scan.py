"""What a scan is, before it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan; `subject` and `session` are normalised ids.

    `more`: the files of a case's further channels, beside `path`, which is the first's.
    `others` are further runs, which are not used. `defect` says why this is no scan that can be
    used, and `code` is its code (one of `CODES`); None and empty otherwise. `warnings`: what a
    reader of its prediction should know.
    """

    path: Path
    subject: str
    session: str | None = None
    others: tuple[Path, ...] = ()
    defect: str | None = None
    code: str = ""
    warnings: tuple[str, ...] = ()
    more: tuple[Path, ...] = ()
