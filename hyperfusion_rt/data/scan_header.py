"""The headers of NIfTI and MGH files: read, and refused where no scan can be made of them."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import ScanError

_KINDS = {"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"}


@dataclass(frozen=True)
class Header:
    """What a NIfTI or MGH header says: value = slope · voxel + inter.

    `offset`: bytes before the voxels; `affine [4, 4]` maps voxel indices to mm (RAS).
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    affine: NDArray[np.float64]
    slope: float
    inter: float


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
    _check_affine(path, header.affine)
    return replace(header, shape=shape)


def _parse(path: Path, stream: BinaryIO) -> Header:
    import nibabel as nib
    from nibabel.spatialimages import HeaderDataError

    # nibabel logs what it repairs in a header; what matters here is checked and said below.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    start = stream.read(4)
    if len(start) < 4:
        raise ScanError(f"{path}: the file is empty or truncated", code="scan-truncated")
    lengths = {int.from_bytes(start, "little"), int.from_bytes(start, "big")}
    try:
        if 348 in lengths:
            return _nifti(path, nib.Nifti1Header, start, stream)
        if 540 in lengths:
            return _nifti(path, nib.Nifti2Header, start, stream)
        if int.from_bytes(start, "big") == 1 and ".mg" in path.name.lower():
            return _mgh(nib.freesurfer.mghformat.MGHHeader, start, stream)
    except ScanError:
        raise
    except (HeaderDataError, ValueError, TypeError, KeyError) as error:
        raise ScanError(f"{path}: its header is damaged: {error}", code="scan-damaged") from None
    raise ScanError(f"{path}: neither a NIfTI nor an MGH file", code="scan-format-unknown")


def _nifti(path: Path, kind: Any, start: bytes, stream: BinaryIO) -> Header:
    size = kind.template_dtype.itemsize
    block = start + stream.read(size - len(start))
    if len(block) < size:
        raise ScanError(f"{path}: truncated inside its header", code="scan-truncated")
    if block[344:346] not in (b"n+", b"ni") and block[4:6] not in (b"n+", b"ni"):
        raise ScanError(
            f"{path}: not a NIfTI file (no magic string in its header)", code="scan-format-unknown"
        )
    header = kind(block, check=True)
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        raise ScanError(
            f"{path}: the header says nothing of orientation (qform_code and sform_code are 0), "
            "so left and right cannot be told; convert the scan again or register it to MNI space",
            code="scan-orientation-unknown",
        )
    slope, inter = header.get_slope_inter()
    offset = int(header.get_data_offset())
    if offset < size:
        raise ScanError(
            f"{path}: its header puts the voxels at byte {offset}, inside the header",
            code="scan-damaged",
        )
    _skip(path, stream, offset - size)
    shape = tuple(int(n) for n in header.get_data_shape())
    affine = np.asarray(header.get_best_affine(), np.float64)
    return Header(
        shape,
        header.get_data_dtype(),
        offset,
        affine,
        1.0 if slope is None else float(slope),
        0.0 if inter is None else float(inter),
    )


def _mgh(kind: Any, start: bytes, stream: BinaryIO) -> Header:
    offset = 284
    block = start + stream.read(offset - len(start))
    size = kind.template_dtype.itemsize
    header = kind(block[:size].ljust(size, b"\0"), check=False)
    shape = tuple(int(n) for n in header.get_data_shape())
    affine = np.asarray(header.get_affine(), np.float64)
    return Header(shape, header.get_data_dtype(), offset, affine, 1.0, 0.0)


def _skip(path: Path, stream: BinaryIO, count: int) -> None:
    while count > 0:
        got = len(stream.read(min(count, 1 << 20)))
        if not got:
            raise ScanError(f"{path}: truncated before its voxels", code="scan-truncated")
        count -= got


def _check_affine(path: Path, affine: NDArray[np.float64]) -> None:
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
        raise ScanError(
            f"{path}: voxels of {sizes} mm are not a brain scan's; {advice}",
            code="scan-affine-invalid",
        )
