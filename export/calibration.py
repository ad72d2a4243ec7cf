"""How sure the answers are: fitted on cases with a known truth that no member learned from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.calibration import LEVEL, AgeBias, Calibration, Scores, group_of
from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.artifact.usual_errors import cross_scores
from hyperfusion_rt.data.number_check import means_age
from hyperfusion_rt.data.scan_check import Reference
from hyperfusion_rt.errors import TableError
from hyperfusion_rt.export.typical_scans import vectors_of
from hyperfusion_rt.metrics import FEWEST as FEWEST_OF_GROUP
from hyperfusion_rt.metrics import classification, conformal
from hyperfusion_rt.rules import combine, mixture
from hyperfusion_rt.runtime.case_input import as_batch
from hyperfusion_rt.runtime.evaluation import ages_of, columns_of_groups, sexes_of
from hyperfusion_rt.runtime.network import Network
from hyperfusion_rt.training.dataset import Dataset

Floats = NDArray[np.float64]

# Fewer cases say too little to change a probability by, and of an age's bias.
FEWEST = 40
_BATCH = 8


@dataclass(frozen=True)
class Known:
    """N cases with answers of members that did not learn from them.

    `values [N, C]`; `sd [N]`, where the network answers one; `truth [N]`; `cases`: which of the
    dataset's; `vectors [N, F]`: of their scans (`export.typical_scans`), F = 0 without a reference.
    """

    cases: NDArray[np.intp]
    values: Floats
    sd: Floats | None
    truth: Floats
    vectors: Floats


def known_of(
    network: Network, dataset: Dataset, reference: Reference | None = None, *, given: bool
) -> Known | None:
    """The answers to validation cases, or to all where they are `given`; None where there is none.

    One case of each person, the first, so that the cases are independent. Of a validation case
    only members answer that did not learn from it: one in most ensembles, so that theirs are a
    little less sure than the whole. `vectors` are asked for with `reference`.
    """
    manifest = network.manifest
    names = [dataset.parts.names(m) for m in range(len(manifest.members))]
    met: set[str] = set()
    found: list[tuple[int, NDArray[np.intp]]] = []
    for index, case in enumerate(dataset.cases):
        answering = [m for m in range(len(names)) if given or names[m][index] == "validation"]
        if answering and case.subject not in met:
            met.add(case.subject)
            found.append((index, np.array(answering)))
    cases: list[int] = []
    values, deviations, scans = [], [], []
    answers = _answers(network, dataset, reference, [index for index, _ in found])
    for (index, members), answer in zip(found, answers, strict=True):
        if answer is None:
            continue
        raw, vector = answer
        cases.append(index)
        scans.append(vector)
        if manifest.answers_sd:
            mean, sd = mixture(raw[members])
            values.append(np.array([mean]))
            deviations.append(sd)
        else:
            values.append(combine(raw[members], bool(manifest.classes), manifest.combine))
    if not cases:
        return None
    return Known(
        np.array(cases, np.intp),
        np.stack(values),
        np.array(deviations) if deviations else None,
        dataset.targets[cases],
        np.stack(scans),
    )


def _answers(
    network: Network, dataset: Dataset, reference: Reference | None, cases: list[int]
) -> Iterator[tuple[NDArray[np.float32], Floats] | None]:
    """Every member's raw outputs `[M, N, C]` of each case, and the scan's vector `[F]`, empty
    without `reference`; None where a member cannot read the row."""
    manifest = network.manifest
    shape = len(manifest.members), len(manifest.preprocessing.boxes), -1
    for start in range(0, len(cases), _BATCH):
        part = cases[start : start + _BATCH]
        rows = {}
        for index in part:
            try:
                row = [member.encode_row(dataset.rows[index]) for member in manifest.members]
            except TableError:
                continue
            rows[index] = np.concatenate(row)
        if rows:
            images = dataset.images(list(rows))
            features = network.features(as_batch(list(images)))
            raw = network.finish(features, np.stack(list(rows.values())))["members"]
            vectors = np.empty((len(images), 0))
            if reference is not None:
                vectors = vectors_of(features, images, reference, manifest.preprocessing)
        place = {index: n for n, index in enumerate(rows)}
        yield from (
            (raw[place[i]].reshape(shape), vectors[place[i]]) if i in place else None for i in part
        )


def calibrate(manifest: Manifest, dataset: Dataset, known: Known, *, given: bool) -> Calibration:
    """What `known` cases of `dataset` say of new ones."""
    rows = [dataset.rows[i] for i in known.cases]
    sex, age = columns_of_groups(manifest.table, list(rows[0].values))
    sexes = sexes_of(rows, sex) if sex else [""] * len(rows)
    ages = ages_of(rows, age) if age else [None] * len(rows)
    source = {"source": "given" if given else "validation", "cases": len(rows)}
    enough = len(rows) >= FEWEST
    if manifest.classes:
        groups = [group_of(s, a) for s, a in zip(sexes, ages, strict=True)]
        truth = known.truth.astype(np.intp)
        temperature = conformal.temperature_of(known.values, truth) if enough else 1.0
        values = conformal.scaled(known.values, temperature)
        scores = Scores.of(conformal.class_scores(values, truth), groups)
        names = list(manifest.classes)
        return Calibration.model_validate(
            {
                **source,
                "scores": scores,
                "temperature": temperature,
                "coverage": _coverage(values, truth, scores, groups, names),
                "ece": tuple(
                    classification(truth, v, names)["ece"] for v in (known.values, values)
                ),
                "sex": sex,
                "age": age,
            }
        )
    predicted = known.values[:, 0]
    scale = np.ones(len(predicted)) if known.sd is None else known.sd
    years = manifest.unit == "years" and means_age(manifest.table.target)
    errors = predicted - known.truth
    found = cross_scores(predicted, errors, sexes, scale)
    usual, sizes = (None, np.abs(errors) / scale) if found is None else found
    bias = None
    if years and enough:
        slope, intercept = conformal.line(known.truth, errors)
        gaps = predicted - intercept - slope * known.truth - known.truth
        of_age = [group_of(s, a) for s, a in zip(sexes, known.truth, strict=True)]
        bias = AgeBias(
            slope=slope,
            intercept=intercept,
            gaps=Scores.of(gaps, of_age),
            sizes=Scores.of(np.abs(gaps), of_age),
        )
    return Calibration.model_validate(
        {
            **source,
            "scores": Scores.of(sizes, [""] * len(sizes)),
            "errors": usual,
            "age_bias": bias,
            "sex": sex,
            "age": age,
        }
    )


def _coverage(
    values: Floats, truth: NDArray[np.intp], scores: Scores, groups: list[str], names: list[str]
) -> dict[str, float | None]:
    """How often sets of these same cases hold the truth, by class; None of few cases."""
    found = [scores.at(group, LEVEL) for group in groups]
    limits = np.array([np.inf if limit is None else limit for limit in found])
    inside = conformal.class_scores(values, truth) <= limits
    return {
        name: float(inside[truth == c].mean()) if np.sum(truth == c) >= FEWEST_OF_GROUP else None
        for c, name in enumerate(names)
    }
