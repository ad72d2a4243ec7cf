"""What a network's features of usual scans are, and how far those of a scan lie from them.

The Mahalanobis distance to the nearest class, with one covariance for all classes (Lee et al.,
NeurIPS 2018), of what the head reads of a scan and of the figures of its boxes
(`data.scan_figures`). The covariance is that of probabilistic PCA: its largest directions as they
are, and one variance for all others (Tipping & Bishop, 1999).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hyperfusion_rt.artifact.arrays import read_arrays, write_arrays
from hyperfusion_rt.config import Frozen

Floats = NDArray[np.float64]

FILE = "typical_scans.safetensors"
_ARRAYS = ("means", "scale", "axes", "variances")
# Directions of the covariance that are kept, at most.
_DIRECTIONS = 128
# The least standard deviation of a feature, of its largest size: what rounding may do.
_ROUNDING = 1e-4


class TypicalScans(Frozen):
    """What the manifest says of the file of `Typical`.

    `threshold`: the distance that one usual scan in 1 / `false_alarms` exceeds, of `cases` scans
    that the network did not learn from; fitted on `fitted` others.
    """

    file: str
    sha256: str
    fitted: int = Field(ge=1)
    cases: int = Field(ge=1)
    threshold: float = Field(gt=0)
    false_alarms: float = Field(gt=0, lt=1)


@dataclass(frozen=True)
class Typical:
    """Of F features: `means [K, F]` of the classes, `scale [F]`, `axes [F, R]` (orthonormal, of
    scaled features), `variances [R]` along them, and `rest`, that of every other direction."""

    means: Floats
    scale: Floats
    axes: Floats
    variances: Floats
    rest: float

    @classmethod
    def fit(cls, vectors: Floats, classes: NDArray[np.intp]) -> Typical:
        """Of training scans' `vectors [N, F]` with the class of each (0 of numbers)."""
        means = np.stack([vectors[classes == c].mean(0) for c in np.unique(classes)])
        _, place = np.unique(classes, return_inverse=True)
        centred = vectors - means[place.reshape(-1)]
        least = _ROUNDING * np.abs(vectors).max(0) + 1e-12
        scale = np.maximum(centred.std(0), least)
        _, sizes, axes = np.linalg.svd(centred / scale, full_matrices=False)
        count = int(min(_DIRECTIONS, len(vectors) // 3, len(sizes)))
        count = max(count, 1)
        variances = sizes**2 / len(vectors)
        left = vectors.shape[1] - count
        rest = float(variances[count:].sum() / left) if left else 0.0
        rest = max(rest, 1e-3)
        return cls(means, scale, axes[:count].T, np.maximum(variances[:count], rest), rest)

    def distances(self, vectors: Floats) -> Floats:
        """`vectors [N, F]` → `[N]`: to the nearest class, over the root of F: about 1 if usual.

        One by one: the same bits for a scan whatever others are asked about.
        """
        return np.array([self._distance(vector) for vector in vectors])

    def _distance(self, vector: Floats) -> float:
        x = (vector - self.means) / self.scale  # [K, F]
        along = x @ self.axes
        left = np.maximum((x**2).sum(1) - (along**2).sum(1), 0)
        squares = (along**2 / self.variances).sum(1) + left / self.rest
        return float(np.sqrt(squares.min() / len(vector)))

    def write(self, folder: Path) -> str:
        """Write it into an artifact's folder; returns the file's SHA-256."""
        arrays = {name: np.asarray(getattr(self, name)) for name in _ARRAYS}
        return write_arrays(folder / FILE, arrays | {"rest": np.array([self.rest])})

    @classmethod
    def read(cls, folder: Path, stored: TypicalScans) -> Typical:
        """What `write` wrote.

        Raises:
            ArtifactError: the file is missing, changed, or no such file.
        """
        found = read_arrays(folder, stored.file, stored.sha256, (*_ARRAYS, "rest"))
        means, scale, axes, variances = (found[name].astype(np.float64) for name in _ARRAYS)
        return cls(means, scale, axes, variances, float(found["rest"][0]))


def vectors(features: Mapping[str, NDArray[np.float32]], figures: Sequence[Floats]) -> Floats:
    """`[B, F]`: what the head reads of B scans, `[B, ...]` each, and `figures` of their boxes."""
    return np.concatenate([pooled(features, len(figures)), np.array(figures)], 1)


def pooled(features: Mapping[str, NDArray[np.float32]], count: int) -> Floats:
    """What the head of the first member reads of `count` scans, `[B, ...]` each → `[B, F]`.

    Of volumes the mean and the standard deviation of each channel.
    """
    found = []
    for name, array in features.items():
        if not name.startswith("m0."):
            continue
        values = array.astype(np.float64)
        if values.ndim > 2:
            values = values.reshape(*values.shape[:2], -1)
            found += [values.mean(2), values.std(2)]
        else:
            found.append(values)
    if not found:  # a head that reads the image itself, or nothing of it
        return np.empty((count, 0))
    return np.concatenate(found, 1)
