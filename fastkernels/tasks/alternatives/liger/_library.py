"""Imports Liger Kernel when an op is built."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from fastkernels.errors import EnvironmentProblem


def liger_function(module: str, name: str) -> Any:
    """An autograd function of liger_kernel.ops.

    Errors: EnvironmentProblem without a GPU or without the library.
    """
    if not torch.cuda.is_available():
        raise EnvironmentProblem("The set 'liger' runs Triton kernels and needs an NVIDIA GPU; none is visible.")
    try:
        return getattr(importlib.import_module(f"liger_kernel.ops.{module}"), name)
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "The set 'liger' needs the library liger-kernel: run `pip install 'liger-kernel>=0.8'`."
        ) from error
