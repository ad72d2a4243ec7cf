"""A filter of BIDS files: what it may say, and which scans it chooses."""

import json
from functools import partial
from pathlib import Path

import pytest

from hyperfusion_rt.config import Channel
from hyperfusion_rt.data.bids_filter import read_filter
from hyperfusion_rt.data.channels import find_cases
from hyperfusion_rt.data.raw.search import find_raw_scans
from hyperfusion_rt.data.scan_search import find_chosen, find_scans
from hyperfusion_rt.data.scan_space import PASSED_OVER, Source
from hyperfusion_rt.errors import CODES, CohortError, ConfigError

NAMES = (
    "sub-01_ses-01_acq-mprage_rec-norm_run-01_T1w",
    "sub-01_ses-01_acq-spgr_ce-gad_run-1_T1w",
    "sub-01_ses-02_acq-mprage_run-2_echo-1_part-mag_T1w",
    "sub-01_ses-03_run-10_T1w",
)


def make(root: Path, *names: str) -> Path:
    """Files of BIDS names, in their `anat/` folders."""
    for name in names:
        subject, _, rest = name.partition("_")
        session = rest.partition("_")[0] if rest.startswith("ses-") else ""
        path = root / subject / session / "anat" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write(root: Path, content: object) -> Path:
    path = root / "filter.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def chosen(root: Path, wanted: object, source: Source = "registered", find=find_scans) -> list[str]:
    choose = read_filter(write(root, {"t1w": wanted}))
    if find is find_scans:
        find = partial(find_scans, source=source)
    found = find_chosen([root], find, choose)
    return [scan.path.name.partition(".")[0] for scan in found if scan.code != PASSED_OVER]


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({}, [0, 1, 2, 3]),
        ({"acquisition": "mprage"}, [0, 2]),
        ({"acq": "acq-mprage"}, [0, 2]),
        ({"ACQ": "mprage", "session": "01"}, [0]),
        ({"session": ["02", "ses-03"]}, [2, 3]),
        ({"session": 1, "acq": "*"}, None),  # BIDS: the label 1 is not 01
        ({"run": 1}, [0, 1]),
        ({"run": ["01", 10]}, [0, 1, 3]),
        ({"ceagent": None}, [0, 2, 3]),
        ({"ce": "Query.NONE"}, [0, 2, 3]),
        ({"ceagent": "*"}, [1]),
        ({"ceagent": "Query.REQUIRED"}, [1]),
        ({"ceagent": "<Query.ANY: 2>", "acquisition": "spgr"}, [1]),
        ({"ceagent": "Query.OPTIONAL", "session": "03"}, [3]),
        ({"part": ["mag", None], "echo": [1, None]}, [0, 1, 2, 3]),
        ({"part": "mag", "echo": "1"}, [2]),
        ({"reconstruction": "norm", "suffix": "t1w"}, [0]),
        ({"datatype": "anat", "extension": [".nii.gz"], "subject": "01"}, [0, 1, 2, 3]),
        ({"extension": ".nii"}, None),
        ({"acquisition": []}, None),
    ],
)
def test_what_a_filter_chooses(tmp_path: Path, wanted: object, numbers: list[int] | None) -> None:
    make(tmp_path, *NAMES)
    if numbers is None:
        with pytest.raises(CohortError) as error:
            chosen(tmp_path, wanted)
        assert error.value.code == "bids-filter-no-match"
    else:
        assert chosen(tmp_path, wanted) == [NAMES[n] for n in numbers]


def test_what_is_not_chosen_is_passed_over(tmp_path: Path) -> None:
    make(tmp_path, *NAMES)
    choose = read_filter(write(tmp_path, {"t1w": {"acq": ["mprage", "x"]}, "bold": {"task": 1}}))
    left = {s.path.name: s for s in find_scans(tmp_path, choose=choose) if s.defect}
    assert {scan.code for scan in left.values()} == {PASSED_OVER}
    assert [left[f"{NAMES[n]}.nii.gz"].defect for n in (1, 3)] == [
        "not chosen by filter.json: acq is 'spgr', and 'mprage' or 'x' is wanted",
        "not chosen by filter.json: no acq, and 'mprage' or 'x' is wanted",
    ]


def test_a_filter_that_chooses_nothing_says_what_the_first_lacks(tmp_path: Path) -> None:
    make(tmp_path, *NAMES)
    for find in (find_scans, find_raw_scans):
        with pytest.raises(CohortError) as error:
            chosen(tmp_path, {"acquisition": "mpr"}, find=find)
        assert "`bids_filter`" in str(error.value)
        assert "filter.json chooses none of the 4 scans here" in str(error.value)
        assert f"{NAMES[0]}.nii.gz: acq is 'mprage', and 'mpr' is wanted" in str(error.value)


def test_copies_in_spaces(tmp_path: Path) -> None:
    names = ["desc-preproc", *(f"space-MNI{s}_res-{r}_desc-preproc" for s in "ab" for r in (1, 2))]
    names = [f"sub-01_{name}_T1w" for name in names]
    make(tmp_path, *names)
    assert chosen(tmp_path, {"space": "MNIb", "resolution": "2"}) == [names[4]]
    assert chosen(tmp_path, {"space": "MNIb", "res": 2, "desc": "preproc"}) == [names[4]]
    # a copy that was not chosen is not used instead of the one that is
    assert chosen(tmp_path, {"space": None}, "raw") == [names[0]]
    assert chosen(tmp_path, {"space": "MNIa", "res": "1"}, "raw") == [names[1]]


def test_the_second_run_is_used_when_it_is_chosen(tmp_path: Path) -> None:
    make(tmp_path, "sub-01_run-1_T1w", "sub-01_run-2_T1w")
    choose = read_filter(write(tmp_path, {"t1w": {"run": 2}}))
    first, second = find_scans(tmp_path, choose=choose)
    assert (first.code, second.code, second.others) == (PASSED_OVER, "", ())


def test_another_suffix(tmp_path: Path) -> None:
    make(tmp_path, "sub-01_T1w", "sub-01_UNIT1", "sub-01_T2w", "sub-02_T1w")
    wanted = {"suffix": "UNIT1"}
    assert chosen(tmp_path, wanted) == chosen(tmp_path, wanted, "raw") == ["sub-01_UNIT1"]
    choose = read_filter(tmp_path / "filter.json")
    # of what was not chosen, T1w have a line; other kinds never have
    left = [s.path.name[:10] for s in find_scans(tmp_path, choose=choose) if s.defect]
    assert left == ["sub-01_T1w", "sub-02_T1w"]


def test_names_of_the_bids_kind_anywhere(tmp_path: Path) -> None:
    for name in ("a/sub-01_acq-x_T1w.nii.gz", "b/sub-01_acq-y.mgz", "S3.nii", "c/sub-4_T2w.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert chosen(tmp_path, {"acquisition": "y"}) == ["sub-01_acq-y"]
    assert chosen(tmp_path, {"acquisition": None, "suffix": "T2w"}) == ["sub-4_T2w"]
    (scan,) = find_scans(tmp_path / "S3.nii")
    with pytest.raises(CohortError, match="its name is not of the BIDS kind"):
        find_chosen([scan.path], find_scans, read_filter(write(tmp_path, {"t1w": {}})))


def test_folders_of_dicom_files(tmp_path: Path) -> None:
    for name in ("sub-01_acq-x_T1w", "sub-02_acq-y_T1w"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.dcm").write_bytes(b"\0" * 128 + b"DICM")
    assert chosen(tmp_path, {"acq": "x"}, find=find_raw_scans) == ["sub-01_acq-x_T1w"]
    with pytest.raises(CohortError, match="chooses none of the 2 scans here"):
        chosen(tmp_path, {"acq": "z"}, find=find_raw_scans)
    (tmp_path / "sub-03_acq-x_T1w.nii").touch()
    both = ["sub-01_acq-x_T1w", "sub-03_acq-x_T1w"]
    assert chosen(tmp_path, {"acq": "x"}, find=find_raw_scans) == both


def test_channels_choose_themselves(tmp_path: Path) -> None:
    make(tmp_path, "sub-01_acq-x_T1w", "sub-01_acq-y_T1w")
    choose = read_filter(write(tmp_path, {"t1w": {"acq": "x"}}))
    found = find_cases([tmp_path], [Channel(name="T1w")], choose)
    assert [scan.code for scan in found] == ["", PASSED_OVER]
    with pytest.raises(ConfigError, match=r"their globs which files they are: T1w \(\*_T1w") as e:
        find_cases([tmp_path], [Channel(name="T1w", files="*_T1w.nii.gz")], choose)
    assert e.value.code == "option-conflict"


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        ("{", "bids-filter-unreadable", "is no JSON: Expecting property name"),
        ("[]", "bids-filter-invalid", 'it says nothing of "t1w"'),
        ({"bold": {"task": "rest"}}, "bids-filter-invalid", 'it says nothing of "t1w"'),
        ({"t1w": "T1w"}, "bids-filter-invalid", 'such as {"t1w": {"acquisition": "mprage"}}'),
        ({"t1w": {"acquistion": "x"}}, "bids-filter-invalid", "did you mean 'acquisition'"),
        ({"t1w": {"acq": "x", "acquisition": "y"}}, "bids-filter-invalid", "stands there twice"),
        ({"t1w": {"run": 1.5}}, "bids-filter-invalid", "'run' is 1.5; write a text"),
        ({"t1w": {"run": [True]}}, "bids-filter-invalid", "'run' is true; write a text"),
        ({"t1w": {"run": {"any": 1}}}, "bids-filter-invalid", '"*" (any), or a list of these'),
    ],
)
def test_files_that_are_no_filter(tmp_path: Path, content: object, code: str, said: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as error:
        read_filter(path)
    assert (error.value.code, error.value.parameter) == (code, "bids_filter")
    assert str(path) in str(error.value)
    assert said in str(error.value)
    assert code in CODES


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file") as error:
        read_filter(tmp_path / "no.json")
    assert error.value.code == "bids-filter-unreadable"
    assert read_filter(None) is None


def test_of_several_paths_a_filter_must_choose_one(tmp_path: Path) -> None:
    make(tmp_path, "sub-01_acq-a_T1w", "sub-02_acq-b_T1w")
    paths, channel = sorted(tmp_path.glob("sub-*/anat/*")), Channel(name="t1")
    choose = read_filter(write(tmp_path, {"t1w": {"acq": "b"}}))
    for given in (paths, sorted(tmp_path.glob("sub-*"))):
        scans = find_cases(given, [channel], choose)
        assert [(scan.subject, scan.code) for scan in scans] == [("01", PASSED_OVER), ("02", "")]
    none = read_filter(write(tmp_path, {"t1w": {"acq": "c"}}))
    with pytest.raises(CohortError, match="chooses none of the 2 scans here"):
        find_cases(paths, [channel], none)


def test_any_label_is_no_leave_for_other_images(tmp_path: Path) -> None:
    make(tmp_path, "sub-01_T1w", "sub-02_dseg", "sub-03_part-phase_T1w", "sub-04_inv-1_T1w")
    refused = {"03": "scan-not-t1", "04": "scan-not-t1"}
    for wanted, codes in (
        (dict.fromkeys(("suffix", "part", "inversion"), "Query.OPTIONAL"), {"01": "", **refused}),
        ({"suffix": "*"}, {"01": "", **refused}),
        ({"part": ["phase", None]}, {"01": "", "03": "", "04": "scan-not-t1"}),
    ):
        choose = read_filter(write(tmp_path, {"t1w": wanted}))
        assert {s.subject: s.code for s in find_scans(tmp_path, choose=choose)} == codes


def test_a_session_may_be_its_folders(tmp_path: Path) -> None:
    for session in ("a", "b"):
        path = tmp_path / "sub-01" / f"ses-{session}" / "anat" / "sub-01_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        path.touch()
    choose = read_filter(write(tmp_path, {"t1w": {"session": "a"}}))
    assert [s.session for s in find_scans(tmp_path, choose=choose) if not s.code] == ["a"]


@pytest.mark.parametrize("text", ['{"t1w": {"acq": "a", "acq": "b"}}', "[" * 100_000])
def test_a_name_that_stands_twice_and_a_bottomless_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_filter(write(tmp_path, text))
    assert error.value.code == "bids-filter-unreadable"
