"""The tensors of a case by name, and copies of tensors that keep their strides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastkernels.capture.case import Case
from fastkernels.capture.moments import draw

_MOST_PADDING = 16
"""A view whose storage would span more than this many times its elements is copied densely."""


def with_stride(tensor: Tensor, stride: Sequence[int]) -> Tensor:
    """A copy of `tensor` laid out with `stride`; axes of stride 0 are repeated, not stored."""
    stored = [1 if step == 0 else size for size, step in zip(tensor.shape, stride, strict=True)]
    span = 1 + sum((size - 1) * step for size, step in zip(stored, stride, strict=True))
    storage = torch.zeros(span, dtype=tensor.dtype, device=tensor.device)
    base = tensor
    for axis, size in enumerate(stored):
        base = base.narrow(axis, 0, size)
    storage.as_strided(stored, tuple(stride)).copy_(base)
    return storage.as_strided(tuple(tensor.shape), tuple(stride))


def stored(tensor: Tensor, stride: Sequence[int] | None = None) -> Tensor:
    """A view of what memory holds of `tensor`: axes of stride 0, along which values are repeated, have size 1.

    stride: where that of another tensor decides which these are.
    """
    for axis, step in enumerate(tensor.stride() if stride is None else stride):
        if step == 0 and tensor.shape[axis] > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def kept_stride(tensor: Tensor) -> tuple[int, ...] | None:
    """The stride that a copy must have; None: dense. Overlapping and very sparse views count as dense."""
    if tensor.is_contiguous() or not tensor.numel():
        return None
    axes = sorted((step, size) for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1 and step)
    reach = 0
    for step, size in axes:
        if step <= reach:
            return None
        reach += (size - 1) * step
    num_stored = 1
    for _, size in axes:
        num_stored *= size
    return tensor.stride() if reach < _MOST_PADDING * num_stored else None


def copy_to(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A fresh copy on `device` with the same strides; never an inference tensor, so it may be written to anywhere."""
    stride = kept_stride(tensor)
    with torch.inference_mode(False), torch.no_grad():
        dense = tensor.detach().to(device, copy=True, memory_format=torch.contiguous_format)
        return dense if stride is None else with_stride(dense, stride)


def named_tensors(case: Case) -> dict[str, Tensor]:
    """Every tensor of the case: "inputs.x", "params.weight", "context.seq_lens", "caches.0", "after.key_cache"."""
    named = {f"inputs.{name}": value for name, value in case.inputs.items() if isinstance(value, Tensor)}
    named |= {f"params.{name}": value for name, value in case.params.items()}
    if case.context is not None:
        named |= {f"context.{name}": value for name, value in case.context.tensors().items()}
    named |= {f"caches.{i}": value for i, value in enumerate(case.caches)}
    return named | {f"after.{name}": value for name, value in case.after.items()}


def with_tensors(case: Case, new: Mapping[str, Tensor]) -> Case:
    """The case with some of its tensors exchanged, by the names of `named_tensors`."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in new.items() if name.startswith(prefix)}

    context = case.context
    if context is not None and (changed := part("context.")):
        context = replace(context, **changed)  # type: ignore[arg-type]
    return replace(
        case,
        inputs={**case.inputs, **part("inputs.")},
        params={**case.params, **part("params.")},
        context=context,
        caches=tuple(new.get(f"caches.{i}", cache) for i, cache in enumerate(case.caches)),
        after={**case.after, **part("after.")},
    )


def filled(case: Case) -> Case:
    """The case with values for what was kept as moments alone (held as tensors without storage)."""
    tensors = named_tensors(case)
    drawn = {}
    for name, moments in case.moments.items():
        empty = tensors[name]
        if empty.device.type == "meta":
            values = draw(moments, empty.shape, empty.dtype)
            drawn[name] = values if empty.is_contiguous() else with_stride(values, empty.stride())
    return with_tensors(case, drawn) if drawn else case


def on_device(case: Case, device: torch.device | str) -> Case:
    """A fresh copy of every tensor of the case on `device`."""
    full = filled(case)
    return with_tensors(full, {name: copy_to(tensor, device) for name, tensor in named_tensors(full).items()})
