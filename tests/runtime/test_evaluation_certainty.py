"""Whether sets and intervals hold the truth: figures by hand; ages in table, page and sidecar."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from hyperfusion_rt.artifact.calibration import AgeBias, Calibration, Scores
from hyperfusion_rt.artifact.card import card
from hyperfusion_rt.artifact.certainty_facts import inspected
from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.cli.evaluate import _show_certainty
from hyperfusion_rt.data.table_file import Row
from hyperfusion_rt.runtime.certainty import certainty
from hyperfusion_rt.runtime.cohort.evaluate import write_evaluation
from hyperfusion_rt.runtime.evaluation import (
    EvaluatedCase,
    Evaluation,
    certainty_lines,
    measure,
)
from hyperfusion_rt.runtime.evaluation_certainty import certainty_figures
from hyperfusion_rt.runtime.outputs.bids_derivative import write_derivative
from hyperfusion_rt.runtime.outputs.table import columns_of, write_predictions
from hyperfusion_rt.runtime.prediction import Certainty, Prediction

GAP = ["corrected", "gap", "gap_low", "gap_high", "gap_p_positive", "gap_percentile"]


@pytest.fixture
def classes(session_sure):
    return Artifact.open(session_sure).manifest


@pytest.fixture
def years(classes):
    """The manifest of an artifact that predicts ages: 50 calibration cases, -0.3 a year."""
    sizes = tuple(i / 5 for i in range(1, 51))
    bias = AgeBias(
        slope=-0.3,
        intercept=21.0,
        gaps=Scores(all=tuple(i / 5 for i in range(-25, 25))),
        sizes=Scores(all=sizes),
    )
    made = Calibration(
        source="given", cases=50, scores=Scores(all=sizes), age_bias=bias, sex="PTGENDER",
        age="AGE",
    )  # fmt: skip
    spec = classes.table.model_copy(update={"target": "AGE", "classes": {}, "unit": "years"})
    change = {"classes": (), "unit": "years", "table": spec, "training_cases": None}
    return classes.model_copy(update={**change, "calibration": made})


def aged(manifest, count=40, truth=True):
    rng = np.random.default_rng(3)
    cases = []
    for n in range(count):
        true = float(f"{rng.uniform(50, 90):.2f}")
        value = 0.7 * true + 21 + float(rng.normal(0, 3))
        row = Row(f"P{n}", None, 2, {"AGE": f"{true}", "PTGENDER": "Female"} if truth else {})
        sure = certainty(manifest, (value,), None, row, 0.9, distance=0.5 + n / 38)
        item = Prediction(
            f"P{n}", None, "ok", values=(value,), truth=f"{true}" if truth else None, certainty=sure
        )
        cases.append(EvaluatedCase(item, true, "FM"[n % 2], true, counted=True))
    return cases


def classified(manifest, count=30):
    """Case n has a set of n % 3 + 1 classes, and its truth is MCI."""
    names = manifest.classes
    cases = []
    for n in range(count):
        sure = Certainty(level=0.8, classes=names[: n % 3 + 1], distance=0.4)
        item = Prediction(f"P{n}", None, "ok", values=(0.5, 0.3, 0.2), certainty=sure)
        cases.append(EvaluatedCase(item, 1.0, "FM"[n % 2], 55.0 + n, counted=True))
    return cases


def test_coverage_by_hand(classes):
    found, notes = certainty_figures(classes, classified(classes))
    assert notes == []
    assert (found["level"], found["no_set"]) == (0.8, 0)
    everything = found["all"]
    assert (everything["cases"], everything["coverage"], everything["size"]) == (30, 2 / 3, 2.0)
    assert everything["single"] == pytest.approx(1 / 3)
    low, high = everything["coverage_95"]
    assert low < 2 / 3 < high
    groups = found["groups"]
    assert list(groups["classes"]) == ["MCI"]
    assert {name: of["cases"] for name, of in groups["sex"].items()} == {"F": 15, "M": 15}
    # 55 to 84: 5, 10, 10 and 5 people a decade.
    assert [of["cases"] for of in groups["age"].values()] == [5, 10, 10, 5]
    assert [of.get("too_few", False) for of in groups["age"].values()] == [True, False, False, True]
    assert {of["cases"] for of in groups["sex_age"].values()} <= {2, 3, 5}
    assert all(of["too_few"] for of in groups["sex_age"].values())
    assert found["unlike"]["share"] == 0.0
    assert "ages" not in found


def test_cases_without_a_set_are_counted_apart(classes):
    cases = classified(classes, 12)
    bare = replace(cases[0].prediction, certainty=None)
    cases = [replace(cases[0], prediction=bare), *cases[1:]]
    found, _ = certainty_figures(classes, cases)
    assert (found["no_set"], found["all"]["cases"], found["unlike"]["cases"]) == (1, 11, 11)
    without = [replace(case, prediction=bare) for case in cases]
    found, notes = certainty_figures(classes, without)
    assert found == {"no_set": 12}
    assert "too few for sets or intervals" in notes[0]
    assert certainty_figures(classes, [])[0] is None


def test_an_artifact_that_does_not_say_it(classes):
    older = classes.model_copy(update={"calibration": None, "typical_scans": None})
    found, (note,) = certainty_figures(older, classified(older))
    assert found is None
    assert "does not say how sure its answers are" in note
    assert "`calibration` cases" in note
    text = dict(inspected(older))
    assert all("export again where the study is" in text[name] for name in
               ("sets and intervals", "usual scans"))  # fmt: skip
    page = " ".join(card(older).split())
    assert "The artifact carries no calibration of single answers" in page
    assert "The features of a scan are not compared with the training's." in page
    assert "no set or interval comes with an answer; open: thresholds" in page


def test_more_than_a_few_sexes_are_none(classes):
    cases = [replace(case, sex=f"site {n}") for n, case in enumerate(classified(classes))]
    assert set(certainty_figures(classes, cases)[0]["groups"]) == {"classes", "age"}


def test_ages_as_predicted_and_corrected(years, tmp_path, capsys):
    cases = aged(years)
    found, _ = certainty_figures(years, cases)
    ages = found["ages"]
    errors = np.array([c.prediction.values[0] - c.truth for c in cases])
    gaps = np.array([c.prediction.certainty.gap for c in cases])
    assert ages["uncorrected"]["mae"] == pytest.approx(np.abs(errors).mean())
    assert ages["corrected"]["mae"] == pytest.approx(np.abs(gaps).mean())
    assert ages["uncorrected"]["bias_slope"] == pytest.approx(-0.3, abs=0.1)
    assert abs(ages["corrected"]["bias_slope"]) < 0.1
    held = [abs(e) <= 9.2 for e in errors]  # the 46th of 50: ceil(51 * 0.9)
    assert found["all"]["coverage"] == pytest.approx(np.mean(held))
    assert found["all"]["size"] == pytest.approx(18.4)
    assert "single" not in found["all"]
    far = np.mean([c.prediction.certainty.distance > 1 for c in cases])
    assert found["unlike"]["share"] == pytest.approx(far)

    predictions, truths = [c.prediction for c in cases], [c.truth for c in cases]
    figures = measure(years, predictions, truths)
    about = {"machine": {"processor": "a test"}}
    made = Evaluation(years, "native", cases, figures, {}, certainty=found, about=about)
    write_evaluation(tmp_path, made)
    page = (tmp_path / "evaluation.html").read_text()
    for text in ("Intervals at 0.9", "mean width years", "Ages with and without their bias",
                 "no better prediction"):  # fmt: skip
        assert text in page
    _show_certainty(made)
    out = capsys.readouterr().out
    assert "intervals at 0.9" in out
    assert "mean absolute error: " in out
    assert "corrected" in out
    lines = certainty_lines(years, predictions)
    assert lines[0] == f"40 intervals at 0.9; {sum(held)} of 40 hold the truth"
    assert lines[1] == f"{round(40 * far)} of 40 cases have a scan unlike the training's"


def test_the_table_has_both_ages_always(years, tmp_path):
    predictions = [case.prediction for case in aged(years, 12)]
    failed = Prediction("Q", None, "error", "why", code="scan-truncated", truth="70")
    unknown = aged(years, 1, truth=False)[0].prediction
    write_predictions(tmp_path / "p.csv", years, [*predictions, failed, unknown])
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0])
    at = names.index("member_spread")
    assert names[at + 1 : at + 10] == ["interval_low", "interval_high", *GAP, "scan_distance"]
    for row in rows[:12]:
        true, value = float(row["truth"]), float(row["years"])
        corrected = value - 21 + 0.3 * true
        assert float(row["corrected"]) == pytest.approx(corrected, abs=1e-3)
        assert float(row["gap"]) == pytest.approx(corrected - true, abs=1e-3)
        assert float(row["gap_high"]) - float(row["gap_low"]) == pytest.approx(18.4, abs=1e-3)
        assert float(row["interval_high"]) - value == pytest.approx(9.2, abs=1e-3)
        share = float(row["gap_p_positive"])
        assert 0 < share < 1
        assert float(row["gap_percentile"]) == pytest.approx(100 * share, abs=1e-3)
    assert {rows[12][name] for name in [*GAP, "interval_low", "scan_distance"]} == {""}
    assert {rows[13][name] for name in GAP} == {""}
    assert rows[13]["interval_low"]
    # Without a true age there is no gap, and no column of it.
    assert not set(GAP) & {column.name for column in columns_of(years, [unknown])}


def test_a_sidecar_describes_gaps(years, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    predictions = [case.prediction for case in aged(years, 2)]
    write_derivative(tmp_path / "out", years, predictions, source)
    sidecar = json.loads((tmp_path / "out/sub-P0/sub-P0_sessions.json").read_text())
    for name in (*GAP, "interval_low", "scan_distance"):
        assert not sidecar[name]["Description"].startswith("Figure of")
    assert sidecar["gap"]["Units"] == "year"
    assert "Units" not in sidecar["gap_percentile"]
    assert "with probability 0.9" in sidecar["gap_low"]["Description"]


def test_card_and_inspect_of_ages(years):
    text = dict(inspected(years))
    assert text["calibration cases"] == "50 people, given at export, and not learned from"
    assert text["bias of age"] == "predicted - true = 21.0 - 0.300 x true age"
    assert "temperature" not in text
    page = " ".join(card(years).split())
    assert "A prediction comes with an interval." in page
    assert "the gap between the two, stand beside the prediction as it is" in page
    assert "scaled by the temperature" not in page


def test_card_of_classes(classes):
    page = " ".join(card(classes).split())
    assert "A prediction comes with a set of classes." in page
    assert "| highest level | 0.941 |" in page
    assert "those of the engines' own files are not" in page
    assert "warned of, or refused where that is asked for" in page
    assert "| 31 | explanations | maps of the image by occlusion" in page
    few = classes.calibration.model_copy(update={"cases": 5, "temperature": 1.0})
    page = " ".join(card(classes.model_copy(update={"calibration": few})).split())
    assert "The calibration cases are too few for 0.9" in page
    assert "answers are not scaled afterwards" in page


def test_weights_that_the_validation_part_chose_are_told(classes):
    for keep, told in (("best", True), ("last", False)):
        training = {**classes.provenance.training, "keep": keep}
        source = classes.provenance.model_copy(update={"training": training})
        page = card(classes.model_copy(update={"provenance": source}))
        assert ("of the validation part, which also chose the weights" in page) == told
        assert ("The validation part also chose the weights" in page) == told
