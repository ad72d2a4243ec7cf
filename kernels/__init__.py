"""Fused per-sample operations: one name, one plain reference, a backend per device.

    y[b] = conv3d(x[b], W[b]) + beta[b],   W[b] = g0 + Σ_k e[b, k] · G[k]

The ops need torch and are loaded on first use; the compiled module does not.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperfusion_rt.kernels.ops import (
        Epilogue,
        conv3d,
        conv3d_block,
        hyper_conv3d,
        hyper_conv_transpose3d,
        hyper_linear,
        norm_relu,
    )

__all__ = [
    "Epilogue",
    "conv3d",
    "conv3d_block",
    "hyper_conv3d",
    "hyper_conv_transpose3d",
    "hyper_linear",
    "norm_relu",
]


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # An op and its module have one name, and the package has the op: Python, which would put
        # the module here once it is imported, is not heard.
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in __all__:
        from hyperfusion_rt.kernels import ops

        return getattr(ops, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
