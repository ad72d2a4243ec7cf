"""Nobody is mistaken for somebody else, and nothing is lost: every scan and row has one line."""

import os
import socket
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperfusion_rt.data.bids_dataset import without_dots
from hyperfusion_rt.data.cohort import Cohort, join
from hyperfusion_rt.data.scan_search import find_all, find_scans
from hyperfusion_rt.data.table_columns import read_table_for
from hyperfusion_rt.data.table_file import read_table
from hyperfusion_rt.errors import CODES, CohortError, TableError


def cohort_of(root: Path, names: list[str], *rows: str, header: str = "subject,visit") -> Cohort:
    for name in names:
        (root / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "scans" / name).touch()
    (root / "t.csv").write_text("\n".join((header, *rows)) + "\n")
    return join(find_scans(root / "scans"), read_table(root / "t.csv"))


def reasons(cohort: Cohort) -> dict[str, str]:
    return {Path(p.where).name: p.reason for p in cohort.problems if p.source == "scan"}


# ---- file names that say more than an id


@pytest.mark.parametrize(
    "ending",
    ["_T1w", "-T1", ".brain", "_ses-1", "_ses-1_T1w", "_acq-mprage_run-1_T1w", "_T1w_brain_mni",
     "_MNI152NLin2009cAsym_1mm", "_MPRAGE", "_space-MNI152_desc-brain_T1w", "_brain_n4",
     "_T1_to_MNI_affine", "_S13408_I45108"],
)  # fmt: skip
def test_usual_endings_of_a_file_name(tmp_path: Path, ending: str) -> None:
    (case,) = cohort_of(tmp_path, [f"AB{ending}.nii"], "AB", header="subject").cases
    assert (case.subject, case.warnings) == ("AB", ())


@pytest.mark.parametrize(
    "ending", ["-2", "_2", "_0001", "_followup", "_Smith", "_T2w", "_20210304", "_T1w_2", "_x"]
)
def test_what_is_no_usual_ending_is_said(tmp_path: Path, ending: str) -> None:
    (case,) = cohort_of(tmp_path, [f"AB{ending}.nii"], "AB", header="subject").cases
    assert case.warnings == (
        f"file name 'AB{ending}': taken for subject 'AB', since no row has an id with "
        f"{ending[1:]!r} in it; if it is somebody else, rename the file or add a row",
    )


def test_a_session_that_the_table_knows_is_a_usual_ending(tmp_path: Path) -> None:
    names = ["AB-1.nii", "CD_m12_T1w.nii", "EF_3.nii"]
    cohort = cohort_of(tmp_path, names, "AB,1", "AB,2", "CD,bl", "CD,m12", "EF,1")
    assert {c.subject: (c.session, len(c.warnings)) for c in cohort.cases} == {
        "AB": ("1", 0),
        "CD": ("m12", 0),
        "EF": ("1", 1),
    }


def test_a_session_in_a_flat_name_is_not_another(tmp_path: Path) -> None:
    names = ["AB_ses-1.nii", "AB_ses-2_T1w.nii", "CD_ses-1.nii"]
    cohort = cohort_of(tmp_path, names, "AB,1", "AB,2", "CD,2")
    assert [(c.scan.name, c.row.line) for c in cohort.cases] == [
        ("AB_ses-1.nii", 2),
        ("AB_ses-2_T1w.nii", 3),
    ]
    assert reasons(cohort) == {"CD_ses-1.nii": "no row for session '1'; the table has 2"}
    without = cohort_of(tmp_path, [], "AB", "CD", header="subject")
    assert [c.session for c in without.cases] == ["1", "2", "1"]


@pytest.mark.parametrize("name", ["AB-2.nii", "AB_2_T1w.nii", "ab.02.nii", "AB__2.nii"])
def test_a_name_that_may_mean_two_subjects(tmp_path: Path, name: str) -> None:
    rows = ["AB", "AB 2", "ab"]
    cohort = cohort_of(tmp_path, [name], *rows, header="subject")
    assert cohort.cases == []
    assert "'AB 2' of the table? Rename the file" in reasons(cohort)[name]
    assert cohort.problems[0].code == "scan-name-conflict"


def test_a_subject_or_a_session_of_another(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, ["AB_1.nii"], "AB,1", "AB,2", "AB_1,1")
    assert cohort.cases == []
    assert "subject 'AB_1' or 'AB' of the table?" in reasons(cohort)["AB_1.nii"]


@pytest.mark.parametrize(
    ("scan", "row", "hint"),
    [
        ("S1.nii", "s1", "'s1' there? Upper and lower case count"),
        ("S1_T1w.nii", "s1", "'s1' there? Upper and lower case count"),
        ("sub-S1_T1w.nii", "s1", "'s1' there? Upper and lower case count"),
        ("1000012.nii", "1000012.0", "'1000012.0' there? A spreadsheet has made a number"),
        ("007.nii", "7.0", "'7.0' there? A spreadsheet has made a number"),
        ("A_1.nii", "A-1", "'A-1' there? Ids must be spelt alike"),
        ("A-1.nii", "A\u20131", "there? Ids must be spelt alike"),
    ],
)
def test_hints_at_ids_that_are_close(tmp_path: Path, scan: str, row: str, hint: str) -> None:
    cohort = cohort_of(tmp_path, [scan], row, "zz", header="subject")
    assert cohort.cases == []
    assert hint in reasons(cohort)[scan]


@pytest.mark.parametrize(
    "row", ["S1\u00a0", "\u200bS1", '"S1 "', '" S1"', "SUB-S1", "Sub-S1", "sub-S1", "\ufeffS1"]
)
def test_ids_that_look_alike_are_alike(tmp_path: Path, row: str) -> None:
    (case,) = cohort_of(tmp_path, ["S1.nii"], row, header="subject").cases
    assert (case.subject, case.warnings) == ("S1", ())


# ---- links, and what is no file


def test_links_are_scans_of_their_own_name(tmp_path: Path) -> None:
    store = tmp_path / "object.nii"
    store.touch()
    root = tmp_path / "scans"
    for session in ("ses-1", "ses-2"):
        (root / "sub-01" / session / "anat").mkdir(parents=True)
        link = root / "sub-01" / session / "anat" / f"sub-01_{session}_T1w.nii"
        link.symlink_to(store)
    assert [s.session for s in find_all([root], find_scans)] == ["1", "2"]
    dotted = root / ".." / "scans"
    paths: list[Path] = [root, dotted, link, link.parent / "." / link.name]
    assert [s.session for s in find_all(paths, find_scans)] == ["1", "2"]


def test_a_path_with_dots_keeps_the_links_behind_them(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "x.nii").touch()
    (tmp_path / "a" / "link.nii").symlink_to(tmp_path / "x.nii")
    (tmp_path / "far").symlink_to(tmp_path / "a" / "b")
    assert without_dots(tmp_path / "far" / ".." / "link.nii") == tmp_path / "a" / "link.nii"
    assert without_dots(tmp_path / "a" / "link.nii") == tmp_path / "a" / "link.nii"


def test_one_scan_found_as_two_subjects(tmp_path: Path) -> None:
    (tmp_path / "p1").mkdir()
    (tmp_path / "p1" / "x.nii").touch()
    (scan,) = find_all([tmp_path, tmp_path / "p1"], find_scans)
    assert scan.code == "scan-name-conflict"
    assert scan.defect is not None
    assert "found twice, as subject 'p1' and as 'x'" in scan.defect


def test_a_further_run_that_is_named_is_a_scan(tmp_path: Path) -> None:
    anat = tmp_path / "sub-01" / "anat"
    anat.mkdir(parents=True)
    for run in (1, 2, 3):
        (anat / f"sub-01_run-{run}_T1w.nii").touch()
    first, second = find_all([tmp_path, anat / "sub-01_run-2_T1w.nii"], find_scans)
    assert [path.name for path in first.others] == ["sub-01_run-3_T1w.nii"]
    assert second.path.name == "sub-01_run-2_T1w.nii"


def test_what_is_no_file_is_named_and_not_opened(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    os.mkfifo(root / "pipe.nii.gz")
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(root)  # a socket's path must be short
        try:
            listening.bind("socket.nii")
        finally:
            os.chdir(here)
        (root / "device.nii").symlink_to("/dev/null")
        (root / "gone.nii").symlink_to("nowhere.nii")
        (root / "annex.nii").symlink_to("../.git/annex/objects/a/b/c.nii")
        (root / "self.nii").symlink_to("self.nii")
        (root / "folder.nii").mkdir()
        names = ["pipe", "socket", "device", "gone", "annex", "self", "folder"]
        cohort = cohort_of(tmp_path, [], *names, header="subject")
    assert cohort.cases == []
    assert [p.source for p in cohort.problems] == ["scan"] * 7  # their rows are not listed again
    assert {p.code for p in cohort.problems} == {"scan-unreadable"}
    assert {name.split(".")[0]: text for name, text in reasons(cohort).items()} == {
        "pipe": "is a named pipe, not a file",
        "socket": "is a socket, not a file",
        "device": "is a device, not a file",
        "gone": "is a link to nowhere.nii, which is not there",
        "annex": "has not been fetched by git-annex: run `git annex get` or `datalad get` on it",
        "self": "is a link that leads back to itself",
        "folder": "is a folder that holds no scan, though it is called as one",
    }


def test_one_path_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii")
    (scan,) = find_scans(tmp_path / "a.nii")
    assert scan.defect == "is a named pipe, not a file"
    (tmp_path / "b.nii").symlink_to("nowhere.nii")
    with pytest.raises(CohortError, match=r"b.nii: is a link to nowhere.nii, which is not there"):
        find_scans(tmp_path / "b.nii")


def test_a_scan_that_is_not_there_is_still_one_of_two(tmp_path: Path) -> None:
    root = tmp_path / "scans" / "sub-01" / "anat"
    root.mkdir(parents=True)
    (root / "sub-01_acq-a_T1w.nii").symlink_to("nowhere.nii")
    cohort = cohort_of(tmp_path, ["sub-01/anat/sub-01_acq-b_T1w.nii"], "01", header="subject")
    assert [p.code for p in cohort.problems] == ["scan-unreadable", "scan-ambiguous"]


@pytest.mark.parametrize("inside", ["S1.nii", "x.nii.gz", "deep.mgz"])
@pytest.mark.parametrize("folder", ["S1.nii.gz", "sub-S1/anat/sub-S1_T1w.nii.gz"])
def test_a_folder_that_is_called_as_the_scan_in_it(
    tmp_path: Path, folder: str, inside: str
) -> None:
    (case,) = cohort_of(tmp_path, [f"{folder}/{inside}"], "S1", header="subject").cases
    assert (case.subject, case.warnings) == ("S1", ())
    (given,) = find_scans(tmp_path / "scans" / folder)
    assert given.subject == "S1"


@pytest.mark.parametrize(
    ("name", "said"),
    [("S1.nii.zst", "packed"), ("S1.nii.bz2", "packed"), ("S1.nrrd", "convert it"),
     ("S1.mnc", "convert it"), ("S1.img", "pair of .hdr and .img")],
)  # fmt: skip
def test_formats_that_are_not_read_are_named(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "S1.hdr").touch()
    cohort = cohort_of(tmp_path, [name], "S1", header="subject")
    assert [(p.code, p.source) for p in cohort.problems] == [("scan-format-unknown", "scan")]
    assert said in cohort.problems[0].reason
    beside = cohort_of(tmp_path, ["S1.nii.gz"], "S1", header="subject")
    assert [case.scan.name for case in beside.cases] == ["S1.nii.gz"]
    assert [(p.kind, p.reason) for p in beside.problems] == [
        ("passed-over", "S1.nii.gz is used instead")
    ]


def test_an_img_without_its_header_is_nothing_known(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, ["a.nii", "b.img"], "a", header="subject")
    assert cohort.problems == []


def test_duplicates_that_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.nii").touch()
    (tmp_path / "t.csv").write_text("subject,AGE\na,1\na,2\nb,1\nb,2\n")
    scans = find_scans(tmp_path)
    cohort = join(scans, read_table(tmp_path / "t.csv", on_duplicate="first"))
    assert [case.row.line for case in cohort.cases] == [2]
    assert [(p.where[-6:], p.kind) for p in cohort.problems] == [
        ("line 3", "passed-over"),
        ("line 4", "row-without-scan"),
        ("line 5", "passed-over"),
    ]


# ---- everything in exactly one line

ID = st.sampled_from(["a", "A", "a-2", "a_2", "b", "01", "1", "1.0", "NA", "sub-01"])
SESSION = st.sampled_from(["", "1", "2", "01", "m12", "n/a"])
NAME = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", "x/", "a/", "a/m12/", "sub-01/anat/", "sub-01/ses-1/anat/", "S.nii/"]),
        st.sampled_from(["a", "b", "sub-01", "sub-1", "sub-a", "01", "A", "a-2"]),
        st.sampled_from(["", "_ses-1", "_1", "_m12", "-2", "_run-1", "_run-2"]),
        st.sampled_from(["", "_space-T1w", "_space-MNI152Lin", "_desc-preproc"]),
        st.sampled_from(["", "_T1w", "_T2w"]),
        st.sampled_from([".nii", ".nii.gz", ".nii.zst", ".mgz"]),
    ),
)
KIND = st.sampled_from(["file", "file", "file", "link", "broken", "pipe", "folder"])
HEADER = st.sampled_from(["subject,visit", "subject,SES", "participant_id,session_id", "ID,ses"])


def build(root: Path, files: dict[str, str]) -> None:
    (root / "target").touch()
    for name, kind in files.items():
        path = root / "scans" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                path.touch(exist_ok=False)
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind == "folder":
                path.mkdir()
            else:
                path.symlink_to(root / ("target" if kind == "link" else "nowhere"))
        except (FileExistsError, NotADirectoryError):
            continue  # another one has taken the place


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(NAME, KIND, max_size=6),
    HEADER,
    st.lists(st.tuples(ID, SESSION, st.booleans()), min_size=1, max_size=6),
    st.sampled_from(["refuse", "first"]),
    st.sampled_from(["registered", "raw"]),
)
def test_every_scan_and_every_row_has_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[str, str],
    header: str,
    rows: list[tuple[str, str, bool]],
    duplicates: str,
    source: str,
) -> None:
    root = tmp_path_factory.mktemp("cohort")
    build(root, files)
    lines = [f"{subject},{session}" + ",x" * ragged for subject, session, ragged in rows]
    (root / "t.csv").write_text("\n".join((header, *lines)) + "\n")
    try:
        scans = find_scans(root / "scans", source)  # type: ignore[arg-type]
        table = read_table_for(scans, root / "t.csv", on_duplicate=duplicates)  # type: ignore[arg-type]
    except (CohortError, TableError) as error:
        if error.code in ("cohort-no-scan", "cohort-not-found", "table-ambiguous-column"):
            return
        raise
    cohort = join(scans, table)

    known = [path for scan in scans for path in (scan.path, *scan.others)]
    listed = [p.where for p in cohort.problems if p.source == "scan"]
    lines_of_scans = Counter([*listed, *(str(case.scan) for case in cohort.cases)])
    assert lines_of_scans == Counter(map(str, known))
    assert max(lines_of_scans.values(), default=1) == 1
    if not any("/anat/" in str(path) for path in known):  # in BIDS, the rest is ignored
        endings = (".nii", ".nii.gz", ".nii.zst", ".mgz")
        found = [p for p in (root / "scans").rglob("*") if p.name.endswith(endings)]
        other = [p for p in found if p.is_dir() or p.stem.split(".")[0].endswith("_T2w")]
        assert set(found) - set(other) <= set(known)

    rows_listed = Counter(p.where for p in cohort.problems if p.source == "row")
    assert max(rows_listed.values(), default=1) == 1
    used = {f"{table.path}, line {case.row.line}" for case in cohort.cases}
    assert not used & rows_listed.keys()
    every = {f"{table.path}, line {n + 2}" for n in range(len(rows))}
    assert rows_listed.keys() <= every
    # a row without a line of its own is that of a scan, or of one that cannot be used
    for where in every - rows_listed.keys() - used:
        row = next(r for r in table.rows if where.endswith(f"line {r.line}"))
        assert any(p.source == "scan" and p.subject == row.subject for p in cohort.problems)
    assert {problem.code for problem in cohort.problems} <= CODES.keys()
    keys = Counter((case.subject, case.session) for case in cohort.cases)
    assert max(keys.values(), default=1) == 1


def test_sub_in_any_case_is_bids(tmp_path: Path) -> None:
    names = ["SUB-01/anat/SUB-01_T1w.nii", "sub-02/Ses-A/anat/sub-02_ses-A_T1w.nii"]
    names.append("Sub-03/anat/Sub-03_T2w.nii")  # of another kind
    cohort = cohort_of(tmp_path, names, "01", "02", "03", header="subject")
    assert [(case.subject, case.session) for case in cohort.cases] == [("01", None), ("02", "A")]
