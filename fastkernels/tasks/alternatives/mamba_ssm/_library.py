"""Imports mamba-ssm when an op is built."""

from __future__ import annotations

from typing import Any

from fastkernels.tasks.alternatives.library import library_function


def mamba_function(module: str, name: str) -> Any:
    """Errors: those of library_function."""
    return library_function("mamba_ssm", "mamba-ssm>=2.3", f"mamba_ssm.ops.triton.{module}", name)
