"""Several images of one subject and session: which is T1-weighted, and what is warned of."""

import json
from pathlib import Path

import pytest

from hyperfusion_rt.data.bids_filter import BidsFilter
from hyperfusion_rt.data.cohort import join
from hyperfusion_rt.data.raw.sidecar import agent_warnings
from hyperfusion_rt.data.scan_search import find_scans
from hyperfusion_rt.data.scan_space import PASSED_OVER, Source, named_in
from hyperfusion_rt.data.table_file import read_table
from hyperfusion_rt.errors import CohortError

AGENT = "with contrast agent 'gadolinium' by its name"


def states(root: Path, *names: str, source: Source = "registered", **more) -> dict[str, str]:
    """Name → code, of the files `sub-01_NAME.nii.gz`."""
    anat = root / "sub-01" / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    for name in names:
        (anat / f"sub-01_{name}.nii.gz").touch()
    found = find_scans(root, source, **more)
    return {scan.path.name.removeprefix("sub-01_").partition(".")[0]: scan.code for scan in found}


@pytest.mark.parametrize("other", ["T1w", "part-mag_T1w"])
def test_of_several_parts_a_filter_chooses(tmp_path: Path, other: str) -> None:
    odd = "part-phase_T1w"
    assert states(tmp_path, odd, other) == {odd: "", other: ""}
    (tmp_path / "t.csv").write_text("subject\n01\n")
    cohort = join(find_scans(tmp_path), read_table(tmp_path / "t.csv"))
    assert [problem.code for problem in cohort.problems] == ["scan-ambiguous"] * 2
    label = "mag" if "mag" in other else None
    choose = BidsFilter(tmp_path / "f.json", {"part": (label,)})
    assert states(tmp_path, choose=choose) == {odd: PASSED_OVER, other: ""}


def test_a_phase_image_alone_is_an_error(tmp_path: Path) -> None:
    assert states(tmp_path, "part-phase_T1w", "inv-1_T1w") == {
        "part-phase_T1w": "scan-not-t1",
        "inv-1_T1w": "scan-not-t1",
    }
    (tmp_path / "t.csv").write_text("subject\n01\n")
    problems = join(find_scans(tmp_path), read_table(tmp_path / "t.csv")).problems
    assert [problem.source for problem in problems] == ["scan", "scan"]  # and not its row again
    assert "by its name the phase of a complex image" in problems[1].reason


def test_a_filter_may_ask_for_a_phase_image(tmp_path: Path) -> None:
    choose = BidsFilter(tmp_path / "f.json", {"part": ("phase",)})
    found = states(tmp_path, "part-phase_T1w", "T1w", choose=choose)
    assert found == {"part-phase_T1w": "", "T1w": PASSED_OVER}


def test_inversions_of_mp2rage(tmp_path: Path) -> None:
    names = ("inv-1_MP2RAGE", "inv-2_MP2RAGE", "inv-2_T1w", "UNIT1")
    found = states(tmp_path, *names, source="raw")
    assert found == {"inv-2_T1w": PASSED_OVER, "UNIT1": ""}
    # in a flat folder, too
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in names:
        (flat / f"sub-02_{name}.nii.gz").touch()
    codes = {scan.path.name: scan.code for scan in find_scans(flat, "raw")}
    assert codes == {"sub-02_inv-2_T1w.nii.gz": PASSED_OVER, "sub-02_UNIT1.nii.gz": ""}


def test_the_uniform_image_stands_in_where_there_is_no_t1w(tmp_path: Path) -> None:
    assert states(tmp_path, "UNIT1", source="raw") == {"UNIT1": ""}
    (scan,) = find_scans(tmp_path, "raw")
    assert len(scan.warnings) == 1
    assert "salt-and-pepper noise" in scan.warnings[0]
    with pytest.raises(CohortError, match="no scan found"):
        find_scans(tmp_path)  # it is not registered
    # a registered copy says so by its name
    copy = named_in("MNI1", "sub-01_UNIT1").removeprefix("sub-01_")
    assert copy == "space-MNI1_UNIT1"
    assert states(tmp_path, copy) == {copy: ""}
    found = states(tmp_path, "T1w", source="raw")
    assert found == {"T1w": "", "UNIT1": PASSED_OVER, copy: PASSED_OVER}
    assert states(tmp_path) == {"T1w": "", copy: PASSED_OVER}
    assert find_scans(tmp_path)[0].warnings == ()


def test_another_sessions_t1w_is_not_this_ones(tmp_path: Path) -> None:
    for name in ("ses-a/anat/sub-01_ses-a_T1w", "ses-b/anat/sub-01_ses-b_UNIT1"):
        path = tmp_path / "sub-01" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True)
        path.touch()
    assert [(s.session, s.code) for s in find_scans(tmp_path, "raw")] == [("a", ""), ("b", "")]


@pytest.mark.parametrize("names", [("echo-1_T1w", "echo-2_T1w"), ("acq-a_T1w", "rec-b_T1w")])
def test_nobody_guesses_which_is_meant(tmp_path: Path, names: tuple[str, str]) -> None:
    states(tmp_path, *names)
    (tmp_path / "t.csv").write_text("subject\n01\n")
    cohort = join(find_scans(tmp_path), read_table(tmp_path / "t.csv"))
    assert [problem.code for problem in cohort.problems] == ["scan-ambiguous"] * 2
    assert "choose it with `bids_filter`" in cohort.problems[0].reason


@pytest.mark.parametrize(
    ("name", "said"),
    [("ce-gadolinium_T1w", AGENT), ("ce-none_T1w", ""), ("T1w", ""), ("acq-ce_T1w", "")],
)
def test_a_contrast_agent_by_name(tmp_path: Path, name: str, said: str) -> None:
    states(tmp_path, name)
    (scan,) = find_scans(tmp_path)
    assert len(scan.warnings) == bool(said)
    assert said in "".join(scan.warnings)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("sub-01_T1w", {"ContrastBolusIngredient": "GADOLINIUM"}, "'GADOLINIUM' by its JSON file"),
        ("sub-01_ce-gadolinium_T1w", {"ContrastBolusIngredient": "GADOLINIUM"}, ""),  # said by name
        ("sub-01_T1w", {"ContrastBolusIngredient": "None"}, ""),
        ("sub-01_T1w", {"ContrastBolusIngredient": 1}, ""),
        ("sub-01_T1w", {}, ""),
        ("sub-01_T1w", [], ""),
    ],
)
def test_a_contrast_agent_in_the_json_file(
    tmp_path: Path, name: str, content: object, said: str
) -> None:
    scan = tmp_path / f"{name}.nii.gz"
    assert agent_warnings(scan) == ()
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = agent_warnings(scan)
    assert len(found) == bool(said)
    assert said in "".join(found)
