"""The command line."""

from hyperfusion_rt.cli.app import app, main

__all__ = ["app", "main"]
