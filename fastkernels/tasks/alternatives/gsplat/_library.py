"""Imports gsplat when an op is built."""

from __future__ import annotations

from typing import Any

from fastkernels.tasks.alternatives.library import library_function


def gsplat_function(name: str) -> Any:
    """Errors: those of library_function."""
    return library_function("gsplat", "gsplat>=1.5", "gsplat", name)
