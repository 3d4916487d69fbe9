"""The one engine: requests that chase a target, pages, a scheduler, a runner."""

from fastkernels.engine.request import FinishReason, RequestOutput, SamplingParams

__all__ = ["FinishReason", "RequestOutput", "SamplingParams"]
