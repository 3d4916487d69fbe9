"""Kernels that are interpreted here are interpreted without what can be done once."""

from importlib.metadata import version

from fastkernels.env import triton_interpreted

if triton_interpreted() and version("triton") == "3.6.0":  # whose inner parts it takes the place of
    import quick_interpreter

    quick_interpreter.install()
