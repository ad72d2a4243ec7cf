"""Folders as people have them, and joins in which nobody is mistaken for somebody else."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperfusion_rt.data import scan_search
from hyperfusion_rt.data.cohort import Case, Cohort, join, restrict
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_search import find_scans
from hyperfusion_rt.data.table_file import Row, Table, read_table
from hyperfusion_rt.errors import CODES, CohortError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def ids(scans: list[Scan], root: Path) -> list[tuple[str, str, str | None]]:
    return [(s.path.relative_to(root).as_posix(), s.subject, s.session) for s in scans]


def table_of(folder: Path, *lines: str, header: str = "subject,visit,AGE") -> Table:
    path = folder / "data.csv"
    path.write_text("\n".join((header, *lines)) + "\n")
    return read_table(path)


def pairs(cohort: Cohort) -> list[tuple[str, str, str | None, int]]:
    return [(case.scan.name, case.subject, case.session, case.row.line) for case in cohort.cases]


def codes(cohort: Cohort) -> list[str]:
    assert {problem.code for problem in cohort.problems} <= CODES.keys()
    return [problem.code for problem in cohort.problems]


# ---- finding


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.mgh", "a.NII.GZ", "a.Mgz"])
def test_flat_folder_and_extensions(tmp_path: Path, name: str) -> None:
    make(tmp_path, name, "notes.txt", "b.nii.gz.json", "c.gz")
    assert ids(find_scans(tmp_path), tmp_path) == [(name, "a", None)]


def test_single_file(tmp_path: Path) -> None:
    make(tmp_path, "p01.nii.gz", "sub-02_ses-m12_T1w.nii", "sub-03/ses-1/anat/brain.nii", "x.txt")
    (single,) = find_scans(tmp_path / "p01.nii.gz")
    assert single == Scan(tmp_path / "p01.nii.gz", "p01")
    (named,) = find_scans(tmp_path / "sub-02_ses-m12_T1w.nii")
    assert (named.subject, named.session) == ("02", "m12")
    (bids,) = find_scans(str(tmp_path / "sub-03/ses-1/anat/brain.nii"))
    assert (bids.subject, bids.session) == ("03", "1")
    with pytest.raises(CohortError, match=r"x.txt: is no scan; its name must end in .nii.gz"):
        find_scans(tmp_path / "x.txt")


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    make(tmp_path, "a.nii", "._a.nii", ".b.nii", ".trash/c.nii", "s/._d.nii.gz")
    assert ids(find_scans(tmp_path), tmp_path) == [("a.nii", "a", None)]


def test_folder_per_subject(tmp_path: Path) -> None:
    make(
        tmp_path, "p2/T1/deep/x.nii.gz", "p1/x.nii.gz", "p3/ses-m12/x.mgz", "p4/sub-4_ses-2_T1w.nii"
    )
    assert ids(find_scans(tmp_path), tmp_path) == [
        ("p1/x.nii.gz", "p1", None),
        ("p2/T1/deep/x.nii.gz", "p2", None),
        ("p3/ses-m12/x.mgz", "p3", "m12"),
        ("p4/sub-4_ses-2_T1w.nii", "4", "2"),
    ]


def test_bids(tmp_path: Path) -> None:
    make(
        tmp_path,
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-02/anat/sub-02_T2w.nii.gz",
        "sub-02/anat/sub-02_FLAIR.nii.gz",
        "sub-02/func/sub-02_task-rest_bold.nii.gz",
        "sub-01/ses-m00/anat/sub-01_ses-m00_T1w.nii",
        "sub-01/ses-m12/anat/sub-01_ses-m12_acq-mprage_T1w.nii.gz",
        "derivatives/fs/sub-01/anat/sub-01_T1w.nii.gz",
        "sourcedata/raw.nii",
    )
    expected = [
        ("sub-01/ses-m00/anat/sub-01_ses-m00_T1w.nii", "01", "m00"),
        ("sub-01/ses-m12/anat/sub-01_ses-m12_acq-mprage_T1w.nii.gz", "01", "m12"),
        ("sub-02/anat/sub-02_T1w.nii.gz", "02", None),
    ]
    assert ids(find_scans(tmp_path), tmp_path) == expected
    # from within the dataset, the same subjects and sessions
    assert ids(find_scans(tmp_path / "sub-01"), tmp_path) == expected[:2]
    assert ids(find_scans(tmp_path / "sub-01" / "ses-m12"), tmp_path) == expected[1:2]
    assert ids(find_scans(tmp_path / "sub-02" / "anat"), tmp_path) == expected[2:]


def test_bids_below_a_folder_that_looks_like_a_subject(tmp_path: Path) -> None:
    root = make(tmp_path / "sub-study" / "raw", "sub-01/anat/sub-01_T1w.nii.gz")
    assert ids(find_scans(root), root) == [("sub-01/anat/sub-01_T1w.nii.gz", "01", None)]
    flat = make(tmp_path / "sub-study" / "flat", "p1.nii")
    assert ids(find_scans(flat), flat) == [("p1.nii", "p1", None)]


def test_bids_first_run_is_taken(tmp_path: Path) -> None:
    anat = tmp_path / "sub-01" / "anat"
    make(anat, *(f"sub-01_run-{run}_T1w.nii.gz" for run in ("10", "2", "03")))
    (scan,) = find_scans(tmp_path)
    assert scan.path.name == "sub-01_run-2_T1w.nii.gz"
    assert [p.name for p in scan.others] == [
        "sub-01_run-03_T1w.nii.gz",
        "sub-01_run-10_T1w.nii.gz",
    ]
    make(anat, "sub-01_T1w.nii.gz")
    assert find_scans(tmp_path)[0].path.name == "sub-01_T1w.nii.gz"
    table = table_of(tmp_path, "01,70", header="subject,AGE")
    joined = join(find_scans(tmp_path), table)
    assert len(joined.cases) == 1
    assert [Path(p.where).name for p in joined.problems] == [
        "sub-01_run-03_T1w.nii.gz",
        "sub-01_run-10_T1w.nii.gz",
        "sub-01_run-2_T1w.nii.gz",
    ]
    assert all("another run" in p.reason for p in joined.problems)


def test_bids_name_and_folder_disagree(tmp_path: Path) -> None:
    make(tmp_path, "sub-01/anat/sub-02_T1w.nii", "sub-03/ses-1/anat/sub-03_ses-2_T1w.nii")
    joined = join(find_scans(tmp_path), table_of(tmp_path, "01,1,70", "02,1,70", "03,1,70"))
    assert joined.cases == []
    scans = [p for p in joined.problems if p.source == "scan"]
    assert [p.subject for p in scans] == ["01", "03"]
    assert all("disagree" in p.reason for p in scans)


def test_other_kinds_are_ignored_outside_bids_too(tmp_path: Path) -> None:
    make(tmp_path, "sub-01_T1w.nii", "sub-01_T2w.nii", "sub-01_flair.nii", "p_T2w.nii")
    assert [s.path.name for s in find_scans(tmp_path)] == ["p_T2w.nii", "sub-01_T1w.nii"]


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="no such file or folder"):
        find_scans(tmp_path / "none")
    with pytest.raises(CohortError, match=r"no scan found; looked for .*SUBJECT.nii.gz.*anat"):
        find_scans(tmp_path)
    make(tmp_path, "sub-01/anat/sub-01_T2w.nii.gz")
    with pytest.raises(CohortError, match=r"no scan found \(1 images of another kind were ignored"):
        find_scans(tmp_path)


def refuse(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    real = os.scandir

    def scandir(path: Path) -> object:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(scan_search.os, "scandir", scandir)


def test_no_permission_for_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.nii")
    refuse(monkeypatch, tmp_path)
    with pytest.raises(CohortError, match="cannot be read: Permission denied"):
        find_scans(tmp_path)


def test_no_permission_for_one_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "sub-1/anat/sub-1_T1w.nii", "sub-2/anat/sub-2_T1w.nii")
    refuse(monkeypatch, tmp_path / "sub-1" / "anat")
    scans = find_scans(tmp_path)
    assert [s.subject for s in scans] == ["1", "2"]
    joined = join(scans, table_of(tmp_path, "1,70", "2,71", header="subject,AGE"))
    assert pairs(joined) == [("sub-2_T1w.nii", "2", None, 3)]
    assert "cannot be read: Permission denied" in joined.problems[0].reason
    assert codes(joined) == ["scan-folder-unreadable", "row-without-scan"]


def test_links(tmp_path: Path) -> None:
    store = make(tmp_path / "store", "x.nii")
    root = make(tmp_path / "scans", "p1/a.nii")
    (root / "p1" / "loop").symlink_to(root, target_is_directory=True)
    (root / "p1" / "self").symlink_to("self")
    (root / "p2").symlink_to(store, target_is_directory=True)
    (root / "p3.nii").symlink_to(tmp_path / "not-fetched.nii")
    assert ids(find_scans(root), root) == [
        ("p1/a.nii", "p1", None),
        ("p2/x.nii", "p2", None),
        ("p3.nii", "p3", None),  # reading it says what is wrong
    ]


def test_order_is_that_of_the_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "b.nii", "a.nii", "a/x.nii", "C.nii")
    found = find_scans(tmp_path)
    assert [s.path for s in found] == sorted(s.path for s in found)
    assert find_scans(tmp_path) == found


# ---- joining


def test_prefixes_do_not_matter(tmp_path: Path) -> None:
    make(tmp_path, "sub-01/ses-m12/anat/sub-01_ses-m12_T1w.nii")
    for line in ("01,m12,70", "sub-01,ses-m12,70"):
        joined = join(find_scans(tmp_path), table_of(tmp_path, line))
        assert pairs(joined) == [("sub-01_ses-m12_T1w.nii", "01", "m12", 2)]
        assert joined.problems == []


def test_table_without_sessions_serves_them_all(tmp_path: Path) -> None:
    make(tmp_path, "sub-1/ses-a/anat/sub-1_T1w.nii", "sub-1/ses-b/anat/sub-1_T1w.nii")
    joined = join(find_scans(tmp_path), table_of(tmp_path, "1,70", header="subject,AGE"))
    assert [(c.session, c.row.line) for c in joined.cases] == [("a", 2), ("b", 2)]


def test_session_must_match(tmp_path: Path) -> None:
    make(tmp_path, "sub-1_ses-m12_T1w.nii", "sub-1_ses-m24_T1w.nii")
    joined = join(find_scans(tmp_path), table_of(tmp_path, "1,bl,70", "1,m12,71"))
    assert pairs(joined) == [("sub-1_ses-m12_T1w.nii", "1", "m12", 3)]
    scan, row = joined.problems
    assert scan.reason == "no row for session 'm24'; the table has bl, m12"
    assert (scan.subject, scan.session, scan.source) == ("1", "m24", "scan")
    assert (row.source, row.session, row.where) == ("row", "bl", f"{tmp_path}/data.csv, line 2")


def test_row_without_session_serves_a_scan_with_one(tmp_path: Path) -> None:
    make(tmp_path, "sub-1_ses-m12_T1w.nii")
    joined = join(find_scans(tmp_path), table_of(tmp_path, "1,,70", "2,bl,70"))
    assert pairs(joined) == [("sub-1_ses-m12_T1w.nii", "1", "m12", 2)]


def test_scan_without_session(tmp_path: Path) -> None:
    make(tmp_path, "1.nii", "2.nii")
    joined = join(find_scans(tmp_path), table_of(tmp_path, "1,bl,70", "2,bl,70", "2,m12,71"))
    assert pairs(joined) == [("1.nii", "1", "bl", 2)]
    assert "session is unknown and the table has several (bl, m12)" in joined.problems[0].reason
    assert [p.source for p in joined.problems] == ["scan", "row", "row"]


def test_session_from_a_folder_or_the_name(tmp_path: Path) -> None:
    make(
        tmp_path, "002_S_1/m12/x.nii", "002_S_1/T1/bl/y.nii", "002_S_2_m12.nii", "002_S_2-bl-T1.nii"
    )
    lines = ["002_S_1,bl,1", "002_S_1,m12,1", "002_S_2,bl,1", "002_S_2,m12,1"]
    joined = join(find_scans(tmp_path), table_of(tmp_path, *lines))
    assert sorted(pairs(joined)) == [
        ("002_S_2-bl-T1.nii", "002_S_2", "bl", 4),
        ("002_S_2_m12.nii", "002_S_2", "m12", 5),
        ("x.nii", "002_S_1", "m12", 3),
        ("y.nii", "002_S_1", "bl", 2),
    ]


def test_a_number_later_in_the_name_is_no_session(tmp_path: Path) -> None:
    make(tmp_path, "p1_scan_2.nii")
    joined = join(find_scans(tmp_path), table_of(tmp_path, "p1,1,70", "p1,2,71"))
    assert joined.cases == []


@pytest.mark.parametrize("name", ["01_2_T1.nii", "01_2-x.nii", "01_2.brain.nii.gz", "01_2.nii"])
def test_flat_names_match_the_longest_id(tmp_path: Path, name: str) -> None:
    make(tmp_path, name)
    lines = ["01,70", "01_2,71", "01_22,72"]
    joined = join(find_scans(tmp_path), table_of(tmp_path, *lines, header="subject,AGE"))
    assert pairs(joined) == [(name, "01_2", None, 3)]


def test_ids_end_at_a_separator(tmp_path: Path) -> None:
    make(tmp_path, "0123.nii")
    joined = join(find_scans(tmp_path), table_of(tmp_path, "01,70", header="subject,AGE"))
    assert joined.cases == []


def test_names_of_folders_and_bids_entities_match_whole(tmp_path: Path) -> None:
    make(tmp_path, "01_2/x.nii", "sub-01x_T1w.nii")
    joined = join(find_scans(tmp_path), table_of(tmp_path, "01,70", header="subject,AGE"))
    assert joined.cases == []


def test_underscored_id_behind_sub_is_not_cut(tmp_path: Path) -> None:
    make(tmp_path, "sub-002_S_0413_T1w.nii")
    lines = ["002,70", "002_S_0413,71"]
    joined = join(find_scans(tmp_path), table_of(tmp_path, *lines, header="subject,AGE"))
    assert pairs(joined) == [("sub-002_S_0413_T1w.nii", "002_S_0413", None, 3)]


def test_left_out_rows_keep_their_scans(tmp_path: Path) -> None:
    make(tmp_path, "01_2.nii", "03.nii", "04_ses.nii", "04_bl.nii")
    lines = ["01,bl,1", "01_2,bl,1", "01_2,bl,2", "03,bl,1", "03,m12,1", "03,m12,2"]
    joined = join(find_scans(tmp_path), table_of(tmp_path, *lines, "04,bl,1", "04,bl,1"))
    # 01_2 must not fall to 01; 03 has one good row, but which session the scan is of is unknown
    assert joined.cases == []
    reasons = {Path(p.where).name: p.reason for p in joined.problems if p.source == "scan"}
    assert reasons["01_2.nii"] == "its row (line 3) was left out of the table"
    assert "several (bl, m12)" in reasons["03.nii"]
    rows = [p for p in joined.problems if p.source == "row"]
    assert [int(p.where.split()[-1]) for p in rows] == [2, 3, 4, 5, 6, 7, 8, 9]
    found = {Path(p.where).name: p.code for p in joined.problems if p.source == "scan"}
    assert found["01_2.nii"] == "scan-row-left-out"
    assert found["03.nii"] == "scan-session-unknown"
    assert "table-duplicate-row" in codes(joined)


def test_scan_of_a_left_out_session(tmp_path: Path) -> None:
    make(tmp_path, "sub-1_ses-bl_T1w.nii")
    joined = join(find_scans(tmp_path), table_of(tmp_path, "1,bl,1", "1,bl,2", "1,m12,3"))
    assert joined.cases == []
    assert joined.problems[0].reason == "its row (line 2) was left out of the table"


def test_duplicate_scans(tmp_path: Path) -> None:
    make(tmp_path, "1.nii", "1.nii.gz", "1/x.nii", "2.nii")
    joined = join(find_scans(tmp_path), table_of(tmp_path, "1,bl,70", "2,bl,71"))
    assert pairs(joined) == [("2.nii", "2", "bl", 3)]
    assert len(joined.problems) == 3
    for problem in joined.problems:
        assert (problem.subject, problem.session, problem.source) == ("1", "bl", "scan")
        assert "several scans of this subject and session" in problem.reason
    assert codes(joined) == ["scan-ambiguous"] * 3


def test_unmatched_both_ways(tmp_path: Path) -> None:
    make(tmp_path, "a.nii", "007.nii")
    joined = join(find_scans(tmp_path), table_of(tmp_path, "b,bl,70", "7,bl,70"))
    assert joined.cases == []
    seven, a, row_b, row_seven = joined.problems
    assert seven.reason.endswith("is it '7' there? Leading zeros count")
    assert a.reason == "no row for subject 'a' in the table"
    assert a.where == str(tmp_path / "a.nii")
    assert row_b.reason == row_seven.reason == "no scan was found for this row"
    assert codes(joined) == ["scan-without-row"] * 2 + ["row-without-scan"] * 2


def test_problems_of_the_table_are_listed(tmp_path: Path) -> None:
    make(tmp_path, "a.nii")
    joined = join(find_scans(tmp_path), table_of(tmp_path, "a,bl,70", ",bl,71", "c,bl"))
    assert pairs(joined) == [("a.nii", "a", "bl", 2)]
    assert [(p.subject, p.where.split(", ")[-1]) for p in joined.problems] == [
        ("", "line 3"),
        ("c", "line 4"),
    ]
    assert codes(joined) == ["table-row-without-subject", "table-ragged-row"]


def test_restrict(tmp_path: Path) -> None:
    make(tmp_path, "a.nii", "b.nii", "c.nii")
    joined = join(find_scans(tmp_path), table_of(tmp_path, "a,bl,70", "b,bl,71"))
    kept = restrict(joined, ["sub-a", "c", "nobody"])
    assert [case.subject for case in kept.cases] == ["a"]
    assert [(p.subject, p.source) for p in kept.problems] == [("c", "scan"), ("nobody", "list")]
    assert "neither a scan nor a row" in kept.problems[1].reason
    assert codes(kept) == ["scan-without-row", "cohort-unknown-id"]
    assert [case.subject for case in joined.cases] == ["a", "b"]


labels = st.text("ab1_-.", min_size=1, max_size=5)


@given(st.lists(labels, max_size=6), st.lists(st.tuples(labels, labels), max_size=6))
def test_every_scan_and_row_is_accounted_for_once(
    names: list[str], keys: list[tuple[str, str]]
) -> None:
    scans = [Scan(Path(f"x/{name}.nii"), name) for name in dict.fromkeys(names)]
    rows = [Row(s, v, n + 2, {}) for n, (s, v) in enumerate(dict.fromkeys(keys))]
    table = Table(Path("t.csv"), (), rows, ",", "subject", "visit")
    joined = join(scans, table)
    listed = [p.where for p in joined.problems if p.source == "scan"]
    used = [str(case.scan) for case in joined.cases]
    assert sorted(listed + used) == sorted(str(scan.path) for scan in scans)
    for case in joined.cases:
        assert isinstance(case, Case)
        assert case.scan.name.startswith(case.row.subject)
    assert len({case.row.line for case in joined.cases}) == len(joined.cases)


def test_a_relative_folder_is_of_where_one_is(tmp_path, monkeypatch):
    """One process may look from several folders: each `.` lies in another subject's."""
    for subject in ("01", "02"):
        place = tmp_path / f"sub-{subject}" / "anat"
        place.mkdir(parents=True)
        (place / f"sub-{subject}_T1w.nii.gz").touch()
        monkeypatch.chdir(place.parent)
        (scan,) = find_scans(".")
        assert (scan.subject, scan.defect) == (subject, None)
