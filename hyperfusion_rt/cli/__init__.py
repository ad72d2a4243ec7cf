"""The command line."""

from hyperfusion_rt.cli.start import main

__all__ = ["main"]
