"""A scan is decoded once, and again when it has changed."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from hyperfusion_rt.config import Box, Preprocessing
from hyperfusion_rt.data import volume_cache
from hyperfusion_rt.data.volume_cache import VolumeCache
from hyperfusion_rt.data.volumes import load_boxes
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
        return read_volume(path, preprocessing=preprocessing)

    read_volume = volume_cache.read_volume
    monkeypatch.setattr(volume_cache, "read_volume", load)
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


def test_another_scan_of_the_same_size_and_time_is_decoded_anew(tmp_path, monkeypatch):
    """Also where a file system keeps no times, or too coarse ones."""
    monkeypatch.setattr(volume_cache, "stamp", lambda path: "same")
    for ending in ("nii", "nii.gz"):
        scan = tmp_path / f"a.{ending}"
        save(scan, 0)
        first = np.array(VolumeCache(tmp_path / "cache", SMALL).get(scan))
        save(scan, 1)
        assert (np.array(VolumeCache(tmp_path / "cache", SMALL).get(scan)) != first).any()


def test_a_scan_that_was_replaced_with_its_time_kept_is_decoded_anew(tmp_path):
    scan, other = tmp_path / "a.nii", tmp_path / "b.nii"
    save(scan, 0)
    save(other, 1)
    os.utime(scan, ns=(1, 1))
    cache = VolumeCache(tmp_path / "cache", SMALL)
    first = np.array(cache.get(scan))
    scan.write_bytes(other.read_bytes())
    os.utime(scan, ns=(1, 1))
    assert (np.array(cache.get(scan)) != first).any()


def foreign(path):
    np.save(path, np.zeros((3, 3)))


SPOILT = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "cut header": lambda path: path.write_bytes(path.read_bytes()[:9]),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"something else altogether"),
    "zip": lambda path: path.write_bytes(b"PK\x03\x04 and more"),
    "other shape": foreign,
    "other type": lambda path: np.save(path, np.zeros((1, 1, 6, 6, 6))),
    "objects": lambda path: np.save(path, np.array([{}]), allow_pickle=True),
    "strange header": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x04\x00{'(}"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_file_is_made_again(tmp_path, how):
    scan, cache = tmp_path / "a.nii.gz", VolumeCache(tmp_path / "cache", SMALL)
    save(scan, 0)
    good = np.array(cache.get(scan))
    SPOILT[how](cache.path(scan))
    np.testing.assert_array_equal(cache.get(scan), good)
    np.testing.assert_array_equal(np.load(cache.path(scan)), good)


def test_several_at_once_do_not_disturb_each_other(tmp_path):
    scan = tmp_path / "a.nii.gz"
    save(scan, 0)
    caches = [VolumeCache(tmp_path / "cache", SMALL) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = [np.array(boxes) for boxes in pool.map(lambda cache: cache.get(scan), caches)]
    assert all((boxes == found[0]).all() for boxes in found)
    assert {p.suffix for p in (tmp_path / "cache").iterdir()} == {".npy", ".json"}
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_what_a_scan_is_like_is_kept_with_it(tmp_path, monkeypatch):
    scan = tmp_path / "a.nii.gz"
    save(scan, 0)
    boxes = load_boxes(scan, SMALL)
    said = replace(boxes, warnings=("all box: 80% inside the scan",))
    monkeypatch.setattr(VolumeCache, "_boxes", lambda cache, volume: said)
    VolumeCache(tmp_path / "cache", SMALL).get(scan)
    monkeypatch.setattr(VolumeCache, "_boxes", None)
    cache = VolumeCache(tmp_path / "cache", SMALL)
    figures = cache.figures(scan)
    assert figures.warnings == said.warnings
    assert (figures.fill, figures.contrast) == (boxes.fill, boxes.contrast)
    monkeypatch.setattr(VolumeCache, "_boxes", lambda cache, volume: said)
    for spoil in ("[", "{}", '{"warnings": 1}'):
        cache.path(scan).with_suffix(".json").write_text(spoil)
        assert cache.figures(scan) == figures
    cache.path(scan).with_suffix(".json").unlink()
    assert cache.figures(scan) == figures


def test_another_program_decodes_anew(tmp_path, monkeypatch):
    scan = tmp_path / "a.nii.gz"
    save(scan, 0)
    first = VolumeCache(tmp_path, SMALL).path(scan)
    monkeypatch.setattr(volume_cache, "_code", lambda: "another")
    assert VolumeCache(tmp_path, SMALL).path(scan) != first
