"""A GPU-kernel benchmark that is an inference framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastkernels.engine.llm import LLM
    from fastkernels.engine.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    """The engine is imported when it is asked for: the commands that need none start quickly."""
    if name == "LLM":
        from fastkernels.engine.llm import LLM

        return LLM
    if name == "SamplingParams":
        from fastkernels.engine.sampling_params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
