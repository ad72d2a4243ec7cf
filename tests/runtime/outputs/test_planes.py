"""Planes and volumes of a scan: what lies where in the picture, and what a volume tells."""

import gzip
import io

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest

from hyperfusion_rt.config import Box, Preprocessing
from hyperfusion_rt.data.volumes import read_volume
from hyperfusion_rt.runtime.explain.answers import ImageMap
from hyperfusion_rt.runtime.outputs.planes import legend_of, pictures, plane_shapes, small_volume

LEFT = Box(name="left", center=(-26.0, -20.0, -14.0))
RIGHT = Box(name="right", center=(26.0, -20.0, -14.0), mirror=True)
PREPROCESSING = Preprocessing(boxes=(LEFT, RIGHT), shape=(16, 24, 16), spacing=2.0)
ORIENTATIONS = ("RAS", "LPI", "PSR")


def scan(path, marks, orientation="RAS", mm=3.0):
    """White balls of 8 mm at `marks` in mm of MNI space."""
    shape = (60, 70, 60)
    affine = np.diag([mm, mm, mm, 1.0])
    affine[:3, 3] = -90, -120, -75
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    place = index * mm + affine[:3, 3].reshape(3, 1, 1, 1)
    voxels = np.zeros(shape, np.int16)
    for mark in marks:
        away = np.linalg.norm(place - np.reshape(mark, (3, 1, 1, 1)), axis=0)
        voxels[away < 8] = 200
    image = nib.Nifti1Image(voxels, affine)
    wanted = nib.orientations.axcodes2ornt(orientation)
    now = nib.io_orientation(affine)
    image.as_reoriented(nib.orientations.ornt_transform(now, wanted)).to_filename(path)
    return read_volume(path)


def brightest(picture):
    """(x, y) in mm from the upper left corner of the middle of what is white."""
    pixels = plt.imread(io.BytesIO(picture), "png")
    rows, columns = np.nonzero(pixels > 0.8)
    return 1.5 * (columns.mean() + 0.5), 1.5 * (rows.mean() + 0.5)


def test_the_planes_go_through_the_boxes():
    axial, coronal, sagittal = plane_shapes(PREPROCESSING)
    assert [shape.title for shape in (axial, coronal, sagittal)] == [
        "axial, z = -14 mm", "coronal, y = -20 mm", "sagittal, x = -26 mm",
    ]  # fmt: skip
    # Both boxes are cut by the first two planes, the third goes through one.
    assert [[r.name for r in s.rects] for s in (axial, coronal, sagittal)] == [
        ["left", "right"], ["left", "right"], ["left"],
    ]  # fmt: skip
    left, right = axial.rects
    assert (left.x + left.width / 2, right.x + right.width / 2) == (58.0, 110.0)
    assert (left.width, left.height) == (32.0, 48.0)
    brain = PREPROCESSING.model_copy(update={"boxes": (Box(name="b", center=(0.0, 0.0, 0.0)),)})
    assert [s.at for s in plane_shapes(brain)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_left_is_left_front_is_front_and_up_is_up(tmp_path, orientation):
    mark = LEFT.center
    volume = scan(tmp_path / "x.nii.gz", [mark], orientation)
    shapes = plane_shapes(PREPROCESSING)
    for shape, picture in zip(shapes, pictures(volume, shapes), strict=True):
        box = shape.rects[0]
        assert box.name == "left"
        x, y = brightest(picture.picture)
        assert abs(x - (box.x + box.width / 2)) < 1.6
        assert abs(y - (box.y + box.height / 2)) < 1.6
    assert shapes[0].ends == shapes[1].ends == ("L", "R")
    assert shapes[2].ends == ("A", "P")
    # In front of the box, and above it.
    forward = (-26.0, 40.0, -14.0), (-26.0, -20.0, 40.0)
    volume = scan(tmp_path / "y.nii.gz", forward[:1], orientation)
    axial, _, sagittal = pictures(volume, shapes)
    assert brightest(axial.picture)[1] < shapes[0].rects[0].y
    assert brightest(sagittal.picture)[0] < shapes[2].rects[0].x
    volume = scan(tmp_path / "z.nii.gz", forward[1:], orientation)
    assert brightest(pictures(volume, shapes)[1].picture)[1] < shapes[1].rects[0].y


def test_the_map_lies_over_its_place(tmp_path):
    volume = scan(tmp_path / "x.nii.gz", [LEFT.center])
    voxels = np.zeros((30, 35, 30), np.float32)
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    affine[:3, 3] = -90, -120, -75
    for mark, value in ((LEFT.center, 0.2), (RIGHT.center, -0.1)):
        index = np.rint(np.linalg.inv(affine)[:3] @ [*mark, 1]).astype(int)
        voxels[tuple(slice(i - 1, i + 2) for i in index)] = value
    image_map = ImageMap(voxels, affine, "P(AD)", "occlusion")
    shapes = plane_shapes(PREPROCESSING)
    axial = pictures(volume, shapes, image_map)[0]
    pixels = plt.imread(io.BytesIO(axial.overlay), "png")
    half = pixels.shape[1] // 2
    raises, lowers = pixels[:, :half], pixels[:, half:]
    assert raises[..., 3].max() == 1.0
    assert lowers[..., 3].max() == pytest.approx(0.5, abs=0.05)
    strongest = raises[raises[..., 3] == 1.0][0]
    assert strongest[0] > strongest[2]  # red raises, blue lowers
    weaker = lowers[lowers[..., 3] > 0.4][0]
    assert weaker[2] > weaker[0]
    assert (pixels[..., 3] == 0).mean() > 0.9
    assert legend_of(image_map).largest == pytest.approx(0.2)


def test_a_small_volume_lies_where_the_scan_does_and_tells_nothing_else(tmp_path):
    volume = scan(tmp_path / "secret-name.nii.gz", [LEFT.center])
    packed = small_volume(volume)
    assert packed == small_volume(volume)
    assert b"secret" not in packed
    content = gzip.decompress(packed)
    assert content[:348].count(0) > 250  # no description, no date, no name
    image = nib.Nifti1Image.from_bytes(content)
    assert image.header["descrip"] == b""
    index = np.argwhere(image.get_fdata() > 150).mean(0)
    assert np.allclose((image.affine @ [*index, 1])[:3], LEFT.center, atol=1.5)


@pytest.mark.parametrize("value", [0, 7])
def test_an_empty_scan_has_pictures(tmp_path, value):
    nib.Nifti1Image(np.full((9, 9, 9), value, np.int16), np.eye(4)).to_filename(tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii")
    assert len(pictures(volume, plane_shapes(PREPROCESSING))) == 3
    assert small_volume(volume)
