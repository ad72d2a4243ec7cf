"""From a run to an artifact. Every export writes, then compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hyperfusion_rt.export.options import ExportOptions

if TYPE_CHECKING:
    from hyperfusion_rt.export.build import export_run

__all__ = ["ExportOptions", "export_run"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the options need no torch.
    if name == "export_run":
        from hyperfusion_rt.export.build import export_run

        return export_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
