"""What each column is taken for, and why one is left out."""

import numpy as np
import pytest

FEATURES = {"AGE": "numeric", "SEX": "categorical", "ABETA": "censored", "EDU": "numeric"}


def features(made):
    """Feature → kind."""
    return {one.feature.name: one.feature.kind for one in made.used}


def reasons(made):
    """Column that is left out → why."""
    return {one.name: one.reason for one in made.unused}


def test_a_plain_study(study):
    made = study.draft()
    assert features(made) == FEATURES
    assert made.unused == ()
    assert made.warnings == ()
    assert made.used[1].feature.categories == ("F", "M")
    assert "{name: SEX, kind: categorical, categories: [F, M]}  # all known; F 24, M 24" in (
        study.text
    )


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("VISIT_DATE", lambda i: f"2019-03-{1 + i % 28:02d}", "dates or times"),
        ("SCANDATE", lambda i: f"{1 + i % 28}.3.2019", "dates or times"),
        ("EXAMDAY", lambda i: f"201903{1 + i % 28:02d}", "dates or times"),
        ("NOTES", lambda i: f"seen by nurse {i}, all well", "free text, or an id"),
        ("RID", lambda i: 4000 + 7 * i, "an id"),
        ("SCAN_ID", lambda i: 9000 + 7 * i, "an id"),
        ("Unnamed: 0", lambda i: i, "numbers the rows"),
        ("STUDY", lambda i: "ADNI", "one value (ADNI) in all rows"),
        ("FIELD", lambda i: "3", "one value (3) in all rows"),
        ("NFL", lambda i: 20 + i if i < 4 else "", "nearly all missing: known in 4 of 48 rows"),
        ("HACHINSKI", lambda i: "", "empty in all rows"),
        ("EMPTY", lambda i: "NA", "empty in all rows"),
        ("DX_bl", lambda i: "CEA"[i * 7 % 3], "is called like a diagnosis, as the target 'DX' is"),
        ("DXCHANGE", lambda i: 1 + i * 5 % 3, "is called like a diagnosis"),
        ("dx", lambda i: 1 + i % 2, "is spelt as the target 'DX' is"),
        ("CODE", lambda i: "abc"[i % 3], "tells the class of 'DX' in all 48 cases"),
        ("AGE_COPY", None, "the same as 'AGE'"),
        ("age", lambda i: 60 + i % 7, "the same as 'AGE'"),
        ("TAU", lambda i: f"{200 + i}" if i % 5 else ".", "numbers, but 10 of 48 cells are none"),
        ("GENE", lambda i: ("1", "1.0", "2")[i * 5 % 7 % 3], ""),
        ("SITE", lambda i: ("a b", "a  b", "c")[i * 5 % 7 % 3], "one value in 2 spellings"),
        ("Split", lambda i: ("train", "test")[i % 5 == 0], "training.split_column"),
        ("CV_fold", lambda i: i * 7 % 5, "training.split_column"),
        ("VISCODE", lambda i: "bl", "names the visit"),
    ],
)
def test_columns_that_are_left_out_say_why(study, name, values, reason):
    values = values or (lambda i: study.rows[i]["AGE"])
    study.set(name, values)
    made = study.draft(target="DX")
    if not reason:
        assert features(made) == {**FEATURES, name: "numeric"}
        return
    assert features(made) == FEATURES
    assert reason in reasons(made)[name]
    assert f"# {name}: " in study.text
    assert name not in made.stratify


def test_a_left_out_column_is_written_so_that_it_can_be_taken_in(study):
    study.set("DX_bl", lambda i: "CEA"[i * 7 % 3])
    study.draft()
    line = "- {name: DX_bl, kind: categorical, categories: [A, C, E]}"
    assert f"  # {line}\n" in study.text


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("APOE4", lambda i: i % 3 * (i % 5 > 1), "numeric"),
        ("SITE", lambda i: 10 + i * 5 % 7 % 3, "categorical"),
        ("Gender", lambda i: 1 + i * 5 % 7 % 2, "categorical"),
        ("SITE", lambda i: 100 + i * 31 % 47, "numeric"),
        ("MMSE", lambda i: 20 + i * 3 % 11, "numeric"),
        ("PTAU", lambda i: "<8" if i == 3 else 10 + i * 3 % 11, "censored"),
        ("SMOKER", lambda i: ("yes", "no")[i * 5 % 7 % 2], "categorical"),
        ("RACE", lambda i: ("White", "Black", "Asian", "unknown")[i * 5 % 7 % 4], "categorical"),
        ("HIGH", lambda i: f"{1 + i / 100}" if i else "?", "numeric"),
        ("Volume, left (ml): #1", lambda i: 3 + i * 3 % 11 / 10, "numeric"),
        ("no", lambda i: 3 + i * 3 % 11, "numeric"),
        ("größe\t1", lambda i: 160 + i * 3 % 11, "numeric"),
    ],
)
def test_kinds(study, name, values, kind):
    study.set(name, values)
    made = study.draft()
    assert features(made) == {**FEATURES, name: kind}


def test_categories_that_yaml_would_misread_are_quoted(study):
    study.set("SMOKER", lambda i: ("yes", "no", "1e3", "08", "~", "y")[i * 5 % 7 % 6])
    made = study.draft()
    assert "categories: ['08', '1e3', 'no', 'y', 'yes', '~']" in study.text
    assert made.used[-1].feature.categories == ("08", "1e3", "no", "y", "yes", "~")


def test_codes_for_missing_are_counted_and_said(study):
    study.set("MMSE", lambda i: -4 if i % 8 == 0 else 999 if i == 5 else 20 + i * 3 % 11)
    study.set("EDU", ["NA", "", "n/a", "NA"])
    made = study.draft()
    assert made.codes == {"MMSE": "-4 in 6 rows, 999 in 1 row"}
    assert made.missing == {"NA": 2, "an empty cell": 1, "n/a": 1}
    assert any("'MMSE' has -4 in 6 rows, 999 in 1 row" in text for text in made.warnings)
    assert "Perhaps 'not known', but read as a number: MMSE -4 in 6 rows, 999 in 1 row." in (
        study.text
    )
    assert "Read as 'not known': 'NA' (2), an empty cell (1), 'n/a' (1)." in study.text


def test_numbers_with_points_in_a_table_of_commas_are_left_out(study):
    study.set("A", lambda i: f"{1 + i / 10:.1f}".replace(".", ","))
    study.set("B", lambda i: f"{1 + i}.{100 + i}")
    made = study.draft(separator=";")
    assert "the point may separate thousands" in reasons(made)["B"]
    assert features(made)["A"] == "numeric"


def test_without_a_feature_the_network_reads_the_image_alone(study):
    study.drop("AGE", "SEX", "ABETA", "EDU")
    made = study.draft()
    assert made.config.network.fusion == "image"
    assert made.config.tabular.features == made.config.tabular.stratify == ()
    assert any("reads the image alone" in text for text in made.warnings)


def test_very_many_features_are_said(study):
    rng = np.random.default_rng(1)
    for n in range(30):
        study.set(f"V{n}", lambda _: f"{rng.random():.3f}")
    made = study.draft()
    assert len(made.used) == 34
    assert any(text.startswith("34 columns are features") for text in made.warnings)
