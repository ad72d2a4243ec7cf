"""Which failures are news. What failed before and has not changed does not alarm again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hyperfusion_rt.runtime.prediction import Prediction

# How the codes of faults begin that lie in a scan, its row, or in how the two were joined ...
_OF_THE_CASE = ("scan-", "dicom-", "table-", "row-", "cohort-")
# ... and the codes that are exceptions, either way.
_ALSO = {"engine-output-not-finite"}
_MAY_PASS = {"scan-read-failed", "scan-folder-unreadable"}

# Where a row stands in its table: it moves when another row comes.
_PLACE = re.compile(r"(^.*, )?\bline [\d, ]*\d")


def lasts(code: str) -> bool:
    """Whether a failure of this code stays until the scan or its row changes.

    All others are of the machine or of the run: memory, disk, network, engine, interrupt, or not
    known. They may pass, so such a case is always tried again, and fails aloud if it fails again.
    """
    return code in _ALSO or (code.startswith(_OF_THE_CASE) and code not in _MAY_PASS)


def again(item: Prediction, line: int) -> Prediction:
    """A failure that is kept from an earlier run; `line`: where its row stands now."""
    reason = item.reason
    if item.code.startswith("table-"):
        reason = re.sub(r"\bline \d+\b", f"line {line}", reason)
    return replace(item, reason=reason, known=True)


def mark_known(found: Iterable[Prediction], before: Sequence[Prediction]) -> list[Prediction]:
    """`found`, what could not be joined, with `known` set where the last run had found it, too."""
    left = Counter(_key(item) for item in before if item.status == "error")
    marked = []
    for item in found:
        known = item.status == "error" and lasts(item.code) and left[_key(item)] > 0
        left[_key(item)] -= known
        marked.append(replace(item, known=known))
    return marked


def _key(item: Prediction) -> tuple[str, str | None, str, str]:
    return item.subject, item.session, item.code, _PLACE.sub("line", item.reason)
