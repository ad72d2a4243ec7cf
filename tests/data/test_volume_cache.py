"""A scan is decoded once, and again when it has changed."""

import nibabel as nib
import numpy as np
import pytest

from hyperfusion_rt.config import Box, Preprocessing
from hyperfusion_rt.data import volume_cache
from hyperfusion_rt.data.volume_cache import VolumeCache
from hyperfusion_rt.errors import ScanError

SMALL = Preprocessing(boxes=(Box(name="all", center=(0, 0, 0)),), shape=(6, 6, 6), spacing=1.0)


def save(path, seed):
    affine = np.eye(4)
    affine[:3, 3] = -4
    voxels = np.random.default_rng(seed).integers(1, 99, (9, 9, 9)).astype(np.int16)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, 4)
    nib.save(image, path)


def test_a_scan_is_decoded_once_and_again_when_it_changed(tmp_path, monkeypatch):
    decoded = []

    def load(path, preprocessing):
        decoded.append(path)
        return load_boxes(path, preprocessing)

    load_boxes = volume_cache.load_boxes
    monkeypatch.setattr(volume_cache, "load_boxes", load)
    scan, cache = tmp_path / "a.nii.gz", VolumeCache(tmp_path / "cache", SMALL)
    save(scan, 0)
    first = np.array(cache.get(scan))
    np.testing.assert_array_equal(VolumeCache(tmp_path / "cache", SMALL).get(scan), first)
    assert len(decoded) == 1
    save(scan, 1)
    assert (np.array(cache.get(scan)) != first).any()
    other = SMALL.model_copy(update={"spacing": 1.5})
    VolumeCache(tmp_path / "cache", other).get(scan)
    assert len(decoded) == 3


def test_a_scan_that_is_not_there_is_not_kept(tmp_path):
    cache = VolumeCache(tmp_path / "cache", SMALL)
    with pytest.raises(ScanError, match="No such file") as error:
        cache.get(tmp_path / "none.nii.gz")
    assert error.value.code == "scan-unreadable"
    assert not cache.folder.exists()
