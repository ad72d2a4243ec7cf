"""The headers of NIfTI and MGH files: read, and refused where no scan can be made of them."""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.data.imports import import_nibabel
from hyperfusion_rt.data.other_files import START, name_of
from hyperfusion_rt.errors import ScanError

_KINDS = {"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"}
# NIfTI's units of length, in mm: (factor, name). Others, and none, are taken as mm.
_UNITS = {1: (1e3, "metres"), 3: (1e-3, "micrometres")}
# NIfTI's codes of the space in which an affine places the scan; 3 to 5 are templates.
_SPACES = {1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI", 5: "template"}
_TEMPLATES = (3, 4, 5)
# NIfTI's codes of what the values are, if they are no image.
_INTENTS = {
    **dict.fromkeys(range(2, 25), "a map of a statistic"),
    1002: "a map of labels",
    1003: "a map of labels",
    **dict.fromkeys(range(1004, 1011), "a field of vectors, matrices or points"),
    2005: "a shape",
}
# Types of NIfTI that nibabel knows and cannot read here.
_WIDE = {1: "single bits", 1536: "128-bit floats", 2048: "256-bit complex numbers"}
# qform and sform that place a corner of the scan further apart than this, in mm, contradict.
_APART_MM = 2.0


@dataclass(frozen=True)
class Header:
    """What a NIfTI or MGH header says: value = slope · voxel + inter.

    `offset`: bytes before the voxels; `affine [4, 4]` maps voxel indices to mm (RAS). `warnings`:
    what a reader should know.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    affine: NDArray[np.float64]
    slope: float
    inter: float
    warnings: tuple[str, ...] = ()


def read_header(path: Path, stream: BinaryIO, limit: int) -> Header:
    """The header, of one 3D volume that a file of at most `limit` bytes can hold."""
    header = _parse(path, stream)
    shape = header.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise ScanError(
            f"{path}: {len(shape)} dimensions {shape}, but one 3D volume is needed; "
            "split a series into volumes first",
            code="scan-not-3d",
        )
    if min(shape) < 1:
        raise ScanError(f"{path}: empty volume of shape {shape}", code="scan-not-3d")
    if f"{header.dtype.kind}{header.dtype.itemsize}" not in _KINDS:
        raise ScanError(
            f"{path}: voxels of type {header.dtype} are not supported; use real numbers",
            code="scan-type-unsupported",
        )
    need = header.offset + math.prod(shape) * header.dtype.itemsize
    if need > limit:
        raise ScanError(
            f"{path}: truncated: its header claims {shape[0]}x{shape[1]}x{shape[2]} voxels, "
            f"{need:,} bytes, and the file cannot hold more than {limit:,}",
            code="scan-truncated",
        )
    _check_affine(path, header)
    return replace(header, shape=shape)


def _parse(path: Path, stream: BinaryIO) -> Header:
    nib = import_nibabel()
    from nibabel.spatialimages import HeaderDataError

    # nibabel logs what it repairs in a header; what matters here is checked and said below.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    start = stream.read(4)
    lengths = {int.from_bytes(start, "little"), int.from_bytes(start, "big")}
    try:
        if 348 in lengths:
            return _nifti(path, nib.Nifti1Header, start, stream)
        if 540 in lengths:
            return _nifti(path, nib.Nifti2Header, start, stream)
        if int.from_bytes(start, "big") == 1 and ".mg" in path.name.lower():
            return _mgh(path, nib.freesurfer.mghformat.MGHHeader, start, stream)
    except ScanError:
        raise
    except (HeaderDataError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise ScanError(f"{path}: its header is damaged: {error}", code="scan-damaged") from None
    start += stream.read(START - len(start))
    if (found := name_of(path, start)) is not None:
        raise ScanError(f"{path}: {found}", code="scan-format-unknown")
    if len(start) < 4:
        raise ScanError(f"{path}: the file is empty or truncated", code="scan-truncated")
    raise ScanError(f"{path}: neither a NIfTI nor an MGH file", code="scan-format-unknown")


def refuse_more(path: Path, header: Header, extra: int) -> None:
    """Raise a ScanError if `extra` bytes after the voxels are too many to be a footer."""
    plane = math.prod(header.shape[:2]) * header.dtype.itemsize
    if extra >= plane:
        raise ScanError(
            f"{path}: {extra:,} bytes follow the voxels that its header claims "
            f"({'x'.join(map(str, header.shape))} of {header.dtype}): the header is not that of "
            "these voxels; convert the scan again",
            code="scan-damaged",
        )


def _nifti(path: Path, kind: Any, start: bytes, stream: BinaryIO) -> Header:
    size = kind.template_dtype.itemsize
    block = start + stream.read(size - len(start))
    if len(block) < size:
        raise ScanError(f"{path}: truncated inside its header", code="scan-truncated")
    magic = block[344:346] if size == 348 else block[4:6]
    if magic not in (b"n+", b"ni"):
        pair = path.name.lower().endswith((".hdr", ".img"))
        found = "an Analyze 7.5 header" if pair else "not a NIfTI file (no magic string)"
        raise ScanError(
            f"{path}: {found}, which does not say where left and right are; "
            "convert the scan again, from its source to .nii.gz",
            code="scan-format-unknown",
        )
    given = kind(block, check=False)
    if magic == b"ni" and not size <= given["vox_offset"] < 1 << 32:
        raise ScanError(
            f"{path}: the header of a .hdr/.img pair; convert the pair to .nii.gz",
            code="scan-format-unknown",
        )
    if what := _WIDE.get(int(given["datatype"])):
        raise ScanError(
            f"{path}: voxels of {what} are not supported; use real numbers",
            code="scan-type-unsupported",
        )
    header = kind(block, check=True)
    if what := _INTENTS.get(int(header["intent_code"])):
        raise ScanError(
            f"{path}: its header says that it holds {what} (intent_code "
            f"{int(header['intent_code'])}), but a T1 image is needed",
            code="scan-not-t1",
        )
    offset = int(header.get_data_offset())
    if offset < size:
        raise ScanError(
            f"{path}: its header puts the voxels at byte {offset}, inside the header",
            code="scan-damaged",
        )
    if np.isinf(given["scl_slope"]):
        raise ScanError(f"{path}: its header is damaged: scl_slope is inf", code="scan-damaged")
    slope, inter = header.get_slope_inter()
    affine, warnings = _place(path, header, np.asarray(given["pixdim"][1:4], np.float64))
    _skip(path, stream, offset - size)
    shape = tuple(int(n) for n in header.get_data_shape())
    return Header(
        shape,
        header.get_data_dtype(),
        offset,
        affine,
        1.0 if slope is None else float(slope),
        0.0 if inter is None else float(inter),
        warnings,
    )


def _place(
    path: Path, header: Any, sizes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """The affine [4, 4] of a NIfTI header, to mm, and what is odd about it.

    `sizes [3]`: the voxels' as the file has them; nibabel repairs them in `header`.

    Raises:
        ScanError: left and right cannot be told.
    """
    by_quaternion, by_matrix = int(header["qform_code"]), int(header["sform_code"])
    if by_quaternion == 0 and by_matrix == 0:
        raise ScanError(
            f"{path}: the header says nothing of orientation (qform_code and sform_code are 0), "
            "so left and right cannot be told; convert the scan again or register it to MNI space",
            code="scan-orientation-unknown",
        )
    if by_matrix == 0 and not (np.isfinite(sizes).all() and sizes.min() > 0):
        shown = " x ".join(f"{size:g}" for size in sizes)
        raise ScanError(
            f"{path}: its header gives voxels of {shown} mm (pixdim) and has no sform; "
            "convert the scan again",
            code="scan-affine-invalid",
        )
    affine = np.asarray(header.get_best_affine(), np.float64)
    factor, unit = _UNITS.get(int(header["xyzt_units"]) & 7, (1.0, ""))
    warnings = [f"the header counts in {unit}; converted to mm"] if unit else []
    if by_quaternion and by_matrix:
        warnings += _contradiction(path, header, factor, by_quaternion, by_matrix)
    affine[:3] *= factor
    return affine, tuple(warnings)


def _contradiction(
    path: Path, header: Any, factor: float, by_quaternion: int, by_matrix: int
) -> list[str]:
    """What a reader should know where qform and sform place a scan differently.

    A scan that was registered to a template keeps where it lay in the scanner in its qform: that
    is no contradiction.
    """
    advice = "repair the header, or convert the scan again"
    codes = f"(code {by_quaternion}, {_SPACES.get(by_quaternion, 'unknown')})"
    try:
        quaternion = np.asarray(header.get_qform(coded=False), np.float64)
    except (ValueError, ArithmeticError):
        return [f"its qform {codes} is damaged; the sform was used"]
    matrix = np.asarray(header.get_sform(coded=False), np.float64)
    with np.errstate(all="ignore"):
        sides = np.linalg.det(quaternion[:3, :3]) * np.linalg.det(matrix[:3, :3])
    if sides < 0:
        raise ScanError(
            f"{path}: its qform and its sform swap left and right against each other; {advice}",
            code="scan-orientation-unknown",
        )
    if by_matrix in _TEMPLATES and by_quaternion not in _TEMPLATES:
        return []
    ends = [(0, max(int(n) - 1, 0)) for n in (*header.get_data_shape(), 1, 1, 1)[:3]]
    corners = np.array([[*corner, 1] for corner in itertools.product(*ends)]).T
    with np.errstate(all="ignore"):  # NaN and infinity are refused later
        apart = np.linalg.norm(((quaternion - matrix) @ corners)[:3], axis=0).max() * factor
    if not apart > _APART_MM:
        return []
    return [
        f"its qform {codes} and its sform (code {by_matrix}, {_SPACES.get(by_matrix, 'unknown')}) "
        f"lie {apart:.0f} mm apart; the sform was used"
    ]


def _mgh(path: Path, kind: Any, start: bytes, stream: BinaryIO) -> Header:
    offset = 284
    block = start + stream.read(offset - len(start))
    if len(block) < offset:
        raise ScanError(f"{path}: truncated inside its header", code="scan-truncated")
    size = kind.template_dtype.itemsize
    header = kind(block[:size], check=False)
    # From the file itself: nibabel repairs its own copy.
    if int.from_bytes(block[28:30], "big", signed=True) <= 0:
        raise ScanError(
            f"{path}: the header says nothing of orientation (goodRASFlag is 0), so left and right "
            "cannot be told; convert the scan again or register it to MNI space",
            code="scan-orientation-unknown",
        )
    shape = tuple(int(n) for n in header.get_data_shape())
    affine = np.asarray(header.get_affine(), np.float64)
    return Header(shape, header.get_data_dtype(), offset, affine, 1.0, 0.0)


def _skip(path: Path, stream: BinaryIO, count: int) -> None:
    while count > 0:
        got = len(stream.read(min(count, 1 << 20)))
        if not got:
            raise ScanError(f"{path}: truncated before its voxels", code="scan-truncated")
        count -= got


def _check_affine(path: Path, header: Header) -> None:
    affine = header.affine
    advice = "repair its qform or sform, or convert the scan again"
    if not np.isfinite(affine).all():
        raise ScanError(
            f"{path}: its affine holds NaN or infinity; {advice}", code="scan-affine-invalid"
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() <= 0 or abs(np.linalg.det(affine[:3, :3])) < 1e-3 * spacing.prod():
        raise ScanError(f"{path}: its affine is singular; {advice}", code="scan-affine-invalid")
    if spacing.min() < 0.1 or spacing.max() > 20:
        sizes = " x ".join(f"{size:.3g}" for size in spacing)
        known = "".join(f" ({warning})" for warning in header.warnings)
        raise ScanError(
            f"{path}: voxels of {sizes} mm are not a brain scan's{known}; {advice}",
            code="scan-affine-invalid",
        )
