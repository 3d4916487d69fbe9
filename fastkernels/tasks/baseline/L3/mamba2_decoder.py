"""One layer of Mamba-2."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm
from fastkernels.tasks.baseline.L2.mamba2_mixer import Mamba2Mixer
from fastkernels.tasks.baseline.state_slots import ROOM
from fastkernels.tasks.configs.mamba2 import Mamba2Config

_HIDDEN = TensorSpec(("num_tokens", "hidden_size"))
AWKWARD: dict[str, Any] = {
    "hidden_size": 33,
    "expand": 2,
    "num_heads": 6,
    "head_dim": 11,
    "n_groups": 3,
    "state_size": 19,
    "conv_kernel": 3,
    "use_bias": True,
    "use_conv_bias": False,
    "time_step_limit": (0.0, 0.5),
}


class Mamba2DecoderLayer(Op):
    """h = hidden_states + residual; returns mixer(norm(h)) and h: the sum is left to the next layer.

    Shapes:  hidden_states, residual and both results: [num_tokens, hidden_size].
    Dtypes:  bf16 or fp32; norm and state space in fp32.
    Returns: (hidden_states, residual); residual None starts the chain. Writes to the mixer's kv_cache; no argument is
             written to.
    Errors:  those of its parts.
    Source:  Dao & Gu 2024 (https://arxiv.org/abs/2405.21060); forward as vLLM's Mamba2DecoderLayer.
    """

    spec = OpSpec(
        inputs={"hidden_states": _HIDDEN, "residual": _HIDDEN.optional()},
        outputs={"hidden_states_out": _HIDDEN, "residual_out": _HIDDEN},
        mutates=("kv_cache",),
        reads_context=True,
        examples=({"config": Mamba2Config.tiny()}, {"config": Mamba2Config.tiny(**AWKWARD)}),
        **ROOM,  # type: ignore[arg-type]
    )

    def __init__(self, config: Mamba2Config, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.norm = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mixer = Mamba2Mixer(
            config.hidden_size,
            config.state_size,
            config.conv_kernel,
            config.intermediate_size,
            config.use_conv_bias,
            config.use_bias,
            n_groups=config.n_groups,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.layer_norm_epsilon,
            activation=config.hidden_act,
            chunk_size=config.chunk_size,
            dt_limit=config.time_step_limit,
            quant_config=quant_config,
            prefix=f"{prefix}.mixer",
        )

    def forward(self, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            residual = hidden_states
            hidden_states = self.norm(hidden_states)
        else:
            hidden_states, residual = self.norm(hidden_states, residual)
        return self.mixer(hidden_states), residual

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        mixer = self.mixer.cost({"hidden_states": inputs["hidden_states"]}, {})
        own = sum(t.numel() * t.element_size() for t in (inputs.get("residual"), *outputs.values()) if t is not None)
        norm = self.norm.weight
        return Cost(mixer.num_bytes + own + norm.numel() * norm.element_size(), mixer.num_flops)
