"""From a case's files to what the engine reads: its boxes, or the features that were kept of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.clock import Clock
from hyperfusion_rt.config import Preprocessing, ScanChecks
from hyperfusion_rt.data.acquisition import Edges, edges_of
from hyperfusion_rt.data.fingerprint import fingerprint
from hyperfusion_rt.data.scan_check import Reference, checked_boxes
from hyperfusion_rt.data.scan_figures import figures_of
from hyperfusion_rt.data.volumes import (
    Volume,
    VoxelGrid,
    extract,
    memory_needed,
    read_file,
    read_volume,
)
from hyperfusion_rt.files import stamp
from hyperfusion_rt.runtime.feature_cache import FeatureCache, Kept
from hyperfusion_rt.runtime.options import Source

Floats = NDArray[np.float32]

# What registering one raw scan of 1 mm holds; finer ones four times their voxels more.
RAW_MEMORY = 600 * 2**20


@dataclass(frozen=True)
class CaseInput:
    """A case on its way to the engine: its boxes, or the features that were kept of it.

    `content`: the images' fingerprints; `figures`: of the boxes; both where they are asked for.
    `transform float64 [4, 4]`: of a raw scan, from mm of MNI space to its own; None of others, and
    of kept features. `edges`: of the voxels of each image, unless the scan is raw. `grid`: of the
    (first) scan's own voxels; None of kept features.
    """

    images: Floats | None  # [N boxes, C channels, D, H, W]
    kept: Kept | None
    digest: bytes | None
    warnings: tuple[str, ...]
    quality: dict[str, float]
    content: tuple[str, ...] = ()
    figures: tuple[float, ...] = ()
    transform: NDArray[np.float64] | None = None
    edges: tuple[Edges, ...] = ()
    grid: VoxelGrid | None = None

    @property
    def to_mni(self) -> NDArray[np.float64]:
        """`[4, 4]`: from the scan's own voxels to mm of MNI space, where `grid` is known."""
        assert self.grid is not None
        if self.transform is None:
            return self.grid.affine
        found: NDArray[np.float64] = np.linalg.inv(self.transform) @ self.grid.affine
        return found

    @classmethod
    def restored(cls, kept: Kept, digest: bytes | None) -> CaseInput:
        """Of features that were kept."""
        warnings, content, figures = (
            tuple(kept.note[name]) for name in ("warnings", "content", "figures")
        )
        edges = tuple((low, high) for low, high in kept.note["edges"])
        return cls(
            None, kept, digest, warnings, kept.note["quality"], content, figures, edges=edges
        )


@dataclass(frozen=True)
class CaseReader:
    """Reads cases of one artifact, several at a time.

    `fingerprints`: whether they are asked for. Raw scans have none. `figures`: whether those of the
    boxes are.
    """

    preprocessing: Preprocessing
    source: Source
    reference: Reference | None
    checks: ScanChecks
    cache: FeatureCache | None
    fingerprints: bool
    figures: bool = False
    # Told of every raw scan that is registered: which file, and the brain in template space.
    on_registered: Callable[[Path, Volume], None] | None = None

    def memory_needed(self, files: Sequence[Path]) -> int:
        """Bytes that reading a case holds at most, from its files' headers alone."""
        total = sum(memory_needed(path, self.preprocessing) for path in files if path.is_file())
        return RAW_MEMORY + 4 * total if self.source == "raw" else total

    def known(self, files: Sequence[Path]) -> CaseInput | None:
        """The case's features, if they were kept and its files have not changed since."""
        if self.cache is None:
            return None
        found = [self.cache.digest_of(path, stamp(path)) for path in files]
        digests = [digest for digest in found if digest is not None]
        if len(digests) < len(files):
            return None
        digest = _joined(digests)
        kept = self.cache.get(digest)
        return CaseInput.restored(kept, digest) if kept else None

    def load(self, files: Sequence[Path], clock: Clock) -> CaseInput:
        """Read, unpack and crop a case; or the features that were kept of files like these.

        Raises:
            ScanError: what is wrong with a file.
        """
        contents: list[bytes | None] = [None] * len(files)
        digest = None
        if self.source == "registered" or (self.cache is not None and not files[0].is_dir()):
            with clock.step("read"):
                before = [stamp(path) for path in files] if self.cache is not None else []
                read = [read_file(path) for path in files]
                contents = [*read]
                if self.cache is not None:
                    digest = _joined(
                        [self.cache.remember(*one) for one in zip(files, read, before, strict=True)]
                    )
                    kept = self.cache.get(digest)
                    if kept is not None:
                        return CaseInput.restored(kept, digest)
        if self.source == "raw":
            from hyperfusion_rt.data.raw.register import register

            with clock.step("preprocess"):
                raw = register(files[0], self.preprocessing)
                images = extract(raw.volume, self.preprocessing).images
                figures = self._figures(images)
            if self.on_registered is not None:
                self.on_registered(files[0], raw.volume)
            quality = raw.quality.figures()
            return CaseInput(
                images,
                None,
                digest,
                raw.warnings,
                quality,
                (),
                figures,
                raw.transform,
                grid=raw.grid,
            )
        with clock.step("decode"):
            volumes = [
                read_volume(path, content, self.preprocessing)
                for path, content in zip(files, contents, strict=True)
            ]
        with clock.step("preprocess"):
            boxes = checked_boxes(volumes, self.preprocessing, self.reference, self.checks)
            figures = self._figures(boxes.images)
        content = (
            tuple(fingerprint(volume, self.preprocessing) for volume in volumes)
            if self.fingerprints
            else ()
        )
        edges = tuple(edges_of(volume.affine) for volume in volumes)
        return CaseInput(
            boxes.images,
            None,
            digest,
            boxes.warnings,
            {},
            content,
            figures,
            edges=edges,
            grid=volumes[0].grid,
        )

    def _figures(self, images: Floats) -> tuple[float, ...]:
        if not self.figures or self.reference is None or self.reference.means is None:
            return ()
        return tuple(figures_of(images, self.reference, self.preprocessing).tolist())


def as_batch(images: Sequence[Floats]) -> Floats:
    """`[N, C, D, H, W]` of every case → `[B, N·C, D, H, W]`."""
    if len(images) == 1:
        return images[0].reshape(1, -1, *images[0].shape[2:])
    return np.stack([image.reshape(-1, *image.shape[2:]) for image in images])


def _joined(digests: Sequence[bytes]) -> bytes:
    """One digest of a case's files; a single file's own."""
    return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
