"""BIDS datasets as they are found: what is not searched, and tables of sessions."""

from pathlib import Path

import pytest

from hyperfusion_rt.data.bids_dataset import dataset_of, participants, session_rows
from hyperfusion_rt.data.cohort import join
from hyperfusion_rt.data.scan_search import find_scans
from hyperfusion_rt.data.table_file import Table, read_number, read_table
from hyperfusion_rt.errors import CohortError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path, below: str = "") -> list[str]:
    return [scan.path.relative_to(root).as_posix() for scan in find_scans(root / below)]


def t1w(*subjects: str) -> list[str]:
    return [f"{subject}/anat/{subject.replace('/', '_')}_T1w.nii.gz" for subject in subjects]


def table_of(root: Path, *lines: str, header: str = "participant_id\tage\tsex") -> Table:
    path = root / "participants.tsv"
    path.write_text("\n".join((header, *lines)) + "\n")
    return read_table(path)


# ---- what is not searched


def test_bidsignore(tmp_path: Path) -> None:
    subjects = ("sub-01", "sub-02/ses-a", "sub-02/ses-b", "sub-03", "sub-04")
    make(tmp_path, *t1w(*subjects), "sub-04/anat/sub-04_acq-x_T1w.nii.gz")
    lines = [
        "# a comment, and a blank line",
        "",
        "sub-01/",
        "**/ses-b/**",
        "sub-03/anat/*_T1w.nii.gz",
        "*_acq-*_T1w*",
        "!sub-03/anat/sub-03_T1w.nii.gz",
    ]
    (tmp_path / ".bidsignore").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert found(tmp_path) == t1w("sub-02/ses-a", "sub-03", "sub-04")
    # the same from within the dataset; a file that is named is meant
    assert found(tmp_path, "sub-02") == t1w("sub-02/ses-a")
    assert found(tmp_path, "sub-04/anat") == t1w("sub-04")
    (named,) = t1w("sub-01")
    assert found(tmp_path, named) == [named]


def test_bidsignore_that_leaves_nothing(tmp_path: Path) -> None:
    make(tmp_path, *t1w("sub-01"))
    (tmp_path / ".bidsignore").write_text("sub-*\n")
    with pytest.raises(CohortError, match=r"what \.bidsignore lists are not searched"):
        find_scans(tmp_path)


def test_bidsignore_that_cannot_be_used(tmp_path: Path) -> None:
    make(tmp_path, *t1w("sub-01"))
    path = tmp_path / ".bidsignore"
    path.write_text("*.txt\n!\n")
    with pytest.raises(CohortError, match=r"\.bidsignore, line 2: '!' is no pattern"):
        find_scans(tmp_path)
    path.write_bytes(b"\xff\xfe\x00 odd bytes\n")
    assert found(tmp_path) == t1w("sub-01")
    path.unlink()
    path.mkdir()
    assert found(tmp_path) == t1w("sub-01")


@pytest.mark.parametrize("folder", ["code", "derivatives", "sourcedata", "stimuli", "docs", "logs"])
def test_folders_beside_the_subjects(tmp_path: Path, folder: str) -> None:
    make(tmp_path, *t1w("sub-01"), f"{folder}/sub-02/anat/sub-02_T1w.nii.gz")
    assert found(tmp_path) == t1w("sub-01")
    # such a folder itself may be given
    below = tmp_path / folder
    assert found(below) == t1w("sub-02")
    # elsewhere its name says nothing
    assert found(make(tmp_path / "flat", f"{folder}/x.nii")) == [f"{folder}/x.nii"]


def test_a_description_alone_makes_a_dataset(tmp_path: Path) -> None:
    make(tmp_path, "dataset_description.json", *(f"derivatives/{n}" for n in t1w("sub-01")))
    with pytest.raises(CohortError, match=r"a BIDS dataset's code/, derivatives/, .* not searched"):
        find_scans(tmp_path)
    assert found(tmp_path / "derivatives") == t1w("sub-01")


def test_dataset_of(tmp_path: Path) -> None:
    make(tmp_path, "a/dataset_description.json", "a/sub-01/anat/x", "a/derivatives/sub-02/x")
    make(tmp_path, "b/sub-01/anat/x", "c/x")
    assert dataset_of(tmp_path / "a" / "sub-01" / "anat") == tmp_path / "a"
    assert dataset_of(tmp_path / "a" / "derivatives") == tmp_path / "a" / "derivatives"
    assert dataset_of(tmp_path / "b") == tmp_path / "b"
    assert dataset_of(tmp_path / "b" / "sub-01" / "..") == tmp_path / "b"
    assert dataset_of(tmp_path / "c") is None


def test_unusual_trees(tmp_path: Path) -> None:
    make(
        tmp_path,
        *t1w("sub-01"),
        "sub-02",
        "sub-/anat/sub-_T1w.nii.gz",
        "sub-03/anat/T1w.nii.gz",
        "sub-04/ses-/anat/sub-04_T1w.nii.gz",
        "sub-05/anat/deep/sub-05_T1w.nii.gz",
        "sub-06/anat/sub-06_T1w.nii.gz/part.nii.gz",
        "sub-07/anat/sub-07_run-_T1w.nii.gz",
        "sub-08/anat/sub-08_run-x_T1w.nii.gz",
        "ses-a/anat/ses-a_T1w.nii.gz",
    )
    (tmp_path / "sub-09").symlink_to(tmp_path)
    (tmp_path / "sub-10").symlink_to("nowhere")
    scans = find_scans(tmp_path)
    assert {"01", "08"} <= {scan.subject for scan in scans}
    table = table_of(tmp_path, "sub-01\t70\tF")
    assert [case.subject for case in join(scans, table).cases] == ["01"]
    assert participants(tmp_path, table)[:2] == ["01", "03"]


# ---- runs and acquisitions


def test_runs_of_each_kind_of_name(tmp_path: Path) -> None:
    anat = make(tmp_path, "dataset_description.json") / "sub-01" / "anat"
    names = [f"sub-01_{e}_T1w.nii.gz" for e in ("run-01", "run-1", "run-2", "rec-n_run-1")]
    make(anat, *names)
    first, other = sorted(find_scans(tmp_path), key=lambda scan: -len(scan.others))
    assert (first.path.name, [p.name for p in first.others]) == (names[0], names[1:3])
    assert (other.path.name, other.others) == (names[3], ())


@pytest.mark.parametrize("entity", ["acq-mprage", "rec-norm", "ce-gad"])
def test_several_acquisitions_are_nobodys_to_choose(tmp_path: Path, entity: str) -> None:
    extra = f"sub-01/anat/sub-01_{entity}_T1w.nii.gz"
    make(tmp_path, *t1w("sub-01"), extra)
    table = table_of(tmp_path, "sub-01\t70\tF")
    joined = join(find_scans(tmp_path), table)
    assert joined.cases == []
    for problem in joined.problems:
        assert problem.kind == "defect"
        assert "several scans of this subject and session: also" in problem.reason
        assert "list the others in .bidsignore" in problem.reason
    names = {Path(p.where).name for p in joined.problems}
    assert names == {Path(extra).name, "sub-01_T1w.nii.gz"}
    assert all(any(n in p.reason for n in names) for p in joined.problems)
    (tmp_path / ".bidsignore").write_text(extra + "\n")
    assert len(join(find_scans(tmp_path), table).cases) == 1


# ---- tables of sessions


def sessions(root: Path, subject: str, *lines: str, header: str = "session_id\tage") -> None:
    path = root / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join((header, *lines)) + "\n")


def test_participants_table_with_missing_values(tmp_path: Path) -> None:
    make(tmp_path, *t1w("sub-01", "sub-02"))
    table = table_of(tmp_path, "sub-01\tn/a\tF", "sub-02\t71\tn/a")
    joined = join(find_scans(tmp_path), table)
    assert [case.subject for case in joined.cases] == ["01", "02"]
    assert [read_number(case.row, "age") for case in joined.cases] == [None, 71.0]


def test_without_sessions_the_table_stays(tmp_path: Path) -> None:
    table = table_of(tmp_path, "sub-01\t70\tF")
    assert session_rows(tmp_path, table) is table


def test_sessions_overrule_the_participant(tmp_path: Path) -> None:
    make(tmp_path, *t1w("sub-01/ses-a", "sub-01/ses-b", "sub-01/ses-c", "sub-02"))
    table = table_of(tmp_path, "sub-01\t70\tF", "sub-02\t60\tM")
    header = "session_id\tage\tmmse"
    sessions(tmp_path, "01", "ses-a\t70.5\t29", "ses-b\tn/a\t28", "ses-d\t75\t20", header=header)
    merged = session_rows(tmp_path, table)
    assert merged.columns == ("participant_id", "age", "sex", "mmse", "session_id")
    assert merged.session_column == "session_id"
    cases, problems = (joined := join(find_scans(tmp_path), merged)).cases, joined.problems
    assert [(case.subject, case.session) for case in cases] == [
        ("01", "a"),
        ("01", "b"),
        ("02", None),
    ]
    assert [read_number(case.row, "age") for case in cases] == [70.5, None, 60.0]
    assert [read_number(case.row, "mmse") for case in cases] == [29.0, 28.0, None]
    assert [case.row.values["sex"] for case in cases] == ["F", "F", "M"]
    # a session that is not listed has no row; one without a scan is nothing to speak of
    assert [problem.reason for problem in problems] == [
        "no row for session 'c'; the table has a, b, d"
    ]
    assert table.session_column is None
    assert table.rows[0].values == {
        "participant_id": "sub-01",
        "age": "70",
        "sex": "F",
    }


def test_a_participant_without_sessions_serves_all_her_scans(tmp_path: Path) -> None:
    make(tmp_path, *t1w("sub-01/ses-a", "sub-02/ses-a", "sub-02/ses-b"))
    table = table_of(tmp_path, "sub-01\t70\tF", "sub-02\t60\tM")
    sessions(tmp_path, "01", "ses-a\t70.5")
    cases = join(find_scans(tmp_path), session_rows(tmp_path, table)).cases
    assert [(c.subject, c.session, c.row.values["age"]) for c in cases] == [
        ("01", "a", "70.5"),
        ("02", "a", "60"),
        ("02", "b", "60"),
    ]


def test_a_table_that_has_sessions_itself(tmp_path: Path) -> None:
    lines = ("sub-01\tses-a\t70\tF", "sub-01\tses-b\t71\tF", "sub-01\tn/a\t69\tF")
    table = table_of(tmp_path, *lines, header="participant_id\tsession_id\tage\tsex")
    sessions(tmp_path, "01", "ses-b\t71.5", "ses-c\t72.5")
    rows = session_rows(tmp_path, table).rows
    assert [(row.session, row.values["age"], row.line) for row in rows] == [
        ("a", "70", 2),
        ("b", "71.5", 3),
        ("c", "72.5", 4),
    ]


@pytest.mark.parametrize(
    ("content", "reason", "code"),
    [
        (b"session_id\tage\n", "no row below it", "table-empty"),
        (b"session\tage\nses-a\t70\n", "no column 'session_id'", "table-missing-column"),
        (
            b"session_id\tage\nses-a\t70\nses-a\t71\n",
            "line 2: duplicate",
            "table-duplicate-row",
        ),
        (b"session_id\tage\nses-a\n", "line 2: the row has 1 fields", "table-ragged-row"),
        (b"\x00\x01", "is not text", "table-not-text"),
        (b"", "is empty", "table-empty"),
    ],
)
def test_sessions_that_cannot_be_used(
    tmp_path: Path, content: bytes, reason: str, code: str
) -> None:
    make(tmp_path, *t1w("sub-01/ses-a", "sub-02"))
    table = table_of(tmp_path, "sub-01\t70\tF", "sub-02\t60\tM")
    path = tmp_path / "sub-01" / "sub-01_sessions.tsv"
    path.write_bytes(content)
    joined = join(find_scans(tmp_path), session_rows(tmp_path, table))
    assert [case.subject for case in joined.cases] == ["02"]
    scan, row = joined.problems
    assert scan.reason == "its row (line 2) was left out of the table"
    assert str(path) in row.reason
    assert reason in row.reason
    assert (scan.code, row.code) == ("scan-row-left-out", code)


def test_participants(tmp_path: Path) -> None:
    make(tmp_path, *t1w("sub-01", "sub-02", "sub-10"))
    (tmp_path / ".bidsignore").write_text("sub-10/\n")
    table = table_of(tmp_path, "sub-02\t1\tF", "sub-03\t1\tF", "sub-03\t2\tF", "n/a\t3\tF")
    assert participants(tmp_path, table) == ["01", "02", "03"]
