"""What one call is given and what it leaves, taken to the CPU within a byte budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.cache import cached_layers
from fastkernels.capture.case import Case
from fastkernels.capture.digest import outputs_digest, tensor_digest
from fastkernels.capture.moments import Moments, measure
from fastkernels.capture.pages import TouchedPages, arguments_of_role, page_axis
from fastkernels.capture.tensors import copy_to, kept_stride
from fastkernels.context import ForwardContext
from fastkernels.spec import OpSpec, Role

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
        """A CPU copy while there is room, otherwise moments. Integers and booleans are always kept."""
        used = self._used_by_params if is_param else self._used
        room = min(self.num_bytes * (_PARAMS_SHARE if is_param else 1) - used, self.num_bytes - self._used)
        size = tensor.numel() * tensor.element_size()
        may_go = tensor.is_floating_point()
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


@dataclass
class Snapshot:
    """A call before it runs; `finish` adds what it left. Holds nothing on the device."""

    case: Case
    budget: Budget
    pages: TouchedPages | None = None
    page_axes: Mapping[str, int] = field(default_factory=dict)

    def finish(self, op: nn.Module, spec: OpSpec, inputs: Mapping[str, Any], outputs: tuple[Any, ...]) -> Case:
        """The case with its mutated buffers and digest; without both when some values are drawn from moments."""
        if self.case.moments:
            return self.case
        after: dict[str, Tensor] = {}
        for name in spec.mutates:
            if isinstance(inputs.get(name), Tensor):
                after[name] = self._after(name, inputs[name])
            elif name == "kv_cache":
                layers = enumerate(cached_layers(op))
                after |= {f"kv_cache.{i}": self._after(name, layer.kv_cache) for i, layer in layers}
        digest = outputs_digest(outputs, after)
        kept: dict[str, Tensor] = {}
        for name, tensor in after.items():
            value = self.budget.keep(name, tensor)
            if isinstance(value, Moments):
                return replace(self.case, outputs_digest=digest)
            kept[name] = value
        return replace(self.case, after=kept, outputs_digest=digest)

    def _after(self, name: str, buffer: Tensor) -> Tensor:
        if self.pages is not None and name in self.page_axes:
            return self.pages.select(buffer, self.page_axes[name])
        return copy_to(buffer, "cpu")


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
    layers = cached_layers(op)
    host_context = context and context.to("cpu")
    integers = {n: v.cpu() for n, v in inputs.items() if isinstance(v, Tensor) and not v.is_floating_point()}
    page_axes = {n: page_axis(spec.inputs[n]) for n in arguments_of_role(spec, inputs, Role.CACHE)}
    pages = _touched(spec, integers, inputs, page_axes, layers, host_context)
    if layers and pages is not None:
        page_axes["kv_cache"] = 1
    values: dict[str, Tensor | Moments | Any] = {}
    for key, value in inputs.items():
        if not isinstance(value, Tensor):
            values[key] = value
        elif pages is not None and key in page_axes:
            values[key] = pages.select(value, page_axes[key])
        elif pages is not None and key in integers:
            values[key] = _renumbered(pages, spec, key, integers)
        else:
            values[key] = value
    caches = [pages.select(layer.kv_cache, 1) for layer in layers] if pages is not None else []
    case = Case(
        op=name,
        init=dict(init),
        inputs={},
        dtype=activation_dtype(op, spec, inputs),
        context=pages.renumber_context(host_context) if host_context and pages else host_context,
        phase=context.phase if context else None,
    )
    return Snapshot(_kept(case, values, op, caches, budget), budget, pages, page_axes)


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


def _touched(
    spec: OpSpec,
    integers: Mapping[str, Tensor],
    inputs: Mapping[str, Any],
    page_axes: Mapping[str, int],
    layers: list[Any],
    context: ForwardContext | None,
) -> TouchedPages | None:
    """None when the call reaches no cache."""
    if page_axes:
        name, axis = next(iter(page_axes.items()))
        page_size = inputs[name].shape[axis + 1]
    elif layers and context is not None and layers[0].kv_cache is not None:
        page_size = layers[0].kv_cache.shape[2]
    else:
        return None
    lens = next(iter(arguments_of_role(spec, integers, Role.SEQ_LEN).values()), None)
    tables = [(t, lens) for t in arguments_of_role(spec, integers, Role.PAGE_TABLE).values()]
    slots = list(arguments_of_role(spec, integers, Role.SLOT).values())
    if context is not None:
        tables.append((context.block_table, context.seq_lens))
        slots.append(context.slot_mapping)
    return TouchedPages.of(tables, slots, page_size)


def _renumbered(pages: TouchedPages, spec: OpSpec, name: str, integers: Mapping[str, Tensor]) -> Tensor:
    role = spec.inputs[name].role if name in spec.inputs else None
    if role is Role.PAGE_TABLE:
        lens = next(iter(arguments_of_role(spec, integers, Role.SEQ_LEN).values()), None)
        return pages.renumber_table(integers[name], lens)
    return pages.renumber_slots(integers[name]) if role is Role.SLOT else integers[name]


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
