"""A GPU-kernel benchmark that is an inference framework."""

__version__ = "0.1.0"
