"""What questions to a model answer: the types that `runtime.explain` makes and the outputs write.

All of it is the model's answer, and no effect of anything: a network that answers otherwise for
another age says nothing of what ageing does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Cell = float | str | None  # of a table: a number, a category, or a gap


@dataclass(frozen=True)
class WhatIf:
    """The model's answers to one scan with other rows.

    `columns` [K]: those that vary. `points` [P], each of K cells: every combination, the last
    column fastest. `values [P, C]`: probabilities in the order of the classes, or a number (C = 1)
    in the model's unit. `low`, `high [P, C]`: from the 5th to the 95th percentile of the answers if
    the row's missing cells had been measured, drawn from the training table given the cells that
    are known; None where nothing is missing, or the artifact carries no such summary. `unusual`
    [P]: why a point is unlike the training table; empty where it is not. `own`: the row's own cells
    of `columns`; `answer [C]`: the model's answer to the row as it is.
    """

    columns: tuple[str, ...]
    points: tuple[tuple[Cell, ...], ...]
    values: Floats
    low: Floats | None
    high: Floats | None
    unusual: tuple[str, ...]
    own: tuple[Cell, ...]
    answer: Floats


@dataclass(frozen=True)
class Flip:
    """The smallest change of a row that changes its answer.

    `changes`: (column, from, to) of each cell that changes. `distance`: how large that is, in
    standard deviations of the training table, a change of category counting as one. `values [C]`:
    the answer then. `unusual`: as in `WhatIf`.
    """

    changes: tuple[tuple[str, Cell, Cell], ...]
    distance: float
    values: Floats
    unusual: str = ""


@dataclass(frozen=True)
class Reasons:
    """Shapley values: what each cell of a row adds to the answer, against the training table.

    `columns` [K] with their `cells`. `values [K, C]`, in the unit of the answer: `usual + the sum
    of values = answer`. `usual [C]`: the mean answer to this scan over the rows of the training
    table's summary; `answer [C]`: to the row. `error`: the standard error of the values where they
    were sampled, None where they are exact.
    """

    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    values: Floats
    usual: Floats
    answer: Floats
    error: float | None = None


@dataclass(frozen=True)
class Region:
    """A region of an atlas: the `share` of the map's mass (of absolute values) that lies in it, and
    the `mean` of the map over it, in the unit of the answer."""

    name: str
    share: float
    mean: float


@dataclass(frozen=True)
class ImageMap:
    """What places of a scan add to the answer.

    `voxels float32 [D, H, W]` with `affine [4, 4]` (voxel → mm): on the scan's own grid; 0 outside
    the model's boxes. In the unit of the answer: positive where hiding the place lowers
    it. `of`: which answer, a class or the target's name. `method`: `occlusion` or
    `integrated gradients`. `regions`: of `atlas`, the largest share first; empty without an atlas.
    """

    voxels: NDArray[np.float32]
    affine: Floats
    of: str
    method: str
    regions: tuple[Region, ...] = ()
    atlas: str = ""
