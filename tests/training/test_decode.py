"""A cohort's scans are decoded once, by one process or by several that share them."""

import csv
import json
import os
import runpy
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hyperfusion_rt.config import Box, Preprocessing, load_config
from hyperfusion_rt.data import volume_cache
from hyperfusion_rt.data.volume_cache import Figures, VolumeCache
from hyperfusion_rt.errors import ScanError
from hyperfusion_rt.training.dataset import gather, inputs_of, splits_csv
from hyperfusion_rt.training.decode import ALONE, Share, decode
from hyperfusion_rt.training.run_folder import Run

SMALL = Preprocessing(boxes=(Box(name="all", center=(0, 0, 0)),), shape=(6, 6, 6), spacing=1.0)
STUDY = """\
preset: ad-small
scan_checks: "off"
preprocessing:
  boxes: [{name: all, center: [0, 0, 0]}]
  shape: [6, 6, 6]
  spacing: 1.0
training: {parts: 4}
tabular:
  features: [{name: AGE, kind: numeric}]
  stratify: []
"""


def save(path, seed):
    affine = np.eye(4)
    affine[:3, 3] = -4
    voxels = np.random.default_rng(seed).integers(1, 99, (9, 9, 9)).astype(np.int16)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, 4)
    nib.save(image, path)


def write_table(root, subjects):
    with open(root / "data.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "AGE", "DX"])
        for i, subject in enumerate(subjects):
            writer.writerow([subject, 60 + 7 * i % 25 + i / 10, ("CN", "MCI", "AD")[i % 3]])
    (root / "hfrt.yaml").write_text(STUDY)


@pytest.fixture
def study(tmp_path):
    """24 usable scans, one that is cut, and a table of all."""
    root = tmp_path / "study"
    (root / "scans").mkdir(parents=True)
    subjects = [f"S{i:02d}" for i in range(25)]
    for seed, subject in enumerate(subjects):
        save(root / "scans" / f"{subject}.nii", seed)
    os.truncate(root / "scans" / "S07.nii", 900)
    write_table(root, subjects)
    return root


@pytest.fixture
def decoded(monkeypatch):
    """The names of the scans that are decoded."""
    names, read_volume = [], volume_cache.read_volume

    def load(path, preprocessing):
        names.append(path.name)
        return read_volume(path, preprocessing=preprocessing)

    monkeypatch.setattr(volume_cache, "read_volume", load)
    return names


def together(folders, scans, count, local_count):
    """What each of `count` processes finds, `local_count` on a machine; its folder each."""
    barrier = threading.Barrier(count, timeout=60)
    shares = [
        Share(i, count, i % local_count, local_count, lambda: barrier.wait() and None)
        for i in range(count)
    ]
    with ThreadPoolExecutor(count) as pool:
        return list(
            pool.map(
                lambda share: decode(
                    VolumeCache(folders[share.index // local_count], SMALL), scans, share
                ),
                shares,
            )
        )


def said(found):
    return [str(one) if isinstance(one, ScanError) else one.content for one in found]


@pytest.mark.parametrize("machines", [1, 2], ids=["shared folder", "a folder each"])
def test_several_processes_share_what_is_to_be_decoded(study, tmp_path, decoded, machines):
    scans = sorted((study / "scans").iterdir())
    expected = said(decode(VolumeCache(tmp_path / "alone", SMALL), scans))
    assert sum("S07.nii" in one for one in expected) == 1
    decoded.clear()
    folders = [tmp_path / f"cache-{i if machines == 2 else 0}" for i in range(2)]
    for found in together(folders, scans, 4, 2):
        assert said(found) == expected
    # Each scan once in each folder, the one that cannot be used, too.
    assert sorted(decoded) == sorted(machines * [scan.name for scan in scans])
    decoded.clear()
    for found in together(folders, scans, 4, 2):
        assert said(found) == expected
    assert decoded == []


def test_a_fault_that_may_pass_each_process_meets_itself(study, tmp_path, decoded):
    scans = [*sorted((study / "scans").iterdir())[:4], study / "scans" / "gone.nii"]
    for found in together([tmp_path / "c"], scans, 3, 3):
        assert [isinstance(one, Figures) for one in found] == [True] * 4 + [False]
        assert "gone.nii: cannot be read" in str(found[-1])
    assert {name: decoded.count(name) for name in decoded if name != "gone.nii"} == {
        scan.name: 1 for scan in scans[:4]
    }


def test_the_progress_counts_what_is_there_as_done(study, tmp_path):
    scans, cache = sorted((study / "scans").iterdir()), VolumeCache(tmp_path / "c", SMALL)
    steps = []
    decode(cache, scans[:5], ALONE, lambda *step: steps.append(step))
    assert steps == [(i, 5) for i in range(1, 6)]
    steps.clear()
    decode(VolumeCache(tmp_path / "c", SMALL), scans[:7], on_scan=lambda *s: steps.append(s))
    assert steps == [(5, 7), (6, 7), (7, 7)]


def test_gather_keeps_decoded_scans_where_it_is_told(study, tmp_path, decoded):
    config = load_config(study / "hfrt.yaml")
    here = gather(config, study)
    assert len(here.cases) == 24
    assert [left.code for left in here.left_out] == ["scan-truncated"]
    assert len(decoded) == 25
    decoded.clear()
    for again in (gather(config, study), gather(config, study, share=replace(ALONE, count=1))):
        np.testing.assert_array_equal(again.images(range(24)), here.images(range(24)))
        assert again.check == here.check
        assert inputs_of(again, config) == inputs_of(here, config)
    assert decoded == []
    there = gather(config, study, cache=tmp_path / "there", cache_limit=10 * 4096)
    assert len(decoded) == 25
    assert "15 of 25 scans do not fit into `cache_limit`" in there.check.notes[-1]
    np.testing.assert_array_equal(there.images(range(24)), here.images(range(24)))
    assert splits_csv(there, config, study) == splits_csv(here, config, study)
    # Another setting decodes into another folder, and says what else lies there.
    other = load_config(study / "hfrt.yaml", {"preprocessing": {"spacing": 0.9}})
    decoded.clear()
    note = gather(other, study).check.notes[-1]
    assert len(decoded) == 25
    assert f"holds boxes of other settings, which are not used here: {here.cache.setting}" in note


def test_one_image_in_many_places_is_one_short_line(study):
    first = (study / "scans" / "S00.nii").read_bytes()
    for i in range(10, 25):
        (study / "scans" / f"S{i}.nii").write_bytes(first)
    found = gather(load_config(study / "hfrt.yaml"), study).check.findings
    (text,) = [finding.text for finding in found if "the same image" in finding.text]
    assert "S00 = S10 = S11" in text
    assert "S18 and 6 more. Is a file misplaced" in text


def test_a_run_knows_its_cache(tmp_path, study):
    run = Run(tmp_path, load_config(study / "hfrt.yaml"))
    assert run.cache == (None, None)
    run.write_study(study)
    assert json.loads((tmp_path / "study.json").read_text()) == {"root": str(study)}
    assert (run.study, run.cache) == (study, (None, None))
    run.write_study(study, tmp_path / "c", 4096)
    assert (run.study, run.cache) == (study, (tmp_path / "c", 4096))


@pytest.mark.slow
def test_40_000_scans_are_looked_up_in_seconds(tmp_path):
    """Each step in a process of its own; seconds of the processor, which may be a busy one."""
    benchmark = Path(__file__).parents[2] / "benchmarks" / "cache.py"
    make, root = runpy.run_path(str(benchmark))["make_study"], tmp_path / "study"
    make(root, 40_000)

    def run(command):
        words = [sys.executable, str(benchmark), command, str(root)]
        return json.loads(subprocess.run(words, check=True, capture_output=True).stdout)

    assert run("start")["cases"] == 40_000
    found = run("ask")
    assert (found["cases"], found["missing"]) == (40_000, 0)
    assert found["processor"] < 6
