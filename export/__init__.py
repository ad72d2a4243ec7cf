"""From a run to an artifact. Every export writes, then compares."""

from hyperfusion_rt.export.build import export_run

__all__ = ["export_run"]
