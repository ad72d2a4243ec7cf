"""From a scan to the network's input: one path, shared by training and inference.

    x[i, j, k] = volume(A^-1 · w(i, j, k)),   w = center + spacing · (index - (shape - 1) / 2)

`A` is the scan's affine (voxel index to mm, RAS), `w` a voxel centre of the box in millimetres of
template space. One sampling step so does reorientation, cropping and resampling. Where the scan's
grid has the box's spacing and axes, whole voxels are taken (a shift of at most half a voxel);
otherwise the value is interpolated trilinearly. Then the non-zero voxels are z-scored; zero, the
background, stays zero.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt import _native
from hyperfusion_rt.config import Box, Preprocessing
from hyperfusion_rt.errors import ScanError

# Deflate cannot shrink data by more than this factor: a header that claims more lies.
_DEFLATE_LIMIT = 1032
_KINDS = {"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"}
_CHUNK = 1 << 18
# Axes count as the box's own when they differ by less: 0.2 voxel at the end of 96.
_SNAP = 2e-3


@dataclass(frozen=True)
class Volume:
    """A scan as it is stored: value = slope · voxel + inter.

    `voxels [X, Y, Z]` keep their data type; `affine [4, 4]` maps voxel indices to mm (RAS).
    """

    path: Path
    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    slope: float
    inter: float


@dataclass(frozen=True)
class Boxes:
    """`images float32 [N, 1, D, H, W]`, one per box, and what a reader should know of them."""

    images: NDArray[np.float32]
    coverage: tuple[float, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    affine: NDArray[np.float64]
    slope: float
    inter: float


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a scan's file, packed as they are.

    Raises:
        ScanError: missing, a folder, or not readable.
    """
    try:
        return Path(path).read_bytes()
    except IsADirectoryError:
        raise ScanError(f"{path}: is a folder, not a scan") from None
    except OSError as error:
        raise ScanError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_volume(
    path: str | os.PathLike[str],
    content: bytes | None = None,
    preprocessing: Preprocessing | None = None,
) -> Volume:
    """Read a NIfTI-1, NIfTI-2 (`.nii`, `.nii.gz`) or MGH (`.mgz`, `.mgh`) file.

    The voxels are neither scaled nor converted; memory is the file and its raw voxels. `content`:
    what `read_file` gave for this path, if it was read already. With `preprocessing`, only the
    slices (along the last axis) that its boxes touch are kept, for `extract` with the same
    preprocessing: the voxels of all others are undefined. The whole file is unpacked either way,
    and its checksum compared.

    Raises:
        ScanError: missing, truncated, damaged, not one 3D volume, or without a usable affine.
    """
    from isal import igzip
    from isal.igzip_lib import IsalError

    path = Path(path)
    content = read_file(path) if content is None else content
    if content[:2] != b"\x1f\x8b":
        return _plain(path, content)
    try:
        with igzip.IGzipFile(fileobj=io.BytesIO(content), mode="rb") as stream:
            return _unpack(path, stream, len(content) * _DEFLATE_LIMIT, preprocessing)
    except (EOFError, zlib.error, IsalError) as error:  # type: ignore[misc]  # isal's stubs err
        raise ScanError(f"{path}: the file is truncated or damaged ({error})") from None
    except gzip.BadGzipFile as error:
        raise ScanError(f"{path}: the file is damaged ({error})") from None


def memory_needed(path: str | os.PathLike[str], preprocessing: Preprocessing) -> int:
    """Bytes that `read_volume` and `extract` of this file hold at most, from its header alone.

    Raises:
        ScanError: as `read_volume`, for what the header shows.
    """
    from isal import igzip

    path = Path(path)
    try:
        with open(path, "rb") as raw:
            size = os.fstat(raw.fileno()).st_size
            start = raw.read(1 << 16)
    except OSError:
        read_file(path)  # says what is wrong
        raise
    boxes = 4 * len(preprocessing.boxes) * math.prod(preprocessing.shape)
    if start[:2] != b"\x1f\x8b":
        return 2 * size + boxes  # the file, and a copy where the other byte order is stored
    try:
        with igzip.IGzipFile(fileobj=io.BytesIO(start), mode="rb") as stream:
            header = _checked_header(path, stream, size * _DEFLATE_LIMIT)
    except (EOFError, OSError, zlib.error):
        return size + boxes  # what reading it will say
    low, high = _slices(header, preprocessing)
    return size + (high - low) * math.prod(header.shape[:2]) * header.dtype.itemsize + boxes


def _plain(path: Path, content: bytes) -> Volume:
    header = _checked_header(path, io.BytesIO(content), len(content))
    voxels = np.frombuffer(content, header.dtype, math.prod(header.shape), header.offset)
    if not (voxels.flags.aligned and header.dtype.isnative):
        voxels = voxels.astype(header.dtype.newbyteorder("="))
    return _volume(path, header, voxels)


def _unpack(
    path: Path, stream: BinaryIO, limit: int, preprocessing: Preprocessing | None
) -> Volume:
    header = _checked_header(path, stream, limit)
    plane = math.prod(header.shape[:2]) * header.dtype.itemsize
    low, high = _slices(header, preprocessing)
    # The system commits only pages that are written: slices that nobody needs cost nothing.
    buffer = np.empty(plane * header.shape[2], np.uint8)
    view, scratch = memoryview(buffer.data), memoryview(bytearray(_CHUNK))
    # Unneeded slices go through a buffer that stays in the processor's cache.
    at = 0
    for end, kept in ((low * plane, False), (high * plane, True), (len(view), False)):
        while at < end:
            size = min(_CHUNK, end - at)
            into = view[at : at + size] if kept else scratch[:size]
            got = stream.readinto(into)  # type: ignore[attr-defined]
            if not got:
                raise ScanError(f"{path}: truncated: {at:,} of {len(view):,} bytes of voxels")
            at += got
    # To the end of the file: its checksum is only compared there.
    while stream.readinto(scratch):  # type: ignore[attr-defined]
        pass
    voxels = buffer.view(header.dtype)
    if not header.dtype.isnative:
        count = math.prod(header.shape[:2])
        voxels[low * count : high * count].byteswap(inplace=True)
        voxels = voxels.view(header.dtype.newbyteorder("="))
    return _volume(path, header, voxels)


def _volume(path: Path, header: _Header, voxels: NDArray[Any]) -> Volume:
    voxels = voxels.reshape(header.shape, order="F")
    return Volume(path, voxels, header.affine, header.slope, header.inter)


def _slices(header: _Header, preprocessing: Preprocessing | None) -> tuple[int, int]:
    """The slices along the last axis, first and end, that sampling any box may read."""
    count = header.shape[2]
    if preprocessing is None:
        return 0, count
    low, high = count, 0
    for box in preprocessing.boxes:
        row = sampling_matrix(header.affine, box, preprocessing)[2]
        ends = row[:3] * (np.asarray(preprocessing.shape) - 1)
        low = min(low, math.floor(row[3] + np.minimum(ends, 0).sum()) - 1)
        high = max(high, math.ceil(row[3] + np.maximum(ends, 0).sum()) + 2)
    # A box beyond the scan reads, and then discards, the nearest slice.
    low, high = min(max(low, 0), count - 1), max(min(high, count), 1)
    return low, max(high, low + 1)


def _checked_header(path: Path, stream: BinaryIO, limit: int) -> _Header:
    """The header, of one 3D volume that a file of at most `limit` bytes can hold."""
    header = _read_header(path, stream)
    shape = header.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise ScanError(
            f"{path}: {len(shape)} dimensions {shape}, but one 3D volume is needed; "
            "split a series into volumes first"
        )
    if min(shape) < 1:
        raise ScanError(f"{path}: empty volume of shape {shape}")
    if f"{header.dtype.kind}{header.dtype.itemsize}" not in _KINDS:
        raise ScanError(
            f"{path}: voxels of type {header.dtype} are not supported; use real numbers"
        )
    need = header.offset + math.prod(shape) * header.dtype.itemsize
    if need > limit:
        raise ScanError(
            f"{path}: truncated: its header claims {shape[0]}x{shape[1]}x{shape[2]} voxels, "
            f"{need:,} bytes, and the file cannot hold more than {limit:,}"
        )
    _check_affine(path, header.affine)
    return replace(header, shape=shape)


def _read_header(path: Path, stream: BinaryIO) -> _Header:
    import nibabel as nib
    from nibabel.spatialimages import HeaderDataError

    # nibabel logs what it repairs in a header; what matters here is checked and said below.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    start = stream.read(4)
    if len(start) < 4:
        raise ScanError(f"{path}: the file is empty or truncated")
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
        raise ScanError(f"{path}: its header is damaged: {error}") from None
    raise ScanError(f"{path}: neither a NIfTI nor an MGH file")


def _nifti(path: Path, kind: Any, start: bytes, stream: BinaryIO) -> _Header:
    size = kind.template_dtype.itemsize
    block = start + stream.read(size - len(start))
    if len(block) < size:
        raise ScanError(f"{path}: truncated inside its header")
    if block[344:346] not in (b"n+", b"ni") and block[4:6] not in (b"n+", b"ni"):
        raise ScanError(f"{path}: not a NIfTI file (no magic string in its header)")
    header = kind(block, check=True)
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        raise ScanError(
            f"{path}: the header says nothing of orientation (qform_code and sform_code are 0), "
            "so left and right cannot be told; convert the scan again or register it to MNI space"
        )
    slope, inter = header.get_slope_inter()
    offset = int(header.get_data_offset())
    if offset < size:
        raise ScanError(f"{path}: its header puts the voxels at byte {offset}, inside the header")
    _skip(path, stream, offset - size)
    shape = tuple(int(n) for n in header.get_data_shape())
    affine = np.asarray(header.get_best_affine(), np.float64)
    return _Header(
        shape,
        header.get_data_dtype(),
        offset,
        affine,
        1.0 if slope is None else float(slope),
        0.0 if inter is None else float(inter),
    )


def _mgh(kind: Any, start: bytes, stream: BinaryIO) -> _Header:
    offset = 284
    block = start + stream.read(offset - len(start))
    size = kind.template_dtype.itemsize
    header = kind(block[:size].ljust(size, b"\0"), check=False)
    shape = tuple(int(n) for n in header.get_data_shape())
    affine = np.asarray(header.get_affine(), np.float64)
    return _Header(shape, header.get_data_dtype(), offset, affine, 1.0, 0.0)


def _skip(path: Path, stream: BinaryIO, count: int) -> None:
    while count > 0:
        got = len(stream.read(min(count, 1 << 20)))
        if not got:
            raise ScanError(f"{path}: truncated before its voxels")
        count -= got


def _check_affine(path: Path, affine: NDArray[np.float64]) -> None:
    advice = "repair its qform or sform, or convert the scan again"
    if not np.isfinite(affine).all():
        raise ScanError(f"{path}: its affine holds NaN or infinity; {advice}")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() <= 0 or abs(np.linalg.det(affine[:3, :3])) < 1e-3 * spacing.prod():
        raise ScanError(f"{path}: its affine is singular; {advice}")
    if spacing.min() < 0.1 or spacing.max() > 20:
        sizes = " x ".join(f"{size:.3g}" for size in spacing)
        raise ScanError(f"{path}: voxels of {sizes} mm are not a brain scan's; {advice}")


def sampling_matrix(
    affine: NDArray[np.float64], box: Box, preprocessing: Preprocessing
) -> NDArray[np.float64]:
    """The `float64 [3, 4]` matrix from an index of the box to a voxel coordinate of the scan."""
    step = np.full(3, preprocessing.spacing)
    if box.mirror:
        step[0] = -step[0]
    to_mm = np.eye(4)
    to_mm[:3, :3] = np.diag(step)
    middle = (np.asarray(preprocessing.shape, np.float64) - 1) / 2
    to_mm[:3, 3] = np.asarray(box.center) - step * middle
    matrix = (np.linalg.inv(affine) @ to_mm)[:3]
    # Rounding errors of the inverse must not make an aligned grid look oblique.
    matrix[:, :3][np.abs(matrix[:, :3]) < 1e-6] = 0.0
    whole = np.rint(matrix[:, :3])
    if np.abs(matrix[:, :3] - whole).max() < _SNAP and abs(np.linalg.det(whole)) == 1:
        matrix[:, :3] = whole
        # A tie (half a voxel) falls to the same side of the box, whatever the last bits say and
        # whichever way the axis is stored.
        way = whole.sum(1)
        matrix[:, 3] = way * np.floor(way * matrix[:, 3] + 0.5 + 1e-4)
    return np.ascontiguousarray(matrix)


def extract(volume: Volume, preprocessing: Preprocessing) -> Boxes:
    """Crop, resample and normalise every box of `preprocessing` out of `volume`.

    Raises:
        ScanError: a box lies (mostly) outside the scan, or holds NaN, infinity or no contrast.
    """
    shape = preprocessing.shape
    images = np.empty((len(preprocessing.boxes), 1, *shape), np.float32)
    coverage: list[float] = []
    warnings: list[str] = []
    for image, box in zip(images, preprocessing.boxes, strict=True):
        inside, nonfinite, nonzero, _, deviation = _native.crop_normalise(
            volume.voxels,
            volume.slope,
            volume.inter,
            sampling_matrix(volume.affine, box, preprocessing),
            image[0],
        )
        where = f"{volume.path}: {box.name} box around {box.center} mm"
        covered = inside / float(np.prod(shape))
        if covered < preprocessing.min_coverage:
            raise ScanError(
                f"{where}: only {covered:.0%} of it lies inside the scan "
                f"(at least {preprocessing.min_coverage:.0%} is needed); "
                "is the scan registered to MNI space?"
            )
        if nonfinite:
            raise ScanError(f"{where}: {nonfinite} voxels are NaN or infinite; replace them by 0")
        if not nonzero:
            raise ScanError(f"{where}: every voxel is 0")
        if deviation == 0:
            raise ScanError(f"{where}: every non-zero voxel has the same value")
        coverage.append(covered)
        if covered < 0.95:
            warnings.append(f"{box.name} box: {covered:.0%} inside the scan")
    return Boxes(images, tuple(coverage), tuple(warnings))


def load_boxes(path: str | os.PathLike[str], preprocessing: Preprocessing) -> Boxes:
    """From a file to the network's input: `read_volume`, then `extract`."""
    return extract(read_volume(path, preprocessing=preprocessing), preprocessing)
