"""One layer of XLM-RoBERTa."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, scalar
from fastkernels.tasks.baseline.L2.encoder_attention import PACKED, EncoderAttention
from fastkernels.tasks.baseline.L2.encoder_mlp import EncoderMLP
from fastkernels.tasks.baseline.paged_attention import QUERY_START_LOC

PACKED_INPUTS = {"x": PACKED, "query_start_loc": QUERY_START_LOC, "max_query_len": scalar(Role.MAX_QUERY_LEN)}


class XLMRobertaLayer(Op):
    """y = output(attention(x)), each with its residual and its norm.

    Shapes:  x, y: [num_tokens, hidden_size], texts one behind another; query_start_loc: [num_seqs + 1], the first token
             of each; max_query_len: of the longest.
    Dtypes:  bf16, fp16 or fp32; query_start_loc int32; norms, the activation and softmax in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Conneau et al. 2019 (https://arxiv.org/abs/1911.02116); as XLMRobertaLayer of transformers.
    """

    spec = OpSpec(
        inputs=PACKED_INPUTS,
        outputs={"y": PACKED},
        examples=(
            {"hidden_size": 64, "num_heads": 4, "intermediate_size": 112},
            {"hidden_size": 51, "num_heads": 3, "intermediate_size": 67},
        ),
    )

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        layer_norm_eps: float = 1e-5,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.attention = EncoderAttention(hidden_size, num_heads, layer_norm_eps, prefix=f"{prefix}.attention")
        self.output = EncoderMLP(hidden_size, intermediate_size, layer_norm_eps, prefix=f"{prefix}.output")

    def forward(self, x: Tensor, query_start_loc: Tensor, max_query_len: int) -> Tensor:
        return self.output(self.attention(x, query_start_loc, max_query_len))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        flops = self.attention.cost(inputs, {}).num_flops + self.output.cost({"x": inputs["x"]}, {}).num_flops
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
