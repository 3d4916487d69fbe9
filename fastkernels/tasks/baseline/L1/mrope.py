"""Rotary position embedding over several axes: time, height and width of pictures and videos among text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.rotary_emb import rotary_embedding
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.rotary_table import RotaryTable


class MRotaryEmbedding(RotaryTable, Op):
    """RotaryEmbedding whose pairs turn by the token's position on one of three axes, its own each.

    The first mrope_section[0] pairs take the first axis, the next ones the second, the rest the third; interleaved,
    pairs take the axes in turn until the second and third have theirs, and the first axis all others.

    Shapes:  positions: [3, num_tokens], or [num_tokens] where all axes agree; query, key: [num_tokens, heads,
             head_size] or [num_tokens, heads * head_size], strided views allowed.
    Dtypes:  bf16, fp16 or fp32, computed in fp32; positions int64 or int32; the table stays at least fp32.
    Returns: (query, key), new tensors of the given shapes; key is None when none is given.
    Errors:  ValueError when the sections do not add up to the pairs, or positions are not of three axes.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2409.12191), section 2.1; signature as vLLM's MRotaryEmbedding.
    """

    spec = OpSpec(
        inputs={
            "positions": TensorSpec(
                ("num_axes", "num_tokens"), dtype="int64", role=Role.INDEX, bound="max_position_embeddings"
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
                "mrope_section": [2, 3, 3],
            },
            {
                "head_size": 72,
                "rotary_dim": 48,
                "max_position_embeddings": 97,
                "base": 1000000.0,
                "mrope_section": [10, 8, 6],
                "mrope_interleaved": True,
            },
        ),
        example_axes={"num_heads": (4, 7), "num_kv_heads": (2, 1)},
    )

    def __init__(
        self,
        head_size: int,
        rotary_dim: int,
        max_position_embeddings: int,
        base: float,
        is_neox_style: bool = True,
        dtype: torch.dtype | None = None,
        mrope_section: Sequence[int] = (16, 24, 24),
        mrope_interleaved: bool = False,
    ) -> None:
        super().__init__(head_size, rotary_dim, max_position_embeddings, base, is_neox_style, dtype, None)
        if len(mrope_section) != 3 or sum(mrope_section) != rotary_dim // 2:
            raise ValueError(
                f"mrope_section {list(mrope_section)} must be three numbers that add up to {rotary_dim // 2}, the "
                "pairs of a head."
            )
        self.mrope_section = tuple(mrope_section)
        self.mrope_interleaved = mrope_interleaved
        self.num_axes = 3

    def forward(self, positions: Tensor, query: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        has_axes = positions.dim() == 2 and len(positions) == 3
        for x in (query,) if key is None else (query, key):
            is_row = not x[0:1].numel() % self.head_size
            if not (has_axes or positions.dim() == 1) or len(x) != positions.shape[-1] or not is_row:
                raise ValueError(
                    f"MRotaryEmbedding has head_size {self.head_size} and takes positions [3, num_tokens] or "
                    f"[num_tokens], got {tuple(positions.shape)} with query or key of shape {tuple(x.shape)}."
                )
        if uses_reference(query):
            return self.reference(positions, query, key)
        sizes = (self.head_size, self.rotary_dim, self.is_neox_style)
        axes = (self.mrope_section, self.mrope_interleaved) if has_axes else ()
        return rotary_embedding(positions, query, key, self.cos_sin_cache, *sizes, *axes)

    def reference(self, positions: Tensor, query: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if positions.dim() == 1:
            return self.turned_by_rows(positions, query, key)
        table, axis = self._table_for(query), self._axes(query.device)
        half = torch.arange(self.rotary_dim // 2, device=query.device)
        rows = positions.long()[axis].T  # [num_tokens, pairs]
        cos, sin = table[rows, half].unsqueeze(1), table[rows, half + self.rotary_dim // 2].unsqueeze(1)
        return self.turned(query, cos, sin), None if key is None else self.turned(key, cos, sin)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """Of a table's row the columns of the axes that have a token there."""
        positions = inputs["positions"]
        if positions.dim() == 1:
            return super().cost(inputs, outputs)
        pairs = self._axes(positions.device).bincount(minlength=3).tolist()
        columns = sum(2 * num * row.unique().numel() for num, row in zip(pairs, positions, strict=True))
        return Op.cost(self, inputs, outputs).plus_bytes(columns * self.cos_sin_cache.element_size())

    def _axes(self, device: torch.device) -> Tensor:
        """The axis of each pair: [rotary_dim / 2]."""
        sections = torch.tensor(self.mrope_section, device=device)
        if not self.mrope_interleaved:
            return torch.arange(3, device=device).repeat_interleave(sections)
        half = torch.arange(self.rotary_dim // 2, device=device)
        axis = half % 3
        return torch.where(half < 3 * sections[axis], axis, 0)
