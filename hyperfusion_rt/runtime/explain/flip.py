"""The smallest change of a row that changes the model's answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.table_summary import Levels
from hyperfusion_rt.data.encoder_columns import CategoricalColumn, NumericColumn
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.runtime.explain.answers import Flip
from hyperfusion_rt.runtime.explain.question import Question
from hyperfusion_rt.runtime.explain.what_if import unusual

Floats = NDArray[np.float64]
Changed = Callable[[Floats], NDArray[np.bool_]]

_GRID = 201
_HALVINGS = 24
_DIRECTIONS = 512
_ROUNDS = 6  # of directions near the best one
_COMBINATIONS = 64  # of categories that are tried together with numbers


def nearest_flip(question: Question, at: float | None = None, seed: int = 0) -> list[Flip]:
    """Changes after which the answer is another class; of a number, on the other side of `at`.

    First the smallest change of all that was found, of one cell or several; then the smallest of
    each column by itself that has one; by distance (see `Flip`). Numbers stay inside the training
    range; cells that are missing stay so. Of one column the change is the smallest, of several it
    is searched for in random directions. A number of few values moves among these. Empty: nothing
    inside the ranges changes the answer.

    Raises:
        ConfigError: the answer is a number and there is no `at`, or the answer has classes and
            there is one.
        EngineError: an answer is not finite.
    """
    classes = question.network.manifest.classes
    if bool(classes) == (at is not None):
        raise ConfigError(
            "`nearest_flip`: give `at`, the number on whose other side the answer shall lie"
            if not classes
            else "`at` is for answers that are numbers; this model's are classes",
            code="option-conflict",
        )
    own = question.answers(question.cells[None])[0]

    def changed(cells: Floats) -> NDArray[np.bool_]:
        answers = question.answers(cells)
        now, before = answers.argmax(1), own.argmax()
        if at is not None:
            now, before = answers[:, 0] > at, own[0] > at
        other: NDArray[np.bool_] = now != before
        return other

    single = [
        cells for k in range(len(question.columns)) for cells in _of_column(question, k, changed)
    ]
    several = list(_of_several(question, changed, np.random.default_rng([seed, 3])))
    found = [_flip(question, cells) for cells in (*single, *several)]
    found.sort(key=lambda flip: flip.distance)
    kept: list[Flip] = []
    for flip in found:
        alone = len(flip.changes) == 1
        same = [other for other in kept if _names(other) == _names(flip)]
        if (alone and not same) or not kept:
            kept.append(flip)
    return kept


def _names(flip: Flip) -> tuple[str, ...]:
    return tuple(name for name, _, _ in flip.changes)


def _levels(question: Question, k: int) -> list[float] | None:
    """What the column can be where it has few values: its categories, or its training's levels."""
    column = question.columns[k]
    if isinstance(column, CategoricalColumn):
        return [float(place) for place in range(len(column.categories))]
    summary = question.summary
    found = None if summary is None else summary.columns[k]
    return list(found.values) if isinstance(found, Levels) else None


def _of_column(question: Question, k: int, changed: Changed) -> Iterator[Floats]:
    """The nearest changed row on either side of a number; each other category that changes it."""
    column, own = question.columns[k], question.cells[k]
    if math.isnan(own):
        return
    levels = _levels(question, k)
    if levels is not None:
        cells = np.repeat(question.cells[None], len(levels), 0)
        cells[:, k] = levels
        yield from cells[changed(cells) & (cells[:, k] != own)]
        return
    assert isinstance(column, NumericColumn)
    for end in (column.low, column.high):
        if own <= column.low if end == column.low else own >= column.high:
            continue
        cells = np.repeat(question.cells[None], _GRID, 0)
        cells[:, k] = np.linspace(own, end, _GRID)
        there = np.flatnonzero(changed(cells))
        if len(there):
            yield _halved(cells[there[0] - 1], cells[there[0]], changed)


def _halved(same: Floats, other: Floats, changed: Changed) -> Floats:
    """Between a row that does not change the answer and one that does: just beyond the border."""
    for _ in range(_HALVINGS):
        middle = (same + other) / 2
        same, other = (same, middle) if changed(middle[None])[0] else (middle, other)
    return other


def _of_several(question: Question, changed: Changed, rng: np.random.Generator) -> Iterator[Floats]:
    """Changed rows in random directions of the known numbers, for each choice of categories."""
    known = [k for k in range(len(question.columns)) if not math.isnan(question.cells[k])]
    levels = {k: found for k in known if (found := _levels(question, k)) is not None}
    numbers = [
        (k, column)
        for k in known
        if k not in levels
        and isinstance(column := question.columns[k], NumericColumn)
        and column.low < column.high
    ]
    if not numbers:
        return
    places = [k for k, _ in numbers]
    scale = np.array([column.std for _, column in numbers])
    low, high = np.array([[column.low, column.high] for _, column in numbers]).T
    # The row's own levels first: the nearest change is more often without another.
    own = question.cells
    orders = [[own[k], *(v for v in found if v != own[k])] for k, found in levels.items()]
    choices = list(levels)
    for combination in itertools.islice(itertools.product(*orders), _COMBINATIONS):
        start = question.cells.copy()
        start[choices] = combination
        if changed(start[None])[0]:
            yield start
            continue
        directions = rng.standard_normal((_DIRECTIONS, len(places)))
        best: tuple[float, Floats] | None = None
        for turn in range(_ROUNDS):
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
            lengths, rows = _along(start, places, directions * scale, low, high, changed)
            nearest = int(lengths.argmin())
            if not math.isfinite(lengths[nearest]) and best is None:
                break
            if best is None or lengths[nearest] < best[0]:
                best = float(lengths[nearest]), rows[nearest]
            towards = (best[1][places] - start[places]) / scale
            spread = 0.5 ** (turn + 1)
            noise = rng.standard_normal((_DIRECTIONS // 4, len(places)))
            directions = towards / np.linalg.norm(towards) + spread * noise
        if best is not None:
            yield best[1]


def _along(
    start: Floats, places: list[int], steps: Floats, low: Floats, high: Floats, changed: Changed
) -> tuple[Floats, Floats]:
    """How far along each of `steps [D, k]` the answer changes, in steps, and the rows there.

    Infinite where it does not inside the ranges `low` to `high` (a row that lies outside stays
    where it is).
    """
    own = start[places]
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(steps > 0, (high - own) / steps, (low - own) / steps)
    ends = np.clip(np.nan_to_num(room, nan=np.inf, posinf=np.inf), 0, None).min(1)
    ends = np.where(np.isfinite(ends), ends, 0.0)

    def rows_at(lengths: Floats) -> Floats:
        rows = np.repeat(start[None], len(lengths), 0)
        rows[:, places] = own + lengths[:, None] * steps
        return rows

    reached = changed(rows_at(ends))
    same, other = np.zeros(len(ends)), ends.copy()
    for _ in range(_HALVINGS):
        middle = (same + other) / 2
        hit = changed(rows_at(middle))
        same, other = np.where(hit, same, middle), np.where(hit, middle, other)
    return np.where(reached, other, np.inf), rows_at(other)


def _flip(question: Question, cells: Floats) -> Flip:
    changes = []
    squares = 0.0
    for k, column in enumerate(question.columns):
        before, after = question.cells[k], cells[k]
        if before == after or math.isnan(after):
            continue
        size = 1.0
        if isinstance(column, NumericColumn):
            size = abs(after - before) / column.std
        squares += size**2
        changes.append((column.name, question.shown(k, before), question.shown(k, after)))
    answers = question.answers(cells[None])[0]
    varied = np.isin([column.name for column in question.columns], [name for name, *_ in changes])
    text = unusual(question, cells[None], varied[None])[0]
    return Flip(tuple(changes), math.sqrt(squares), answers, text)
