"""What goes to a model that makes no tokens, and what it says of it after each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastkernels.engine.outputs import FinishReason


@dataclass(frozen=True)
class TaskRequest:
    """inputs: what the model's `prepare` takes, by name."""

    request_id: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class TaskOutput:
    """How far a request has come; `result` when it is finished, `error` when it could not be."""

    request_id: str
    step: int
    num_steps: int
    finish_reason: FinishReason | None = None
    result: Any = None
    error: str | None = None

    def with_result(self, result: Any) -> TaskOutput:
        return replace(self, result=result)
