"""Columns and cells that are called otherwise than in the training: maps, and BIDS's own names."""

import json
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from hyperfusion_rt.config import MappedColumn, preset
from hyperfusion_rt.data.bids_columns import bids_readings, suggestions
from hyperfusion_rt.data.cohort import join
from hyperfusion_rt.data.column_map import (
    ModelColumn,
    as_text,
    asked_readings,
    columns_of_members,
    columns_of_spec,
    own_readings,
    parse_map,
    read_through,
)
from hyperfusion_rt.data.encoder_columns import CategoricalColumn, NumericColumn
from hyperfusion_rt.data.number_check import mixed_points
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.table_file import Table, read_category, read_number, read_table
from hyperfusion_rt.errors import ConfigError, TableError

AGE = ModelColumn("AGE", "numeric", (), 55, 90)
SEX = ModelColumn("PTGENDER", "categorical", ("Male", "Female"))
MODEL = {"AGE": AGE, "PTGENDER": SEX}


def written(folder: Path, text: str, name: str = "participants.tsv") -> Table:
    path = folder / name
    path.write_text(text.replace(",", "\t") if name.endswith(".tsv") else text)
    return read_table(path)


def asked(table: Table, *texts: str, model=MODEL) -> Table:
    return read_through(table, asked_readings(table, model, parse_map(texts)))


def in_bids(table: Table, model=MODEL) -> Table:
    return read_through(table, bids_readings(table, model, {})[0])


def cells(table: Table, name: str) -> list[str]:
    return [row.values[name] for row in table.rows]


# ---- maps as text


def test_a_map_as_text():
    found = parse_map([" PTGENDER = sex : M = Male , F=Female,O= ", "AGE=age"])
    assert found == {
        "PTGENDER": MappedColumn(column="sex", values={"M": "Male", "F": "Female", "O": ""}),
        "AGE": MappedColumn(column="age"),
    }
    texts = [as_text(name, mapped) for name, mapped in found.items()]
    assert texts == ["PTGENDER=sex:M=Male,F=Female,O=", "AGE=age"]
    assert parse_map(texts) == found


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["AGE"], "is no map; write it as"),
        (["=age"], "is no map"),
        (["AGE="], "is no map"),
        (["AGE=:M=Male"], "is no map"),
        (["AGE=age:"], "is no map"),
        (["SEX=sex:M"], "is no map"),
        (["SEX=sex:M=Male,"], "is no map"),
        (["SEX=sex:=Male"], "is no map"),
        (["SEX=sex:M=Male=Man"], "is no map"),
        (["SEX=sex=gender"], "is no map"),
        (["AGE=age", "AGE=years"], "`map` AGE=years: there is another map of 'AGE'"),
        (["SEX=sex:M=Male,m=Female"], "'m' is both 'Male' and 'Female'"),
        (["SEX=sex:M=Male,M=Female"], "'M' is both 'Male' and 'Female'"),
    ],
)
def test_a_text_that_is_no_map(texts, message):
    with pytest.raises(ConfigError) as error:
        parse_map(texts)
    assert (error.value.code, error.value.parameter) == ("option-wrong", "map")
    assert message in str(error.value)


def test_two_spellings_of_a_cell_may_mean_the_same():
    assert parse_map(["SEX=sex:M=Male,m=male"])["SEX"].values == {"M": "Male", "m": "male"}


# ---- a map and a table


def test_cells_are_read_as_the_map_says(tmp_path):
    table = written(tmp_path, "subject,sex,age\na,M,60\nb, f ,61\nc,O,\nd,n/a,63\ne,Male,64\n")
    found = asked(table, "PTGENDER=SEX:m=Male,F=Female,O=", "AGE=age")
    assert cells(found, "PTGENDER") == ["Male", "Female", "", "n/a", "Male"]
    assert cells(found, "AGE") == ["60", "61", "", "63", "64"]
    assert found.columns == ("subject", "sex", "age", "PTGENDER", "AGE")
    assert found.notes == (
        "participants.tsv: 'PTGENDER' is read from column 'sex', as asked for: "
        "'M' as 'Male' in 1 row, 'f' as 'Female' in 1 row, 'O' as missing in 1 row",
        "participants.tsv: 'AGE' is read from column 'age', as asked for",
    )
    assert "PTGENDER" not in table.columns
    assert all("AGE" not in row.values for row in table.rows)
    assert pickle.loads(pickle.dumps(found)) == found


def test_a_cell_that_the_map_does_not_name_is_judged_as_ever(tmp_path):
    table = written(tmp_path, "subject,sex,age\na,X,old\n")
    row = asked(table, "PTGENDER=sex:M=Male", "AGE=age").rows[0]
    with pytest.raises(TableError) as error:
        read_category(row, "PTGENDER", SEX.categories)
    assert error.value.code == "table-unknown-category"
    assert "line 2, column 'sex' (read as 'PTGENDER'): 'X' is not a known" in str(error.value)
    with pytest.raises(TableError, match=r"line 2, column 'age' \(read as 'AGE'\): 'old' is no"):
        read_number(row, "AGE")


def test_a_map_that_was_given_goes_before_the_tables_own_column(tmp_path):
    table = written(tmp_path, "subject,AGE,age\na,60,70\n")
    found = asked(table, "AGE=age")
    assert cells(found, "AGE") == ["70"]
    assert "and not from the table's own column 'AGE'" in found.notes[-1]
    cohort = join([Scan(tmp_path / "a.nii", "a")], found, ["AGE"])
    assert cohort.cases[0].warnings == ()
    own = own_readings(table, MODEL, parse_map(["AGE=age"]), "as the artifact says")
    assert own == {}


def test_another_column_that_looks_like_the_mapped_one_is_a_warning(tmp_path):
    table = written(tmp_path, "subject,sex,SEX\na,M,M\nb,M,F\n")
    found = asked(table, "PTGENDER=sex:M=Male")
    cohort = join([Scan(tmp_path / f"{s}.nii", s) for s in "ab"], found, ["PTGENDER"])
    assert [case.warnings for case in cohort.cases] == [
        (),
        ("column 'sex' is read ('M'); column 'SEX' says 'F'",),
    ]


def test_cells_of_the_models_own_column_can_be_mapped(tmp_path):
    table = written(tmp_path, "subject,PTGENDER\na,M\n")
    found = asked(table, "PTGENDER=PTGENDER:M=Male")
    assert cells(found, "PTGENDER") == ["Male"]
    assert found.notes == (
        "participants.tsv: column 'PTGENDER' is read as asked for: 'M' as 'Male' in 1 row",
    )


@pytest.mark.parametrize(
    ("text", "kind", "code", "message"),
    [
        ("SEX=sex", ConfigError, "option-wrong", "no column 'SEX' (it has AGE, PTGENDER)"),
        ("PTGENDR=sex", ConfigError, "option-wrong", "did you mean 'PTGENDER'?"),
        ("AGE=ages", TableError, "table-missing-column", "column 'ages'; did you mean 'age'?"),
        ("AGE=AgE2", TableError, "table-missing-column", "(the columns are subject, sex, age)"),
        ("PTGENDER=sex:M=Mal", TableError, "table-unknown-category", "'Mal' is not a known value"),
        ("PTGENDER=sex:M=Mal", TableError, "table-unknown-category", "allowed: Male, Female, or"),
        ("AGE=age:89+=old", TableError, "table-not-a-number", "'old' is not a known value"),
    ],
)
def test_a_map_that_fits_neither_model_nor_table(tmp_path, text, kind, code, message):
    table = written(tmp_path, "subject,sex,age\na,M,60\n")
    with pytest.raises(kind) as error:
        asked(table, text)
    assert (error.value.code, error.value.parameter) == (code, "map")
    assert message in str(error.value)


def test_the_artifacts_map_is_for_tables_without_the_column(tmp_path):
    maps = parse_map(["AGE=age", "PTGENDER=sex:M=Male"])
    table = written(tmp_path, "subject,sex,AGE,age\na,M,60,70\n")
    found = read_through(table, own_readings(table, MODEL, maps, "as the artifact says"))
    assert (cells(found, "AGE"), cells(found, "PTGENDER")) == (["60"], ["Male"])
    # A table that has neither is missing it, as without a map.
    assert own_readings(written(tmp_path, "subject\na\n"), MODEL, maps, "") == {}
    with pytest.raises(TableError, match="'Man' is not a known value of 'PTGENDER'"):
        own_readings(table, MODEL, parse_map(["PTGENDER=sex:M=Man"]), "")


def test_what_members_know_alike():
    def member(low: float, *categories: str):
        return (
            NumericColumn(kind="numeric", name="AGE", low=low, high=80),
            CategoricalColumn(kind="categorical", name="S", categories=categories, mode="M"),
        )

    spec = preset("ad-small").tabular
    found = columns_of_members([member(60, "F", "M", "O"), member(50, "M", "F")], spec)
    assert found["AGE"] == ModelColumn("AGE", "numeric", (), 50, 80)
    assert found["S"].categories == ("F", "M")
    assert (found["DX"].is_target, "EMCI" in found["DX"].categories) == (True, True)


def test_decimal_points_are_looked_for_in_the_column_that_is_read(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("subject;age;FDG\na;60.5;1,2\nb;61.5;1,3\n")
    table = asked(read_table(path), "AGE=age")
    found = mixed_points(table, ["AGE", "FDG"])
    assert "'AGE' has a point in 2 rows ('60.5')" in found["AGE"].text


# ---- the configuration


def test_a_map_of_the_configuration():
    change = {"map": {"PTGENDER": {"column": "sex", "values": {"M": "male", "O": ""}}}}
    spec = preset("ad-small", {"tabular": change}).tabular
    assert spec.map["PTGENDER"].column == "sex"
    assert columns_of_spec(spec)["PTGENDER"].categories == ("Female", "Male")


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({"SEX": {"column": "sex"}}, "'SEX' is no feature and not the target; choose from AGE"),
        ({"PTGENDER": {"column": ""}}, "at least 1 character"),
        ({"FDG": {"column": "DX"}}, "'FDG' is read from 'DX', which is a column of its own"),
        ({"PTGENDER": {"column": "s", "values": {"M": "Mal"}}}, "choose from Female, Male, or ''"),
        ({"PTGENDER": {"column": "s", "values": {"M": "Male", "m ": "Female"}}}, "is both"),
        ({"PTGENDER": {"column": "s", "values": {" ": "Male"}}}, "an empty cell is not known"),
        ({"DX": {"column": "group", "values": {"1": "Patient"}}}, "'Patient' is not a value"),
    ],
)
def test_a_wrong_map_of_the_configuration(maps, message):
    with pytest.raises(ConfigError) as error:
        preset("ad-small", {"tabular": {"map": maps}})
    assert error.value.code == "config-invalid"
    assert message in str(error.value)


def test_a_mapped_column_cannot_be_changed():
    with pytest.raises(ValidationError):
        MappedColumn(column="sex").column = "gender"


# ---- BIDS


@pytest.mark.parametrize("age", ["AGE", "age_", "Age"])
@pytest.mark.parametrize(
    ("sex", "categories"),
    [
        ("PTGENDER", ("Male", "Female")),
        ("gender", ("woman", "man")),
        ("SEX", ("f", "M")),
    ],
)
def test_age_and_sex_are_found_in_bids(tmp_path, age, sex, categories):
    model = {
        age: ModelColumn(age, "numeric", (), 55, 90),
        sex: ModelColumn(sex, "categorical", categories),
    }
    table = written(
        tmp_path,
        "participant_id,age,sex\n1,60,M\n2,61.5,f\n3,n/a,n/a\n4,64,male\n5,65,FEMALE\n6,66,m\n",
    )
    found = in_bids(table, model)
    of = {name: [c for c in categories if c.casefold()[0] in name] for name in ("mM", "fFwW")}
    male, female = of["mM"][0], of["fFwW"][0]
    assert [read_category(row, sex, categories) for row in found.rows] == [
        male, female, None, male, female, male,
    ]  # fmt: skip
    assert [read_number(row, age) for row in found.rows] == [60, 61.5, None, 64, 65, 66]
    assert all(row.warnings == () for row in found.rows)
    assert f"'{age}' is read from column 'age', as BIDS writes it" in found.notes[0]


def test_other_is_missing_unless_the_model_knows_it(tmp_path):
    table = written(tmp_path, "participant_id,sex\n1,M\n2,O\n3,other\n")
    found = in_bids(table, {"PTGENDER": SEX})
    assert cells(found, "PTGENDER") == ["Male", "", ""]
    assert [row.warnings for row in found.rows] == [
        (),
        ("column 'sex' says 'O', which is read as missing: the model does not know it",),
        ("column 'sex' says 'other', which is read as missing: the model does not know it",),
    ]
    assert "'O' as missing in 1 row" in found.notes[0]
    three = ModelColumn("PTGENDER", "categorical", ("Male", "Female", "Other"))
    found = in_bids(table, {"PTGENDER": three})
    assert cells(found, "PTGENDER") == ["Male", "Other", "other"]
    assert all(row.warnings == () for row in found.rows)


def test_a_capped_age_is_its_bound_with_a_warning(tmp_path):
    table = written(tmp_path, "participant_id,age\n1,70\n2,89+\n3,90 +\n4,+89\n5,>89\n")
    found = in_bids(table, {"AGE": AGE})
    assert cells(found, "AGE") == ["70", "89", "90", "+89", ">89"]
    assert [bool(row.warnings) for row in found.rows] == [False, True, True, False, False]
    assert found.rows[1].warnings == ("column 'age' says '89+', which is read as 89",)


def test_the_models_own_names_are_bids_names_too(tmp_path):
    model = {
        "age": ModelColumn("age", "numeric", (), 55, 90),
        "sex": ModelColumn("sex", "categorical", ("female", "male")),
    }
    found = in_bids(written(tmp_path, "participant_id,age,sex\n1,89+,F\n2,70,male\n"), model)
    assert (cells(found, "age"), cells(found, "sex")) == (["89", "70"], ["female", "male"])
    assert found.notes == (
        "participants.tsv: column 'age' is read as BIDS writes it: '89+' as '89' in 1 row",
        "participants.tsv: column 'sex' is read as BIDS writes it: 'F' as 'female' in 1 row",
    )
    # A listed category is what it says.
    model = {"sex": ModelColumn("sex", "categorical", ("M", "F", "O"))}
    found = in_bids(written(tmp_path, "participant_id,sex\n1,F\n2,O\n"), model)
    assert (cells(found, "sex"), found.notes) == (["F", "O"], ())


def test_a_table_with_the_models_own_column_is_left_alone(tmp_path):
    table = written(tmp_path, "participant_id,age,AGE,sex,PTGENDER\n1,60,61,M,F\n")
    assert in_bids(table) == table


@pytest.mark.parametrize(
    ("model", "text", "doubt", "suggested"),
    [
        (
            SEX,
            "sex\n1\n2\n1",
            "'1' in column 'sex' is no sex as BIDS writes it",
            "`map` 'PTGENDER=sex:1=?,2=?', with the model's value for each ?",
        ),
        (
            ModelColumn("PTGENDER", "categorical", ("1", "2")),
            "sex\nM\nF\nO",
            "which of 1, 2 is male and which female is not clear",
            "`map` 'PTGENDER=sex:M=?,F=?,O=?'",
        ),
        (
            ModelColumn("PTGENDER", "categorical", ("Male", "Man", "Female")),
            "sex\nM",
            "which of Male, Man, Female is male",
            "`map` 'PTGENDER=sex:M=?'",
        ),
        (
            ModelColumn("PTGENDER", "numeric", (), 0, 1),
            "sex\nM",
            "'PTGENDER' is a number to the model",
            "`map` 'PTGENDER=sex:M=?'",
        ),
        (
            ModelColumn("AGE", "numeric", (), 600, 1100),
            "age\n60",
            "'AGE' was 600 to 1100 in the training, which are no ages",
            "`map` AGE=age",
        ),
        (
            ModelColumn("AGE", "numeric", (), -2.1, 1.9),
            "age\n60\n89+",
            "'AGE' was -2.1 to 1.9 in the training",
            "`map` AGE=age:89+=89",
        ),
        (
            ModelColumn("AGE", "categorical", ("old", "young")),
            "age\n60",
            "'AGE' has categories to the model",
            "`map` 'AGE=age:60=?'",
        ),
        (AGE, "age\n6\n9\nn/a\nx", "is it another unit?", "`map` AGE=age"),
        (AGE, "age,Age\n60,61", "the table has 'age' and 'Age'", "`map` AGE=age or `map` AGE=Age"),
    ],
)
def test_what_is_not_sure_is_not_guessed(tmp_path, model, text, doubt, suggested):
    head, *rest = text.split("\n")
    lines = [f"participant_id,{head}", *(f"{n},{cell}" for n, cell in enumerate(rest))]
    table = written(tmp_path, "\n".join(lines) + "\n")
    columns = {model.name: model}
    found, doubts = bids_readings(table, columns, {})
    assert found == {}
    assert doubt in doubts[model.name]
    advice = suggestions(table, columns, doubts)[model.name]
    assert advice.startswith(suggested)
    assert f"(not done unasked: {doubts[model.name]})" in advice


def test_two_columns_of_the_model_that_are_called_so(tmp_path):
    model = {name: ModelColumn(name, "categorical", ("M", "F")) for name in ("SEX", "Gender")}
    found, doubts = bids_readings(written(tmp_path, "participant_id,sex\n1,M\n"), model, {})
    assert found == {}
    assert doubts["SEX"] == doubts["Gender"] == "the model has 'SEX' and 'Gender'"


@pytest.mark.parametrize(("unit", "read"), [("years", True), ("year", True), ("weeks", False)])
@pytest.mark.parametrize("sidecar", ["participants.json", "sessions.json"])
def test_the_sidecars_unit_counts(tmp_path, unit, read, sidecar):
    (tmp_path / sidecar).write_text(json.dumps({"age": {"Units": unit}}))
    table = written(tmp_path, "participant_id,age\n1,60\n")
    found, doubts = bids_readings(table, {"AGE": AGE}, {})
    assert ("AGE" in found, "AGE" in doubts) == (read, not read)
    (tmp_path / sidecar).write_text("no JSON")
    assert "AGE" in bids_readings(table, {"AGE": AGE}, {})[0]


@pytest.mark.parametrize(
    ("levels", "read"),
    [
        ({"M": "male", "F": {"Description": "Female participants"}}, True),
        ({"M": "Female", "F": "Male"}, False),
        ({"M": "mujer", "H": "hombre"}, False),
    ],
)
def test_the_sidecars_levels_count(tmp_path, levels, read):
    """In Spanish, M is a woman."""
    (tmp_path / "participants.json").write_text(json.dumps({"Sex": {"Levels": levels}}))
    table = written(tmp_path, "participant_id,sex\n1,M\n2,F\n")
    found, doubts = bids_readings(table, {"PTGENDER": SEX}, {})
    assert ("PTGENDER" in found, "PTGENDER" in doubts) == (read, not read)
    if not read:
        assert f"says that 'M' in column 'sex' means '{levels['M']}'" in doubts["PTGENDER"]


def test_one_cell_that_is_no_sex_is_a_doubt(tmp_path):
    table = written(tmp_path, "participant_id,sex\n1,M\n2,H\n3,n/a\n")
    found, doubts = bids_readings(table, {"PTGENDER": SEX}, {})
    assert found == {}
    assert doubts["PTGENDER"] == "'H' in column 'sex' is no sex as BIDS writes it"


def test_two_columns_that_may_be_the_sex(tmp_path):
    table = written(tmp_path, "participant_id,sex,gender\n1,M,F\n")
    found, doubts = bids_readings(table, {"PTGENDER": SEX}, {})
    assert (found, doubts) == ({}, {"PTGENDER": "the table has 'sex' and 'gender'"})


@pytest.mark.parametrize("units", ["months", ["months"], "Months old"])
def test_the_sidecar_of_a_subjects_sessions_counts(tmp_path, units):
    (tmp_path / "sub-1").mkdir()
    sidecar = tmp_path / "sub-1" / "sub-1_sessions.json"
    sidecar.write_text(json.dumps({"Age": {"Units": units}}))
    table = written(tmp_path, "participant_id,age\n1,60\n")
    assert "AGE" in bids_readings(table, {"AGE": AGE}, {})[1]
    sidecar.write_text(json.dumps({"Age": {"Units": "Years old"}}))
    assert "AGE" in bids_readings(table, {"AGE": AGE}, {})[0]


def test_a_target_is_not_read_from_bids_unasked(tmp_path):
    table = written(tmp_path, "participant_id,age\n1,60\n")
    target = ModelColumn("AGE", "numeric", is_target=True)
    assert bids_readings(table, {"AGE": target}, {}) == ({}, {})
    assert suggestions(table, {"AGE": target}, {}) == {"AGE": "`map` AGE=age"}


def test_what_was_asked_for_is_not_read_in_another_way(tmp_path):
    table = written(tmp_path, "participant_id,sex,age\n1,M,60\n")
    taken = asked_readings(table, MODEL, parse_map(["PTGENDER=sex:M=Female"]))
    assert list(bids_readings(table, MODEL, taken)[0]) == ["AGE"]


@pytest.mark.parametrize(
    ("column", "head", "suggested"),
    [
        (SEX, "Gender", "`map` PTGENDER=Gender:M=Male,F=Female,O="),
        (ModelColumn("APOE4", "categorical", ("0", "1")), "apoe_4", "=apoe_4:M=?,F=?,O=?'"),
        (ModelColumn("FDG", "numeric"), "fdg", "`map` FDG=fdg"),
        (ModelColumn("FDG", "numeric"), "FDG2", ""),
        (SEX, "status", ""),
    ],
)
def test_which_map_is_suggested(tmp_path, column, head, suggested):
    table = written(tmp_path, f"subject,{head}\na,M\nb,F\nc,O\n")
    found = suggestions(table, {column.name: column}, {})
    assert (found == {}) if not suggested else (suggested in found[column.name])
