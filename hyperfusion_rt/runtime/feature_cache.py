"""The trunk's features of scans, kept on disk: when only the table changed, only the head runs.

One SQLite file `features.sqlite` in a folder. Features are found by what made them: the SHA-256 of
the scan's content, and the network's (its engine file, code, instruction set, preprocessing). So
that an unchanged file need not be read again to know its content, its hash is kept with its path,
size, times of change and inode, as version control systems do. Several processes of one machine may
use a folder at once; SQLite's locks are not reliable on network file systems.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.files import PRIVATE, shown, stamp

Floats = NDArray[np.float32]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS scans (
    path TEXT PRIMARY KEY, stamp TEXT, digest BLOB)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS features (
    network BLOB, digest BLOB, arrays TEXT, content BLOB, note TEXT,
    PRIMARY KEY (network, digest));
"""
_VERSION = 1


@dataclass(frozen=True)
class Kept:
    """Features by name, `[1, ...]` float32 each, and what else is known of the scan (JSON)."""

    features: dict[str, Floats]
    note: dict[str, Any]


class FeatureCache:
    """See the module. `network`: whatever, besides the scan, the features depend on.

    Raises:
        HyperFusionError: the folder cannot be written, or its file is no such cache.
    """

    def __init__(self, folder: Path, network: object) -> None:
        self.path = folder / "features.sqlite"
        text = json.dumps(network, sort_keys=True, default=str)
        self._network = hashlib.sha256(text.encode()).digest()
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # It holds the scans' paths. SQLite gives the files beside it the same mode.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, PRIVATE))
            self._base = sqlite3.connect(
                self.path, timeout=60, check_same_thread=False, isolation_level=None
            )
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            found = int(self._base.execute("PRAGMA user_version").fetchone()[0])
            if found not in (0, _VERSION):
                raise HyperFusionError(
                    f"{self.path}: made by another version of this program; delete it, or choose "
                    "another `feature_cache`",
                    code="feature-cache-unusable",
                )
            self._base.executescript(_SCHEMA)
            self._base.execute(f"PRAGMA user_version={_VERSION}")
        except (sqlite3.Error, OSError) as error:
            raise self._error(error) from None

    def _error(self, error: Exception) -> HyperFusionError:
        return HyperFusionError(
            f"{self.path}: cannot be used: {error}; delete it (it can be made again), or leave out "
            "`feature_cache`",
            code="feature-cache-unusable",
        )

    def _do(self, statement: str, values: tuple[object, ...]) -> Any:
        try:
            with self._lock:
                return self._base.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise self._error(error) from None

    def digest_of(self, path: Path, now: str | None) -> bytes | None:
        """The content's SHA-256 of a file whose stamp `now` is that of `remember`, else None."""
        row = self._do(
            "SELECT digest FROM scans WHERE path = ? AND stamp = ?",
            (shown(os.path.realpath(path)), now),
        )
        return None if row is None else bytes(row[0])

    def remember(self, path: Path, content: bytes, before: str | None) -> bytes:
        """Keep the SHA-256 of `content`, read from `path` after its stamp `before`; return it."""
        digest = hashlib.sha256(content).digest()
        if before is not None and before == stamp(path):  # else it changed while it was read
            self._do(
                "INSERT OR REPLACE INTO scans VALUES (?, ?, ?)",
                (shown(os.path.realpath(path)), before, digest),
            )
        return digest

    def get(self, digest: bytes) -> Kept | None:
        """The features of the scan with this content."""
        row = self._do(
            "SELECT arrays, content, note FROM features WHERE network = ? AND digest = ?",
            (self._network, digest),
        )
        if row is None:
            return None
        numbers = np.frombuffer(row[1], np.float32)
        features = {}
        at = 0
        for name, shape in json.loads(row[0]).items():
            size = int(np.prod(shape))
            features[name] = numbers[at : at + size].reshape(shape)
            at += size
        return Kept(features, json.loads(row[2]))

    def put(self, digest: bytes, kept: Kept) -> None:
        """Keep the features of the scan with this content."""
        arrays = {name: list(array.shape) for name, array in kept.features.items()}
        parts = [np.ascontiguousarray(array, np.float32) for array in kept.features.values()]
        self._do(
            "INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?, ?)",
            (
                self._network,
                digest,
                json.dumps(arrays),
                b"".join(part.tobytes() for part in parts),
                json.dumps(kept.note),
            ),
        )
