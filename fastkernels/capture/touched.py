"""What one call touches of every kind of cache: pages of full, window and cross layers, slots of states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.cache import CacheKind, CacheSpec, cached_layers, flat_caches
from fastkernels.capture.pages import TouchedPages, arguments_of_role, page_axis
from fastkernels.capture.tensors import copy_to
from fastkernels.context import ForwardContext
from fastkernels.spec import OpSpec, Role

_ARGUMENTS = "arguments"
_FIELDS = {
    CacheKind.FULL: ("block_table", "seq_lens", "slot_mapping"),
    CacheKind.WINDOW: ("window_block_table", "seq_lens", "window_slot_mapping"),
    CacheKind.CROSS: ("cross_block_table", "cross_seq_lens", "cross_slot_mapping"),
}
"""Of the context, by kind of page table: the table, how many tokens of a row are read, where new ones go."""


@dataclass(frozen=True)
class TouchedSlots:
    """Old slot numbers in ascending order: a slot's new number is its place here."""

    slots: Tensor

    @staticmethod
    def of(slots: Sequence[Tensor]) -> TouchedSlots:
        used = torch.cat([s.flatten().long() for s in slots]).unique()
        used = used[used >= 0]
        return TouchedSlots(used if used.numel() else torch.zeros(1, dtype=torch.long))

    def renumber(self, slots: Tensor) -> Tensor:
        """Negative ones, which name no slot, become -1."""
        new = torch.searchsorted(self.slots, slots.long()).to(slots.dtype)
        return torch.where(slots >= 0, new, -1)

    def select(self, state: Tensor) -> Tensor:
        return copy_to(state.detach().index_select(0, self.slots.to(state.device)), "cpu")


@dataclass(frozen=True)
class Touched:
    """pages: by kind of page table, or of the arguments; slots: of states in arguments or layers."""

    pages: Mapping[str, TouchedPages]
    slots: TouchedSlots | None = None

    def argument(self, spec: OpSpec, name: str, inputs: Mapping[str, Any], integers: Mapping[str, Tensor]) -> Any:
        """An argument as the case holds it: caches and states in part, tables and slots renumbered."""
        value, role = inputs[name], spec.inputs[name].role if name in spec.inputs else None
        pages = self.pages.get(_ARGUMENTS)
        if not isinstance(value, Tensor):
            return value
        if role is Role.STATE and self.slots is not None:
            return self.slots.select(value)
        if role is Role.STATE_SLOT and self.slots is not None:
            return self.slots.renumber(integers[name])
        if pages is None:
            return integers.get(name, value)
        if role is Role.CACHE:
            return pages.select(value, page_axis(spec.inputs[name]))
        if role is Role.PAGE_TABLE:
            return pages.renumber_table(integers[name], _lengths(spec, integers))
        return pages.renumber_slots(integers[name]) if role is Role.SLOT else integers.get(name, value)

    def caches(self, op: nn.Module) -> list[Tensor]:
        """What is touched of every bound cache, in the order of `flat_caches`."""
        return [self._select(spec, tensor) for spec, tensor in flat_caches(op)]

    def _select(self, spec: CacheSpec, tensor: Tensor) -> Tensor:
        if spec.kind is CacheKind.STATE:
            return self.slots.select(tensor) if self.slots is not None else copy_to(tensor, "cpu")
        pages = self.pages.get(_kind_of(spec))
        return copy_to(tensor, "cpu") if pages is None else pages.select(tensor, _axis_of(spec))

    def context(self, context: ForwardContext) -> ForwardContext:
        """The context with the numbers of the case."""
        new: dict[str, Tensor] = {}
        for kind, (table, lens, slots) in _FIELDS.items():
            pages, placed = self.pages.get(kind), getattr(context, slots)
            if pages is not None:
                new[table] = pages.renumber_table(getattr(context, table), getattr(context, lens))
                if placed is not None:
                    new[slots] = pages.renumber_slots(placed)
        if self.slots is not None and context.state_slots is not None:
            new["state_slots"] = self.slots.renumber(context.state_slots)
        return replace(context, **new)  # type: ignore[arg-type]


def touched_by(
    op: nn.Module,
    spec: OpSpec,
    inputs: Mapping[str, Any],
    integers: Mapping[str, Tensor],
    context: ForwardContext | None,
) -> Touched:
    """integers: the integer arguments on the CPU; context: on the CPU, None when the op reads none."""
    pages: dict[str, TouchedPages] = {}
    caches = arguments_of_role(spec, inputs, Role.CACHE)
    for name, cache in caches.items():
        tables = [(t, _lengths(spec, integers)) for t in arguments_of_role(spec, integers, Role.PAGE_TABLE).values()]
        placed = list(arguments_of_role(spec, integers, Role.SLOT).values())
        pages[_ARGUMENTS] = TouchedPages.of(tables, placed, cache.shape[page_axis(spec.inputs[name]) + 1])
        break
    if context is not None:
        for cache_spec, tensor in flat_caches(op):
            kind = _kind_of(cache_spec)
            if kind in _FIELDS and kind not in pages:
                pages[kind] = _pages_of(context, kind, tensor.shape[_axis_of(cache_spec) + 1])
    slots = list(arguments_of_role(spec, integers, Role.STATE_SLOT).values())
    has_states = any(layer.cache_spec.kind is CacheKind.STATE for layer in cached_layers(op))
    if context is not None and context.state_slots is not None and has_states:
        slots.append(context.state_slots)
    return Touched(pages, TouchedSlots.of(slots) if slots else None)


def _pages_of(context: ForwardContext, kind: CacheKind, page_size: int) -> TouchedPages:
    table, lens, slots = (getattr(context, name) for name in _FIELDS[kind])
    return TouchedPages.of([] if table is None else [(table, lens)], [] if slots is None else [slots], page_size)


def _kind_of(spec: CacheSpec) -> CacheKind:
    """mla layers share the page table of full ones."""
    return CacheKind.FULL if spec.kind is CacheKind.MLA else spec.kind


def _axis_of(spec: CacheSpec) -> int:
    return 0 if spec.kind is CacheKind.MLA else 1


def _lengths(spec: OpSpec, integers: Mapping[str, Tensor]) -> Tensor | None:
    return next(iter(arguments_of_role(spec, integers, Role.SEQ_LEN).values()), None)
