"""A scan is decoded once, and again when it has changed; nothing that is damaged is used."""

import errno
import json
import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from hyperfusion_rt.config import Box, Preprocessing
from hyperfusion_rt.data import volume_cache, volume_store
from hyperfusion_rt.data.volume_cache import VolumeCache, content_key
from hyperfusion_rt.data.volumes import load_boxes
from hyperfusion_rt.errors import HyperFusionError, ScanError

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


def only(cache, ending):
    """The one file of the cache's folder that ends so."""
    (found,) = cache.store.folder.glob(f"*{ending}")
    return found


def flip(path, at):
    """Change a byte in the middle of a file, and nothing else."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def kept(tmp_path):
    """Two scans, their cache, and the boxes of the second."""
    scans, cache = (
        [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"],
        VolumeCache(tmp_path / "c", SMALL),
    )
    for seed, scan in enumerate(scans):
        save(scan, seed)
    good = [np.array(cache.get(scan)) for scan in scans]
    return scans, cache, good[1]


@pytest.fixture
def no_decoding(monkeypatch):
    """Call it, and whatever decodes a scan fails."""
    return lambda: monkeypatch.setattr(volume_cache, "read_volume", None)


SPOILT = {
    "cut": lambda path: os.truncate(path, path.stat().st_size - 500),
    "cut to a few bytes": lambda path: os.truncate(path, 9),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"something else altogether"),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit": lambda path: flip(path, path.stat().st_size - 100),
}


@pytest.mark.parametrize("again", [True, False], ids=["same process", "another"])
@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("ending", [".bin", ".index"])
def test_what_is_spoilt_is_made_again(kept, ending, how, again):
    scans, cache, good = kept
    SPOILT[how](only(cache, ending))
    # A process that has compared a checksum does so no more: it looks whether the file was cut.
    used = cache if again and how not in ("zeros", "one bit") else VolumeCache(cache.folder, SMALL)
    np.testing.assert_array_equal(used.get(scans[1]), good)
    np.testing.assert_array_equal(VolumeCache(cache.folder, SMALL).get(scans[1]), good)
    assert used.figures(scans[1]) == cache.figures(scans[1])


def test_a_kill_loses_what_was_being_written_and_no_more(kept, no_decoding):
    scans, cache, good = kept
    index, shard = only(cache, ".index"), only(cache, ".bin")
    whole = index.read_bytes()
    first = whole.index(b"\n") + 1
    # The boxes were written, the line was not, or a part of it.
    for end in (first, first + 1, len(whole) - 1):
        index.write_bytes(whole[:end])
        found = VolumeCache(cache.folder, SMALL)
        assert not found.lacks(scans[0])
        assert found.lacks(scans[1])
    # The line was written; the disk lost the boxes.
    index.write_bytes(whole)
    os.truncate(shard, 4096 + 10)
    found = VolumeCache(cache.folder, SMALL)
    assert found.lacks(scans[1])
    np.testing.assert_array_equal(found.get(scans[1]), good)
    no_decoding()
    np.testing.assert_array_equal(VolumeCache(cache.folder, SMALL).get(scans[1]), good)


def test_several_at_once_do_not_disturb_each_other(tmp_path, no_decoding):
    scan = tmp_path / "a.nii.gz"
    save(scan, 0)
    caches = [VolumeCache(tmp_path / "cache", SMALL) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = [np.array(boxes) for boxes in pool.map(lambda cache: cache.get(scan), caches)]
    assert all((boxes == found[0]).all() for boxes in found)
    assert len({p.name for p in caches[0].store.folder.glob("*.index")}) == 8
    no_decoding()
    np.testing.assert_array_equal(VolumeCache(tmp_path / "cache", SMALL).get(scan), found[0])


def test_many_threads_of_one_process_and_several_shards(tmp_path, monkeypatch, no_decoding):
    monkeypatch.setattr(volume_store, "_SHARD", 3 * 4096)
    monkeypatch.setattr(volume_store, "_SYNC", 1)
    scans = [tmp_path / f"{i}.nii" for i in range(8)]
    for seed, scan in enumerate(scans):
        save(scan, seed)
    cache = VolumeCache(tmp_path / "cache", SMALL)
    with ThreadPoolExecutor(8) as pool:
        found = [np.array(boxes) for boxes in pool.map(cache.get, scans)]
    assert len(list(cache.store.folder.glob("*.bin"))) == 3
    no_decoding()
    other = VolumeCache(tmp_path / "cache", SMALL)
    for scan, boxes in zip(scans, found, strict=True):
        np.testing.assert_array_equal(other.get(scan), boxes)
        assert not other.get(scan).flags.writeable
    # Another process opens it itself.
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(other)).get(scans[3]), found[3])


def test_a_forked_process_writes_files_of_its_own(kept, tmp_path):
    _, cache, _ = kept
    save(tmp_path / "d.nii", 7)
    process = os.fork()
    if process == 0:
        cache.get(tmp_path / "d.nii")
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    cache.refresh()
    assert not cache.lacks(tmp_path / "d.nii")
    assert len(list(cache.store.folder.glob("*.index"))) == 2


def test_what_a_scan_is_like_is_kept_with_it(tmp_path, monkeypatch):
    scan = tmp_path / "a.nii.gz"
    save(scan, 0)
    boxes = load_boxes(scan, SMALL)
    said = replace(boxes, warnings=("all box: 80% inside the scan",), contrast=(float("inf"),))
    monkeypatch.setattr(VolumeCache, "_boxes", lambda cache, volume: said)
    VolumeCache(tmp_path / "cache", SMALL).get(scan)
    monkeypatch.setattr(VolumeCache, "_boxes", None)
    figures = VolumeCache(tmp_path / "cache", SMALL).figures(scan)
    assert figures.warnings == said.warnings
    assert (figures.fill, figures.contrast) == (boxes.fill, (float("inf"),))


def test_another_program_decodes_anew_and_says_what_lies_there(tmp_path, monkeypatch):
    scan = tmp_path / "a.nii.gz"
    save(scan, 0)
    first = VolumeCache(tmp_path / "c", SMALL)
    first.get(scan)
    assert first.notes([scan]) == []
    others = [SMALL.model_copy(update={"spacing": 1.5})]
    monkeypatch.setattr(volume_cache, "_code", lambda: "another")
    for other in (SMALL, *others):
        cache = VolumeCache(tmp_path / "c", other)
        assert cache.lacks(scan)
        assert cache.name(scan) != first.name(scan)
        (note,) = cache.notes([scan])
        assert f"{first.setting} 0.00 GB; 0.00 GB in all. Delete the folders" in note
    about = json.loads((first.store.folder / "setting.json").read_text())
    assert about["preprocessing"]["shape"] == [6, 6, 6]
    (tmp_path / "c" / "0123.npy").touch()
    assert "1 files of an older version, 0123.npy say, are not used" in first.notes([scan])[-1]


def test_a_study_that_was_moved_is_found_again_and_a_copy_is_decoded(tmp_path, no_decoding):
    study = tmp_path / "study"
    study.mkdir()
    save(study / "a.nii", 0)
    (study / "bad.nii").write_bytes((study / "a.nii").read_bytes()[:900])
    old = time.time() - 60
    cache = VolumeCache(study / "cache", SMALL)
    good = np.array(cache.get(study / "a.nii"))
    with pytest.raises(ScanError, match="study/bad"):
        cache.get(study / "bad.nii")
    study.rename(tmp_path / "moved")
    moved = VolumeCache(tmp_path / "moved" / "cache", SMALL)
    no_decoding()
    np.testing.assert_array_equal(moved.get(tmp_path / "moved" / "a.nii"), good)
    with pytest.raises(ScanError, match="moved/bad") as error:
        moved.get(tmp_path / "moved" / "bad.nii")
    assert error.value.code == "scan-truncated"
    shutil.copy2(tmp_path / "moved" / "a.nii", tmp_path / "a.nii")
    os.utime(tmp_path / "a.nii", (old, old))
    assert moved.lacks(tmp_path / "a.nii")


def test_scans_of_one_name_and_stamp_are_not_confused(tmp_path, monkeypatch, no_decoding):
    """As a file system may show them that makes up inodes and rounds times."""
    monkeypatch.setattr(volume_cache, "stamp", lambda path: "1-1-1-1")
    scans = [tmp_path / name / "T1.nii" for name in ("S1", "S2")]
    for seed, scan in enumerate(scans):
        scan.parent.mkdir()
        save(scan, seed)
    good = [np.array(VolumeCache(tmp_path / "c", SMALL).get(scan)) for scan in scans]
    assert (good[0] != good[1]).any()
    (tmp_path / "link").symlink_to(tmp_path / "S2")
    (tmp_path / "link.nii").symlink_to(scans[0])
    no_decoding()
    cache = VolumeCache(tmp_path / "c", SMALL)
    for scan, boxes in [*zip(scans, good, strict=True), (tmp_path / "link" / "T1.nii", good[1])]:
        np.testing.assert_array_equal(cache.get(scan), boxes)
    np.testing.assert_array_equal(cache.get(tmp_path / "link.nii"), good[0])


def test_faults_are_kept_unless_they_may_pass(tmp_path, monkeypatch):
    bad, gone = tmp_path / "bad.nii", tmp_path / "gone.nii"
    save(bad, 0)
    bad.write_bytes(bad.read_bytes()[:900])
    cache, decoded = VolumeCache(tmp_path / "cache", SMALL), []
    read_volume = volume_cache.read_volume

    def load(path, preprocessing):
        decoded.append(path.name)
        return read_volume(path, preprocessing=preprocessing)

    monkeypatch.setattr(volume_cache, "read_volume", load)
    for another in (False, True):
        each = VolumeCache(cache.folder, SMALL) if another else cache
        for scan in (bad, gone):
            for read in (each.get, each.figures, each.fill):
                with pytest.raises(ScanError, match=scan.name):
                    read(scan)
    assert decoded == ["bad.nii", *["gone.nii"] * 6]
    save(bad, 0)
    save(gone, 1)
    assert cache.get(bad).shape == cache.get(gone).shape

    def broken(path, preprocessing):
        raise ScanError(f"{path}: the network is down", code="scan-read-failed")

    monkeypatch.setattr(volume_cache, "read_volume", broken)
    save(bad, 2)
    with pytest.raises(ScanError, match="down"):
        cache.get(bad)
    monkeypatch.setattr(volume_cache, "read_volume", read_volume)
    assert VolumeCache(cache.folder, SMALL).get(bad).shape == cache.get(gone).shape


def test_a_scan_that_changes_while_it_is_decoded_is_not_kept(tmp_path, monkeypatch):
    scan, cache = tmp_path / "a.nii", VolumeCache(tmp_path / "cache", SMALL)
    save(scan, 0)
    read_volume = volume_cache.read_volume

    def load(path, preprocessing):
        found = read_volume(path, preprocessing=preprocessing)
        save(scan, 1)
        return found

    monkeypatch.setattr(volume_cache, "read_volume", load)
    cache.get(scan)
    monkeypatch.setattr(volume_cache, "read_volume", read_volume)
    expected = load_boxes(scan, SMALL).images
    np.testing.assert_array_equal(VolumeCache(cache.folder, SMALL).get(scan), expected)


def test_the_content_is_read_only_where_the_stamp_says_too_little(tmp_path, monkeypatch):
    scan = tmp_path / "a.nii"
    save(scan, 0)
    key = content_key(scan)
    cache = VolumeCache(tmp_path / "cache", SMALL)
    later = time.time() + 60
    with monkeypatch.context() as patch:
        patch.setattr(volume_cache.time, "time", lambda: later)
        cache.get(scan)
    monkeypatch.setattr(volume_cache, "content_key", None)
    assert VolumeCache(tmp_path / "cache", SMALL).content(scan) == (key,)
    with monkeypatch.context() as patch:
        patch.setattr(volume_cache, "_SETTLED", 120.0)
        with pytest.raises(TypeError):
            VolumeCache(tmp_path / "cache", SMALL).content(scan)


def test_a_limit_keeps_the_first_and_decodes_the_others_each_time(tmp_path, monkeypatch):
    scans = [tmp_path / f"{i}.nii" for i in range(4)]
    for seed, scan in enumerate(scans):
        save(scan, seed)
    # Two boxes; each takes a page.
    cache = VolumeCache(tmp_path / "cache", SMALL, limit=3 * 4096 - 1)
    assert cache.reserve(scans) == scans
    for scan in scans:
        cache.fill(scan)
    (note,) = cache.notes(scans)
    assert note.startswith("2 of 4 scans do not fit into `cache_limit`")
    again = VolumeCache(tmp_path / "cache", SMALL, limit=3 * 4096 - 1)
    assert again.reserve(scans) == []
    index = only(cache, ".index").read_bytes()
    decoded = []
    read_volume = volume_cache.read_volume
    monkeypatch.setattr(
        volume_cache,
        "read_volume",
        lambda path, preprocessing: (
            decoded.append(path.name),
            read_volume(path, preprocessing=preprocessing),
        )[1],
    )
    for scan in scans:
        again.figures(scan)
    assert decoded == []
    for _ in range(2):
        for scan in scans:
            np.testing.assert_array_equal(again.get(scan), load_boxes(scan, SMALL).images)
    assert decoded == ["2.nii", "3.nii"] * 2
    assert only(cache, ".index").read_bytes() == index
    # Without the limit the rest is kept, too.
    free = VolumeCache(tmp_path / "cache", SMALL)
    assert free.reserve(scans) == scans[2:]
    for scan in scans:
        free.get(scan)
    assert free.notes(scans) == []
    assert VolumeCache(tmp_path / "cache", SMALL).reserve(scans) == []


def test_a_disk_without_room_is_told_before(kept, tmp_path, monkeypatch):
    scans, cache, _ = kept
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert cache.reserve(scans) == []
    save(tmp_path / "d.nii", 7)
    with pytest.raises(HyperFusionError, match="boxes of 1 scans take") as error:
        cache.reserve([*scans, tmp_path / "d.nii"])
    assert error.value.code == "output-cannot-be-written"


def test_a_disk_that_fills_up_keeps_what_was_written(kept, tmp_path, monkeypatch, no_decoding):
    scans, cache, good = kept
    save(tmp_path / "d.nii", 7)
    write = os.pwrite

    def full(handle, content, at):
        if at == 2 * 4096:
            write(handle, content[:100], at)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, content, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(HyperFusionError, match="No space left on device; what was kept") as error:
        cache.get(tmp_path / "d.nii")
    assert error.value.parameter == "cache"
    assert only(cache, ".bin").stat().st_size == 2 * 4096
    monkeypatch.setattr(os, "pwrite", write)
    expected = np.array(cache.get(tmp_path / "d.nii"))
    no_decoding()
    for each in (cache, VolumeCache(cache.folder, SMALL)):
        np.testing.assert_array_equal(each.get(scans[1]), good)
        np.testing.assert_array_equal(each.get(tmp_path / "d.nii"), expected)


def test_a_folder_that_cannot_be_written_serves_what_it_has(kept, tmp_path, monkeypatch):
    scans, cache, good = kept

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(volume_store._Writer, "_new", refuse)
    other = VolumeCache(cache.folder, SMALL)
    assert other.reserve(scans) == []
    np.testing.assert_array_equal(other.get(scans[1]), good)
    save(tmp_path / "d.nii", 7)
    with pytest.raises(HyperFusionError, match="Permission denied; what was kept") as error:
        other.get(tmp_path / "d.nii")
    assert error.value.code == "output-cannot-be-written"
    (tmp_path / "d.nii").write_bytes(b"no scan")
    with pytest.raises(ScanError):
        other.get(tmp_path / "d.nii")


def test_two_files_of_one_case(tmp_path):
    """The names and the order count."""
    two = SMALL.model_copy(
        update={"channels": tuple(SMALL.channels[0].model_copy(update={"name": n}) for n in "ab")}
    )
    files = (tmp_path / "a.nii", tmp_path / "b.nii")
    for seed, file in enumerate(files):
        save(file, seed)
    cache = VolumeCache(tmp_path / "cache", two)
    there, back = np.array(cache.get(files)), np.array(cache.get(files[::-1]))
    np.testing.assert_array_equal(there[:, ::-1], back)
    assert cache.content(files) == cache.content(files[::-1])[::-1]
    save(files[1], 2)
    assert (VolumeCache(tmp_path / "cache", two).get(files) != there).any()
