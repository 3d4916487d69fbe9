"""`fastkernels version`."""

from __future__ import annotations

import platform
from importlib import metadata

from fastkernels import __version__
from fastkernels.cli.common import console

_SHOWN = ("torch", "triton", "transformers", "numpy")


def version() -> None:
    """The versions of FastKernels and of what it runs on."""
    console.print(f"fastkernels {__version__}")
    console.print(f"python {platform.python_version()}")
    for name in _SHOWN:
        try:
            console.print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            console.print(f"{name} (not installed)")
