"""What the head reads of scans: made by the trunk, or kept from before, on disk or in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hyperfusion_rt.errors import EngineError
from hyperfusion_rt.runtime.case_input import CaseInput, as_batch
from hyperfusion_rt.runtime.feature_cache import FeatureCache, Kept
from hyperfusion_rt.runtime.network import Features, Network, joined

# What features in memory take, at most.
_REMEMBERED = 64 * 2**20


class ScanFeatures:
    """See the module. `cache`: keeps features on disk."""

    def __init__(self, network: Network, cache: FeatureCache | None) -> None:
        self._network, self._cache = network, cache
        self._memory: dict[tuple[Path, ...], Features] | None = None

    @property
    def kept(self) -> bool:
        """Whether features are kept at all."""
        return self._cache is not None or self._memory is not None

    def remember(self) -> None:
        """From now on keep features in memory, of the first scans, as far as there is room."""
        if self._memory is None and self._network.splits:
            self._memory = {}

    def remembered(self, files: tuple[Path, ...]) -> Features | None:
        """Those of a case's files, as far as they are in memory."""
        return None if self._memory is None else self._memory.get(files)

    def of(self, scans: Sequence[CaseInput], files: Sequence[tuple[Path, ...]]) -> Features:
        """The features of a batch, `[B, ...]` each; `files` of each case.

        Raises:
            EngineError: a feature is not finite: nobody could tell how usual the scan is.
        """
        if self._cache is not None:
            found = joined([self._one(scan, self._cache).features for scan in scans])
        else:
            images = [scan.images for scan in scans if scan.images is not None]
            found = self._network.features(as_batch(images))
        if not all(np.isfinite(array).all() for array in found.values()):
            raise no_features()
        if self._memory is not None:
            size = sum(array[:1].nbytes for array in found.values())
            for index, name in enumerate(files):
                if (len(self._memory) + 1) * size <= _REMEMBERED:
                    one = {key: array[index : index + 1].copy() for key, array in found.items()}
                    self._memory[name] = one
        return found

    def _one(self, scan: CaseInput, cache: FeatureCache) -> Kept:
        """Kept before, or made and kept now."""
        if scan.kept is not None:
            return scan.kept
        assert scan.images is not None
        note = {
            "warnings": scan.warnings,
            "quality": scan.quality,
            "content": scan.content,
            "figures": scan.figures,
            "edges": scan.edges,
        }
        kept = Kept(self._network.features(as_batch([scan.images])), note)
        if scan.digest is not None:
            cache.put(scan.digest, kept)
        return kept


def no_features() -> EngineError:
    """That a scan has features without a size, or no finite distance."""
    return EngineError(
        "the network's features of the scan are not finite: nobody can tell whether it is like "
        "the training's; is the scan plausible?",
        code="engine-output-not-finite",
    )
