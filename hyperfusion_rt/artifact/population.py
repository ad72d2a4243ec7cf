"""Whom a network was trained and tested on, in counts and figures that name nobody.

The artifact carries it, and its card shows it. It holds no row of the table, no id and no file
name. A count of fewer than `FEWEST_PEOPLE` persons is not told (None), nor is one from which such
a count could be computed: see `told`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from hyperfusion_rt.config import Frozen

# Of fewer persons no count is told.
FEWEST_PEOPLE = 5
# Of a target that is a number.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# By name; None: not told. "" is the name of what is not known.
Counts = dict[str, int | None]


class PartCounts(Frozen):
    """One part of the cohort, as the first member has it.

    `cases`: scans, of so many `people`. `sex`, `age` (decades): people, by their first case.
    `classes`: cases. `quantiles`: `QUANTILES` of a target that is a number, in its unit; empty
    where there are too few people.
    """

    name: str
    cases: int
    people: int
    sex: Counts = Field({})
    age: Counts = Field({})
    classes: Counts = Field({})
    quantiles: tuple[float, ...] = ()


class GroupFigures(Frozen):
    """The figures of one group in the test part; `cases` is None where it is not told.

    `figures`: empty where the group is too small for any.
    """

    name: str
    cases: int | None
    figures: dict[str, Any] = Field({})


class Bin(Frozen):
    """Answers that are about equally sure: their mean top probability, and how many are right."""

    cases: int
    probability: float
    accuracy: float


class Performance(Frozen):
    """The run's predictions of its test part, by group and by how sure they are.

    The figures of all cases are `provenance.metrics`. `reliability`: of classes, from the least
    sure to the surest. `notes`: why figures by a group are missing.
    """

    cases: int
    people: int
    sex: tuple[GroupFigures, ...] = ()
    age: tuple[GroupFigures, ...] = ()
    reliability: tuple[Bin, ...] = ()
    notes: tuple[str, ...] = ()


class Population(Frozen):
    """The cases of all parts together, then each part.

    `sex_column`, `age_column`: of the table, None where it has none. `missing`: the part of the
    cases in which a column of the table, a feature or the target, is empty. `spacing`: of each
    channel the smallest, median and largest edge of a voxel in mm. `scanners`: cases of each that a
    file beside the scan names. `left_out`: cases that could
    not be used, by code. `findings`: what the check of the study found odd about whole columns;
    `more_findings`: how many more there are, which quote cases.
    """

    cases: int
    people: int
    parts: tuple[PartCounts, ...]
    sex_column: str | None = None
    age_column: str | None = None
    missing: dict[str, float] = Field({})
    spacing: dict[str, tuple[float, float, float]] = Field({})
    scanners: Counts = Field({})
    left_out: Counts = Field({})
    findings: tuple[str, ...] = ()
    more_findings: int = 0
    performance: Performance | None = None


def told(counts: Mapping[str, int], people: Mapping[str, int] | None = None) -> Counts:
    """`counts` without those of fewer than `FEWEST_PEOPLE` persons; 0 is told.

    The sum of all is known, so what is not told is at least two groups, of `FEWEST_PEOPLE` persons
    together: the next smallest are not told, either.

    Args:
        people: how many persons each count is of, if it counts something else.
    """
    persons = counts if people is None else people
    hidden = {name for name in counts if 0 < persons[name] < FEWEST_PEOPLE}
    rest = sorted((n for n in counts if persons[n] and n not in hidden), key=persons.__getitem__)
    while hidden and rest and not _hides(hidden, persons):
        hidden.add(rest.pop(0))
    return {name: None if name in hidden else count for name, count in counts.items()}


def _hides(hidden: set[str], people: Mapping[str, int]) -> bool:
    return len(hidden) > 1 and sum(people[name] for name in hidden) >= FEWEST_PEOPLE
