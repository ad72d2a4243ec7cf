"""Predictions against the truth: what is counted, what is not and why, and the figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.config import TableSpec
from hyperfusion_rt.data.encoder import read_target
from hyperfusion_rt.data.number_check import are_years, impossible_age, means_age
from hyperfusion_rt.data.table_file import Row, is_missing, read_number, where
from hyperfusion_rt.errors import CODES, TableError
from hyperfusion_rt.metrics import age_bands, by_group, classification, deviation, regression
from hyperfusion_rt.metrics.words import in_lines
from hyperfusion_rt.runtime.prediction import Prediction

_SEX = {"sex", "gender", "ptgender"}
MOST_SEXES = 6  # of a column with more values it is not asked whose sex they are
SEEN_NOTE = "stood in the training: their predictions say nothing about new patients"


def read_truth(manifest: Manifest, row: Row) -> float | None:
    """The target of a row: the index of its class, or the number; None if missing.

    Raises:
        TableError: it is no class, no number, or no age that a person can have.
    """
    target = manifest.table.target
    found = read_target(row, manifest.table)
    # Years that are no age, such as those to an onset, may be below 0.
    age = manifest.unit == "years" and means_age(target)
    if found is not None and age and impossible_age(found):
        raise TableError(
            f"{where(row, target)}: {row.values[target]!r} is no age in years",
            code="table-impossible-value",
        )
    return None if found is None else float(found)


def measure(
    manifest: Manifest, predictions: Sequence[Prediction], truths: Sequence[float]
) -> dict[str, Any]:
    """The figures of predictions (status `ok`) against their truth (`read_truth`)."""
    subjects = [item.subject for item in predictions]
    values = np.array([item.values for item in predictions], np.float64)
    truth = np.array(truths, np.float64)
    if manifest.classes:
        return classification(truth.astype(np.intp), values, manifest.classes, subjects)
    found = regression(truth, values.reshape(-1), manifest.unit, subjects)
    if manifest.answers_sd:
        sd = np.array([item.sd for item in predictions], np.float64)
        found |= deviation(truth, values.reshape(-1), sd)
    return found


def cases_of(count: int) -> str:
    """`1 case` or `3 cases`."""
    return f"{count} case{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Agreement:
    """How the predictions of a cohort go with the truth, where the table has it.

    `predicted`: how many there are; of them `known` have a truth that can be read and `unclear`
    one that cannot; `seen` of the known ones stood in the training and are not counted.
    """

    predicted: int
    known: int
    unclear: int
    seen: int
    figures: dict[str, Any]

    @property
    def text(self) -> str:
        """Of which cases the figures are."""
        counted = self.known - self.seen
        found = ["with a truth"]
        if self.unclear:
            found.append(f"{self.unclear} more have one that cannot be read")
        if self.seen:
            found.append("not in the training")
        return f"on {counted} of {cases_of(self.predicted)} ({', '.join(found)})"

    @property
    def lines(self) -> list[str]:
        """The main figures, one a line, below that of which cases they are."""
        figures = in_lines(self.figures)
        if not figures:
            return [f"{self.text}: none is left to count"]
        return [f"{self.text}:", *(f"  {line}" for line in figures)]


@dataclass(frozen=True)
class Truths:
    """The predictions of a cohort whose truth can be read, with it (`read_truth`).

    `predicted`: how many predictions there are; `unclear`: how many have a truth that cannot be
    read. Those that stood in the training are among `pairs`: see `new`.
    """

    predicted: int
    unclear: int
    pairs: tuple[tuple[Prediction, float], ...]

    @property
    def new(self) -> list[tuple[Prediction, float]]:
        """Those that did not stand in the training: what figures and charts are of."""
        return [(item, truth) for item, truth in self.pairs if not item.seen]


def truths_of(manifest: Manifest, predictions: Sequence[Prediction]) -> Truths:
    """The truths of the cases that have a prediction."""
    target = manifest.table.target
    good = [item for item in predictions if item.status == "ok"]
    pairs: list[tuple[Prediction, float]] = []
    unclear = 0
    for item in good:
        if item.truth is None:
            continue
        try:
            truth = read_truth(manifest, Row(item.subject, item.session, 0, {target: item.truth}))
        except TableError:
            unclear += 1
            continue
        if truth is not None:
            pairs.append((item, truth))
    return Truths(len(good), unclear, tuple(pairs))


def agreement(manifest: Manifest, predictions: Sequence[Prediction]) -> Agreement | None:
    """The figures of a cohort; None where the table has no column of the target, or no truth."""
    found = truths_of(manifest, predictions)
    if not found.pairs:
        return None
    new, known = found.new, len(found.pairs)
    figures = measure(manifest, [item for item, _ in new], [truth for _, truth in new])
    return Agreement(found.predicted, known, found.unclear, known - len(new), figures)


def seen_text(predictions: Sequence[Prediction]) -> str:
    """How many predicted cases stood in the training; empty where none is known to."""
    good = [item for item in predictions if item.status == "ok"]
    seen = sum(bool(item.seen) for item in good)
    if not seen:
        return ""
    return f"{seen} of {cases_of(len(good))} {SEEN_NOTE}"


def certainty_lines(manifest: Manifest, predictions: Sequence[Prediction]) -> list[str]:
    """How many answers are sure, how often the truth is among them, how many scans are odd."""
    good = [item for item in predictions if item.status == "ok" and item.certainty is not None]
    lines = []
    sure = [item for item in good if item.certainty and item.certainty.level is not None]
    if sure:
        known = [(item, truth) for item, truth in truths_of(manifest, sure).new]
        held = sum(holds(manifest, item, truth) for item, truth in known)
        of = f"; {held} of {len(known)} hold the truth" if known else ""
        level = sure[0].certainty.level if sure[0].certainty else None
        if manifest.classes:
            single = sum(len(p.certainty.classes or ()) == 1 for p in sure if p.certainty)
            what = f"prediction sets at {level:.4g}: {single} of {len(sure)} have one class"
        else:
            what = f"{len(sure)} intervals at {level:.4g}"
        lines.append(what + of)
    far = [p.certainty.distance for p in good if p.certainty and p.certainty.distance is not None]
    if far:
        odd = sum(distance > 1 for distance in far)
        lines.append(f"{odd} of {cases_of(len(far))} have a scan unlike the training's")
    return lines


def holds(manifest: Manifest, prediction: Prediction, truth: float) -> bool:
    """Whether the set or interval holds the truth (`read_truth`); not where there is none."""
    sure = prediction.certainty
    if sure is None:
        return False
    if manifest.classes:
        return manifest.classes[int(truth)] in (sure.classes or ())
    return sure.low is not None and sure.high is not None and sure.low <= truth <= sure.high


@dataclass(frozen=True)
class EvaluatedCase:
    """A case. `truth`: `read_truth`, None where it is not known; `counted`: in the figures.

    `sex`, `age` (years): as the table has them, empty and None where it does not.
    """

    prediction: Prediction
    truth: float | None
    sex: str = ""
    age: float | None = None
    counted: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    `figures`: of the counted cases; `seen_figures`: of those that stood in the training, no test
    and only on request. `groups`: by sex and by age, each with its `column` and its `figures`.
    `notes`: what a reader should know. `certainty`: whether sets and intervals hold the truth, see
    `runtime.evaluation_certainty`; None where the artifact does not say how sure it is.
    """

    manifest: Manifest
    engine: str
    cases: list[EvaluatedCase]
    figures: dict[str, Any]
    groups: dict[str, dict[str, Any]]
    seen_figures: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    certainty: dict[str, Any] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def counted(self) -> list[EvaluatedCase]:
        """The cases that the figures are of."""
        return [case for case in self.cases if case.counted]

    @property
    def failed(self) -> list[Prediction]:
        """The cases that have no prediction though they have a scan."""
        found = [case.prediction for case in self.cases]
        return [item for item in found if item.status == "error"]

    @property
    def left_out(self) -> dict[str, int]:
        """Why cases are not counted, and how many each; the most frequent reason first."""
        reasons = Counter(
            SEEN_NOTE.split(":")[0]
            if case.prediction.status == "ok"
            else CODES.get(case.prediction.code, case.prediction.reason)
            for case in self.cases
            if not case.counted
        )
        return dict(reasons.most_common())


def columns_of_groups(spec: TableSpec, columns: Sequence[str]) -> tuple[str | None, str | None]:
    """The columns of sex and of age: of those that the network knows, else of all."""
    known = [*(feature.name for feature in spec.features), *spec.stratify, spec.target]
    names = [name for name in [*known, *columns] if name in columns]
    sex = next((name for name in names if name != spec.target and _means_sex(name)), None)
    return sex, next((name for name in names if means_age(name)), None)


def _means_sex(name: str) -> bool:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return bool({word.casefold() for word in words} & _SEX)


def sexes_of(rows: Sequence[Row], column: str) -> list[str]:
    """The sex of each row, spelt as where it is met first; empty where it is not known."""
    spelt: dict[str, str] = {}
    found = []
    for row in rows:
        text = row.values.get(column, "").strip()
        found.append("" if is_missing(text) else spelt.setdefault(text.casefold(), text))
    return found


def ages_of(rows: Sequence[Row], column: str) -> list[float | None]:
    """The age of each row in years; None where it is none that a person can have.

    All are None where the column holds no years, but months, say.
    """
    found: list[float | None] = []
    for row in rows:
        try:
            found.append(read_number(row, column, censored=True))
        except TableError:
            found.append(None)
    if not are_years(np.array([age for age in found if age is not None])):
        return [None] * len(rows)
    return [None if age is None or impossible_age(age) else age for age in found]


def figures_by_group(
    cases: Sequence[EvaluatedCase],
    of: Callable[[Sequence[EvaluatedCase]], dict[str, Any]],
    sex: str | None,
    age: str | None,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The figures by sex and by age, and why one of them is missing.

    Args:
        of: the figures of some cases.
        sex, age: the columns that these stand in.
    """
    found: dict[str, dict[str, Any]] = {}
    notes = []
    for name, column, groups in (
        ("sex", sex, [case.sex for case in cases]),
        ("age", age, age_bands([case.age for case in cases])),
    ):
        if column is None:
            notes.append(f"the table has no column of {name}: no figures by {name}")
        elif not any(groups):
            notes.append(f"column {column!r} holds no {name} of a counted case: no figures by it")
        elif name == "sex" and len(set(groups)) > MOST_SEXES:
            notes.append(f"column {column!r} holds {len(set(groups))} values: no figures by it")
        else:
            figures = by_group(groups, lambda index: of([cases[i] for i in index]))
            found[name] = {"column": column, "figures": figures}
    return found, notes
