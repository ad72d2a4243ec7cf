"""What is predicted: which column, its classes or its unit, and what is wrong with it."""

import pytest

from hyperfusion_rt.config import load_config
from hyperfusion_rt.errors import CohortError, ConfigError, TableError
from hyperfusion_rt.study.options import DraftOptions
from hyperfusion_rt.training.dataset import check_study


def test_the_published_classes_take_their_values(study):
    study.set("DX", lambda i: ("cn", "EMCI", "LMCI", "Dementia")[i % 4])
    made = study.draft()
    assert made.target.classes == {"CN": ("cn",), "MCI": ("EMCI", "LMCI"), "AD": ("Dementia",)}
    assert made.target.counts == {"CN": 12, "MCI": 24, "AD": 12}
    assert "    MCI: [EMCI, LMCI]" in study.text
    assert made.preset == "ad-small"
    assert "network" not in made.change


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (("yes", "no"), {"no": ("no",), "yes": ("yes",)}),
        (("on", "off"), {"off": ("off",), "on": ("on",)}),
        (("1", "0"), {"DX_0": ("0",), "DX_1": ("1",)}),
        (("2", "1", "3"), {"DX_1": ("1",), "DX_2": ("2",), "DX_3": ("3",)}),
        (("0", "0.5", "1"), {"DX_0": ("0",), "DX_0.5": ("0.5",), "DX_1": ("1",)}),
        (("1", "1.0", "2"), {"DX_1": ("1", "1.0"), "DX_2": ("2",)}),
        (("patient", "Control"), {"Control": ("Control",), "patient": ("patient",)}),
        (("Male", "Female"), {"Female": ("Female",), "Male": ("Male",)}),
        (("a: b", "#c"), {"#c": ("#c",), "a: b": ("a: b",)}),
        (("a b", "a  b", "c"), {"a b": ("a b", "a  b"), "c": ("c",)}),
    ],
)
def test_classes_are_spelt_out_so_that_yaml_reads_texts(study, values, classes):
    study.set("DX", lambda i: values[i * 5 % 7 % len(values)])
    made = study.draft()  # its text is read back
    assert made.target.classes == classes
    assert list(made.config.tabular.classes) == list(classes)
    assert made.config.task == "classification"
    assert made.config.training.class_weights == ()
    assert study.text.count(" cases\n") >= len(classes)


def test_yes_and_no_are_quoted(study):
    study.set("DX", lambda i: ("yes", "no")[i % 2])
    study.draft()
    assert "    'no': ['no'] " in study.text
    assert "    'yes': ['yes'] " in study.text


def test_the_sidecar_names_codes(study):
    study.set("DX", lambda i: i * 5 % 7 % 2)
    about = {"DX": {"Levels": {"0": "control", "1": {"Description": "patient"}}}}
    made = study.draft(sidecar=about)
    assert made.target.classes == {"control": ("0",), "patient": ("1",)}


def test_a_broken_sidecar_is_said(study):
    study.write()
    (study.root / "x.json").write_text("{")
    with pytest.raises(ConfigError, match=r"x\.json: the table's sidecar cannot be read") as error:
        study.again()
    assert error.value.code == "config-unreadable"


@pytest.mark.parametrize(
    ("name", "values", "unit", "preset"),
    [
        ("AGE", lambda i: 60 + i % 23, "years", "brain-age-small"),
        ("HIPPOCAMPUS_ml", lambda i: 3 + i % 23 / 10, "ml", "ad-small"),
        ("Volume (mm3)", lambda i: 3000 + i % 23, "mm3", "ad-small"),
        ("brain.volume.cc", lambda i: 3000 + i % 23, "ml", "ad-small"),
        ("MMSE", lambda i: 10 + i % 20, "", "ad-small"),
        ("age_months", lambda i: 400 + i % 20, "months", "ad-small"),
        ("ml", lambda i: 400 + i % 20, "", "ad-small"),
    ],
)
def test_numbers_have_a_unit(study, name, values, unit, preset):
    study.drop("AGE", "DX")
    study.set(name, values)
    made = study.draft(target=name)
    assert (made.config.task, made.config.tabular.unit) == ("regression", unit)
    assert made.config.tabular.classes == {}
    assert made.config.preset == preset
    if not unit:
        assert "unit: ''                                # not known; write it here" in study.text


def test_the_unit_as_asked_for_or_of_the_sidecar(study):
    study.set("SCORE", lambda i: 10 + i % 20)
    about = {"SCORE": {"Units": "mL"}}
    assert study.draft(sidecar=about, target="SCORE").config.tabular.unit == "mL"
    assert study.draft(sidecar=about, target="SCORE", unit="points").target.unit == "points"
    # A unit is a number's: three codes with one are no classes.
    made = study.draft(target="EDU", unit="years")
    assert made.config.task == "regression"


@pytest.mark.parametrize(
    ("rename", "target", "task"),
    [
        ("diagnosis", "diagnosis", "classification"),
        ("Group", "Group", "classification"),
        ("label", "label", "classification"),
        ("baseline_dx", "baseline_dx", "classification"),
        ("KIND", "AGE", "regression"),
    ],
)
def test_the_target_is_guessed_where_one_column_looks_like_it(study, rename, target, task):
    study.rename("DX", rename)
    made = study.draft()
    assert (made.target.name, made.target.task) == (target, task)
    assert "called like a diagnosis" in made.target.why


def test_several_targets_are_not_guessed(study):
    study.set("Group", lambda i: "ab"[i * 5 % 7 % 2])
    with pytest.raises(ConfigError, match="'DX' and 'Group' may each be") as error:
        study.draft()
    assert error.value.code == "config-invalid"
    assert error.value.parameter == "target"
    assert study.again(target="group").target.name == "Group"  # whatever the case


def test_no_target_lists_the_columns(study):
    study.drop("AGE", "DX")
    with pytest.raises(ConfigError, match=r"name what .* `target` .* SEX, ABETA, EDU"):
        study.draft()


@pytest.mark.parametrize(
    ("options", "kind", "code", "message"),
    [
        ({"target": "DXX"}, TableError, "table-missing-column", "did you mean 'DX'"),
        ({"target": "PTID"}, TableError, "config-invalid", "is the column of subjects"),
        ({"target": "NOTE"}, ConfigError, "config-invalid", "48 different texts in 48 rows are"),
        ({"target": "SAME"}, CohortError, "cohort-target-constant", r"one value \(7\) in all 48"),
        ({"target": "NONE"}, CohortError, "cohort-no-usable-case", "no case has a value"),
        ({"target": "DX", "task": "regression"}, ConfigError, "config-invalid", "are no numbers"),
        ({"target": "DX", "unit": "ml"}, ConfigError, "config-invalid", "48 of 48 values are no"),
        (
            {"target": "AGE", "task": "classification"},
            ConfigError,
            "config-invalid",
            "different values in 48 rows are no classes",
        ),
        (
            {"target": "age_at_scan"},
            TableError,
            "table-impossible-value",
            "should be ages in years, but holds 20000 to",
        ),
        ({"target": "ONES"}, CohortError, "cohort-target-constant", "has one class only"),
        ({"preset_name": "adsmall"}, ConfigError, "config-unknown-preset", "choose from ad"),
    ],
)
def test_a_target_that_cannot_be_one(study, options, kind, code, message):
    study.set("NOTE", lambda i: f"note {i}")
    study.set("SAME", lambda i: 7)
    study.set("NONE", lambda i: "")
    study.set("age_at_scan", lambda i: 20000 + 13 * i)
    study.set("ONES", lambda i: ("1", "1.0")[i % 2])
    with pytest.raises(kind, match=message) as error:
        study.draft(**options)
    assert error.value.code == code


def test_a_unit_and_classes_exclude_each_other():
    with pytest.raises(ConfigError, match="leave one out") as error:
        DraftOptions(task="classification", unit="ml")
    assert error.value.code == "option-conflict"


def test_gaps_of_the_target_are_counted(study):
    study.set("DX", [""] * 14)
    made = study.draft()
    assert made.target.left == 14
    (warning,) = made.warnings
    assert warning.startswith("'DX' has no usable value in 14 of 48 cases (29%)")
    assert warning in study.text.replace("\n  # ", " ")


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_of_few_cases_is_said(study, count):
    study.set("DX", ["LBD"] * count)
    made = study.draft()
    assert made.target.counts["LBD"] == count
    said = "one case" if count == 1 else "2 cases"
    (warning,) = [text for text in made.warnings if "class 'LBD'" in text]
    assert f"has {said}, which is too few" in warning
    assert "merge it with another class (list its values there), or delete its line" in warning
    assert list(made.target.classes) == ["CN", "MCI", "AD", "LBD"]
    assert made.parts == 5  # as without it


def test_codes_for_missing_are_no_class(study):
    study.set("DX", lambda i: -9 if i < 3 else 1 + i % 2)
    made = study.draft()
    assert made.target.classes == {"DX_1": ("1",), "DX_2": ("2",)}
    assert any("'-9' in 3 rows" in text and "left out" in text for text in made.warnings)
    study.set("DX", lambda i: "unknown" if i < 3 else "ab"[i % 2])
    made = study.draft()
    assert list(made.target.classes) == ["a", "b"]
    assert made.target.left == 3


def test_a_target_of_one_value_and_unknown_is_constant(study):
    study.set("DX", lambda i: "unknown" if i < 9 else "AD")
    with pytest.raises(CohortError, match="has one class only") as error:
        study.draft()
    assert error.value.code == "cohort-target-constant"


@pytest.mark.parametrize("case", ["classes", "codes", "age", "volume", "semicolon", "gaps"])
def test_a_check_passes_without_an_edit(study, case):
    if case == "codes":
        study.set("DX", lambda i: i % 2)
    if case == "age":
        study.drop("DX")
    if case == "volume":
        study.set("HIPPOCAMPUS_ml", lambda i: 3 + i * 7 % 48 / 20)
    if case == "gaps":
        study.set("EDU", [""] * 10)
        study.set("DX_bl", lambda i: ("CN", "MCI", "AD")[i % 3])
    study.draft(
        separator=";" if case == "semicolon" else ",",
        target="HIPPOCAMPUS_ml" if case == "volume" else None,
    )
    check = check_study(load_config(study.root / "hfrt.yaml"), study.root)
    assert check.refused == []
    assert (check.cases, check.left_out) == (48, ())
