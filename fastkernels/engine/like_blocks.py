"""A model on "meta" whose stacks run one of every kind of block: the others would launch the same kernels again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn


class LikeBlocks:
    """Changes `model`: a block of a stack (nn.ModuleList) gives what one that is built alike gave for like inputs.

    Only for tensors without data. `forget` before every step: what a block launches depends on the step too.
    """

    def __init__(self, model: nn.Module) -> None:
        self._answers: dict[object, Any] = {}
        for stack in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
            for block in stack:
                block.forward = partial(self._call, block.forward, _description(block))

    def forget(self) -> None:
        self._answers.clear()

    def _call(self, forward: Callable[..., Any], description: str, *args: Any, **kwargs: Any) -> Any:
        key = description, _form(args), _form(kwargs)
        if key not in self._answers:
            self._answers[key] = forward(*args, **kwargs)
        return self._answers[key]


def _description(block: nn.Module) -> str:
    """Everything that a block is built of, names of its parts among it, and no values of tensors."""
    parts = []
    for name, module in block.named_modules():
        own = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "forward"}
        tensors = {**module._parameters, **module._buffers}
        parts.append((name, type(module).__qualname__, _form(own), _form(tensors)))
    return repr(parts)


def _form(value: Any) -> object:
    """What tells inputs and attributes apart; an object that does not say what it holds is like itself alone."""
    if isinstance(value, Tensor):
        return str(value.dtype), str(value.device), tuple(value.shape), value.stride(), value.storage_offset() % 16
    if isinstance(value, Mapping):
        return tuple((name, _form(one)) for name, one in value.items())
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(_form(one) for one in value)
    return repr(value)
