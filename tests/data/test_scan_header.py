"""Headers: each is read right, or the file is named with what to do."""

import bz2
import contextlib
import gzip
import lzma
import os
import struct
import warnings

import nibabel as nib
import numpy as np
import pytest

from hyperfusion_rt.data.volumes import read_volume
from hyperfusion_rt.errors import ScanError

AFFINE = np.array([[2.0, 0, 0, -16], [0, 2, 0, -14], [0, 0, 2, -12], [0, 0, 0, 1]])
SHAPE = (17, 15, 13)
# Byte places in a NIfTI-1 header.
QFORM_CODE, SFORM_CODE, PIXDIM, OFFSET, SLOPE, INTER, UNITS = 252, 254, 76, 108, 112, 116, 123
INTENT = 68


def voxels(dtype=np.int16):
    return np.random.default_rng(0).integers(0, 2000, SHAPE).astype(dtype)


def image(sform=AFFINE, qform=AFFINE, sform_code=1, qform_code=1, dtype=np.int16):
    made = nib.Nifti1Image(voxels(dtype), AFFINE, dtype=dtype)
    made.set_sform(sform, sform_code)
    made.set_qform(qform, qform_code)
    return made


def plain(path, made=None, **fields):
    """A file of `made` with header fields as `format` and values: `at_112=("<f", 0.0)`."""
    content = bytearray((made or image()).to_bytes())
    for name, (kind, *values) in fields.items():
        struct.pack_into(kind, content, int(name.removeprefix("at_")), *values)
    path.write_bytes(content)
    return path


def refusal(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ScanError) as caught:
            read_volume(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value.code, str(caught.value)


PACKED = {
    "a.nii.zst": b"\x28\xb5\x2f\xfd" + b"x" * 300,
    "b.nii.zst": b"x",
    "a.nii.gz": b"\x28\xb5\x2f\xfd" + b"x" * 300,
    "a.nii.bz2": bz2.compress(b"\0" * 500),
    "a.nii.xz": lzma.compress(b"\0" * 500),
    "a.nii.Z": b"\x1f\x9d" + b"x" * 300,
    "a.zip": b"PK\x03\x04" + b"x" * 300,
    "twice.nii.gz": gzip.compress(gzip.compress(b"x" * 500)),
}


@pytest.mark.parametrize("name", PACKED)
def test_another_packing_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(PACKED[name])
    code, text = refusal(tmp_path / name)
    assert code == "scan-format-unknown"
    assert "unpack it first" in text


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
OTHERS = {
    "lfs": (LFS, "git lfs pull"),
    "annex": (b"/annex/objects/MD5E-s1--d41d8.nii.gz\n", "datalad get"),
    "annex link": (b"../.git/annex/objects/8F/MD5E-s1--d41d8.nii.gz\n", "datalad get"),
    "page": (b"\n<!DOCTYPE html><html>log in</html>", "download it again"),
    "dicom": (b"\0" * 128 + b"DICM" + b"\2\0" * 200, "`source` raw"),
    "zeros": (b"\0" * 5000, "copy it again"),
    "nrrd": (b"NRRD0004\n# x", "convert it"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("pack", [False, True])
def test_what_is_no_scan_is_named(tmp_path, name, pack):
    content, advice = OTHERS[name]
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content) if pack else content)
    code, text = refusal(path)
    assert code == "scan-format-unknown"
    assert advice in text


def test_an_annex_link_without_content_is_named(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.symlink_to(".git/annex/objects/8F/MD5E-s1--d41d8.nii.gz")
    assert "datalad get" in refusal(path)[1]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nii.gz")
    assert "pipe" in refusal(tmp_path / "a.nii.gz")[1]


def test_pairs_are_named(tmp_path):
    nib.Nifti1Pair(voxels(), AFFINE).to_filename(tmp_path / "a.img")
    nib.AnalyzeImage(voxels(), AFFINE).to_filename(tmp_path / "b.img")
    for name in ("a.hdr", "a.img", "b.img"):
        code, text = refusal(tmp_path / name)
        assert code == "scan-format-unknown"
        assert ".hdr/.img pair; convert the pair to .nii.gz" in text
    code, text = refusal(tmp_path / "b.hdr")
    assert code == "scan-format-unknown"
    assert "left and right" in text


@pytest.mark.parametrize("name", ["A.NII.GZ", "gzip.nii", "plain.nii.gz"])
def test_the_content_says_how_it_is_packed(tmp_path, name):
    content = image().to_bytes()
    packed = gzip.compress(content) if name != "plain.nii.gz" else content
    (tmp_path / name).write_bytes(packed)
    found = read_volume(tmp_path / name)
    assert np.array_equal(found.voxels, voxels())
    assert np.array_equal(found.affine, AFFINE)


@pytest.mark.parametrize(
    ("unit", "factor", "word"),
    [(0, 1, ""), (2, 1, ""), (5, 1, ""), (3, 1e3, "micro"), (1, 1e-3, "metres")],
)
def test_the_unit_of_length_is_heeded(tmp_path, unit, factor, word):
    scaled = np.diag([factor, factor, factor, 1]) @ AFFINE
    made = image(scaled, scaled)
    found = read_volume(plain(tmp_path / "a.nii", made, at_123=("B", unit)))
    np.testing.assert_allclose(found.affine, AFFINE, rtol=1e-6)
    assert (word in " ".join(found.warnings)) if word else not found.warnings


def test_a_wrong_unit_is_named(tmp_path):
    code, text = refusal(plain(tmp_path / "a.nii", at_123=("B", 3)))
    assert code == "scan-affine-invalid"
    assert "micrometres" in text


@pytest.mark.parametrize("size", [0.0, -2.0, np.nan])
def test_voxel_sizes_that_only_the_sform_knows(tmp_path, size):
    fields = {"at_80": ("<f", size)}
    both = plain(tmp_path / "a.nii", image(qform_code=0), **fields)
    assert np.array_equal(read_volume(both).affine, AFFINE)
    alone = plain(tmp_path / "b.nii", image(sform_code=0), **fields)
    code, text = refusal(alone)
    assert code == "scan-affine-invalid"
    assert "pixdim" in text


@pytest.mark.parametrize("intent", [2, 5, 24, 1002, 1003, 1007, 2005])
def test_labels_statistics_and_vectors_are_no_scan(tmp_path, intent):
    code, text = refusal(plain(tmp_path / "a.nii", at_68=("<h", intent)))
    assert code == "scan-not-t1"
    assert str(intent) in text


@pytest.mark.parametrize("intent", [0, 1001, 1011, 7777])
def test_images_are_scans(tmp_path, intent):
    read_volume(plain(tmp_path / "a.nii", at_68=("<h", intent)))


def turned(degrees=0.0, shift=0.0):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    motion = np.array([[c, -s, 0, shift], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return motion @ AFFINE


@pytest.mark.parametrize(
    ("qform", "sform", "qcode", "scode", "says"),
    [
        (turned(), turned(), 1, 1, False),
        (turned(0, 1.5), turned(), 1, 1, False),
        (turned(0, 25), turned(), 4, 1, True),
        (turned(0, 25), turned(), 1, 1, True),
        (turned(30), turned(), 4, 4, True),
        (turned(30), turned(), 1, 2, True),
        # As registration to a template leaves it.
        (turned(30, 25), turned() @ np.diag([1.2, 0.9, 1, 1]), 1, 4, False),
        (turned(30, 25), turned(), 1, 3, False),
        (turned(30, 25), turned(), 0, 1, False),
        (turned(), turned(30, 25), 1, 0, False),
    ],
)
def test_a_qform_that_contradicts_the_sform_is_said(tmp_path, qform, sform, qcode, scode, says):
    found = read_volume(plain(tmp_path / "a.nii", image(sform, qform, scode, qcode)))
    assert ("qform" in " ".join(found.warnings)) == says
    np.testing.assert_allclose(found.affine, sform if scode else qform, atol=1e-4)


@pytest.mark.parametrize("codes", [(1, 1), (1, 4), (4, 1)])
def test_a_qform_that_swaps_left_and_right_is_refused(tmp_path, codes):
    mirrored = np.diag([-1.0, 1, 1, 1]) @ AFFINE
    code, text = refusal(plain(tmp_path / "a.nii", image(AFFINE, mirrored, *codes)))
    assert code == "scan-orientation-unknown"
    assert "left and right" in text


def test_a_damaged_qform_beside_an_sform_is_said(tmp_path):
    found = read_volume(plain(tmp_path / "a.nii", at_256=("<3f", 3.0, 3.0, 3.0)))
    assert "qform" in found.warnings[0]
    assert np.array_equal(found.affine, AFFINE)


def test_an_mgh_file_without_orientation_is_refused(tmp_path):
    made = nib.MGHImage(voxels(), AFFINE)
    made.to_filename(tmp_path / "a.mgz")
    content = bytearray(gzip.decompress((tmp_path / "a.mgz").read_bytes()))
    assert np.array_equal(read_volume(tmp_path / "a.mgz").affine, AFFINE)
    struct.pack_into(">h", content, 28, 0)
    (tmp_path / "a.mgz").write_bytes(gzip.compress(content))
    code, text = refusal(tmp_path / "a.mgz")
    assert code == "scan-orientation-unknown"
    assert "goodRASFlag" in text


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_no_slope_is_a_slope_of_one(tmp_path, slope):
    found = read_volume(plain(tmp_path / "a.nii", at_112=("<2f", slope, 0.0)))
    assert (found.slope, found.inter) == (1.0, 0.0)


@pytest.mark.parametrize("values", [(np.inf, 0.0), (-np.inf, 0.0), (2.0, np.nan), (2.0, np.inf)])
def test_a_damaged_slope_is_refused(tmp_path, values):
    assert refusal(plain(tmp_path / "a.nii", at_112=("<2f", *values)))[0] == "scan-damaged"


@pytest.mark.parametrize("offset", [np.nan, np.inf, -352.0, 0.0, 100.0, 1e30])
def test_a_damaged_offset_is_refused(tmp_path, offset):
    code, _ = refusal(plain(tmp_path / "a.nii", at_108=("<f", offset)))
    assert code in ("scan-damaged", "scan-truncated")


@pytest.mark.parametrize("pack", [False, True])
def test_extensions_before_the_voxels_are_passed_over(tmp_path, pack):
    made = image()
    made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    content = made.to_bytes()
    (tmp_path / "a.nii").write_bytes(gzip.compress(content) if pack else content)
    assert np.array_equal(read_volume(tmp_path / "a.nii").voxels, voxels())


@pytest.mark.parametrize("pack", [False, True])
def test_a_header_that_claims_less_than_the_file_holds_is_refused(tmp_path, pack):
    content = image(dtype=np.float32).to_bytes()
    spoilt = bytearray(content)
    struct.pack_into("<2h", spoilt, 70, 4, 16)  # int16
    (tmp_path / "a.nii").write_bytes(gzip.compress(spoilt) if pack else spoilt)
    code, text = refusal(tmp_path / "a.nii")
    assert code == "scan-damaged"
    assert "follow the voxels" in text
    padded = content + b"\0" * 100  # less than a slice: a footer, or padding
    (tmp_path / "b.nii").write_bytes(gzip.compress(padded) if pack else padded)
    read_volume(tmp_path / "b.nii")


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32, np.float64])
def test_wide_types_are_read(tmp_path, dtype):
    assert np.array_equal(
        read_volume(plain(tmp_path / "a.nii", image(dtype=dtype))).voxels, voxels()
    )


def test_types_that_no_image_has_are_refused(tmp_path):
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for values in (voxels(np.complex64), rgb):
        nib.Nifti1Image(values, AFFINE).to_filename(tmp_path / "a.nii")
        assert refusal(tmp_path / "a.nii")[0] == "scan-type-unsupported"
    for code in (1, 1536, 2048):
        spoilt = plain(tmp_path / "a.nii", at_70=("<h", code))
        assert refusal(spoilt)[0] == "scan-type-unsupported"


def test_any_byte_of_a_header_may_be_wrong(tmp_path):
    """Whatever stands there, the file is read or refused by name."""
    content = image().to_bytes()
    rng = np.random.default_rng(1)
    path = tmp_path / "a.nii"
    for at in range(352):
        for value in (0, 0xFF, 0x7F, int(rng.integers(256))):
            spoilt = bytearray(content)
            spoilt[at] = value
            path.write_bytes(spoilt)
            with warnings.catch_warnings(), contextlib.suppress(ScanError):
                warnings.simplefilter("error")
                found = read_volume(path)
                assert np.isfinite(found.affine).all()
                assert np.isfinite([found.slope, found.inter]).all()
