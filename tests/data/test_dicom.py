"""DICOM folders as scanners and archives write them: read right, or named."""

import struct

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom is not installed: no DICOM was read")
import pydicom

from hyperfusion_rt.data.dicom import is_dicom_folder, read_dicom
from hyperfusion_rt.errors import ScanError

LONG = ("OB", "OW", "SQ", "UN")
IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
TRUTH = np.random.default_rng(3).integers(0, 2000, (12, 20, 16))  # slices, rows, columns


def element(tag, kind, value, syntax=EXPLICIT):
    end = ">" if syntax == BIG else "<"
    if isinstance(value, str):
        value = value.encode()
    elif isinstance(value, int):
        value = struct.pack(end + ("h" if kind == "SS" else "H"), value)
    value += (b"\0" if kind in ("UI", "OB") else b" ") * (len(value) % 2)
    head = struct.pack(end + "HH", *tag)
    if syntax == IMPLICIT:
        return head + struct.pack("<I", len(value)) + value
    if kind in LONG:
        return head + kind.encode() + struct.pack(end + "HI", 0, len(value)) + value
    return head + kind.encode() + struct.pack(end + "H", len(value)) + value


def write(
    path, pixels, number, *, syntax=EXPLICIT, preamble=True, signed=False, more=(), kind="MR"
):
    uid = f"1.2.8.{number}"
    storage = "1.2.840.10008.5.1.4.1.1.4"
    pixel_type = (">" if syntax == BIG else "<") + ("i2" if signed else "u2")
    elements = {
        (8, 0x16): ("UI", storage),
        (8, 0x18): ("UI", uid),
        (8, 0x60): ("CS", "MR"),
        (0x18, 0x50): ("DS", "2"),
        (0x20, 0xD): ("UI", "1.2.9"),
        (0x20, 0xE): ("UI", "1.2.8"),
        (0x20, 0x13): ("IS", str(number + 1)),
        (0x20, 0x32): ("DS", f"-10\\-20\\{2 * number}"),
        (0x20, 0x37): ("DS", "1\\0\\0\\0\\1\\0"),
        (0x28, 2): ("US", 1),
        (0x28, 4): ("CS", "MONOCHROME2"),
        (0x28, 0x10): ("US", pixels.shape[0]),
        (0x28, 0x11): ("US", pixels.shape[1]),
        (0x28, 0x30): ("DS", "2\\1"),
        (0x28, 0x100): ("US", 16),
        (0x28, 0x101): ("US", 16),
        (0x28, 0x102): ("US", 15),
        (0x28, 0x103): ("US", int(signed)),
        **dict(more),
        (0x7FE0, 0x10): ("OW", pixels.astype(pixel_type).tobytes()),
    }
    body = b"".join(element(t, k, v, syntax) for t, (k, v) in sorted(elements.items()))
    if not preamble:
        path.write_bytes(body)
        return
    meta = element((2, 1), "OB", b"\0\1") + element((2, 2), "UI", storage)
    meta += element((2, 3), "UI", uid) + element((2, 0x10), "UI", syntax)
    size = element((2, 0), "UL", struct.pack("<I", len(meta)))
    path.write_bytes(b"\0" * 128 + b"DICM" + size + meta + body)


def series(folder, pixels=TRUTH, each=lambda n: (), **settings):
    """A folder with a file per slice; `each(n)`: more elements of slice n."""
    folder.mkdir()
    for n, plane in enumerate(pixels):
        write(folder / f"{n:03d}", plane, n, more=each(n), **settings)
    return folder


def values(folder):
    assert is_dicom_folder(folder)
    voxels, affine = read_dicom(folder)
    assert voxels.dtype == np.float32
    expected = [[-1, 0, 0, 10], [0, -2, 0, 20], [0, 0, 2, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(affine, expected, atol=1e-6)
    return voxels.transpose(2, 1, 0)


def refusal(folder):
    with pytest.raises(ScanError) as caught:
        read_dicom(folder)
    assert "\n" not in str(caught.value)
    return caught.value.code, str(caught.value)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
@pytest.mark.parametrize("signed", [False, True])
def test_every_order_of_bytes(tmp_path, syntax, signed):
    truth = TRUTH - 1000 * signed
    assert np.array_equal(
        values(series(tmp_path / "a", truth, syntax=syntax, signed=signed)), truth
    )


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_files_without_a_preamble_are_dicom(tmp_path, syntax):
    folder = series(tmp_path / "a", syntax=syntax, preamble=False)
    assert np.array_equal(values(folder), TRUTH)


def test_other_files_are_not_dicom(tmp_path):
    for name, content in {
        "a.txt": b"x" * 500,
        "b": b"\x08\0\x05\0" + b"\xff" * 200,
        "c": b"\x08\0",
        "DICOMDIR": b"\0" * 128 + b"DICM" + b"x" * 50,
    }.items():
        (tmp_path / name).write_bytes(content)
    assert not is_dicom_folder(tmp_path)


@pytest.mark.parametrize("first", [1.0, 0.37])
def test_the_slices_have_slopes_of_their_own(tmp_path, first):
    slopes = first + 0.013 * np.arange(len(TRUTH))
    inters = np.where(np.arange(len(TRUTH)) % 3, 0.25, 0)

    def rescale(n):
        return {
            (0x28, 0x1052): ("DS", f"{inters[n]:g}"),
            (0x28, 0x1053): ("DS", f"{slopes[n]:.6g}"),
        }.items()

    expected = TRUTH * slopes[:, None, None] + inters[:, None, None]
    np.testing.assert_allclose(values(series(tmp_path / "a", each=rescale)), expected, rtol=1e-5)


def test_a_slope_that_some_slices_lack_is_one(tmp_path):
    scaled = [(0x28, 0x1052), ("DS", "0")], [(0x28, 0x1053), ("DS", "0.5")]
    folder = series(tmp_path / "a", each=lambda n: () if n < 4 else scaled)
    expected = TRUTH * np.where(np.arange(len(TRUTH)) < 4, 1, 0.5)[:, None, None]
    np.testing.assert_allclose(values(folder), expected)


def test_a_name_that_is_not_utf8(tmp_path):
    folder = series(tmp_path / "M\udcfc")
    (folder / "003").rename(folder / "M\udcfc")
    assert np.array_equal(values(folder), TRUTH)


@pytest.mark.parametrize("padding", [-2000, 30000])
def test_padding_is_no_tissue(tmp_path, padding):
    stored = TRUTH + 5
    stored[:, :3] = padding
    folder = series(
        tmp_path / "a", stored, signed=True, each=lambda n: [((0x28, 0x120), ("SS", padding))]
    )
    found = values(folder)
    assert np.array_equal(found[:, 3:], stored[:, 3:])
    assert np.array_equal(found[:, :3].max((1, 2)), stored[:, 3:].min((1, 2)))


def test_frames_without_a_place_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    pixels = TRUTH.reshape(-1, TRUTH.shape[2])[:20]
    write(tmp_path / "a" / "x", pixels, 0, more=[((0x28, 8), ("IS", "12"))])
    code, text = refusal(tmp_path / "a")
    assert code == "dicom-not-one-volume"
    assert "dcm2niix" in text


def enhanced(folder, place, pixels=TRUTH, slopes=None):
    """All slices as frames of one file; `place(n)`: the position of frame n."""
    sequence, dataset = pydicom.Sequence, pydicom.Dataset
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = EXPLICIT
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.8.1"
    data.Modality, data.SeriesInstanceUID, data.SOPInstanceUID = "MR", "1.2.8", "1.2.8.1"
    data.NumberOfFrames, data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    measures, orientation = dataset(), dataset()
    measures.PixelSpacing, measures.SliceThickness = [2, 1], 2
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared = dataset()
    shared.PixelMeasuresSequence = sequence([measures])
    shared.PlaneOrientationSequence = sequence([orientation])
    data.SharedFunctionalGroupsSequence = sequence([shared])
    groups = []
    for n in range(len(pixels)):
        group, position, scale = dataset(), dataset(), dataset()
        position.ImagePositionPatient = place(n)
        group.PlanePositionSequence = sequence([position])
        scale.RescaleSlope, scale.RescaleIntercept = (1 if slopes is None else slopes[n]), 0
        group.PixelValueTransformationSequence = sequence([scale])
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = sequence(groups)
    data.PixelData = pixels.astype("<u2").tobytes()
    folder.mkdir()
    data.save_as(folder / "x", enforce_file_format=True)
    return folder


def test_an_enhanced_file_is_a_volume(tmp_path):
    slopes = 1 + 0.25 * np.arange(len(TRUTH))
    order = np.random.default_rng(0).permutation(len(TRUTH))
    shuffled = enhanced(
        tmp_path / "a", lambda n: [-10, -20, 2 * int(order[n])], TRUTH[order], slopes[order]
    )
    np.testing.assert_allclose(values(shuffled), TRUTH * slopes[:, None, None], rtol=1e-6)
    gap = enhanced(tmp_path / "b", lambda n: [-10, -20, 2 * n + 2 * (n > 6)])
    code, text = refusal(gap)
    assert code == "dicom-slices-uneven"
    assert "frame 8" in text


def test_packed_pixels_are_unpacked(tmp_path):
    folder = series(tmp_path / "a")
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        data.save_as(file)
    assert np.array_equal(values(folder), TRUTH)


def test_a_tilted_gantry_lies_obliquely(tmp_path):
    tilted = lambda n: [((0x20, 0x32), ("DS", f"-10\\{-20 + 0.5 * n}\\{2 * n}"))]  # noqa: E731
    voxels, affine = read_dicom(series(tmp_path / "a", each=tilted))
    assert np.array_equal(voxels.transpose(2, 1, 0), TRUTH)
    expected = [[-1, 0, 0, 10], [0, -2, -0.5, 20], [0, 0, 2, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(affine, expected, atol=1e-6)


@pytest.mark.parametrize("cut", [100, 500, 900])
def test_a_damaged_file_is_named(tmp_path, cut):
    folder = series(tmp_path / "a")
    file = folder / "003"
    file.write_bytes(file.read_bytes()[:cut])
    code, text = refusal(folder)
    assert code in ("dicom-unreadable", "dicom-slices-uneven")
    assert "003" in text or "002" in text


def test_inverted_grey_is_named(tmp_path):
    folder = series(tmp_path / "a", each=lambda n: [((0x28, 4), ("CS", "MONOCHROME1"))])
    assert "MONOCHROME1" in refusal(folder)[1]


# The first: high-throughput JPEG 2000, which easily passes for raw pixels.
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.70"])
def test_a_compression_that_cannot_be_read_is_named(tmp_path, syntax):
    folder = series(tmp_path / "a", syntax=syntax)
    for file in folder.iterdir():
        head = file.read_bytes()[: -TRUTH[0].size * 2 - 4]
        item, end = struct.pack("<HH", 0xFFFE, 0xE000), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        fragment = item + struct.pack("<I", 64) + b"\xff\xd8" + b"x" * 62
        file.write_bytes(head + b"\xff" * 4 + item + b"\0" * 4 + fragment + end)
    code, text = refusal(folder)
    assert code == "dicom-unreadable"
    assert "pylibjpeg" in text


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (lambda n: [((0x20, 0x32), ("DS", f"0\\0\\{2 * n + (n > 5)}"))], "dicom-slices-uneven"),
        (lambda n: [((0x20, 0x32), ("DS", f"0\\{n % 2}\\{2 * n}"))], "dicom-slices-uneven"),
        (lambda n: [((0x20, 0x32), ("DS", f"0\\0\\{n // 2}"))], "dicom-not-one-volume"),  # echoes
        (lambda n: [((0x20, 0xE), ("UI", f"1.2.{n // 6}"))], "dicom-several-series"),
        (lambda n: [((8, 0x60), ("CS", "CT"))], "dicom-not-mr"),
    ],
)
def test_what_is_not_one_even_volume_is_refused(tmp_path, more, code):
    assert refusal(series(tmp_path / "a", each=more))[0] == code
