"""`hfrt explain`: maps, regions, and what is wrong with scans and options."""

import json
import shutil

import numpy as np
import pytest

from hyperfusion_rt.data.imports import import_nibabel

nib = import_nibabel()


@pytest.fixture
def few(cohort):
    """Two scans, one with NaN in its boxes, and an atlas of halves; coarse cubes are fast."""
    scans = sorted((cohort / "scans").iterdir())
    (cohort / "few").mkdir()
    for scan in scans[:2]:
        shutil.copy(scan, cohort / "few")
    bad = nib.load(scans[2])
    nib.save(
        nib.Nifti1Image(np.full(bad.shape, np.nan, np.float32), bad.affine, bad.header),
        cohort / "few" / scans[2].name,
    )
    labels = np.ones((20, 20, 20), np.int16)
    labels[:10] = 2
    affine = np.diag([12.0, 12.0, 12.0, 1.0])
    affine[:3, 3] = -114
    nib.save(nib.Nifti1Image(labels, affine), cohort / "halves.nii.gz")
    (cohort / "halves.csv").write_text("index,name\n1,right half\n2,left half\n")
    return cohort


def test_maps_and_regions_are_written_and_a_bad_scan_is_named(few, hfrt):
    command = ("explain", "few", "--tabular", "data.csv", "--cube", 32, "--engine", "native")
    status, out, err = hfrt(few, *command, "--atlas", "halves.nii.gz", "--of", "AD", "--json")
    assert status == 3, err
    good, also, bad = json.loads(out)["cases"]
    assert [case["status"] for case in (good, also, bad)] == ["ok", "ok", "error"]
    assert bad["code"]
    assert "S5-0003" in bad["reason"]
    assert (good["of"], good["method"], good["atlas"]) == ("AD", "occlusion", "halves.nii.gz")
    assert {region["name"] for region in good["regions"]} == {"right half", "left half"}
    assert sum(region["share"] for region in good["regions"]) == pytest.approx(1, abs=1e-4)
    scan = nib.load(few / "few" / "S5-0001.nii.gz")
    found = nib.load(few / "explanation" / "S5-0001_map.nii.gz")
    assert found.shape == scan.shape
    assert np.allclose(found.affine, scan.affine)
    values = np.asarray(found.dataobj)
    assert values.any()
    # Of the boxes alone: beyond 59 mm to the sides, 28 mm to the front, there is nothing.
    where = np.argwhere(values)
    mm = where @ found.affine[:3, :3].T + found.affine[:3, 3]
    assert np.abs(mm[:, 0]).max() < 60
    assert mm[:, 1].max() < 29
    table = (few / "explanation" / "S5-0001_regions.csv").read_text().splitlines()
    assert table[0] == "region,share,mean"
    assert len(table) == 3
    status, out, err = hfrt(few, *command, "--atlas", "halves.nii.gz")
    assert status == 3
    assert "S5-0001: occlusion of " in out
    assert "right half" in out
    assert "S5-0003" in err
    # Another engine, whose trunk runs on whole boxes, answers alike.
    before = values.copy()
    status, out, err = hfrt(few, *command[:-1], "onnx", "--of", "AD")
    assert status == 3
    again = np.asarray(nib.load(few / "explanation" / "S5-0001_map.nii.gz").dataobj)
    np.testing.assert_allclose(again, before, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--of", "CJD"), "--of 'CJD': choose one of the model's classes: CN, MCI, AD"),
        (("--cube", "0"), "--cube"),
        (("--cube", "100"), "--cube 100 mm: choose a size above 0 and at most 64 mm"),
        (("--atlas", "none.nii.gz"), "--atlas none.nii.gz: there is no such file"),
    ],
)
def test_options_that_cannot_be(few, hfrt, options, message):
    status, _, err = hfrt(few, "explain", "few", "--tabular", "data.csv", *options)
    assert status in (1, 2)
    assert message in err
    assert not (few / "explanation").exists()


def test_gradients_complete_the_difference(few, hfrt):
    pytest.importorskip("captum")
    (few / "few" / "S5-0003.nii.gz").unlink()
    status, _, err = hfrt(
        few, "explain", "few/S5-0001.nii.gz", "--tabular", "data.csv", "--method", "gradients"
    )
    assert status == 0, err
    values = np.asarray(nib.load(few / "explanation" / "S5-0001_map.nii.gz").dataobj)
    assert np.isfinite(values).all()
    assert values.any()
