"""What is odd about the categories of a column."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from hyperfusion_rt.data.finding import CODE, EMPTY_ADVICE, MANY, Finding, in_rows

_UNKNOWN_WORDS = frozenset(
    ("?", ".", "-", "--", "#n/a", "unknown", "unk", "missing", "not available", "not known", "n.a.")
)


def spellings(
    name: str, values: Mapping[str, int], spelt: Mapping[str, Counter[str]]
) -> list[Finding]:
    """One category that is spelt in two ways."""
    found = []
    for alike in (_as_number, _as_words):
        groups: dict[str, list[str]] = {}
        for value in values:
            groups.setdefault(alike(value), []).append(value)
        for same in groups.values():
            if len(same) > 1:
                listed = " and ".join(f"{value!r} ({in_rows(values[value])})" for value in same)
                text = (
                    f"{name!r} has {listed}: one value in {len(same)} spellings, which would be "
                    "learned as different ones; write it in one way"
                )
                found.append(Finding(text, "table-category-spelling"))
    for ways in spelt.values():
        if len(ways) > 1:
            listed = ", ".join(f"{text!r} ({in_rows(n)})" for text, n in sorted(ways.items()))
            found.append(Finding(f"{name!r} has {listed}: case does not matter, they are one"))
    return found


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[+-]?\d+(?:[.,]\d*)?", text, re.ASCII))


def _as_number(text: str) -> str:
    return str(float(text.replace(",", "."))) if _is_number(text) else text


def _as_words(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def ids(name: str, values: Mapping[str, int]) -> list[Finding]:
    """Almost as many categories as rows: an id, or a number."""
    known = sum(values.values())
    if len(values) < MANY or 2 * len(values) < known:
        return []
    numbers = sum(map(_is_number, values))
    advice = (
        "numbers need kind 'numeric'"
        if 2 * numbers > len(values)
        else "an id says nothing about a new case; drop the feature"
    )
    return [Finding(f"{name!r}: {len(values)} different categories in {known} rows; {advice}")]


def never_seen(name: str, values: Mapping[str, int], listed: Sequence[str]) -> list[Finding]:
    """Listed categories that no row has."""
    never = [category for category in listed if category not in values]
    if not never:
        return []
    text = f"{name!r}: no row has {', '.join(map(repr, never))}, so nothing is learned of it"
    return [Finding(text)]


def missing_words(values: Mapping[str, int]) -> dict[str, int]:
    """The categories that seem to stand for "not known", each with its count."""
    # Among numbers, 9 may well be one of them; among words it is not.
    code = re.compile(r"-\d+|99+|88+|77+") if all(map(_is_number, values)) else CODE
    found = {
        value: count
        for value, count in values.items()
        if code.fullmatch(value) or value.casefold() in _UNKNOWN_WORDS
    }
    return {} if len(found) == len(values) else found


def words_for_missing(name: str, values: Mapping[str, int]) -> list[Finding]:
    """Categories that stand for "not known"."""
    found = missing_words(values)
    if not found:
        return []
    listed = ", ".join(f"{value!r} in {in_rows(count)}" for value, count in found.items())
    text = (
        f"{name!r} has {listed}: does it stand for 'not known'? It is learned as a category; "
        f"{EMPTY_ADVICE}"
    )
    return [Finding(text)]
