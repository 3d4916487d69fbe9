"""XLM-RoBERTa: embeddings and layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec, scalar
from fastkernels.tasks.baseline.L2.encoder_attention import PACKED
from fastkernels.tasks.baseline.L2.xlm_roberta_embeddings import XLMRobertaEmbeddings
from fastkernels.tasks.baseline.L3.xlm_roberta_encoder import EXAMPLES, XLMRobertaEncoder
from fastkernels.tasks.baseline.paged_attention import QUERY_START_LOC
from fastkernels.tasks.configs.bge_m3 import BGEM3Config

TEXTS = {
    "input_ids": TensorSpec(("num_tokens",), dtype="int64", role=Role.TOKEN_ID, bound="vocab_size"),
    "positions": TensorSpec(("num_tokens",), dtype="int64", role=Role.INDEX, bound="max_position_embeddings"),
    "query_start_loc": QUERY_START_LOC,
    "max_query_len": scalar(Role.MAX_QUERY_LEN),
}


class XLMRobertaModel(Op):
    """encoder(embeddings(input_ids, positions)).

    Shapes:  input_ids, positions: [num_tokens], texts one behind another; query_start_loc: [num_seqs + 1], the first
             token of each; max_query_len: of the longest; hidden_states: [num_tokens, hidden_size].
    Dtypes:  ids and positions int64, query_start_loc int32; weights and activations bf16, fp16 or fp32.
    Returns: hidden_states. No argument is written to.
    Errors:  those of its parts.
    Source:  Conneau et al. 2019 (https://arxiv.org/abs/1911.02116); as XLMRobertaModel of transformers.
    """

    spec = OpSpec(inputs=TEXTS, outputs={"hidden_states": PACKED}, examples=EXAMPLES)

    def __init__(self, config: BGEM3Config, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size, self.vocab_size = config.hidden_size, config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.embeddings = XLMRobertaEmbeddings(
            config.vocab_size,
            config.hidden_size,
            config.max_position_embeddings,
            config.type_vocab_size,
            config.layer_norm_eps,
        )
        self.encoder = XLMRobertaEncoder(config, prefix=f"{prefix}.encoder")

    def forward(self, input_ids: Tensor, positions: Tensor, query_start_loc: Tensor, max_query_len: int) -> Tensor:
        return self.encoder(self.embeddings(input_ids, positions), query_start_loc, max_query_len)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        hidden_states = outputs["hidden_states"]
        embeddings = self.embeddings.cost(inputs, {"y": hidden_states})
        given = {"x": hidden_states, "query_start_loc": inputs["query_start_loc"]}
        encoder = self.encoder.cost(given, {})
        return Cost(embeddings.num_bytes + encoder.num_bytes, encoder.num_flops)
