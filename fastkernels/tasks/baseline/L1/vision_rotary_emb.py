"""Rotary position embedding of image patches by row and column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.rotary_emb import rotary_embedding
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.rotary_table import cos_sin_table

_HEADS = TensorSpec(("num_tokens", "num_heads", "head_size"))


class VisionRotaryEmbedding(Op):
    """Turns pair (i, i + head_size/2) of a head by place * base^(-4 i' / head_size), i' = i mod head_size/4.

    The place is the patch's row for i < head_size/4 and its column for the others.

    Shapes:  positions: [2, num_tokens], rows then columns; query, key and both results: [num_tokens, num_heads,
             head_size], strided views allowed.
    Dtypes:  bf16, fp16 or fp32, computed in fp32; positions int64 or int32; the table stays at least fp32.
    Returns: (query, key), new tensors. No argument is written to.
    Errors:  ValueError when head_size is no multiple of 4 or positions do not fit query and key.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2409.12191), section 2.1; as Qwen2-VL's vision tower.
    """

    spec = OpSpec(
        inputs={
            "positions": TensorSpec(
                ("2", "num_tokens"), dtype="int64", role=Role.INDEX, bound="max_position_embeddings"
            ),
            "query": _HEADS.strided(),
            "key": _HEADS.strided(),
        },
        outputs={"query_out": _HEADS, "key_out": _HEADS},
        examples=(
            {"head_size": 16, "max_position_embeddings": 64},
            {"head_size": 80, "max_position_embeddings": 97, "base": 500.0},
        ),
        example_axes={"num_heads": (4, 3)},
    )

    cos_sin_cache: Tensor

    def __init__(self, head_size: int, max_position_embeddings: int = 8192, base: float = 10000.0) -> None:
        super().__init__()
        if head_size % 4:
            raise ValueError(f"VisionRotaryEmbedding splits head_size in four, got {head_size}.")
        self.head_size = head_size
        self.max_position_embeddings = max_position_embeddings
        self.base = base
        probe = torch.empty(0)
        self.register_buffer("cos_sin_cache", self._table(probe.device, compute_dtype(probe)), persistent=False)

    def _table(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """[max_position_embeddings, head_size/2]: cosines, then sines, of one axis."""
        return cos_sin_table(self.head_size // 2, self.max_position_embeddings, self.base, None, device, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VisionRotaryEmbedding:
        probe = fn(self.cos_sin_cache[:0])
        self.cos_sin_cache = self._table(probe.device, compute_dtype(probe))  # a cast table would be a wrong one
        return self

    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        for x in (query, key):
            if tuple(positions.shape) != (2, len(x)) or x.shape[-1] != self.head_size:
                raise ValueError(
                    f"VisionRotaryEmbedding takes positions [2, num_tokens] and heads of {self.head_size}, got "
                    f"{tuple(positions.shape)} and {tuple(x.shape)}."
                )
        if uses_reference(query):
            return self.reference(positions, query, key)
        quarter = self.head_size // 4
        sizes = (self.head_size, self.head_size, True, (quarter, quarter))
        turned, turned_key = rotary_embedding(positions, query, key, self.cos_sin_cache, *sizes)
        assert turned_key is not None
        return turned, turned_key

    def reference(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        table = self.cos_sin_cache
        if table.dtype != compute_dtype(query):
            table = self._table(query.device, compute_dtype(query))
        cos, sin = (part.transpose(0, 1).flatten(1)[:, None] for part in table[positions.long()].chunk(2, dim=-1))
        turned = []
        for x in (query, key):
            a, b = x.to(table.dtype).chunk(2, dim=-1)
            turned.append(torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype))
        return turned[0], turned[1]

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        row_bytes = self.head_size * self.cos_sin_cache.element_size()
        return Cost(super().cost(inputs, outputs).num_bytes + inputs["positions"].shape[1] * row_bytes)
