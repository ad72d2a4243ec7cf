"""Charts of the report as inline SVG: axes, lines, bars and points, in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

_TICKS = 6
_MOST = 4000  # points that are drawn

Points = Iterable[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, with its `label` (and the unit in it).

    Without `numbers` it has no ticks: a legend says what stands where. `names`: of categories,
    which stand at 0, 1, 2, ...
    """

    label: str
    low: float
    high: float
    numbers: bool = True
    names: tuple[str, ...] = ()
    most: int = _TICKS

    @classmethod
    def around(cls, label: str, values: Iterable[float]) -> Axis:
        """An axis on which all values fit, with a margin."""
        values = list(values)
        low, high = min(values), max(values)
        margin = 0.05 * (high - low) or max(1.0, 0.05 * abs(high))
        return cls(label, low - margin, high + margin)

    @classmethod
    def of_names(cls, label: str, names: Sequence[str]) -> Axis:
        """An axis of categories."""
        return cls(label, -0.5, len(names) - 0.5, names=tuple(names))

    def ticks(self) -> list[float]:
        """About six round numbers on the axis, or the categories' places."""
        if self.names:
            return [float(n) for n in range(len(self.names))]
        if not self.numbers:
            return []
        span = self.high - self.low
        base = 10.0 ** math.floor(math.log10(span / self.most))
        step = next(base * k for k in (1, 2, 5, 10) if base * k * self.most >= span * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        return [(first + n) * step for n in range(count)]

    def text(self, value: float) -> str:
        """What stands at a tick."""
        return self.names[round(value)] if self.names else _text(value)


@dataclass(frozen=True)
class Line:
    """A drawn line: its points `x,y x,y ...`, its colour's number (none: grey), its look."""

    points: str
    colour: int | None
    dashed: bool


@dataclass(frozen=True)
class Dot:
    """A drawn point."""

    x: float
    y: float
    size: float
    colour: int


@dataclass(frozen=True)
class Bar:
    """A drawn bar, from its upper left corner."""

    x: float
    y: float
    width: float
    height: float
    colour: int


@dataclass(frozen=True)
class Tick:
    """A tick: where, and its number."""

    place: float
    text: str


@dataclass
class Chart:
    """One drawing: `title` above it, `alt` says in words what it shows.

    `small`: one of many; fewer ticks, and the label of its y axis is left to the title. The
    numbers of the drawing are in units of its own: the page scales it.
    """

    title: str
    alt: str
    x: Axis
    y: Axis
    small: bool = False
    lines: list[Line] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    bands: list[Line] = field(default_factory=list)
    legend: list[tuple[int, str]] = field(default_factory=list)
    note: str = ""
    top: ClassVar[float] = 10.0

    @cached_property
    def width(self) -> float:
        """Of the whole drawing."""
        return 300.0 if self.small else 440.0

    @cached_property
    def height(self) -> float:
        """Of the whole drawing."""
        return 200.0 if self.small else 380.0

    @cached_property
    def left(self) -> float:
        """Where the frame begins."""
        return 40.0 if self.small else 62.0

    @cached_property
    def right(self) -> float:
        """Where the frame ends."""
        return self.width - 12

    @cached_property
    def bottom(self) -> float:
        """Where the frame ends."""
        return self.height - (44 if self.small else 58)

    @property
    def x_ticks(self) -> list[Tick]:
        """Along the lower edge."""
        return [Tick(self._place(value, 0.0)[0], self.x.text(value)) for value in self.x.ticks()]

    @property
    def y_ticks(self) -> list[Tick]:
        """Along the left edge."""
        return [Tick(self._place(0.0, value)[1], self.y.text(value)) for value in self.y.ticks()]

    def line(self, points: Points, colour: int | None = None, *, dashed: bool = False) -> None:
        """Join `points`; grey without a colour."""
        self.lines.append(Line(self._path(points), colour, dashed))

    def band(self, low: Points, high: Points, colour: int | None = None) -> None:
        """Fill what lies between two lines, lightly."""
        self.bands.append(Line(self._path([*low, *list(high)[::-1]]), colour, False))

    def bar(self, low: float, high: float, value: float, colour: int = 0) -> None:
        """A bar from `low` to `high` on the x axis, from 0 to `value`."""
        (x, y), (end, base) = self._place(low, value), self._place(high, max(0.0, self.y.low))
        width, height = round(end - x, 1), round(base - y, 1)
        self.bars.append(Bar(round(x, 1), round(y, 1), width, height, colour))

    def points(self, points: Points, colour: int = 0, sizes: Sequence[float] = ()) -> None:
        """Draw a dot at each of `points`; at most 4000, evenly chosen."""
        places = [self._place(*point) for point in points]
        step = max(1, math.ceil(len(places) / _MOST))
        if step > 1:
            self.note = f"one of {step} is drawn, of {len(places):,} cases"
        sizes = sizes or [3.0] * len(places)
        chosen = list(zip(places, sizes, strict=True))[::step]
        self.dots += [Dot(round(x, 1), round(y, 1), size, colour) for (x, y), size in chosen]

    def _path(self, points: Points) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (self._place(*point) for point in points))

    def _place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x.low) / (self.x.high - self.x.low)
        up = (y - self.y.low) / (self.y.high - self.y.low)
        return (
            self.left + across * (self.right - self.left),
            self.bottom - up * (self.bottom - self.top),
        )


@dataclass(frozen=True)
class Charts:
    """Charts side by side."""

    template: ClassVar[str] = "charts.html"
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Confusion:
    """How often each true class (rows) was predicted as each class (columns)."""

    template: ClassVar[str] = "confusion.html"
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> list[tuple[str, int, list[tuple[int, float]]]]:
        """(class, its cases, [(count, part of the row)])."""
        return [
            (name, sum(line), [(n, n / sum(line) if sum(line) else 0.0) for n in line])
            for name, line in zip(self.classes, self.counts, strict=True)
        ]


def _text(value: float) -> str:
    return f"{value:.6g}".replace("-", "−") if abs(value) > 1e-12 else "0"
