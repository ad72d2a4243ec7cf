"""From a scan to the network's input: one path, shared by training and inference.

    x[i, j, k] = volume(A^-1 · w(i, j, k)),   w = center + spacing · (index - (shape - 1) / 2)

`A` is the scan's affine (voxel index to mm, RAS), `w` a voxel centre of the box in millimetres of
template space. One sampling step so does reorientation, cropping and resampling. Where the scan's
grid is the box's, voxels are taken as they are; otherwise the value is interpolated trilinearly.

Then the foreground is z-scored, and the background is 0; or, for images whose values are
quantities, a range of values becomes 0 to 1 (`Preprocessing.normalisation`). What is background
is decided on the scan's own grid and resampled with it: see `kernels/cpu/support.hpp` and
`crop_normalise.hpp`.
Artifacts made before that rule keep theirs: what is exactly 0 is background, and a shift of up to
half a voxel is not interpolated.
"""

from __future__ import annotations

import errno
import gzip
import io
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt import _native
from hyperfusion_rt.config import Box, Channel, Preprocessing
from hyperfusion_rt.data.other_files import gone_annex
from hyperfusion_rt.data.scan_header import Header, read_header, refuse_more
from hyperfusion_rt.errors import ScanError

# Deflate cannot shrink data by more than this factor: a header that claims more lies.
_DEFLATE_LIMIT = 1032
_CHUNK = 1 << 18
# The system's errors that are of the file itself. Others may pass: a network that is down, say.
_OF_THE_FILE = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG")
}
# A grid counts as the box's own when no voxel centre is farther from it, in voxels: files keep the
# affine as float32. The older rule let axes differ by so much a voxel, and any shift.
_SNAP, _OLDER_SNAP = 0.02, 2e-3


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
    warnings: tuple[str, ...] = ()

    @property
    def grid(self) -> VoxelGrid:
        """Where its voxels lie."""
        return VoxelGrid.of(self.voxels, self.affine)


@dataclass(frozen=True)
class VoxelGrid:
    """Where a scan's voxels lie: `shape [X, Y, Z]`; `affine [4, 4]` maps indices to mm (RAS)."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @classmethod
    def of(cls, voxels: NDArray[Any], affine: NDArray[np.float64]) -> VoxelGrid:
        """That of `voxels [X, Y, Z]`."""
        x, y, z = voxels.shape
        return cls((x, y, z), affine)


@dataclass(frozen=True)
class Boxes:
    """`images float32 [N, C, D, H, W]`, C channels per box, and what a reader should know of them.

    Per box and channel, a box's channels together: `coverage`, the part of it inside the scan;
    `fill`, the part that is foreground; `contrast`, standard deviation over mean of the
    foreground's brightness over the background.
    """

    images: NDArray[np.float32]
    coverage: tuple[float, ...]
    fill: tuple[float, ...]
    contrast: tuple[float, ...]
    warnings: tuple[str, ...]


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a scan's file, packed as they are.

    Raises:
        ScanError: missing, a folder, or not readable.
    """
    path = Path(path)
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            # Reading it could wait for ever.
            raise ScanError(f"{path}: is no file, but a pipe or a device", code="scan-unreadable")
        return path.read_bytes()
    except IsADirectoryError:
        raise ScanError(f"{path}: is a folder, not a scan", code="scan-unreadable") from None
    except OSError as error:
        if gone_annex(path):
            raise ScanError(
                f"{path}: a git-annex link whose content is not here; run: datalad get {path}",
                code="scan-unreadable",
            ) from None
        kind = "scan-unreadable" if error.errno in _OF_THE_FILE else "scan-read-failed"
        raise ScanError(f"{path}: cannot be read: {error.strerror or error}", code=kind) from None


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
    except EOFError as error:
        raise ScanError(
            f"{path}: the file is truncated or damaged ({error})", code="scan-truncated"
        ) from None
    except (zlib.error, IsalError) as error:  # type: ignore[misc]  # isal's stubs err
        raise ScanError(
            f"{path}: the file is truncated or damaged ({error})", code="scan-damaged"
        ) from None
    except gzip.BadGzipFile as error:
        raise ScanError(f"{path}: the file is damaged ({error})", code="scan-damaged") from None


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
            header = read_header(path, stream, size * _DEFLATE_LIMIT)
    except (EOFError, OSError, zlib.error):
        return size + boxes  # what reading it will say
    low, high = kept_slices(header.affine, header.shape[2], preprocessing)
    return size + (high - low) * math.prod(header.shape[:2]) * header.dtype.itemsize + boxes


def _plain(path: Path, content: bytes) -> Volume:
    header = read_header(path, io.BytesIO(content), len(content))
    voxels = np.frombuffer(content, header.dtype, math.prod(header.shape), header.offset)
    if not (voxels.flags.aligned and header.dtype.isnative):
        voxels = voxels.astype(header.dtype.newbyteorder("="))
    refuse_more(path, header, len(content) - header.offset - voxels.nbytes)
    return _volume(path, header, voxels)


def _unpack(
    path: Path, stream: BinaryIO, limit: int, preprocessing: Preprocessing | None
) -> Volume:
    header = read_header(path, stream, limit)
    plane = math.prod(header.shape[:2]) * header.dtype.itemsize
    low, high = kept_slices(header.affine, header.shape[2], preprocessing)
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
                raise ScanError(
                    f"{path}: truncated: {at:,} of {len(view):,} bytes of voxels",
                    code="scan-truncated",
                )
            at += got
    # To the end of the file: its checksum is only compared there.
    extra = 0
    while got := stream.readinto(scratch):  # type: ignore[attr-defined]
        extra += got
    refuse_more(path, header, extra)
    voxels = buffer.view(header.dtype)
    if not header.dtype.isnative:
        count = math.prod(header.shape[:2])
        voxels[low * count : high * count].byteswap(inplace=True)
        voxels = voxels.view(header.dtype.newbyteorder("="))
    return _volume(path, header, voxels)


def _volume(path: Path, header: Header, voxels: NDArray[Any]) -> Volume:
    voxels = voxels.reshape(header.shape, order="F")
    return Volume(path, voxels, header.affine, header.slope, header.inter, header.warnings)


def kept_slices(
    affine: NDArray[np.float64], count: int, preprocessing: Preprocessing | None
) -> tuple[int, int]:
    """The slices along the last axis of `count`, first and end, that sampling any box may read."""
    # The background is found from the whole scan.
    if preprocessing is None or preprocessing.normalisation != "zscore-nonzero":
        return 0, count
    low, high = count, 0
    for box in preprocessing.boxes:
        row = sampling_matrix(affine, box, preprocessing)[2]
        ends = row[:3] * (np.asarray(preprocessing.shape) - 1)
        low = min(low, math.floor(row[3] + np.minimum(ends, 0).sum()) - 1)
        high = max(high, math.ceil(row[3] + np.maximum(ends, 0).sum()) + 2)
    # A box beyond the scan reads, and then discards, the nearest slice.
    low, high = min(max(low, 0), count - 1), max(min(high, count), 1)
    return low, max(high, low + 1)


def sampling_matrix(
    affine: NDArray[np.float64], box: Box, preprocessing: Preprocessing
) -> NDArray[np.float64]:
    """The `float64 [3, 4]` matrix from an index of the box to a voxel coordinate of the scan.

    Where the scan's grid is the box's, but for rounding, its numbers are whole.
    """
    to_mm = np.eye(4)
    to_mm[:3, :3] = 0.0
    for axis, (world, way) in enumerate(preprocessing.directions):
        flipped = box.mirror and world == 0
        to_mm[world, axis] = preprocessing.spacing * (-way if flipped else way)
    middle = (np.asarray(preprocessing.shape, np.float64) - 1) / 2
    to_mm[:3, 3] = np.asarray(box.center) - to_mm[:3, :3] @ middle
    matrix = (np.linalg.inv(affine) @ to_mm)[:3]
    # Rounding errors of the inverse must not make an aligned grid look oblique.
    matrix[:, :3][np.abs(matrix[:, :3]) < 1e-6] = 0.0
    if preprocessing.normalisation == "zscore-nonzero":
        _snap_as_before(matrix)
        return np.ascontiguousarray(matrix)
    whole = np.rint(matrix)
    ends = np.asarray(preprocessing.shape) - 1
    off = np.abs(matrix[:, 3] - whole[:, 3]) + np.abs(matrix[:, :3] - whole[:, :3]) @ ends
    return np.ascontiguousarray(whole if off.max() < _SNAP else matrix)


def _snap_as_before(matrix: NDArray[np.float64]) -> None:
    whole = np.rint(matrix[:, :3])
    if np.abs(matrix[:, :3] - whole).max() < _OLDER_SNAP and abs(np.linalg.det(whole)) == 1:
        matrix[:, :3] = whole
        # A tie (half a voxel) falls to the same side of the box, whatever the last bits say and
        # whichever way the axis is stored.
        way = whole.sum(1)
        matrix[:, 3] = way * np.floor(way * matrix[:, 3] + 0.5 + 1e-4)


def find_support(volume: Volume) -> _native.Support:
    """Where the volume holds background, and where foreground: see `kernels/cpu/support.hpp`."""
    return _native.find_support(volume.voxels)


def join_channels(found: Sequence[Boxes]) -> Boxes:
    """The boxes of a case's channels, `[N, 1, D, H, W]` each, as one."""
    if len(found) == 1:
        return found[0]

    def mixed(name: str) -> tuple[float, ...]:
        return tuple(x for box in zip(*(getattr(b, name) for b in found), strict=True) for x in box)

    images = np.concatenate([boxes.images for boxes in found], 1)
    warnings = tuple(dict.fromkeys(text for boxes in found for text in boxes.warnings))
    return Boxes(images, mixed("coverage"), mixed("fill"), mixed("contrast"), warnings)


def extract(
    volume: Volume,
    preprocessing: Preprocessing,
    support: _native.Support | None = None,
    channel: Channel | None = None,
) -> Boxes:
    """Crop, resample and normalise every box of `preprocessing` out of `volume`: one channel.

    `support`: what `find_support` gave for the volume, if it was found already. `channel`: which
    of the preprocessing's the volume is; default: the first.

    Raises:
        ScanError: a box lies (mostly) outside the scan, or holds NaN, infinity or no contrast.
    """
    shape = preprocessing.shape
    images = np.empty((len(preprocessing.boxes), 1, *shape), np.float32)
    coverage: list[float] = []
    fill: list[float] = []
    contrast: list[float] = []
    warnings = list(volume.warnings)
    channel = channel or preprocessing.channels[0]
    normalisation = preprocessing.normalisation_of(channel)
    if normalisation == "zscore-nonzero":
        support = None
    elif support is None and normalisation == "zscore-foreground":
        support = find_support(volume)
    for image, box in zip(images, preprocessing.boxes, strict=True):
        matrix = sampling_matrix(volume.affine, box, preprocessing)
        stored = volume.voxels, volume.slope, volume.inter
        fixed = normalisation in ("fixed-range", "minmax", "none")
        if fixed:
            low, high = preprocessing.range_of(channel) or _range_of(volume)
            crop = _native.crop_range(*stored, matrix, low, high, image[0])
            if normalisation == "none":
                image *= np.float32(high - low)
                image += np.float32(low)
        else:
            crop = _native.crop_normalise(*stored, support, matrix, image[0])
        inside, nonfinite, part, mean, deviation = crop
        where = f"{volume.path}: {box.name} box around {box.center} mm"
        covered = inside / float(np.prod(shape))
        if covered < preprocessing.min_coverage:
            raise ScanError(
                f"{where}: only {covered:.0%} of it lies inside the scan "
                f"(at least {preprocessing.min_coverage:.0%} is needed); "
                "is the scan registered to MNI space?",
                code="scan-box-outside",
            )
        if nonfinite:
            raise ScanError(
                f"{where}: {nonfinite} voxels are NaN or infinite; replace them by 0",
                code="scan-not-finite",
            )
        # A mask has one value beside 0, which is no constant.
        if fixed and (part == 0 or (deviation == 0 and part == inside)):
            raise ScanError(
                f"{where}: every voxel lies at or beyond the same end of the range {low:g} to "
                f"{high:g}, or has the same value; does the range fit the image?",
                code="scan-constant",
            )
        if part == 0 or mean == deviation == 0:
            raise ScanError(
                f"{where}: holds background only: every voxel is 0, or has the value of the "
                "scan's border",
                code="scan-constant",
            )
        if deviation == 0 and not fixed:
            raise ScanError(
                f"{where}: every voxel that is not background has the same value",
                code="scan-constant",
            )
        coverage.append(covered)
        fill.append(part / float(np.prod(shape)))
        contrast.append(deviation / abs(mean) if mean else math.inf)
        if covered < 0.95:
            warnings.append(f"{box.name} box: {covered:.0%} inside the scan")
    return Boxes(images, tuple(coverage), tuple(fill), tuple(contrast), tuple(warnings))


def _range_of(volume: Volume) -> tuple[float, float]:
    """The least and the largest value of a scan.

    Raises:
        ScanError: it has one value, or none that is finite.
    """
    found = volume.voxels
    if found.dtype.kind == "f":
        found = found[np.isfinite(found)]
    ends = (
        [volume.slope * float(v) + volume.inter for v in (found.min(), found.max())]
        if found.size
        else [0.0]
    )
    low, high = min(ends), max(ends)
    if not low < high:
        raise ScanError(
            f"{volume.path}: every voxel has the same value, or none is finite",
            code="scan-constant",
        )
    return low, high


def load_boxes(path: str | os.PathLike[str], preprocessing: Preprocessing) -> Boxes:
    """From a file to the network's input: `read_volume`, then `extract`."""
    return extract(read_volume(path, preprocessing=preprocessing), preprocessing)
