"""The 3D viewer of the report: NiiVue (BSD-2-Clause), packed, and unpacked when it is asked for."""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from hyperfusion_rt.runtime.outputs.report import script_hash

SOURCE = "templates/vendor/niivue-0.69.0.umd.js"


@dataclass(frozen=True)
class Viewer:
    """`data`: the script, gzip in base64; `hash`: of the script, as a CSP names it."""

    data: str
    hash: str


@lru_cache(maxsize=1)
def load_viewer() -> Viewer:
    """The viewer as the package has it: 2.3 MB, 1.1 MB on the page."""
    text = files(__package__).joinpath(SOURCE).read_text(encoding="utf-8")
    packed = gzip.compress(text.encode(), 9, mtime=0)
    return Viewer(base64.b64encode(packed).decode(), script_hash(text))
