"""HyperFusion networks: training, export, and fast inference.

`load("NAME.hfrt").predict(paths, table)` predicts from Python what `hfrt infer` predicts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hyperfusion_rt.errors import HyperFusionError

if TYPE_CHECKING:
    from hyperfusion_rt.runtime.predictor import Predictor, load

__version__ = "0.1.0"
__all__ = ["HyperFusionError", "Predictor", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import hyperfusion_rt` stays cheap for the command line.
    if name in ("Predictor", "load"):
        from hyperfusion_rt.runtime import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
