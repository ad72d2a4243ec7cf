"""DICOM folders: checking that a series is one even volume, reading it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.data.imports import import_pydicom
from hyperfusion_rt.errors import MissingExtraError, ScanError

Float = NDArray[np.float32]
Matrix = NDArray[np.float64]

_UNPACK = (
    "install what unpacks them (pip install 'pylibjpeg[all]'), or convert the series with dcm2niix"
)
# Value representations of DICOM's elements, as a data set without a preamble begins with.
_KINDS = (b"UL", b"UI", b"CS", b"SH", b"LO", b"DA", b"TM", b"OB", b"ST", b"AE", b"PN")


def require_pydicom() -> Any:
    """pydicom, which says what it finds in errors alone.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        pydicom = import_pydicom()
    except ImportError:
        raise MissingExtraError("pydicom", "raw", "DICOM folders") from None
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def is_dicom_folder(path: Path) -> bool:
    """Whether `path` is a folder with DICOM files, from the first bytes of at most eight of them.

    A DICOM file has `DICM` at byte 128; old ones begin at once with an element of group 8 (or 2).
    A DICOMDIR is the table of contents of a disc, not an image.
    """
    path = Path(path)
    return path.is_dir() and any(map(_is_dicom, itertools.islice(_files(path), 8)))


def _files(folder: Path) -> Iterator[Path]:
    """What may be a DICOM file."""
    files = (p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith("."))
    return (p for p in files if p.name.upper() != "DICOMDIR")


def _is_dicom(file: Path) -> bool:
    try:
        with open(file, "rb") as stream:
            start = stream.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" or _is_bare(start)


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


@dataclass(frozen=True)
class _Slice:
    """One image: a file, or a frame of an enhanced one."""

    path: Path
    frame: int
    data: Any  # of the file
    position: Matrix  # [3] mm, DICOM's axes
    axes: Matrix  # [2, 3]: along a row, along a column
    spacing: tuple[float, float]  # mm: between rows, between columns
    slope: float
    inter: float


def dicom_series(folder: Path) -> list[tuple[Path, ...]]:
    """The files of each DICOM series in `folder` (not in folders below).

    Raises:
        ScanError: the folder cannot be read, or a DICOM file in it.
        MissingExtraError: the raw extra is not installed.
    """
    return [tuple(Path(data.filename) for data in one) for one in _series(Path(folder))]


def _series(folder: Path) -> list[list[Any]]:
    """The data sets of each series of images, without their pixels."""
    if not folder.is_dir():
        raise ScanError(f"{folder}: no such folder", code="scan-unreadable")
    found: dict[str, list[Any]] = {}
    for file in _files(folder):
        if not _is_dicom(file):
            continue
        data = _read(file, stop_before_pixels=True)
        if "Rows" in data and "Columns" in data:
            found.setdefault(str(data.get("SeriesInstanceUID", "")), []).append(data)
    return [found[name] for name in sorted(found)]


def _read(file: Path, *, stop_before_pixels: bool) -> Any:
    pydicom = require_pydicom()
    try:
        return pydicom.dcmread(file, stop_before_pixels=stop_before_pixels, force=True)
    except Exception as error:  # pydicom's own, and whatever damaged bytes lead to
        raise ScanError(
            f"{file}: cannot be read as DICOM: {_last_line(error)}; copy it again from its source",
            code="dicom-unreadable",
        ) from None


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _one_series(folder: Path) -> list[Any]:
    found = _series(folder)
    if not found:
        raise ScanError(
            f"{folder}: no DICOM series of images in this folder", code="dicom-no-series"
        )
    if len(found) > 1:
        names = []
        for one in found:
            title = str(one[0].get("SeriesDescription", "")) or "without description"
            names.append(f"{title!r} ({len(one)} files, {Path(one[0].filename).name} ...)")
        raise ScanError(
            f"{folder}: {len(found)} DICOM series: {'; '.join(names)}; "
            "put the T1 series into a folder of its own",
            code="dicom-several-series",
        )
    return found[0]


def _slices(folder: Path, data: Any) -> list[_Slice]:
    """The images of a file: one, or the frames of an enhanced one, each with a place of its own."""
    file = Path(data.filename)
    count = int(data.get("NumberOfFrames", 1) or 1)
    if "PerFrameFunctionalGroupsSequence" not in data:
        if count > 1:
            raise ScanError(
                f"{folder}: {file.name} holds {count} frames, but not where each lies; convert it "
                "to NIfTI, such as with dcm2niix",
                code="dicom-not-one-volume",
            )
        return [_slice(folder, data, 0, [data])]
    shared = list(data.get("SharedFunctionalGroupsSequence", []))
    return [
        _slice(folder, data, frame, [*_parts([group, *shared]), data])
        for frame, group in enumerate(data.PerFrameFunctionalGroupsSequence)
    ]


def _parts(groups: list[Any]) -> Iterator[Any]:
    """The data sets within functional groups."""
    for group in groups:
        for element in group:
            if element.VR == "SQ":
                yield from element.value


def _slice(folder: Path, data: Any, frame: int, where: list[Any]) -> _Slice:
    """`where`: the data sets that may say something of it; the first that does is believed."""

    def told(name: str, otherwise: Any = None) -> Any:
        found = (part.get(name) for part in where)
        return next((value for value in found if value not in (None, "")), otherwise)

    try:
        position = np.array([float(x) for x in told("ImagePositionPatient")], np.float64)
        axes = np.array([float(x) for x in told("ImageOrientationPatient")], np.float64)
        axes, position = axes.reshape(2, 3), position.reshape(3)
        rows, columns = (float(x) for x in told("PixelSpacing"))
        slope, inter = float(told("RescaleSlope", 1)), float(told("RescaleIntercept", 0))
    except (TypeError, ValueError):
        raise ScanError(
            f"{folder}: a slice says nothing of its position, orientation or pixel size (tags "
            "0020,0032, 0020,0037 and 0028,0030); export the series again",
            code="dicom-no-position",
        ) from None
    file = Path(data.filename)
    return _Slice(file, frame, data, position, axes, (rows, columns), slope, inter)


def _check_kind(folder: Path, data: Any) -> None:
    """Raise a ScanError for what is no grey MR image."""
    modality = str(data.get("Modality", ""))
    if modality != "MR":
        raise ScanError(
            f"{folder}: modality {modality or 'unknown'}, but a T1 MR scan is needed",
            code="dicom-not-mr",
        )
    kind = str(data.get("PhotometricInterpretation", "MONOCHROME2"))
    if kind != "MONOCHROME2":
        raise ScanError(
            f"{folder}: its pixels are {kind}, but grey values that rise with the signal "
            "(MONOCHROME2) are needed; export the original series",
            code="dicom-not-one-volume",
        )


def _in_order(folder: Path, slices: list[_Slice]) -> list[_Slice]:
    """The slices in their order in space: one volume, parallel, at even distances.

    Raises:
        ScanError: it is not.
    """
    if len(slices) == 1:
        raise ScanError(
            f"{folder}: one DICOM image, but a whole volume is needed",
            code="dicom-not-one-volume",
        )
    axes = np.stack([one.axes for one in slices])
    if np.abs(axes - axes[0]).max() > 1e-3:
        raise ScanError(
            f"{folder}: slices of different orientation; take the localiser out",
            code="dicom-not-one-volume",
        )
    sizes = {(one.data.Rows, one.data.Columns, one.spacing) for one in slices}
    if len(sizes) > 1:
        raise ScanError(
            f"{folder}: slices of different size; put one volume into the folder",
            code="dicom-not-one-volume",
        )
    along = np.stack([one.position for one in slices]) @ np.cross(axes[0, 0], axes[0, 1])
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order])
    usual = float(np.median(steps))
    if steps.min() < 0.02 * usual or usual < 1e-3:
        raise ScanError(
            f"{folder}: several slices at one position (echoes or time points); "
            "put one volume into the folder",
            code="dicom-not-one-volume",
        )
    found = [slices[n] for n in order]
    worst = int(np.argmax(np.abs(steps - usual)))
    if abs(steps[worst] - usual) > max(0.05 * usual, 0.02):
        before, after = (_name(found[worst + k]) for k in (0, 1))
        raise ScanError(
            f"{folder}: slices lie {usual:.2f} mm apart, but {steps[worst]:.2f} mm between "
            f"{before} and {after}: slices are missing or uneven; export the whole series again",
            code="dicom-slices-uneven",
        )
    shift = np.diff(np.stack([one.position for one in found]), axis=0)
    if np.abs(shift - shift.mean(0)).max() > 0.1:
        raise ScanError(
            f"{folder}: slices are shifted against each other, each by another way; convert it to "
            "NIfTI",
            code="dicom-slices-uneven",
        )
    return found


def _name(one: _Slice) -> str:
    return one.path.name + (f", frame {one.frame + 1}" if one.frame else "")


def read_dicom(folder: Path) -> tuple[Float, Matrix]:
    """The one series of a folder: voxels float32 [X, Y, Z], affine [4, 4] to mm (RAS).

    Files of a slice each, or enhanced ones of many. Each slice has its own slope. The slices of a
    tilted gantry lie obliquely over each other: so do the affine's axes.

    Raises:
        ScanError: there is not one even MR series, or it cannot be read.
        MissingExtraError: the raw extra is not installed.
    """
    series = _one_series(folder)
    for data in series:
        _check_kind(folder, data)
    slices = _in_order(folder, [one for data in series for one in _slices(folder, data)])
    pixels: dict[Path, Any] = {}
    planes = []
    for one in slices:
        if one.path not in pixels:
            pixels[one.path] = _pixels(folder, one)
        image = pixels[one.path]
        plane = image[one.frame] if image.ndim == 3 else image
        planes.append(_values(plane, one))
        if image.ndim == 2:
            del pixels[one.path]  # nobody needs it again
    first, last = slices[0], slices[-1]
    affine = np.eye(4)
    rows, columns = first.spacing
    affine[:3, 0] = first.axes[0] * columns
    affine[:3, 1] = first.axes[1] * rows
    affine[:3, 2] = (last.position - first.position) / (len(slices) - 1)
    affine[:3, 3] = first.position
    # DICOM's axes point to left and posterior.
    affine[:2] *= -1
    return np.ascontiguousarray(np.stack(planes).transpose(2, 1, 0)), affine


def _pixels(folder: Path, one: _Slice) -> Any:
    """The stored numbers of a file: [rows, columns], or [frames, rows, columns]."""
    data = _read(one.path, stop_before_pixels=False)
    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is None:  # without a preamble: as its elements were read
        uid = require_pydicom().uid
        implicit, little = data.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        syntax = data.file_meta.TransferSyntaxUID = (
            uid.ImplicitVRLittleEndian if implicit else explicit
        )
    try:
        found = data.pixel_array
    except Exception as error:  # of pydicom, of a decoder, or of damaged bytes
        advice = ""
        if syntax.is_compressed:
            advice = f"; they are compressed ({syntax.name}): {_UNPACK}"
        raise ScanError(
            f"{folder}: the pixels of {one.path.name} cannot be read: {_last_line(error)}{advice}",
            code="dicom-unreadable",
        ) from None
    if found.ndim not in (2, 3) or found.shape[-2:] != (one.data.Rows, one.data.Columns):
        raise ScanError(f"{folder}: not one 3D volume of real numbers", code="dicom-not-one-volume")
    return found


def _values(stored: Any, one: _Slice) -> Float:
    """The slice's values; pixels beyond what was measured become the darkest of the others."""
    found: Float = (stored * one.slope + one.inter).astype(np.float32)
    padding = one.data.get("PixelPaddingValue")
    if padding is None:
        return found
    try:
        number = int(padding)
    except (TypeError, ValueError):
        return found
    if int(one.data.get("PixelRepresentation", 0)) == 1 and number >= 1 << 15:
        number -= 1 << 16  # read as if it were unsigned
    beyond = stored == number
    if beyond.any() and not beyond.all():
        darkest = found[~beyond].min()
        # Zero is a background like any other.
        if not 0 <= one.slope * number + one.inter <= darkest:
            found[beyond] = darkest
    return found
