"""Parts of a cohort with alike label, sex and age, and no subject in two of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import CohortError


@dataclass(frozen=True)
class Parts:
    """The parts of a cohort: `of [N]`, the number of each case's part; `test`, which is the test
    set; `validation`, which take turns as validation set: member m takes the m-th."""

    of: NDArray[np.int64]
    test: int
    validation: tuple[int, ...]
    named: bool = False  # the study itself says which is the test set

    def names(self, member: int) -> NDArray[np.str_]:
        """`train`, `validation` or `test` for every case [N]."""
        turn = self.validation[member % len(self.validation)]
        return np.where(
            self.of == self.test, "test", np.where(self.of == turn, "validation", "train")
        )


def age_bins(values: NDArray[np.float64], bins: int = 20) -> NDArray[np.int64]:
    """The bin, 0 to `bins` - 1 of equal width, of each value [N]; -1 where it is NaN."""
    known = values[np.isfinite(values)]
    if known.size == 0 or known.min() == known.max():
        return np.where(np.isfinite(values), 0, -1)
    edges = np.linspace(known.min(), known.max(), bins + 1)[1:-1]
    return np.where(np.isfinite(values), np.searchsorted(edges, values, side="right"), -1)


def stratified_parts(
    subjects: Sequence[str], strata: Sequence[tuple[object, ...]], parts: int, seed: int
) -> NDArray[np.int64]:
    """The part, 0 to `parts` - 1, of every case [N].

    A subject's cases (sessions) stay together, under the stratum of the first. Subjects are
    shuffled inside their stratum and dealt in turn, the strata one after the other, so that parts
    differ by at most one subject in all.

    Raises:
        CohortError: there are fewer subjects than parts.
    """
    first: dict[str, tuple[object, ...]] = {}
    for subject, stratum in zip(subjects, strata, strict=True):
        first.setdefault(subject, stratum)
    if len(first) < parts:
        raise CohortError(
            f"{len(first)} subjects cannot be split into {parts} parts; "
            "add subjects or lower training.parts",
            code="cohort-too-small",
        )
    groups: dict[str, list[str]] = defaultdict(list)
    for subject, stratum in first.items():
        groups[repr(stratum)].append(subject)
    rng = np.random.default_rng(seed)
    # Shuffled strata: otherwise the last, small ones would always meet the same part.
    names = sorted(groups)
    part: dict[str, int] = {}
    for index in rng.permutation(len(names)):
        members = sorted(groups[names[index]])
        for position in rng.permutation(len(members)):
            part[members[position]] = len(part) % parts
    return np.array([part[subject] for subject in subjects], np.int64)
