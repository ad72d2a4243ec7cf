"""Copies of a scan in several spaces, as their names say."""

from pathlib import Path

import pytest

from hyperfusion_rt.data.cohort import Cohort, join
from hyperfusion_rt.data.scan_search import find_scans
from hyperfusion_rt.data.scan_space import Source, named_in
from hyperfusion_rt.data.table_file import read_table

MNI = "sub-01_space-MNI152NLin2009cAsym_res-1_desc-preproc_T1w"


def cohort_of(root: Path, *names: str, source: Source = "registered") -> Cohort:
    for name in names:
        path = root / "sub-01" / "anat" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "t.csv").write_text("subject\n01\n")
    return join(find_scans(root, source), read_table(root / "t.csv"))


def used(cohort: Cohort) -> list[str]:
    return [case.scan.name.removesuffix(".nii.gz") for case in cohort.cases]


@pytest.mark.parametrize(
    "space", ["T1w", "orig", "individual", "fsnative", "T2w", "scanner", "ACPC"]
)
def test_another_space_is_refused(tmp_path: Path, space: str) -> None:
    cohort = cohort_of(tmp_path, f"sub-01_space-{space}_desc-preproc_T1w")
    (problem,) = cohort.problems  # of the scan; its row is not listed once more
    assert (problem.code, problem.kind, problem.source) == ("scan-space-not-mni", "defect", "scan")
    assert f"its name says space '{space}', which is not MNI space" in problem.reason
    assert "`source` raw" in problem.reason
    assert len(cohort_of(tmp_path, source="raw").cases) == 1


@pytest.mark.parametrize(
    "space",
    ["MNI152NLin2009cAsym", "MNI152NLin6Asym", "MNIPediatricAsym", "MNI305", "MNIColin27",
     "IXI549Space", "ICBM452AirSpace", "mni152"],
)  # fmt: skip
def test_mni_spaces(tmp_path: Path, space: str) -> None:
    cohort = cohort_of(tmp_path, f"sub-01_space-{space}_T1w")
    assert len(cohort.cases) == 1
    assert cohort.cases[0].warnings == ()


@pytest.mark.parametrize("native", ["sub-01_desc-preproc_T1w", "sub-01_space-T1w_T1w"])
def test_of_two_copies_the_one_in_the_wanted_space_is_used(tmp_path: Path, native: str) -> None:
    cohort = cohort_of(tmp_path, MNI, native)
    assert used(cohort) == [MNI]
    (problem,) = cohort.problems
    assert (problem.kind, problem.code) == ("passed-over", "scan-passed-over")
    assert problem.reason == f"not in MNI space by its name: {MNI}.nii.gz is"
    raw = cohort_of(tmp_path, source="raw")
    assert used(raw) == [native]
    assert [Path(p.where).name for p in raw.problems] == [f"{MNI}.nii.gz"]
    assert raw.problems[0].kind == "passed-over"


def test_several_copies_in_mni_space_are_nobodys_to_choose(tmp_path: Path) -> None:
    other = MNI.replace("2009c", "6")
    cohort = cohort_of(tmp_path, MNI, other, "sub-01_desc-preproc_T1w")
    assert cohort.cases == []
    assert sorted(p.code for p in cohort.problems) == ["scan-ambiguous"] * 2 + ["scan-passed-over"]


def test_a_derivative_without_a_space_is_native(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, "sub-01_desc-preproc_T1w")
    assert [p.code for p in cohort.problems] == ["scan-space-not-mni"]
    assert "'desc-preproc' without 'space-'" in cohort.problems[0].reason


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("derivative", "sub-01_T1w", "in a derivative dataset without 'space-'"),
        ("raw", "sub-01_T1w", ""),
        ("raw", "sub-01_desc-brain_T1w", "'desc-brain' without 'space-'"),
        ("derivative", MNI, ""),
    ],
)
def test_what_says_no_space_is_warned_of(tmp_path: Path, kind: str, name: str, said: str) -> None:
    (tmp_path / "dataset_description.json").write_text(f'{{"DatasetType": "{kind}"}}')
    (case,) = cohort_of(tmp_path, name).cases
    assert len(case.warnings) == bool(said)
    assert said in "".join(case.warnings)


@pytest.mark.parametrize("content", ["[]", "no JSON", '{"DatasetType": 1}', "{}"])
def test_descriptions_that_say_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset_description.json").write_text(content)
    assert cohort_of(tmp_path, "sub-01_T1w").cases[0].warnings == ()


def test_runs_in_two_spaces(tmp_path: Path) -> None:
    names = [f"sub-01_run-{n}{s}_T1w" for n in (1, 2) for s in ("", "_space-MNI152Lin")]
    cohort = cohort_of(tmp_path, *names)
    assert used(cohort) == ["sub-01_run-1_space-MNI152Lin_T1w"]
    assert [p.kind for p in cohort.problems] == ["passed-over"] * 3


@pytest.mark.parametrize(
    ("name", "copy"),
    [
        ("S1", "S1"),
        ("sub-01_T1w", "sub-01_T1w"),
        ("sub-01_space-T1w_desc-preproc_T1w", "sub-01_space-MNI1_desc-preproc_T1w"),
        ("sub-01_desc-preproc_T1w", "sub-01_space-MNI1_desc-preproc_T1w"),
        ("sub-01_space-MNI305_T1w", "sub-01_space-MNI305_T1w"),
        ("desc-x_T1w", "space-MNI1_desc-x_T1w"),
    ],
)
def test_the_name_of_a_registered_copy(name: str, copy: str) -> None:
    assert named_in("MNI1", name) == copy
    assert named_in("MNI1", copy) == copy
