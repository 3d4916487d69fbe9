"""The embedding table and the language-model head, the vocabulary split over the ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.distributed.sharded_layer import Shard, ShardedLayer, ShardId, refuse_quantization
from fastkernels.distributed.tensor_parallel import WeightSource, padded_vocab_size, tp_rank, tp_size
from fastkernels.op import Op
from fastkernels.spec import Compare, Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.allgather import AllGather
from fastkernels.tasks.baseline.L1.allreduce import AllReduce
from fastkernels.tasks.baseline.L1.embedding import Embedding
from fastkernels.tasks.baseline.L1.linear import Linear

DEFAULT_VOCAB_PADDING_SIZE = 64


class _VocabShards(ShardedLayer):
    """Rows of the vocabulary, padded to an even multiple; the padding is zero and never returned."""

    def _split_vocab(self, num_embeddings: int, padding_size: int) -> None:
        self.tp_rank, self.tp_size = tp_rank(), tp_size()
        self.num_embeddings_padded = padded_vocab_size(num_embeddings, padding_size, self.tp_size)
        self.num_embeddings_per_partition = self.num_embeddings_padded // self.tp_size
        self.vocab_start = min(self.tp_rank * self.num_embeddings_per_partition, num_embeddings)
        self.vocab_end = min(self.vocab_start + self.num_embeddings_per_partition, num_embeddings)
        self.org_vocab_size = num_embeddings

    def shard(self, num_dims: int, shard_id: ShardId) -> Shard:
        return Shard(0, self.org_vocab_size, self.vocab_start, self.vocab_end - self.vocab_start)

    def weight_loader(self, param: nn.Parameter, loaded_weight: WeightSource, shard_id: ShardId = None) -> None:
        super().weight_loader(param, loaded_weight, shard_id)
        self._clear_padding(param)

    def _clear_padding(self, param: Tensor) -> None:
        param.data[self.vocab_end - self.vocab_start :].zero_()


class VocabParallelEmbedding(_VocabShards, Op):
    """y[i] = weight[input_ids[i]], each rank looking up its part of the vocabulary.

    Shapes:  input_ids: [num_tokens]; weight: [num_embeddings_per_partition, embedding_dim];
             y: [num_tokens, embedding_dim].
    Dtypes:  input_ids int64 or int32, in [0, num_embeddings); weight bf16, fp16 or fp32; y as weight, bit for bit.
    Returns: y, the same on every rank. No argument is written to.
    Errors:  UnsupportedError when quant_config is given.
    Source:  signature as vLLM's VocabParallelEmbedding.
    """

    inner = "embedding"
    spec = OpSpec(
        inputs={"input_ids": TensorSpec(("num_tokens",), dtype="int64", role=Role.TOKEN_ID, bound="num_embeddings")},
        may_be_empty=("num_tokens",),
        outputs={"y": TensorSpec(("num_tokens", "embedding_dim"), compare=Compare.EXACT)},
        examples=({"num_embeddings": 512, "embedding_dim": 64}, {"num_embeddings": 101, "embedding_dim": 37}),
    )

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        params_dtype: torch.dtype | None = None,
        org_num_embeddings: int | None = None,
        padding_size: int = DEFAULT_VOCAB_PADDING_SIZE,
        quant_config: None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        refuse_quantization(quant_config, prefix or type(self).__name__)
        self.num_embeddings = org_num_embeddings or num_embeddings
        self.embedding_dim = embedding_dim
        self._split_vocab(self.num_embeddings, padding_size)
        self.embedding = Embedding(self.num_embeddings_per_partition, embedding_dim)
        self._clear_padding(self.weight)
        self.allreduce = AllReduce()
        if params_dtype is not None:
            self.to(params_dtype)

    def forward(self, input_ids: Tensor) -> Tensor:
        if self.tp_size == 1:
            return self.embedding(input_ids)
        is_here = (input_ids >= self.vocab_start) & (input_ids < self.vocab_end)
        rows = self.embedding(torch.where(is_here, input_ids - self.vocab_start, 0))
        return self.allreduce(rows.masked_fill(~is_here[..., None], 0))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        ids = inputs["input_ids"]
        row_bytes = self.embedding_dim * self.weight.element_size()
        num_rows = ids.unique().numel()  # a row that several tokens share is read once
        return Cost(ids.numel() * (ids.element_size() + row_bytes) + num_rows * row_bytes)


class ParallelLMHead(_VocabShards, Op):
    """logits = hidden_states @ weight.T (+ bias), each rank computing its part of the vocabulary, then gathered.

    Shapes:  hidden_states: [..., embedding_dim]; weight: [num_embeddings_per_partition, embedding_dim];
             logits: [..., num_embeddings], rows strided when the vocabulary is padded.
    Dtypes:  hidden_states and weight alike, bf16, fp16 or fp32; products are summed in at least fp32.
    Returns: logits, the same on every rank. No argument is written to.
    Errors:  UnsupportedError when quant_config is given.
    Source:  signature as vLLM's ParallelLMHead; forward as its LogitsProcessor.
    """

    inner = "linear"
    spec = OpSpec(
        inputs={"hidden_states": TensorSpec(("...", "embedding_dim")).strided()},
        outputs={"logits": TensorSpec(("...", "num_embeddings"), role=Role.LOGITS).strided()},
        examples=(
            {"num_embeddings": 512, "embedding_dim": 64},
            {"num_embeddings": 101, "embedding_dim": 37, "bias": True},
        ),
        is_exact_on_integers=True,
    )

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        bias: bool = False,
        params_dtype: torch.dtype | None = None,
        org_num_embeddings: int | None = None,
        padding_size: int = DEFAULT_VOCAB_PADDING_SIZE,
        quant_config: None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        refuse_quantization(quant_config, prefix or type(self).__name__)
        self.num_embeddings = org_num_embeddings or num_embeddings
        self.embedding_dim = embedding_dim
        self._split_vocab(self.num_embeddings, padding_size)
        self.linear = Linear(embedding_dim, self.num_embeddings_per_partition, bias=bias)
        self._clear_padding(self.weight)
        self.allgather = AllGather()
        if params_dtype is not None:
            self.to(params_dtype)

    def tie_weights(self, embed_tokens: VocabParallelEmbedding) -> ParallelLMHead:
        """Use the embedding table as the weight: one parameter from here on."""
        self.linear.weight = embed_tokens.weight
        return self

    def forward(self, hidden_states: Tensor) -> Tensor:
        logits = self.linear(hidden_states)
        if self.tp_size > 1:
            logits = self.allgather(logits)
        return logits[..., : self.num_embeddings]

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["hidden_states"].numel() // self.embedding_dim
        num_bytes = super().cost(inputs, outputs).num_bytes
        return Cost(num_bytes, 2 * num_rows * self.num_embeddings * self.embedding_dim)
