"""Imports the libraries of implementation sets, when an op is built."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from fastkernels.errors import EnvironmentProblem


def library_function(set_name: str, requirement: str, module: str, name: str) -> Any:
    """A function of a library that computes on a GPU.

    requirement: for pip, such as "gsplat>=1.5".
    Errors: EnvironmentProblem without a GPU or the library, or where it has no such function or cannot be imported.
    """
    if not torch.cuda.is_available():
        raise EnvironmentProblem(f"The set {set_name!r} runs GPU kernels and needs an NVIDIA GPU; none is visible.")
    library, wanted = module.partition(".")[0], f"pip install '{requirement}'"
    try:
        importlib.import_module(library)
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        if error.name == library:
            raise EnvironmentProblem(
                f"The set {set_name!r} needs the library {library}, which is not installed: {wanted}."
            ) from error
        raise EnvironmentProblem(
            f"The set {set_name!r} needs {module}.{name}, which could not be imported ({error}): {wanted}."
        ) from error
    except AttributeError as error:
        raise EnvironmentProblem(
            f"The set {set_name!r} needs {module}.{name}, which the installed version does not have: {wanted}."
        ) from error
