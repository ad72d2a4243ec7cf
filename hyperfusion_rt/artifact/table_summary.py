"""What the training table was like, without any patient's row.

Of each column its levels with their shares, or the quantiles of its numbers; how the columns go
together, as the correlation of their normal scores (a Gaussian copula); and which pairs of values
fewer than `FEWEST` rows had. From that come: what a missing cell may be given the known ones; rows
to compare an answer with; whether a row is unlike all of the training.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hyperfusion_rt.data.encoder import by_pattern
from hyperfusion_rt.data.encoder_columns import CategoricalColumn, Column, Fitted

Floats = NDArray[np.float64]

# Fewer training rows than these had a pair of values: the pair is "rare". Also the least number of
# rows that a figure of the summary stands for.
FEWEST = 3
# A number with at most so many values has levels.
_LEVELS = 10
_PROBABILITIES = (0.0, 0.01, 0.05, *(i / 10 for i in range(1, 10)), 0.95, 0.99, 1.0)
# The normal score of the smallest and of the largest value.
_EXTREME = 3.0
# Pairs of values are counted in at most so many bins of a column, and in fewer where there would be
# less rows in a pair of bins of independent columns.
_BINS, _ROWS_PER_BIN = 10, 10
# Correlations from few rows are drawn towards 0, as if so many rows without any were added.
_SHRINK = 5
_FARTHEST = 0.99


def _scores(probabilities: Sequence[float]) -> Floats:
    inner = [min(max(p, 1e-9), 1 - 1e-9) for p in probabilities]
    found = np.array([NormalDist().inv_cdf(p) for p in inner])
    result: Floats = np.clip(found, -_EXTREME, _EXTREME)
    return result


def _interpolated(cells: Floats, values: Floats | tuple[float, ...], scores: Floats) -> Floats:
    """NaN of a gap, also where there is one value only."""
    found: Floats = np.interp(cells, values, scores)
    return np.where(np.isnan(cells), np.nan, found)


_KNOTS = _scores(_PROBABILITIES)


class Quantiles(Fitted):
    """A column of numbers: their quantiles at `_PROBABILITIES`. `missing`: the share of gaps."""

    kind: Literal["quantiles"] = "quantiles"
    name: str
    values: tuple[float, ...] = Field(
        min_length=len(_PROBABILITIES), max_length=len(_PROBABILITIES)
    )
    missing: float = Field(ge=0, lt=1)

    @cached_property
    def _knots(self) -> tuple[Floats, Floats]:
        """Values with their scores: of equal quantiles, the mean score."""
        values, knot = np.unique(self.values, return_inverse=True)
        return values, np.bincount(knot, _KNOTS) / np.bincount(knot)

    def scores(self, cells: Floats) -> Floats:
        """The normal score of each cell; NaN of a gap."""
        return _interpolated(cells, *self._knots)

    def cells(self, scores: Floats) -> Floats:
        """The cell of each normal score."""
        found: Floats = np.interp(scores, _KNOTS, self.values)
        return found

    def edges(self, bins: int) -> Floats:
        """Between the bins of equal shares, as far as these differ."""
        inner = np.interp(np.arange(1, bins) / bins, _PROBABILITIES, self.values)
        return np.unique(inner)

    def bin_text(self, edges: Floats, index: int) -> str:
        """`AGE 55 to 61.3`."""
        limits = [self.values[0], *edges, self.values[-1]]
        return f"{self.name} {limits[index]:.4g} to {limits[index + 1]:.4g}"


class Levels(Fitted):
    """A column with few values: each with its share.

    `values`: numbers; of categories their places among the column's, whose `names` they have.
    """

    kind: Literal["levels"] = "levels"
    name: str
    values: tuple[float, ...] = Field(min_length=1)
    shares: tuple[float, ...]
    names: tuple[str, ...]
    missing: float = Field(ge=0, lt=1)

    @cached_property
    def _ends(self) -> Floats:
        return np.cumsum(self.shares) / sum(self.shares)

    @cached_property
    def _middles(self) -> Floats:
        starts = np.concatenate([[0.0], self._ends[:-1]])
        return _scores(list((starts + self._ends) / 2))

    @cached_property
    def _limits(self) -> Floats:
        return _scores(list(self._ends[:-1]))

    def scores(self, cells: Floats) -> Floats:
        """As `Quantiles.scores`: of the middle of a level's part of the distribution."""
        return _interpolated(cells, self.values, self._middles)

    def cells(self, scores: Floats) -> Floats:
        """As `Quantiles.cells`."""
        found: Floats = np.array(self.values)[np.searchsorted(self._limits, scores, "right")]
        return found

    def edges(self, bins: int) -> Floats:
        """Between the levels, whatever `bins` is."""
        values = np.array(self.values)
        found: Floats = (values[1:] + values[:-1]) / 2
        return found

    def bin_text(self, edges: Floats, index: int) -> str:
        """`APOE4 2`."""
        return f"{self.name} {self.names[index]}"


Summary = Annotated[Quantiles | Levels, Field(discriminator="kind")]


class Pair(Fitted):
    """Two columns, and which pairs of their `bins` fewer than `FEWEST` training rows had.

    `bins`: how many a column of numbers is cut into, of equal shares. `rare`: bins `a.b`.
    """

    first: int
    second: int
    bins: int = Field(ge=1)
    rare: tuple[str, ...]


class TableSummary(Fitted):
    """See the module. K columns, in the order of the encoder's.

    `correlation` [K, K]: of normal scores. `pairs`: those of which enough rows had both cells.
    `farthest`: the distance (see `distances`) that 99 % of the training rows stay within.
    """

    rows: int = Field(ge=1)
    columns: tuple[Summary, ...]
    correlation: tuple[tuple[float, ...], ...]
    pairs: tuple[Pair, ...]
    farthest: float = Field(ge=0)

    @classmethod
    def fit(cls, cells: Floats, columns: Sequence[Column]) -> TableSummary:
        """Of training rows `cells [N, K]`, as `TabularEncoder.cells` gives them."""
        found = tuple(_summary(c, column) for c, column in zip(cells.T, columns, strict=True))
        scores = np.stack([s.scores(c) for s, c in zip(found, cells.T, strict=True)], 1)
        correlation = _correlation(scores)
        draft = cls(
            rows=len(cells),
            columns=found,
            correlation=tuple(tuple(float(r) for r in row) for row in correlation),
            pairs=tuple(_pairs(cells, found)),
            farthest=0.0,
        )
        distances = draft.distances(cells)
        return draft.model_copy(update={"farthest": float(np.quantile(distances, _FARTHEST))})

    @cached_property
    def _matrix(self) -> Floats:
        return np.array(self.correlation, np.float64)

    @cached_property
    def _inverses(self) -> dict[tuple[int, ...], Floats]:
        return {}

    def _inverse(self, known: tuple[int, ...]) -> Floats:
        """Of the correlation of some columns."""
        if known not in self._inverses:
            found = np.linalg.inv(self._matrix[np.ix_(known, known)])
            self._inverses[known] = np.asarray(found, np.float64)
        return self._inverses[known]

    @cached_property
    def _rare(self) -> _RarePairs:
        return _RarePairs.of(self)

    def scores(self, cells: Floats) -> Floats:
        """`cells [N, K]` → normal scores, NaN where one is missing."""
        return np.stack([s.scores(c) for s, c in zip(self.columns, cells.T, strict=True)], 1)

    def distances(self, cells: Floats) -> Floats:
        """`[N]`: how far rows `cells [N, K]` lie from the middle of the training table.

        The Mahalanobis distance of the normal scores of the known cells, over the root of their
        number: about 1 for a usual row, whatever is missing of it.
        """
        scores = self.scores(cells)
        found = np.zeros(len(cells))
        known = ~np.isnan(scores)
        for pattern, rows in by_pattern(known):
            there = np.flatnonzero(pattern)
            if len(there):
                z = scores[rows][:, there]
                # Not a matrix product: that may add up in another order for another N.
                along = np.einsum("ni,ij->nj", z, self._inverse(tuple(there.tolist())))
                found[rows] = np.sqrt((along * z).sum(1) / len(there))
        return found

    def draw(self, cells: Floats, count: int, seed: int = 0) -> Floats:
        """`[N, count, K]`: `cells [N, K]` with what is missing drawn, given what is known.

        All rows lack the same cells. With nothing known: rows as the training table had them. The
        noise of one seed is the same for every row, so that curves are smooth.
        """
        scores = self.scores(cells)
        missing = np.isnan(scores[0])
        gap, known = np.flatnonzero(missing), np.flatnonzero(~missing)
        found = np.repeat(cells[:, None], count, 1)
        if not len(gap):
            return found
        across = self._matrix[np.ix_(gap, known)]
        solved = across @ self._inverse(tuple(known.tolist()))
        left = self._matrix[np.ix_(gap, gap)] - solved @ across.T
        values, vectors = np.linalg.eigh(left)
        root = vectors * np.sqrt(np.maximum(values, 0))
        noise = np.random.default_rng(seed).standard_normal((count, len(gap))) @ root.T
        drawn = (scores[:, known] @ solved.T)[:, None] + noise
        for index, column in enumerate(gap):
            found[:, :, column] = self.columns[column].cells(drawn[:, :, index])
        return found

    def background(self, count: int, seed: int = 0) -> Floats:
        """`[count, K]`: rows as the training table had them, with gaps as frequent as there."""
        found = self.draw(np.full((1, len(self.columns)), np.nan), count, seed)[0]
        missing = np.array([column.missing for column in self.columns])
        gaps = np.random.default_rng([seed, 1]).random(found.shape) < missing
        return np.where(gaps, np.nan, found)

    def unusual(self, cells: Floats, varied: NDArray[np.bool_] | None = None) -> list[str]:
        """Why each of the rows `cells [N, K]` is unlike the training table; empty where it is not.

        Args:
            varied: `[N, K]`, cells of which every pair with another is looked at, beside the whole
                row.
        """
        texts: dict[int, list[str]] = defaultdict(list)
        if varied is not None:
            for row, text in self._rare.found(cells, varied):
                texts[row].append(text)
        far = self.distances(cells) > self.farthest
        for row in np.flatnonzero(far).tolist():
            texts[row].append("farther from the training table than 99 % of its rows")
        return ["; ".join(texts.get(row, ())) for row in range(len(cells))]


@dataclass(frozen=True)
class _RarePairs:
    """The pairs of a summary as one table, so that all pairs of many rows are looked up at once.

    `bins` [U]: each way in which the bins of a column are cut, with the column; `words`: what they
    are called. `first`, `second` [P]: of these, those of a pair. `start`, `width` [P]: where a
    pair's bins start in `rare`, and how many the second has. A gap lies in a bin of its own, which
    is never rare.
    """

    bins: list[tuple[int, Floats]]
    words: list[list[str]]
    first: NDArray[np.intp]
    second: NDArray[np.intp]
    start: NDArray[np.intp]
    width: NDArray[np.intp]
    rare: NDArray[np.bool_]

    @classmethod
    def of(cls, summary: TableSummary) -> _RarePairs:
        """Of a summary whose pairs are known."""
        cuts: dict[tuple[int, int], int] = {}
        bins: list[tuple[int, Floats]] = []
        places = []
        tables: list[NDArray[np.bool_]] = []
        pairs = [pair for pair in summary.pairs if pair.rare]
        for pair in pairs:
            shape = []
            for column in (pair.first, pair.second):
                if (column, pair.bins) not in cuts:
                    cuts[column, pair.bins] = len(bins)
                    bins.append((column, summary.columns[column].edges(pair.bins)))
                at = cuts[column, pair.bins]
                places.append(at)
                shape.append(len(bins[at][1]) + 2)
            table = np.zeros(shape, bool)
            table[tuple(np.array([text.split(".") for text in pair.rare], int).T)] = True
            tables.append(table)
        sizes = np.array([0, *(table.size for table in tables)], np.intp)
        texts = [
            [summary.columns[k].bin_text(edges, i) for i in range(len(edges) + 1)]
            for k, edges in bins
        ]
        return cls(
            bins,
            texts,
            np.array(places[::2], np.intp),
            np.array(places[1::2], np.intp),
            np.cumsum(sizes)[:-1],
            np.array([table.shape[1] for table in tables], np.intp),
            np.concatenate([np.zeros(0, bool), *(table.ravel() for table in tables)]),
        )

    def found(self, cells: Floats, varied: NDArray[np.bool_]) -> Iterator[tuple[int, str]]:
        """Rows of `cells [N, K]` and what is rare of them, of pairs with a cell of `varied`."""
        if not len(self.first):
            return
        places = np.empty((len(self.bins), len(cells)), np.intp)
        for at, (column, edges) in enumerate(self.bins):
            values = cells[:, column]
            places[at] = np.searchsorted(edges, values, "right")
            places[at, np.isnan(values)] = len(edges) + 1
        index = self.start[:, None] + places[self.first] * self.width[:, None]
        index += places[self.second]
        changed = varied.T[[column for column, _ in self.bins]]
        looked = changed[self.first] | changed[self.second]
        for pair, row in zip(*np.nonzero(self.rare[index] & looked), strict=True):
            one, other = self.first[pair], self.second[pair]
            a, b = self.words[one][places[one, row]], self.words[other][places[other, row]]
            yield int(row), f"fewer than {FEWEST} training rows had {a} with {b}"


def _summary(cells: Floats, column: Column) -> Quantiles | Levels:
    known = cells[~np.isnan(cells)]
    missing = 1 - len(known) / len(cells)
    if isinstance(column, CategoricalColumn):
        counts = np.bincount(known.astype(int), minlength=len(column.categories))
        return Levels(
            name=column.name,
            values=tuple(float(i) for i in range(len(counts))),
            shares=tuple(float(n) / len(known) for n in counts),
            names=column.categories,
            missing=missing,
        )
    levels, times = np.unique(known, return_counts=True)
    if len(levels) <= _LEVELS:
        return Levels(
            name=column.name,
            values=tuple(float(v) for v in levels),
            shares=tuple(float(n) / len(known) for n in times),
            names=tuple(f"{v:g}" for v in levels),
            missing=missing,
        )
    values = tuple(float(v) for v in np.quantile(known, _PROBABILITIES))
    return Quantiles(name=column.name, values=values, missing=missing)


def _correlation(scores: Floats) -> Floats:
    """`[K, K]`, of the rows that have both of a pair; made positive definite."""
    count = scores.shape[1]
    found = np.eye(count)
    for i in range(count):
        for j in range(i):
            a, b = scores[~np.isnan(scores[:, i]) & ~np.isnan(scores[:, j])][:, [i, j]].T
            if len(a) > FEWEST and np.ptp(a) > 0 and np.ptp(b) > 0:
                r = np.corrcoef(a, b)[0, 1] * len(a) / (len(a) + _SHRINK)
                found[i, j] = found[j, i] = r
    values, vectors = np.linalg.eigh(found)
    positive = (vectors * np.maximum(values, 0.01)) @ vectors.T
    scale = np.sqrt(np.diag(positive))
    result: Floats = positive / np.outer(scale, scale)
    return result


def _pairs(cells: Floats, columns: Sequence[Quantiles | Levels]) -> Iterator[Pair]:
    for i, first in enumerate(columns):
        for j, second in enumerate(columns[:i]):
            x, y = cells[~np.isnan(cells[:, i]) & ~np.isnan(cells[:, j])][:, [j, i]].T
            bins = min(int(np.sqrt(len(x) / _ROWS_PER_BIN)), _BINS)
            if bins < 2:
                continue
            ends = second.edges(bins), first.edges(bins)
            counts = np.zeros((len(ends[0]) + 1, len(ends[1]) + 1), int)
            places = [np.searchsorted(e, v, "right") for e, v in zip(ends, (x, y), strict=True)]
            np.add.at(counts, tuple(places), 1)
            rare = zip(*np.nonzero(counts < FEWEST), strict=True)
            yield Pair(first=j, second=i, bins=bins, rare=tuple(f"{a}.{b}" for a, b in rare))
