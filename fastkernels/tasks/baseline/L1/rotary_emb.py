"""Rotary position embedding, with Llama 3.1's and YaRN's scaling of long wavelengths."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.rotary_emb import rotary_embedding
from fastkernels.op import Op
from fastkernels.spec import OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.rotary_table import RotaryTable
from fastkernels.tasks.configs.rope import RopeScaling, YarnScaling


class RotaryEmbedding(RotaryTable, Op):
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
        super().__init__(head_size, rotary_dim, max_position_embeddings, base, is_neox_style, dtype, rope_scaling)

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
        return self.turned_by_rows(positions, query, key)
