"""What the errors of predicted numbers usually are, by the number that is predicted.

A network that is drawn to the middle predicts the young too old and the old too young, and its
errors are smaller at the ends. So an interval is not centred on the prediction:

    true = predicted - line(predicted) ± threshold · size(predicted)

with a line for each sex and one curve for the size. The threshold is of scores that each come from
lines and a curve that did not know their case (`cross_scores`), so that intervals hold the truth
as often as they say.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hyperfusion_rt.data.encoder_columns import Fitted
from hyperfusion_rt.metrics import conformal

Floats = NDArray[np.float64]

# Fewer cases, or fewer of a sex, have no curve or no line of their own.
FEWEST = 100
_FOLDS = 5
# The least size, of the mean one.
_LEAST = 0.25


class UsualErrors(Fitted):
    """Of predicted - true, in the target's unit.

    `low`, `high`: the calibration's predictions; beyond them it is as at the nearer end. `lines`:
    by sex (lower case), "" for all others: intercept and slope on the prediction. `size`: the mean
    error beside the line, as a polynomial of (prediction - low) / (high - low), the constant first;
    over the network's own standard deviation where it answers one. `least`: it is no smaller.
    """

    low: float
    high: float
    lines: dict[str, tuple[float, float]]
    size: tuple[float, float, float]
    least: float = Field(gt=0)

    @classmethod
    def fit(
        cls, predicted: Floats, errors: Floats, sexes: list[str], scale: Floats
    ) -> UsualErrors | None:
        """Of N cases; None where the predictions or their errors do not differ.

        Args:
            errors: predicted - true `[N]`.
            scale: of each error `[N]`: the network's own standard deviation, or 1.
        """
        low, high = float(predicted.min()), float(predicted.max())
        if not high > low:
            return None
        names = np.array([sex.casefold() for sex in sexes])
        lines = {"": _line(predicted, errors)}
        for name in np.unique(names):
            if name and np.sum(names == name) >= FEWEST:
                lines[str(name)] = _line(predicted[names == name], errors[names == name])
        draft = cls(low=low, high=high, lines=lines, size=(1.0, 0.0, 0.0), least=1.0)
        sizes = np.abs(errors - draft.centres(predicted, sexes)) / scale
        if not sizes.max() > 0:
            return None
        curve = np.polynomial.polynomial.polyfit((predicted - low) / (high - low), sizes, 2)
        size = (float(curve[0]), float(curve[1]), float(curve[2]))
        return draft.model_copy(update={"size": size, "least": _LEAST * float(sizes.mean())})

    def centres(self, predicted: Floats, sexes: list[str]) -> Floats:
        """`[N]`: how much predictions `[N]` usually lie above the truth."""
        lines = [self.lines.get(sex.casefold(), self.lines[""]) for sex in sexes]
        intercept, slope = np.array(lines, np.float64).reshape(-1, 2).T
        found: Floats = intercept + slope * np.clip(predicted, self.low, self.high)
        return found

    def sizes(self, predicted: Floats) -> Floats:
        """`[N]`: how large errors beside the line usually are."""
        x = (np.clip(predicted, self.low, self.high) - self.low) / (self.high - self.low)
        found: Floats = np.maximum(np.polynomial.polynomial.polyval(x, self.size), self.least)
        return found

    def scores(self, predicted: Floats, errors: Floats, sexes: list[str], scale: Floats) -> Floats:
        """`[N]`: errors beside their line, over their usual size."""
        beside = np.abs(errors - self.centres(predicted, sexes))
        found: Floats = beside / (self.sizes(predicted) * scale)
        return found


def cross_scores(
    predicted: Floats, errors: Floats, sexes: list[str], scale: Floats
) -> tuple[UsualErrors, Floats] | None:
    """What errors usually are, and `[N]` scores of which each is of lines that knew four fifths of
    the cases without it; None where the cases are too few, or do not differ."""
    if (
        len(predicted) < FEWEST
        or (found := UsualErrors.fit(predicted, errors, sexes, scale)) is None
    ):
        return None
    scores = np.empty(len(predicted))
    fold = np.arange(len(predicted)) % _FOLDS
    for k in range(_FOLDS):
        out, known = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
        made = UsualErrors.fit(
            predicted[known], errors[known], [sexes[i] for i in known], scale[known]
        )
        if made is None:
            return None
        scores[out] = made.scores(predicted[out], errors[out], [sexes[i] for i in out], scale[out])
    return found, scores


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    slope, intercept = conformal.line(x, y)
    return intercept, slope
