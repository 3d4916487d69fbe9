"""Mixtral's mixture of experts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.distributed.tensor_parallel import tp_size
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.allreduce import AllReduce
from fastkernels.tasks.baseline.L1.gate_linear import GateLinear
from fastkernels.tasks.baseline.L1.topk_softmax import TopKSoftmax
from fastkernels.tasks.baseline.L2.fused_experts import FusedExperts

_HIDDEN = TensorSpec(("num_tokens", "hidden_size"))


class MixtralMoE(Op):
    """The top_k experts of softmax(gate @ x), weighed by their share of it.

    Shapes:  hidden_states, y: [num_tokens, hidden_size].
    Dtypes:  bf16, fp16 or fp32; scores and weights of the experts in fp32.
    Returns: y, summed over the ranks unless reduce_results is false. No argument is written to.
    Errors:  those of its parts.
    Source:  Jiang et al. 2024 (https://arxiv.org/abs/2401.04088); signature as vLLM's MixtralMoE.
    """

    spec = OpSpec(
        inputs={"hidden_states": _HIDDEN},
        outputs={"y": _HIDDEN},
        examples=(
            {"num_experts": 8, "top_k": 2, "hidden_size": 64, "intermediate_size": 48},
            {"num_experts": 3, "top_k": 3, "hidden_size": 51, "intermediate_size": 29},
        ),
    )

    def __init__(
        self,
        num_experts: int,
        top_k: int,
        hidden_size: int,
        intermediate_size: int,
        quant_config: str | None = None,
        prefix: str = "",
        reduce_results: bool = True,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.gate = GateLinear(hidden_size, num_experts)
        self.topk_softmax = TopKSoftmax(num_experts, top_k)
        self.experts = FusedExperts(
            num_experts, top_k, hidden_size, intermediate_size, quant_config=quant_config, prefix=f"{prefix}.experts"
        )
        self.reduces = reduce_results and tp_size() > 1
        self.allreduce = AllReduce()

    def forward(self, hidden_states: Tensor) -> Tensor:
        topk_weights, topk_ids = self.topk_softmax(self.gate(hidden_states))
        y = self.experts(hidden_states, topk_weights, topk_ids)
        return self.allreduce(y) if self.reduces else y

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        x = inputs["hidden_states"]
        routed, weight = self.experts.cost_of_routed(len(x)), self.gate.weight
        num_bytes = 2 * x.numel() * x.element_size() + weight.numel() * weight.element_size()
        return Cost(num_bytes + routed.num_bytes, routed.num_flops + 2 * len(x) * weight.numel())
