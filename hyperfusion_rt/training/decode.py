"""All scans of a cohort into the cache: by one process, or by several that train together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hyperfusion_rt.data.volume_cache import Figures, Images, VolumeCache
from hyperfusion_rt.errors import ScanError
from hyperfusion_rt.machine import usable_cores

OnScan = Callable[[int, int], None]
# Beside one for each core: some wait for the disk.
_WAITING, _MOST = 4, 32


def _alone() -> None:
    """The barrier of a process that has nobody to wait for."""


@dataclass(frozen=True)
class Share:
    """Which of several processes that train together this one is: `index` of `count`.

    On its machine it is `local_index` of `local_count`. `barrier` returns when all `count`
    processes have called it; if one of them fails before, it must raise in the others.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1
    barrier: Callable[[], None] = _alone


ALONE = Share()


def decode(
    cache: VolumeCache,
    scans: Sequence[Images],
    share: Share = ALONE,
    on_scan: OnScan | None = None,
) -> list[Figures | ScanError]:
    """Fill the cache; of each scan what its boxes are like, or why it cannot be used.

    Each process decodes its share of what the cache lacks. What is still missing then, since other
    machines have folders of their own, the processes of each machine share among them. Faults are
    kept in the cache, so that all processes know them; one that may pass (a file that cannot be
    read) each process meets itself. `on_scan(done, total)` counts what the cache has as done.

    Raises:
        HyperFusionError: the cache cannot be written, or the disk has no room.
    """
    missing = cache.reserve(scans)
    known = len(set(scans)) - len(missing)
    share.barrier()  # nobody writes before all have seen the same

    own = missing[share.index :: share.count]
    progress = _Progress(known, known + len(own), on_scan)
    errors = _fill(cache, own, share, progress)
    share.barrier()

    if share.count > 1:
        cache.refresh()
        left = [scan for scan in missing if cache.lacks(scan)]
        share.barrier()  # as above
        own = [scan for scan in left[share.local_index :: share.local_count] if scan not in errors]
        errors |= _fill(cache, own, share, None)
        share.barrier()
        cache.refresh()
    return [errors.get(scan) or _known(cache, scan) for scan in scans]


class _Progress:
    """Tells `on_scan` how far it is."""

    def __init__(self, done: int, total: int, on_scan: OnScan | None) -> None:
        self.done, self.total, self.on_scan = done, total, on_scan
        if done:
            self._tell()

    def step(self) -> None:
        self.done += 1
        self._tell()

    def _tell(self) -> None:
        if self.on_scan is not None:
            self.on_scan(self.done, self.total)


def _fill(
    cache: VolumeCache, scans: Sequence[Images], share: Share, progress: _Progress | None
) -> dict[Images, ScanError]:
    """Decode `scans` in threads; what is wrong with some of them."""

    def fill(scan: Images) -> ScanError | None:
        try:
            cache.fill(scan)
        except ScanError as error:
            return error
        return None

    errors = {}
    if scans:
        workers = max(2, min(_MOST, usable_cores() + _WAITING) // share.local_count)
        with ThreadPoolExecutor(workers) as pool:
            for scan, error in zip(scans, pool.map(fill, scans), strict=True):
                if error is not None:
                    errors[scan] = error
                if progress is not None:
                    progress.step()
        cache.flush()
    return errors


def _known(cache: VolumeCache, scan: Images) -> Figures | ScanError:
    try:
        return cache.figures(scan)
    except ScanError as error:
        return error
