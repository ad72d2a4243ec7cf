"""One thing that is odd about a table, and how it is put into words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

SHOWN = 3  # examples in a message
MANY = 8  # fewer values than this say little about a column
EMPTY_ADVICE = "leave the cell empty where the value is not known"
# What codebooks write for "not known", "refused", "not asked": negative, or one digit repeated.
CODE = re.compile(r"-\d+|9+|88+|77+")


@dataclass(frozen=True)
class Finding:
    """What is odd. With a `code` of `CODES` it can only be a mistake: nothing is trained on it."""

    text: str
    code: str | None = None


def more(count: int) -> str:
    """`" and 4 more"` after `SHOWN` examples out of `count`."""
    return f" and {count - SHOWN} more" if count > SHOWN else ""


def in_rows(count: int) -> str:
    """`"1 row"` or `"3 rows"`."""
    return f"{count} row{'s' if count > 1 else ''}"


def counted(values: Mapping[float, int]) -> str:
    """`"-4 in 6 rows, 999 in 1 row"`."""
    return ", ".join(f"{value:g} in {in_rows(count)}" for value, count in values.items())
