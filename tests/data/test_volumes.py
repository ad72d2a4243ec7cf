"""From a file to the network's input, against a plain NumPy and nibabel reference."""

import errno
import gzip
import itertools
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from hyperfusion_rt import _native
from hyperfusion_rt.config import Box, Preprocessing, preset
from hyperfusion_rt.data.volumes import load_boxes, read_file, read_volume
from hyperfusion_rt.errors import ScanError

SMALL = Preprocessing(
    boxes=(
        Box(name="left", center=(-6.5, -1.5, 0.5)),
        Box(name="right", center=(6.5, -1.5, 0.5), mirror=True),
    ),
    shape=(10, 12, 8),
    spacing=1.0,
)
# The rule of older artifacts.
OLDER = SMALL.model_copy(update={"normalisation": "zscore-nonzero"})
AFFINE = np.array([[1.0, 0, 0, -16], [0, 1, 0, -14], [0, 0, 1, -12], [0, 0, 0, 1]])


def phantom(shape=(33, 29, 25), seed=0, dtype=np.int16):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 2000, shape)
    data[rng.random(shape) < 0.2] = 0
    return data.astype(dtype)


def brain(shape=(33, 29, 25), seed=0, dtype=np.int16):
    """An ellipsoid of noise with a dark hole, in empty space."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    data = np.where(radius < 0.9, rng.integers(300, 2000, shape), 0)
    data[(np.abs(grid) < 0.15).all(0)] = 0
    return data.astype(dtype)


def save(path, data, affine=AFFINE, slope=None, inter=None, code=1, kind=nib.Nifti1Image):
    image = kind(data, affine)
    if kind is not nib.MGHImage:
        image.header.set_slope_inter(slope, inter)
        image.set_sform(affine, code)
        image.set_qform(None if code == 0 else affine, code)
    nib.save(image, path)
    return path


def normalised(value, part):
    mean = value.sum() / part.sum()
    kept = part > 0
    over = np.where(kept, value - part * mean, 0)
    return over / np.sqrt((over[kept] ** 2 / part[kept]).sum() / part.sum())


def parts_of(data):
    """(values over the background, part of each voxel that is foreground), with SciPy.

    For bright brains on a dark background without noise.
    """
    faces = np.concatenate([np.take(data, (0, -1), axis).ravel() for axis in range(3)])
    values, counts = np.unique(faces, return_counts=True)
    over = data - values[counts.argmax()]
    bright = over[over > 0.1 * np.quantile(over, 0.999)]
    candidates = over <= 0.1 * np.median(bright)
    labels, _ = ndimage.label(candidates)
    rim = np.unique(np.concatenate([np.take(labels, (0, -1), a).ravel() for a in range(3)]))
    outside = np.isin(labels, rim[rim > 0])
    over = np.where(outside, 0, over)
    cross = ndimage.generate_binary_structure(3, 1)
    edge = ndimage.binary_dilation(outside, cross) & ~outside
    most = np.maximum(ndimage.maximum_filter(over, footprint=cross), 1e-9)
    return over, np.where(outside, 0, np.where(edge, np.minimum(1, 1.5 * over / most), 1))


def reference(path, preprocessing):
    """Trilinear sampling with `get_fdata` in float64, voxel by voxel in vectorised NumPy."""
    image = nib.load(path)
    data, inverse = image.get_fdata(), np.linalg.inv(image.affine)
    older = preprocessing.normalisation == "zscore-nonzero"
    fields = (data,) if older else parts_of(data)
    found = []
    for box in preprocessing.boxes:
        axes = [
            c + preprocessing.spacing * (np.arange(n) - (n - 1) / 2)
            for c, n in zip(box.center, preprocessing.shape, strict=True)
        ]
        if box.mirror:
            axes[0] = axes[0][::-1]
        mm = np.stack([*np.meshgrid(*axes, indexing="ij"), np.ones(preprocessing.shape)], -1)
        at = mm @ inverse.T[:, :3]
        size = np.array(data.shape)
        inside = ((at >= -0.5) & (at <= size - 0.5)).all(-1)
        at = np.clip(at, 0, size - 1)
        # A coordinate that is whole but for rounding has one neighbour, not two: else background
        # gets 1e-6 of the brain beside it, and counts as brain.
        at = np.where(np.abs(at - np.rint(at)) < 1e-4, np.rint(at), at)
        low = np.minimum(at.astype(int), size - 2)
        w = at - low
        values = [np.zeros(preprocessing.shape) for _ in fields]
        for corner in itertools.product((0, 1), repeat=3):
            weight = np.prod([w[..., a] if c else 1 - w[..., a] for a, c in enumerate(corner)], 0)
            for value, field in zip(values, fields, strict=True):
                value += weight * field[tuple(low[..., a] + c for a, c in enumerate(corner))]
        values = [np.where(inside, value, 0) for value in values]
        found.append(normalised(values[0], values[0] != 0 if older else values[1]))
    return np.stack(found)[:, None]


ORIENTATIONS = ["".join(axes) for axes in itertools.product("RL", "AP", "SI")] + [
    "PIR", "ASL", "SRA", "IPL",
]  # fmt: skip


RULES = pytest.mark.parametrize("rule", [SMALL, OLDER], ids=["foreground", "nonzero"])


@RULES
@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_every_orientation_gives_the_same_box(tmp_path, codes, shift, rule):
    data = brain() if rule is SMALL else phantom()
    # Half a voxel off, the nearest voxel is a tie on every axis.
    affine = AFFINE + shift * np.array([[0, 0, 0, 1]] * 3 + [[0, 0, 0, 0]])
    first = load_boxes(save(tmp_path / "a.nii.gz", data, affine), rule).images
    image = nib.Nifti1Image(data, affine)
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(change)
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    nib.save(turned, tmp_path / "b.nii.gz")
    assert np.array_equal(load_boxes(tmp_path / "b.nii.gz", rule).images, first)
    if shift == 0 or rule is SMALL:
        np.testing.assert_allclose(first, reference(tmp_path / "b.nii.gz", rule), atol=1e-5)


@RULES
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_a_symmetric_brain_gives_equal_sides(tmp_path, shift, rule):
    data = brain()
    data = np.maximum(data, data[::-1])
    affine = AFFINE.copy()
    affine[1:3, 3] += shift
    box = rule.model_copy(
        update={
            "boxes": tuple(
                b.model_copy(update={"center": (b.center[0] + s * shift, *b.center[1:])})
                for b, s in zip(rule.boxes, (-1, 1), strict=True)
            )
        }
    )
    images = load_boxes(save(tmp_path / "a.nii.gz", data, affine), box).images
    assert np.array_equal(images[0], images[1])


@RULES
@pytest.mark.parametrize(
    "dtype",
    ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4", ">f8"],
)
@pytest.mark.parametrize(("slope", "inter"), [(None, None), (0.5, -3.0), (2.25, 0.0)])
def test_every_type_and_scaling(tmp_path, dtype, slope, inter, rule):
    data = brain() if rule is SMALL else phantom()
    data = (data // (20 if dtype in ("u1", "i1") else 1)).astype(dtype)
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(dtype)
    image = nib.Nifti1Image(data, AFFINE, header)
    image.header.set_slope_inter(slope, inter)
    # Written by hand: nibabel would choose another slope for these data.
    raw = image.header
    raw["magic"], raw["vox_offset"] = b"n+1\0", 352
    body = raw.binaryblock + b"\0" * 4 + np.asarray(data, raw.get_data_dtype()).tobytes("F")
    path = tmp_path / "a.nii"
    path.write_bytes(body)
    packed = tmp_path / "a.nii.gz"
    packed.write_bytes(gzip.compress(body))
    expected = reference(path, rule)
    for file in (path, packed):
        np.testing.assert_allclose(load_boxes(file, rule).images, expected, atol=1e-5)


@RULES
@pytest.mark.parametrize("spacing", [0.7, 1.3, (0.9, 1.1, 2.0)])
def test_resampling(tmp_path, spacing, rule):
    affine = AFFINE @ np.diag([*np.broadcast_to(spacing, 3), 1])
    path = save(tmp_path / "a.nii.gz", brain((60, 50, 44)), affine)
    np.testing.assert_allclose(load_boxes(path, rule).images, reference(path, rule), atol=1e-5)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_background_beside_the_brain_stays_background(tmp_path, codes):
    """Sampled at 1.7 mm, some coordinates are whole but for rounding, otherwise in each file."""
    data = np.zeros((60, 60, 60))
    data[20:40, 20:40, 20:40] = phantom((20, 20, 20)) + 400
    affine = np.array([[1.0, 0, 0, -33.3], [0, 1, 0, -40.1], [0, 0, 1, -31.7], [0, 0, 0, 1]])
    image = nib.Nifti1Image(data.astype(np.int16), affine)
    way = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    path = tmp_path / "a.nii.gz"
    image.as_reoriented(way).to_filename(path)
    # The eighth sample from the left lies on the last slice of background, the twentieth likewise.
    center = tuple(np.array([5.4, 6.0, 5.4]) + 1.7 * 12.5 + affine[:3, 3])
    box = Box(name="all", center=center)
    preprocessing = Preprocessing(
        boxes=(box,), shape=(26, 26, 26), spacing=1.7, normalisation="zscore-nonzero"
    )
    newer = preprocessing.model_copy(update={"normalisation": "zscore-foreground"})
    np.testing.assert_allclose(load_boxes(path, newer).images, reference(path, newer), atol=1e-5)
    found = load_boxes(path, preprocessing).images[0, 0]
    steps = [
        (c + 1.7 * (np.arange(n) - (n - 1) / 2) - o)
        for c, n, o in zip(box.center, preprocessing.shape, affine[:3, 3], strict=True)
    ]
    # A sample is brain where it has a neighbour in the brain that weighs more than nothing.
    inside = [(x > 19 + 1e-6) & (x < 40 - 1e-6) for x in steps]
    expected = np.logical_and.outer(np.logical_and.outer(inside[0], inside[1]), inside[2])
    assert np.array_equal(found != 0, expected)


@RULES
def test_oblique(tmp_path, rule):
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    path = save(tmp_path / "a.nii.gz", brain(), turn @ AFFINE)
    np.testing.assert_allclose(load_boxes(path, rule).images, reference(path, rule), atol=1e-5)


# nibabel's reader of uncompressed MGH files leaves the file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("name", "kind"), [("a.mgz", nib.MGHImage), ("a.mgh", nib.MGHImage), ("a.nii", nib.Nifti2Image)]
)
def test_other_formats(tmp_path, name, kind):
    path = save(tmp_path / name, brain(), kind=kind)
    np.testing.assert_allclose(load_boxes(path, SMALL).images, reference(path, SMALL), atol=1e-5)


def test_a_trailing_axis_of_one_is_a_volume(tmp_path):
    path = save(tmp_path / "a.nii.gz", phantom()[..., None])
    assert read_volume(path).voxels.shape == (33, 29, 25)


def test_half_a_voxel_off_is_interpolated_but_by_the_older_rule(tmp_path):
    affine = AFFINE.copy()
    affine[:3, 3] += [0.3, -0.4, 0.49]
    data = brain()
    moved, still = save(tmp_path / "a.nii.gz", data, affine), save(tmp_path / "b.nii.gz", data)
    assert np.array_equal(load_boxes(moved, OLDER).images, load_boxes(still, OLDER).images)
    np.testing.assert_allclose(load_boxes(moved, SMALL).images, reference(moved, SMALL), atol=1e-5)
    # A header's rounding is no shift.
    affine = AFFINE.copy()
    affine[:3, 3] += 1e-3
    near = save(tmp_path / "c.nii.gz", data, affine)
    assert np.array_equal(load_boxes(near, SMALL).images, load_boxes(still, SMALL).images)


@pytest.mark.parametrize("older", [True, False])
def test_every_output_voxel_is_written(older):
    out = np.full((4, 5, 6), np.nan, np.float32)
    matrix = np.hstack([np.eye(3), np.full((3, 1), -50.0)])
    support = None if older else _native.find_support(brain())
    inside, nonfinite, part, _, _ = _native.crop_normalise(brain(), 1, 0, support, matrix, out)
    assert (inside, nonfinite, part) == (0, 0, 0)
    assert np.array_equal(out, np.zeros_like(out))


def test_the_kernel_refuses_what_it_cannot_read():
    out, matrix = np.empty((2, 2, 2), np.float32), np.zeros((3, 4))
    for voxels in (np.zeros((2, 2, 2), complex), np.zeros((2, 2)), np.zeros((2, 2, 2), "f2")):
        with pytest.raises(TypeError):
            _native.crop_normalise(voxels, 1.0, 0.0, None, matrix, out)
        with pytest.raises(TypeError):
            _native.find_support(voxels)
    with pytest.raises(TypeError):
        _native.crop_normalise(phantom(), 1.0, 0.0, None, matrix, out.astype(np.float64))
    with pytest.raises(ValueError, match="no voxel"):
        _native.crop_normalise(np.zeros((2, 0, 2), np.uint8), 1.0, 0.0, None, matrix, out)
    with pytest.raises(ValueError, match="another volume's"):
        _native.crop_normalise(phantom(), 1, 0, _native.find_support(out), matrix, out)


def header_bytes(shape, dtype=4, bits=16, offset=352.0):
    block = bytearray(352)
    struct.pack_into("<i", block, 0, 348)
    struct.pack_into("<8h", block, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<2h", block, 70, dtype, bits)
    struct.pack_into("<8f", block, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", block, 108, offset)
    struct.pack_into("<2h", block, 252, 1, 1)
    struct.pack_into("<12f", block, 280, 1, 0, 0, -16, 0, 1, 0, -14, 0, 0, 1, -12)
    block[344:348] = b"n+1\0"
    return bytes(block)


def bad_files(folder):
    """Name → (path, what the message says)."""
    data = phantom()
    good = save(folder / "good.nii.gz", data).read_bytes()

    def write(name, content):
        (folder / name).write_bytes(content)
        return folder / name

    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0x10
    tail = bytearray(good)
    tail[-6] ^= 0x01
    holes, infinite = data.astype(np.float32), data.astype(np.float32)
    holes[9, 13, 12], infinite[9, 13, 12] = np.nan, np.inf
    singular, far, nans, tiny = (AFFINE.copy() for _ in range(4))
    singular[:3, 1] = singular[:3, 0]
    far[:3, 3] += 5000
    nans[0, 0] = np.nan
    tiny[:3, :3] *= 1e-3
    plain = header_bytes((33, 29, 25)) + data.tobytes("F")

    def with_affine(name, affine):
        block = bytearray(plain)
        struct.pack_into("<12f", block, 280, *affine[:3].ravel())
        return write(name, bytes(block))

    return {
        "truncated": (write("t.nii.gz", good[: len(good) // 2]), "truncated"),
        "bit flipped": (write("f.nii.gz", bytes(flipped)), "damaged|truncated"),
        "wrong checksum": (write("c.nii.gz", bytes(tail)), "damaged"),
        "plain truncated": (write("p.nii", plain[:-100]), "truncated"),
        "header only": (write("h.nii", plain[:200]), "truncated"),
        "empty": (write("e.nii.gz", b""), "empty"),
        "text": (write("x.nii.gz", b"this is not an image at all"), "neither a NIfTI"),
        "huge claim": (write("b.nii.gz", gzip.compress(header_bytes((32767,) * 3))), "claims"),
        "huge plain": (write("b.nii", header_bytes((32767,) * 3) + b"\0" * 700), "claims"),
        "4D": (save(folder / "4d.nii.gz", np.stack([data, data], -1)), "4 dimensions"),
        "2D": (write("2d.nii", header_bytes((33, 29)) + b"\0" * 5000), "2 dimensions"),
        "zero size": (write("z.nii", header_bytes((0, 4, 4)) + b"\0" * 64), "empty volume"),
        "complex": (save(folder / "cx.nii.gz", data.astype(np.complex64)), "not supported"),
        "unknown type": (write("u.nii", header_bytes((3, 3, 3), 9999) + b"\0" * 99), "header"),
        "NaN voxel": (save(folder / "n.nii.gz", holes), "NaN or infinite"),
        "Inf voxel": (save(folder / "i.nii.gz", infinite), "NaN or infinite"),
        "all zero": (save(folder / "0.nii.gz", data * 0), "background only"),
        "constant": (save(folder / "1.nii.gz", data * 0 + 7), "background only|same value"),
        "singular affine": (with_affine("s.nii", singular), "singular"),
        "NaN affine": (with_affine("na.nii", nans), "NaN or infinity"),
        "far away": (save(folder / "far.nii.gz", data, far), "lies inside the scan"),
        "micrometres": (with_affine("um.nii", tiny), "not a brain scan"),
        "no orientation": (save(folder / "no.nii.gz", data, code=0), "nothing of orientation"),
        "folder": (folder, "is a folder"),
        "missing": (folder / "none.nii.gz", "No such file"),
        "offset in header": (
            write("o.nii", header_bytes((3, 3, 3), offset=16.0) + b"\0" * 99),
            "header",
        ),
    }


BAD_FILES_CODES = {
    "scan-truncated": "truncated, plain truncated, header only, empty, huge claim, huge plain",
    "scan-damaged": "wrong checksum, unknown type, offset in header",
    "scan-format-unknown": "text",
    "scan-not-3d": "4D, 2D, zero size",
    "scan-type-unsupported": "complex",
    "scan-not-finite": "NaN voxel, Inf voxel",
    "scan-constant": "all zero, constant",
    "scan-affine-invalid": "singular affine, NaN affine, micrometres",
    "scan-box-outside": "far away",
    "scan-orientation-unknown": "no orientation",
    "scan-unreadable": "folder, missing",
}


def test_bad_files_are_refused_with_a_reason(tmp_path):
    codes = {name: code for code, names in BAD_FILES_CODES.items() for name in names.split(", ")}
    for name, (path, message) in bad_files(tmp_path).items():
        with pytest.raises(ScanError, match=message) as caught:
            load_boxes(path, SMALL)
        assert str(path) in str(caught.value), name
        assert "\n" not in str(caught.value), name
        # Where a bit is flipped, either may show first.
        if name != "bit flipped":
            assert caught.value.code == codes.pop(name), name
    assert not codes


def test_partial_cover_is_a_warning(tmp_path):
    affine = AFFINE.copy()
    affine[2, 3] = -1
    boxes = load_boxes(save(tmp_path / "a.nii.gz", phantom(), affine), SMALL)
    assert boxes.coverage[0] == pytest.approx(6 / 8)
    assert "75% inside" in boxes.warnings[0]


def test_template_brain_fits_the_brain_age_box():
    from hyperfusion_rt.data.mni_template import template_files

    box = preset("brain-age").preprocessing
    volume = read_volume(template_files("raw", "the test")["t1"])
    voxels = np.argwhere(volume.voxels > 0) + volume.affine[:3, 3]
    half = np.array(box.shape) * box.spacing / 2
    low, high = box.boxes[0].center - half, box.boxes[0].center + half
    margin = np.minimum(voxels.min(0) - low, high - voxels.max(0))
    assert (margin >= 2).all(), margin
    assert (margin <= 25).all(), margin


def test_peak_memory_of_one_scan(tmp_path):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 1500, (182, 218, 182)).astype(np.int16)
    affine = np.array([[1.0, 0, 0, -90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]])
    path = save(tmp_path / "a.nii.gz", data, affine)
    code = f"""
        import resource, sys
        import numpy, nibabel
        from hyperfusion_rt.config import preset
        from hyperfusion_rt.data.volumes import load_boxes
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        before = peak()
        load_boxes({str(path)!r}, preset("ad").preprocessing)
        print(peak() - before)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert float(out.stdout) < 150


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EACCES, "scan-unreadable"),
        (errno.ENOENT, "scan-unreadable"),
        (errno.EIO, "scan-read-failed"),
        (errno.ESTALE, "scan-read-failed"),
    ],
)
def test_what_may_pass_has_another_code_than_what_stays(tmp_path, monkeypatch, number, code):
    (tmp_path / "x.nii").write_bytes(b"")

    def fail(path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(ScanError, match="cannot be read") as error:
        read_file(tmp_path / "x.nii")
    assert error.value.code == code
