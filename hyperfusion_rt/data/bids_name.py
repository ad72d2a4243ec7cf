"""Names of the BIDS kind: `sub-01_ses-02_acq-mprage_T1w`."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from hyperfusion_rt.data.scan_file import is_scan, stem

SUFFIX = "suffix"

# Strict, so that 'sub-002_S_0413_T1w' is not taken for subject 002.
NAME = re.compile(
    r"sub-(?P<subject>[A-Za-z0-9]+)(?P<entities>(?:_[A-Za-z]+-[A-Za-z0-9+]+)*)"
    r"(?:_(?P<suffix>[A-Za-z][A-Za-z0-9]*))?",
    re.IGNORECASE,
)


def named_by(file: Path) -> Path:
    """What is called as the scan is: `file`, or its folder (`S1.nii.gz/x.nii`)."""
    return file.parent if is_scan(file.parent) else file


def entities_of(file: Path) -> dict[str, str] | None:
    """What a scan's name says, by short names (`sub`, `acq`, ...), and its `suffix`.

    Keys are in lower case. None where the name is not of the BIDS kind.
    """
    found = _entities(stem(named_by(file)))
    return None if found is None else dict(found)


# Each pass over a study's files asks again.
@lru_cache(maxsize=1 << 16)
def _entities(text: str) -> dict[str, str] | None:
    name = NAME.fullmatch(text)
    if name is None:
        return None
    pairs = (part.partition("-") for part in name["entities"].split("_")[1:])
    found = {"sub": name["subject"], **{key.lower(): label for key, _, label in pairs}}
    return found | ({SUFFIX: name["suffix"]} if name["suffix"] else {})


def suffix_of(file: Path) -> str:
    """The suffix in lower case, `t1w` say; empty where there is none."""
    return (entities_of(file) or {}).get(SUFFIX, "").lower()


def label_of(text: str) -> str:
    """What of an id may stand in a BIDS label: letters and digits."""
    return "".join(c for c in text if c.isascii() and (c.isalnum() or c == "+"))
