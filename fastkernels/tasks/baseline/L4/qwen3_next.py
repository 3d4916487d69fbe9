"""Qwen3-Next as a language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from fastkernels.distributed.sharded_layer import ShardId
from fastkernels.distributed.sharded_rows import RegroupedRows
from fastkernels.distributed.tensor_parallel import WeightSource
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.baseline.L2.fused_experts import expert_modules, split_stacked_experts
from fastkernels.tasks.baseline.L2.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from fastkernels.tasks.baseline.L3.qwen3_next_decoder import ALL_EXPERTS, Qwen3NextDecoderLayer
from fastkernels.tasks.baseline.state_slots import ROOM
from fastkernels.tasks.configs.qwen3_next import Qwen3NextConfig

_INPUTS = {
    "input_ids": TensorSpec(("num_tokens",), dtype="int64", role=Role.TOKEN_ID, bound="vocab_size"),
    "positions": TensorSpec(("num_tokens",), dtype="int64", role=Role.POSITION, bound="max_position_embeddings"),
}
_OUTPUTS = {"hidden_states": TensorSpec(("num_tokens", "hidden_size"))}
# Of a first row only q . k counts, and the norm magnifies what is left where they are at right angles: many heads even
# that out.
_SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "linear_num_key_heads": 6,
    "linear_num_value_heads": 12,
    **ALL_EXPERTS,
}
_EXAMPLES: tuple[dict[str, Any], ...] = (
    {"config": Qwen3NextConfig.tiny(hidden_size=32, **_SIZES)},
    {
        "config": Qwen3NextConfig.tiny(
            vocab_size=101,
            hidden_size=37,
            num_attention_heads=3,
            num_key_value_heads=1,
            layer_types=("full_attention", "linear_attention"),
            mlp_only_layers=(0,),
            tie_word_embeddings=True,
            **_SIZES,
        )
    },
)


class Qwen3NextModel(Op):
    """norm(layers(embed_tokens(input_ids))).

    Shapes:  input_ids, positions: [num_tokens]; hidden_states: [num_tokens, hidden_size].
    Dtypes:  ids and positions int64; weights and activations bf16 or fp32.
    Returns: hidden_states, normed. Writes to the layers' kv_cache; no argument is written to.
    Errors:  those of its parts.
    Source:  Qwen3-Next (https://qwen.ai/blog?id=qwen3-next); modules as vLLM's Qwen3NextModel.
    """

    spec = OpSpec(_INPUTS, _OUTPUTS, mutates=("kv_cache",), reads_context=True, examples=_EXAMPLES, **ROOM)  # type: ignore[arg-type]

    def __init__(self, config: Qwen3NextConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, quant_config=quant_config, prefix=f"{prefix}.embed_tokens"
        )
        self.layers = nn.ModuleList(
            Qwen3NextDecoderLayer(config, i, quant_config, prefix=f"{prefix}.layers.{i}")
            for i in range(config.num_hidden_layers)
        )
        self.norm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden_states, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        hidden_states, _ = self.norm(hidden_states, residual)
        return hidden_states

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        hidden_states = outputs["hidden_states"]
        layers = [layer.cost({"hidden_states": hidden_states}, {}) for layer in self.layers if isinstance(layer, Op)]
        own = hidden_states.numel() * hidden_states.element_size()
        num_bytes = sum(cost.num_bytes - own for cost in layers)
        embedding = self.embed_tokens.cost(inputs, {}).num_bytes
        return Cost(embedding + own + num_bytes, sum(cost.num_flops for cost in layers))


class Qwen3NextForCausalLM(Op):
    """Qwen3-Next with its language-model head: forward gives hidden states, compute_logits those of chosen rows.

    Shapes:  input_ids, positions: [num_tokens]; hidden_states: [num_tokens, hidden_size];
             logits: [num_rows, vocab_size].
    Dtypes:  ids and positions int64; weights and activations bf16 or fp32.
    Returns: hidden_states, normed. Writes to the layers' kv_cache; no argument is written to.
    Errors:  those of its parts.
    Source:  Qwen3-Next (https://qwen.ai/blog?id=qwen3-next); methods as vLLM's Qwen3NextForCausalLM.
    """

    packed_modules: Mapping[str, Mapping[str, ShardId]]
    ignored_weights: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq",)

    spec = OpSpec(_INPUTS, _OUTPUTS, mutates=("kv_cache",), reads_context=True, examples=_EXAMPLES, **ROOM)  # type: ignore[arg-type]

    def __init__(self, config: Qwen3NextConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.packed_modules = {
            "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
            "gate_up_proj": {"gate_proj": 0, "up_proj": 1},
            **expert_modules(config.num_experts),
        }
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.model = Qwen3NextModel(config, quant_config, prefix=f"{prefix}.model" if prefix else "model")
        self.lm_head = ParallelLMHead(
            config.vocab_size, config.hidden_size, quant_config=quant_config, prefix=f"{prefix}lm_head"
        )
        self._tie_weights()

    def _tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.tie_weights(self.model.embed_tokens)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Qwen3NextForCausalLM:
        super()._apply(fn, recurse)
        self._tie_weights()  # leaving the meta device makes new parameters, one each
        return self

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.model(input_ids, positions)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.lm_head(hidden_states)

    def convert_weight(self, name: str, source: WeightSource) -> Iterator[tuple[str, WeightSource]]:
        """Projections that a checkpoint holds key head by key head; experts in one tensor; no predicted tokens."""
        config = self.config
        values = config.linear_num_value_heads // config.linear_num_key_heads
        size = values * config.linear_value_head_dim
        if name.startswith("mtp."):
            return
        if name.endswith("in_proj_qkvz.weight"):
            key = config.linear_key_head_dim
            yield name, RegroupedRows(source, (key, key, size, size))
        elif name.endswith("in_proj_ba.weight"):
            yield name, RegroupedRows(source, (values, values))
        else:
            yield from split_stacked_experts(name, source)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return self.model.cost(inputs, outputs)
