"""A table of cosines and sines by position, and heads turned by it: what rotary embeddings share.

Ops of the table are no subclasses of each other: a candidate stands in for one of them alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost
from fastkernels.tasks.configs.rope import RopeScaling, YarnScaling

_tables: WeakValueDictionary[tuple[Any, ...], Tensor] = WeakValueDictionary()


def inverse_frequencies(rotary_dim: int, base: float, scaling: RopeScaling | YarnScaling | None) -> Tensor:
    """base^(-2i / rotary_dim) for i < rotary_dim / 2, scaled, in float64 on the CPU."""
    inv_freq = base ** -(torch.arange(0, rotary_dim, 2, dtype=torch.float64, device="cpu") / rotary_dim)
    if scaling is None:
        return inv_freq
    if isinstance(scaling, YarnScaling):
        return _yarn_frequencies(inv_freq, base, scaling)
    turns = scaling.original_max_position_embeddings * inv_freq / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return inv_freq * (kept + (1 - kept) / scaling.factor)


def _yarn_frequencies(inv_freq: Tensor, base: float, scaling: YarnScaling) -> Tensor:
    """Blended between the numbers of the frequencies that turn beta_fast and beta_slow times."""
    num, length = len(inv_freq), scaling.original_max_position_embeddings
    low, high = (
        num * math.log(length / (turns * 2 * math.pi)) / math.log(base)
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * num - 1)
    place = torch.arange(num, dtype=torch.float64, device="cpu")
    divided = ((place - low) / max(high - low, 0.001)).clamp(0, 1)
    return inv_freq * (divided / scaling.factor + (1 - divided))


def cos_sin_table(
    rotary_dim: int,
    max_position: int,
    base: float,
    scaling: RopeScaling | YarnScaling | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """[max_position, rotary_dim]: cosines, then sines; computed in float64, rounded once, shared between layers."""
    shape = (max_position, rotary_dim)
    if device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    key = (rotary_dim, max_position, base, scaling, str(device), dtype)
    table = _tables.get(key)
    if table is None:
        positions = torch.arange(max_position, dtype=torch.float64, device="cpu")
        angles = torch.outer(positions, inverse_frequencies(rotary_dim, base, scaling))
        magnitude = scaling.magnitude if isinstance(scaling, YarnScaling) else 1.0
        table = (torch.cat((angles.cos(), angles.sin()), dim=-1) * magnitude).to(dtype).to(device)
        _tables[key] = table
    return table


class RotaryTable(Op):
    """Holds cos_sin_cache, [max_position_embeddings, rotary_dim], at least float32 whatever the module is cast to.

    Errors: ValueError when rotary_dim is odd or above head_size.
    """

    cos_sin_cache: Tensor

    def __init__(
        self,
        head_size: int,
        rotary_dim: int,
        max_position_embeddings: int,
        base: float,
        is_neox_style: bool,
        dtype: torch.dtype | None,
        rope_scaling: RopeScaling | YarnScaling | None,
    ) -> None:
        super().__init__()
        if rotary_dim % 2 or not 0 < rotary_dim <= head_size:
            raise ValueError(f"rotary_dim must be even and in [2, head_size {head_size}], got {rotary_dim}.")
        self.head_size = head_size
        self.rotary_dim = rotary_dim
        self.max_position_embeddings = max_position_embeddings
        self.base = base
        self.is_neox_style = is_neox_style
        self.rope_scaling = rope_scaling
        probe = torch.empty(0, dtype=dtype)
        self.register_buffer("cos_sin_cache", self._table(probe.device, compute_dtype(probe)), persistent=False)

    def _table(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return cos_sin_table(self.rotary_dim, self.max_position_embeddings, self.base, self.rope_scaling, device, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A table rounded by .bfloat16(), or widened from float32 by .double(), would be a wrong one: make it anew.
        probe = fn(self.cos_sin_cache[:0])
        self.cos_sin_cache = self._table(probe.device, compute_dtype(probe))
        return self

    def _table_for(self, x: Tensor) -> Tensor:
        """The table in the dtype that a definition computes x in."""
        dtype = compute_dtype(x)
        return self.cos_sin_cache if self.cos_sin_cache.dtype == dtype else self._table(x.device, dtype)

    def turned_by_rows(self, positions: Tensor, query: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Every token turned by the row of its position; positions: [num_tokens]."""
        cos, sin = self._table_for(query)[positions.long()].unsqueeze(1).chunk(2, dim=-1)
        return self.turned(query, cos, sin), None if key is None else self.turned(key, cos, sin)

    def turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [num_tokens, heads, head_size] or rows of all heads; cos, sin: [num_tokens, 1, rotary_dim / 2]."""
        heads = x.reshape(x.shape[0], -1, self.head_size)
        turned = heads[..., : self.rotary_dim].to(cos.dtype)
        if self.is_neox_style:
            a, b = turned.chunk(2, dim=-1)
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        else:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        return torch.cat((turned.to(x.dtype), heads[..., self.rotary_dim :]), dim=-1).reshape(x.shape)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["positions"].unique().numel()  # a row that several tokens share is read once
        return super().cost(inputs, outputs).plus_bytes(num_rows * self.rotary_dim * self.cos_sin_cache.element_size())
