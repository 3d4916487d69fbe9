"""The layers of XLM-RoBERTa."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec
from fastkernels.tasks.baseline.L2.encoder_attention import PACKED
from fastkernels.tasks.baseline.L3.xlm_roberta_layer import PACKED_INPUTS, XLMRobertaLayer
from fastkernels.tasks.configs.bge_m3 import BGEM3Config

EXAMPLES: tuple[dict[str, Any], ...] = (
    {"config": BGEM3Config.tiny()},
    {
        "config": BGEM3Config.tiny(
            vocab_size=53, hidden_size=51, num_attention_heads=3, intermediate_size=37, type_vocab_size=2
        )
    },
)


class XLMRobertaEncoder(Op):
    """One layer after another.

    Shapes:  x, y: [num_tokens, hidden_size], texts one behind another; query_start_loc: [num_seqs + 1], the first token
             of each; max_query_len: of the longest.
    Dtypes:  bf16, fp16 or fp32; query_start_loc int32; norms, the activation and softmax in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Conneau et al. 2019 (https://arxiv.org/abs/1911.02116); as XLMRobertaEncoder of transformers.
    """

    spec = OpSpec(inputs=PACKED_INPUTS, outputs={"y": PACKED}, examples=EXAMPLES)

    def __init__(self, config: BGEM3Config, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        sizes = (config.hidden_size, config.num_attention_heads, config.intermediate_size, config.layer_norm_eps)
        self.layer = nn.ModuleList(
            XLMRobertaLayer(*sizes, prefix=f"{prefix}.layer.{i}") for i in range(config.num_hidden_layers)
        )

    def forward(self, x: Tensor, query_start_loc: Tensor, max_query_len: int) -> Tensor:
        for layer in self.layer:
            x = layer(x, query_start_loc, max_query_len)
        return x

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        layers = [layer.cost(inputs, {}) for layer in self.layer if isinstance(layer, Op)]
        return Cost(super().cost(inputs, outputs).num_bytes, sum(cost.num_flops for cost in layers))
