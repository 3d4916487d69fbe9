"""Pi0's attention: of a prefix to itself, and of actions to a prefix whose keys and values are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastkernels.distributed.tensor_parallel import shard_size, tp_size
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.dense_attention import DenseAttention
from fastkernels.tasks.baseline.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.baseline.L2.parallel_linear import QKVParallelLinear, RowParallelLinear
from fastkernels.tasks.configs.pi0 import GemmaConfig

TOKENS = TensorSpec(("batch", "seq_len", "hidden_size"))
_PAST = TensorSpec(("batch", "num_past", "num_kv_heads", "head_dim"))
_NEW = TensorSpec(("batch", "seq_len", "num_kv_heads", "head_dim"))
INPUTS = {
    "hidden_states": TOKENS,
    "positions": TensorSpec(("batch", "seq_len"), dtype="int64", role=Role.POSITION, bound="max_position_embeddings"),
    "mask": TensorSpec(("batch", "seq_len", "num_keys"), dtype="bool", role=Role.MASK),
    "past_key": _PAST,
    "past_value": _PAST,
}
OUTPUTS = {"output": TOKENS, "key": _NEW, "value": _NEW.strided()}
EXAMPLE_AXES = {"batch": (3, 2), "seq_len": (8, 7), "num_past": (9, 5)}


class PI0Attention(Op):
    """o_proj(DenseAttention(rotate(q), rotate(k), v, mask, past_key, past_value)) with q, k, v = qkv_proj(x).

    Shapes:  hidden_states, output: [batch, seq_len, hidden_size]; positions: [batch, seq_len]; past_key, past_value:
             [batch, num_past, num_kv_heads, head_dim], num_past may be 0; mask: [batch, seq_len, num_past + seq_len];
             key, value: [batch, seq_len, num_kv_heads, head_dim].
    Dtypes:  bf16, fp16 or fp32; positions int64; angles, softmax and sums in fp32.
    Returns: (output, key, value), the new keys rotated. No argument is written to.
    Errors:  those of its parts; ValueError when heads do not split over the ranks.
    Source:  Black et al. 2024 (https://arxiv.org/abs/2410.24164); as GemmaAttention of transformers with a cache.
    """

    spec = OpSpec(
        inputs=INPUTS,
        outputs=OUTPUTS,
        examples=(
            {"config": GemmaConfig.tiny()},
            {"config": GemmaConfig.tiny(hidden_size=27, num_attention_heads=6, num_key_value_heads=2, head_dim=6)},
        ),
        example_axes=EXAMPLE_AXES,
        may_be_empty=("num_past",),
    )

    def __init__(self, config: GemmaConfig, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size, self.head_dim = config.hidden_size, config.head_dim
        self.num_heads = shard_size(config.num_attention_heads, tp_size(), "The number of attention heads")
        self.num_kv_heads = max(1, config.num_key_value_heads // tp_size())
        self.max_position_embeddings = config.max_position_embeddings
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            config.head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=False,
            prefix=f"{prefix}.qkv_proj",
        )
        self.rotary_emb = RotaryEmbedding(
            config.head_dim, config.head_dim, config.max_position_embeddings, config.rope_theta
        )
        self.attn = DenseAttention(self.num_heads, config.head_dim, num_kv_heads=self.num_kv_heads)
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * config.head_dim, config.hidden_size, bias=False, prefix=f"{prefix}.o_proj"
        )

    def forward(
        self, hidden_states: Tensor, positions: Tensor, mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        qkv, _ = self.qkv_proj(hidden_states)
        heads = qkv.flatten(0, 1).unflatten(-1, (-1, self.head_dim))
        q, k, value = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        q, k = self.rotary_emb(positions.flatten(), q, k)
        q, key, value = (t.unflatten(0, hidden_states.shape[:2]) for t in (q, k, value))
        output, _ = self.o_proj(self.attn(q, key, value, mask, past_key, past_value).flatten(-2))
        return output, key, value

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_keys": sizes["num_past"] + sizes["seq_len"]}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["hidden_states"].numel() // self.hidden_size
        num_keys = inputs["past_key"].shape[1] + inputs["hidden_states"].shape[1]
        matrices = self.qkv_proj.weight.numel() + self.o_proj.weight.numel()
        flops = 2 * num_rows * matrices + 4 * num_rows * num_keys * self.num_heads * self.head_dim
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
