"""What one call is given and what it leaves, taken to the CPU within a byte budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.capture.case import Case
from fastkernels.capture.digest import outputs_digest, tensor_digest
from fastkernels.capture.moments import Moments, measure
from fastkernels.capture.tensors import copy_to, kept_stride
from fastkernels.capture.touched import Touched, touched_by
from fastkernels.context import ForwardContext
from fastkernels.spec import OpSpec

_PARAMS_SHARE = 0.5
"""Parameters take at most this share of the budget, so that activations, which cannot be drawn again, find room."""

_MOST_OF_ROOM = 0.25
"""One tensor takes at most this share of what is left: a few large prefill inputs leave room for decode's."""


class Budget:
    """Bytes of float values that a recording may keep; equal tensors count once."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._kept: dict[str, Tensor] = {}
        self._used = self._used_by_params = 0
        self._params: dict[tuple[Any, ...], Tensor | Moments] = {}

    def keep(self, name: str, tensor: Tensor, *, is_param: bool = False) -> Tensor | Moments:
        """A CPU copy while there is room, otherwise moments.

        Integers and booleans are always kept, for they say where and how many; not so the bytes of quantised weights.
        """
        used = self._used_by_params if is_param else self._used
        room = min(self.num_bytes * (_PARAMS_SHARE if is_param else 1) - used, self.num_bytes - self._used)
        size = tensor.numel() * tensor.element_size()
        may_go = tensor.is_floating_point() or (is_param and tensor.dtype is torch.uint8)
        # Without room for a new tensor it may still equal a kept one; only small ones are worth the look.
        if may_go and size > room * _MOST_OF_ROOM and size > self.num_bytes // 100:
            return measure(name, tensor)
        copied = copy_to(tensor, "cpu")
        key = f"{tensor_digest(copied)} {kept_stride(copied)}"
        if key in self._kept:
            return self._kept[key]
        if may_go and size > room * _MOST_OF_ROOM:
            return measure(name, copied)
        self._kept[key] = copied
        if may_go:
            self._used += size
            self._used_by_params += size if is_param else 0
        return copied

    def keep_param(self, name: str, tensor: Tensor) -> Tensor | Moments:
        """As `keep`; a weight is looked at once, by where it lies, for all the ops that hold it."""
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype)
        if key not in self._params:
            self._params[key] = self.keep(name, tensor, is_param=True)
        return self._params[key]

    def forget_places(self) -> None:
        """A weight that is looked at from now on may lie where another one lay that is gone."""
        self._params.clear()


@dataclass
class Snapshot:
    """A call before it runs; `finish` adds what it left. Holds nothing on the device."""

    case: Case
    budget: Budget
    touched: Touched

    def finish(self, op: nn.Module, spec: OpSpec, inputs: Mapping[str, Any], outputs: tuple[Any, ...]) -> Case:
        """The case with its mutated buffers and digest; without both when some values are drawn from moments."""
        if self.case.moments:
            return self.case
        after: dict[str, Tensor] = {}
        for name in spec.mutates:
            if isinstance(inputs.get(name), Tensor):
                after[name] = copy_to(self.touched.argument(spec, name, inputs, {}), "cpu")
            elif name == "kv_cache":
                after |= {f"kv_cache.{i}": cache for i, cache in enumerate(self.touched.caches(op))}
        digest = outputs_digest(outputs, after)
        kept: dict[str, Tensor] = {}
        for name, tensor in after.items():
            value = self.budget.keep(name, tensor)
            if isinstance(value, Moments):
                return replace(self.case, outputs_digest=digest)
            kept[name] = value
        return replace(self.case, after=kept, outputs_digest=digest)


def take(
    name: str,
    init: Mapping[str, Any],
    op: nn.Module,
    inputs: Mapping[str, Any],
    context: ForwardContext | None,
    budget: Budget,
) -> Snapshot:
    """Everything the call reads. context: None when the op reads none."""
    spec: OpSpec = op.spec  # type: ignore[assignment]
    host_context = context and context.to("cpu")
    integers = {n: v.cpu() for n, v in inputs.items() if isinstance(v, Tensor) and not v.is_floating_point()}
    touched = touched_by(op, spec, inputs, integers, host_context)
    values = {key: touched.argument(spec, key, inputs, integers) for key in inputs}
    caches = touched.caches(op) if host_context is not None else []
    case = Case(
        op=name,
        init=dict(init),
        inputs={},
        dtype=activation_dtype(op, spec, inputs),
        context=touched.context(host_context) if host_context else None,
        phase=context.phase if context else None,
    )
    return Snapshot(_kept(case, values, op, caches, budget), budget, touched)


def _kept(case: Case, values: Mapping[str, Any], op: nn.Module, caches: list[Tensor], budget: Budget) -> Case:
    """The case with its values within the budget; what is kept as moments becomes a tensor without storage."""
    moments: dict[str, Moments] = {}

    def hold(name: str, tensor: Tensor, kept: Tensor | Moments) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        moments[name] = kept
        stride = kept_stride(tensor)
        if stride is None:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device="meta")

    inputs = {
        name: hold(f"inputs.{name}", value, budget.keep(name, value)) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }
    params = {n: hold(f"params.{n}", p, budget.keep_param(n, p)) for n, p in op.state_dict().items()}
    held = tuple(hold(f"caches.{i}", c, budget.keep(f"caches.{i}", c)) for i, c in enumerate(caches))
    return replace(case, inputs=inputs, params=params, caches=held, moments=moments)


def activation_dtype(op: nn.Module, spec: OpSpec, inputs: Mapping[str, Any]) -> torch.dtype:
    """Of the first activation, else of the first parameter, else the default."""
    named = [inputs.get(n) for n, t in spec.inputs.items() if t.dtype == "op"]
    for tensor in (*named, *op.parameters()):
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            return tensor.dtype
    return torch.get_default_dtype()


def content_key(case: Case) -> str:
    """Tells two snapshots of one key apart by their inputs and geometry."""
    tensors = {n: v for n, v in case.inputs.items() if isinstance(v, Tensor) and v.device.type != "meta"}
    if case.context is not None:
        tensors |= {f"context.{n}": v for n, v in case.context.tensors().items()}
    text = json.dumps([{n: tensor_digest(t) for n, t in tensors.items()}, repr(case.moments)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
