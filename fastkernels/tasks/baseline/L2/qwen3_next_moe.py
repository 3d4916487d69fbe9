"""Qwen3-Next's mixture of experts: some that are chosen, and one that every token goes through."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.distributed.tensor_parallel import tp_size
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.allreduce import AllReduce
from fastkernels.tasks.baseline.L1.gate_linear import GateLinear
from fastkernels.tasks.baseline.L1.linear import Linear
from fastkernels.tasks.baseline.L1.sigmoid_mul import SigmoidMul
from fastkernels.tasks.baseline.L1.topk_softmax import TopKSoftmax
from fastkernels.tasks.baseline.L2.fused_experts import FusedExperts
from fastkernels.tasks.baseline.L2.llama_mlp import LlamaMLP
from fastkernels.tasks.baseline.state_slots import ROOM
from fastkernels.tasks.configs.qwen3_next import Qwen3NextConfig

_HIDDEN = TensorSpec(("num_tokens", "hidden_size"))


class Qwen3NextMoE(Op):
    """y = experts(x, topk(softmax(gate(x)))) + sigmoid(shared_expert_gate(x)) * shared_expert(x).

    Shapes:  hidden_states, y: [num_tokens, hidden_size].
    Dtypes:  bf16 or fp32; scores and weights of the experts in fp32.
    Returns: y, summed over the ranks. No argument is written to.
    Errors:  those of its parts.
    Source:  Qwen Team 2024 (https://arxiv.org/abs/2407.10671), shared experts; signature as vLLM's
             Qwen3NextSparseMoeBlock.
    """

    spec = OpSpec(
        inputs={"hidden_states": _HIDDEN},
        outputs={"y": _HIDDEN},
        examples=(
            {"config": Qwen3NextConfig.tiny(num_experts=4, num_experts_per_tok=4)},  # a near tie is no error of a block
            {
                "config": Qwen3NextConfig.tiny(
                    hidden_size=53,
                    num_experts=3,
                    moe_intermediate_size=29,
                    shared_expert_intermediate_size=31,
                    norm_topk_prob=False,
                )
            },
        ),
        **ROOM,  # type: ignore[arg-type]
    )

    def __init__(self, config: Qwen3NextConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.gate = GateLinear(config.hidden_size, config.num_experts)
        self.topk_softmax = TopKSoftmax(config.num_experts, config.num_experts_per_tok, config.norm_topk_prob)
        self.experts = FusedExperts(
            config.num_experts,
            config.num_experts_per_tok,
            config.hidden_size,
            config.moe_intermediate_size,
            quant_config=quant_config,
            prefix=f"{prefix}.experts",
        )
        self.shared_expert = LlamaMLP(
            config.hidden_size,
            config.shared_expert_intermediate_size,
            config.hidden_act,
            quant_config,
            prefix=f"{prefix}.shared_expert",
            reduce_results=False,
        )
        self.shared_expert_gate = Linear(config.hidden_size, 1, bias=False)
        self.sigmoid_mul = SigmoidMul(config.hidden_size, gate_size=1)
        self.reduces = tp_size() > 1
        self.allreduce = AllReduce()

    def forward(self, hidden_states: Tensor) -> Tensor:
        topk_weights, topk_ids = self.topk_softmax(self.gate(hidden_states))
        shared = self.sigmoid_mul(self.shared_expert(hidden_states), self.shared_expert_gate(hidden_states))
        y = self.experts(hidden_states, topk_weights, topk_ids) + shared
        return self.allreduce(y) if self.reduces else y

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        x = inputs["hidden_states"]
        routed = self.experts.cost_of_routed(len(x))
        dense = [*self.gate.parameters(), *self.shared_expert.parameters(), *self.shared_expert_gate.parameters()]
        num_bytes = 2 * x.numel() * x.element_size() + sum(p.numel() * p.element_size() for p in dense)
        num_flops = routed.num_flops + 2 * len(x) * sum(p.numel() for p in dense)
        return Cost(num_bytes + routed.num_bytes, num_flops)
