"""What `hfrt preprocess` writes beside a registered scan, and what inference reads of it."""

from __future__ import annotations

import json
from pathlib import Path


def sidecar_of(scan: Path) -> Path:
    """The JSON file beside a `.nii.gz`."""
    return scan.with_name(scan.name.removesuffix(".nii.gz") + ".json")


def picture_of(scan: Path) -> Path:
    """The picture beside a `.nii.gz`."""
    return scan.with_name(scan.name.removesuffix(".nii.gz") + ".svg")


def sidecar_warnings(scan: Path) -> tuple[str, ...]:
    """What was odd when the scan was registered; nothing where it has no such file."""
    if not scan.name.endswith(".nii.gz"):
        return ()
    try:
        content = json.loads(sidecar_of(scan).read_text(encoding="utf-8"))
        if "transform_maps" not in content:  # another program's
            return ()
        return tuple(f"when it was registered: {text}" for text in content["warnings"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()
