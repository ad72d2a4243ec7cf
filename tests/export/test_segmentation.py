"""An imported network that segments: labels on the scan's own grid, volumes in the table."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from hyperfusion_rt import load
from hyperfusion_rt.data.volumes import load_boxes
from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.export.imported import import_network

from .networks import as_onnx, of_a_scan

SHAPE = (20, 24, 20)
MIDDLE = np.array([-0.5, -17.5, 18.5])
NAMES = ("background", "grey", "white")
OPTIONS = {
    "spacing": 8.0, "scan_checks": "off", "normalise": "none", "segmentation": NAMES,
    "engines": ("native", "onnx"),
}  # fmt: skip


class Bands(nn.Module):
    """A score for each band of brightness: the label is which of 0, 50 and 100 is next."""

    def forward(self, image):
        return torch.cat([-0.01 * (image - level) ** 2 for level in (0, 50, 100)], 1)


def save(path, spacing=8.0, size=(28, 32, 28), turned=False):
    """A ball of 100 in a ball of 50, in MNI space; returns voxels and affine."""
    way = np.array([-1, -1, 1] if turned else [1, 1, 1])
    affine = np.diag([*(spacing * way), 1.0])
    affine[:3, 3] = MIDDLE + 0.25 - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    mm = grid @ affine[:3, :3].T + affine[:3, 3] - MIDDLE
    far = np.linalg.norm(mm, axis=-1)
    voxels = np.where(far < 35, 100, np.where(far < 60, 50, 0)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return voxels, affine


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = of_a_scan(tmp_path_factory.mktemp("seg") / "bands.onnx", Bands())
    return import_network(path, **OPTIONS).folder


def labels_of(voxels):
    return np.searchsorted([25, 75], voxels)


@pytest.mark.parametrize("engine", ["native", "onnx"])
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SRA"])
def test_labels_lie_on_the_scans_own_grid(tmp_path, engine, orientation):
    path = of_a_scan(tmp_path / "bands.onnx", Bands(), (24, 24, 24))
    made = import_network(path, **{**OPTIONS, "orientation": orientation}).folder
    voxels, affine = save(tmp_path / "S1.nii.gz", turned=True)
    found = load(made, engine=engine, threads=1).segment(tmp_path / "S1.nii.gz")
    assert found.names == NAMES
    assert (found.labels.dtype, found.labels.shape) == (np.uint8, voxels.shape)
    np.testing.assert_array_equal(found.labels, labels_of(voxels))
    counts = np.bincount(labels_of(voxels).ravel())[1:]
    np.testing.assert_allclose(found.volumes, counts * 0.512)
    np.testing.assert_allclose(found.grid.affine, affine)


def test_on_another_grid_the_volumes_are_the_balls(artifact, tmp_path):
    save(tmp_path / "S1.nii.gz", spacing=3.0, size=(70, 76, 71))
    found = load(artifact, threads=1).segment(tmp_path / "S1.nii.gz")
    outer, inner = (4 / 3 * np.pi * (r / 10) ** 3 for r in (60, 35))
    np.testing.assert_allclose(found.volumes, [outer - inner, inner], rtol=0.06)


def test_every_night(artifact, tmp_path, hfrt):
    """Table, label maps, resume, shards, report, inspect, as every other artifact."""
    truth = {}
    for name in ("sub-01_ses-1", "sub-02", "sub-03"):
        truth[name], _ = save(tmp_path / f"scans/{name}_T1w.nii.gz")
    (tmp_path / "scans/sub-04_T1w.nii.gz").write_bytes(b"no scan")
    infer = ("infer", "scans", "--artifact", artifact, "--out", "p.csv")
    status, said, _ = hfrt(tmp_path, *infer)
    assert status == 3
    assert "written: p.csv, p.html, p_labels" in said
    head, *rows = (tmp_path / "p.csv").read_text().splitlines()
    assert head.startswith("subject,session,volume_grey,volume_white,")
    sizes = np.bincount(labels_of(truth["sub-02"]).ravel()) * 0.512
    assert [float(x) for x in rows[1].split(",")[2:4]] == pytest.approx(sizes[1:], rel=1e-5)
    first = tmp_path / "p_labels/sub-01/ses-1/anat/sub-01_ses-1_dseg.nii.gz"
    image = nib.load(first)
    np.testing.assert_array_equal(image.dataobj, labels_of(truth["sub-01_ses-1"]))
    assert image.get_data_dtype() == np.uint8
    assert first.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "p_labels/sub-04").exists()
    text = (tmp_path / "p_labels/dseg.tsv").read_text()
    assert text == "index\tname\n0\tbackground\n1\tgrey\n2\twhite\n"
    page = (tmp_path / "p.html").read_text()
    assert "Volumes of the labels" in page
    assert "Labels over the scan" in page

    # What is there stays; a map that is gone is made again; a scan that spoils loses its map.
    first.unlink()
    before = tmp_path / "p_labels/sub-02/anat/sub-02_dseg.nii.gz"
    stamp = before.stat().st_mtime_ns
    (tmp_path / "scans/sub-03_T1w.nii.gz").write_bytes(b"spoilt")
    _, said, _ = hfrt(tmp_path, *infer, "--resume", "--json")
    assert json.loads(said)["taken_over"] == 1
    assert first.exists()
    assert before.stat().st_mtime_ns == stamp
    assert not (tmp_path / "p_labels/sub-03/anat/sub-03_dseg.nii.gz").exists()

    for n in (1, 2):
        hfrt(tmp_path, *infer[:-1], "q.csv", "--shard", f"{n}/2")
    status, _, said = hfrt(tmp_path, "merge", ".", "--out", "q.csv")
    assert status == 3, said
    assert (
        tmp_path / "q_labels/sub-02/anat/sub-02_dseg.nii.gz"
    ).read_bytes() == before.read_bytes()
    status, said, _ = hfrt(tmp_path, "inspect", artifact)
    assert status == 0
    assert "for every voxel one of background, grey, white" in said
    status, said, _ = hfrt(tmp_path, "inspect", artifact, "--card")
    assert "a label for every voxel" in said


def test_a_bids_dataset_without_a_table(artifact, tmp_path, hfrt):
    root = tmp_path / "bids"
    for subject in ("01", "02"):
        save(root / f"sub-{subject}/ses-a/anat/sub-{subject}_ses-a_space-MNI152_T1w.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    for level in ("participant", "group"):
        status, _, said = hfrt(tmp_path, "bids-app", root, "out", level, "--artifact", artifact)
        assert status == 0, said
    assert (tmp_path / "out/sub-01/ses-a/anat/sub-01_ses-a_dseg.nii.gz").is_file()
    assert "volume_grey" in (tmp_path / "out/sub-01/sub-01_sessions.tsv").read_text()
    assert "dseg.nii.gz" in (tmp_path / "out/README.md").read_text()
    status, _, said = hfrt(
        tmp_path, "infer", root, "--artifact", artifact, "--derivative", "d", "--out", "p.csv"
    )
    assert status == 0, said
    assert (tmp_path / "d/sub-02/ses-a/anat/sub-02_ses-a_dseg.nii.gz").is_file()
    shutil.rmtree(root / "sub-02")
    status, _, said = hfrt(
        tmp_path, "infer", root, "--artifact", artifact, "--derivative", "d", "--out", "p.csv"
    )
    assert status == 0, said
    assert not (tmp_path / "d/sub-02").exists()


def test_two_boxes_one_of_them_a_mirror(tmp_path):
    path = of_a_scan(tmp_path / "bands.onnx", Bands(), (6, 10, 6))
    made = import_network(path, **{**OPTIONS, "box": "hippocampi"}).folder
    voxels, _ = save(tmp_path / "S1.nii.gz", size=(28, 32, 28))
    found = load(made, threads=1).segment(tmp_path / "S1.nii.gz")
    inside = found.labels > 0
    assert 0 < inside.sum() < (voxels > 0).sum()
    # The boxes lie between the scan's voxels: at a border brightness is interpolated.
    assert (found.labels[inside] == labels_of(voxels)[inside]).mean() > 0.95


@pytest.mark.parametrize("last", [nn.Identity(), nn.Sigmoid()])
def test_one_channel_is_of_the_second_label(tmp_path, last):
    class Bright(nn.Module):
        def forward(self, image):
            return last((image - 75) / 10)

    path = of_a_scan(tmp_path / "bright.onnx", Bright())
    made = import_network(path, **{**OPTIONS, "segmentation": "rest,bright"}).folder
    voxels, _ = save(tmp_path / "S1.nii.gz")
    found = load(made, threads=1).segment(tmp_path / "S1.nii.gz")
    np.testing.assert_array_equal(found.labels, voxels > 75)


def test_channels_last(tmp_path):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.bands = Bands()

        def forward(self, image):
            return self.bands(image.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)

    path = as_onnx(Last(), (torch.zeros(1, *SHAPE, 1),), tmp_path / "x.onnx", input_names=["scan"])
    made = import_network(path, **OPTIONS)
    assert not made.notes
    voxels, _ = save(tmp_path / "S1.nii.gz")
    found = load(made.folder, threads=1).segment(tmp_path / "S1.nii.gz")
    np.testing.assert_array_equal(found.labels, labels_of(voxels))


class Twice(nn.Module):
    def forward(self, image):
        return nn.functional.max_pool3d(torch.cat([image, image, image], 1), 2)


class Regions(nn.Module):
    def forward(self, image):
        return torch.cat([image, image, image], 1).sigmoid()


@pytest.mark.parametrize(
    ("module", "fields", "message"),
    [
        (Bands(), {"segmentation": "a,b"}, "2 labels, but .* answers 3 channels; name the backg"),
        (Bands(), {"segmentation": "a,a,b"}, "`segmentation`: needs two or more, all different"),
        (Bands(), {"classes": "a,b,c"}, "an answer is a class, labels of voxels, or a number"),
        (Bands(), {"segmentation": ",".join(map(str, range(257)))}, "more than 256 labels"),
        (Twice(), {}, "a segmentation has the image's voxels"),
        (Regions(), {}, "regions that may overlap"),
        (nn.ReLU(), {"segmentation": "a,b"}, "its last operation is relu"),
    ],
)
def test_what_does_not_fit(tmp_path, module, fields, message):
    with pytest.raises(HyperFusionError, match=message):
        import_network(of_a_scan(tmp_path / "x.onnx", module), **{**OPTIONS, **fields})
    assert not (tmp_path / "x.hfrt").exists()


@pytest.mark.parametrize(
    "asked",
    [
        ("evaluate", "ARTIFACT", "scans", "--tabular", "t.csv"),
        ("explain", "scans", "--tabular", "t.csv", "--artifact", "ARTIFACT"),
        ("infer", "scans", "--feature-cache", "kept", "--artifact", "ARTIFACT"),
    ],
)
def test_what_needs_a_class_or_a_number_says_so(artifact, tmp_path, hfrt, asked):
    save(tmp_path / "scans/S1.nii.gz")
    (tmp_path / "t.csv").write_text("subject,segmentation\nS1,1\n")
    words = [artifact if word == "ARTIFACT" else word for word in asked]
    status, _, said = hfrt(tmp_path, *words)
    assert status != 0
    assert "bands: labels voxels (background, grey, white)" in said


def test_label_maps_are_of_networks_that_segment(tmp_path, hfrt):
    module = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
    path = of_a_scan(tmp_path / "mean.onnx", module)
    plain = {**OPTIONS, "segmentation": ()}
    made = import_network(path, **plain).folder
    save(tmp_path / "S1.nii.gz")
    status, _, said = hfrt(tmp_path, "infer", "S1.nii.gz", "--artifact", made, "--label-maps", "x")
    assert status != 0
    assert "mean answers value, and no label for every voxel" in said
    with pytest.raises(HyperFusionError, match="use predict"):
        load(made, threads=1).segment(tmp_path / "S1.nii.gz")


def test_two_ids_of_one_label_are_refused(artifact, tmp_path, hfrt):
    for name in ("a_1", "a1"):
        save(tmp_path / f"scans/{name}.nii.gz")
    status, _, said = hfrt(tmp_path, "infer", "scans", "--artifact", artifact)
    assert status != 0
    assert "have the same BIDS label" in said


def test_scores_that_are_not_finite_are_no_labels(tmp_path):
    made = import_network(of_a_scan(tmp_path / "x.onnx", Bands()), **OPTIONS).folder
    save(tmp_path / "S1.nii.gz")
    loaded = load(made, threads=1)
    run = loaded.network.run

    def spoilt(images, rows):
        found = run(images, rows)
        found["output"][:, 0, 0, 0, 0] = np.nan
        return found

    loaded.network.run = spoilt
    (found,) = loaded.predict(tmp_path / "S1.nii.gz")
    assert (found.status, found.code) == ("error", "engine-output-not-finite")


def test_softmax_at_the_end_changes_no_label(tmp_path):
    module = nn.Sequential(Bands(), nn.Softmax(1))
    made = import_network(of_a_scan(tmp_path / "x.onnx", module), **OPTIONS).folder
    voxels, _ = save(tmp_path / "S1.nii.gz")
    loaded = load(made, engine="native", threads=1)
    found = loaded.segment(tmp_path / "S1.nii.gz")
    np.testing.assert_array_equal(found.labels, labels_of(voxels))
    boxes = load_boxes(tmp_path / "S1.nii.gz", loaded.manifest.preprocessing).images
    scores = loaded.network.run(boxes.reshape(1, 1, *SHAPE), np.zeros((1, 0), np.float32))["output"]
    np.testing.assert_allclose(
        scores, Bands()(torch.from_numpy(boxes)).numpy(), rtol=1e-4, atol=1e-3
    )
