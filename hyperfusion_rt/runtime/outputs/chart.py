"""Charts of the report as inline SVG: axes, lines and points, in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

# Of the drawing, in its own units: the page scales it.
WIDTH, HEIGHT = 440.0, 380.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 428.0, 10.0, 322.0
_TICKS = 6
_MOST = 4000  # points that are drawn

Points = Iterable[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, with its `label` (and the unit in it).

    Without `numbers` it has no ticks: a legend says what stands where.
    """

    label: str
    low: float
    high: float
    numbers: bool = True

    @classmethod
    def around(cls, label: str, values: Iterable[float]) -> Axis:
        """An axis on which all values fit, with a margin."""
        values = list(values)
        low, high = min(values), max(values)
        margin = 0.05 * (high - low) or max(1.0, 0.05 * abs(high))
        return cls(label, low - margin, high + margin)

    def ticks(self) -> list[float]:
        """About six round numbers on the axis."""
        if not self.numbers:
            return []
        span = self.high - self.low
        base = 10.0 ** math.floor(math.log10(span / _TICKS))
        step = next(base * k for k in (1, 2, 5, 10) if base * k * _TICKS >= span * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        return [(first + n) * step for n in range(count)]


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
class Tick:
    """A tick: where, and its number."""

    place: float
    text: str


@dataclass
class Chart:
    """One drawing: `title` above it, `alt` says in words what it shows."""

    title: str
    alt: str
    x: Axis
    y: Axis
    lines: list[Line] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    legend: list[tuple[int, str]] = field(default_factory=list)
    note: str = ""

    @property
    def x_ticks(self) -> list[Tick]:
        """Along the lower edge."""
        return [Tick(self._place(value, 0.0)[0], _text(value)) for value in self.x.ticks()]

    @property
    def y_ticks(self) -> list[Tick]:
        """Along the left edge."""
        return [Tick(self._place(0.0, value)[1], _text(value)) for value in self.y.ticks()]

    def line(self, points: Points, colour: int | None = None, *, dashed: bool = False) -> None:
        """Join `points`; grey without a colour."""
        places = [self._place(*point) for point in points]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        self.lines.append(Line(text, colour, dashed))

    def points(self, points: Points, colour: int = 0, sizes: Sequence[float] = ()) -> None:
        """Draw a dot at each of `points`; at most 4000, evenly chosen."""
        places = [self._place(*point) for point in points]
        step = max(1, math.ceil(len(places) / _MOST))
        if step > 1:
            self.note = f"one of {step} is drawn, of {len(places):,} cases"
        sizes = sizes or [3.0] * len(places)
        chosen = list(zip(places, sizes, strict=True))[::step]
        self.dots += [Dot(round(x, 1), round(y, 1), size, colour) for (x, y), size in chosen]

    def _place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x.low) / (self.x.high - self.x.low)
        up = (y - self.y.low) / (self.y.high - self.y.low)
        return LEFT + across * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)


@dataclass(frozen=True)
class Charts:
    """Charts side by side."""

    template: ClassVar[str] = "charts.html"
    charts: tuple[Chart, ...]
    width: ClassVar[float] = WIDTH
    height: ClassVar[float] = HEIGHT
    left: ClassVar[float] = LEFT
    right: ClassVar[float] = RIGHT
    top: ClassVar[float] = TOP
    bottom: ClassVar[float] = BOTTOM


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
