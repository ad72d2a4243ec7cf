"""How a scan was made: the size of its voxels, and the scanner that a file beside it names."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.data.scan_file import stem

Edges = tuple[float, float]  # of a voxel, in mm: the shortest and the longest

# Parts by which an edge may leave the range of the training's and be called the same.
_TOLERANCE = 0.1


def edges_of(affine: NDArray[np.float64]) -> Edges:
    """Of `affine [4, 4]`, from voxel indices to mm."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    return float(edges.min()), float(edges.max())


def unlike_edges(edges: Edges, usual: Edges) -> str:
    """That voxels are unlike the training's, in words; nothing where they are not."""
    low, high = usual[0] * (1 - _TOLERANCE), usual[1] * (1 + _TOLERANCE)
    if low <= edges[0] and edges[1] <= high:
        return ""
    return (
        f"voxels of {_range(edges)} mm are unlike those of the training's scans, of "
        f"{_range(usual)} mm"
    )


def unlike_scanner(scanner: str, usual: Collection[str]) -> str:
    """That no training scan came from such a scanner; nothing where one did, or nobody knows."""
    if not scanner or not usual or scanner in usual:
        return ""
    return f"the scanner {scanner!r} is none of those of the training: {', '.join(usual)}"


def _range(edges: Edges) -> str:
    low, high = (f"{edge:.3g}" for edge in edges)
    return low if low == high else f"{low} to {high}"


def beside(scan: Path) -> dict[str, Any]:
    """The JSON file that BIDS puts beside a scan; empty where there is none that can be read."""
    if scan.is_dir():
        return {}
    try:
        path = scan.with_name(f"{stem(scan)}.json")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def scanner_of(scan: Path) -> str:
    """`Siemens Prisma 3 T`: manufacturer, model and field that a JSON file beside the scan names,
    as far as it does; empty where it names neither of the first two."""
    said = beside(scan)
    names = [said.get("Manufacturer"), said.get("ManufacturersModelName")]
    words = [" ".join(name.split()) for name in names if isinstance(name, str) and name.strip()]
    field = said.get("MagneticFieldStrength")
    if words and isinstance(field, (int, float)) and not isinstance(field, bool):
        words.append(f"{field:.2g} T")
    return " ".join(words)
