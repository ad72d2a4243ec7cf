"""The part of the report that lists every case; `templates/cases.html` draws it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.config import SD
from hyperfusion_rt.number_text import number
from hyperfusion_rt.runtime.outputs.subject_view import (
    Flag,
    answer_text,
    certain_text,
    flags,
    is_close,
)
from hyperfusion_rt.runtime.outputs.table import label, value_columns
from hyperfusion_rt.runtime.prediction import Prediction

MOST = 10_000  # rows of a page
_FIRST = {"error": 0, "not-tried": 1, "ok": 2, "skipped": 3}


@dataclass(frozen=True)
class CaseColumn:
    """A column; `key` says what stands in it. `sorts`: whether it can be sorted by."""

    key: str
    title: str
    number: bool = False
    sorts: bool = True


@dataclass(frozen=True)
class CaseRow:
    """A case: its row on the page, the answer in words, what to filter by.

    `answer`: to filter by, the most probable class or `close`; `link`: where it is shown alone.
    """

    number: int
    prediction: Prediction
    text: str
    answer: str
    certain: str
    found: tuple[Flag, ...]
    link: str = ""

    @property
    def flags(self) -> tuple[str, ...]:
        """The names of its flags, each once; `none` without one."""
        return tuple(dict.fromkeys(flag.name for flag in self.found)) or ("none",)

    @property
    def shown(self) -> tuple[Flag, ...]:
        """The flags that are not in words beside them."""
        return tuple(flag for flag in self.found if flag.name != "warning")

    @property
    def certain_size(self) -> str:
        """To sort by: how many classes the set holds, or how wide the interval is."""
        sure = self.prediction.certainty
        if sure is None:
            return ""
        if sure.classes is not None:
            return str(len(sure.classes))
        return "" if sure.low is None or sure.high is None else f"{sure.high - sure.low:.6g}"

    @property
    def truth_value(self) -> str:
        """To sort by: the truth, where it is a number."""
        try:
            return f"{float(self.prediction.truth or ''):g}"
        except ValueError:
            return ""


@dataclass(frozen=True)
class Filter:
    """A choice of rows: by their attribute `key`; each value with how many have it."""

    key: str
    label: str
    values: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Cases:
    """The table of cases; `left_out`: how many are not here."""

    template: ClassVar[str] = "cases.html"
    styles: ClassVar[tuple[str, ...]] = ("cases.css",)
    scripts: ClassVar[tuple[str, ...]] = ("cases.js",)
    classes: tuple[str, ...]
    columns: tuple[CaseColumn, ...]
    filters: tuple[Filter, ...]
    rows: tuple[CaseRow, ...]
    left_out: int


def in_order(predictions: Sequence[Prediction]) -> list[tuple[int, Prediction]]:
    """The rows of a page with their numbers, those of the table: what failed stands first."""
    numbered = list(enumerate(predictions, 1))
    return sorted(numbered, key=lambda item: _FIRST[item[1].status])


def cases(
    manifest: Manifest, predictions: Sequence[Prediction], links: Mapping[int, str] | None = None
) -> Cases:
    """The table of predictions, failures first; at most 10,000 of them.

    Args:
        links: row (from 1) → where the subject is shown alone.
    """
    classes = manifest.classes
    links = links or {}
    rows = []
    for n, item in in_order(predictions)[:MOST]:
        answer = ""
        if item.values:
            answer = "close" if is_close(classes, item) else label(manifest, item)
        rows.append(
            CaseRow(
                n,
                item,
                answer_text(classes, "", item),
                answer if classes else "",
                certain_text("", item),
                tuple(flags(classes, item)),
                links.get(n, ""),
            )
        )
    left_out = len(predictions) - len(rows)
    return Cases(classes, _columns(manifest, rows), _filters(classes, rows), tuple(rows), left_out)


def _columns(manifest: Manifest, rows: Sequence[CaseRow]) -> tuple[CaseColumn, ...]:
    """Those that have a cell."""
    found = [CaseColumn("subject", "subject")]
    every = [row.prediction for row in rows]
    if any(item.session for item in every):
        found.append(CaseColumn("session", "session"))
    found.append(CaseColumn("status", "status"))
    if any(item.values for item in every):
        if manifest.classes:
            found += [
                CaseColumn("answer", "prediction"),
                CaseColumn("bar", "probability"),
                CaseColumn("values", " / ".join(manifest.classes), sorts=False),
            ]
        else:
            names = [column.name for column in value_columns(manifest) if column.name != SD]
            one = len(names) == 1
            found.append(CaseColumn("answer", " / ".join(names), number=one, sorts=one))
    if any(row.certain for row in rows):
        level = next(
            (s.level for item in every if (s := item.certainty) is not None and s.level), None
        )
        what = "set" if manifest.classes else "interval"
        at = "" if level is None else f" at {number(100 * level).rstrip('0').rstrip('.')} %"
        found.append(CaseColumn("certain", what + at))
    if any(item.truth for item in every):
        found.append(CaseColumn("truth", f"{manifest.table.target} in the table"))
    if any(item.spread is not None for item in every):
        found.append(CaseColumn("spread", "spread", number=True))
    if any(item.reason or row.found for item, row in zip(every, rows, strict=True)):
        found.append(CaseColumn("notes", "flags, reason", sorts=False))
    return tuple(found)


def _filters(classes: tuple[str, ...], rows: Sequence[CaseRow]) -> tuple[Filter, ...]:
    """The choices that leave something out."""
    status = Counter(row.prediction.status for row in rows)
    answers = Counter(row.answer for row in rows if row.answer)
    order = {name: n for n, name in enumerate((*classes, "close"))}
    found = [
        Filter("status", "Status", tuple(sorted(status.items(), key=lambda item: _FIRST[item[0]]))),
        Filter(
            "answer", "Prediction", tuple(sorted(answers.items(), key=lambda item: order[item[0]]))
        ),
        Filter("flag", "Flag", _counted(name for row in rows for name in row.flags)),
        Filter("code", "Code", _counted(c for row in rows if (c := row.prediction.code))),
    ]
    least = {"code": 1}
    return tuple(item for item in found if len(item.values) >= least.get(item.key, 2))


def _counted(names: Iterable[str]) -> tuple[tuple[str, int], ...]:
    return tuple(Counter(names).most_common())
