"""One section of a configuration merged into another."""

from __future__ import annotations

from typing import Any

# What is replaced as a whole, as lists are: classes are never mixed with others.
_WHOLE = ("classes",)


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change` merged into `base`, section by section."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if key not in _WHOLE and isinstance(old, dict) and isinstance(value, dict):
            value = merge(old, value)
        merged[key] = value
    return merged
