"""What the network's features of usual scans are: of the training's, and of others to judge by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.typical_scans import FILE, Typical, TypicalScans, vectors
from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data.scan_check import Reference
from hyperfusion_rt.data.scan_figures import figures_of
from hyperfusion_rt.metrics import conformal
from hyperfusion_rt.runtime.case_input import as_batch
from hyperfusion_rt.runtime.network import Features, Network
from hyperfusion_rt.training.dataset import Dataset

Floats = NDArray[np.float64]

FALSE_ALARMS = 0.01
# Fewer scans say too little of what is usual.
FEWEST = 20
# Scans of the training that are looked at, at most.
_MOST = 1000


def vectors_of(
    features: Features,
    images: NDArray[np.float32],
    reference: Reference,
    preprocessing: Preprocessing,
) -> Floats:
    """`images [B, N, C, D, H, W]` → `[B, F]`: what the first member's head reads of each, in
    `features`, and the figures of its boxes."""
    return vectors(features, [figures_of(boxes, reference, preprocessing) for boxes in images])


def typical_scans(
    network: Network, dataset: Dataset, others: Floats, folder: Path, reference: Reference
) -> TypicalScans | None:
    """Write what is usual of the training's scans into `folder`; None where they are too few.

    Args:
        others: vectors of scans that the network did not learn from, for the threshold.
    """
    chosen = np.flatnonzero(dataset.parts.names(0) == "train")
    if min(len(chosen), len(others)) < FEWEST:
        return None
    if len(chosen) > _MOST:
        chosen = np.random.default_rng(0).choice(chosen, _MOST, replace=False)
    fitted = []
    for index in chosen:
        images = dataset.images([int(index)])
        features = network.features(as_batch(list(images)))
        fitted.append(vectors_of(features, images, reference, network.manifest.preprocessing))
    targets = dataset.targets[chosen] if network.manifest.classes else np.zeros(len(chosen))
    found = Typical.fit(np.concatenate(fitted), targets.astype(np.intp))
    distances = found.distances(others)
    alarms = max(FALSE_ALARMS, 1 / (len(others) + 1))
    return TypicalScans(
        file=FILE,
        sha256=found.write(folder),
        fitted=len(chosen),
        cases=len(others),
        threshold=conformal.threshold(distances, 1 - alarms),
        false_alarms=alarms,
    )
