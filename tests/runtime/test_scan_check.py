"""A network answers whatever it is shown: what is no registered T1 brain is refused, or said."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

import hyperfusion_rt
from hyperfusion_rt.artifact.manifest import Artifact, Manifest, digest_of
from hyperfusion_rt.artifact.scan_reference import FILE
from hyperfusion_rt.data.mni_template import template_files
from hyperfusion_rt.data.raw.landmarks import template_landmarks
from hyperfusion_rt.data.raw.sidecar import sidecar_of
from hyperfusion_rt.data.scan_check import Figures, judge, measure
from hyperfusion_rt.data.volumes import Volume, find_support, read_volume
from hyperfusion_rt.errors import ArtifactError, ScanError


@pytest.fixture(scope="module")
def landmarks():
    return template_landmarks()


@pytest.fixture(scope="module")
def brain(session_cohort):
    """A simulated subject: (voxels float64, affine)."""
    volume = read_volume(sorted((session_cohort / "scans").iterdir())[0])
    return np.asarray(volume.voxels, np.float64), volume.affine


def figures(landmarks, voxels, affine):
    volume = Volume("scan", np.asfortranarray(voxels), affine, 1.0, 0.0)
    return measure(volume, find_support(volume), landmarks)


def test_the_landmarks_lie_in_the_brain_and_around_it(landmarks):
    count = len(landmarks.values)
    assert 2500 < count < 4000
    assert 1000 < len(landmarks.points) - count < 2000
    middle = landmarks.points.mean(0)
    assert np.abs(middle - [0, -17, 10]).max() < 8
    template = read_volume(template_files("raw", "the test")["t1"])
    found = measure(template, find_support(template), landmarks)
    assert found.correlation > 0.85
    assert found.shell < 0.02


def test_every_simulated_subject_is_right(landmarks, session_cohort):
    for path in sorted((session_cohort / "scans").iterdir())[:12]:
        volume = read_volume(path)
        assert judge(path, measure(volume, find_support(volume), landmarks)) == []


@pytest.mark.parametrize("change", ["times 3 plus 1000", "minus 1024", "NaN outside"])
def test_figures_do_not_depend_on_how_a_scan_is_stored(landmarks, brain, change):
    voxels, affine = brain
    other = {
        "times 3 plus 1000": 3 * voxels + 1000,
        "minus 1024": (voxels - 1024).astype(np.int16),
        "NaN outside": np.where(voxels == 0, np.nan, voxels),
    }[change]
    first, second = figures(landmarks, voxels, affine), figures(landmarks, other, affine)
    for name in ("correlation", "shell", "contrast"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), abs=1e-4)


def moved(affine, by):
    found = affine.copy()
    found[:3, 3] += by
    return found


def wrong(kind, voxels, affine):
    """(voxels, affine) of a scan that is not what it must be."""
    away = ndimage.distance_transform_edt(voxels == 0)
    if kind == "25 mm away":
        return voxels, moved(affine, [0, 25, 0])
    if kind == "upside down":
        return voxels, np.diag([1.0, 1, -1, 1]) @ affine
    if kind == "inverted":
        return np.where(voxels > 0, voxels.max() + 1 - voxels, 0), affine
    if kind == "labels":
        return np.rint(5 * voxels / voxels.max()) * (voxels.size % 7 + 3) % 5, affine
    if kind == "skull":
        return np.where((away > 2) & (away < 8), voxels.max(), voxels), affine
    if kind == "mask":
        return (voxels > 0) * 1.0, affine
    assert kind == "noise"
    return np.random.default_rng(0).normal(500, 100, voxels.shape) * (voxels > 0), affine


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("25 mm away", "scan-not-in-template-space"),
        ("upside down", "scan-not-in-template-space"),
        ("inverted", "scan-not-in-template-space"),
        ("labels", "scan-not-in-template-space"),
        ("noise", "scan-not-in-template-space"),
        ("skull", "scan-not-stripped"),
        ("mask", "scan-not-in-template-space"),
    ],
)
def test_what_is_no_registered_brain_is_refused(landmarks, brain, kind, code):
    found = figures(landmarks, *wrong(kind, *brain))
    with pytest.raises(ScanError) as caught:
        judge("scans/S1.nii.gz", found)
    assert caught.value.code == code
    assert "scans/S1.nii.gz: " in str(caught.value)
    assert judge("scans/S1.nii.gz", found, "warn")  # predicted, but not in silence


@pytest.mark.parametrize(
    ("values", "odd", "refused"),
    [
        ((0.8, 0.0, 0.2), None, None),
        ((0.55, 0.0, 0.2), "correlation with the template is 0.55", None),
        ((0.49, 0.0, 0.2), "0.49", "scan-not-in-template-space"),
        ((0.8, 0.2, 0.2), "20% of a shell", None),
        ((0.8, 0.31, 0.2), "31%", "scan-not-stripped"),
        ((0.8, 0.0, 0.1), "0.10 of the mean", None),
        ((0.8, 0.0, 0.66), "0.66", "scan-contrast"),
        ((0.8, 0.0, None), None, None),
    ],
)
def test_levels(values, odd, refused):
    found = Figures(*values)
    warned = judge("x", found, "warn")
    assert len(warned) == (odd is not None)
    assert odd is None or odd in warned[0]
    if refused is None:
        assert judge("x", found) == warned
    else:
        with pytest.raises(ScanError, match="set `scan_checks` to warn") as caught:
            judge("x", found)
        assert caught.value.code == refused


def rewrite(path, change):
    image = nib.load(path)
    voxels, affine = change(np.asarray(image.dataobj, np.float64), image.affine)
    path.unlink()
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), path)


def test_a_cohort_with_wrong_scans(cohort):
    scans = sorted((cohort / "scans").iterdir())[:4]
    rewrite(scans[0], lambda v, a: (v, moved(a, [0, 25, 0])))
    rewrite(scans[1], lambda v, a: (v + 1, a))
    rewrite(scans[2], lambda v, a: (v, a))
    sidecar_of(scans[2]).write_text(json.dumps({"transform_maps": "x", "warnings": ["r 0.7"]}))
    # Another program's file beside a scan says nothing.
    sidecar_of(scans[3]).write_text(json.dumps({"warnings": ["x"]}))
    before = {
        p.subject: p
        for p in hyperfusion_rt.load(cohort / "base.hfrt").predict(scans, cohort / "data.csv")
        if p.scan
    }
    first, second, third, fourth = (before[path.name.removesuffix(".nii.gz")] for path in scans)
    assert (first.status, first.code) == ("error", "scan-not-in-template-space")
    assert "hfrt preprocess" in first.reason
    assert second.status == third.status == fourth.status == "ok"
    assert "when it was registered: r 0.7" in third.warnings
    assert not any("registered" in text for text in (*second.warnings, *fourth.warnings))
    anyway = hyperfusion_rt.load(cohort / "base.hfrt", scan_checks="warn")
    (found,) = [p for p in anyway.predict(scans[0], cohort / "data.csv") if p.scan]
    assert found.status == "ok"
    assert any("does not look like" in text for text in found.warnings)


def test_a_refusal_does_not_hide_in_the_feature_cache(cohort):
    scan = sorted((cohort / "scans").iterdir())[0]
    rewrite(scan, lambda v, a: (v, moved(a, [0, 25, 0])))

    def status(checks):
        predictor = hyperfusion_rt.load(
            cohort / "base.hfrt", scan_checks=checks, feature_cache=cohort / "cache"
        )
        (found,) = [p for p in predictor.predict(scan, cohort / "data.csv") if p.scan]
        return found.status, bool(found.warnings)

    assert status("warn") == ("ok", True)
    assert status("refuse") == ("error", False)
    assert status("warn") == ("ok", True)


def test_the_artifact_carries_what_scans_are_compared_with(session_artifact, tmp_path):
    artifact = Artifact.open(session_artifact)
    reference = artifact.reference()
    assert reference.means.shape[0] == len(reference.boxes) == 2
    for usual in reference.boxes:
        assert 0.3 < usual.fill.median < 1
        assert 0.05 < usual.contrast.median < 0.5
        assert usual.correlation.median > 0.5
    copy = shutil.copytree(session_artifact, tmp_path / "a.hfrt")
    content = bytearray((copy / FILE).read_bytes())
    content[-1] ^= 1
    (copy / FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match="was changed"):
        hyperfusion_rt.load(copy)
    (copy / FILE).unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        hyperfusion_rt.load(copy)


def test_an_older_artifact_keeps_its_rule_and_says_so(cohort):
    folder = cohort / "base.hfrt"
    manifest = Artifact.open(folder).manifest
    older = manifest.preprocessing.model_copy(update={"normalisation": "zscore-nonzero"})
    manifest = manifest.model_copy(
        update={"format_version": 3, "preprocessing": older, "scan_reference": None}
    )
    content = manifest.model_dump(mode="json")
    del content["scan_reference"]  # which the format did not have
    for member in content["members"]:
        for column in member["columns"]:
            column.pop("unseen", None)
    content["checksum"] = digest_of(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    assert isinstance(Artifact.open(folder).manifest, Manifest)
    predictor = hyperfusion_rt.load(folder)
    assert "only voxels of exactly 0" in predictor.notes[-2]
    assert "not checked" in predictor.notes[-1]
    scan = sorted((cohort / "scans").iterdir())[0]

    def predicted():
        (found,) = [p for p in predictor.predict(scan, cohort / "data.csv") if p.scan]
        return np.array(found.values)

    first = predicted()
    rewrite(scan, lambda v, a: (v + 1, a))
    assert np.abs(predicted() - first).max() > 1e-4  # its rule, with its fault


def test_a_scan_without_a_picture_is_called_so(cohort):
    """Rather than no brain at the place that its header says."""
    scans = sorted((cohort / "scans").iterdir())
    spoilt = {
        "scan-not-finite": lambda v: np.where(v > 0, np.nan, v),
        "scan-constant": lambda v: np.full_like(v, 7),
    }
    for change, scan in zip(spoilt.values(), scans, strict=False):
        image = nib.load(scan)
        voxels = change(np.asarray(image.dataobj, np.float32))
        scan.unlink()
        nib.save(nib.Nifti1Image(voxels, image.affine), scan)
    predictor = hyperfusion_rt.load(cohort / "base.hfrt", engine="native", threads=1)
    found = {p.scan: p for p in predictor.predict(cohort / "scans", cohort / "data.csv")}
    for code, scan in zip(spoilt, scans, strict=False):
        assert found[scan].code == code
