"""nibabel and pydicom, without what they import besides where it is installed.

nibabel imports pydicom for a rare extension of NIfTI, and pydicom imports requests to fetch its
test files; requests opens a socket. Nobody here needs either, and all of it takes time.
"""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any

_lock = threading.RLock()


def _without(name: str, other: str) -> Any:
    """The module `name`, imported as if `other` were not installed."""
    with _lock:
        if name not in sys.modules and other not in sys.modules:
            sys.modules[other] = None  # type: ignore[assignment]  # an import of it fails
            try:
                return importlib.import_module(name)
            finally:
                del sys.modules[other]
        return importlib.import_module(name)


def import_nibabel() -> Any:
    """nibabel.

    Raises:
        ImportError: it is not installed.
    """
    return _without("nibabel", "pydicom")


def import_pydicom() -> Any:
    """pydicom.

    Raises:
        ImportError: it is not installed.
    """
    return _without("pydicom", "requests")
