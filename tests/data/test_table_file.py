"""Tables as people have them: every separator, every kind of damage."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperfusion_rt.data import table_file as table_module
from hyperfusion_rt.data.table_file import (
    LeftOut,
    Row,
    is_missing,
    normalise_id,
    read_category,
    read_number,
    read_table,
)
from hyperfusion_rt.errors import TableError


def write(folder: Path, content: str | bytes, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path, "subject,AGE,SEX\nsub-01, 71.5 ,F\n02,,M\n")
    table = read_table(path)
    assert table.path == path
    assert table.columns == ("subject", "AGE", "SEX")
    assert (table.separator, table.id_column, table.session_column) == (",", "subject", None)
    assert table.rows == [
        Row("01", None, 2, {"subject": "sub-01", "AGE": "71.5", "SEX": "F"}),
        Row("02", None, 3, {"subject": "02", "AGE": "", "SEX": "M"}),
    ]
    assert table.problems == []


def test_bids_participants_tsv(tmp_path: Path) -> None:
    text = "participant_id\tage\tsex\nsub-01\t34\tF\nsub-02\tn/a\tM\n"
    table = read_table(write(tmp_path, text, "participants.tsv"))
    assert table.separator == "\t"
    assert [row.subject for row in table.rows] == ["01", "02"]
    assert is_missing(table.rows[1].values["age"])


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, b"\xef\xbb\xbfsubject,AGE\r\n01,70\r\n02,71\r\n"))
    assert table.columns == ("subject", "AGE")
    assert [row.line for row in table.rows] == [2, 3]
    assert table.rows[1].values["AGE"] == "71"


def test_quoted_separators_and_newlines(tmp_path: Path) -> None:
    text = 'subject,note,AGE\n01,"a, ""b""\nc",70\n\n02,d,71\n'
    first, second = read_table(write(tmp_path, text)).rows
    assert first.values["note"] == 'a, "b"\nc'
    assert (first.line, second.line) == (2, 5)  # the quoted newline and the blank line count


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    text = "\n  \nsubject,AGE\n\n01,70\n,\n , \n02,71\n\n"
    table = read_table(write(tmp_path, text))
    assert [(row.subject, row.line) for row in table.rows] == [("01", 5), ("02", 8)]
    assert table.problems == []


def test_decimal_comma_with_semicolons(tmp_path: Path) -> None:
    text = 'ID;AGE;TAU;note\n1;70,5;>1300,25;a, b\n2;-1,5e2;<8;"x;y"\n'
    first, second = (row.values for row in read_table(write(tmp_path, text)).rows)
    assert (first["AGE"], first["TAU"], first["note"]) == ("70.5", ">1300.25", "a, b")
    assert (second["AGE"], second["TAU"], second["note"]) == ("-1.5e2", "<8", "x;y")


def test_decimal_comma_is_refused_where_it_is_unclear(tmp_path: Path) -> None:
    row = read_table(write(tmp_path, "ID;A\n1;1,234\n2;1.5\n")).rows[0]
    assert row.values["A"] == "1,234"
    with pytest.raises(TableError, match=r"line 2, column 'A': '1,234' is no usable number"):
        read_number(row, "A")


def test_decimal_comma_leaves_ids_and_other_separators_alone(tmp_path: Path) -> None:
    rows = read_table(write(tmp_path, "ID;visit;A\n1,5;2,5;3,5\n")).rows
    assert (rows[0].subject, rows[0].session, rows[0].values["A"]) == ("1,5", "2,5", "3.5")
    rows = read_table(write(tmp_path, 'ID,A\n1,"3,5"\n')).rows
    assert rows[0].values["A"] == "3,5"


def test_separator_is_judged_by_the_rows(tmp_path: Path) -> None:
    text = "ID;Weight, kg;Age, y\n1;70,5;60\n2;71;61\n"
    table = read_table(write(tmp_path, text))
    assert table.separator == ";"
    assert table.columns == ("ID", "Weight, kg", "Age, y")


def test_one_column(tmp_path: Path) -> None:
    assert [r.subject for r in read_table(write(tmp_path, "subject\n1\n2\n")).rows] == ["1", "2"]


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("RID,PTID,AGE", "PTID"),
        ("RID,AGE", "RID"),
        ("Subject ID,AGE", "Subject ID"),
        ("SUBJECT_ID,ID", "SUBJECT_ID"),
        ("eid,x", "eid"),
        ("id,participant_id", "participant_id"),
        ("IXI_ID,x", "IXI_ID"),
    ],
)
def test_usual_subject_columns(tmp_path: Path, header: str, chosen: str) -> None:
    cells = ",".join("abc"[: header.count(",") + 1])
    assert read_table(write(tmp_path, f"{header}\n{cells}\n")).id_column == chosen


@pytest.mark.parametrize("name", ["session_id", "Session", "VISCODE", "visit", "ses"])
def test_usual_session_columns(tmp_path: Path, name: str) -> None:
    table = read_table(write(tmp_path, f"PTID,{name}\n1,ses-bl\n2,\n"))
    assert table.session_column == name
    assert [row.session for row in table.rows] == ["bl", None]


def test_given_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "subject,Code,Wave\n1,A,x\n2,B,y\n")
    table = read_table(path, id_column="Code", session_column="wave")
    assert [(row.subject, row.session) for row in table.rows] == [("A", "x"), ("B", "y")]
    with pytest.raises(TableError, match="no column 'Cod'; did you mean 'Code'"):
        read_table(path, id_column="Cod")
    with pytest.raises(TableError, match=r"no column 'q' \(the columns are subject, Code, Wave"):
        read_table(path, session_column="q")


def test_unnamed_columns_are_ignored(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, ",subject,AGE,\n0,01,70,\n1,02,71,\n"))
    assert table.columns == ("subject", "AGE")
    assert table.rows[0].values == {"subject": "01", "AGE": "70"}


@pytest.mark.parametrize(
    ("content", "message", "code"),
    [
        ("", "file is empty", "table-empty"),
        ("\n \n,,\n", "file is empty", "table-empty"),
        ("subject,AGE\n", "a header but no row", "table-empty"),
        (
            "subject,AGE,AGE\n1,2,3\n",
            "line 1: duplicate column names 'AGE'",
            "table-duplicate-column",
        ),
        (
            "name,AGE\n1,2\n",
            "no column of subjects; the columns are name, AGE",
            "table-no-subject-column",
        ),
        ("001,70.5\n002,71\n", "line 1: there is no header", "table-no-subject-column"),
        ('subject,AGE\n1,"70\n2,71\n', "line 2: .*check the quotes", "table-quotes-broken"),
        ('subject,AGE\n1,70\n2,"7"1\n', "line 3: .*check the quotes", "table-quotes-broken"),
        (b"PK\x03\x04" + bytes(30), "spreadsheet", "table-not-text"),
        (b"subject,AGE\n1,7\x000\n", "line 2: is not text", "table-not-text"),
        (b"\x1f\x8b\x08\x00" + bytes(range(256)), "line .*(neither|not text)", "table-not-text"),
        (b"\xff\xfes\x00u", "begins as UTF-16 text, but", "table-not-text"),
        ("subject,AGE\n1,70\n".encode("utf-16-le"), "line 1: is not text", "table-not-text"),
        ("subject,name\n1,Иванов\n".encode("cp1251"), "line 2: byte .*CSV UTF-8", "table-not-text"),
        (b"subject,name\n1,a\x81b\n", "line 2: byte 16 is neither", "table-not-text"),
    ],
)
def test_files_that_are_no_table(
    tmp_path: Path, content: str | bytes, message: str, code: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(TableError, match=message) as error:
        read_table(path)
    assert str(path) in str(error.value)
    assert error.value.code == code


def test_windows_encoding_is_accepted_when_plausible(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "subject,name\n1,Müller-Ångström\n".encode("cp1252")))
    assert table.rows[0].values["name"] == "Müller-Ångström"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no such file") as missing:
        read_table(tmp_path / "none.csv")
    with pytest.raises(TableError, match="cannot be read") as folder:
        read_table(tmp_path)
    assert (missing.value.code, folder.value.code) == ("table-not-found", "table-unreadable")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(table_module.Path, "read_bytes", refuse)
    with pytest.raises(TableError, match="cannot be read: Permission denied"):
        read_table(tmp_path / "data.csv")


def test_ragged_rows_are_left_out(tmp_path: Path) -> None:
    text = "subject,visit,AGE\n1,bl,70\n2,bl\n3,bl,70,9\n4,bl,71\n"
    table = read_table(write(tmp_path, text))
    assert [row.subject for row in table.rows] == ["1", "4"]
    assert [(p.subject, p.session, p.line) for p in table.problems] == [
        ("2", "bl", 3),
        ("3", "bl", 4),
    ]
    assert "has 2 fields, the header has 3" in table.problems[0].reason
    assert "has 4 fields" in table.problems[1].reason
    assert {problem.code for problem in table.problems} == {"table-ragged-row"}


@pytest.mark.parametrize("empty", ["", "  ", "\u00a0", "\u200b"])
def test_rows_without_subject_are_left_out(tmp_path: Path, empty: str) -> None:
    table = read_table(write(tmp_path, f"subject,AGE\n{empty},70\n2,71\n"))
    assert [row.subject for row in table.rows] == ["2"]
    assert table.problems == [
        LeftOut(
            "",
            None,
            2,
            "column 'subject' is empty: the row needs a subject id",
            "table-row-without-subject",
        )
    ]


@pytest.mark.parametrize("marker", ["n/a", "NA", "<NA>", "None"])
def test_an_id_that_reads_as_missing_is_named(tmp_path: Path, marker: str) -> None:
    (problem,) = read_table(write(tmp_path, f"subject,AGE\n{marker},70\n2,71\n")).problems
    assert f"column 'subject': '{marker}' reads as missing" in problem.reason
    assert problem.code == "table-row-without-subject"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_unicode_text_of_a_spreadsheet(tmp_path: Path, encoding: str) -> None:
    table = read_table(write(tmp_path, "subject\tname\r\n1\tMüller\r\n".encode(encoding)))
    assert table.columns == ("subject", "name")
    assert table.rows[0].values["name"] == "Müller"


def test_big_endian_unicode_text(tmp_path: Path) -> None:
    content = b"\xfe\xff" + "subject,AGE\n1,70\n".encode("utf-16-be")
    assert read_table(write(tmp_path, content)).rows[0].values["AGE"] == "70"


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"', "sep=; "])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_first_line_that_names_the_separator(tmp_path: Path, first: str, newline: str) -> None:
    text = newline.join((first, "subject;AGE, years;x,y", "1;70,5;2", "2;71;3", ""))
    table = read_table(write(tmp_path, text))
    assert (table.separator, table.columns) == (";", ("subject", "AGE, years", "x,y"))
    assert [(row.line, row.values["AGE, years"]) for row in table.rows] == [(3, "70.5"), (4, "71")]


def test_a_named_tab_and_a_column_that_begins_like_it(tmp_path: Path) -> None:
    assert read_table(write(tmp_path, "sep=\t\nID\tA\n1\t2\n")).rows[0].values["A"] == "2"
    table = read_table(write(tmp_path, "sep=x y,ID\n1,2\n"))
    assert table.columns == ("sep=x y", "ID")


def test_what_nobody_sees_in_a_header(tmp_path: Path) -> None:
    table = read_table(
        write(tmp_path, "\ufeff\ufeffsubject,\u200bAGE\u00a0,Total\u00a0IV\n1,2,3\n")
    )
    assert table.columns == ("subject", "AGE", "Total IV")


def test_duplicates_are_refused(tmp_path: Path) -> None:
    text = "subject,visit,AGE\n1,bl,70\nsub-1,ses-bl,71\n1,m12,71\n2,,60\n2,,60\n"
    table = read_table(write(tmp_path, text))
    assert [(row.subject, row.session) for row in table.rows] == [("1", "m12")]
    assert [problem.line for problem in table.problems] == [2, 3, 5, 6]
    assert "line 3 has the same subject and session" in table.problems[0].reason
    assert "line 6 has the same subject;" in table.problems[2].reason
    assert {problem.code for problem in table.problems} == {"table-duplicate-row"}


def test_first_duplicate_is_kept_on_request(tmp_path: Path) -> None:
    text = "subject,AGE\n1,70\n1,71\n1,72\n"
    table = read_table(write(tmp_path, text), on_duplicate="first")
    assert [row.values["AGE"] for row in table.rows] == ["70"]
    assert [problem.line for problem in table.problems] == [3, 4]
    assert "line 2 has the same subject and is used" in table.problems[0].reason
    assert all(problem.passed_over for problem in table.problems)
    assert not any(problem.passed_over for problem in read_table(write(tmp_path, text)).problems)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sub-01", "01"),
        (" ses-m12 ", "m12"),
        ("SUB-A", "A"),
        ("sub-", "sub-"),
        ("002_S_0413", "002_S_0413"),
        ("subject1", "subject1"),
        ("Mu\u0308ller", "Müller"),
        ("\u00a0S1\u200b", "S1"),
        ("\ufeffsub-S\u00a01", "S 1"),
        ("sub\u200b-S1", "S1"),
    ],
)
def test_normalise_id(text: str, expected: str) -> None:
    assert normalise_id(text) == expected


@given(st.text())
def test_normalise_id_twice_changes_nothing(text: str) -> None:
    assert normalise_id(normalise_id(text)) == normalise_id(text)


def row(text: str) -> Row:
    return Row("1", None, 7, {"A": text})


@pytest.mark.parametrize(
    ("text", "value"),
    [("71.5", 71.5), ("-4", -4.0), (".5", 0.5), ("1.", 1.0), ("+2e-3", 0.002), (" 3 ", 3.0)],
)
def test_numbers(text: str, value: float) -> None:
    assert read_number(row(text), "A") == value


@pytest.mark.parametrize("text", [*table_module.MISSING, " ", "n/a", "NaN", "NULL", "\u00a0"])
def test_missing_markers(text: str) -> None:
    assert read_number(row(text), "A") is None
    assert read_category(row(text), "A", ("F", "M")) is None


@pytest.mark.parametrize("text", [">1700", "> 1700", "≥1700", ">=1700", "<1700", "≤1700", "<=1700"])
def test_censored_numbers_read_as_their_bound(text: str) -> None:
    assert read_number(row(text), "A", censored=True) == 1700.0
    with pytest.raises(TableError, match="kind 'censored'"):
        read_number(row(text), "A")


@pytest.mark.parametrize("text", ["abc", "1_000", "1 2", "0x10", "١", "--1", "1,5", "1.2.3"])
@pytest.mark.parametrize("censored", [False, True])
def test_text_in_a_number(text: str, censored: bool) -> None:
    with pytest.raises(TableError, match=r"line 7, column 'A': .* allowed: 71.5") as error:
        read_number(row(text), "A", censored=censored)
    assert error.value.code == "table-not-a-number"


@pytest.mark.parametrize("text", ["-", ".", "?", "<none>", "#DIV/0!", "missing"])
def test_other_words_for_missing_are_named(text: str) -> None:
    with pytest.raises(TableError, match=r"is no usable number; allowed: .* or empty"):
        read_number(row(text), "A")


@pytest.mark.parametrize("text", ["inf", "-Infinity", "1e999", "1e16"])
def test_numbers_that_are_not_finite(text: str) -> None:
    with pytest.raises(TableError, match="must be finite"):
        read_number(row(text), "A")


def test_a_listed_category_wins_over_a_missing_marker() -> None:
    assert read_category(row("none"), "A", ("None", "Mild")) == "None"
    assert read_category(row(""), "A", ("None", "Mild")) is None


# Cells as a spreadsheet may hold them: separators, quotes, newlines, any script, no control codes.
cells = st.text(
    st.one_of(
        st.sampled_from(',;\t"\n aé'),
        st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")),
    ),
    max_size=8,
)


@given(
    st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6),
    st.sampled_from([",", "\t", ";"]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    body: list[tuple[str, str, str]],
    separator: str,
    newline: str,
    mark: bool,
) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, lineterminator=newline, quoting=csv.QUOTE_ALL)
    writer.writerow(["subject", "one", "two", "three"])
    # A letter in front: this test is about cells, not about decimal commas.
    body = [tuple(f"x{cell}" for cell in line) for line in body]  # type: ignore[misc]
    for number, line in enumerate(body):
        writer.writerow([f"s{number}", *line])
    path = tmp_path_factory.getbasetemp() / "round_trip.csv"
    path.write_bytes(out.getvalue().encode("utf-8-sig" if mark else "utf-8"))
    table = read_table(path)
    assert table.separator == separator
    assert not table.problems
    expected = [tuple(cell.strip() for cell in line) for line in body]
    assert [tuple(list(r.values.values())[1:]) for r in table.rows] == expected
