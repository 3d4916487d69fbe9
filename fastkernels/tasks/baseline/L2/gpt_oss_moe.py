"""GPT-OSS's mixture of experts."""

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
from fastkernels.tasks.configs.gpt_oss import GptOssConfig

_HIDDEN = TensorSpec(("num_tokens", "hidden_size"))


class GptOssMoE(Op):
    """The top_k experts of router @ x + bias, weighed by the softmax over their scores alone.

    Shapes:  hidden_states, y: [num_tokens, hidden_size].
    Dtypes:  bf16, fp16 or fp32; scores and weights of the experts in fp32.
    Returns: y, summed over the ranks. No argument is written to.
    Errors:  those of its parts.
    Source:  OpenAI 2025 (https://arxiv.org/abs/2508.10925); as GptOssMLP of transformers.
    """

    spec = OpSpec(
        inputs={"hidden_states": _HIDDEN},
        outputs={"y": _HIDDEN},
        examples=(
            {"config": GptOssConfig.tiny()},
            {
                "config": GptOssConfig.tiny(
                    hidden_size=51,
                    intermediate_size=29,
                    num_local_experts=3,
                    num_experts_per_tok=3,
                    quantization=None,
                )
            },
        ),
    )

    def __init__(self, config: GptOssConfig, quant_config: str | None = None, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        num_experts, top_k = config.num_local_experts, config.num_experts_per_tok
        self.router = GateLinear(config.hidden_size, num_experts, bias=True)
        self.topk_softmax = TopKSoftmax(num_experts, top_k)
        self.experts = FusedExperts(
            num_experts,
            top_k,
            config.hidden_size,
            config.intermediate_size,
            "swiglu_oai",
            bias=True,
            quant_config=quant_config or config.quantization,
            prefix=f"{prefix}.experts",
            swiglu_alpha=config.swiglu_alpha,
            swiglu_limit=config.swiglu_limit,
        )
        self.reduces = tp_size() > 1
        self.allreduce = AllReduce()

    def forward(self, hidden_states: Tensor) -> Tensor:
        topk_weights, topk_ids = self.topk_softmax(self.router(hidden_states))
        y = self.experts(hidden_states, topk_weights, topk_ids)
        return self.allreduce(y) if self.reduces else y

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        x = inputs["hidden_states"]
        routed, weight = self.experts.cost_of_routed(len(x)), self.router.weight
        num_bytes = 2 * x.numel() * x.element_size() + weight.numel() * weight.element_size()
        return Cost(num_bytes + routed.num_bytes, routed.num_flops + 2 * len(x) * weight.numel())
