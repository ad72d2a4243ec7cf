"""The answers of the exact observer about given simulated subjects.

He reads the atrophy without error and knows the model; he sees the gaps and bounds of the table as
everybody does. So his figure on the very subjects that a network is tested on is what that network
is measured against: the expectation (`optimum`) is that of other subjects.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from hyperfusion_rt.config import Published
from hyperfusion_rt.data.simulate import optimum
from hyperfusion_rt.data.simulate import population as p
from hyperfusion_rt.data.simulate.population import Float

_POINTS = 4000


def _table(path: Path) -> dict[str, list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def observed(folder: Path, task: Published, model: p.Model = "additive") -> dict[str, Float]:
    """Subject → his answer, from the `truth.csv` and `data.csv` of a cohort.

    AD: probabilities of the classes `[3]`, of which each is as frequent as the others: their argmax
    has the best balanced accuracy. Brain age: `[1]`, the median of the age given atrophy and sex,
    in years.

    Raises:
        KeyError: the cohort is of another task or model.
        ValueError: the two tables do not list the same subjects in the same order.
    """
    truth, seen = _table(folder / "truth.csv"), _table(folder / "data.csv")
    if seen["subject"] != truth["subject"]:
        raise ValueError(f"{folder}: truth.csv and data.csv list other subjects")

    def number(name: str) -> Float:
        return np.array(truth[name], np.float64)

    male = np.array([sex == "Male" for sex in truth["PTGENDER"]], np.float64)
    if task == "brain-age":
        answers = _ages(number("atrophy"), male)[:, None]
        return dict(zip(truth["subject"], answers, strict=True))

    def there(name: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return np.array([value != "" for value in seen[name]])

    values = {marker.name: number(marker.name) for marker in p.MARKERS}
    values |= {"age": number("AGE"), "male": male, "apoe4": number("APOE4")}
    values["usual"] = p.usual_atrophy(values["age"], male, model)
    known = {marker.group: there(marker.name) for marker in p.MARKERS}
    known |= {"apoe4": there("APOE4"), "age": there("AGE")}
    if model == "additive":
        values["atrophy"] = number("atrophy")
        score = optimum.additive(values, known)["both"]
    else:
        carrier = values["apoe4"] > 0
        values["atrophy"] = np.where(carrier, number("medial"), number("lateral"))
        values["other"] = np.where(carrier, number("lateral"), number("medial"))
        score = optimum.place(values, known)["both"]
    likelihood = np.exp(score - score.max(0))
    answers = (likelihood / likelihood.sum(0)).T
    return dict(zip(truth["subject"], answers, strict=True))


def _ages(atrophy: Float, male: Float) -> Float:
    """The posterior median `[N]` of the age; its prior is even."""
    ages = optimum.even_ages(_POINTS)
    far = atrophy[:, None] - p.mean_atrophy_at_age(ages[None], male[:, None])
    return optimum.median_age(np.exp(-0.5 * (far / p.AGE_NOISE) ** 2), ages)
