"""What `preprocess` calls its copies, and that nothing is left out without a line."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from hyperfusion_rt.data.raw.judge import Quality
from hyperfusion_rt.data.raw.register import Registered
from hyperfusion_rt.data.volumes import Volume
from hyperfusion_rt.errors import ConfigError, ScanError
from hyperfusion_rt.runtime.cohort import preprocess as module
from hyperfusion_rt.runtime.cohort.preprocess import Preprocessed, preprocess

REFUSED = "this test registers nothing"


@pytest.fixture(autouse=True)
def no_registration(monkeypatch):
    """Names are what this is about."""

    def register(path, preprocessing, with_picture, mask):
        raise ScanError(f"{path}: {REFUSED}", code="scan-damaged")

    monkeypatch.setattr(module, "register", register)


def places(out: Path, found: list[Preprocessed]) -> dict[str, str]:
    return {
        item.scan.name: item.out.relative_to(out).as_posix()
        for item in found
        if REFUSED in item.reason
    }


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_a_links_copy_has_the_links_name(tmp_path, monkeypatch):
    make(tmp_path, "store/object.nii.gz")
    raw = make(tmp_path / "raw", "S0.nii")
    for name in ("S1.nii.gz", "S2.nii.gz"):
        (raw / name).symlink_to(tmp_path / "store" / "object.nii.gz")
    out = tmp_path / "out"
    wanted = {"S0.nii": "S0.nii.gz", "S1.nii.gz": "S1.nii.gz", "S2.nii.gz": "S2.nii.gz"}
    assert places(out, preprocess([raw], out)) == wanted
    monkeypatch.chdir(raw)
    for given in (raw / "S1.nii.gz", Path("S1.nii.gz"), Path("../raw/S1.nii.gz")):
        assert places(out, preprocess([given], out)) == {"S1.nii.gz": "S1.nii.gz"}
    # by itself and with its folder: one scan
    assert places(out, preprocess([raw, raw / "S1.nii.gz"], out)) == wanted


def test_two_copies_never_share_a_name(tmp_path):
    raw = make(tmp_path / "raw", "a.nii", "a.nii.gz")
    with pytest.raises(ConfigError, match=r"a.nii.gz and .*a.nii: both would become") as error:
        preprocess([raw], tmp_path / "out")
    assert error.value.code == "output-wrong-name"


def test_a_copy_says_its_space_where_the_original_says_another(tmp_path):
    anat = "sub-01/anat/sub-01"
    raw = make(tmp_path / "raw", f"{anat}_desc-preproc_T1w.nii", f"{anat}_space-MNI152Lin_T1w.nii")
    found = preprocess([raw], tmp_path / "out")
    assert list(places(tmp_path / "out", found).values()) == [
        f"{anat}_space-MNI152NLin2009aSym_desc-preproc_T1w.nii.gz"
    ]
    assert [item.status for item in found] == ["skipped", "error"]


def test_what_is_not_registered_has_a_line(tmp_path):
    anat = "sub-01/anat/sub-01"
    raw = make(tmp_path / "raw", f"{anat}_run-1_T1w.nii", f"{anat}_run-2_T1w.nii")
    os.mkfifo(raw / f"{anat}_acq-x_T1w.nii")
    (raw / f"{anat}_acq-y_T1w.nii").symlink_to("nowhere")
    found = preprocess([raw], tmp_path / "out")
    lines = {item.scan.name: (item.status, item.code) for item in found}
    assert lines == {
        "sub-01_run-1_T1w.nii": ("error", "scan-damaged"),
        "sub-01_run-2_T1w.nii": ("skipped", "scan-passed-over"),
        "sub-01_acq-x_T1w.nii": ("error", "scan-unreadable"),
        "sub-01_acq-y_T1w.nii": ("error", "scan-unreadable"),
    }
    with open(tmp_path / "out" / "quality.csv", newline="") as file:
        rows = {Path(row["scan"]).name: row["status"] for row in csv.DictReader(file)}
    assert rows == {name: status for name, (status, _) in lines.items()}


def test_a_filter_chooses_what_is_registered(tmp_path):
    anat = "sub-01/anat/sub-01"
    raw = make(tmp_path / "raw", f"{anat}_acq-a_T1w.nii", f"{anat}_acq-b_T1w.nii")
    path = tmp_path / "f.json"
    path.write_text('{"t1w": {"acquisition": "b"}}')
    found = preprocess([raw], tmp_path / "out", bids_filter=path)
    lines = {item.scan.name: item.code for item in found}
    assert lines == {
        "sub-01_acq-a_T1w.nii": "scan-passed-over",
        "sub-01_acq-b_T1w.nii": "scan-damaged",
    }


def test_warnings_of_names_and_sidecars_go_with_the_copy(tmp_path, monkeypatch):
    raw = make(tmp_path / "raw", "sub-01_ce-gad_UNIT1.nii", "sub-02_T1w.nii")
    (raw / "sub-02_T1w.json").write_text('{"ContrastBolusIngredient": "GADOLINIUM"}')
    written = {}

    def register(path, preprocessing, with_picture, mask):
        volume = Volume(path, np.zeros((1, 1, 1), np.int16), np.eye(4), 1.0, 0.0)
        quality = Quality(*[0.0] * 10, {}, 0.0, 1.0, True)
        return Registered(volume, quality, ("odd",), np.eye(4), volume.grid, {})

    def write_registered(registered, out):
        written[out.name] = registered.warnings

    monkeypatch.setattr(module, "register", register)
    monkeypatch.setattr(module, "write_registered", write_registered)
    found = preprocess([raw], tmp_path / "out")
    name = "sub-01_ce-gad_space-MNI152NLin2009aSym_UNIT1.nii.gz"
    assert written.keys() == {name, "sub-02_T1w.nii.gz"}
    uniform, agent, other = written[name]
    assert "salt-and-pepper" in uniform
    assert "contrast agent 'gad' by its name" in agent
    assert "'GADOLINIUM' by its JSON file" in written["sub-02_T1w.nii.gz"][0]
    assert other == written["sub-02_T1w.nii.gz"][1] == "odd"
    assert [item.reason for item in found] == ["; ".join(written[item.out.name]) for item in found]


def test_a_link_into_the_output_is_a_scan(tmp_path):
    raw, out = make(tmp_path / "raw", "a.nii"), make(tmp_path / "raw" / "out", "old.nii.gz")
    (raw / "b.nii.gz").symlink_to(out / "old.nii.gz")
    assert sorted(places(out, preprocess([raw], out))) == ["a.nii", "b.nii.gz"]


def test_a_mask_belongs_to_its_scan(tmp_path, monkeypatch):
    raw = make(
        tmp_path / "raw",
        "S1.nii.gz",
        "S1_mask.nii",
        "S2.nii",
        "S3/a.dcm",
        "S3_mask.nii.gz",
        "S4_mask.nii",
    )
    (raw / "S3" / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    asked = {}

    def register(path, preprocessing, with_picture, mask):
        asked[path.name] = mask and mask.name
        raise ScanError(f"{path}: {REFUSED}", code="scan-damaged")

    monkeypatch.setattr(module, "register", register)
    found = preprocess([raw], tmp_path / "out", mask_suffix="_mask")
    assert asked == {"S1.nii.gz": "S1_mask.nii", "S3": "S3_mask.nii.gz"}
    codes = {item.scan.name: item.code for item in found}
    assert codes == {
        "S1.nii.gz": "scan-damaged", "S2.nii": "scan-mask-missing", "S3": "scan-damaged",
        "S4_mask.nii": "scan-mask-alone",
    }  # fmt: skip
    assert len(preprocess([raw], tmp_path / "out")) == 6


def test_masks_of_further_runs_have_their_scans(tmp_path, monkeypatch):
    names = (f"sub-01_run-{run}_T1w{mask}.nii" for run in (1, 2) for mask in ("", "_mask"))
    raw = make(tmp_path / "raw", *names)

    def register(path, preprocessing, with_picture, mask):
        raise ScanError(f"{path}: {REFUSED}", code="scan-damaged")

    monkeypatch.setattr(module, "register", register)
    found = preprocess([raw], tmp_path / "out", mask_suffix="_mask")
    assert {item.scan.name: item.code for item in found} == {
        "sub-01_run-1_T1w.nii": "scan-damaged", "sub-01_run-2_T1w.nii": "scan-passed-over",
    }  # fmt: skip
