"""Columns whose names leave a choice: the scans decide, and what is decided is said."""

from pathlib import Path

import pytest

from hyperfusion_rt.data.bids_dataset import session_rows
from hyperfusion_rt.data.cohort import Cohort, join
from hyperfusion_rt.data.scan_search import find_scans
from hyperfusion_rt.data.table_columns import read_table_for
from hyperfusion_rt.data.table_file import read_number
from hyperfusion_rt.errors import TableError


def joined(root: Path, names: list[str], text: str, *read: str) -> Cohort:
    for name in names:
        (root / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "scans" / name).touch()
    (root / "t.csv").write_text(text)
    scans = find_scans(root / "scans")
    return join(scans, read_table_for(scans, root / "t.csv"), read)


def found(cohort: Cohort) -> dict[str, tuple[str | None, int]]:
    return {case.scan.name: (case.session, case.row.line) for case in cohort.cases}


# ---- sessions


def long(*sessions: str) -> list[str]:
    return [f"sub-{n}/{s}/anat/sub-{n}_{s}_T1w.nii" for n in ("01", "02") for s in sessions]


@pytest.mark.parametrize("name", ["SES", "ses", "Ses"])
@pytest.mark.parametrize("first", ["1", "2", "5", "2.0", "n/a"])
@pytest.mark.parametrize("sessions", [(), ("ses-1", "ses-2"), ("ses-01",)])
def test_a_status_is_no_session(
    tmp_path: Path, name: str, first: str, sessions: tuple[str, ...]
) -> None:
    names = long(*sessions) if sessions else ["sub-01_T1w.nii", "sub-02_T1w.nii"]
    text = f"participant_id,AGE,{name}\nsub-01,70,{first}\nsub-02,71,1\n"
    cohort = joined(tmp_path, names, text)
    assert cohort.problems == []
    assert len(cohort.cases) == len(names)
    expected = {s.removeprefix("ses-") for s in sessions} or {None}
    assert {case.session for case in cohort.cases} == expected
    assert any(f"not taken for sessions: '{name}'" in note for note in cohort.notes)
    assert f"{len(names)} of {len(names)} scans have a row" in cohort.notes


@pytest.mark.parametrize("column", ["VISCODE", "visit", "session", "timepoint"])
def test_a_status_beside_the_visits(tmp_path: Path, column: str) -> None:
    # the status would tell the rows apart and fit the scans, with the visits swapped
    rows = "01,2,1\n01,1,2\n02,2,1\n02,1,2\n"
    cohort = joined(tmp_path, long("ses-1", "ses-2"), f"subject,SES,{column}\n{rows}")
    assert found(cohort) == {
        "sub-01_ses-1_T1w.nii": ("1", 2),
        "sub-01_ses-2_T1w.nii": ("2", 3),
        "sub-02_ses-1_T1w.nii": ("1", 4),
        "sub-02_ses-2_T1w.nii": ("2", 5),
    }
    assert any(
        f"sessions: column {column!r} (4 scans have theirs in it); not taken for sessions: 'SES'"
        in note
        for note in cohort.notes
    )


def test_a_status_beside_visits_of_other_names_is_not_taken(tmp_path: Path) -> None:
    rows = "01,2,bl\n01,1,m12\n02,2,bl\n02,1,m12\n"
    cohort = joined(tmp_path, long("ses-1", "ses-2"), f"subject,SES,VISCODE\n{rows}")
    assert cohort.cases == []
    assert "no row for session '1'; the table has bl, m12" in cohort.problems[0].reason


def test_a_status_beside_visits_of_an_unknown_name_is_refused(tmp_path: Path) -> None:
    rows = "01,2,1\n01,1,2\n02,2,1\n02,1,2\n"
    with pytest.raises(TableError, match=r"columns 'SES' and 'wave' both have the scans'") as error:
        joined(tmp_path, long("ses-1", "ses-2"), f"subject,SES,wave\n{rows}")
    assert error.value.code == "table-ambiguous-column"


@pytest.mark.parametrize(
    "rows", ["01,ses-1\n01,ses-2\n02,ses-1\n", "01,1\n01,2\n02,1\n02,2\n", "01,01\n02,02\n"]
)
def test_a_column_of_sessions_may_be_called_so(tmp_path: Path, rows: str) -> None:
    sessions = ("ses-01", "ses-02") if "02\n" in rows and "02,02" in rows else ("ses-1", "ses-2")
    cohort = joined(tmp_path, long(*sessions), f"subject,ses\n{rows}")
    assert len(cohort.cases) == rows.count("\n")
    assert all(case.row.session == case.session for case in cohort.cases)


def test_a_status_that_changes_does_not_make_sessions(tmp_path: Path) -> None:
    cohort = joined(tmp_path, long("ses-1", "ses-2"), "subject,SES\n01,1\n01,2\n02,3\n02,3\n")
    assert cohort.cases == []  # two rows of each, and nothing that tells them apart


def test_no_session_is_invented_where_the_scans_have_none(tmp_path: Path) -> None:
    cohort = joined(tmp_path, ["1.nii", "2.nii"], "subject,visit\n1,3\n2,4\n")
    assert found(cohort) == {"1.nii": (None, 2), "2.nii": (None, 3)}
    assert any("not taken for sessions: 'visit'" in note for note in cohort.notes)


def test_rows_of_several_visits_need_their_column(tmp_path: Path) -> None:
    cohort = joined(tmp_path, ["1_m12.nii", "2.nii"], "subject,visit\n1,bl\n1,m12\n2,bl\n2,m12\n")
    assert found(cohort) == {"1_m12.nii": ("m12", 3)}
    assert "session is unknown" in cohort.problems[0].reason


def test_another_visits_row_is_not_used(tmp_path: Path) -> None:
    cohort = joined(tmp_path, ["sub-1_ses-m24_T1w.nii"], "subject,VISCODE\n1,bl\n")
    assert cohort.cases == []
    assert cohort.problems[0].reason == "no row for session 'm24'; the table has bl"


def test_the_best_of_two_columns_of_sessions(tmp_path: Path) -> None:
    rows = "01,A,1\n01,B,2\n02,A,1\n02,B,2\n"
    cohort = joined(tmp_path, long("ses-1", "ses-2"), f"subject,session,visit\n{rows}")
    assert len(cohort.cases) == 4
    with pytest.raises(TableError, match="'session' and 'visit' both have the scans' sessions"):
        joined(tmp_path, [], "subject,session,visit\n01,1,2\n01,2,1\n02,1,2\n02,2,1\n")


def test_sessions_that_are_spelt_in_another_way(tmp_path: Path) -> None:
    cohort = joined(tmp_path, long("ses-01"), "subject,visit\n01,1\n01,2\n02,1\n02,2\n")
    assert "the table has 1, 2; '1' is not spelt alike" in cohort.problems[0].reason


# ---- subjects


def test_the_column_of_subjects_that_has_the_scans_ids(tmp_path: Path) -> None:
    rows = "RID,PTID\n413,002_S_0413\n12,011_S_0012\n"
    by_name = joined(tmp_path / "a", ["002_S_0413.nii", "011_S_0012_T1w.nii"], rows)
    assert [case.subject for case in by_name.cases] == ["002_S_0413", "011_S_0012"]
    assert (
        "subjects: column 'PTID' (of 2 scans, there are ids in 'PTID' 2, 'RID' 0)"
        in (by_name.notes[0])
    )
    by_number = joined(tmp_path / "b", ["413.nii", "12.nii"], rows)
    assert {case.subject: case.row.line for case in by_number.cases} == {"413": 2, "12": 3}
    assert by_number.cases[0].warnings == ()


def test_two_columns_of_subjects_that_mean_different_rows(tmp_path: Path) -> None:
    names = ["1.nii", "2.nii"]
    with pytest.raises(
        TableError, match=r"columns 'subject' and 'ID' both .* `id_column`"
    ) as error:
        joined(tmp_path, names, "ID,subject\n1,2\n2,1\n")
    assert error.value.code == "table-ambiguous-column"
    assert len(joined(tmp_path, names, "ID,subject\n1,1\n2,2\n").cases) == 2
    # one that fits more scans is taken
    cohort = joined(tmp_path, names, "ID,subject\n1,2\n5,1\n")
    assert {case.subject: case.row.line for case in cohort.cases} == {"2": 2, "1": 3}


def test_columns_that_are_named_are_taken(tmp_path: Path) -> None:
    joined(tmp_path, long("ses-1"), "x\n1\n".replace("x", "ID"))
    scans = find_scans(tmp_path / "scans")
    path = tmp_path / "t.csv"
    path.write_text("ID,Code,SES\n9,01,1\n8,02,2\n")
    table = read_table_for(scans, path, id_column="code", session_column="ses")
    assert (table.id_column, table.session_column) == ("Code", "SES")
    assert [case.subject for case in join(scans, table).cases] == ["01"]
    with pytest.raises(TableError, match="no column 'wave'"):
        read_table_for(scans, path, session_column="wave")


# ---- columns that are spelt nearly alike


@pytest.mark.parametrize("other", ["age", "A_G_E", "A GE", "A-GE"])
def test_a_column_that_is_spelt_nearly_as_one_that_is_read(tmp_path: Path, other: str) -> None:
    text = f"subject,AGE,{other}\na,60,88\nb,70,70.0\nc,,\nd,,71\n"
    cohort = joined(tmp_path, [f"{s}.nii" for s in "abcd"], text, "AGE")
    warnings = {case.subject: case.warnings for case in cohort.cases}
    assert warnings == {
        "a": (f"column 'AGE' is read ('60'); column {other!r} says '88'",),
        "b": (),
        "c": (),
        "d": (f"column 'AGE' is read (''); column {other!r} says '71'",),
    }
    assert f"columns 'AGE' and {other!r} differ in 2 rows; 'AGE' is read" in cohort.notes


@pytest.mark.parametrize("here", ["AGE", "age", "Age"])
@pytest.mark.parametrize("there", ["AGE", "age", "a_g_e"])
def test_a_session_overrules_its_participant_however_spelt(
    tmp_path: Path, here: str, there: str
) -> None:
    for name in long("ses-1", "ses-2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    path = tmp_path / "participants.tsv"
    path.write_text(f"participant_id\t{here}\nsub-01\t50\nsub-02\t60\n")
    (tmp_path / "sub-01" / "sub-01_sessions.tsv").write_text(
        f"session_id\t{there}\nses-1\t51\nses-2\tn/a\n"
    )
    scans = find_scans(tmp_path)
    table = session_rows(tmp_path, read_table_for(scans, path, id_column="participant_id"))
    for column in (here, there):
        cohort = join(scans, table, [column])
        ages = [read_number(case.row, column) for case in cohort.cases]
        assert ages == [51.0, None, 60.0, 60.0]
        assert all(case.warnings == () for case in cohort.cases)
