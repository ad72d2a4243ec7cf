"""Charts of one subject: what the model answers to other rows, and what each cell adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyperfusion_rt.number_text import number
from hyperfusion_rt.runtime.explain.answers import Cell, Floats, Reasons, WhatIf
from hyperfusion_rt.runtime.outputs.chart import Axis, Chart

_MOST_LINES = 8  # of a surface over two columns


def cell_text(cell: Cell) -> str:
    """A cell for a reader; a gap is `not known`."""
    if cell is None:
        return "not known"
    return f"{cell:g}" if isinstance(cell, float | int) else cell


def what_if_charts(classes: tuple[str, ...], unit: str, found: Sequence[WhatIf]) -> list[Chart]:
    """A chart per question: the answer over the last column; of two columns, a line per first."""
    if not found:
        return []
    every = np.concatenate([w.values.ravel() for w in found])
    parts = [w.low for w in found if w.low is not None] + [
        w.high for w in found if w.high is not None
    ]
    every = np.concatenate([every, *(part.ravel() for part in parts)])
    y = Axis("probability", 0, 1, most=4) if classes else Axis.around(unit or "answer", every)
    if not classes:
        y = Axis(y.label, y.low, y.high, most=4)
    return [_what_if(classes, unit, one, y) for one in found]


def _what_if(classes: tuple[str, ...], unit: str, found: WhatIf, y: Axis) -> Chart:
    column, own = found.columns[-1], found.own[-1]
    cells = list(dict.fromkeys(point[-1] for point in found.points))
    numbers = [float(cell) for cell in cells if isinstance(cell, float | int)]
    of_names = len(numbers) < len(cells)
    x = (
        Axis.of_names(column, [_short(cell_text(cell)) for cell in cells])
        if of_names
        else _numeric(column, numbers)
    )
    place: dict[Cell, float] = {
        cell: float(n) if of_names else float(cell)  # type: ignore[arg-type]
        for n, cell in enumerate(cells)
    }
    title = f"If {' and '.join(found.columns)} were different"
    what = "probabilities" if classes else (unit or "answer")
    chart = Chart(title, f"The model's answer ({what}) over {column}", x, y, small=True)
    at = _own_place(found, place, x, of_names)
    if at is not None:
        chart.line([(at, y.low), (at, y.high)], dashed=True)
    one = len(found.columns) == 1
    if one:
        _of_one(chart, classes, found, place, of_names)
    else:
        _of_two(chart, classes, found, place)
    notes = []
    if at is not None:
        notes.append(f"dashed: this row, {cell_text(own)}")
    banded = found.low is not None and found.high is not None and (found.low < found.high).any()
    if banded and one:
        notes.append(
            "shaded: 5th to 95th percentile, had the gaps been measured (the line has them as gaps)"
        )
    unusual = sum(bool(text) for text in found.unusual)
    if unusual and one:
        notes.append(f"hollow: unlike the training table ({unusual} of {len(found.unusual)})")
    chart.note = _sentence("; ".join(notes))
    return chart


def _own_place(found: WhatIf, place: dict[Cell, float], x: Axis, of_names: bool) -> float | None:
    """Where the row itself stands on the axis; None where it is not among what is shown."""
    own = found.own[-1]
    others = {point[:-1] for point in found.points}
    if found.own[:-1] not in others:
        return None
    if own in place or of_names:
        return place.get(own)
    return float(own) if isinstance(own, float | int) and x.low <= own <= x.high else None


def _of_one(
    chart: Chart,
    classes: tuple[str, ...],
    found: WhatIf,
    place: dict[Cell, float],
    of_names: bool,
) -> None:
    xs = [place[point[-1]] for point in found.points]
    odd = [bool(text) for text in found.unusual] or [False] * len(xs)
    for c in range(found.values.shape[1]):
        line = list(zip(xs, found.values[:, c].tolist(), strict=True))
        if found.low is not None and found.high is not None:
            low = list(zip(xs, found.low[:, c].tolist(), strict=True))
            high = list(zip(xs, found.high[:, c].tolist(), strict=True))
            if of_names:
                for (x, bottom), (_, top) in zip(low, high, strict=True):
                    chart.line([(x, bottom), (x, top)], c)
            else:
                chart.band(low, high, c)
        if not of_names:
            chart.line(line, c)
        chart.points([p for p, bad in zip(line, odd, strict=True) if not bad and of_names], c, ())
        # Beyond the eighth colour a dot is hollow: as a point is that the training did not know.
        chart.points([p for p, bad in zip(line, odd, strict=True) if bad], c + 8)
        if classes:
            chart.legend.append((c, classes[c]))


def _of_two(
    chart: Chart, classes: tuple[str, ...], found: WhatIf, place: dict[Cell, float]
) -> None:
    """A line for each value of the first column, of the class that the row's own answer names."""
    c = int(found.answer.argmax()) if classes else 0
    firsts = list(dict.fromkeys(point[0] for point in found.points))
    step = max(1, -(-len(firsts) // _MOST_LINES))
    for n, first in enumerate(firsts[::step]):
        line = [
            (place[point[-1]], float(value))
            for point, value in zip(found.points, found.values[:, c], strict=True)
            if point[0] == first
        ]
        chart.line(line, n)
        chart.legend.append((n, f"{found.columns[0]} {cell_text(first)}"))
    if classes:
        chart.title += f": {classes[c]}"


def _numeric(label: str, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    return Axis(label, low, high if high > low else low + 1, most=5)


def _short(text: str) -> str:
    return text if len(text) <= 10 else f"{text[:9]}…"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


@dataclass(frozen=True)
class ReasonBar:
    """What a cell adds to the answer. `left`, `width`: of its bar, in % of the drawing."""

    column: str
    cell: str
    text: str
    left: float
    width: float
    raises: bool


@dataclass(frozen=True)
class ReasonBars:
    """The bars of one answer, the largest first. `of`: a class, or the target's name."""

    of: str
    usual: str
    answer: str
    bars: tuple[ReasonBar, ...]
    error: str = ""


def reason_bars(classes: tuple[str, ...], target: str, found: Reasons) -> ReasonBars:
    """The Shapley values of the class that the model names, or of the number."""
    c = int(found.answer.argmax()) if classes else 0
    values: Floats = found.values[:, c]
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    order = sorted(range(len(values)), key=lambda k: -abs(values[k]))
    bars = tuple(
        ReasonBar(
            found.columns[k],
            cell_text(found.cells[k]),
            f"{values[k]:+.3f}".replace("-", "−") if classes else _signed(float(values[k])),
            round(50 + 50 * min(0.0, float(values[k])) / largest, 1),
            round(50 * abs(float(values[k])) / largest, 1),
            bool(values[k] >= 0),
        )
        for k in order
    )
    return ReasonBars(
        f"P({classes[c]})" if classes else target,
        number(float(found.usual[c])),
        number(float(found.answer[c])),
        bars,
        "" if found.error is None else number(found.error),
    )


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "−") + number(abs(value))
