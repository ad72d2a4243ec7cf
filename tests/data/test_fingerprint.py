"""The same image has the same fingerprint, whatever its file; another image has another."""

import gzip
import hashlib
import itertools

import nibabel as nib
import numpy as np
import pytest

from hyperfusion_rt.config import Box, Preprocessing
from hyperfusion_rt.data.fingerprint import TrainingCases, fingerprint
from hyperfusion_rt.data.volume_cache import VolumeCache
from hyperfusion_rt.data.volumes import read_volume

SMALL = Preprocessing(boxes=(Box(name="all", center=(0, 0, 0)),), shape=(6, 6, 6), spacing=1.0)
# Of which only the slices of the box are kept.
OLDER = SMALL.model_copy(update={"normalisation": "zscore-nonzero"})


def voxels(seed=0, shape=(20, 18, 40)):
    return np.random.default_rng(seed).integers(0, 900, shape).astype(np.int16)


def save(path, data, slope=1.0, dtype=None, affine_z=-20):
    affine = np.eye(4)
    affine[:3, 3] = -9, -9, affine_z
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, 4)
    if dtype is not None:
        image.header.set_data_dtype(dtype)
    if slope != 1:
        image.header.set_slope_inter(slope, 0)
    nib.save(image, path)
    return path


def found(path, preprocessing=SMALL):
    return fingerprint(read_volume(path, preprocessing=preprocessing), preprocessing)


@pytest.mark.parametrize("preprocessing", [SMALL, OLDER])
def test_renamed_unpacked_or_packed_again_it_is_the_same(tmp_path, preprocessing):
    first = save(tmp_path / "a.nii.gz", voxels())
    expected = found(first, preprocessing)
    plain = tmp_path / "b.nii"
    plain.write_bytes(gzip.decompress(first.read_bytes()))
    again = tmp_path / "c.nii.gz"
    again.write_bytes(gzip.compress(plain.read_bytes(), 1))
    assert again.read_bytes() != first.read_bytes()
    as_float = save(tmp_path / "d.nii.gz", voxels().astype(np.float32))
    swapped = save(tmp_path / "e.nii.gz", voxels().astype(">i2"), dtype=">i2")
    for path in (plain, again, as_float, swapped):
        assert found(path, preprocessing) == expected, path.name


def test_another_image_is_another(tmp_path):
    expected = found(save(tmp_path / "a.nii.gz", voxels()))
    noisy = voxels() + np.int16(1)
    assert found(save(tmp_path / "b.nii.gz", noisy)) != expected
    assert found(save(tmp_path / "c.nii.gz", voxels(1))) != expected
    assert found(save(tmp_path / "d.nii.gz", voxels(), slope=2.0)) != expected
    # The same numbers in another shape.
    assert found(save(tmp_path / "e.nii.gz", voxels().reshape(18, 20, 40))) != expected
    # A tenth of the voxels.
    few = voxels()
    few[:2] = 0
    assert found(save(tmp_path / "f.nii.gz", few)) != expected


def test_odd_values_have_a_fingerprint(tmp_path):
    data = voxels().astype(np.float32)
    data[::2], data[1::4] = np.nan, np.inf
    huge = data.astype(np.float64)
    huge[3::4] = 1e300
    assert len(found(save(tmp_path / "h.nii", huge))) == 32
    one, other = (save(tmp_path / f"{n}.nii.gz", data) for n in "ab")
    assert found(one) == found(other)
    zeros = np.zeros((9, 9, 9), np.float32)
    positive, negative = save(tmp_path / "p.nii", zeros), save(tmp_path / "n.nii", -zeros)
    assert found(positive) == found(negative)


def test_slices_that_are_not_kept_do_not_count(tmp_path):
    """They are not even unpacked: their memory holds anything."""
    path = save(tmp_path / "a.nii.gz", voxels())
    assert len({found(path, OLDER) for _ in range(5)}) == 1
    outside = voxels()
    outside[:, :, -1] = 7
    assert found(save(tmp_path / "b.nii.gz", outside), OLDER) == found(path, OLDER)
    # A box beyond the scan keeps one slice.
    far = save(tmp_path / "c.nii.gz", voxels(), affine_z=400)
    assert found(far, OLDER) == found(far, OLDER)


def test_the_volume_cache_keeps_it_without_decoding_again(tmp_path, monkeypatch):
    import hyperfusion_rt.data.volume_cache as module

    scan = save(tmp_path / "a.nii.gz", voxels())
    cache = VolumeCache(tmp_path / "cache", SMALL)
    assert cache.figures(scan).content == (found(scan),)
    monkeypatch.setattr(module, "read_volume", lambda *_, **__: pytest.fail("decoded again"))
    assert VolumeCache(tmp_path / "cache", SMALL).figures(scan).content == (found(scan),)


def test_cases_of_the_training_are_known_again():
    cases = TrainingCases.of(["sub-01", "Müller", "02", "02"], ["aa", "bb"])
    assert (len(cases.subjects), len(cases.scans)) == (3, 2)
    assert cases.seen("01") == cases.seen("sub-01", ["cc"]) == "id"
    assert cases.seen("Mu\u0308ller") == "id"  # decomposed, as macOS writes it
    assert cases.seen("03", ["bb"]) == cases.seen("03", ["cc", "aa"]) == "scan"
    assert cases.seen("02", ["aa"]) == "both"
    assert cases.seen("1") == cases.seen("", ["cc"]) == cases.seen("aa") == ""
    assert list(cases.subjects) == sorted(cases.subjects)
    kept = TrainingCases.model_validate_json(cases.model_dump_json())
    assert kept.seen("02", ["aa"]) == "both"


def test_the_hashes_are_salted_and_short():
    first, second = (TrainingCases.of(["01"], ["aa"]) for _ in range(2))
    assert first.salt != second.salt
    assert len(bytes.fromhex(first.salt)) == 16
    text = hashlib.sha256(bytes.fromhex(first.salt) + b"01").hexdigest()
    assert first.subjects == (text[:16],)
    everything = [*first.subjects, *first.scans, *second.subjects, *second.scans]
    assert all(a != b for a, b in itertools.combinations(everything, 2))


def test_an_image_of_nearly_one_value_tells_nothing(tmp_path):
    mask = np.zeros((20, 18, 40), np.int16)
    mask[3:5, 4, 7] = 1
    assert found(save(tmp_path / "mask.nii", mask)) == ""
    cases = TrainingCases.of(["01"], ["", "aa"])
    assert len(cases.scans) == 1
    assert cases.seen("02", [""]) == ""
