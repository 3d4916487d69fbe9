"""Mamba-2's mixer: projections, a short convolution, the state space and the gated norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.cache import CacheKind, CacheSpec
from fastkernels.context import forward_context
from fastkernels.distributed.sharded_rows import ShardedNorm, ShardedRows, ShardedVectors
from fastkernels.distributed.tensor_parallel import shard_size, tp_size
from fastkernels.errors import UnsupportedError
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.causal_conv1d import CausalConv1d, CausalConv1dUpdate
from fastkernels.tasks.baseline.L1.mamba_chunk_scan import MambaChunkScan
from fastkernels.tasks.baseline.L1.mamba_ssm import SelectiveStateUpdate
from fastkernels.tasks.baseline.L1.rms_norm_gated import RMSNormGated
from fastkernels.tasks.baseline.L2.parallel_linear import MergedColumnParallelLinear, RowParallelLinear
from fastkernels.tasks.baseline.state_slots import ROOM, Step, context_cost, decay_parameters, step_of

_HIDDEN = TensorSpec(("num_tokens", "hidden_size"))
EXAMPLE: dict[str, Any] = {
    "hidden_size": 32,
    "ssm_state_size": 16,
    "conv_kernel_size": 4,
    "intermediate_size": 64,
    "use_conv_bias": True,
    "use_bias": False,
    "n_groups": 2,
    "num_heads": 4,
    "head_dim": 16,
    "chunk_size": 16,
}


class Mamba2Mixer(ShardedVectors, Op):
    """out_proj(norm(ssm(x, dt, B, C), z)) with z, xBC, dt = in_proj(hidden_states) and x, B, C = silu(conv1d(xBC)).

    Shapes:  hidden_states, output: [num_tokens, hidden_size]; a slot holds [conv_kernel_size - 1, conv_dim] inputs of
             the convolution and a state of [num_heads, head_dim, ssm_state_size].
    Dtypes:  bf16 or fp32; convolution, state space and norm in fp32; the state of ssm_cache_dtype, fp32
             unless the engine is told otherwise, rounded once a step or prompt.
    Returns: output. Writes to kv_cache at the context's state slots; no argument is written to.
    Errors:  ValueError when heads or groups do not split over the ranks; RuntimeError outside of a forward context;
             UnsupportedError when no cache is bound, or for an activation other than silu.
    Source:  Dao & Gu 2024 (https://arxiv.org/abs/2405.21060); signature as vLLM's MambaMixer2.
    """

    spec = OpSpec(
        inputs={"hidden_states": _HIDDEN},
        outputs={"output": _HIDDEN},
        mutates=("kv_cache",),
        reads_context=True,
        examples=(
            EXAMPLE,
            {
                **EXAMPLE,
                "ssm_state_size": 19,
                "conv_kernel_size": 3,
                "intermediate_size": 65,
                "use_conv_bias": False,
                "use_bias": True,
                "n_groups": 1,
                "num_heads": 13,
                "head_dim": 5,
            },
        ),
        **ROOM,  # type: ignore[arg-type]
    )

    def __init__(
        self,
        hidden_size: int,
        ssm_state_size: int,
        conv_kernel_size: int,
        intermediate_size: int,
        use_conv_bias: bool,
        use_bias: bool,
        n_groups: int = 1,
        num_heads: int = 128,
        head_dim: int = 64,
        rms_norm_eps: float = 1e-5,
        activation: str = "silu",
        chunk_size: int = 256,
        dt_limit: Sequence[float] = (0.0, float("inf")),
        quant_config: None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        if activation not in ("silu", "swish"):
            raise UnsupportedError(f"Mamba2Mixer computes 'silu', not activation {activation!r}.")
        size = tp_size()
        self.hidden_size = hidden_size
        self.head_dim = head_dim
        self.ssm_state_size = ssm_state_size
        self.conv_kernel_size = conv_kernel_size
        self.num_heads = shard_size(num_heads, size, "The number of heads")
        self.num_groups = shard_size(n_groups, size, "The number of groups")
        self.inner_size = self.num_heads * head_dim
        self.groups_size = self.num_groups * ssm_state_size
        self.conv_dim = self.inner_size + 2 * self.groups_size
        groups = n_groups * ssm_state_size
        self.in_proj = MergedColumnParallelLinear(
            hidden_size,
            [intermediate_size, intermediate_size, groups, groups, num_heads],
            use_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.in_proj",
        )
        self.conv1d = ShardedRows([intermediate_size, groups, groups], (1, conv_kernel_size), use_conv_bias)
        self.A_log = nn.Parameter(torch.zeros(self.num_heads))
        self.D = nn.Parameter(torch.ones(self.num_heads))
        self.dt_bias = nn.Parameter(torch.ones(self.num_heads))
        self.norm = ShardedNorm(RMSNormGated(self.inner_size, rms_norm_eps, intermediate_size // n_groups))
        self.out_proj = RowParallelLinear(
            intermediate_size, hidden_size, use_bias, quant_config=quant_config, prefix=f"{prefix}.out_proj"
        )
        self.conv, self.conv_update = CausalConv1d(), CausalConv1dUpdate()
        self.scan = MambaChunkScan(chunk_size, dt_limit)
        self.state_update = SelectiveStateUpdate(dt_limit)
        self.kv_cache: tuple[Tensor, ...] | None = None
        self.ssm_cache_dtype = torch.float32

    @property
    def cache_spec(self) -> CacheSpec:
        """The inputs of the convolution are kept as they come, in the dtype of the activations."""
        conv = ((self.conv_kernel_size - 1, self.conv_dim), self.conv1d.weight.dtype)
        ssm = ((self.num_heads, self.head_dim, self.ssm_state_size), self.ssm_cache_dtype)
        return CacheSpec(CacheKind.STATE, state=(conv, ssm))

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.kv_cache is None:
            raise UnsupportedError("Mamba2Mixer has no kv_cache bound, and a state is kept there.")
        projected, _ = self.in_proj(hidden_states)
        z, xbc, dt = projected.split([self.inner_size, self.conv_dim, self.num_heads], dim=-1)
        step = step_of(forward_context())
        outputs = []
        if step.num_decodes:
            outputs.append(self._decode(xbc[: step.num_decodes], dt[: step.num_decodes], step))
        if step.has_prompts:
            outputs.append(self._prefill(xbc[step.num_decodes :], dt[step.num_decodes :], step))
        mixed = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        output, _ = self.out_proj(self.norm(mixed.flatten(-2), z))
        return output

    def _decode(self, xbc: Tensor, dt: Tensor, step: Step) -> Tensor:
        assert self.kv_cache is not None
        conv_states, ssm_states = self.kv_cache
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        x, b, c = self._split(self.conv_update(xbc, conv_states, weight, bias, *step.decodes))
        return self.state_update(ssm_states, x, dt, self.A_log, b, c, self.D, self.dt_bias, *step.decodes)

    def _prefill(self, xbc: Tensor, dt: Tensor, step: Step) -> Tensor:
        assert self.kv_cache is not None
        conv_states, ssm_states = self.kv_cache
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        x, b, c = self._split(self.conv(xbc, weight, bias, conv_states, *step.prompts))
        return self.scan(x, dt, self.A_log, b, c, self.D, self.dt_bias, ssm_states, *step.prompts)

    def _split(self, xbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, b, c = xbc.split([self.inner_size, self.groups_size, self.groups_size], dim=-1)
        groups = (self.num_groups, self.ssm_state_size)
        return x.unflatten(-1, (self.num_heads, self.head_dim)), b.unflatten(-1, groups), c.unflatten(-1, groups)

    def coupled_params(self, generator: torch.Generator) -> dict[str, Tensor]:
        return decay_parameters(self.num_heads, generator)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """Within a forward context also the sequences' states, read and written."""
        num_tokens, own = len(inputs["hidden_states"]), super().cost(inputs, outputs)
        matrices = self.in_proj.weight.numel() + self.out_proj.weight.numel()
        scan = 5 * self.inner_size * self.ssm_state_size
        return Cost(own.num_bytes + context_cost(self.cache_spec), num_tokens * (2 * matrices + scan))
