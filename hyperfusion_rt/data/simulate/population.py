"""The generative model: who the subjects are, and how much their brains have shrunk.

AD.  DX ~ (CN .30, MCI .47, AD .23);  AGE ~ N(73, 7) on 55..92 years and sex, both independent of
     DX, so that neither says anything alone;

         atrophy = 0.8 (AGE - 73) / 7 + 0.5 ([male] - 1/2) + γ(DX) + 0.6 ε,   γ = -1.2, 0, 1.2

     The same hippocampus so means one thing at 60 and another at 85. The biomarkers are normal
     given DX, independent of each other and of the atrophy, with ADNI's scales, bounds of
     measurement and missing rates. Education says nothing: a network has to ignore it.

AD, model `place`.  Two regions shrink, the medial temporal one (hippocampus, temporal horn) and the
     cortex around the Sylvian fissure, and APOE4 says which of them the disease has to do with:

         a = 0.4 (AGE - 73) / 7 + 0.25 ([male] - 1/2) + γ(DX) + 0.6 ε     the region of the disease
         b = the same with a DX' and an ε' of its own                     the other region
         (medial, lateral) = (a, b) of carriers, (b, a) of the others

     DX' has the distribution of DX and is independent of it. So the regions have one marginal
     distribution, and swapping them tells nothing. APOE4 is 0 or 1, a half each, never missing, and
     independent of DX: alone it says nothing. Without it nobody knows which region to look at. In
     patients, carriers lose more of the medial temporal lobe and others more of the neocortex
     (Wolk & Dickerson, PNAS 2010); here that is driven to the extreme.

Brain age.  AGE ~ U(45, 90), sex ~ 1/2;

         atrophy = 0.09 (AGE - 67.5) + 1.35 ([male] - 1/2) + 0.48 ε

     A man of 60 has the brain of a woman of 75.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.config import Published

Float = NDArray[np.float64]

CLASSES = ("CN", "MCI", "AD")
PRIOR = np.array([0.30, 0.47, 0.23])

AGE_MEAN, AGE_SD, AGE_LOW, AGE_HIGH = 73.0, 7.0, 55.0, 92.0
NOISE = 0.6
DX_EFFECT = np.array([-1.2, 0.0, 1.2])

YOUNG, OLD = 45.0, 90.0
AGE_SLOPE, AGE_SEX_EFFECT, AGE_NOISE = 0.09, 1.35, 0.48


# How the table changes the meaning of the image.
Model = Literal["additive", "place"]


@dataclass(frozen=True)
class ADModel:
    """What the models of AD differ in.

    `regions`: names of what shrinks by an atrophy of its own; `age` and `sex`: their effects on it;
    `apoe4 [3, 3]`: P(number of ε4 alleles | DX).
    """

    regions: tuple[str, ...]
    age: float
    sex: float
    apoe4: tuple[tuple[float, ...], ...]
    missing_apoe4: float


AD: dict[Model, ADModel] = {
    "additive": ADModel(
        regions=("atrophy",),
        age=0.8,
        sex=0.5,
        apoe4=((0.70, 0.27, 0.03), (0.50, 0.39, 0.11), (0.33, 0.47, 0.20)),
        missing_apoe4=0.09,
    ),
    "place": ADModel(
        regions=("medial", "lateral"),
        age=0.4,
        sex=0.25,
        apoe4=3 * ((0.5, 0.5, 0.0),),
        missing_apoe4=0.0,
    ),
}


@dataclass(frozen=True)
class Marker:
    """A biomarker: normal given DX; values beyond the bounds read `<low`, `>high`."""

    name: str
    means: tuple[float, float, float]
    sd: float
    digits: int
    low: float = -np.inf
    high: float = np.inf
    group: str = ""
    missing: float = 0.0


# The three CSF values come from one sample: all there, or none.
MARKERS = (
    Marker("ABETA", (1350.0, 1000.0, 720.0), 420.0, 0, 200.0, 1700.0, "CSF", 0.51),
    Marker("TAU", (235.0, 285.0, 360.0), 90.0, 0, 80.0, 1300.0, "CSF", 0.51),
    Marker("PTAU", (21.5, 27.5, 36.0), 10.5, 1, 8.0, 120.0, "CSF", 0.51),
    Marker("FDG", (1.29, 1.22, 1.08), 0.13, 3, group="FDG", missing=0.38),
    Marker("AV45", (1.11, 1.21, 1.38), 0.20, 3, group="AV45", missing=0.53),
)
MISSING_AGE = 0.002

AD_COLUMNS = ("AGE", "PTGENDER", "PTEDUCAT", "APOE4", *(m.name for m in MARKERS), "DX")
BRAIN_AGE_COLUMNS = ("PTGENDER", "AGE")
SEXES = ("Female", "Male")
# How a class may read in the table, as in ADNIMERGE.
LABELS = {"CN": ("CN",), "MCI": ("EMCI", "LMCI", "MCI"), "AD": ("AD", "Dementia")}


@dataclass(frozen=True)
class Subject:
    """One subject: `row` is what the table says, `truth` what is so.

    `atrophy`: of each region of the model. That of the disease is the sum of the `atrophy_...`
    parts in `truth`.
    """

    atrophy: tuple[float, ...]
    row: dict[str, str]
    truth: dict[str, Any]


def draw_age(rng: np.random.Generator) -> float:
    """An age in years from the truncated normal distribution."""
    while True:
        age = float(rng.normal(AGE_MEAN, AGE_SD))
        if AGE_LOW <= age <= AGE_HIGH:
            return age


def usual_atrophy(age: Float | float, male: Float | float, model: Model) -> Float:
    """E[atrophy | age, sex] of somebody without an effect of the disease."""
    years = (np.asarray(age) - AGE_MEAN) / AGE_SD
    result: Float = AD[model].age * years + AD[model].sex * (np.asarray(male) - 0.5)
    return result


def mean_atrophy_at_age(age: Float | float, male: Float | float) -> Float:
    """E[atrophy | age, sex] of the brain-age model."""
    middle = (YOUNG + OLD) / 2
    result: Float = AGE_SLOPE * (np.asarray(age) - middle) + AGE_SEX_EFFECT * (
        np.asarray(male) - 0.5
    )
    return result


def _reading(marker: Marker, value: float) -> str:
    if value > marker.high:
        return f">{marker.high:g}"
    if value < marker.low:
        return f"<{marker.low:g}"
    return f"{value:.{marker.digits}f}"


def draw_lesions(subject: Subject, rng: np.random.Generator) -> float:
    """How bright a FLAIR image's lesions are, 0 to 1: with age, and nothing that age does not say.

    So a second image changes nothing of how well anybody can do.
    """
    years = float(subject.truth["AGE"]) - AGE_MEAN
    return float(1 / (1 + np.exp(-(years / AGE_SD + rng.standard_normal()))))


def draw_subject(task: Published, rng: np.random.Generator, model: Model = "additive") -> Subject:
    """Draw one subject; `model` is that of AD."""
    male = int(rng.random() < 0.5)
    sex = SEXES[male]
    if task == "brain-age":
        age = float(rng.uniform(YOUNG, OLD))
        parts = {
            "atrophy_age": AGE_SLOPE * (age - (YOUNG + OLD) / 2),
            "atrophy_sex": AGE_SEX_EFFECT * (male - 0.5),
            "atrophy_noise": AGE_NOISE * float(rng.standard_normal()),
        }
        row = {"PTGENDER": sex, "AGE": f"{age:.2f}"}
        return Subject((sum(parts.values()),), row, {**parts, "AGE": age, "PTGENDER": sex})

    effects = AD[model]
    dx = int(rng.choice(3, p=PRIOR))
    age = draw_age(rng)
    parts = {
        "atrophy_age": effects.age * (age - AGE_MEAN) / AGE_SD,
        "atrophy_sex": effects.sex * (male - 0.5),
        "atrophy_dx": float(DX_EFFECT[dx]),
        "atrophy_noise": NOISE * float(rng.standard_normal()),
    }
    education = int(np.clip(np.rint(rng.normal(16, 2.6)), 6, 20))
    apoe4 = int(rng.choice(3, p=effects.apoe4[dx]))
    values = {m.name: float(rng.normal(m.means[dx], m.sd)) for m in MARKERS}
    groups = {m.group: m.missing for m in MARKERS}
    known = {group: rng.random() >= rate for group, rate in groups.items()}
    labels = LABELS[CLASSES[dx]]
    row = {
        "AGE": f"{age:.1f}" if rng.random() >= MISSING_AGE else "",
        "PTGENDER": sex,
        "PTEDUCAT": str(education),
        "APOE4": str(apoe4) if rng.random() >= effects.missing_apoe4 else "",
        **{m.name: _reading(m, values[m.name]) if known[m.group] else "" for m in MARKERS},
        "DX": labels[int(rng.integers(len(labels)))],
    }
    truth = {
        **parts,
        "DX": CLASSES[dx],
        "AGE": age,
        "PTGENDER": sex,
        "PTEDUCAT": education,
        "APOE4": apoe4,
        **values,
    }
    atrophy = sum(parts.values())
    if model == "additive":
        return Subject((atrophy,), row, truth)
    elsewhere = {
        "other_dx": float(DX_EFFECT[rng.choice(3, p=PRIOR)]),
        "other_noise": NOISE * float(rng.standard_normal()),
    }
    other = parts["atrophy_age"] + parts["atrophy_sex"] + sum(elsewhere.values())
    both = (atrophy, other) if apoe4 else (other, atrophy)
    return Subject(both, row, {**elsewhere, **truth})
