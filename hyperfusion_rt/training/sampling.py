"""Which samples an epoch reads, and in which batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def epoch_samples(
    train: Indices, targets: NDArray[np.float64], balanced: bool, rng: np.random.Generator
) -> Indices:
    """The samples of one epoch, as many as `train` has.

    All of them once; or, `balanced`, as many of each class (`targets`, of all cases), each class's
    drawn without repetition as far as they go.
    """
    if not balanced:
        return train
    groups = [train[targets[train] == value] for value in np.unique(targets[train])]
    sizes = [len(train) // len(groups) + (g < len(train) % len(groups)) for g in range(len(groups))]
    chosen = []
    for group, size in zip(groups, sizes, strict=True):
        rounds = -(-size // len(group))
        chosen.append(np.concatenate([rng.permutation(group) for _ in range(rounds)])[:size])
    return np.concatenate(chosen)


def batches(indices: Indices, size: int, rng: np.random.Generator, least: int = 2) -> list[Indices]:
    """Shuffled batches; a last batch of fewer than `least` is left out.

    Batch norm cannot use one sample.
    """
    order = rng.permutation(indices)
    found = [order[i : i + size] for i in range(0, len(order), size)]
    return [batch for batch in found if len(batch) >= least or len(order) == 1]
