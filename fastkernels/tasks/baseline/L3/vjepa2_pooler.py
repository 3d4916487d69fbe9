"""V-JEPA 2's attentive pooler: a learned query gathers what a video's tokens say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.distributed.tensor_parallel import shard_size, tp_size
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.dense_attention import DenseAttention
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L2.parallel_linear import ColumnParallelLinear, MergedColumnParallelLinear
from fastkernels.tasks.baseline.L2.vision_mlp import VisionMLP
from fastkernels.tasks.baseline.L3.vjepa2_layer import VJEPA2Layer
from fastkernels.tasks.configs.vjepa2 import VJEPA2Config

_MLP_RATIO = 4.0


class VJEPA2PoolerCrossAttentionLayer(Op):
    """h = queries + attention(q_proj(queries), kv_proj(norm1(hidden_state))); y = h + mlp(norm2(h)).

    Shapes:  queries, y: [batch, num_queries, hidden_size]; hidden_state: [batch, num_tokens, hidden_size].
    Dtypes:  bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts; ValueError when there are several ranks: no projection puts the heads together.
    Source:  Assran et al. 2025 (https://arxiv.org/abs/2506.09985); signature as transformers'
             VJEPA2PoolerCrossAttentionLayer.
    """

    spec = OpSpec(
        inputs={
            "queries": TensorSpec(("batch", "num_queries", "hidden_size")),
            "hidden_state": TensorSpec(("batch", "num_tokens", "hidden_size")),
        },
        outputs={"y": TensorSpec(("batch", "num_queries", "hidden_size"))},
        examples=(
            {"config": VJEPA2Config.tiny()},
            {"config": VJEPA2Config.tiny(hidden_size=51, num_attention_heads=3)},
        ),
        example_axes={"batch": (2, 1), "num_queries": (1, 3), "num_tokens": (32, 7)},
    )

    def __init__(self, config: VJEPA2Config, prefix: str = "") -> None:
        super().__init__()
        size = self.hidden_size = config.hidden_size
        self.num_heads = shard_size(config.num_attention_heads, tp_size(), "The number of attention heads")
        if tp_size() > 1:
            raise ValueError(f"VJEPA2PoolerCrossAttentionLayer runs on one rank, got {tp_size()}.")
        self.norm1 = LayerNorm(size, config.layer_norm_eps)
        self.q_proj = ColumnParallelLinear(size, size, prefix=f"{prefix}.q_proj")
        self.kv_proj = MergedColumnParallelLinear(size, [size, size], prefix=f"{prefix}.kv_proj")
        self.attn = DenseAttention(self.num_heads, size // config.num_attention_heads)
        self.norm2 = LayerNorm(size, config.layer_norm_eps)
        self.mlp = VisionMLP(size, int(size * _MLP_RATIO), config.hidden_act, prefix=f"{prefix}.mlp")

    def forward(self, queries: Tensor, hidden_state: Tensor) -> Tensor:
        q, _ = self.q_proj(queries)
        kv, _ = self.kv_proj(self.norm1(hidden_state))
        k, v = kv.unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        normed, h = self.norm2(self.attn(q.unflatten(-1, (self.num_heads, -1)), k, v).flatten(-2), queries)
        return h + self.mlp(normed)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        queries, tokens = inputs["queries"], inputs["hidden_state"]
        flops = 2 * queries.shape[0] * queries.shape[1] * self.q_proj.weight.numel()
        flops += 2 * tokens.shape[0] * tokens.shape[1] * self.kv_proj.weight.numel()
        flops += 4 * queries.numel() * tokens.shape[1] + self.mlp.cost({"x": queries}, {}).num_flops
        return Cost(super().cost(inputs, outputs).num_bytes, flops)


class VJEPA2Pooler(Op):
    """cross_attention_layer(query_tokens, self_attention_layers(hidden_state)).

    Shapes:  hidden_state: [batch, num_tokens, hidden_size]; pooled: [batch, hidden_size].
    Dtypes:  bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: pooled. No argument is written to.
    Errors:  those of its parts.
    Source:  Assran et al. 2025 (https://arxiv.org/abs/2506.09985); signature as transformers' VJEPA2AttentivePooler.
    """

    spec = OpSpec(
        inputs={"hidden_state": TensorSpec(("batch", "num_tokens", "hidden_size"))},
        outputs={"pooled": TensorSpec(("batch", "hidden_size"))},
        examples=(
            {"config": VJEPA2Config.tiny()},
            {"config": VJEPA2Config.tiny(hidden_size=51, num_attention_heads=3, num_pooler_layers=2, qkv_bias=False)},
        ),
        example_axes={"batch": (17, 1), "num_tokens": (12, 7)},
    )

    def __init__(self, config: VJEPA2Config, prefix: str = "") -> None:
        super().__init__()
        size = self.hidden_size = config.hidden_size
        self.query_tokens = nn.Parameter(torch.empty(1, 1, size).normal_(std=0.02))
        self.self_attention_layers = nn.ModuleList(
            VJEPA2Layer(
                config,
                size,
                config.num_attention_heads,
                _MLP_RATIO,
                uses_rope=False,
                prefix=f"{prefix}.self_attention_layers.{i}",
            )
            for i in range(config.num_pooler_layers)
        )
        self.cross_attention_layer = VJEPA2PoolerCrossAttentionLayer(config, f"{prefix}.cross_attention_layer")

    def forward(self, hidden_state: Tensor) -> Tensor:
        for layer in self.self_attention_layers:
            hidden_state = layer(hidden_state)
        queries = self.query_tokens.expand(len(hidden_state), -1, -1)
        return self.cross_attention_layer(queries, hidden_state).squeeze(1)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        tokens = inputs["hidden_state"]
        queries = self.query_tokens.expand(len(tokens), -1, -1)
        flops = self.cross_attention_layer.cost({"queries": queries, "hidden_state": tokens}, {}).num_flops
        for layer in self.self_attention_layers:
            flops += layer.cost({"hidden_states": tokens}, {}).num_flops  # type: ignore[operator]
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
