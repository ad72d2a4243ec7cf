"""How sure one answer is: sets, intervals and gaps by hand; levels that cannot be had."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from hyperfusion_rt.artifact.calibration import AgeBias, Calibration, Scores, group_of
from hyperfusion_rt.artifact.usual_errors import UsualErrors
from hyperfusion_rt.data.table_file import Row
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.runtime.certainty import certainty, check_level
from hyperfusion_rt.runtime.prediction import Certainty, Prediction, as_json, from_json

TENTHS = tuple(i / 10 for i in range(1, 20))  # 19 scores: 0.1 to 1.9
WOMEN = "female 60 to 69"


def manifest(classes=(), target="AGE", unit="years", **made):
    calibration = None
    if made:
        calibration = Calibration.model_validate({"source": "given", "cases": 19, **made})
    return SimpleNamespace(
        classes=classes,
        unit=unit,
        calibration=calibration,
        table=SimpleNamespace(target=target),
    )


def row(**cells):
    return Row("S1", None, 2, {name: str(value) for name, value in cells.items()})


def test_a_set_holds_the_classes_up_to_the_threshold():
    """Of 19 scores the 0.5 threshold is the 10th, 1.0 here scaled down by ten: 0.5."""
    scores = Scores(all=tuple(i / 20 for i in range(1, 20)))
    m = manifest(("CN", "MCI", "AD"), "DX", scores=scores)
    # Before CN lies 0.6, before MCI 0, before AD 0.9.
    found = certainty(m, (0.3, 0.6, 0.1), None, row(), 0.5)
    assert found == Certainty(level=0.5, classes=("MCI",))
    assert certainty(m, (0.3, 0.6, 0.1), None, row(), 0.6).classes == ("CN", "MCI")
    assert certainty(m, (0.3, 0.6, 0.1), None, row(), 0.9).classes == ("CN", "MCI", "AD")
    assert certainty(m, (0.0, 0.0, 1.0), None, row(), 0.05).classes == ("AD",)  # never empty


def test_groups_have_thresholds_of_their_own():
    m = manifest(("a", "b"), "DX", scores=Scores(all=(0.0,) * 19, groups={WOMEN: (0.9,) * 19}),
                 sex="SEX", age="AGE")  # fmt: skip
    for age, several in ((64, True), ("", False), ("x", False), (640, False)):
        found = certainty(m, (0.8, 0.2), None, row(SEX="Female", AGE=age), 0.9)
        assert (len(found.classes) > 1) == several


def test_a_group_without_sex_or_age_is_none():
    assert group_of("Female", 64.9) == WOMEN
    assert group_of("", 64.9) == group_of("Female", None) == ""


def test_an_interval_is_as_wide_as_the_network_s_own_deviation():
    m = manifest(scores=Scores(all=TENTHS))
    found = certainty(m, (70.0,), 4.0, row(), 0.5)
    assert (found.low, found.high) == pytest.approx((66, 74))  # the 10th score, 1.0, times 4


def test_an_interval_lies_where_the_truth_usually_does():
    """Women of 50 are predicted 4 years too old; errors are half as large at 90 as at 50."""
    usual = UsualErrors(
        low=50.0, high=90.0, lines={"female": (14.0, -0.2), "": (0.0, 0.0)},
        size=(2.0, -1.0, 0.0), least=0.1,
    )  # fmt: skip
    m = manifest(scores=Scores(all=TENTHS), errors=usual, sex="SEX")
    for sex, predicted, sd, ends in (
        ("Female", 50.0, None, (44, 48)), ("female", 90.0, None, (93, 95)),
        ("F", 50.0, None, (48, 52)), ("Female", 30.0, None, (24, 28)),
        ("Female", 50.0, 3.0, (40, 52)),
    ):  # fmt: skip
        found = certainty(m, (predicted,), sd, row(SEX=sex), 0.5)  # the 10th score is 1.0
        assert (found.low, found.high) == pytest.approx(ends)


BIAS = {
    "slope": -0.2,
    "intercept": 13.0,  # young ones too old, old ones too young: 0 at 65
    "gaps": Scores(all=tuple(i - 10.0 for i in range(1, 20))),  # -9 to 9
    "sizes": Scores(all=tuple(float(i) for i in range(1, 20))),
}


def test_a_gap_by_hand():
    m = manifest(scores=Scores(all=TENTHS), age_bias=AgeBias(**BIAS))
    found = certainty(m, (74.0,), None, row(AGE=75), 0.5)
    assert found.corrected == pytest.approx(74 - 13 + 0.2 * 75)  # 76
    assert found.gap == pytest.approx(1.0)
    assert (found.gap_low, found.gap_high) == pytest.approx((-9, 11))  # the 10th size
    # 10 gaps of 19 lie below 1, and one ties: (10 + 1/2 + 1/2) / 20.
    assert found.p_positive == pytest.approx(0.55)
    assert found.percentile == pytest.approx(55)
    assert (found.low, found.high) == pytest.approx((73, 75))  # of the prediction as it is


@pytest.mark.parametrize("age", ["", "NA", "unknown", "-4", "999"])
def test_without_a_true_age_there_is_no_gap(age):
    m = manifest(scores=Scores(all=TENTHS), age_bias=AgeBias(**BIAS))
    found = certainty(m, (74.0,), None, row(AGE=age), 0.5)
    assert (found.gap, found.corrected, found.percentile) == (None, None, None)
    assert found.low is not None


def test_a_number_that_is_no_age_has_no_gap():
    found = certainty(manifest(target="MMSE", unit="", scores=Scores(all=TENTHS)), (20.0,), None,
                      row(MMSE=20), 0.5)  # fmt: skip
    assert found.gap is None


def test_the_default_level_is_left_out_where_cases_are_too_few():
    m = manifest(("a", "b"), "DX", scores=Scores(all=(0.1, 0.2)), cases=2)
    found = certainty(m, (0.6, 0.4), None, row(), check_level(m, None), 0.4)
    assert found == Certainty(distance=0.4)


def test_levels_that_cannot_be_had():
    m = manifest(("a", "b"), "DX", scores=Scores(all=(0.1,) * 19))
    assert check_level(m, None) == 0.9
    assert check_level(m, 0.95) == 0.95
    with pytest.raises(ConfigError, match=r"19 calibration cases give at most 0\.95; ask") as error:
        check_level(m, 0.96)
    assert error.value.code == "level-too-high"
    with pytest.raises(ConfigError, match="says nothing of how sure") as error:
        check_level(manifest(), 0.5)
    assert error.value.code == "level-unknown"
    assert certainty(manifest(), (70.0,), None, row(), 0.9) is None
    assert certainty(manifest(), (70.0,), None, row(), 0.9, 1.5) == Certainty(distance=1.5)


def test_certainty_survives_json():
    sure = Certainty(level=0.9, classes=("CN", "MCI"), distance=1 / 3)
    item = Prediction("S1", None, "ok", values=(0.5, 0.5), certainty=sure)
    assert from_json(json.loads(json.dumps(as_json(item)))) == item
    item = replace(item, certainty=Certainty(level=0.8, low=0.1 + 0.2, high=1 / 3, gap=-1e-17))
    assert from_json(json.loads(json.dumps(as_json(item)))) == item
    older = as_json(replace(item, certainty=None))
    del older["certainty"]
    assert from_json(older).certainty is None
