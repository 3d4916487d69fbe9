"""A GPU-kernel benchmark that is an inference framework."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastkernels.engine.llm import LLM
    from fastkernels.engine.pipeline import Pipeline
    from fastkernels.engine.results import CompletionOutput, EmbeddingRequestOutput, RequestOutput
    from fastkernels.engine.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "CompletionOutput",
    "EmbeddingRequestOutput",
    "Pipeline",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]

_MODULES = {
    "LLM": "llm",
    "Pipeline": "pipeline",
    "SamplingParams": "sampling_params",
    **dict.fromkeys(("CompletionOutput", "EmbeddingRequestOutput", "RequestOutput"), "results"),
}


def __getattr__(name: str) -> Any:
    """The engine is imported when it is asked for: the commands that need none start quickly."""
    if name in _MODULES:
        return getattr(import_module(f"fastkernels.engine.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
