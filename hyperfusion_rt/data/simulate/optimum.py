"""How well anybody can do on the simulated cohort: the Bayes optimum, by numerical integration.

"Image" stands for an observer who reads the atrophy from the scan without error: an upper bound
for every network. The likelihoods are exact (age and sex are integrated out by quadrature where
they are not observed); the expectation over observations is a sum over a large sample for AD, and
a quadrature for brain age.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.config import Published
from hyperfusion_rt.data.simulate import population as p
from hyperfusion_rt.data.simulate.population import Float

_OBSERVER = "image: the atrophy is read from the scan without error, an upper bound"


def _log_normal(x: Float, mean: Float | float, sd: float) -> Float:
    z = (x - mean) / sd
    result: Float = -0.5 * z * z - math.log(sd) - 0.5 * math.log(2 * math.pi)
    return result


def _log_tail(z: float) -> float:
    """log P(Z < z) of a standard normal Z."""
    return math.log(0.5 * math.erfc(-z / math.sqrt(2)))


def _ages(count: int) -> tuple[Float, Float]:
    """Ages `[count]` of a quadrature, and their weights, which add up to 1."""
    ages = np.linspace(p.AGE_LOW, p.AGE_HIGH, count)
    weights = np.exp(-0.5 * ((ages - p.AGE_MEAN) / p.AGE_SD) ** 2)
    return ages, weights / weights.sum()


def _log_remainder(x: Float) -> Float:
    """log p(x [N]) of `x = effect of the age + NOISE ε`: the ages, integrated out.

    A quadrature over 801 ages, at 1601 points that linear interpolation joins (error below 1e-4).
    """
    ages, weights = _ages(801)
    grid = np.linspace(-8, 8, 1601)
    joint = _log_normal(grid[:, None], p.usual_atrophy(ages, 0.5, "additive"), p.NOISE)
    result: Float = np.interp(x, grid, np.log(np.exp(joint) @ weights))
    return result


def _log_image(atrophy: Float, dx: int, male: Float | None = None) -> Float:
    """log p(atrophy [N] | dx), the age integrated out; the sex too when it is not given."""
    centred = atrophy - p.DX_EFFECT[dx]
    effect = p.AD["additive"].sex
    if male is not None:
        return _log_remainder(centred - effect * (male - 0.5))
    woman, man = (_log_remainder(centred - effect * half) for half in (-0.5, 0.5))
    result: Float = np.logaddexp(woman, man) - math.log(2)
    return result


def _log_regions(first: Float, second: Float, usual: Float, weights: Float) -> Float:
    """log p(first [N], second [N] | dx) of the model `place`, `[2, 3, N]`.

    First where the first region is the disease's, then where the second is. `usual [N or 1, Q]`:
    the nodes of a quadrature over what is usual for age and sex, with their `weights [Q]`.
    """

    def densities(atrophy: Float) -> list[Float]:
        centred = atrophy[:, None] - usual
        return [np.exp(_log_normal(centred, effect, p.NOISE)) for effect in p.DX_EFFECT]

    one, two = densities(first), densities(second)
    found = []
    for affected, other in ((one, two), (two, one)):
        elsewhere = sum(prior * density for prior, density in zip(p.PRIOR, other, strict=True))
        found.append([(density * elsewhere) @ weights for density in affected])
    result: Float = np.log(found)
    return result


def _log_marker(marker: p.Marker, value: Float, known: NDArray[np.bool_], dx: int) -> Float:
    """log p(reading [N] | dx) of one biomarker; 0 where it is missing."""
    mean = marker.means[dx]
    total = _log_normal(value, mean, marker.sd)
    if math.isfinite(marker.high):
        total = np.where(value > marker.high, _log_tail((mean - marker.high) / marker.sd), total)
    if math.isfinite(marker.low):
        total = np.where(value < marker.low, _log_tail((marker.low - mean) / marker.sd), total)
    return np.where(known, total, 0.0)


Values = dict[str, Float]
Known = dict[str, NDArray[np.bool_]]


def _draw(dx: int, count: int, rng: np.random.Generator, model: p.Model) -> tuple[Values, Known]:
    """`count` subjects of one class: values, and what of them is known."""
    effects = p.AD[model]
    age = rng.normal(p.AGE_MEAN, p.AGE_SD, 2 * count)
    age = age[(age >= p.AGE_LOW) & (age <= p.AGE_HIGH)][:count]
    male = rng.integers(0, 2, count).astype(np.float64)
    values = {m.name: rng.normal(m.means[dx], m.sd, count) for m in p.MARKERS}
    usual = p.usual_atrophy(age, male, model)
    values |= {"age": age, "male": male, "usual": usual}
    values["atrophy"] = usual + p.DX_EFFECT[dx] + p.NOISE * rng.standard_normal(count)
    values["apoe4"] = rng.choice(3, count, p=effects.apoe4[dx]).astype(np.float64)
    groups = {m.group: m.missing for m in p.MARKERS}
    known = {group: rng.random(count) >= rate for group, rate in groups.items()}
    known["apoe4"] = rng.random(count) >= effects.missing_apoe4
    known["age"] = rng.random(count) >= p.MISSING_AGE
    if model == "place":
        elsewhere = p.DX_EFFECT[rng.choice(3, count, p=p.PRIOR)]
        values["other"] = usual + elsewhere + p.NOISE * rng.standard_normal(count)
    return values, known


def _log_table(values: Values, known: Known, dx: int, model: p.Model) -> Float:
    """log p(biomarkers | dx) [N]; age and sex do not depend on dx and drop out."""
    apoe4 = np.asarray(p.AD[model].apoe4[dx])[values["apoe4"].astype(int)]
    total = np.where(known["apoe4"], np.log(apoe4), 0.0)
    for marker in p.MARKERS:
        total = total + _log_marker(marker, values[marker.name], known[marker.group], dx)
    return total


def additive(values: Values, known: Known) -> dict[str, Float]:
    """Each observer's log likelihoods of the classes, `[3, N]`."""
    table = np.stack([_log_table(values, known, dx, "additive") for dx in range(3)])
    atrophy, gap = values["atrophy"], ~known["age"]
    image = np.stack([_log_image(atrophy, dx) for dx in range(3)])
    seen = _log_normal(atrophy, values["usual"] + p.DX_EFFECT[:, None], p.NOISE)
    seen[:, gap] = [_log_image(atrophy[gap], dx, values["male"][gap]) for dx in range(3)]
    return {"image": image, "table": table, "both": seen + table}


def place(values: Values, known: Known) -> dict[str, Float]:
    """As `additive`; and of those who have both but not APOE4."""
    table = np.stack([_log_table(values, known, dx, "place") for dx in range(3)])
    affected, other, gap = values["atrophy"], values["other"], ~known["age"]
    # The effect of two years is a fifth of the noise: the sum is exact to 1e-4.
    ages, weights = _ages(20)
    women, men = (p.usual_atrophy(ages, male, "place") for male in (0, 1))
    everybody = np.concatenate([women, men])[None], np.concatenate([weights, weights]) / 2
    image = _log_regions(affected, other, *everybody)
    seen = _log_regions(affected, other, values["usual"][:, None], np.ones(1))
    usual = np.where(values["male"][gap, None] == 1, men, women)
    seen[:, :, gap] = _log_regions(affected[gap], other[gap], usual, weights)
    # Without APOE4, each region is the disease's with probability 1/2.
    return {
        "image": np.logaddexp(*image),
        "table": table,
        "both": seen[0] + table,
        "both_without_apoe4": np.logaddexp(*seen) + table,
    }


def _ad(samples: int, model: p.Model) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    observers = additive if model == "additive" else place
    recalls: dict[str, list[float]] = {}
    for truth in range(3):
        values, known = _draw(truth, samples, rng, model)
        for name, score in observers(values, known).items():
            # The balanced accuracy weighs classes alike: its best rule ignores the prior.
            recalls.setdefault(name, []).append(float(np.mean(np.argmax(score, 0) == truth)))
    found: dict[str, Any] = {name: float(np.mean(r)) for name, r in recalls.items()}
    found["standard_error"] = {
        name: math.sqrt(sum(x * (1 - x) for x in r) / samples) / 3 for name, r in recalls.items()
    }
    found["figure"] = "balanced accuracy"
    found["method"] = (
        "argmax of the exact likelihoods (gaps and bounds included; age and sex integrated out by "
        f"quadrature where unobserved), mean over {samples} observations per class; {_OBSERVER}"
    )
    return found


def even_ages(points: int) -> Float:
    """Nodes `[points]` of a quadrature over the ages of the brain-age model."""
    ages: Float = p.YOUNG + (np.arange(points) + 0.5) * (p.OLD - p.YOUNG) / points
    return ages


def median_age(density: Float, ages: Float) -> Float:
    """The posterior median `[N]` of `density [N, ages]`, up to a factor in each row."""
    cumulated = np.cumsum(density, 1)
    medians: Float = ages[np.argmax(cumulated >= 0.5 * cumulated[:, -1:], 1)]
    return medians


def _brain_age(points: int) -> dict[str, Any]:
    ages = even_ages(points)
    atrophy = np.linspace(-5, 5, 2 * points)
    step = atrophy[1] - atrophy[0]
    density = [
        np.exp(_log_normal(atrophy[:, None], p.mean_atrophy_at_age(ages, male)[None], p.AGE_NOISE))
        for male in (0, 1)
    ]

    def mae(joint: Float) -> float:
        """Expected |age - posterior median| of a joint density [atrophy, age]."""
        joint = joint / points
        median = median_age(joint, ages)
        return float((joint * np.abs(ages[None] - median[:, None])).sum() * step)

    return {
        "image": mae((density[0] + density[1]) / 2),
        "table": (p.OLD - p.YOUNG) / 4,
        "both": (mae(density[0]) + mae(density[1])) / 2,
        "standard_error": {"image": 0.0, "table": 0.0, "both": 0.0},
        "figure": "mean absolute error (years)",
        "method": (
            f"posterior median, quadrature over {points} ages x {2 * points} atrophies; {_OBSERVER}"
        ),
    }


def bayes_optimum(
    task: Published,
    model: p.Model = "additive",
    *,
    volumes: bool = False,
    samples: int = 60000,
    points: int = 900,
) -> dict[str, Any]:
    """The best possible figure from the image only, the table only, and both.

    With the model `place` also from both without APOE4 (`both_without_apoe4`): what is above it
    needs a network that reads the image in another way for other people.

    `volumes`: the table has measured volumes, too. They tell of the atrophy, and how well is not
    known: the figure of the table is then that without them, `table_without_volumes`. Those of the
    image and of both stay: who knows the atrophy learns nothing more from the volumes.

    AD: the balanced accuracy, with its standard error from `samples` observations per class. Brain
    age: the mean absolute error in years of the posterior median, by quadrature over `points` ages.
    """
    found = _ad(samples, model) if task == "ad" else _brain_age(points)
    if volumes:
        for figures in (found, found["standard_error"]):
            figures["table_without_volumes"] = figures.pop("table")
        found["method"] += (
            "; the volumes in the table are not counted: with them, the best figure from the table "
            "alone is between table_without_volumes and both"
        )
    return found
