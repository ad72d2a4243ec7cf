"""Which part of the cohort each case is in: dealt at random, or as the study itself says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.config import Config
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.data.finding import SHOWN, Finding, more
from hyperfusion_rt.data.table_file import is_missing, read_table, read_text
from hyperfusion_rt.errors import CohortError, ConfigError, TableError
from hyperfusion_rt.training.check import holds_numbers
from hyperfusion_rt.training.splits import Parts, age_bins, stratified_parts

_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "holdout": "test",
}
_COLUMNS = ("split", "part", "fold", "set")
_HOW = "write train, validation or test, or the number of the part"


@dataclass(frozen=True)
class Given:
    """What the study says of the parts: the text of each case [N], "" where it says nothing.

    `where`: the column or the file, for messages.
    """

    where: str
    texts: tuple[str, ...]
    findings: tuple[Finding, ...] = ()


def given_parts(config: Config, root: Path, cases: Sequence[Case]) -> Given | None:
    """What `training.split_column` or `training.split_file` says of the cases; None: neither is.

    Raises:
        TableError: the file cannot be used.
        CohortError: it names none of the cases.
    """
    column, file = config.training.split_column, config.training.split_file
    if column is not None:
        return Given(f"column {column!r}", tuple(_cell(c.row.values[column]) for c in cases))
    if file is None:
        return None
    path = root / file
    known, own = read_text(path).columns, config.tabular.id_column
    table = read_table(path, id_column=own if own in known else None)
    if table.problems:
        first = table.problems[0]
        raise TableError(f"{path}, line {first.line}: {first.reason}", code=first.code)
    named = [name for name in table.columns if name.casefold() in _COLUMNS]
    if len(named) != 1:
        found = f"{', '.join(named)} are such columns" if named else "there is none"
        raise TableError(
            f"{path}: needs one column called {', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]} that "
            f"says where each subject belongs; {found}",
            code="table-missing-column",
        )
    said = {(row.subject, row.session): row.values[named[0]] for row in table.rows}
    keys = [(c.subject, c.session) for c in cases]
    texts = [said.get(key, said.get((key[0], None), "")) for key in keys]
    subjects = {case.subject for case in cases}
    unknown = list(dict.fromkeys(row.subject for row in table.rows if row.subject not in subjects))
    ids = ", ".join(unknown[:SHOWN]) + more(len(unknown))
    if not any(texts):
        raise CohortError(
            f"{path}: none of its subjects has a case in this study ({ids}); the study's are "
            f"{', '.join(sorted(subjects)[:SHOWN])}{more(len(subjects))}",
            code="split-invalid",
        )
    findings = []
    if unknown:
        text = f"{path}: {len(unknown)} of its subjects have no case in this study: {ids}"
        findings.append(Finding(text))
    return Given(str(path), tuple(_cell(text) for text in texts), tuple(findings))


def parts_of(
    config: Config, cases: Sequence[Case], targets: NDArray[np.float64], given: Given | None
) -> Parts:
    """The part of every case [N].

    Raises:
        CohortError: a class has no case, there are fewer subjects than parts, or what is given
            makes no training, validation and test part.
        ConfigError: `training.test_part` does not go with the parts.
    """
    strata = _strata(config, cases, targets)
    subjects = [case.subject for case in cases]
    training = config.training
    if given is None:
        of = stratified_parts(subjects, strata, training.parts, training.seed)
        return _rotating(of, range(training.parts), training.test_part)
    _one_part_each(given, cases)
    numbers = [int(text) for text in given.texts if text.isdecimal()]
    if len(numbers) == len(cases):
        return _rotating(np.array(numbers), sorted(set(numbers)), training.test_part, given.where)
    names = [_NAMES.get(text.casefold(), "") for text in given.texts]
    pairs = list(zip(given.texts, names, strict=True))
    wrong = [text for text, name in pairs if not name and not text.isdecimal()]
    if wrong:
        shown = ", ".join(repr(text) for text in dict.fromkeys(wrong[: 10 * SHOWN]))
        raise CohortError(
            f"{given.where}: {shown} in {len(wrong)} cases: {_HOW}", code="split-invalid"
        )
    if numbers:
        raise CohortError(
            f"{given.where}: has numbers in {len(numbers)} cases beside names of parts: {_HOW}",
            code="split-invalid",
        )
    if training.test_part is not None:
        raise ConfigError(
            f"training.test_part goes with numbered parts, and {given.where} names them: drop it",
            code="config-invalid",
        )
    if "train" not in names:
        raise CohortError(f"{given.where}: no case is for training", code="split-invalid")
    if "validation" in names:
        order = {"train": 0, "validation": 1, "test": 2}
        return Parts(np.array([order[name] for name in names]), 2, (1,), named=True)
    # The training subjects take turns as validation set, as they do without a given split.
    count = training.parts - 1
    dealt = [i for i, name in enumerate(names) if name == "train"]
    of = np.full(len(cases), count, np.int64)
    chosen = [subjects[i] for i in dealt], [strata[i] for i in dealt]
    of[dealt] = stratified_parts(*chosen, count, training.seed)
    return Parts(of, count, tuple(range(count)), named=True)


def _cell(text: str) -> str:
    """A part's number may have been written as a float (`3.0`) by a spreadsheet."""
    text = "" if is_missing(text) else text.strip()
    return text[:-2] if text.endswith(".0") and text[:-2].isdecimal() else text


def _one_part_each(given: Given, cases: Sequence[Case]) -> None:
    """Refuse a subject on two sides: the test set would not be new."""
    seen: dict[str, str] = {}
    twice = {}
    for case, text in zip(cases, given.texts, strict=True):
        other = seen.setdefault(case.subject, text)
        if _NAMES.get(other.casefold(), other) != _NAMES.get(text.casefold(), text):
            twice[case.subject] = f"{case.subject} is in {other} and {text}"
    if twice:
        shown = "; ".join(list(twice.values())[:SHOWN])
        raise CohortError(
            f"{given.where}: {len(twice)} subjects are in two parts: {shown}{more(len(twice))}. "
            "All scans of a subject belong in one",
            code="split-subject-twice",
        )


def _rotating(
    of: NDArray[np.int64], numbers: Sequence[int], test_part: int | None, where: str = ""
) -> Parts:
    """Numbered parts: one is the test set, the others take turns as validation set."""
    if len(numbers) < 3:
        raise CohortError(
            f"{where}: has {len(numbers)} parts, and three at least are needed: for training, "
            "validation and test",
            code="split-invalid",
        )
    test = numbers[-1] if test_part is None else test_part
    if test not in numbers:
        raise ConfigError(
            f"training.test_part is {test}, and {where} has the parts "
            f"{', '.join(map(str, numbers))}",
            code="config-invalid",
        )
    return Parts(of, test, tuple(n for n in numbers if n != test))


def _strata(
    config: Config, cases: Sequence[Case], targets: NDArray[np.float64]
) -> list[tuple[object, ...]]:
    """What shall be alike in all parts: the target and `tabular.stratify`, of every case."""
    if config.tabular.classes:
        names = list(config.tabular.classes)
        absent = [name for i, name in enumerate(names) if not np.any(targets == i)]
        if absent:
            raise CohortError(
                f"no case of class {', '.join(absent)}: nothing to learn it from",
                code="cohort-class-missing",
            )
        labels: list[object] = [int(t) for t in targets]
    else:
        labels = [int(b) for b in age_bins(targets)]
    kinds = {feature.name: feature.kind for feature in config.tabular.features}
    columns: list[list[object]] = [labels]
    for name in config.tabular.stratify:
        values = [case.row.values.get(name, "") for case in cases]
        # A column that no feature describes is what its cells are.
        kind = kinds.get(name) or ("numeric" if holds_numbers(values) else "categorical")
        if kind == "categorical":
            columns.append([value.strip().lower() for value in values])
        else:
            columns.append([int(b) for b in age_bins(np.array([_number(v) for v in values]))])
    return list(zip(*columns, strict=True))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
