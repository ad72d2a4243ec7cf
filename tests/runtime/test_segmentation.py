"""Labels on a scan's own grid: of raw scans, of boxes that overlap, of folders."""

from types import SimpleNamespace

import numpy as np
import pytest

from hyperfusion_rt.config import Box, Preprocessing
from hyperfusion_rt.data.volumes import VoxelGrid
from hyperfusion_rt.runtime.case_input import CaseInput
from hyperfusion_rt.runtime.prediction import Prediction
from hyperfusion_rt.runtime.segmentation import LabelMaps, Segmentation

ROOM = {"shape": (8, 8, 8), "spacing": 2.0}


def manifest(*centres):
    boxes = tuple(Box(name=str(n), center=centre) for n, centre in enumerate(centres))
    return SimpleNamespace(
        labels=("no", "a", "b"), preprocessing=Preprocessing(boxes=boxes, **ROOM)
    )


def grid(shape=(20, 20, 20), edge=2.0):
    affine = np.diag([edge, edge, edge, 1.0])
    affine[:3, 3] = -edge * (np.array(shape) - 1) / 2
    return VoxelGrid(shape, affine)


def read(transform=None, **given):
    return CaseInput(None, None, None, (), {}, transform=transform, grid=grid(**given))


def scores(*places):
    """`[N·3, 8, 8, 8]`: of each box a voxel with a label; the others have the first."""
    found = np.zeros((len(places), 3, 8, 8, 8), np.float32)
    found[:, 0] = 0.5
    for box, (label, place) in enumerate(places):
        found[(box, label, *place)] = 1
    return found.reshape(-1, 8, 8, 8)


def test_the_labels_of_a_raw_scan_lie_in_the_head():
    """The head is twice as large as its template, and elsewhere: so are the volumes."""
    transform = np.diag([2.0, 2.0, 2.0, 1.0])  # template mm to scan mm
    transform[:3, 3] = 3, -5, 7
    found = Segmentation.of(
        manifest((0, 0, 0)), scores((2, (5, 3, 4))), read(transform, shape=(40, 40, 40), edge=1.0)
    )
    where = np.argwhere(found.labels == 2) @ found.grid.affine[:3, :3] + found.grid.affine[:3, 3]
    centre = 2 * 2 * (np.array([5, 3, 4]) - 3.5) + [3, -5, 7]
    assert np.abs(where - centre).max() <= 2
    assert found.volumes[1] == pytest.approx((2 * 2) ** 3 / 1000)
    assert found.volumes[0] == 0


def test_where_boxes_overlap_a_label_is_not_lost_to_the_background():
    boxes = manifest((0, 0, 0), (4, 0, 0))
    found = Segmentation.of(boxes, scores((1, (6, 4, 4)), (2, (1, 1, 1))), read())
    assert (found.labels == 1).sum() == 1
    assert (found.labels == 2).sum() == 1
    both = Segmentation.of(boxes, scores((1, (6, 4, 4)), (2, (4, 4, 4))), read())
    assert (both.labels == 2).sum() == 1  # the same place: the later label
    assert (both.labels == 1).sum() == 0


def test_of_equal_scores_the_first_counts():
    found = Segmentation.of(manifest((0, 0, 0)), np.ones((3, 8, 8, 8), np.float32), read())
    assert not found.labels.any()


def test_the_folder(tmp_path):
    maps = LabelMaps(tmp_path)
    assert maps.path("S_1", "a-b").relative_to(tmp_path).as_posix() == (
        "sub-S1/ses-ab/anat/sub-S1_ses-ab_dseg.nii.gz"
    )
    maps.open(("x", "y"))
    assert (tmp_path / "dseg.tsv").read_text() == "index\tname\n0\tx\n1\ty\n"
    good, failed = Prediction("1", None, "ok"), Prediction("1", None, "error")
    assert not maps.has(good)
    assert maps.has(failed)
    maps.path("1", None).parent.mkdir(parents=True)
    maps.path("1", None).touch()
    assert maps.has(good)
