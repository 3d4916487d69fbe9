"""Rotary position embedding, with Llama 3.1's and YaRN's scaling of long wavelengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.rotary_emb import rotary_embedding
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
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


class RotaryEmbedding(Op):
    """Turns each pair (a, b) of a head by the angle t = position * frequency: (a cos t - b sin t, b cos t + a sin t).

    Pairs are (i, i + rotary_dim/2) when is_neox_style, else (2i, 2i + 1); the rest of a head is kept.

    Shapes:  positions: [num_tokens]; query: [num_tokens, num_heads, head_size] or [num_tokens, num_heads*head_size];
             key: the same with its own number of heads. Both may be strided views of one fused tensor.
    Dtypes:  bf16, fp16 or fp32, computed in fp32; positions int64 or int32; the table stays at least fp32.
    Returns: (query, key), new tensors of the given shapes; key is None when none is given.
    Errors:  ValueError when a row is no multiple of head_size, rotary_dim is odd or above head_size, or
             positions and query differ in length.
    Source:  Su et al. 2021 (https://arxiv.org/abs/2104.09864); scaling of Llama 3.1 as in
             https://github.com/meta-llama/llama-models, of YaRN Peng et al. 2023 (https://arxiv.org/abs/2309.00071);
             signature as vLLM's RotaryEmbedding.
    """

    spec = OpSpec(
        inputs={
            "positions": TensorSpec(
                ("num_tokens",), dtype="int64", role=Role.POSITION, bound="max_position_embeddings"
            ),
            "query": TensorSpec(("num_tokens", "num_heads", "head_size")).strided(),
            "key": TensorSpec(("num_tokens", "num_kv_heads", "head_size")).strided().optional(),
        },
        outputs={
            "query_out": TensorSpec(("num_tokens", "num_heads", "head_size")),
            "key_out": TensorSpec(("num_tokens", "num_kv_heads", "head_size")).optional(),
        },
        returned_with={"key_out": "key"},
        examples=(
            {
                "head_size": 16,
                "rotary_dim": 16,
                "max_position_embeddings": 512,
                "base": 10000.0,
                "is_neox_style": True,
                "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64),
            },
            {
                "head_size": 80,
                "rotary_dim": 22,
                "max_position_embeddings": 97,
                "base": 500000.0,
                "is_neox_style": False,
            },
            {
                "head_size": 32,
                "rotary_dim": 32,
                "max_position_embeddings": 700,
                "base": 150000.0,
                "rope_scaling": YarnScaling(32.0, 64, truncate=False),
            },
        ),
        example_axes={"num_heads": (4, 7), "num_kv_heads": (2, 1)},
    )

    cos_sin_cache: Tensor

    def __init__(
        self,
        head_size: int,
        rotary_dim: int,
        max_position_embeddings: int,
        base: float,
        is_neox_style: bool = True,
        dtype: torch.dtype | None = None,
        rope_scaling: RopeScaling | YarnScaling | None = None,
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryEmbedding:
        # A table rounded by .bfloat16(), or widened from float32 by .double(), would be a wrong one: make it anew.
        probe = fn(self.cos_sin_cache[:0])
        self.cos_sin_cache = self._table(probe.device, compute_dtype(probe))
        return self

    def forward(self, positions: Tensor, query: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        for x in (query,) if key is None else (query, key):
            if x[0:1].numel() % self.head_size or x.shape[0] != positions.shape[0]:
                raise ValueError(
                    f"RotaryEmbedding has head_size {self.head_size} and got {positions.shape[0]} positions: "
                    f"query or key of shape {tuple(x.shape)} does not fit."
                )
        if uses_reference(query):
            return self.reference(positions, query, key)
        return rotary_embedding(
            positions, query, key, self.cos_sin_cache, self.head_size, self.rotary_dim, self.is_neox_style
        )

    def reference(self, positions: Tensor, query: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        table = self.cos_sin_cache
        if table.dtype != compute_dtype(query):
            table = self._table(query.device, compute_dtype(query))
        cos, sin = table[positions.long()].unsqueeze(1).chunk(2, dim=-1)
        return self._rotate(query, cos, sin), None if key is None else self._rotate(key, cos, sin)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
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
        num_tokens = inputs["positions"].numel()
        row_bytes = self.rotary_dim * self.cos_sin_cache.element_size()
        return Cost(super().cost(inputs, outputs).num_bytes + num_tokens * row_bytes)
