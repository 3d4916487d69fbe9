"""Qwen3-Next's linear attention: projections, a short convolution, the gated delta rule and the gated norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.cache import CacheKind, CacheSpec
from fastkernels.context import forward_context
from fastkernels.distributed.sharded_rows import ShardedRows, ShardedVectors
from fastkernels.distributed.tensor_parallel import shard_size, tp_size
from fastkernels.errors import UnsupportedError
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.causal_conv1d import CausalConv1d, CausalConv1dUpdate
from fastkernels.tasks.baseline.L1.chunk_gated_delta_rule import ChunkGatedDeltaRule
from fastkernels.tasks.baseline.L1.fused_gdn_gating import FusedGDNGating
from fastkernels.tasks.baseline.L1.gdn_recurrence import GDNRecurrence
from fastkernels.tasks.baseline.L1.l2_norm import L2Norm
from fastkernels.tasks.baseline.L1.rms_norm_gated import RMSNormGated
from fastkernels.tasks.baseline.L2.parallel_linear import MergedColumnParallelLinear, RowParallelLinear
from fastkernels.tasks.baseline.state_slots import ROOM, Step, context_cost, decay_parameters, step_of
from fastkernels.tasks.configs.qwen3_next import Qwen3NextConfig

_HIDDEN = TensorSpec(("num_tokens", "hidden_size"))

_L2_NORM_EPS = 1e-6
"""transformers' and fla's: no configuration holds it."""


class Qwen3NextGDNAttention(ShardedVectors, Op):
    """out_proj(norm(rule(q, k, v, g, beta)) * silu(z)) with q, k, v = silu(conv1d(qkv)), rows of q and k of length 1,
    q, k, v, z = in_proj_qkvz(hidden_states), and g, beta from in_proj_ba(hidden_states).

    Shapes:  hidden_states, output: [num_tokens, hidden_size]; a slot holds [kernel - 1, conv_dim] inputs of the
             convolution and a state of [num_v_heads, head_k_dim, head_v_dim]. Rows of in_proj_qkvz: all q, k, v, z;
             of in_proj_ba: all b, a (a checkpoint has them key head by key head).
    Dtypes:  bf16 or fp32; convolution, rule and norm in fp32; the state fp32.
    Returns: output. Writes to kv_cache at the context's state slots; no argument is written to.
    Errors:  ValueError when heads do not split over the ranks; RuntimeError outside of a forward context;
             UnsupportedError when no cache is bound.
    Source:  Yang et al. 2024 (https://arxiv.org/abs/2412.06464); signature as vLLM's Qwen3NextGatedDeltaNet.
    """

    spec = OpSpec(
        inputs={"hidden_states": _HIDDEN},
        outputs={"output": _HIDDEN},
        mutates=("kv_cache",),
        reads_context=True,
        examples=(
            {"config": Qwen3NextConfig.tiny()},
            {
                "config": Qwen3NextConfig.tiny(
                    hidden_size=53,
                    linear_num_key_heads=1,
                    linear_num_value_heads=3,
                    linear_key_head_dim=20,
                    linear_value_head_dim=19,
                    linear_conv_kernel_dim=3,
                )
            },
        ),
        **ROOM,  # type: ignore[arg-type]
    )

    def __init__(self, config: Qwen3NextConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        size = tp_size()
        self.hidden_size = config.hidden_size
        self.head_k_dim = config.linear_key_head_dim
        self.head_v_dim = config.linear_value_head_dim
        self.num_k_heads = shard_size(config.linear_num_key_heads, size, "The number of key heads")
        self.num_v_heads = shard_size(config.linear_num_value_heads, size, "The number of value heads")
        self.key_dim = self.num_k_heads * self.head_k_dim
        self.value_dim = self.num_v_heads * self.head_v_dim
        self.conv_dim = 2 * self.key_dim + self.value_dim
        self.conv_kernel_size = config.linear_conv_kernel_dim
        parts = [self.key_dim * size, self.key_dim * size, self.value_dim * size]
        self.in_proj_qkvz = MergedColumnParallelLinear(
            config.hidden_size,
            [*parts, parts[2]],
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.in_proj_qkvz",
        )
        self.in_proj_ba = MergedColumnParallelLinear(
            config.hidden_size,
            [config.linear_num_value_heads] * 2,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.in_proj_ba",
        )
        self.conv1d = ShardedRows(parts, (1, self.conv_kernel_size), bias=False)
        self.A_log = nn.Parameter(torch.zeros(self.num_v_heads))
        self.dt_bias = nn.Parameter(torch.ones(self.num_v_heads))
        self.norm = RMSNormGated(self.head_v_dim, config.rms_norm_eps, norm_before_gate=True)
        self.out_proj = RowParallelLinear(
            parts[2], config.hidden_size, bias=False, quant_config=quant_config, prefix=f"{prefix}.out_proj"
        )
        self.conv, self.conv_update = CausalConv1d(), CausalConv1dUpdate()
        self.l2_norm, self.gating = L2Norm(_L2_NORM_EPS, is_eps_in_root=True), FusedGDNGating()
        self.rule, self.recurrence = ChunkGatedDeltaRule(), GDNRecurrence()
        self.kv_cache: tuple[Tensor, ...] | None = None

    @property
    def cache_spec(self) -> CacheSpec:
        """The inputs of the convolution are kept as they come, in the dtype of the activations."""
        conv = ((self.conv_kernel_size - 1, self.conv_dim), self.conv1d.weight.dtype)
        state = ((self.num_v_heads, self.head_k_dim, self.head_v_dim), torch.float32)
        return CacheSpec(CacheKind.STATE, state=(conv, state))

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.kv_cache is None:
            raise UnsupportedError("Qwen3NextGDNAttention has no kv_cache bound, and a state is kept there.")
        qkvz, _ = self.in_proj_qkvz(hidden_states)
        ba, _ = self.in_proj_ba(hidden_states)
        qkv, z = qkvz.split([self.conv_dim, self.value_dim], dim=-1)
        b, a = ba.chunk(2, dim=-1)
        g, beta = self.gating(self.A_log, a, b, self.dt_bias)
        step = step_of(forward_context())
        num, outputs = step.num_decodes, []
        if num:
            outputs.append(self._decode(qkv[:num], g[:num], beta[:num], step))
        if step.has_prompts:
            outputs.append(self._prefill(qkv[num:], g[num:], beta[num:], step))
        mixed = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        output, _ = self.out_proj(self.norm(mixed, z.unflatten(-1, (-1, self.head_v_dim))).flatten(-2))
        return output

    def _decode(self, qkv: Tensor, g: Tensor, beta: Tensor, step: Step) -> Tensor:
        assert self.kv_cache is not None
        conv_states, states = self.kv_cache
        convolved = self.conv_update(qkv, conv_states, self.conv1d.weight.squeeze(1), None, *step.decodes)
        return self.recurrence(*self._heads(convolved), g, beta, states, *step.decodes)

    def _prefill(self, qkv: Tensor, g: Tensor, beta: Tensor, step: Step) -> Tensor:
        assert self.kv_cache is not None
        conv_states, states = self.kv_cache
        convolved = self.conv(qkv, self.conv1d.weight.squeeze(1), None, conv_states, *step.prompts)
        return self.rule(*self._heads(convolved), g, beta, states, *step.prompts)

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, normed together, and values, by head."""
        qk, v = qkv.split([2 * self.key_dim, self.value_dim], dim=-1)
        q, k = self.l2_norm(qk.unflatten(-1, (-1, self.head_k_dim))).chunk(2, dim=-2)
        return q, k, v.unflatten(-1, (-1, self.head_v_dim))

    def coupled_params(self, generator: torch.Generator) -> dict[str, Tensor]:
        return decay_parameters(self.num_v_heads, generator)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """Within a forward context also the sequences' states, read and written."""
        num_tokens, own = len(inputs["hidden_states"]), super().cost(inputs, outputs)
        layers = (self.in_proj_qkvz, self.in_proj_ba, self.out_proj)
        matrices = sum(layer.weight.numel() for layer in layers)
        rule = 7 * self.value_dim * self.head_k_dim
        return Cost(own.num_bytes + context_cost(self.cache_spec), num_tokens * (2 * matrices + rule))
