"""What each cell of a row adds to the model's answer: Shapley values over the table's columns.

    φ_k = Σ_S |S|! (K - |S| - 1)! / K! · (v(S + k) - v(S)),   S: the subsets of the other columns
    v(S) = mean over background rows b of answer(the row's cells in S, b's cells elsewhere)

(Shapley 1953; Lundberg & Lee, NeurIPS 2017, with the marginal expectation.) All 2^K subsets up to
12 columns; beyond, permutations are sampled in pairs, each with its reverse (Mitchell et al., JMLR
2022), and the standard error is stated. The background is drawn from the training table's summary.
"""

from __future__ import annotations

from math import factorial

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import ArtifactError
from hyperfusion_rt.runtime.explain.answers import Reasons
from hyperfusion_rt.runtime.explain.question import Question

Floats = NDArray[np.float64]

MOST_EXACT = 12
_BACKGROUND = 64
_PAIRS = 64  # of sampled permutations


def shapley(question: Question, background: int = _BACKGROUND, seed: int = 0) -> Reasons:
    """The Shapley values of a row, against `background` rows.

    Raises:
        ArtifactError: the artifact says nothing of the training table.
        EngineError: an answer is not finite.
    """
    summary = question.summary
    if summary is None:
        raise ArtifactError(
            f"{question.network.artifact.folder}: says nothing of the training table, which an "
            "answer's reasons are measured against; export it again where the study is",
            code="artifact-lacks-summary",
        )
    rows = summary.background(background, seed)
    count = len(question.columns)
    answer = question.answers(question.cells[None])[0]
    error = None
    if count <= MOST_EXACT:
        values, usual = _exact(question, rows)
    else:
        values, usual, error = _sampled(question, rows, seed)
    return Reasons(
        tuple(column.name for column in question.columns),
        tuple(question.shown(k, value) for k, value in enumerate(question.cells)),
        values,
        usual,
        answer,
        error,
    )


def _exact(question: Question, rows: Floats) -> tuple[Floats, Floats]:
    """`[K, C]` and `[C]`."""
    count = len(question.columns)
    subsets = np.arange(2**count)
    inside = (subsets[:, None] >> np.arange(count) & 1).astype(bool)  # [2^K, K]
    worth = _worth(question, rows, inside)
    sizes = inside.sum(1)
    weights = [factorial(s) * factorial(count - s - 1) / factorial(count) for s in range(count)]
    values = np.empty((count, worth.shape[1]))
    for k in range(count):
        without = subsets[~inside[:, k]]
        gains = worth[without | 1 << k] - worth[without]
        values[k] = np.array(weights)[sizes[without]] @ gains
    return values, worth[0]


def _sampled(question: Question, rows: Floats, seed: int) -> tuple[Floats, Floats, float]:
    """`[K, C]`, `[C]` and the largest standard error."""
    count = len(question.columns)
    rng = np.random.default_rng([seed, 2])
    found = []
    usual = _worth(question, rows, np.zeros((1, count), bool))[0]
    for _ in range(_PAIRS):
        order = rng.permutation(count)
        pair = []
        for path in (order, order[::-1]):
            inside = np.zeros((count + 1, count), bool)
            for step, column in enumerate(path):
                inside[step + 1 :, column] = True
            worth = _worth(question, rows, inside)
            gains = np.empty((count, worth.shape[1]))
            gains[path] = np.diff(worth, axis=0)
            pair.append(gains)
        found.append((pair[0] + pair[1]) / 2)
    samples = np.array(found)
    error = float(samples.std(0, ddof=1).max() / np.sqrt(len(samples)))
    return samples.mean(0), usual, error


def _worth(question: Question, rows: Floats, inside: NDArray[np.bool_]) -> Floats:
    """v(S) `[S, C]` of the subsets `inside [S, K]`."""
    found = []
    step = max(1, 2**16 // len(rows))
    for start in range(0, len(inside), step):
        part = inside[start : start + step]
        cells = np.where(part[:, None], question.cells, rows)
        answers = question.answers(cells.reshape(-1, cells.shape[-1]))
        found.append(answers.reshape(len(part), len(rows), -1).mean(1))
    return np.concatenate(found)
