"""BGE-M3: texts as dense vectors, as weights of their words, and as a vector for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.l2_norm import L2Norm
from fastkernels.tasks.baseline.L1.linear import Linear
from fastkernels.tasks.baseline.L1.relu import ReLU
from fastkernels.tasks.baseline.L3.xlm_roberta_encoder import EXAMPLES
from fastkernels.tasks.baseline.L3.xlm_roberta_model import TEXTS, XLMRobertaModel
from fastkernels.tasks.configs.bge_m3 import BGEM3Config


class BGEM3Model(Op):
    """h = model(texts); multi = norm(colbert_linear(h)), norm(x) being x of length one.

    sparse_of gives relu(sparse_linear(h)), dense_of norm(h) of the texts' first tokens, whose rows of multi are no part
    of an answer.

    Shapes:  input_ids, positions: [num_tokens], texts one behind another; query_start_loc: [num_seqs + 1], the first
             token of each; max_query_len: of the longest; hidden_states, multi: [num_tokens, hidden_size].
             Rows behind the last text are undefined. sparse_of gives [num_tokens], dense_of [num_seqs, hidden_size].
    Dtypes:  ids and positions int64, query_start_loc int32; weights and activations bf16, fp16 or fp32.
    Returns: (hidden_states, multi). No argument is written to.
    Errors:  those of its parts.
    Source:  Chen et al. 2024 (https://arxiv.org/abs/2402.03216), section 3; as FlagEmbedding's M3Embedder.
    """

    packed_modules: ClassVar[Mapping[str, Mapping[str, str | int]]] = {
        "qkv_proj": {"query": "q", "key": "k", "value": "v"}
    }
    weight_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(roberta\.)?(embeddings|encoder|pooler)\.", r"model.\2."),
        (r"\.attention\.(self|output)\.", ".attention."),
        (r"\.intermediate\.dense\.", ".output.mlp.fc1."),
        (r"(layer\.\d+\.output)\.dense\.", r"\1.mlp.fc2."),
    )
    ignored_weights: ClassVar[tuple[str, ...]] = (
        *("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"),
    )
    torch_files: ClassVar[Mapping[str, str]] = {
        "pytorch_model.bin": "",
        "colbert_linear.pt": "colbert_linear.",
        "sparse_linear.pt": "sparse_linear.",
    }
    checkpoint_classes: ClassVar[tuple[str, ...]] = ("XLMRobertaModel",)

    spec = OpSpec(
        inputs=TEXTS,
        outputs={
            "hidden_states": TensorSpec(("num_tokens", "hidden_size")),
            "multi": TensorSpec(("num_tokens", "hidden_size")),
        },
        examples=EXAMPLES,
    )

    def __init__(self, config: BGEM3Config, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.hidden_size, self.vocab_size = config.hidden_size, config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.model = XLMRobertaModel(config, prefix=f"{prefix}model")
        self.sparse_linear = Linear(config.hidden_size, 1)
        self.colbert_linear = Linear(config.hidden_size, config.hidden_size)
        self.relu, self.l2_norm = ReLU(), L2Norm()

    def forward(
        self, input_ids: Tensor, positions: Tensor, query_start_loc: Tensor, max_query_len: int
    ) -> tuple[Tensor, Tensor]:
        hidden_states = self.model(input_ids, positions, query_start_loc, max_query_len)
        return hidden_states, self.l2_norm(self.colbert_linear(hidden_states))

    def sparse_of(self, hidden_states: Tensor) -> Tensor:
        """What each token weighs."""
        return self.relu(self.sparse_linear(hidden_states))[:, 0]

    def dense_of(self, hidden_states: Tensor, query_start_loc: Tensor) -> Tensor:
        """Of each text its first token's; of an empty one behind the last, any."""
        first = query_start_loc[:-1].long().clamp(max=len(hidden_states) - 1)
        return self.l2_norm(hidden_states[first])

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        hidden_states = outputs["hidden_states"]
        body = self.model.cost(inputs, {"hidden_states": hidden_states})
        num_bytes = sum(t.numel() * t.element_size() for t in (*self.colbert_linear.parameters(), outputs["multi"]))
        flops = 2 * len(hidden_states) * self.colbert_linear.weight.numel()
        return Cost(body.num_bytes + num_bytes, body.num_flops + flops)
