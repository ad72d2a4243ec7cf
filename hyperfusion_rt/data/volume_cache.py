"""Preprocessed volumes on disk, memory-mapped: a scan is decoded once, not once per epoch."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt import _native
from hyperfusion_rt.config import Frozen, Preprocessing, ScanChecks
from hyperfusion_rt.data import fingerprint as fingerprints
from hyperfusion_rt.data import scan_check, scan_header, volumes
from hyperfusion_rt.data.fingerprint import fingerprint
from hyperfusion_rt.data.scan_check import Landmarks, Reference, checked_boxes
from hyperfusion_rt.data.volumes import Boxes, Volume, read_volume
from hyperfusion_rt.files import replacing, sha256, stamp, write_text

_VERSION = "3"
_ENDS = 1 << 16


def content_key(path: Path) -> str:
    """A hash of a file's size and of its first and last 64 KiB; "" if it cannot be read.

    A `.gz` ends with the checksum of all that is packed in it: another image has another key.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(f"{size}:".encode() + file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            digest.update(file.read(_ENDS))
    except OSError:
        return ""
    return digest.hexdigest()


class Figures(Frozen):
    """What is kept of `Boxes` beside the images; see there.

    `content`: the `fingerprint` of each image.
    """

    coverage: tuple[float, ...]
    fill: tuple[float, ...]
    contrast: tuple[float, ...]
    warnings: tuple[str, ...]
    content: tuple[str, ...]


_OF_BOXES = tuple(name for name in Figures.model_fields if name != "content")


@lru_cache(maxsize=1)
def _code() -> str:
    """A hash of what makes boxes of scans: another program makes other boxes."""
    modules = (volumes, scan_header, scan_check, fingerprints, _native)
    files = [str(module.__file__) for module in modules]
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()


# A case's scan, or the files of its channels.
Images = Path | tuple[Path, ...]


class VolumeCache:
    """Maps a case's images to its boxes `float32 [N, C, D, H, W]`, read-only and memory-mapped.

    The key holds the files' paths, stamps (`files.stamp`) and `content_key`s, the whole
    preprocessing and the code: a changed scan, setting or program decodes anew. A file of
    the cache that is cut, empty or not of this shape is made again. Several processes may use one
    folder. With `landmarks`, every scan is checked against the template (`data.scan_check`) before
    it is kept.
    """

    def __init__(
        self,
        folder: Path,
        preprocessing: Preprocessing,
        landmarks: Landmarks | None = None,
        checks: ScanChecks = "refuse",
    ) -> None:
        self.folder = Path(folder)
        self.preprocessing = preprocessing
        self.landmarks, self.checks = landmarks, checks
        self._paths: dict[Images, tuple[list[str | None], Path]] = {}

    def path(self, scan: Images) -> Path:
        """The cache file of `scan`."""
        files = files_of(scan)
        now = [stamp(file) for file in files]
        known = self._paths.get(scan)
        if known is not None and known[0] == now:
            return known[1]
        checked = self.checks if self.landmarks is not None else ""
        setting = self.preprocessing.model_dump_json() + checked
        each = [(str(f.resolve()), str(n), content_key(f)) for f, n in zip(files, now, strict=True)]
        parts = (_VERSION, *(part for one in each for part in one), setting, _code())
        name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
        path = self.folder / f"{name}.npy"
        self._paths[scan] = now, path
        return path

    def get(self, scan: Images) -> NDArray[np.float32]:
        """The boxes of `scan`, decoded when they are not in the cache.

        Raises:
            ScanError: the scan cannot be used.
            HyperFusionError: the cache cannot be written.
        """
        path = self.path(scan)
        found = self._read(path)
        if found is None:
            boxes, _ = self._make(scan, path)
            found = self._read(path)
            # Another program may have spoilt it again; what was decoded is right.
            return boxes.images if found is None else found
        return found

    def figures(self, scan: Images) -> Figures:
        """What `scan`'s boxes are like, decoded when that is not in the cache.

        Raises:
            ScanError, HyperFusionError: as `get`.
        """
        path = self.path(scan)
        try:
            return Figures(**json.loads(_beside(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return self._make(scan, path)[1]

    def _make(self, scan: Images, path: Path) -> tuple[Boxes, Figures]:
        images = [read_volume(f, preprocessing=self.preprocessing) for f in files_of(scan)]
        boxes = self._boxes(images)
        of_boxes = {name: getattr(boxes, name) for name in _OF_BOXES}
        content = tuple(fingerprint(image, self.preprocessing) for image in images)
        figures = Figures(**of_boxes, content=content)
        write_text(_beside(path), figures.model_dump_json(), private=True)
        with replacing(path, private=True) as temporary, open(temporary, "wb") as file:
            np.save(file, boxes.images)
        return boxes, figures

    def _boxes(self, images: list[Volume]) -> Boxes:
        reference = None if self.landmarks is None else Reference(self.landmarks)
        return checked_boxes(images, self.preprocessing, reference, self.checks)

    def _read(self, path: Path) -> NDArray[np.float32] | None:
        """What the cache has, or None: nothing, or what is no such file."""
        shape = self.preprocessing.images_shape
        try:
            array: NDArray[np.float32] = np.lib.format.open_memmap(path, mode="r")
        except Exception:  # whatever is wrong with it: it is made again
            return None
        return array if array.shape == shape and array.dtype == np.float32 else None


def files_of(scan: Images) -> tuple[Path, ...]:
    """The files of a case, the first channel's first."""
    return (scan,) if isinstance(scan, Path) else scan


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")
