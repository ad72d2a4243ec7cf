"""The MNI152 2009a template (Fonov et al., NeuroImage 2011), as the nilearn package ships it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hyperfusion_rt.errors import MissingExtraError

# What BIDS calls the template's space.
SPACE = "MNI152NLin2009aSym"


def template_files(extra: str, purpose: str) -> dict[str, Path]:
    """The paths of `t1`, `gm` and `wm` inside the installed nilearn package, which is not imported.

    `extra` and `purpose`: of this package, for the error's text.

    Raises:
        MissingExtraError: nilearn is not installed, or has no template.
    """
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise MissingExtraError("nilearn", extra, purpose)
    folder = Path(spec.origin).parent / "datasets" / "data"
    names = {
        kind: folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        for kind in ("t1", "gm", "wm")
    }
    if not all(path.exists() for path in names.values()):
        raise MissingExtraError("nilearn>=0.11", extra, purpose)
    return names
