"""What a frozen network makes of each scan, kept on disk: it runs once, not once per epoch.

`.hfrt_cache/features/NETWORK/SCAN.npy`, `float32 [N boxes, F]`: what the rest of the network reads
(`models.trunk`). NETWORK stands for the frozen weights, the code and the kind of device, SCAN for
the scan and its preprocessing (`data.volume_cache`): what changes is made anew beside the old. A
folder of a network that is not trained any more may be deleted.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import hyperfusion_rt
from hyperfusion_rt.data.volume_cache import Images, VolumeCache
from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.files import replacing, sha256
from hyperfusion_rt.models.hyperfied import HyperFied
from hyperfusion_rt.models.trunk import Trunk

# Left free on the disk.
_MARGIN = 64 << 20
# Beside the network's own modules, what makes features of it.
_CODE = ("hyperfusion_rt.models.trunk", "hyperfusion_rt.models.hyperfied")


class KeptFeatures:
    """The features of scans under a `network` in training, on its device; `cache`: their boxes."""

    def __init__(self, cache: VolumeCache, trunk: Trunk, network: HyperFied) -> None:
        self.cache, self.trunk, self.network = cache, trunk, network
        self.boxes = len(cache.preprocessing.boxes)
        self.folder = cache.folder / "features" / _key(trunk, network)

    def path(self, scan: Images) -> Path:
        """The file of a scan."""
        return self.folder / f"{self.cache.name(scan)}.npy"

    def fill(
        self, scans: Sequence[Images], on_scan: Callable[[int, int], None] | None = None
    ) -> None:
        """Make the features of the scans that lack them; a killed run goes on where it was.

        Raises:
            HyperFusionError: the disk has no room for them, or cannot be written.
        """
        left = [scan for scan in dict.fromkeys(scans) if self._read(scan) is None]
        self._refuse_full(len(left))
        training = self.network.training
        self.network.eval()
        try:
            for done, scan in enumerate(left, 1):
                self._make(scan)
                if on_scan is not None:
                    on_scan(done, len(left))
        finally:
            self.network.train(training)

    def get(self, scan: Images) -> NDArray[np.float32]:
        """The features of a scan, `float32 [N boxes, F]`, memory-mapped.

        Raises:
            HyperFusionError: they are not there.
        """
        found = self._read(scan)
        if found is None:
            raise HyperFusionError(
                f"{self.path(scan)}: the kept features of a scan are gone or damaged, or the scan "
                "changed; continue the run with `resume`",
                code="feature-cache-unusable",
            )
        return found

    def _make(self, scan: Images) -> None:
        # A scan at a time, whatever is left to do: another batch may round otherwise.
        image = torch.from_numpy(np.array(self.cache.get(scan)))
        image = image.to(next(self.network.parameters()).device)
        features = self.trunk.features(self.network, image).float().cpu().numpy()
        with replacing(self.path(scan), private=True) as temporary, open(temporary, "wb") as file:
            np.save(file, features)

    def _read(self, scan: Images) -> NDArray[np.float32] | None:
        try:
            found: NDArray[np.float32] = np.lib.format.open_memmap(self.path(scan), mode="r")
        except Exception:  # whatever is wrong with it: it is made again
            return None
        fits = found.shape == (self.boxes, self.trunk.size) and found.dtype == np.float32
        return found if fits else None

    def _refuse_full(self, count: int) -> None:
        needed = count * self.boxes * self.trunk.size * 4
        place = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        free = shutil.disk_usage(place).free
        if needed and needed + _MARGIN > free:
            raise HyperFusionError(
                f"{self.folder}: what the frozen layers make of {count} scans takes "
                f"{needed / 1e9:.1f} GB ({self.trunk.size:,} numbers of each of {self.boxes} "
                f"boxes), and the disk has {free / 1e9:.1f} GB free: make room, let later layers "
                "be the first that are trained, or set network.keep_features to false: the frozen "
                "layers then run in each epoch",
                code="output-cannot-be-written",
            )


def _key(trunk: Trunk, network: HyperFied) -> str:
    """What the features depend on besides the scan: weights, code, torch, the kind of device."""
    device = next(network.parameters()).device.type
    text = (hyperfusion_rt.__version__, torch.__version__, device, trunk.parts, trunk.size)
    digest = hashlib.sha256("\0".join(map(str, text)).encode())
    names = {type(module).__module__ for module in network.modules()} | set(_CODE)
    files = {getattr(sys.modules.get(name), "__file__", None) for name in names}
    for content in sorted(sha256(file) for file in files if file is not None):
        digest.update(content.encode())
    for name, value in network.frozen_state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
