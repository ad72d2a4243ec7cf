"""JSON files beside scans: what `hfrt preprocess` writes, what is read of them, and of BIDS's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hyperfusion_rt.data.acquisition import beside
from hyperfusion_rt.data.scan_kind import agent_in_name, with_agent

_AGENT = "ContrastBolusIngredient"


def sidecar_of(scan: Path) -> Path:
    """The JSON file beside a `.nii.gz`."""
    return scan.with_name(scan.name.removesuffix(".nii.gz") + ".json")


def picture_of(scan: Path) -> Path:
    """The picture beside a `.nii.gz`."""
    return scan.with_name(scan.name.removesuffix(".nii.gz") + ".svg")


def read_sidecar(scan: Path) -> dict[str, Any]:
    """What `hfrt preprocess` wrote beside a registered scan; empty if that is nothing of ours."""
    if not scan.name.endswith(".nii.gz"):
        return {}
    try:
        content = json.loads(sidecar_of(scan).read_text(encoding="utf-8"))
        return content if "transform_maps" in content else {}  # else another program's
    except (OSError, ValueError, TypeError):
        return {}


def sidecar_warnings(scan: Path) -> tuple[str, ...]:
    """What was odd when the scan was registered; nothing where it has no such file."""
    try:
        warnings = read_sidecar(scan).get("warnings", ())
        return tuple(f"when it was registered: {text}" for text in warnings)
    except (AttributeError, TypeError):
        return ()


def agent_warnings(scan: Path) -> tuple[str, ...]:
    """The contrast agent that BIDS's JSON file beside a raw scan names, if the name does not."""
    if agent_in_name(scan) is not None:
        return ()
    agent = beside(scan).get(_AGENT)
    if not isinstance(agent, str) or agent.strip().lower() in ("", "none", "n/a"):
        return ()
    return (with_agent(agent.strip(), "JSON file"),)
