"""Imports Liger Kernel when an op is built."""

from __future__ import annotations

from typing import Any

from fastkernels.tasks.alternatives.library import library_function


def liger_function(module: str, name: str) -> Any:
    """An autograd function of liger_kernel.ops. Errors: those of library_function."""
    return library_function("liger", "liger-kernel>=0.8", f"liger_kernel.ops.{module}", name)
