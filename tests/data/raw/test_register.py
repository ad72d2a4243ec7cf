"""Raw scans: registration against a known motion, refusals, DICOM, writing."""

import csv
import importlib.util
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("nilearn", reason="nilearn is not installed: no raw scan was registered")
from scipy import ndimage

from hyperfusion_rt.config import preset
from hyperfusion_rt.data.dicom import dicom_series, is_dicom_folder
from hyperfusion_rt.data.mni_template import template_files
from hyperfusion_rt.data.raw.image import read_raw
from hyperfusion_rt.data.raw.register import register, write_registered
from hyperfusion_rt.data.raw.search import find_raw_scans
from hyperfusion_rt.data.raw.template import load_template
from hyperfusion_rt.data.volumes import extract, read_volume
from hyperfusion_rt.errors import MissingExtraError, ScanError

PRE = preset("ad-small").preprocessing


def turned(degrees: float, axis: int) -> np.ndarray:
    """`[4, 4]`: a turn about the brain's middle, and a shift."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    motion = np.eye(4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    motion[i, i] = motion[j, j] = c
    motion[i, j], motion[j, i] = -s, s
    middle = np.array([0.0, -17.0, 5.0])
    motion[:3, 3] = middle - motion[:3, :3] @ middle + [6, -8, 10]
    return motion


@pytest.fixture(scope="module")
def subject(session_cohort):
    """A simulated subject at 2 mm, as RAS float32 voxels and affine."""
    path = sorted((session_cohort / "scans").iterdir())[0]
    image = nib.as_closest_canonical(nib.load(path))
    return path, np.asarray(image.dataobj, np.float32), image.affine


@pytest.fixture(scope="module")
def original(subject):
    return register(subject[0], PRE)


def save(path, voxels, affine, orientation="RAS"):
    image = nib.Nifti1Image(np.rint(voxels).astype(np.int16), affine)
    way = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    )
    image.as_reoriented(way).to_filename(path)
    return path


def moved(subject, path, motion, spacing=(1.5, 2, 2), orientation="LPI"):
    """The subject turned, biased, padded, on another grid and in another orientation."""
    _, voxels, affine = subject
    shape = np.ceil(np.array([230, 260, 240]) / spacing).astype(int)
    grid = np.diag([*spacing, 1.0])
    grid[:3, 3] = np.array([0, -17, 5]) - np.array(spacing) * (shape - 1) / 2
    m = np.linalg.inv(affine) @ np.linalg.inv(motion) @ grid
    values = ndimage.affine_transform(voxels, m[:3, :3], m[:3, 3], tuple(shape), np.float32, 3)
    values = np.clip(values, 0, None)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return save(path, values * (1 + 0.3 * (x - y + z) / 3), grid, orientation)


# Other angles, axes and orientations: benchmarks/raw.py.
def test_a_moved_copy_comes_back(subject, original, tmp_path):
    motion = turned(-20, 1)
    copy = moved(subject, tmp_path / "copy.nii.gz", motion, orientation="PSR")
    found = register(copy, PRE)
    points = np.stack(np.nonzero(read_volume(template_files("raw", "the test")["t1"]).voxels))[
        :, ::197
    ]
    points = original.volume.affine[:3, :3] @ points + original.volume.affine[:3, 3:]

    def at(matrix):
        return matrix[:3, :3] @ points + matrix[:3, 3:]

    error = np.linalg.norm(at(motion @ original.transform) - at(found.transform), axis=0)
    assert error.mean() < 0.2
    assert error.max() < 0.6
    assert found.quality.correlation > 0.8
    assert found.quality.overlap > 0.9
    assert abs(found.quality.rotation - 20) < 3
    boxes = [extract(item.volume, PRE).images for item in (original, found)]
    assert np.corrcoef(boxes[0].ravel(), boxes[1].ravel())[0, 1] > 0.85


@pytest.mark.slow
def test_the_same_bits_every_time(subject, original):
    again = register(subject[0], PRE)
    assert np.array_equal(again.transform, original.transform)
    assert np.array_equal(again.volume.voxels, original.volume.voxels)
    assert again.quality == original.quality


def test_written_and_read(original, tmp_path):
    out = tmp_path / "out.nii.gz"
    write_registered(original, out)
    first = out.read_bytes()
    found = read_volume(out)
    assert np.array_equal(found.voxels, original.volume.voxels)
    assert np.array_equal(found.affine, original.volume.affine)
    assert found.slope == np.float32(original.volume.slope)
    expected = extract(original.volume, PRE).images
    assert np.array_equal(extract(found, PRE).images, expected)
    assert int(nib.load(out).header["sform_code"]) == 4
    sidecar = json.loads((tmp_path / "out.json").read_text())
    assert sidecar["quality"]["correlation"] == original.quality.correlation
    assert len(sidecar["sha256"]) == 64
    write_registered(original, out)
    assert out.read_bytes() == first


def refuse(path, voxels, affine, match, *codes):
    with pytest.raises(ScanError, match=match) as error:
        register(save(path, voxels, affine), PRE)
    assert str(path) in str(error.value)
    assert error.value.code in codes


@pytest.mark.slow
def test_what_is_no_head_is_refused(subject, tmp_path):
    _, voxels, affine = subject
    rng = np.random.default_rng(0)
    path = tmp_path / "x.nii.gz"
    refuse(path, rng.gamma(2, 100, voxels.shape), affine, "registered", "scan-not-registered")
    refuse(
        path, np.full(voxels.shape, 7.0), affine, "every voxel has the same value", "scan-constant"
    )
    refuse(path, voxels[:, :, 40:50], affine, "at least 16 slices", "scan-too-thin")
    large = affine.copy()
    large[:3, :3] *= 1.7
    refuse(path, voxels, large, "registered", "scan-not-registered")


@pytest.mark.slow
def test_a_box_beyond_the_scan_is_refused(subject, tmp_path):
    _, voxels, affine = subject
    cut = affine.copy()
    first = voxels.shape[2] // 2
    cut[:3, 3] += affine[:3, 2] * first
    refuse(
        tmp_path / "x.nii.gz",
        voxels[:, :, first:],
        cut,
        r"box: only .* inside the scan|registered",
        "scan-box-outside",
        "scan-not-registered",
    )


@pytest.mark.slow
def test_noise_is_flagged(subject, tmp_path):
    _, voxels, affine = subject
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.2 * voxels[voxels > 0].mean(), voxels.shape)
    noisy = np.where(voxels > 0, np.maximum(voxels + noise, 0), 0)
    found = register(save(tmp_path / "x.nii.gz", noisy, affine), PRE)
    assert any("signal to noise ratio only" in text for text in found.warnings)


def test_without_the_extra_it_says_what_to_install(subject, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    load_template.cache_clear()
    with pytest.raises(MissingExtraError, match=r"hyperfusion_rt\[raw\]"):
        register(subject[0])


@pytest.fixture
def dicom(subject, tmp_path):
    """The subject as a DICOM series of axial slices."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: no DICOM")
    _, voxels, affine = subject
    folder = tmp_path / "D01"
    folder.mkdir()
    place = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(place[:3, :3], axis=0)
    direction = (place[:3, :3] / spacing).T
    for k in range(voxels.shape[2]):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        number = f"1.2.826.0.1.3680043.2.1125.3.{k}"
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = number
        data.Modality, data.SeriesDescription = "MR", "T1 MPRAGE"
        data.SeriesInstanceUID = "1.2.826.0.1.3680043.2.1125.1"
        data.InstanceNumber = k + 1
        data.ImagePositionPatient = [float(x) for x in place[:3, :3] @ [0, 0, k] + place[:3, 3]]
        data.ImageOrientationPatient = [float(x) for x in direction[:2].ravel()]
        data.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        data.Columns, data.Rows = voxels.shape[:2]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.PixelData = np.rint(voxels[:, :, k].T).astype("<i2").tobytes()
        data.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)
    return folder


def test_a_dicom_series_is_a_scan(dicom, subject):
    assert is_dicom_folder(dicom)
    assert [len(files) for files in dicom_series(dicom)] == [subject[1].shape[2]]
    read = read_raw(dicom)
    index = np.array([[10, 0, 20, 1], [50, 60, 30, 1], [3, 70, 40, 1.0]]).T
    values = ndimage.map_coordinates(
        read.voxels, (np.linalg.inv(read.affine) @ subject[2] @ index)[:3], order=1
    )
    expected = np.rint(subject[1][tuple(index[:3].astype(int))])
    np.testing.assert_allclose(values, expected, atol=0.01 * subject[1].max())
    assert [scan.subject for scan in find_raw_scans(dicom.parent)] == ["D01"]
    assert [scan.subject for scan in find_raw_scans(dicom)] == ["D01"]


def test_a_series_with_a_gap_is_refused(dicom):
    (dicom / "040.dcm").unlink()
    with pytest.raises(ScanError, match=r"slices are missing or uneven") as error:
        register(dicom)
    assert error.value.code == "dicom-slices-uneven"


def test_two_series_in_a_folder_are_refused(dicom):
    for file in sorted(dicom.iterdir())[:20]:
        content = file.read_bytes().replace(b"3680043.2.1125.1", b"3680043.2.1125.9")
        (dicom / f"b{file.name}").write_bytes(content)
    with pytest.raises(ScanError, match="2 DICOM series") as error:
        register(dicom)
    assert error.value.code == "dicom-several-series"


@pytest.mark.slow
def test_commands_on_raw_scans(cohort, subject, dicom, hfrt):
    scans = sorted((cohort / "scans").iterdir())
    folder = cohort / "raw"
    folder.mkdir()
    name = scans[0].name.split(".")[0]
    moved(subject, folder / f"{name}.nii.gz", turned(20, 0))
    (folder / f"{scans[1].name}").write_bytes(b"damaged")
    shutil.copytree(dicom, folder / scans[2].name.split(".")[0])
    status, out, err = hfrt(cohort, "preprocess", "raw", "--out", "made", "--preset", "ad-small")
    assert status == 3
    assert "2 registered, 0 kept, 1 failed" in out
    assert scans[1].name in err
    page = (cohort / "made" / "quality.html").read_text(encoding="utf-8")
    for made in (f"{name}.svg", f"{scans[2].name.split('.')[0]}.svg"):
        assert (cohort / "made" / made).stat().st_size < 60_000
        assert f'src="{made}"' in page
    assert page.count("<figure") == 2
    assert scans[1].name in page
    with open(cohort / "made" / "quality.csv", newline="") as file:
        rows = {row["scan"].rsplit("/", 1)[-1]: row for row in csv.DictReader(file)}
    assert float(rows[f"{name}.nii.gz"]["correlation"]) > 0.8
    assert rows[scans[1].name]["status"] == "error"
    status, out, _ = hfrt(cohort, "preprocess", "raw", "--out", "made")
    assert "0 registered, 2 kept, 1 failed" in out
    status, _, _ = hfrt(
        cohort, "infer", "raw", "--from", "raw", "--tabular", "data.csv", "--engine", "native"
    )
    assert status == 3
    arguments = ("--tabular", "data.csv", "--engine", "native", "--out", "two.csv")
    hfrt(cohort, "infer", "made", *arguments)
    with open(cohort / "predictions.csv", newline="") as file:
        direct = {row["subject"]: row for row in csv.DictReader(file)}
    with open(cohort / "two.csv", newline="") as file:
        in_two_steps = {row["subject"]: row for row in csv.DictReader(file)}
    for subject_id in (name, scans[2].name.split(".")[0]):
        assert direct[subject_id]["status"] == "ok"
        assert float(direct[subject_id]["correlation"]) > 0.8
        for column in ("p_CN", "p_MCI", "p_AD"):
            assert direct[subject_id][column] == in_two_steps[subject_id][column]


def test_a_given_mask_is_taken(subject, original, tmp_path):
    """On another grid than the scan's; the brain outside of it becomes background."""
    _, voxels, affine = subject
    half = (voxels > 0).astype(np.uint8)[::2, ::2, ::2]
    half[: half.shape[0] // 3] = 0
    grid = affine @ np.diag([2.0, 2, 2, 1])
    mask = tmp_path / "mask.nii"
    nib.Nifti1Image(half, grid).to_filename(mask)
    found = register(subject[0], PRE, mask=mask)
    assert np.array_equal(found.transform, original.transform)
    kept, before = (np.count_nonzero(x.volume.voxels) for x in (found, original))
    assert 0.6 * before < kept < 0.95 * before
    elsewhere = grid.copy()
    elsewhere[0, 3] += 100
    nib.Nifti1Image(half, elsewhere).to_filename(mask)
    with pytest.raises(ScanError, match="is it the brain mask of this scan") as error:
        register(subject[0], PRE, mask=mask)
    assert error.value.code == "scan-mask-wrong"
