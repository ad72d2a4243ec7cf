"""What is odd about a study is said before training, and refused where it can only be a mistake."""

import json

import numpy as np
import pytest

from hyperfusion_rt.config import load_config
from hyperfusion_rt.errors import CODES, CohortError, ConfigError, TableError
from hyperfusion_rt.training.check import Check, Left, left_lines, lines
from hyperfusion_rt.training.dataset import check_study, gather

from .studies import AD, AGES, Study


def odd(check):
    """The findings but for that of a small test part: 40 cases make one of 8."""
    small = (
        "the test part is small (CN 3, MCI 2, AD 3): its figures are uncertain; cross-validation"
    )
    return [f for f in check.findings if small not in f.text]


def test_a_small_test_part_is_said(study):
    assert len(odd(study.check())) == len(study.check().findings) - 1


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


def texts(check):
    return " | ".join(finding.text for finding in check.findings)


def test_a_study_as_it_should_be_has_nothing_to_say(study):
    check = study.check()
    assert odd(check) == []
    assert lines(check, everything=False)[:3] == [
        "checked: 40 cases; train 24, validation 8, test 8",
        "data.csv: subjects: column 'subject'",
        "40 of 40 scans have a row",
    ]
    shown = "\n".join(lines(check, everything=True))
    assert "SEX    feature, categorical: 40 known, 0% missing; F 20, M 20" in shown
    assert "DX     target, classes: 40 known, 0% missing; AD 13, CN 14, MCI 13" in shown
    assert "test: 8 cases; CN " in shown


def test_a_filter_chooses_the_scans_of_a_study(study):
    for row in study.rows:
        scan = study.root / "scans" / f"{row['subject']}.nii.gz"
        for name in "ab":
            (scan.parent / f"sub-{row['subject']}_acq-{name}_T1w.nii.gz").touch()
        scan.unlink()
    assert {left.code for left in study.check().left_out} == {"scan-ambiguous"}
    (study.root / "f.json").write_text('{"t1w": {"acquisition": "b"}}')
    check = study.check(AD + "bids_filter: f.json\n")
    assert check.cases == 40
    assert {left.code for left in check.left_out} == {"scan-passed-over"}
    assert "acq-a_T1w.nii.gz: not chosen by f.json" in check.left_out[0].reason


# ---- numbers


@pytest.mark.parametrize(("separator", "mark"), [(",", "."), (";", "."), (";", ","), ("\t", ".")])
def test_thousands_that_would_be_read_as_decimals_are_refused(study, separator, mark):
    study.set("ABETA", lambda row: row["ABETA"][:-3] + mark + row["ABETA"][-3:]
              if len(row["ABETA"]) > 3 else row["ABETA"])  # fmt: skip
    check = study.check(separator=separator)
    (finding,) = check.refused
    assert finding.code == "table-number-unclear"
    assert "'ABETA'" in finding.text


def test_thousands_among_decimal_commas_are_refused_even_where_all_are_large(study):
    study.set("AGE", lambda row: row["AGE"].replace(".", ","))
    study.set("ABETA", lambda row: f">1.{row['ABETA'][:3]}")
    (finding,) = study.check(separator=";").refused
    assert "'ABETA' has a point in 40 rows" in finding.text
    assert "'AGE' decimal commas" in finding.text


def test_thousands_with_a_comma_in_quotes_are_named(study):
    study.set("ABETA", ["1,017"])
    check = study.check()
    assert "'ABETA': 1 cell no usable number: '1,017' (line 2)" in texts(check)
    assert "write thousands without a separator" in texts(check)
    assert check.left_out[0].code == "table-not-a-number"


def test_points_and_commas_in_two_columns_are_said(study):
    study.set("AGE", lambda row: row["AGE"].replace(".", ","))
    study.set("EDU", lambda row: row["EDU"] + ".5")
    check = study.check(separator=";")
    assert check.refused == []
    assert "'EDU' has a point in 40 rows" in texts(check)


@pytest.mark.parametrize("values", [
    ["12.125", "141.032"],  # decimals beside whole numbers of the same size
    ["0.125", "0.500"],
])  # fmt: skip
def test_decimals_with_three_digits_are_no_thousands(study, values):
    study.set("EDU", values)
    assert study.check().refused == []


@pytest.mark.parametrize(
    ("column", "code", "count"),
    [("EDU", "-4", 3), ("EDU", "-1", 1), ("EDU", "-9", 2), ("EDU", "99", 2), ("EDU", "999", 2),
     ("ABETA", "9999", 2), ("EDU", "-999", 2), ("EDU", "888", 2), ("EDU", "777", 1),
     ("ABETA", "-4", 5), ("ABETA", "999", 6)],
)  # fmt: skip
def test_codes_for_missing_values_are_named_with_their_count(study, column, code, count):
    study.set(column, [code] * count)
    check = study.check()
    assert check.refused == []
    rows = "1 row" if count == 1 else f"{count} rows"
    assert f"{column!r} has {code} in {rows}: does it stand for 'not known'?" in texts(check)
    assert "leave the cell empty" in texts(check)


def test_scores_around_zero_are_no_codes(study):
    rng = np.random.default_rng(1)
    study.set("EDU", lambda row: f"{rng.normal():.2f}")
    study.set("EDU", ["-1", "-2", "-1"])
    assert odd(study.check()) == []


@pytest.mark.parametrize("age", ["-4", "999", "126"])
def test_an_age_that_cannot_be_leaves_its_case_out(study, age):
    study.set("AGE", [age] * 4)
    for text in (AGES, AD):
        check = study.check(text)
        assert [left.code for left in check.left_out] == ["table-impossible-value"] * 4
        assert f"line 2, column 'AGE': '{age}' is no age in years" in check.left_out[0].reason
        assert f"'AGE': {age} in 4 rows is no age in years" in texts(check)
        (line,) = left_lines(check.left_out)
        assert "left out: 4" in line
        assert "S00, S01, S02 and 1 more" in line


@pytest.mark.parametrize("name", ["age", "Age_at_scan", "AgeYears", "PTAGE"])
def test_ages_have_many_names(study, name):
    study.set(name, lambda row: row["AGE"])
    study.set(name, ["-4"])
    check = study.check(AD.replace("AGE, kind", f"{name}, kind"))
    assert check.left_out[0].code == "table-impossible-value"


@pytest.mark.parametrize(
    "made",
    [lambda age, i: age * 12, lambda age, i: (age - 70) / 8, lambda age, i: 2020 - age,
     lambda age, i: -4 if i % 5 else age],
    ids=["months", "standard scores", "birth years", "mostly codes"],
)  # fmt: skip
def test_ages_that_are_no_years_are_said_and_no_target(study, made):
    for i, row in enumerate(study.rows):
        row["AGE"] = f"{made(float(row['AGE']), i):.2f}"
    check = study.check()
    assert check.refused == []
    assert check.left_out == ()
    assert "'AGE' should be ages in years, but holds" in texts(check)
    (finding,) = study.check(AGES).refused
    assert finding.code == "table-impossible-value"


def test_a_name_that_only_contains_age_is_no_age(study):
    study.set("PAGEANT", lambda row: "-4" if row["subject"] < "S03" else row["EDU"])
    assert study.check(AD.replace("EDU", "PAGEANT")).left_out == ()


def test_a_target_without_a_difference_is_refused(study):
    study.set("AGE", lambda row: "70")
    (finding,) = study.check(AGES).refused
    assert finding.code == "cohort-target-constant"
    study.set("DX", lambda row: "CN")
    (finding,) = study.check().refused
    assert finding.text == "no case of class MCI, AD: nothing to learn it from"


@pytest.mark.parametrize("value", ["", "old"])
def test_a_target_that_nobody_has_leaves_no_case(study, value):
    study.set("AGE", lambda row: value)
    (finding,) = study.check(AGES).refused
    assert finding.code == "cohort-no-usable-case"
    with pytest.raises(
        CohortError, match=r"no case can be used for training; left out: 40 \(.*\): S00, S01, S02"
    ):
        gather(load_config(study.root / "hfrt.yaml"), study.root)


def test_a_lost_decimal_point_is_asked_about(study):
    study.set("AGE", ["71.5", "715"])
    study.set("EDU", ["14", "1400"])
    assert "'EDU': 1400 (line 3) is far from all others" in texts(study.check())


def test_text_in_a_number_is_named_with_its_lines(study):
    study.set("EDU", ["many", "12", "few"])
    check = study.check()
    assert "'EDU': 2 cells no usable number: 'many' (line 2), 'few' (line 4)" in texts(check)
    assert len(check.left_out) == 2


# ---- categories


@pytest.mark.parametrize("other", ["1.0", "01", "1,0"])
def test_one_number_in_two_spellings_is_refused(study, other):
    study.set("SEX", lambda row: "12"[row["SEX"] == "M"])
    study.set("SEX", [other])
    (finding,) = study.check().refused
    assert finding.code == "table-category-spelling"
    assert f"'{other}' (1 row)" in finding.text


def test_one_word_in_two_spellings_is_refused_and_case_is_said(study):
    study.set("SEX", ["very  good", "very good", "f"])
    check = study.check()
    (finding,) = check.refused
    assert "'very  good' (1 row)" in finding.text
    assert "case does not matter" in texts(check)


@pytest.mark.parametrize("value", ["-4", "9", "unknown", "?"])
def test_a_category_that_stands_for_unknown_is_named(study, value):
    study.set("SEX", [value, value])
    assert f"'SEX' has '{value}' in 2 rows: does it stand for 'not known'?" in texts(study.check())


def test_constant_empty_and_unseen_are_said(study):
    study.set("EDU", lambda row: "12")
    study.set("ABETA", lambda row: row["ABETA"] if row["subject"] < "S10" else "")
    listed = AD.replace("SEX, kind: categorical", "SEX, kind: categorical, categories: [F, M, X]")
    found = texts(study.check(listed))
    assert "'EDU' has one value in all rows" in found
    assert "'ABETA' is empty in 75% of the rows" in found
    assert "'SEX': no row has 'X', so nothing is learned of it" in found
    study.set("ABETA", lambda row: "")
    assert {f.code for f in study.check().refused} == {"table-feature-empty"}


def test_ids_are_no_features(study):
    study.set("NUMBER", lambda row: f"x{row['subject']}")
    feature = AD.replace("SEX, kind", "NUMBER, kind")
    assert "'NUMBER': 40 different categories in 40 rows; an id says" in texts(study.check(feature))
    (finding,) = study.check(AD.replace("SEX, kind", "subject, kind")).refused
    assert "column of subjects" in finding.text
    study.set("RID", lambda row: row["subject"][1:])
    rid = study.check(AD.replace("EDU, kind", "RID, kind"))
    assert "'RID' is the name of an id" in texts(rid)


# ---- the target


@pytest.mark.parametrize("name", ["DX", "dx", "D_X", "Dx "])
def test_the_target_among_the_features_is_refused(study, name):
    study.set(name.strip(), lambda row: row["DX"])
    feature = f"  - {{name: {name.strip()}, kind: categorical}}\n  stratify"
    check = study.check(AD.replace("  stratify", feature))
    assert {finding.code for finding in check.refused} == {"config-target-is-feature"}
    with pytest.raises(ConfigError, match="is the target 'DX'"):
        gather(load_config(study.root / "hfrt.yaml"), study.root)


def test_a_copy_of_the_target_is_refused(study):
    study.set("GROUP", lambda row: row["DX"].lower())
    check = study.check(AD.replace("SEX, kind", "GROUP, kind"))
    assert "'GROUP' holds the target 'DX' in every row" in check.refused[0].text
    study.set("YEARS", lambda row: row["AGE"])
    ages = AGES.replace("SEX, kind: categorical", "YEARS, kind: numeric")
    assert "'YEARS' holds the target 'AGE'" in study.check(ages).refused[0].text
    study.set("YEARS", lambda row: f"{2020 - float(row['AGE']):.0f}")
    check = study.check(ages)
    assert check.refused == []
    assert "'YEARS' and the target 'AGE' correlate by -0.99" in texts(check)


@pytest.mark.parametrize(
    ("kind", "values"),
    [("categorical", {"CN": "0", "MCI": "0.5", "AD": "1"}),
     ("numeric", {"CN": "0", "MCI": "0.5", "AD": "1"}),
     ("categorical", {"CN": "no", "MCI": "no", "AD": ""})],
)  # fmt: skip
def test_a_feature_that_tells_the_class_is_warned_of(study, kind, values):
    study.set("CDR", lambda row: values[row["DX"]])
    check = study.check(AD.replace("EDU, kind: numeric", f"CDR, kind: {kind}"))
    assert check.refused == []
    assert "feature 'CDR'" in texts(check)
    assert "the class of 'DX' in all 40 cases" in texts(check)


def test_a_threshold_that_tells_the_class_is_warned_of(study):
    study.set("MMSE", lambda row: str({"CN": 28, "MCI": 22, "AD": 11}[row["DX"]] + float(
        row["AGE"]) / 50))  # fmt: skip
    check = study.check(AD.replace("EDU, kind", "MMSE, kind"))
    assert "feature 'MMSE' tells the class of 'DX'" in texts(check)


# ---- columns and parts


def test_absent_columns_are_refused_together_with_what_may_be_meant(study):
    text = AD.replace("stratify: [SEX]", "stratify: [SEXX]").replace("EDU,", "EDUC,")
    check = study.check(text + "  target: DXX\n")
    assert check.columns == ()
    assert {finding.code for finding in check.refused} == {"table-missing-column"}
    message = str(check.error("here"))
    assert "tabular.stratify 'SEXX': the table has no such column; did you mean 'SEX'?" in message
    assert "feature 'EDUC': the table has no such column; did you mean 'EDU'?" in message
    assert "target 'DXX'" in message
    assert check.error("here").code == "table-missing-column"


def test_several_refusals_are_one_error(study):
    study.set("SEX", lambda row: "12"[row["SEX"] == "M"])
    study.set("SEX", ["1.0"])
    check = study.check(training={"class_weights": [1, 2]})
    error = check.error(study.root)
    assert error.code == "study-refused"
    assert "'1.0'" in str(error)
    assert "class_weights has 2 numbers for 3 classes" in str(error)
    with pytest.raises(CohortError, match="2 numbers for 3 classes"):
        gather(load_config(study.root / "hfrt.yaml", {"training": {"class_weights": [1, 2]}}),
               study.root)  # fmt: skip


def test_a_stratum_of_text_that_is_no_feature_is_alike_in_all_parts(study):
    study.set("SITE", lambda row: "north" if row["subject"] < "S20" else "south")
    study.write(AD.replace("[SEX]", "[SITE]"))
    check = study.check(AD.replace("[SEX]", "[SITE]"))
    assert "SITE" in [column.name for column in check.columns]
    assert odd(check) == []


def test_a_class_that_only_the_test_part_has_is_said(study):
    study.set("DX", lambda row: "AD" if row["subject"] == "S00" else "MCI")
    study.set("DX", ["AD", "CN", "CN", "CN", "CN", "CN", "CN"])
    found = [texts(study.check(training={"seed": seed})) for seed in range(8)]
    assert any("the training part has no case of class AD" in text for text in found)
    assert all("of AD" in text or "of class AD" in text or "AD (1)" in text for text in found)


def test_parts_of_one_case_and_classes_without_any(study):
    study.rows = study.rows[:4]
    found = texts(study.check(AGES))
    assert "the test part has 1 case: its figures say nothing" in found
    study.rows = study.rows[:3]
    check = study.check(AGES)
    assert [finding.code for finding in check.refused] == ["cohort-too-small"]
    classes = {"classes": {"CN": [], "MCI": [], "AD": [], "X": ["x"]}}
    check = study.check(AD, tabular=classes, training={"class_weights": []})
    assert check.refused[0].code == "cohort-class-missing"


def test_a_category_that_no_training_case_has_is_said(study):
    study.set("SEX", ["X"])
    found = [texts(study.check(training={"seed": seed})) for seed in range(12)]
    assert any("'SEX': 'X' is in no training case of member 0, so the network cannot" in text
               for text in found)  # fmt: skip


def test_a_feature_that_no_training_case_has_is_refused(study):
    study.set("EDU", lambda row: "")
    found = set()
    for seed in range(12):
        study.set("EDU", ["12"])
        found |= {f.text for f in study.check(training={"seed": seed}).refused}
    assert "'EDU': no training case of member 0 has a value; drop the feature" in found


def test_reasons_are_grouped():
    reason, code = "column 'AGE': '-4' is no age", "table-impossible-value"
    left = [Left(f"S{i}", None, f"t.csv: line {i}, {reason}", code) for i in range(5)]
    reason = "t.csv, line 9: the row needs a subject id"
    left.append(Left("", None, reason, "table-row-without-subject"))
    first, second = left_lines(left)
    assert first.startswith("left out: 5 (table-impossible-value, column 'AGE': ")
    assert "S0, S1, S2 and 2 more; the first: t.csv: line 0" in first
    assert "(no id)" in second
    assert lines(Check(0, (), (), (), tuple(left)), everything=False)[0].startswith(
        "checked: 0 cases, 6 left out"
    )


# ---- the command


def test_the_command_prints_and_refuses(study, hfrt):
    study.write()
    status, out, err = hfrt(study.root, "check")
    assert (status, err) == (0, "")
    assert "AGE    feature, numeric: 40 known" in out
    assert "40 cases can be used, 0 are left out; the scans were not decoded" in out
    status, out, _ = hfrt(study.root, "check", "--json")
    content = json.loads(out)
    assert (status, content["cases"], len(content["columns"])) == (0, 40, 5)

    change = ("--set", "tabular.target=SEX", "--set", "tabular.classes={F: [F], M: [M]}")
    status, out, err = hfrt(study.root, "check", "--json", *change)
    content = json.loads(out)
    assert status == 1
    assert content["error"]["code"] in CODES
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "'SEX'" in err
    status, out, err = hfrt(study.root, "train", *change)
    assert (status, out) == (1, "")
    assert "is the target 'SEX'" in err


def test_scans_are_looked_at_when_asked(study, hfrt):
    study.write()
    status, out, err = hfrt(study.root, "check", "--scans")
    assert status == 1
    assert "no case can be used for training" in err
    assert err.count(str(study.root)) == 2  # once of the study, once of the first scan
    assert "left out: 40 (scan-" in out


@pytest.mark.parametrize(
    ("pair", "message"),
    [("training.epochs=[", "cannot be read as YAML"), ("training.epochs=", "is empty (null)"),
     ("training.epoch=1", "did you mean 'epochs'?"), ("training={a: 1, a: 2}", "'a' stands twice")],
)  # fmt: skip
def test_a_wrong_set_is_one_line(study, hfrt, pair, message):
    study.write()
    status, _, err = hfrt(study.root, "check", "--set", pair)
    assert status == 1
    assert err.count("\n") == 1
    assert message in err


def test_two_sets_that_exclude_each_other(study, hfrt):
    study.write()
    status, _, err = hfrt(study.root, "check", "--set", "training=1", "--set", "training.epochs=1")
    assert status == 1
    assert "another --set gives 'training' as a whole" in err


def test_a_table_that_cannot_be_read_ends_the_check(study):
    study.write()
    (study.root / "data.csv").unlink()
    with pytest.raises(TableError, match="no such file"):
        check_study(load_config(study.root / "hfrt.yaml"), study.root)
