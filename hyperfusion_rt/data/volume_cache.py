"""Preprocessed volumes on disk, memory-mapped: a scan is decoded once, not once per epoch.

`FOLDER/boxes/SETTING/` holds the boxes of one setting (`data.volume_store`): SETTING is a hash of
the preprocessing, the checks and the code, and `setting.json` says what they are. Folders of other
settings may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt import _native
from hyperfusion_rt.config import Frozen, Preprocessing, ScanChecks
from hyperfusion_rt.data import fingerprint as fingerprints
from hyperfusion_rt.data import scan_check, scan_header, volumes
from hyperfusion_rt.data.finding import SHOWN, more
from hyperfusion_rt.data.fingerprint import fingerprint
from hyperfusion_rt.data.scan_check import Landmarks, Reference, checked_boxes
from hyperfusion_rt.data.volume_store import Fault, Record, VolumeStore, sizes_below
from hyperfusion_rt.data.volumes import Boxes, Volume, read_volume
from hyperfusion_rt.errors import HyperFusionError, ScanError
from hyperfusion_rt.files import sha256, stamp, write_text

_VERSION = "4"
_ENDS = 1 << 16
# A file that was changed so shortly (seconds) before it was read may be changed again and bear the
# same times: file systems keep them to 2 s at worst, and clocks of machines differ.
_SETTLED = 10.0
# Faults that are not of the scan alone, and may pass.
_PASSING = ("scan-unreadable", "scan-read-failed")
# Left free on the disk.
_MARGIN = 64 << 20
_SETTING = "setting.json"


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


@dataclass(slots=True)
class _Known:
    """What is known of a scan whose files have the stamps `now`."""

    now: list[str | None]
    key: str
    content: tuple[str, ...] | None
    record: Record | None


class VolumeCache:
    """Maps a case's images to its boxes `float32 [N, C, D, H, W]`, read-only and memory-mapped.

    An entry is found by the files' places and stamps (`files.stamp`), in the folder of the whole
    preprocessing and the code: a changed scan, setting or program decodes anew. Places are seen
    from the folder that the cache lies in: a study that was moved on its disk, with its cache, is
    found again. Where a stamp tells too little (the file was changed just
    before it was decoded, or the file system keeps no times), `content_key`s are compared, too.
    Boxes and records that are cut, damaged or not of this shape are made again. Several processes,
    on several machines, may use one folder. With `landmarks`, every scan is checked against the
    template (`data.scan_check`) before it is kept. What is wrong with a scan is kept, too, unless
    it may pass.

    Args:
        limit: bytes that boxes of this setting may take. What does not fit is decoded each time;
            `reserve` says what fits.
    """

    def __init__(
        self,
        folder: Path,
        preprocessing: Preprocessing,
        landmarks: Landmarks | None = None,
        checks: ScanChecks = "refuse",
        limit: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.preprocessing = preprocessing
        self.landmarks, self.checks, self.limit = landmarks, checks, limit
        self._checked = checks if landmarks is not None else ""
        parts = (_VERSION, preprocessing.model_dump_json(), self._checked, _code())
        self.setting = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
        size = 4 * math.prod(preprocessing.images_shape)
        self.store = VolumeStore(self.folder / "boxes" / self.setting, size)
        self._known: dict[Images, _Known] = {}
        self._root = self.folder.resolve().parent
        self._folders: dict[str, str] = {}
        self._fits: set[str] = set()

    def __reduce__(self) -> tuple[type[VolumeCache], tuple[object, ...]]:
        # In another process it opens the folder anew.
        given = (self.folder, self.preprocessing, self.landmarks, self.checks, self.limit)
        return VolumeCache, given

    def get(self, scan: Images) -> NDArray[np.float32]:
        """The boxes of `scan`, decoded when they are not in the cache.

        Raises:
            ScanError: the scan cannot be used.
            HyperFusionError: the cache cannot be written.
        """
        known = self._look(scan)
        if known.record is not None:
            _raise_fault(known.record, scan)
            found = self._read(known.record)
            if found is not None:
                return found
        boxes, _ = self._make(scan, known)
        # Memory that processes share, where there is some.
        found = None if known.record is None else self._read(known.record)
        return boxes.images if found is None else found

    def figures(self, scan: Images) -> Figures:
        """What `scan`'s boxes are like, decoded when that is not in the cache.

        Raises:
            ScanError, HyperFusionError: as `get`.
        """
        known = self._look(scan)
        if known.record is not None:
            _raise_fault(known.record, scan)
            return Figures.model_validate_json(known.record.figures)
        return self._make(scan, known)[1]

    def content(self, scan: Images) -> tuple[str, ...]:
        """The `content_key` of each of its files; not read again where the cache knows them."""
        known = self._look(scan)
        if known.content is None:
            known.content = tuple(content_key(file) for file in files_of(scan))
        return known.content

    def name(self, scan: Images) -> str:
        """What tells this scan, as it is now, and the setting from others; 32 letters."""
        parts = (self.setting, self._look(scan).key, *self.content(scan))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def lacks(self, scan: Images) -> bool:
        """Whether there is something of `scan` to decode and keep."""
        return self._lacks(self._look(scan))

    def fill(self, scan: Images) -> None:
        """Decode `scan` and keep what of it may be kept, unless that is there.

        Raises:
            ScanError, HyperFusionError: as `get`.
        """
        known = self._look(scan)
        if self._lacks(known):
            self._make(scan, known)
        elif known.record is not None:
            _raise_fault(known.record, scan)

    def reserve(self, scans: Sequence[Images]) -> list[Images]:
        """The `scans` that lack something, once each; the first whose boxes fit will be kept.

        Raises:
            HyperFusionError: the disk has no room for them.
        """
        known = {scan: self._look(scan) for scan in scans}
        without = [one.key for one in known.values() if self._has_none(one)]
        fit = len(without)
        if self.limit is not None:
            fit = max(0, min(fit, (self.limit - self.store.used) // self.store.taken))
        self._fits = set(without[:fit])
        self._refuse_full(fit)
        return [scan for scan, one in known.items() if self._lacks(one)]

    def flush(self) -> None:
        """Have what was decoded on the disk, for processes of other machines.

        Raises:
            HyperFusionError: the disk is full, or fails.
        """
        self.store.flush()

    def refresh(self) -> None:
        """Look again at what other processes have written."""
        self.store.refresh()
        self._known.clear()

    def notes(self, scans: Sequence[Images]) -> list[str]:
        """What a user should know: which scans are not kept, and what else takes room here."""
        found = []
        left = 0
        if self.limit is not None:
            left = sum(self._has_none(self._look(scan)) for scan in dict.fromkeys(scans))
        if left and self.limit is not None:
            found.append(
                f"{left} of {len(scans)} scans do not fit into `cache_limit`, {_gb(self.limit)}: "
                "they are decoded from their files each time"
            )
        others = [
            (place.name, size)
            for place, size in sizes_below(self.folder / "boxes")
            if place.name != self.setting
        ]
        if others:
            shown = ", ".join(f"{name} {_gb(size)}" for name, size in others[:SHOWN])
            found.append(
                f"{self.folder / 'boxes'} also holds boxes of other settings, which are not used "
                f"here: {shown}{more(len(others))}; {_gb(sum(size for _, size in others))} in all. "
                "Delete the folders that no study needs"
            )
        older = list(self.folder.glob("*.npy"))
        if older:
            found.append(
                f"{self.folder}: {len(older)} files of an older version, {older[0].name} say, are "
                "not used any more: delete *.npy and *.json there"
            )
        return found

    def _look(self, scan: Images) -> _Known:
        files = files_of(scan)
        now = [stamp(file) for file in files]
        known = self._known.get(scan)
        if known is not None and known.now == now:
            return known
        text = "\0".join(f"{self._place(f)}\0{n}" for f, n in zip(files, now, strict=True))
        key = hashlib.sha256(os.fsencode(text)).hexdigest()[:32]
        record = None if None in now else self.store.find(key)
        content = None
        if record is not None:
            content = record.content
            if not all(_settled(one, record.read_at) for one in now):
                content = tuple(content_key(file) for file in files)
                record = record if content == record.content else None
        known = _Known(now, key, content, record)
        self._known[scan] = known
        return known

    def _place(self, file: Path) -> str:
        """Where a file lies, links resolved, seen from the folder that the cache lies in."""
        if file.is_symlink():
            return os.path.relpath(file.resolve(), self._root)
        above, _, name = str(file).rpartition("/")  # of many files: Path.parent takes its time
        folder = self._folders.get(above)
        if folder is None:
            folder = self._folders[above] = os.path.relpath(file.parent.resolve(), self._root)
        return f"{folder}/{name}"

    def _has_none(self, known: _Known) -> bool:
        """Whether the cache has no boxes of a scan, which may be usable."""
        record = known.record
        return record is None or (record.fault is None and not self.store.holds(record))

    def _lacks(self, known: _Known) -> bool:
        return known.record is None or (self._has_none(known) and self._keeps(known.key))

    def _keeps(self, key: str) -> bool:
        """Whether boxes of this key are kept when they are made."""
        return self.limit is None or key in self._fits

    def _make(self, scan: Images, known: _Known) -> tuple[Boxes, Figures]:
        """Decode a scan, and keep what comes of it in `known` and on the disk."""
        files = files_of(scan)
        read_at = time.time()
        content = tuple(content_key(file) for file in files)
        try:
            images = [read_volume(file, preprocessing=self.preprocessing) for file in files]
            boxes = self._boxes(images)
        except ScanError as error:
            if error.code not in _PASSING and self._same(scan, known):
                fault = Fault(error.code, _without_paths(str(error), files))
                self._keep(known, Record(known.key, content, read_at, fault=fault), None)
            raise
        of_boxes = {name: getattr(boxes, name) for name in _OF_BOXES}
        prints = tuple(fingerprint(image, self.preprocessing) for image in images)
        figures = Figures(**of_boxes, content=prints)
        kept = np.ascontiguousarray(boxes.images) if self._keeps(known.key) else None
        if (kept is not None or known.record is None) and self._same(scan, known):
            text = json.dumps(figures.model_dump())  # which can write infinity
            record = Record(known.key, content, read_at, text)
            self._keep(known, record, kept)
        return boxes, figures

    def _same(self, scan: Images, known: _Known) -> bool:
        """Whether the files are what they were when they were looked at."""
        return [stamp(file) for file in files_of(scan)] == known.now

    def _keep(self, known: _Known, record: Record, boxes: NDArray[np.float32] | None) -> None:
        """Raises: HyperFusionError: boxes cannot be written. That others cannot, is no harm."""
        data = None if boxes is None else boxes.data.cast("B")
        try:
            known.record = self.store.add(record, data)
            if not (self.store.folder / _SETTING).exists():
                write_text(self.store.folder / _SETTING, self._said())
        except HyperFusionError:
            if boxes is not None:
                raise
            known.record = record
        known.content = record.content

    def _said(self) -> str:
        """What the setting is, for who looks into the folder."""
        content = {
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "scan_checks": self._checked,
            "code": _code(),
        }
        return json.dumps(content, indent=1) + "\n"

    def _boxes(self, images: list[Volume]) -> Boxes:
        reference = None if self.landmarks is None else Reference(self.landmarks)
        return checked_boxes(images, self.preprocessing, reference, self.checks)

    def _read(self, record: Record) -> NDArray[np.float32] | None:
        """The boxes that the cache has, or None."""
        found = self.store.read(record)
        if found is None:
            return None
        return np.frombuffer(found, np.float32).reshape(self.preprocessing.images_shape)

    def _refuse_full(self, count: int) -> None:
        needed = count * self.store.taken
        place = next(p for p in (self.store.folder, *self.store.folder.parents) if p.exists())
        free = shutil.disk_usage(place).free
        if needed and needed + _MARGIN > free:
            raise HyperFusionError(
                f"{self.store.folder}: the boxes of {count} scans take {_gb(needed)}, and the disk "
                f"has {_gb(free)} free: make room, name a folder on another disk as `cache`, or "
                "keep fewer with `cache_limit`: the others are then decoded each time",
                code="output-cannot-be-written",
            )


def files_of(scan: Images) -> tuple[Path, ...]:
    """The files of a case, the first channel's first."""
    return (scan,) if isinstance(scan, Path) else scan


def _settled(said: str | None, read_at: float) -> bool:
    """Whether a file of this stamp had not been changed for a while when it was read."""
    parts = (said or "").split("-")
    if len(parts) != 4:  # a folder's
        return False
    try:
        content, inode = int(parts[1]), int(parts[2])
    except ValueError:
        return False
    return inode > 0 and max(content, inode) < (read_at - _SETTLED) * 1e9


def _without_paths(text: str, files: Sequence[Path]) -> str:
    """A message in which the files have numbers: they may be moved."""
    for number, file in enumerate(files):
        text = text.replace(str(file), f"\0{number}\0")
    return text


def _raise_fault(record: Record, scan: Images) -> None:
    """Raises: ScanError: what was found wrong with the scan."""
    if record.fault is None:
        return
    text = record.fault.text
    for number, file in enumerate(files_of(scan)):
        text = text.replace(f"\0{number}\0", str(file))
    raise ScanError(text, code=record.fault.code)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
