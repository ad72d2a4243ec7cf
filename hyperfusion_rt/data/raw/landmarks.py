"""The template's summary, for `data.scan_check`: where scans are looked at, and what is there."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from hyperfusion_rt.data.raw.image import to_mm
from hyperfusion_rt.data.raw.template import load_template
from hyperfusion_rt.data.scan_check import SHELL_MM, Landmarks

_SPACING = 4  # mm, of the level of the template


@lru_cache(maxsize=1)
def template_landmarks() -> Landmarks:
    """Every eighth voxel of the template at 4 mm, inside its brain and in the shell around it.

    Raises:
        MissingExtraError: nilearn is not installed.
    """
    level = load_template().levels[_SPACING]
    index = np.indices(level.image.shape).reshape(3, -1)
    chosen = (index[0] + 3 * index[1] + 5 * index[2]) % 8 == 0
    away = level.away.ravel()
    brain = chosen & (away == 0)
    shell = chosen & (away > SHELL_MM[0]) & (away < SHELL_MM[1])
    points = np.concatenate([to_mm(level.affine, index[:, part]).T for part in (brain, shell)])
    return Landmarks(
        np.ascontiguousarray(points, np.float32), level.image.ravel()[brain].astype(np.float32)
    )
