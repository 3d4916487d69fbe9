"""Rotary position embedding of image patches by row and column."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.rotary_emb import rotary_embedding
from fastkernels.op import Op
from fastkernels.spec import OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.rotary_table import RotaryTable

_HEADS = TensorSpec(("num_tokens", "num_heads", "head_size"))


class VisionRotaryEmbedding(RotaryTable, Op):
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

    def __init__(self, head_size: int, max_position_embeddings: int = 8192, base: float = 10000.0) -> None:
        """The table is of one axis: half of a head turns by each."""
        if head_size % 4:
            raise ValueError(f"VisionRotaryEmbedding splits head_size in four, got {head_size}.")
        super().__init__(head_size, head_size // 2, max_position_embeddings, base, True, None, None)

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
        table = self._table_for(query)
        cos, sin = (part.transpose(0, 1).flatten(1)[:, None] for part in table[positions.long()].chunk(2, dim=-1))
        turned = []
        for x in (query, key):
            a, b = x.to(table.dtype).chunk(2, dim=-1)
            turned.append(torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype))
        return turned[0], turned[1]
