"""Parts of a cohort with alike label, sex and age, and no subject in two of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import CohortError


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


def split_names(part: NDArray[np.int64], parts: int, member: int) -> list[str]:
    """`train`, `validation` or `test` for every case [N]: the last part is the test set.

    Parts 0 to `parts` - 2 rotate as validation: member m takes part m.
    """
    validation = member % (parts - 1)
    return [
        "test" if p == parts - 1 else "validation" if p == validation else "train" for p in part
    ]
