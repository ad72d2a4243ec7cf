"""Other rows of one scan: what-if, the nearest flip, Shapley values; on networks known by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from hyperfusion_rt.artifact.table_summary import TableSummary
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.encoder_columns import CategoricalColumn, NumericColumn
from hyperfusion_rt.errors import ArtifactError, ConfigError, TableError
from hyperfusion_rt.rules import softmax
from hyperfusion_rt.runtime.explain.flip import nearest_flip
from hyperfusion_rt.runtime.explain.question import Question
from hyperfusion_rt.runtime.explain.shapley import _sampled, shapley
from hyperfusion_rt.runtime.explain.what_if import Curves, parse_vary, what_if

AGE = NumericColumn(kind="numeric", name="AGE", fill=70.0, mean=70.0, std=8.0, low=50.0, high=90.0)
SEX = CategoricalColumn(kind="categorical", name="SEX", categories=("F", "M"), mode="F")
TAU = NumericColumn(
    kind="numeric", name="TAU", fill=200.0, mean=200.0, std=50.0, low=80.0, high=400.0,
    missing_rate=0.3,
)  # fmt: skip
ENCODER = TabularEncoder(columns=(AGE, SEX, TAU))
# Inputs: AGE, SEX=F, SEX=M, TAU, TAU:missing.


def table():
    rng = np.random.default_rng(0)
    age = np.clip(rng.normal(70, 8, 500), 50, 90)
    sex = rng.integers(2, size=500).astype(float)
    tau = np.clip(200 + 4 * (age - 70) + 20 * rng.standard_normal(500), 80, 400)
    tau[rng.random(500) < 0.3] = np.nan
    return np.stack([age, sex, tau], 1)


class Known:
    """A network of which the answer is a known function of the encoded row."""

    def __init__(self, answer, classes=(), summary=True):
        self.answer = answer
        self.artifact = SimpleNamespace(folder="known.hfrt")
        self.manifest = SimpleNamespace(
            members=(ENCODER,),
            classes=classes,
            table_summary=TableSummary.fit(table(), ENCODER.columns) if summary else None,
        )

    def finish(self, features, rows):
        return {"output": self.answer(rows.astype(np.float64)) + features["m0.x"][:, :1]}

    def values(self, found):
        return found["output"], None


def ask(answer, cells, **options):
    features = {"m0.x": np.zeros((1, 4), np.float32)}
    return Question(Known(answer, **options), features, np.array(cells, np.float64))


def linear(rows):
    return (10 * rows[:, 0] + 3 * rows[:, 2] - 2 * rows[:, 3])[:, None]


def logistic(rows):
    """Two classes; the border is AGE 78, 74 for men."""
    logit = 8 * (rows[:, 0] - 1) + 4 * rows[:, 2]
    return softmax(np.stack([-logit, logit], 1))


def test_every_combination_is_answered_the_last_column_fastest():
    found = what_if(ask(linear, [70.0, 0.0, 200.0]), {"age": [62, 78.0], "SEX": ["f", "M"]})
    assert found.columns == ("AGE", "SEX")
    assert found.points == ((62.0, "F"), (62.0, "M"), (78.0, "F"), (78.0, "M"))
    np.testing.assert_allclose(found.values[:, 0], [-10, -7, 10, 13], atol=1e-5)
    assert found.own == (70.0, "F")
    assert found.answer == pytest.approx([0.0])
    assert found.low is None  # nothing is missing


def test_the_band_is_what_the_answer_could_be_if_the_cell_were_known():
    """TAU is 200 + 4 (AGE - 70) ± 20, and the answer falls by 2 / 50 with each unit."""
    found = what_if(ask(linear, [70.0, 0.0, np.nan]), {"AGE": [60, 70, 80]})
    middle = (found.low + found.high)[:, 0] / 2
    expected = np.array([10 * d / 8 - 2 * 4 * d / 50 for d in (-10, 0, 10)])
    np.testing.assert_allclose(middle, expected, atol=0.5)
    np.testing.assert_allclose((found.high - found.low)[:, 0], 2 * 1.645 * 20 * 2 / 50, rtol=0.25)


def test_a_gap_can_be_asked_about_and_ends_the_band():
    found = what_if(ask(linear, [70.0, 0.0, 300.0]), {"TAU": [None, 200.0]})
    assert found.points == ((None,), (200.0,))
    assert found.low[0, 0] < found.high[0, 0]
    assert found.low[1, 0] == found.high[1, 0] == found.values[1, 0]


def test_points_unlike_the_training_say_so():
    found = what_if(ask(linear, [70.0, 0.0, 200.0]), {"AGE": [45, 70, 55], "TAU": [200, 390]})
    assert "AGE 45 is outside the training range 50 to 90" in found.unusual[0]
    assert found.unusual[2] == ""
    assert "fewer than 3 training rows had AGE" in found.unusual[5]


def test_of_an_artifact_without_a_summary_there_are_answers_and_no_band():
    question = ask(linear, [70.0, 0.0, np.nan], summary=False)
    found = what_if(question, {"AGE": [45, 70]})
    assert found.low is None
    assert "outside" in found.unusual[0]  # the ranges are the encoder's
    with pytest.raises(ArtifactError, match="export it again where the study is") as error:
        shapley(question)
    assert error.value.code == "artifact-lacks-summary"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["AGE=55:57:1"], {"AGE": [55.0, 56.0, 57.0]}),
        (["AGE=55:56"], {"AGE": [55.0, 56.0]}),
        (["TAU=1:1.3:0.1"], {"TAU": [1.0, 1.1, 1.2, 1.3]}),
        (["A=0,1,2", "S=F, M"], {"A": ["0", "1", "2"], "S": ["F", "M"]}),
        (["TAU=NA,200"], {"TAU": [None, "200"]}),
    ],
)
def test_values_are_written_as_ranges_and_lists(texts, expected):
    found = parse_vary(texts)
    assert list(found) == list(expected)
    for name, values in expected.items():
        if isinstance(values[0], float):
            np.testing.assert_allclose(found[name], values)
        else:
            assert found[name] == values


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("AGE", "write it as COLUMN=FROM:TO:STEP"),
        ("=3", "write it as"),
        ("AGE=", "write it as"),
        ("AGE=90:55:1", "the range is empty: 90 is above 55; write 55:90"),
        ("AGE=55:90:0", "the step is 0; it must be above 0"),
        ("AGE=55:90:-1", "the step is -1"),
        ("AGE=0:1e9:0.001", "take a larger step"),
    ],
)
def test_what_is_no_range_is_refused(text, says):
    with pytest.raises(TableError, match=says) as error:
        parse_vary([text])
    assert error.value.code == "what-if-wrong-values"
    with pytest.raises(TableError, match="varied twice"):
        parse_vary(["AGE=1", "AGE=2"])


@pytest.mark.parametrize(
    ("vary", "says", "code"),
    [
        ({"AEG": [1]}, "reads no such column; did you mean 'AGE'", "what-if-unknown-column"),
        ({"AGE": ["old"]}, "AGE=old: is no usable number", "table-not-a-number"),
        ({"AGE": [np.inf]}, "is no usable number", "table-not-a-number"),
        ({"SEX": ["X"]}, "SEX=X: is not a known value; allowed: F, M", "table-unknown-category"),
        ({"SEX": []}, "has no value", "what-if-wrong-values"),
        ({}, "name a column", "what-if-wrong-values"),
        ({"AGE": [1], "age": [2]}, "named twice", "what-if-wrong-values"),
        ({"AGE": range(2000), "TAU": range(2000)}, "4,000,000 points", "what-if-wrong-values"),
    ],
)
def test_what_the_model_does_not_know_is_refused(vary, says, code):
    with pytest.raises(TableError, match=says) as error:
        what_if(ask(linear, [70.0, 0.0, 200.0]), vary)
    assert error.value.code == code


def test_curves_are_one_what_if_for_each_column():
    question = ask(linear, [70.0, 1.0, np.nan])
    found = Curves(question.columns, points=5).of(question)
    assert [one.columns for one in found] == [("AGE",), ("SEX",), ("TAU",)]
    assert [point[0] for point in found[0].points] == [50, 60, 70, 80, 90]
    for one in found:
        alone = what_if(question, {one.columns[0]: [point[0] for point in one.points]})
        np.testing.assert_array_equal(one.values, alone.values)
    assert found[1].points == (("F",), ("M",))
    assert found[2].own == (None,)
    assert found[0].low is not None


def test_the_nearest_flip_of_one_column_is_at_the_border():
    flips = nearest_flip(ask(logistic, [70.0, 0.0, 200.0], classes=("CN", "AD")))
    alone = {flip.changes[0][0]: flip for flip in flips if len(flip.changes) == 1}
    assert alone["AGE"].changes[0][1:] == (70.0, pytest.approx(78.0, abs=1e-4))
    assert alone["AGE"].distance == pytest.approx(1.0, abs=1e-4)
    assert "SEX" not in alone  # a man of 70 is CN, too
    assert alone["AGE"].values.argmax() == 1
    # No other pair is nearer than the age alone: 1 + half a standard deviation is farther.
    assert flips[0].distance == pytest.approx(1.0, abs=1e-3)


def test_a_category_flips_by_enumeration():
    flips = nearest_flip(ask(logistic, [75.0, 0.0, 200.0], classes=("CN", "AD")))
    changes = {flip.changes for flip in flips}
    assert (("SEX", "F", "M"),) in changes
    assert flips == sorted(flips, key=lambda flip: flip.distance)
    # 3 years are nearer than another sex, which counts as one.
    assert flips[0].changes[0][0] == "AGE"
    assert flips[0].distance == pytest.approx(3 / 8, abs=1e-3)


def test_several_cells_together_flip_where_none_does_alone():
    def both(rows):
        logit = 4 * (rows[:, 0] + rows[:, 3] - 4)  # AGE and TAU up by 2 sd each
        return softmax(np.stack([-logit, logit], 1))

    flips = nearest_flip(ask(both, [70.0, 0.0, 200.0], classes=("CN", "AD")))
    first = flips[0]
    assert {name for name, _, _ in first.changes} == {"AGE", "TAU"}
    # The nearest point of the border is 4 / √2 away, in both by 2.
    assert first.distance == pytest.approx(4 / np.sqrt(2), rel=0.02)


def test_a_number_flips_around_a_value_and_missing_cells_stay():
    flips = nearest_flip(ask(linear, [70.0, 0.0, np.nan]), at=5.0)
    assert flips[0].changes[0][0] == "AGE"
    assert flips[0].changes[0][2] == pytest.approx(74.0, abs=1e-3)
    assert all(name != "TAU" for flip in flips for name, _, _ in flip.changes)
    assert nearest_flip(ask(linear, [70.0, 0.0, np.nan]), at=500.0) == []
    with pytest.raises(ConfigError, match="give `at`"):
        nearest_flip(ask(linear, [70.0, 0.0, 200.0]))
    with pytest.raises(ConfigError, match="answers that are numbers"):
        nearest_flip(ask(logistic, [70.0, 0.0, 200.0], classes=("CN", "AD")), at=1.0)


def test_shapley_values_of_a_linear_network_are_known():
    question = ask(linear, [78.0, 1.0, 300.0])
    found = shapley(question, background=256)
    rows = question.summary.background(256)
    encoded = ENCODER.encode_cells(rows).astype(np.float64).mean(0)
    expected = [10 * (1 - encoded[0]), 3 * (1 - encoded[2]), -2 * (2 - encoded[3])]
    np.testing.assert_allclose(found.values[:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(found.usual + found.values.sum(0), found.answer, atol=1e-9)
    assert found.error is None
    assert found.cells == (78.0, "M", 300.0)


def test_a_column_that_the_network_ignores_has_no_share():
    found = shapley(ask(logistic, [78.0, 1.0, 300.0], classes=("CN", "AD")))
    assert np.abs(found.values[2]).max() < 1e-12
    assert np.abs(found.values[0]).max() > 0.05
    # Of two probabilities, what one gains the other loses.
    np.testing.assert_allclose(found.values[:, 0], -found.values[:, 1], atol=1e-12)


def test_sampled_values_are_the_exact_ones_within_their_error():
    # Of columns that act in pairs, an order and its reverse give the exact values: here are three.
    question = ask(lambda rows: rows[:, :1] * rows[:, 2:3] * rows[:, 3:4], [78.0, 1.0, 300.0])
    rows = question.summary.background(64)
    exact = shapley(question).values
    sampled, usual, error = _sampled(question, rows, seed=0)
    assert 0 < error < 0.05
    assert np.abs(sampled - exact).max() < 4 * error
    answer = question.answers(question.cells[None])[0]
    np.testing.assert_allclose(usual + sampled.sum(0), answer)
