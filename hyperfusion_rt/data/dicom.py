"""DICOM folders: checking that a series is one even volume, reading it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import MissingExtraError, ScanError
from hyperfusion_rt.files import shown

Float = NDArray[np.float32]
Matrix = NDArray[np.float64]

# Transfer syntaxes that GDCM, SimpleITK's reader, decodes: below 1.2.840.10008.1.2.
_SYNTAX = "0002|0010"
_ROOT = "1.2.840.10008.1.2"
_PLAIN = ("", ".1", ".2", ".1.99")
_PACKED = (".4.50", ".4.51", ".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91", ".5")
_UNPACK = (
    "decompress them first, such as with gdcmconv (package gdcm) or dcmdjpeg (package "
    "dcmtk), or convert the series with dcm2niix"
)
# Value representations of DICOM's elements, as a data set without a preamble begins with.
_KINDS = (b"UL", b"UI", b"CS", b"SH", b"LO", b"DA", b"TM", b"OB", b"ST", b"AE", b"PN")


def require_sitk() -> Any:
    """SimpleITK, silenced.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import SimpleITK
    except ImportError:
        raise MissingExtraError("SimpleITK", "raw", "DICOM folders") from None
    # What its readers warn of is checked here, and said in an error of ours.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def is_dicom_folder(path: Path) -> bool:
    """Whether `path` is a folder with DICOM files, from the first bytes of at most eight of them.

    A DICOM file has `DICM` at byte 128; old ones begin at once with an element of group 8 (or 2).
    A DICOMDIR is the table of contents of a disc, not an image.
    """
    path = Path(path)
    if not path.is_dir():
        return False
    files = (p for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith("."))
    images = (p for p in files if p.name.upper() != "DICOMDIR")
    for file in itertools.islice(images, 8):
        try:
            with open(file, "rb") as stream:
                start = stream.read(132)
        except OSError:
            continue
        if start[128:] == b"DICM" or _is_bare(start):
            return True
    return False


def _is_bare(start: bytes) -> bool:
    """Whether a file begins with DICOM's first elements, without preamble."""
    if len(start) < 132:
        return False
    for order in ("little", "big"):
        group, element = (int.from_bytes(start[at : at + 2], order) for at in (0, 2))
        length = int.from_bytes(start[4:8], order)
        # The first of its group: 0000 to 0018; then its kind, or the length of its value.
        if group in (2, 8) and element <= 0x18:
            return start[4:6] in _KINDS or (length <= 64 and length % 2 == 0)
    return False


def dicom_series(folder: Path) -> list[tuple[Path, ...]]:
    """The files of each DICOM series in `folder` (not in folders below), in order of position.

    Raises:
        ScanError: the folder cannot be read.
        MissingExtraError: the raw extra is not installed.
    """
    sitk = require_sitk()
    folder = Path(folder)
    if not folder.is_dir():
        raise ScanError(f"{folder}: no such folder", code="scan-unreadable")
    for path in (folder, *folder.iterdir()):
        if shown(str(path)) != str(path):  # SimpleITK would end the process
            raise ScanError(
                f"{path}: a name that is not UTF-8, which SimpleITK cannot open; rename it",
                code="dicom-unreadable",
            )
    reader = sitk.ImageSeriesReader
    try:
        return [
            tuple(Path(name) for name in reader.GetGDCMSeriesFileNames(str(folder), series))
            for series in sorted(reader.GetGDCMSeriesIDs(str(folder)))
        ]
    except RuntimeError as error:
        raise ScanError(
            f"{folder}: a DICOM file cannot be read: {_last_line(error)}; if the pixels are "
            f"compressed, {_UNPACK}",
            code="dicom-unreadable",
        ) from None


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1]


def _tags(path: Path) -> dict[str, str]:
    """The DICOM tags `gggg|eeee` of a file."""
    reader = require_sitk().ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise ScanError(
            f"{path}: cannot be read as DICOM; copy it again from its source",
            code="dicom-unreadable",
        ) from None
    found = {key: str(reader.GetMetaData(key)).strip() for key in reader.GetMetaDataKeys()}
    return found | {_SYNTAX: _transfer_syntax(path)}


def _transfer_syntax(path: Path) -> str:
    """How the file's pixels are packed, from its own first elements: SimpleITK does not tell."""
    with open(path, "rb") as stream:
        start = stream.read(4096)
    _, mark, rest = start.partition(b"\x02\x00\x10\x00UI")
    if not mark:  # without a preamble
        return _ROOT
    size = int.from_bytes(rest[:2], "little")
    return rest[2 : 2 + size].rstrip(b"\0 ").decode("ascii", "replace")


def _one_series(folder: Path) -> tuple[Path, ...]:
    found = dicom_series(folder)
    if not found:
        raise ScanError(
            f"{folder}: no DICOM series of images in this folder", code="dicom-no-series"
        )
    if len(found) > 1:
        names = []
        for files in found:
            tags = _tags(files[0])
            title = tags.get("0008|103e") or "without description"
            names.append(f"{title!r} ({len(files)} files, {files[0].name} ...)")
        raise ScanError(
            f"{folder}: {len(found)} DICOM series: {'; '.join(names)}; "
            "put the T1 series into a folder of its own",
            code="dicom-several-series",
        )
    return found[0]


def _numbers(text: str) -> Matrix:
    return np.array([float(part) for part in text.split("\\")], np.float64)


def _check_series(
    folder: Path, files: tuple[Path, ...], tags: list[dict[str, str]]
) -> tuple[int, ...]:
    """The order of its slices in space: one MR volume, in parallel slices at even distances.

    Raises:
        ScanError: it is not.
    """
    modality = tags[0].get("0008|0060", "")
    if modality != "MR":
        raise ScanError(
            f"{folder}: modality {modality or 'unknown'}, but a T1 MR scan is needed",
            code="dicom-not-mr",
        )
    if max(int(tag.get("0028|0008") or 1) for tag in tags) > 1:
        # Its frames may differ in place and scale, which SimpleITK does not tell.
        raise ScanError(
            f"{folder}: a file with many frames (enhanced DICOM); convert it to NIfTI, such as "
            "with dcm2niix",
            code="dicom-not-one-volume",
        )
    if len(files) == 1:
        raise ScanError(
            f"{folder}: one DICOM image, but a whole volume is needed",
            code="dicom-not-one-volume",
        )
    kind = tags[0].get("0028|0004", "MONOCHROME2")
    if kind != "MONOCHROME2":
        raise ScanError(
            f"{folder}: its pixels are {kind}, but grey values that rise with the signal "
            "(MONOCHROME2) are needed; export the original series",
            code="dicom-not-one-volume",
        )
    try:
        positions = np.stack([_numbers(tag["0020|0032"]) for tag in tags])
        axes = np.stack([_numbers(tag["0020|0037"]).reshape(2, 3) for tag in tags])
    except (KeyError, ValueError):
        raise ScanError(
            f"{folder}: a slice says nothing of its position or orientation (tags 0020,0032 and "
            "0020,0037); export the series again",
            code="dicom-no-position",
        ) from None
    if np.abs(axes - axes[0]).max() > 1e-3:
        raise ScanError(
            f"{folder}: slices of different orientation; take the localiser out",
            code="dicom-not-one-volume",
        )
    sizes = {(tag.get("0028|0010"), tag.get("0028|0011")) for tag in tags}
    if len(sizes) > 1:
        raise ScanError(
            f"{folder}: slices of different size; put one volume into the folder",
            code="dicom-not-one-volume",
        )
    along = positions @ np.cross(axes[0, 0], axes[0, 1])
    order = np.argsort(along)
    steps = np.diff(along[order])
    usual = float(np.median(steps))
    if steps.min() < 0.02 * usual or usual < 1e-3:
        raise ScanError(
            f"{folder}: several slices at one position (echoes or time points); "
            "put one volume into the folder",
            code="dicom-not-one-volume",
        )
    worst = int(np.argmax(np.abs(steps - usual)))
    if abs(steps[worst] - usual) > max(0.05 * usual, 0.02):
        before, after = (files[order[worst + k]].name for k in (0, 1))
        raise ScanError(
            f"{folder}: slices lie {usual:.2f} mm apart, but {steps[worst]:.2f} mm between "
            f"{before} and {after}: slices are missing or uneven; export the whole series again",
            code="dicom-slices-uneven",
        )
    shift = np.diff(positions[order], axis=0)
    if np.abs(shift - shift.mean(0)).max() > 0.1 or (
        np.linalg.norm(np.cross(shift.mean(0), np.cross(axes[0, 0], axes[0, 1]))) > 0.02 * usual
    ):
        raise ScanError(
            f"{folder}: slices are shifted against each other; convert it to NIfTI",
            code="dicom-slices-uneven",
        )
    return tuple(int(n) for n in order)


def read_dicom(folder: Path) -> tuple[Float, Matrix]:
    """The one series of a folder: voxels float32 [X, Y, Z], affine [4, 4] to mm (RAS).

    Raises:
        ScanError: there is not one even MR series, or it cannot be read.
    """
    sitk = require_sitk()
    files = _one_series(folder)
    tags = [_tags(file) for file in files]
    for tag in tags:
        _check_packing(folder, tag)
    order = _check_series(folder, files, tags)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(files[n]) for n in order])
    # Otherwise the first slice decides, and the others' values are cut to its integers.
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ScanError(_unreadable(folder, tags[0], error), code="dicom-unreadable") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ScanError(f"{folder}: not one 3D volume of real numbers", code="dicom-not-one-volume")
    affine = np.eye(4)
    direction = np.asarray(image.GetDirection(), np.float64).reshape(3, 3)
    affine[:3, :3] = direction * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    # DICOM's axes point to left and posterior.
    affine[:2] *= -1
    voxels = sitk.GetArrayFromImage(image)
    for plane, n in zip(voxels, order, strict=True):
        _fill_padding(plane, tags[n])
    return np.ascontiguousarray(voxels.transpose(2, 1, 0)), affine


def _check_packing(folder: Path, tags: dict[str, str]) -> None:
    """Raise a ScanError for a compression that would be read as if there were none."""
    syntax = tags[_SYNTAX]
    if syntax.removeprefix(_ROOT) not in (*_PLAIN, *_PACKED):
        raise ScanError(
            f"{folder}: its pixels are compressed in an unknown way (transfer syntax {syntax}); "
            f"{_UNPACK}",
            code="dicom-unreadable",
        )


def _unreadable(folder: Path, tags: dict[str, str], error: RuntimeError) -> str:
    packed = tags[_SYNTAX].removeprefix(_ROOT) in _PACKED
    advice = f"; they are compressed: {_UNPACK}" if packed else ""
    return f"{folder}: the DICOM series' pixels cannot be read: {_last_line(error)}{advice}"


def _fill_padding(plane: Float, tags: dict[str, str]) -> None:
    """Pixels beyond what was measured (`PixelPaddingValue`) become the darkest of the others."""
    try:
        stored = float(tags["0028|0120"])
        slope, inter = float(tags.get("0028|1053") or 1), float(tags.get("0028|1052") or 0)
    except (KeyError, ValueError):
        return
    if tags.get("0028|0103") == "1" and stored >= 1 << 15:
        stored -= 1 << 16  # read as if it were unsigned
    padding = np.isclose(plane, slope * stored + inter, rtol=1e-6, atol=0)
    if padding.any() and not padding.all():
        darkest = plane[~padding].min()
        # Zero is a background like any other.
        if not 0 <= slope * stored + inter <= darkest:
            plane[padding] = darkest
