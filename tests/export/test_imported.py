"""`hfrt import`: a network that others trained as an artifact."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from hyperfusion_rt import load
from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data.volumes import load_boxes
from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.export.imported import import_network

from . import rtx
from .networks import as_onnx, of_a_scan

SHAPE = (20, 24, 20)


def network(*last):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), *last
    ).eval()


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A blob on 8 mm voxels that fill the box, and more: `[28, 32, 28]`."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    size = np.array([28, 32, 28])
    affine = np.diag([8.0, 8, 8, 1])
    affine[:3, 3] = np.array([-0.5, -17.5, 18.5]) - 8 * (size - 1) / 2
    voxels = np.zeros(tuple(size), np.float32)
    voxels[4:24, 4:28, 4:24] = 100 + 10 * rng.standard_normal((20, 24, 20))
    nib.save(nib.Nifti1Image(voxels, affine), folder / "sub-01_T1w.nii.gz")
    return folder / "sub-01_T1w.nii.gz"


OPTIONS = {"spacing": 8.0, "scan_checks": "off", "engines": ("native", "onnx")}


def answers(artifact, scan, module):
    """Ours, and torch's on the same boxes."""
    (found,) = load(artifact.folder, threads=1).predict(scan)
    assert found.status == "ok", found.reason
    boxes = load_boxes(scan, artifact.manifest.preprocessing).images
    with torch.inference_mode():
        return found, module(torch.from_numpy(boxes[0][None]))[0].double()


def test_soft_bins(tmp_path, scan):
    module = network(nn.Linear(6, 9), nn.LogSoftmax(1))
    path = of_a_scan(tmp_path / "age.onnx", module)
    artifact = import_network(path, bins=(40, 80), target="age", unit="years", **OPTIONS)
    assert artifact.folder == tmp_path / "age.hfrt"
    found, log = answers(artifact, scan, module)
    assert found.values[0] == pytest.approx(float(log.exp() @ torch.linspace(40, 80, 9).double()))


@pytest.mark.parametrize(
    ("last", "count"),
    [((nn.Linear(6, 3),), 3), ((nn.Linear(6, 3), nn.Softmax(1)), 3), ((nn.Linear(6, 1),), 2)],
)
def test_classes(tmp_path, scan, last, count):
    module = network(*last)
    artifact = import_network(
        of_a_scan(tmp_path / "x.onnx", module), classes=("CN", "MCI", "AD")[-count:], **OPTIONS
    )
    found, y = answers(artifact, scan, module)
    if len(y) == 1:
        expected = [1 - torch.sigmoid(y[0]), torch.sigmoid(y[0])]
    else:
        expected = y if len(last) == 2 else y.softmax(0)
    np.testing.assert_allclose(found.values, [float(p) for p in expected], atol=1e-6)


def test_a_number_on_the_command_line(tmp_path, scan, hfrt):
    module = network(nn.Linear(6, 1))
    path = of_a_scan(tmp_path / "volume.onnx", module)
    status, _, said = hfrt(
        tmp_path, "import", path, "--spacing", 8, "--normalise", "none", "--target", "volume",
        "--unit", "ml", "--scan-checks", "off",
    )  # fmt: skip
    assert status == 0, said
    status, _, said = hfrt(tmp_path, "infer", scan, "--out", "p.csv")
    assert status == 0, said
    assert "predicted_volume" in (tmp_path / "p.csv").read_text()
    _, again, _ = hfrt(tmp_path, "infer", scan, "--out", "p.csv", "--resume", "--json")
    assert json.loads(again)["summary"]["ok"] == 1
    assert (tmp_path / "p.html").exists()
    _, shown, _ = hfrt(tmp_path, "inspect", "volume.hfrt")
    assert "volume in ml" in shown


@pytest.mark.parametrize("normalisation", ["minmax", "none"])
def test_values(scan, normalisation):
    recipe = {"boxes": [{"name": "b", "center": (-0.5, -17.5, 18.5)}], "spacing": 8.0}
    given = Preprocessing(shape=SHAPE, normalisation=normalisation, **recipe)
    raw = nib.load(scan).get_fdata()[4:24, 4:28, 4:24]
    whole = nib.load(scan).get_fdata()
    expected = raw if normalisation == "none" else (raw - whole.min()) / np.ptp(whole)
    np.testing.assert_allclose(load_boxes(scan, given).images[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        ("LPS", lambda x: x[::-1, ::-1]),
        ("SRA", lambda x: np.transpose(x, (2, 0, 1))),
        ("ASL", lambda x: np.transpose(x[::-1], (1, 2, 0))),
    ],
)
def test_orientations(scan, orientation, turned):
    recipe = {"boxes": [{"name": "b", "center": (-0.5, -17.5, 18.5)}], "spacing": 8.0}
    raw = turned(nib.load(scan).get_fdata()[4:24, 4:28, 4:24])
    given = Preprocessing(shape=raw.shape, normalisation="none", orientation=orientation, **recipe)
    np.testing.assert_allclose(load_boxes(scan, given).images[0, 0], raw, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "answers 4 numbers: say what they are"),
        ({"classes": ("a", "b")}, "`classes`: 2, but .* answers 4"),
        ({"bins": (1, 2, 3)}, "`bins`: 3 centres"),
        ({"classes": ("a", "b"), "unit": "ml"}, "an answer is a class, labels"),
        ({"classes": ("a", "a")}, "two or more, all different"),
        ({"bins": (1, 2), "output": "y"}, "`output` 'y'"),
        ({"bins": (1, 2), "orientation": "RAX"}, "`orientation`"),
        ({"bins": (1, 2), "box": "here"}, "`box` 'here'"),
        ({"bins": (1, 2), "shape": (9, 9, 9)}, "the input scan is"),
        ({"bins": (1, 2), "engines": ("magic",)}, "magic"),
    ],
)
def test_what_does_not_fit(tmp_path, fields, message):
    path = of_a_scan(tmp_path / "x.onnx", network(nn.Linear(6, 4)))
    with pytest.raises(HyperFusionError, match=message):
        import_network(path, **fields)
    assert not (tmp_path / "x.hfrt").exists()


def test_an_output_that_is_a_volume(tmp_path):
    path = of_a_scan(tmp_path / "x.onnx", nn.Conv3d(1, 2, 1))
    with pytest.raises(HyperFusionError, match="a volume: say what its channels are"):
        import_network(path)


def test_a_network_with_a_table_asks_for_it(hfrt, cohort):
    status, _, said = hfrt(cohort, "infer", "scans")
    assert status != 0
    assert "give one with --tabular" in said


RECIPE = """
preprocessing:
  spacing: 8
  orientation: LPS
  shape: [20, 24, 20]
  normalisation: none
  boxes:
    - {name: middle, center: [-0.5, -17.5, 18.5]}
  channels:
    - {name: T1w, files: '*_T1w.nii.gz'}
    - {name: FLAIR, files: '*_FLAIR.nii.gz', t1_weighted: false}
"""


def test_a_recipe_of_several_images(tmp_path, scan):
    """Weights of the two images differ: which is which counts."""

    class Weighted(nn.Module):
        def forward(self, image):
            return (image * torch.tensor([1.0, 10.0]).reshape(1, 2, 1, 1, 1)).mean((1, 2, 3, 4))

    first = nib.load(scan)
    scans = tmp_path / "scans"
    scans.mkdir()
    nib.save(first, scans / "sub-01_T1w.nii.gz")
    nib.save(nib.Nifti1Image(2 * first.get_fdata(), first.affine), scans / "sub-01_FLAIR.nii.gz")
    example = (torch.zeros(1, 2, *SHAPE),)
    path = as_onnx(Weighted(), example, tmp_path / "x.onnx", input_names=["scans"])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    made = import_network(path, recipe=tmp_path / "recipe.yaml", scan_checks="off").folder
    (found,) = load(made, threads=1).predict(scans)
    assert found.status == "ok", found.reason
    inside = first.get_fdata()[4:24, 4:28, 4:24]
    assert found.values[0] == pytest.approx((inside.mean() + 20 * inside.mean()) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (("LPS", "LPX"), {}, "recipe.yaml: .*orientation"),
        (("spacing: 8", "spacing: eight"), {}, "recipe.yaml: .*spacing"),
        (("[20, 24, 20]", "[20, 24, 22]"), {}, "the input scan is"),
        (("", ""), {"shape": (9, 9, 9)}, "`shape` .*leave one out"),
        (("", ""), {"spacing": 2.0}, "`recipe` and `spacing`"),
        (("", ""), {"box": "hippocampi"}, "`box` hippocampi"),
        (("", ""), {}, "has \\[2, D, H, W\\]|the input scan is"),
    ],
)
def test_a_recipe_that_does_not_fit(tmp_path, change, fields, message):
    path = of_a_scan(tmp_path / "x.onnx", network(nn.Linear(6, 1)))
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace(*change))
    with pytest.raises(HyperFusionError, match=message):
        import_network(path, recipe=tmp_path / "recipe.yaml", **fields)


def test_several_images_without_their_names(tmp_path):
    path = as_onnx(nn.Conv3d(2, 1, SHAPE), (torch.zeros(1, 2, *SHAPE),), tmp_path / "x.onnx")
    with pytest.raises(HyperFusionError, match=r"2 images of a case.* channels of a `recipe`"):
        import_network(path)
    with pytest.raises(HyperFusionError, match=r"none.yaml: no such file$"):
        import_network(path, recipe=tmp_path / "none.yaml")


@pytest.mark.skipif(not rtx.INSTALLED, reason="builds with TensorRT-RTX, which is not installed")
@pytest.mark.parametrize(
    ("last", "fields"),
    [
        ((nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 2)), {"classes": "no,yes"}),
        ((nn.Upsample(scale_factor=2), nn.Conv3d(6, 2, 1)), {"segmentation": "rest,lesion"}),
    ],
)
def test_tensorrt(tmp_path, last, fields):
    """Built here without a GPU, and compared by the same graph."""
    module = nn.Sequential(nn.Conv3d(1, 6, 3, 2, 1), nn.ReLU(), *last).eval()
    path = of_a_scan(tmp_path / "x.onnx", module)
    made = import_network(path, precision="fp16", engines=("native", "trt-rtx"), **fields)
    entry = made.manifest.engines[1]
    assert (entry.engine, entry.precision) == ("trt-rtx", "fp16")
    assert entry.build.narrow > 0
    assert entry.comparison.drift <= entry.comparison.drift_tolerance
