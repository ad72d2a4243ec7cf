"""Preprocessed volumes on disk, memory-mapped: a scan is decoded once, not once per epoch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data.volumes import load_boxes
from hyperfusion_rt.files import replacing, stamp

_VERSION = "1"


class VolumeCache:
    """Maps a scan to its boxes `float32 [N, 1, D, H, W]`, read-only and memory-mapped.

    The key holds the scan's path and stamp (`files.stamp`) and the whole preprocessing: a changed
    scan or setting is decoded anew.
    """

    def __init__(self, folder: Path, preprocessing: Preprocessing) -> None:
        self.folder = Path(folder)
        self.preprocessing = preprocessing

    def path(self, scan: Path) -> Path:
        """The cache file of `scan`."""
        setting = self.preprocessing.model_dump_json()
        key = "\0".join([_VERSION, str(scan.resolve()), str(stamp(scan)), setting])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"

    def get(self, scan: Path) -> NDArray[np.float32]:
        """The boxes of `scan`, decoded when they are not in the cache.

        Raises:
            ScanError: the scan cannot be used.
            HyperFusionError: the cache cannot be written.
        """
        path = self.path(scan)
        if not path.exists():
            boxes = load_boxes(scan, self.preprocessing)
            with replacing(path, private=True) as temporary, open(temporary, "wb") as file:
                np.save(file, boxes.images)
        array: NDArray[np.float32] = np.load(path, mmap_mode="r")
        return array
