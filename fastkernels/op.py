"""The base of every operator, block, layer and model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastkernels.context import reference_mode
from fastkernels.errors import UsageError
from fastkernels.spec import Cost, OpSpec


class MissingSpecError(UsageError, AttributeError):
    """An AttributeError too: `hasattr` of a class without a spec is False, as of any other attribute."""


class _NoSpec:
    """Stands where an op has no `spec` of its own or of a base."""

    def __get__(self, op: object, op_class: type) -> OpSpec:
        raise MissingSpecError(
            f"{op_class.__name__} in {op_class.__module__} has no `spec`, the contract by which inputs are drawn and "
            "answers judged: write `spec = OpSpec(...)` with every axis, dtype and role (fastkernels/spec.py)."
        )


class Op(nn.Module):
    """One L1-L4 task: `spec` (the contract), `forward` (production), `reference` (the definition).

    A primitive overrides `reference` with plain PyTorch that computes in `compute_dtype(x)`; a
    composite inherits this one, which is its own forward over its parts' definitions.
    """

    spec: ClassVar[OpSpec] = _NoSpec()  # type: ignore[assignment]

    def reference(self, *args: Any, **kwargs: Any) -> Any:
        with reference_mode():
            return self.forward(*args, **kwargs)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Sizes of axes that follow from others, such as those of a convolution's output."""
        return {}

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        """Values of the arguments of Role.COUPLED, which only make sense together, on the CPU; floats in float32."""
        return {}

    def coupled_params(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Values of the op's own parameters that a state would vanish or grow by if they were drawn freely."""
        return {}

    def byte_range(self, name: str, shape: Sequence[int]) -> tuple[int, int]:
        """Of a parameter of bytes: the least value, and one more than the largest, that weights by seed draw.

        shape: of the whole tensor, where this rank holds a part of it.
        """
        return 0, 256

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """Bytes and flops of one call; the default reads inputs and parameters and writes outputs once.

        inputs: by argument name, as passed; outputs: by output name, declared mutations not among them. What is
        expanded lies in memory once.
        """
        tensors = [t for t in (*inputs.values(), *outputs.values()) if isinstance(t, Tensor)]
        tensors += list(self.parameters())
        return Cost(num_bytes=sum(_num_stored(t) * t.element_size() for t in tensors))


def is_baseline(op: nn.Module) -> bool:
    """Whether nothing stands in for it: what does is called as its contract says, and so is counted."""
    return type(op).__module__.startswith("fastkernels.tasks.baseline.")


def is_watched(op: nn.Module) -> bool:
    """Whether somebody looks at its calls: by hooks, or a recording, which gives every Op another `__call__`."""
    return bool(op._forward_hooks or op._forward_pre_hooks) or "__call__" in vars(Op)


def _num_stored(tensor: Tensor) -> int:
    return math.prod(size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step or not size)


def unread_bytes(table: Tensor, ids: Tensor) -> int:
    """Of a table those of the rows that no id names, for a cost that counts all of them."""
    return (len(table) - ids.unique().numel()) * table[0].numel() * table.element_size()


def prepare_weights(module: nn.Module) -> None:
    """Let each layer lay out its weights anew, now that they are there, where it has `process_weights_after_loading()`.

    As in vLLM; a layer may be told so again, of other weights.
    """
    with torch.no_grad():
        for layer in module.modules():
            prepare: Any = getattr(layer, "process_weights_after_loading", None)
            if prepare is not None:
                prepare()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a definition computes: at least float32, so float64 inputs stay float64."""
    return torch.promote_types(x.dtype, torch.float32)
