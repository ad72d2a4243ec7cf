"""Where decoded scans lie on disk: files that only grow, each written by one process.

    WRITER.index      a line for each scan: CRC-32 of what follows, a space, a `Record` as JSON
    WRITER-000.bin    boxes as they are in memory, each from a multiple of 4096 bytes on

WRITER is a process: host, process id and random letters. No process writes another's files, so no
file is locked: locks are not reliable on network file systems. Readers take all indices together;
of several records of one key the newest counts. A line that is cut or damaged is none. Boxes are
compared with their checksum when a process reads them for the first time.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from isal import isal_zlib

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.files import PRIVATE

_PAGE = 4096
# A shard ends where the next boxes would go beyond.
_SHARD = 2 << 30
# Written to the disk, and errors of it met, after so many bytes.
_SYNC = 64 << 20


class Fault(NamedTuple):
    """Why a scan cannot be used; `code`: one of `CODES`."""

    code: str
    text: str


class Record(NamedTuple):
    """What is kept of one scan.

    `content`: the `content_key` of each file; `read_at`: when their reading began, in seconds since
    1970. Of a scan that cannot be used, the `fault`; else `figures` (JSON), and where its
    boxes lie: `shard` (empty: they are not kept), `offset` in bytes and `crc`, their CRC-32.
    """

    key: str
    content: tuple[str, ...]
    read_at: float
    figures: str = ""
    fault: Fault | None = None
    shard: str = ""
    offset: int = 0
    crc: int = 0


class VolumeStore:
    """The records and boxes under `folder`; all boxes take `size` bytes. Threads may share it."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self._records: dict[str, Record] = {}
        self._read_to: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._sound: set[tuple[str, int]] = set()
        self._writer: _Writer | None = None
        self._lock = threading.RLock()
        self.refresh()

    @property
    def taken(self) -> int:
        """Bytes that one scan's boxes take in a shard."""
        return _whole(self.size)

    @property
    def used(self) -> int:
        """Bytes of all shards, as far as they are known."""
        return sum(map(_whole, self._ends.values()))

    def refresh(self) -> None:
        """Read what other processes have written since."""
        with self._lock:
            for entry in _entries(self.folder):
                if entry.name.endswith(".bin"):
                    with contextlib.suppress(OSError):
                        self._ends[entry.name] = Path(entry.path).stat().st_size
                elif entry.name.endswith(".index"):
                    self._read_index(entry)

    def _read_index(self, entry: os.DirEntry[str]) -> None:
        start = self._read_to.get(entry.name, 0)
        try:
            with open(entry.path, "rb") as file:
                file.seek(start)
                content = file.read()
        except OSError:
            return
        end = content.rfind(b"\n") + 1
        self._read_to[entry.name] = start + end
        for line in content[:end].splitlines():
            record = _parsed(line)
            if record is None:
                continue
            known = self._records.get(record.key)
            if known is None or known.read_at <= record.read_at:
                self._records[record.key] = record

    def find(self, key: str) -> Record | None:
        """The record of a key; None if there is none."""
        return self._records.get(key)

    def holds(self, record: Record) -> bool:
        """Whether the boxes of a record are there, at their full length."""
        end = record.offset + self.size
        if not record.shard or record.offset % _PAGE:
            return False
        if self._ends.get(record.shard, 0) < end:
            with contextlib.suppress(OSError):
                self._ends[record.shard] = (self.folder / record.shard).stat().st_size
        return self._ends.get(record.shard, 0) >= end

    def read(self, record: Record) -> memoryview | None:
        """The boxes of a record, memory-mapped; None where they are gone, cut or damaged."""
        if not record.shard or record.offset % _PAGE:
            return None
        end = record.offset + self.size
        with self._lock:
            shard = self._map(record.shard, end)
        if shard is None:
            self._ends.pop(record.shard, None)
            return None
        found = memoryview(shard)[record.offset : end]
        place = record.shard, record.offset
        if place not in self._sound:
            if isal_zlib.crc32(found) != record.crc:
                return None
            self._sound.add(place)
        return found

    def _map(self, name: str, end: int) -> mmap.mmap | None:
        """A shard of `end` bytes at least."""
        shard = self._maps.get(name)
        try:
            if shard is not None and shard.size() < end:
                # It was cut: what was read of it may have changed, too.
                del self._maps[name]
                self._sound = {place for place in self._sound if place[0] != name}
                return None
            if shard is None or len(shard) < end:
                with open(self.folder / name, "rb") as file:
                    if os.fstat(file.fileno()).st_size < end:
                        return None
                    shard = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._maps[name] = shard
        except (OSError, ValueError):
            return None
        return shard

    def add(self, record: Record, boxes: memoryview | None) -> Record:
        """Keep a record, and its boxes where they are given; what is kept.

        Raises:
            HyperFusionError: the folder cannot be written, or the disk is full.
        """
        with self._lock:
            try:
                # A process that was forked writes files of its own.
                if self._writer is None or self._writer.process != os.getpid():
                    self._writer = _Writer(self.folder)
                kept = self._writer.add(record, boxes)
            except OSError as error:
                raise HyperFusionError(
                    f"{self.folder}: a decoded scan cannot be kept: {error.strerror or error}; "
                    "what was kept before stays. Make room, name another folder as `cache`, or "
                    "give `cache_limit`, the bytes that decoded scans may take",
                    code="output-cannot-be-written",
                ) from error
            self._records[kept.key] = kept
            if kept.shard:
                self._ends[kept.shard] = kept.offset + self.size
            return kept

    def flush(self) -> None:
        """Have what was added on the disk, for processes of other machines.

        Raises:
            HyperFusionError: the disk is full, or fails.
        """
        with self._lock:
            if self._writer is not None and self._writer.process == os.getpid():
                try:
                    self._writer.sync()
                except OSError as error:
                    raise HyperFusionError(
                        f"{self.folder}: decoded scans cannot be written: "
                        f"{error.strerror or error}; make room, or name another folder as `cache`",
                        code="output-cannot-be-written",
                    ) from error


class _Writer:
    """The files of this process. A shard is begun with the first boxes."""

    def __init__(self, folder: Path) -> None:
        self.process = os.getpid()
        host = re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname())[:64]
        self.folder, self.name = folder, f"{host}-{self.process}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True, exist_ok=True)
        self.index = self._new(f"{self.name}.index")
        self.shard, self.shards, self.end, self.unsynced = -1, 0, 0, 0

    def __del__(self) -> None:
        for handle in (getattr(self, "index", -1), getattr(self, "shard", -1)):
            if handle >= 0:
                os.close(handle)

    def _new(self, name: str) -> int:
        # Private, as all that tells of persons.
        return os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)

    def add(self, record: Record, boxes: memoryview | None) -> Record:
        content = record._asdict()
        if boxes is not None:
            content |= self._write(boxes)
        text = json.dumps(content).encode()
        line = b"%08x %b\n" % (isal_zlib.crc32(text), text)
        _write_at(self.index, line, os.lseek(self.index, 0, os.SEEK_END))
        if self.unsynced > _SYNC:
            self.sync()
        return Record(**content)

    def _write(self, boxes: memoryview) -> dict[str, Any]:
        start = _whole(self.end)
        if self.shard < 0 or (start and start + boxes.nbytes > _SHARD):
            made = self._new(f"{self.name}-{self.shards:03}.bin")
            if self.shard >= 0:
                os.fsync(self.shard)
                os.close(self.shard)
            self.shard, self.shards, start = made, self.shards + 1, 0
        _write_at(self.shard, boxes, start)
        self.end = start + boxes.nbytes
        self.unsynced += boxes.nbytes
        name = f"{self.name}-{self.shards - 1:03}.bin"
        return {"shard": name, "offset": start, "crc": isal_zlib.crc32(boxes)}

    def sync(self) -> None:
        self.unsynced = 0
        if self.shard >= 0:
            os.fsync(self.shard)
        os.fsync(self.index)


def _whole(size: int) -> int:
    """`size` bytes as whole pages."""
    return -(-size // _PAGE) * _PAGE


def _write_at(handle: int, content: bytes | memoryview, start: int) -> None:
    """All of it, or nothing."""
    at, left = start, memoryview(content).cast("B")
    try:
        while left:
            count = os.pwrite(handle, left, at)
            at, left = at + count, left[count:]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(handle, start)
        raise


def _parsed(line: bytes) -> Record | None:
    """The record of a line of an index; None where it is damaged."""
    crc, _, text = line.partition(b" ")
    try:
        if int(crc, 16) != isal_zlib.crc32(text):
            return None
        content = json.loads(text)
        content["content"] = tuple(content["content"])
        content["fault"] = content["fault"] and Fault(*content["fault"])
        return Record(**content)
    except (ValueError, TypeError, KeyError):
        return None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError:
        return []


def sizes_below(folder: Path) -> Iterator[tuple[Path, int]]:
    """(folder, bytes) of each folder in `folder`, by name; bytes of the files right in it."""
    for entry in _entries(folder):
        if entry.is_dir():
            total = 0
            for file in _entries(Path(entry.path)):
                with contextlib.suppress(OSError):
                    total += file.stat().st_size
            yield Path(entry.path), total
