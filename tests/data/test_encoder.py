"""The encoder: what it learns, what it refuses, and that nothing leaks or drifts."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hyperfusion_rt.config import Feature, TableSpec, preset
from hyperfusion_rt.data.encoder import TabularEncoder, read_target
from hyperfusion_rt.data.encoder_columns import NumericColumn
from hyperfusion_rt.data.table_file import Row, Table
from hyperfusion_rt.errors import ConfigError, MissingExtraError, TableError

Kind = Any


def rows_of(**columns: list[Any]) -> list[Row]:
    count = len(next(iter(columns.values())))
    return [
        Row(str(n), None, n + 2, {name: str(values[n]) for name, values in columns.items()})
        for n in range(count)
    ]


def spec_of(imputer: Any = "median", /, **kinds: Kind) -> TableSpec:
    """`AGE="numeric"`, or a tuple of categories."""
    features = tuple(
        Feature(name=name, kind=kind)
        if isinstance(kind, str)
        else Feature(name=name, kind="categorical", categories=kind)
        for name, kind in kinds.items()
    )
    return TableSpec(features=features, target="DX", imputer=imputer)


def adni_like(count: int, seed: int, gaps: float = 0.3) -> list[Row]:
    rng = np.random.default_rng(seed)
    age = rng.normal(73, 7, count)
    tau = 200 + 3 * (age - 73) + rng.normal(0, 30, count)
    columns = {
        "AGE": age,
        "PTGENDER": rng.choice(["Female", "Male"], count),
        "PTEDUCAT": rng.integers(8, 21, count),
        "APOE4": rng.integers(0, 3, count),
        "ABETA": 1000 - 2 * (age - 73) + rng.normal(0, 200, count),
        "TAU": tau,
        "PTAU": tau / 10 + rng.normal(0, 2, count),
        "FDG": rng.normal(1.2, 0.15, count),
        "AV45": rng.normal(1.2, 0.2, count),
    }
    texts = {name: [str(value) for value in values] for name, values in columns.items()}
    for name in ("ABETA", "TAU", "PTAU", "FDG", "AV45"):
        for n in np.flatnonzero(rng.random(count) < gaps):
            texts[name][n] = ""
    texts["ABETA"][0], texts["TAU"][1] = ">1700", "<80"
    return rows_of(**texts)


ADNI = preset("ad").tabular


def test_layout_and_values() -> None:
    rows = rows_of(
        AGE=[60, 70, 80, "NA"],
        SEX=["f", "M", "M", "m"],
        TAU=["<80", "100", ">120", "100"],
        SITE=["b", "a", "", "B"],
    )
    spec = spec_of(AGE="numeric", SEX=("F", "M"), TAU="censored", SITE=())
    encoder = TabularEncoder.fit(rows, spec)
    assert encoder.names == (
        "AGE",
        "AGE:missing",
        "SEX=F",
        "SEX=M",
        "TAU",
        "SITE=a",
        "SITE=B",
        "SITE:missing",
    )
    assert encoder.width == 8
    x = encoder.encode(rows)
    assert x.dtype == np.float32
    assert x.shape == (4, 8)
    s = np.sqrt(50)  # the std of 60 70 80 70; half that of 80 100 120 100
    np.testing.assert_allclose(x[:, 0], [-10 / s, 0, 10 / s, 0], rtol=1e-6)
    np.testing.assert_array_equal(x[:, 1], [0, 0, 0, 1])
    np.testing.assert_array_equal(x[:, 2:4], [[1, 0], [0, 1], [0, 1], [0, 1]])
    np.testing.assert_allclose(x[:, 4], [-10 / s, 0, 10 / s, 0], rtol=1e-6)
    # 'b' and 'B' are one category, and the most frequent one: it fills the gap.
    np.testing.assert_array_equal(x[:, 5:], [[0, 1, 0], [1, 0, 0], [0, 1, 1], [0, 1, 0]])


def test_adni_preset_is_standardised() -> None:
    rows = adni_like(200, seed=0)
    encoder = TabularEncoder.fit(rows, ADNI)
    assert encoder.width == 9 + 1 + 5  # the published T = 15: five features have gaps
    assert encoder.training_rows == 200
    x = encoder.encode(rows).astype(np.float64)
    numeric = [n for n, name in enumerate(encoder.names) if ":" not in name and "=" not in name]
    np.testing.assert_allclose(x[:, numeric].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(x[:, numeric].std(axis=0), 1, atol=1e-5)


def test_encode_is_encode_row() -> None:
    rows = adni_like(60, seed=1)
    encoder = TabularEncoder.fit(rows, ADNI)
    batch = encoder.encode(rows)
    for n in (0, 1, 17, 59):
        one = encoder.encode_row(rows[n])
        assert one.dtype == np.float32
        assert one.tobytes() == batch[n].tobytes()
    assert encoder.encode([]).shape == (0, encoder.width)


@pytest.mark.parametrize("gaps", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_iterative_imputer_equals_sklearn(gaps: float, seed: int) -> None:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer
    from sklearn.linear_model import BayesianRidge

    train, test = adni_like(120, seed, gaps), adni_like(50, seed + 100, 0.4)
    encoder = TabularEncoder.fit(train, ADNI)
    x = encoder.numbers(train)
    new = encoder.numbers(test)
    theirs = IterativeImputer(
        BayesianRidge(),
        initial_strategy="median",
        min_value=np.nanmin(x, axis=0),
        max_value=np.nanmax(x, axis=0),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = theirs.fit_transform(x)
    assert encoder.rounds == theirs.n_iter_
    assert len(encoder.steps) == 8 * encoder.rounds
    for raw, expected in ((x, fitted), (new, theirs.transform(new))):
        ours = encoder.impute(raw)
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(ours[~np.isnan(raw)], raw[~np.isnan(raw)])


def test_imputed_values_stay_in_the_training_range() -> None:
    rng = np.random.default_rng(3)
    age = rng.uniform(60, 80, 80)
    train = rows_of(A=list(age), B=[*(2 * age[:60]), *[""] * 20])
    encoder = TabularEncoder.fit(train, spec_of("iterative", A="numeric", B="numeric"))
    far = encoder.impute(np.array([[500.0, np.nan]]))[0]
    column = encoder.columns[1]
    assert isinstance(column, NumericColumn)
    assert far[1] == column.high


def test_iterative_with_one_column_falls_back_to_the_median() -> None:
    encoder = TabularEncoder.fit(rows_of(A=[1, 2, 9, ""]), spec_of("iterative", A="numeric"))
    assert encoder.steps == ()
    assert encoder.impute(np.array([[np.nan]]))[0, 0] == 2.0


@pytest.mark.parametrize("imputer", ["median", "iterative"])
@pytest.mark.parametrize(
    "columns",
    [
        {"A": [5, 5, 5, 5], "B": [1, 2, 3, ""]},
        {"A": [0.1] * 7, "B": [1, "", "", "", "", "", ""]},
        {"A": [3], "B": [4]},
        {"A": [1e15, -1e15, 1e15], "B": [1e-15, 2e-15, ""]},
        {"A": [0, 5e-324, 0], "B": [0, 0, 0]},
    ],
)
def test_degenerate_columns(imputer: str, columns: dict[str, list[Any]]) -> None:
    rows = rows_of(**columns)
    encoder = TabularEncoder.fit(rows, spec_of(imputer, A="numeric", B="numeric"))
    x = encoder.encode([*rows, Row("x", None, 9, {"A": "1e15", "B": "-1e15"})])
    assert np.isfinite(x).all()
    if len(set(columns["A"])) == 1:
        np.testing.assert_allclose(x[: len(rows), 0], 0, atol=1e-6)
        assert encoder.columns[0].std == 1.0  # type: ignore[union-attr]


def test_no_features() -> None:
    encoder = TabularEncoder.fit(rows_of(DX=["CN"]), spec_of())
    assert encoder.width == 0
    assert encoder.encode(rows_of(DX=["CN", "AD"])).shape == (2, 0)


def test_test_rows_do_not_leak() -> None:
    train, test = adni_like(80, seed=4), adni_like(30, seed=5)
    before = TabularEncoder.fit(train, ADNI)
    encoded = before.encode(train).tobytes()
    before.encode(test)
    other = [Row(r.subject, None, r.line, {**r.values, "AGE": "999", "TAU": ""}) for r in test]
    before.encode(other)
    after = TabularEncoder.fit(train, ADNI)
    assert after == TabularEncoder.model_validate_json(before.model_dump_json())
    assert after.encode(train).tobytes() == encoded
    # and the training rows do matter
    assert TabularEncoder.fit([*train, *other], ADNI).columns != after.columns


@pytest.mark.parametrize("imputer", ["median", "iterative"])
def test_order_of_training_rows_does_not_matter_to_learned_categories(imputer: str) -> None:
    rows = rows_of(S=["b", "B", "a", "c", "c"], A=[1, 2, 3, 4, 5])
    spec = spec_of(imputer, S=(), A="numeric")
    assert (
        TabularEncoder.fit(rows, spec).columns[0] == TabularEncoder.fit(rows[::-1], spec).columns[0]
    )


numbers = st.floats(-1e15, 1e15, allow_nan=False, allow_subnormal=True)
texts = st.one_of(numbers.map(repr), st.sampled_from(["", "NA", "0", "-0.0", "71.5"]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(texts, texts, st.sampled_from(["F", "m", "M", ""])), min_size=1, max_size=12
    ),
    st.sampled_from(["median", "iterative"]),
)
def test_json_keeps_encodings_bit_for_bit(body: list[tuple[str, str, str]], imputer: str) -> None:
    first = [("1", "2", "F"), ("3", "5", "M")]
    a, b, s = zip(*first, *body, strict=True)
    rows = rows_of(A=list(a), B=list(b), S=list(s))
    encoder = TabularEncoder.fit(rows, spec_of(imputer, A="numeric", B="numeric", S=("F", "M")))
    x = encoder.encode(rows)
    assert np.isfinite(x).all()
    for text in (encoder.model_dump_json(), json.dumps(encoder.model_dump(mode="json"))):
        back = TabularEncoder.model_validate_json(text)
        assert back == encoder
        assert back.encode(rows).tobytes() == x.tobytes()


def test_frozen_and_strict() -> None:
    encoder = TabularEncoder.passthrough(2)
    with pytest.raises(ValidationError, match="frozen"):
        encoder.rounds = 3
    with pytest.raises(ValidationError, match="extra"):
        TabularEncoder.model_validate({**encoder.model_dump(), "new": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefficients": [1.0]}, "needs 3 coefficients"),
        ({"target": 1}, "column 1 is no number"),
        ({"target": 3}, "column 3 is no number"),
        ({"intercept": float("nan")}, "finite"),
    ],
)
def test_damaged_imputer_is_refused(change: dict[str, Any], message: str) -> None:
    rows = rows_of(A=[1, 2, ""], S=["a", "b", "a"])
    encoder = TabularEncoder.fit(rows, spec_of("iterative", A="numeric", S=("a", "b")))
    data = json.loads(encoder.model_dump_json())
    data["steps"][0] |= change
    with pytest.raises(ValidationError, match=message):
        TabularEncoder.model_validate(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"mode": "x"}, "mode 'x' of 'S'"), ({"categories": []}, "at least 1 item")],
)
def test_damaged_category_is_refused(change: dict[str, Any], message: str) -> None:
    encoder = TabularEncoder.fit(rows_of(S=["a", "b"]), spec_of(S=()))
    data = json.loads(encoder.model_dump_json())
    data["columns"][0] |= change
    with pytest.raises(ValidationError, match=message):
        TabularEncoder.model_validate(data)


FITTED = TabularEncoder.fit(
    rows_of(AGE=[60, 70, 80], TAU=["<8", "", "90"], SEX=["F", "M", "M"]),
    spec_of(AGE="numeric", TAU="censored", SEX=("F", "M")),
)


def one(**values: str) -> Row:
    return Row("1", None, 7, {"AGE": "70", "TAU": "10", "SEX": "F", **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"SEX": "X"}, "line 7, column 'SEX': 'X' is not a known value; allowed: F, M, or empty"),
        ({"AGE": "old"}, "line 7, column 'AGE': 'old' is no usable number; allowed: 71.5"),
        ({"AGE": ">90"}, "line 7, column 'AGE': '>90' .* kind 'censored'"),
        ({"TAU": "inf"}, "line 7, column 'TAU': 'inf' .* finite"),
    ],
)
def test_bad_cells(values: dict[str, str], message: str) -> None:
    with pytest.raises(TableError, match=message):
        FITTED.encode_row(one(**values))
    with pytest.raises(TableError, match=message):
        FITTED.encode([one(), one(**values)])
    with pytest.raises(TableError, match=message):
        FITTED.warnings(one(**values))


def test_absent_column_in_a_row() -> None:
    with pytest.raises(TableError, match="line 3: there is no column 'AGE'; did you mean 'Age'"):
        FITTED.encode_row(Row("1", None, 3, {"Age": "70", "TAU": "1", "SEX": "F"}))


def table_of(*columns: str) -> Table:
    return Table(Path("data.csv"), columns, [], ",", columns[0])


def test_check_columns() -> None:
    FITTED.check_columns(table_of("subject", "SEX", "TAU", "AGE", "more"))
    with pytest.raises(
        TableError, match=r"data.csv: .*'AGE'; did you mean 'Age'.*, 'TAU'"
    ) as error:
        FITTED.check_columns(table_of("subject", "Age", "SEX"))
    assert "the columns are subject, Age, SEX" in str(error.value)


def test_warnings() -> None:
    assert FITTED.warnings(one()) == []
    assert FITTED.warnings(one(TAU="")) == []  # training had such gaps: there is an indicator
    assert FITTED.warnings(one(AGE="101.5")) == ["AGE 101.5 is outside the training range 60 to 80"]
    assert FITTED.warnings(one(TAU="<5")) == ["TAU 5 is outside the training range 8 to 90"]
    missing = FITTED.warnings(one(AGE="", SEX="NA"))
    assert [text.split()[0] for text in missing] == ["AGE", "SEX"]
    assert all("was imputed" in text for text in missing)
    assert np.isfinite(FITTED.encode_row(one(AGE="", SEX=""))).all()


def test_training_ranges_and_missing_rates_are_stored() -> None:
    age, tau, _ = FITTED.columns
    assert isinstance(age, NumericColumn)
    assert isinstance(tau, NumericColumn)
    assert (age.low, age.high, age.missing_rate) == (60, 80, 0)
    assert (tau.low, tau.high) == (8, 90)
    assert tau.missing_rate == pytest.approx(1 / 3)


def test_fit_refuses() -> None:
    with pytest.raises(TableError, match="no training rows"):
        TabularEncoder.fit([], spec_of(A="numeric"))
    with pytest.raises(TableError, match="column 'A': none of the 2 training rows"):
        TabularEncoder.fit(rows_of(A=["", "NA"]), spec_of(A="numeric"))
    for categories in ((), ("F", "M")):
        with pytest.raises(TableError, match="column 'A': none of the 2 training rows"):
            TabularEncoder.fit(rows_of(A=["", "NA"]), spec_of(A=categories))
    with pytest.raises(TableError, match="line 3, column 'A': 'c'"):
        TabularEncoder.fit(rows_of(A=["a", "c"]), spec_of(A=("a", "b")))
    with pytest.raises(TableError, match="there is no column 'A'"):
        TabularEncoder.fit(rows_of(B=["a"]), spec_of(A="numeric"))
    with pytest.raises(ConfigError, match="lists a category twice"):
        TabularEncoder.fit(rows_of(A=["a"]), spec_of(A=("a", "A")))
    twice = spec_of(A="numeric").features * 2
    with pytest.raises(ConfigError, match="a feature is listed twice"):
        TabularEncoder.fit(rows_of(A=[1]), TableSpec(features=twice, target="DX"))


def test_sklearn_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.exceptions", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn.*hyperfusion_rt\[train\]"):
        TabularEncoder.fit(adni_like(10, 0), ADNI)


def test_passthrough() -> None:
    encoder = TabularEncoder.passthrough(3)
    assert encoder.names == ("x0", "x1", "x2")
    row = Row("1", None, 2, {"x0": "-1.25", "x1": "1e3", "x2": "0.1"})
    np.testing.assert_array_equal(encoder.encode_row(row), np.float32([-1.25, 1e3, 0.1]))
    assert encoder.warnings(row) == []
    assert TabularEncoder.model_validate_json(encoder.model_dump_json()) == encoder
    with pytest.raises(TableError, match="line 2, column 'x1': is empty"):
        encoder.encode_row(Row("1", None, 2, {"x0": "1", "x1": "", "x2": "1"}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("CN", 0), ("emci", 1), ("LMCI", 1), ("Dementia", 2), ("", None), ("NA", None)],
)
def test_class_targets(text: str, expected: int | None) -> None:
    assert read_target(Row("1", None, 2, {"DX": text}), ADNI) == expected


def test_unknown_label() -> None:
    with pytest.raises(TableError, match=r"line 2, column 'DX': 'SMC' is not a known value") as e:
        read_target(Row("1", None, 2, {"DX": "SMC"}), ADNI)
    assert "LMCI" in str(e.value)


def test_number_targets() -> None:
    spec = preset("brain-age").tabular
    assert read_target(Row("1", None, 2, {"AGE": "71.5"}), spec) == 71.5
    assert read_target(Row("1", None, 2, {"AGE": ""}), spec) is None
    with pytest.raises(TableError, match="column 'AGE': 'old'"):
        read_target(Row("1", None, 2, {"AGE": "old"}), spec)
    with pytest.raises(TableError, match="no column 'AGE'"):
        read_target(Row("1", None, 2, {}), spec)


def test_classes_without_values_and_classes_that_overlap() -> None:
    spec = TableSpec(features=(), target="DX", classes={"CN": (), "AD": ("AD",)})
    assert read_target(Row("1", None, 2, {"DX": "cn"}), spec) == 0
    bad = TableSpec(features=(), target="DX", classes={"CN": ("x",), "AD": ("X",)})
    with pytest.raises(ConfigError, match="two classes mean 'X'"):
        read_target(Row("1", None, 2, {"DX": "x"}), bad)


def test_encoding_imports_neither_torch_nor_sklearn() -> None:
    code = (
        "import sys; from hyperfusion_rt.data import cohort, encoder, table_file; "
        f"e = encoder.TabularEncoder.model_validate_json({FITTED.model_dump_json()!r}); "
        "e.encode_row(table_file.Row('1', None, 2, {'AGE': '', 'TAU': '', 'SEX': ''})); "
        "print(*sorted({'torch', 'sklearn', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_listed_category_that_training_did_not_have_is_warned_of() -> None:
    spec = spec_of(SEX=("F", "M", "X"))
    encoder = TabularEncoder.fit(rows_of(SEX=["F", "F", ""]), spec)
    assert encoder.columns[0].unseen == ("M", "X")  # type: ignore[union-attr]
    said = [encoder.warnings(row) for row in rows_of(SEX=["F", "m", "", "X"])]
    assert said == [[], ["SEX M: no training row had it"], [], ["SEX X: no training row had it"]]
    assert TabularEncoder.model_validate_json(encoder.model_dump_json()) == encoder
