"""How sure the answers of a network are: what cases with a known truth, apart from training, say.

Fitted at export on the validation part, or on cases given to it; used by NumPy at inference.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hyperfusion_rt.artifact.usual_errors import UsualErrors
from hyperfusion_rt.config import Frozen
from hyperfusion_rt.data.encoder_columns import Fitted
from hyperfusion_rt.metrics import conformal
from hyperfusion_rt.metrics.groups import age_bands

Floats = NDArray[np.float64]

LEVEL = 0.9
# A group of fewer cases has no scores of its own.
FEWEST = 100


class Scores(Fitted):
    """Sorted scores of n cases, and of groups that are large enough: by sex and band of age."""

    all: tuple[float, ...] = Field(min_length=1)
    groups: dict[str, tuple[float, ...]] = Field({})

    @classmethod
    def of(cls, scores: Floats, groups: list[str]) -> Scores:
        """Of `scores [n]` with the group of each case; empty: in none."""
        names = np.array(groups)
        return cls(
            all=_sorted(scores),
            groups={
                str(name): _sorted(scores[names == name])
                for name in np.unique(names)
                if name and np.sum(names == name) >= FEWEST
            },
        )

    def __len__(self) -> int:
        return len(self.all)

    def at(self, group: str, level: float) -> float | None:
        """The threshold of a case's group, or of all; None where they are too few for the level."""
        for scores in (self.groups.get(group, ()), self.all):
            if level <= conformal.highest_level(len(scores)):
                return conformal.threshold(np.array(scores), level)
        return None

    def rank(self, value: float, group: str = "") -> float:
        """The share of the cases of the group, or of all, whose score lies below `value`."""
        return conformal.rank_of(value, np.array(self.groups.get(group, self.all)))


def _sorted(scores: Floats) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in np.sort(scores))


def group_of(sex: str, age: float | None) -> str:
    """`female 60 to 69`: what groups are called; empty where sex or age are not known."""
    band = age_bands([age])[0]
    return f"{sex.casefold()} {band}" if sex and band else ""


class AgeBias(Fitted):
    """Of a predicted age: predicted - true = `intercept` + `slope` · true, and what is left.

    `gaps`: signed, of the corrected predictions; `sizes`: their absolute values.
    """

    slope: float
    intercept: float
    gaps: Scores
    sizes: Scores

    def corrected(self, predicted: float, true: float) -> float:
        """The prediction without the bias of age (de Lange & Cole, NeuroImage: Clinical 2020)."""
        return predicted - self.intercept - self.slope * true


class Calibration(Frozen):
    """See the module.

    `source`: which cases; `cases`: how many people, one case each. `temperature`: of the
    probabilities. `scores`: of prediction sets (`metrics.conformal.class_scores`) or of intervals:
    |true - predicted|, over the network's own standard deviation where it answers one, or with
    `errors` those of `artifact.usual_errors`.
    `coverage`: how often the sets of level 0.9 hold the truth of these same cases, by class, None
    of fewer than 10. `ece`: the calibration error before and after scaling, of these cases. `sex`,
    `age`: the columns that groups are made by.
    """

    source: Literal["validation", "given"]
    cases: int = Field(ge=1)
    scores: Scores
    temperature: float = Field(1.0, gt=0)
    coverage: dict[str, float | None] = Field({})
    ece: tuple[float, float] | None = None
    age_bias: AgeBias | None = None
    sex: str | None = None
    age: str | None = None
    errors: UsualErrors | None = None

    @property
    def highest_level(self) -> float:
        """Of sets and intervals."""
        return conformal.highest_level(self.cases)

    def probabilities(self, values: Floats) -> Floats:
        """`[..., C]`, scaled by the temperature."""
        return values if self.temperature == 1.0 else conformal.scaled(values, self.temperature)
