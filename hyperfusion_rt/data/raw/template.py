"""The MNI152 template as registration compares with it: at 8, 4 and 2 mm."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from hyperfusion_rt.data.mni_template import template_files
from hyperfusion_rt.data.raw.image import Float, Mask, Matrix, block_means, smooth, to_mm
from hyperfusion_rt.data.volumes import read_volume
from hyperfusion_rt.errors import HyperFusionError, MissingExtraError
from hyperfusion_rt.files import replacing, sha256

PURPOSE = "registration of raw scans"
CENTER = np.array([0.0, -17.0, 10.0])  # of the brain in MNI space, mm RAS
SPACINGS = (8, 4, 2)
# A scan whose skull was removed before may have brain this far beyond the template's.
_BEYOND_MM = 6
_FORMAT = 2  # of the cache
# A voxel at 2 mm is in the middle of the brain from this depth on, mm.
_CORE_MM = 5


@dataclass(frozen=True)
class Level:
    """The template at one spacing: image, distance from the brain in mm, its grid."""

    image: Float
    away: Float
    affine: Matrix
    sigma: float  # of the smoothing, mm


@dataclass(frozen=True)
class Template:
    """The MNI152 T1 on its 1 mm grid, and what registration compares with.

    mask: the brain; around: it and 6 mm around; white: `[3, N]` mm in the core of white matter;
    tissue: at 2 mm, grey or white matter; core: at 2 mm, the middle of the brain; parts: `[3, X, Y,
    Z]` at 4 mm, how much of a voxel of the brain is CSF, grey and white matter.
    """

    affine: Matrix
    mask: Mask
    around: Mask
    white: Matrix
    levels: dict[int, Level]
    tissue: Mask
    core: Mask
    parts: Float


@lru_cache(maxsize=1)
def load_template() -> Template:
    """The template of the installed nilearn package, made ready once a machine, then kept on disk.

    In `hyperfusion_rt` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`); where that
    cannot be written, it is made ready once a process.

    Raises:
        MissingExtraError: nilearn or scipy is not installed.
    """
    files = template_files("raw", PURPOSE)
    try:
        import scipy  # noqa: F401
    except ImportError:
        raise MissingExtraError("scipy", "raw", PURPOSE) from None
    kept = _cache(files)
    if kept is not None:
        found = _read(kept)
        if found is not None:
            return found
    made = _make(files)
    if kept is not None:
        _write(kept, made)
    return made


def _cache(files: dict[str, Path]) -> Path | None:
    """Where it is kept: named after the files' content."""
    folder = os.environ.get("XDG_CACHE_HOME")
    try:
        place = Path(folder) if folder else Path.home() / ".cache"
        content = "-".join(sha256(path)[:12] for path in files.values())
    except (OSError, RuntimeError):
        return None
    return place / "hyperfusion_rt" / f"template-{_FORMAT}-{content}.npz"


def _make(files: dict[str, Path]) -> Template:
    from scipy import ndimage

    volumes = {kind: read_volume(path) for kind, path in files.items()}
    affine = volumes["t1"].affine
    t1, gm, wm = (
        np.ascontiguousarray(volumes[kind].voxels, np.float32) * np.float32(volumes[kind].slope)
        for kind in ("t1", "gm", "wm")
    )
    mask = ndimage.binary_fill_holes((t1 > 0) | (gm + wm > 127.5))
    core = ndimage.binary_erosion(wm > 0.95 * 255, iterations=2)
    fine, fine_affine = block_means(t1, affine, (2, 2, 2))
    part, _ = block_means(mask.astype(np.float32), affine, (2, 2, 2))
    away = ndimage.distance_transform_edt(part <= 0.5).astype(np.float32) * 2
    levels = {}
    for spacing in SPACINGS:
        step = (spacing // 2,) * 3
        # Smoothed as the scan will be, so that both have the same detail.
        sigma = 0.75 * spacing if spacing > 2 else 0.7 * spacing
        image, grid = block_means(smooth(fine, np.full(3, sigma / 2)), fine_affine, step)
        distance, _ = block_means(away, fine_affine, step)
        # What fills up the last block is no part of the template.
        distance[block_means(np.ones_like(away), fine_affine, step)[0] < 1] = np.inf
        levels[spacing] = Level(image, distance, grid, sigma)
    tissue, _ = block_means(gm + wm, affine, (2, 2, 2))
    parts = []
    for one in (gm, wm):
        half, _ = block_means(one, affine, (2, 2, 2))
        parts.append(block_means(smooth(half, np.full(3, 1.5)), fine_affine, (2, 2, 2))[0] / 255)
    csf = np.clip(1 - parts[0] - parts[1], 0, 1)
    return Template(
        affine,
        mask,
        ndimage.binary_dilation(mask, iterations=_BEYOND_MM),
        to_mm(affine, np.stack(np.nonzero(core))[:, ::10]),
        levels,
        tissue > 127.5,
        ndimage.distance_transform_edt(part > 0.5) * 2 > _CORE_MM,
        np.stack([csf, *parts]).astype(np.float32),
    )


def _write(path: Path, made: Template) -> None:
    """Keep it; without, the next process makes it again."""
    arrays: dict[str, Any] = {
        "affine": made.affine,
        "mask": np.packbits(made.mask),
        "around": np.packbits(made.around),
        "shape": np.array(made.mask.shape),
        "white": made.white,
        "tissue": made.tissue,
        "core": made.core,
        "parts": made.parts,
    }
    for spacing, level in made.levels.items():
        named = {"image": level.image, "away": level.away, "affine": level.affine}
        arrays |= {f"{name}_{spacing}": array for name, array in named.items()}
        arrays[f"sigma_{spacing}"] = np.array(level.sigma)
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    except HyperFusionError:
        pass


def _read(path: Path) -> Template | None:
    """What was kept; None where it is not there, or damaged."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return _unpacked(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _unpacked(file: NpzFile) -> Template:
    shape = tuple(int(n) for n in file["shape"])

    def mask(name: str) -> Mask:
        count = int(np.prod(shape))
        return np.unpackbits(file[name], count=count).reshape(shape).view(np.bool_)

    levels = {
        spacing: Level(
            file[f"image_{spacing}"], file[f"away_{spacing}"], file[f"affine_{spacing}"],
            float(file[f"sigma_{spacing}"]),
        )
        for spacing in SPACINGS
    }  # fmt: skip
    return Template(
        file["affine"], mask("mask"), mask("around"), file["white"], levels, file["tissue"],
        file["core"], file["parts"],
    )  # fmt: skip
