"""What Pi0's expert is given: the robot's state, and each noisy action with the time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.linear import Linear
from fastkernels.tasks.baseline.L1.silu import SiLU
from fastkernels.tasks.baseline.L1.sinusoidal_embed import SinusoidalEmbed
from fastkernels.tasks.configs.pi0 import PI0Config


class PI0ActionEmbed(Op):
    """[state_proj(state), action_time_mlp_out(silu(action_time_mlp_in([action_in_proj(actions), waves of the time])))].

    Shapes:  state: [batch, max_state_dim]; actions: [batch, chunk_size, max_action_dim]; timestep: [batch]; y: [batch,
             1 + chunk_size, hidden_size].
    Dtypes:  bf16, fp16 or fp32; timestep fp32; the activation in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Black et al. 2024 (https://arxiv.org/abs/2410.24164), appendix B; as transformers'
             PI0ActionTimeEmbedding.
    """

    spec = OpSpec(
        inputs={
            "state": TensorSpec(("batch", "max_state_dim")),
            "actions": TensorSpec(("batch", "chunk_size", "max_action_dim")),
            "timestep": TensorSpec(("batch",), dtype="float32"),
        },
        outputs={"y": TensorSpec(("batch", "num_outputs", "hidden_size"))},
        examples=(
            {"config": PI0Config.tiny(max_period=40.0, min_period=4.0)},
            {"config": PI0Config.tiny(min_period=2.0)},
        ),
        example_axes={"batch": (2, 1)},
    )

    def __init__(self, config: PI0Config, prefix: str = "") -> None:
        super().__init__()
        size = self.hidden_size = config.expert.hidden_size
        self.max_state_dim, self.max_action_dim = config.max_state_dim, config.max_action_dim
        self.chunk_size = config.chunk_size
        self.time_embed = SinusoidalEmbed(size, max_period=config.max_period, min_period=config.min_period)
        self.action_in_proj = Linear(config.max_action_dim, size)
        self.state_proj = Linear(config.max_state_dim, size)
        self.action_time_mlp_in = Linear(2 * size, size)
        self.act = SiLU()
        self.action_time_mlp_out = Linear(size, size)

    def forward(self, state: Tensor, actions: Tensor, timestep: Tensor) -> Tensor:
        embeds = self.action_in_proj(actions)
        time = self.time_embed(timestep).to(embeds.dtype)[:, None].expand_as(embeds)
        embeds = self.action_time_mlp_out(self.act(self.action_time_mlp_in(torch.cat([embeds, time], dim=-1))))
        return torch.cat([self.state_proj(state)[:, None], embeds], dim=1)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_outputs": 1 + self.chunk_size}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["actions"].numel() // self.max_action_dim
        matrices = (self.action_in_proj, self.action_time_mlp_in, self.action_time_mlp_out)
        flops = 2 * num_rows * sum(m.weight.numel() for m in matrices)
        flops += 2 * len(inputs["state"]) * self.state_proj.weight.numel()
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
