"""Inputs of any op from its spec, small, by seed: what the tests of all ops are run on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from paged_batches import PAGE_SIZE, make_context, scattered_pages, shapes_of
from torch import Tensor

from fastkernels.cache import CacheKind, cached_layers
from fastkernels.context import ForwardContext, Phase
from fastkernels.op import Op
from fastkernels.spec import Role, TensorSpec, axis_size

BATCHES = {
    Phase.PREFILL: ([1, 17, 5], [1, 17, 5]),
    Phase.DECODE: ([1, 1, 1, 1], [1, 16, 33, 50]),
    Phase.MIXED: ([1, 7, 20, 1], [34, 40, 20, 1]),
}

_SPARE_SLOTS = 2
"""Of states: they belong to nobody."""


@dataclass
class OpInputs:
    kwargs: dict[str, Any]
    context: ForwardContext | None
    caches: list[Tensor]
    sizes: dict[str, int]

    def clone(self) -> OpInputs:
        kwargs = {n: v.clone() if isinstance(v, Tensor) else v for n, v in self.kwargs.items()}
        return OpInputs(kwargs, self.context, [c.clone() for c in self.caches], self.sizes)

    def map_floats(self, change: Any) -> OpInputs:
        def apply(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) and value.is_floating_point() else value

        kwargs = {n: apply(v) for n, v in self.kwargs.items()}
        return OpInputs(kwargs, self.context, [apply(c) for c in self.caches], self.sizes)

    def cast(self, op: Op, dtype: torch.dtype) -> OpInputs:
        """Floats of the op's dtype in `dtype`; those that have one of their own keep it."""

        def apply(name: str, value: Any) -> Any:
            is_cast = isinstance(value, Tensor) and value.is_floating_point() and op.spec.inputs[name].dtype == "op"
            return value.to(dtype) if is_cast else value

        specs = [layer.cache_spec for layer in cached_layers(op)]
        kinds = [kind for spec in specs for _, kind in shapes_of(spec, 1, 1)]
        caches = [cache.to(kind or dtype) for cache, kind in zip(self.caches, kinds, strict=True)]
        return OpInputs({n: apply(n, v) for n, v in self.kwargs.items()}, self.context, caches, self.sizes)

    def to(self, device: str) -> OpInputs:
        kwargs = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in self.kwargs.items()}
        context = None if self.context is None else self.context.to(device)
        return OpInputs(kwargs, context, [c.to(device) for c in self.caches], self.sizes)


def phases_of(op_class: type[Op]) -> tuple[Phase | None, ...]:
    """The kinds of batches an op can be called with; (None,) when it knows of no sequences."""
    spec = op_class.spec
    roles = {tensor.role for tensor in spec.inputs.values()}
    if spec.reads_context:
        return tuple(Phase)
    if Role.STATE_SLOT in roles:
        return (Phase.PREFILL, Phase.MIXED) if Role.QUERY_START in roles else (Phase.DECODE,)
    if Role.SEQ_LEN in roles:
        return (Phase.MIXED,) if Role.QUERY_START in roles else (Phase.DECODE,)
    return (Phase.PREFILL,) if Role.QUERY_START in roles else (Phase.MIXED,) if spec.uses_pages else (None,)


def sizes_of(op: Op, context: ForwardContext | None, num_pages: int, example: int) -> dict[str, int]:
    spec = op.spec
    tensors = (*spec.inputs.values(), *spec.outputs.values())
    names = {axis.split("*")[-1] for t in tensors for axis in (*t.axes, *([t.bound] if t.bound else []))}
    sizes = dict.fromkeys(names, 13)
    sizes.update({name: values[example % len(values)] for name, values in spec.example_axes.items()})
    if context is not None:
        num_seqs = len(context.seq_lens)
        sizes.update(num_tokens=len(context.slot_mapping), num_seqs=num_seqs, num_query_starts=num_seqs + 1)
        sizes.update(num_pages=num_pages, page_size=PAGE_SIZE, max_pages=context.block_table.shape[1])
        sizes.update(num_slots=num_seqs + _SPARE_SLOTS)
    sizes.update({name: value for name in names if type(value := getattr(op, name, None)) is int})
    return sizes | op.derived_axes(sizes)


def _integers(bound: int, shape: list[int], dtype: str, generator: torch.Generator) -> Tensor:
    return torch.randint(bound, shape, generator=generator).to(getattr(torch, dtype))


def _draw(
    name: str, tensor: TensorSpec, sizes: dict[str, int], context: ForwardContext | None, generator: torch.Generator
) -> Any:
    from_context = {
        Role.SLOT: "slot_mapping",
        Role.PAGE_TABLE: "block_table",
        Role.QUERY_START: "query_start_loc",
        Role.SEQ_LEN: "seq_lens",
        Role.MAX_QUERY_LEN: "max_query_len",
        Role.MAX_SEQ_LEN: "max_seq_len",
        Role.NUM_DECODES: "num_decodes",
        Role.STATE_SLOT: "state_slots",
        Role.HAS_STATE: "has_initial_state",
    }
    if tensor.role in from_context:
        return getattr(context, from_context[tensor.role])
    if tensor.role is Role.SCALAR:
        return sizes.get(name)
    shape = [n for axis in tensor.axes for n in ([3, 5] if axis == "..." else [axis_size(axis, sizes)])]
    bound = axis_size(tensor.bound, sizes) if tensor.bound else 2**40
    if tensor.role in (Role.TOKEN_ID, Role.POSITION, Role.INDEX, Role.SEED, Role.TOP_K):
        return _integers(bound, shape, tensor.dtype, generator)
    if tensor.role is Role.MASK:
        return (torch.rand(shape, generator=generator) < 0.7) | (torch.arange(shape[-1]) == 0)
    if tensor.role is Role.OPTIONAL_INDEX:
        return _integers(bound + 1, shape, tensor.dtype, generator) - 1
    if tensor.role is Role.TOKEN_COUNT:
        return _integers(6, shape, tensor.dtype, generator) * _integers(2, shape, tensor.dtype, generator)
    if tensor.role is Role.BITMASK:
        return (_integers(2**32, shape, "int64", generator) - 2**31).to(getattr(torch, tensor.dtype))
    if tensor.role is Role.REPETITION_PENALTY:
        return torch.rand(shape, generator=generator) + 0.5
    if tensor.role in (Role.TEMPERATURE, Role.TOP_P, Role.MIN_P):
        return torch.rand(shape, generator=generator).clamp_min(0.1)
    return torch.randn(shape, generator=generator)


def make_inputs(op: Op, phase: Phase | None, example: int = 0, seed: int = 0, with_optional: bool = True) -> OpInputs:
    """float32 inputs of one call; some tokens of a mixed batch are not stored (slot -1) when the op takes slots."""
    generator = torch.Generator().manual_seed(seed)
    context, num_pages = None, 0
    if phase is not None:
        query_lens, seq_lens = BATCHES[phase]
        pages, num_pages = scattered_pages(seq_lens, seed)
        slots = torch.arange(len(seq_lens) + _SPARE_SLOTS).flip(0)[: len(seq_lens)]
        context = make_context(query_lens, seq_lens, pages, phase, state_slots=slots)
        if not op.spec.reads_context:
            slots = context.slot_mapping.clone()
            slots[2] = -1
            context = replace(context, slot_mapping=slots)
        if any(layer.cache_spec.kind is CacheKind.CROSS for layer in cached_layers(op)):
            context = replace(
                context,
                cross_block_table=context.block_table,
                cross_seq_lens=context.seq_lens,
                cross_slot_mapping=context.slot_mapping,
            )
    sizes = sizes_of(op, context, num_pages, example)
    coupled = op.coupled_inputs(sizes, generator)
    kwargs = {
        name: None
        if tensor.is_optional and not with_optional
        else coupled[name]
        if name in coupled
        else _draw(name, tensor, sizes, context, generator)
        for name, tensor in op.spec.inputs.items()
    }
    num_slots = sizes.get("num_slots", 0)
    shapes = [shape for layer in cached_layers(op) for shape, _ in shapes_of(layer.cache_spec, num_pages, num_slots)]
    caches = [torch.randn(shape, generator=generator) for shape in shapes]
    return OpInputs(kwargs, context if op.spec.reads_context else None, caches, sizes)


def strided_view(x: Tensor) -> Tensor:
    """The same values in rows that lie further apart; the last axis stays dense."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 3), float("nan"), dtype=x.dtype, device=x.device)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]
