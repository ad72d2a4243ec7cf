"""One scan and one row that a model can be asked about: the trunk has read the scan, once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.table_summary import TableSummary
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.encoder_columns import CategoricalColumn, Column
from hyperfusion_rt.data.table_file import Row
from hyperfusion_rt.errors import TableError
from hyperfusion_rt.runtime.explain.answers import Cell
from hyperfusion_rt.runtime.network import Features, Network, repeated

Floats = NDArray[np.float64]

# Rows that the head reads in one call: their features and inputs stay in the cache.
_ROWS = 1024


@dataclass(frozen=True)
class Question:
    """`features`: `[1, ...]` each; `cells [K]`: of the row, see `TabularEncoder.cells`."""

    network: Network
    features: Features
    cells: Floats

    @classmethod
    def of(cls, network: Network, features: Features, row: Row) -> Question:
        """Of a table's row.

        Raises:
            TableError: a cell cannot be read.
        """
        return cls(network, features, network.manifest.members[0].cells(row))

    @property
    def columns(self) -> tuple[Column, ...]:
        """The model's columns of the table, K."""
        return self.network.manifest.members[0].columns

    @property
    def summary(self) -> TableSummary | None:
        """What the training table was like, where the artifact says it."""
        return self.network.manifest.table_summary

    def answers(self, cells: Floats) -> Floats:
        """`cells [P, K]` → the model's answers `[P, C]`: probabilities, or a number.

        Raises:
            TableError: a cell is missing, or has a category, that a member has not learned.
            EngineError: an answer is not finite.
        """
        members = self.network.manifest.members
        rows = np.concatenate([_encoded(member, members[0], cells) for member in members], 1)
        batch = repeated(self.features, min(_ROWS, len(cells)))
        found = []
        for start in range(0, len(cells), _ROWS):
            part = rows[start : start + _ROWS]
            features = {name: array[: len(part)] for name, array in batch.items()}
            found.append(self.network.values(self.network.finish(features, part))[0])
        return np.concatenate(found)

    def shown(self, column: int, value: float) -> Cell:
        """A cell as a person writes it."""
        return shown(self.columns[column], value)


def shown(column: Column, value: float) -> Cell:
    """A cell of a column as a person writes it."""
    if math.isnan(value):
        return None
    return column.categories[int(value)] if isinstance(column, CategoricalColumn) else float(value)


def _encoded(member: TabularEncoder, first: TabularEncoder, cells: Floats) -> NDArray[np.float32]:
    """`cells`, written with the categories of `first`, as `member` encodes them."""
    if member is first:
        return member.encode_cells(cells)
    cells = cells.copy()
    for index, (own, other) in enumerate(zip(member.columns, first.columns, strict=True)):
        if not isinstance(own, CategoricalColumn) or not isinstance(other, CategoricalColumn):
            continue
        if own.categories == other.categories:
            continue
        places = {name.casefold(): place for place, name in enumerate(own.categories)}
        values = cells[:, index]
        for value in np.unique(values[~np.isnan(values)]):
            name = other.categories[int(value)]
            if name.casefold() not in places:
                raise TableError(
                    f"column {own.name!r}: a member of this model has not learned {name!r}",
                    code="table-unknown-category",
                )
        known = [places.get(name.casefold(), -1) for name in other.categories]
        there = ~np.isnan(values)
        cells[there, index] = np.array(known)[values[there].astype(int)]
    return member.encode_cells(cells)


def column_index(columns: Sequence[Column], name: str, parameter: str) -> int:
    """The place of the column `name`, whose case does not matter.

    Raises:
        TableError: the model reads no such column.
    """
    from hyperfusion_rt.data.table_file import suggest

    names = [column.name for column in columns]
    name = str(name)
    folded = [known.casefold() for known in names]
    if name.casefold() in folded:
        return folded.index(name.casefold())
    raise TableError(
        f"`{parameter}` {name}: the model reads no such column{suggest(name, names)}; it reads "
        f"{', '.join(names)}",
        code="what-if-unknown-column",
    )
