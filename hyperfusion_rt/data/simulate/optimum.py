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


def _log_remainder(x: Float) -> Float:
    """log p(x [N]) of `x = AGE_EFFECT (AGE - mean) / sd + NOISE ε`: the ages, integrated out.

    A quadrature over 801 ages, at 1601 points that linear interpolation joins (error below 1e-4).
    """
    ages = np.linspace(p.AGE_LOW, p.AGE_HIGH, 801)
    years = (ages - p.AGE_MEAN) / p.AGE_SD
    weights = np.exp(-0.5 * years * years)
    grid = np.linspace(-8, 8, 1601)
    joint = _log_normal(grid[:, None], p.AGE_EFFECT * years, p.NOISE)
    density = np.exp(joint) @ (weights / weights.sum())
    result: Float = np.interp(x, grid, np.log(density))
    return result


def _log_image(atrophy: Float, dx: int, male: Float | None = None) -> Float:
    """log p(atrophy [N] | dx), the age integrated out; the sex too when it is not given."""
    centred = atrophy - p.DX_EFFECT[dx]
    if male is not None:
        return _log_remainder(centred - p.SEX_EFFECT * (male - 0.5))
    woman, man = (_log_remainder(centred - p.SEX_EFFECT * half) for half in (-0.5, 0.5))
    result: Float = np.logaddexp(woman, man) - math.log(2)
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


def _draw(dx: int, count: int, rng: np.random.Generator) -> tuple[dict[str, Float], dict[str, Any]]:
    """`count` subjects of one class: values, and what of them is known."""
    age = rng.normal(p.AGE_MEAN, p.AGE_SD, 2 * count)
    age = age[(age >= p.AGE_LOW) & (age <= p.AGE_HIGH)][:count]
    male = rng.integers(0, 2, count).astype(np.float64)
    values = {m.name: rng.normal(m.means[dx], m.sd, count) for m in p.MARKERS}
    values |= {"age": age, "male": male}
    values["atrophy"] = p.mean_atrophy(age, male, dx) + p.NOISE * rng.standard_normal(count)
    values["apoe4"] = rng.choice(3, count, p=p.APOE4[dx]).astype(np.float64)
    groups = {m.group: m.missing for m in p.MARKERS}
    known = {group: rng.random(count) >= rate for group, rate in groups.items()}
    known["apoe4"] = rng.random(count) >= p.MISSING_APOE4
    known["age"] = rng.random(count) >= p.MISSING_AGE
    return values, known


def _log_table(values: dict[str, Float], known: dict[str, Any], dx: int) -> Float:
    """log p(biomarkers | dx) [N]; age and sex do not depend on dx and drop out."""
    total = np.where(known["apoe4"], np.log(p.APOE4[dx])[values["apoe4"].astype(int)], 0.0)
    for marker in p.MARKERS:
        total = total + _log_marker(marker, values[marker.name], known[marker.group], dx)
    return total


def _log_both(values: dict[str, Float], known: dict[str, Any], dx: int) -> Float:
    """log p(atrophy, biomarkers | age, sex, dx) [N]; a missing age is integrated out."""
    mean = p.mean_atrophy(values["age"], values["male"], dx)
    image = _log_normal(values["atrophy"], mean, p.NOISE)
    gap = ~known["age"]
    image[gap] = _log_image(values["atrophy"][gap], dx, values["male"][gap])
    return image + _log_table(values, known, dx)


def _ad(samples: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    recalls: dict[str, list[float]] = {"image": [], "table": [], "both": []}
    for truth in range(3):
        values, known = _draw(truth, samples, rng)
        scores = {
            "image": [_log_image(values["atrophy"], dx) for dx in range(3)],
            "table": [_log_table(values, known, dx) for dx in range(3)],
            "both": [_log_both(values, known, dx) for dx in range(3)],
        }
        for name, score in scores.items():
            # The balanced accuracy weighs classes alike: its best rule ignores the prior.
            recalls[name].append(float(np.mean(np.argmax(score, 0) == truth)))
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


def _brain_age(points: int) -> dict[str, Any]:
    ages = p.YOUNG + (np.arange(points) + 0.5) * (p.OLD - p.YOUNG) / points
    atrophy = np.linspace(-5, 5, 2 * points)
    step = atrophy[1] - atrophy[0]
    density = [
        np.exp(_log_normal(atrophy[:, None], p.mean_atrophy_at_age(ages, male)[None], p.AGE_NOISE))
        for male in (0, 1)
    ]

    def mae(joint: Float) -> float:
        """Expected |age - posterior median| of a joint density [atrophy, age]."""
        joint = joint / points
        cumulated = np.cumsum(joint, 1)
        median = ages[np.argmax(cumulated >= 0.5 * cumulated[:, -1:], 1)]
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


def bayes_optimum(task: Published, *, samples: int = 60000, points: int = 900) -> dict[str, Any]:
    """The best possible figure from the image only, the table only, and both.

    AD: the balanced accuracy, with its standard error from `samples` observations per class. Brain
    age: the mean absolute error in years of the posterior median, by quadrature over `points` ages.
    """
    return _ad(samples) if task == "ad" else _brain_age(points)
