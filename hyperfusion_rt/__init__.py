"""HyperFusion networks: training, export, and fast inference.

`load("NAME.hfrt").predict(paths, table)` predicts from Python what `hfrt infer` predicts.
`compile(network, example)` runs any 3D network on the native CPU engine; `load_network(path)` opens
what its `save` wrote.
`hyperfy(network, layers, condition=T)` lets a row of a table generate layers of any network.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hyperfusion_rt.errors import HyperFusionError

if TYPE_CHECKING:
    from hyperfusion_rt.export.compiled import compile
    from hyperfusion_rt.models.hyperfy import hyperfy
    from hyperfusion_rt.runtime.engines.compiled import CompiledNetwork, load_network
    from hyperfusion_rt.runtime.predictor import Predictor, load

# Nobody is told what is done here, by us or by what we use. Before any of them is imported, and in
# every process: ONNX Runtime would keep a number of this machine in the home, Ray would report.
for _name, _value in (
    ("ORT_DISABLE_TELEMETRY", "1"),
    ("ORT_TELEMETRY_DISABLED", "1"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
):
    os.environ.setdefault(_name, _value)

__version__ = "0.1.0"
__all__ = [
    "CompiledNetwork",
    "HyperFusionError",
    "Predictor",
    "__version__",
    "compile",
    "hyperfy",
    "load",
    "load_network",
]

# Named by text: nothing that predicts from an artifact reaches them from here.
_BESIDE = {
    "CompiledNetwork": "hyperfusion_rt.runtime.engines.compiled",
    "load_network": "hyperfusion_rt.runtime.engines.compiled",
    "compile": "hyperfusion_rt.export.compiled",
    "hyperfy": "hyperfusion_rt.models.hyperfy",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import hyperfusion_rt` stays cheap for the command line.
    if name in ("Predictor", "load"):
        from hyperfusion_rt.runtime import predictor

        return getattr(predictor, name)
    if name in _BESIDE:
        return getattr(import_module(_BESIDE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
