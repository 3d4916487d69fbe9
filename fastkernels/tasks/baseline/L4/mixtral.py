"""Mixtral as a language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from fastkernels.distributed.sharded_layer import ShardId
from fastkernels.distributed.tensor_parallel import WeightSource
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm
from fastkernels.tasks.baseline.L2.fused_experts import expert_modules, split_stacked_experts
from fastkernels.tasks.baseline.L2.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from fastkernels.tasks.baseline.L3.mixtral_decoder import MixtralDecoderLayer
from fastkernels.tasks.configs.mixtral import MixtralConfig

_EXPERT_NAMES = ("w1", "w3", "w2")  # gate, up, down
_INPUTS = {
    "input_ids": TensorSpec(("num_tokens",), dtype="int64", role=Role.TOKEN_ID, bound="vocab_size"),
    "positions": TensorSpec(("num_tokens",), dtype="int64", role=Role.POSITION, bound="max_position_embeddings"),
}
_OUTPUTS = {"hidden_states": TensorSpec(("num_tokens", "hidden_size"))}
_EXAMPLES: tuple[dict[str, Any], ...] = (
    {"config": MixtralConfig.tiny(num_local_experts=4, num_experts_per_tok=4)},  # a near tie is no error of a model's
    {
        "config": MixtralConfig.tiny(
            vocab_size=101,
            hidden_size=52,
            intermediate_size=29,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=80,
            num_local_experts=5,
            num_experts_per_tok=5,
            tie_word_embeddings=True,
        )
    },
)


class MixtralModel(Op):
    """norm(layers(embed_tokens(input_ids))); inputs_embeds, where given, stand for the embedded tokens.

    Shapes:  input_ids: [num_tokens]; positions: [num_tokens], or [3, num_tokens] with mrope_section; inputs_embeds,
             hidden_states: [num_tokens, hidden_size].
    Dtypes:  ids and positions int64; weights and activations bf16, fp16 or fp32.
    Returns: hidden_states, normed. Writes to the layers' kv_cache; no argument is written to.
    Errors:  those of its parts.
    Source:  Jiang et al. 2024 (https://arxiv.org/abs/2401.04088); modules as vLLM's MixtralModel.
    """

    spec = OpSpec(
        {**_INPUTS, "inputs_embeds": TensorSpec(("num_tokens", "hidden_size")).optional()},
        _OUTPUTS,
        mutates=("kv_cache",),
        reads_context=True,
        examples=_EXAMPLES,
    )

    def __init__(self, config: MixtralConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, quant_config=quant_config, prefix=f"{prefix}.embed_tokens"
        )
        self.layers = nn.ModuleList(
            MixtralDecoderLayer(config, quant_config, prefix=f"{prefix}.layers.{i}")
            for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor, inputs_embeds: Tensor | None = None) -> Tensor:
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        residual = None
        for layer in self.layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        hidden_states, _ = self.norm(hidden_states, residual)
        return hidden_states

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        embedding = self.embed_tokens.cost(inputs, {})
        hidden_states = outputs["hidden_states"]
        layers = [layer.cost({"hidden_states": hidden_states}, {}) for layer in self.layers if isinstance(layer, Op)]
        num_bytes = hidden_states.numel() * hidden_states.element_size() + embedding.num_bytes
        return Cost(num_bytes + sum(cost.num_bytes for cost in layers), sum(cost.num_flops for cost in layers))


class MixtralForCausalLM(Op):
    """Mixtral with its language-model head: forward gives hidden states, compute_logits those of chosen rows.

    Shapes:  input_ids, positions: [num_tokens]; hidden_states: [num_tokens, hidden_size];
             logits: [num_rows, vocab_size].
    Dtypes:  ids and positions int64; weights and activations bf16, fp16 or fp32.
    Returns: hidden_states, normed. Writes to the layers' kv_cache; no argument is written to.
    Errors:  those of its parts.
    Source:  Jiang et al. 2024 (https://arxiv.org/abs/2401.04088); methods as vLLM's MixtralForCausalLM.
    """

    packed_modules: Mapping[str, Mapping[str, ShardId]]
    weight_renames: ClassVar[tuple[tuple[str, str], ...]] = ((r"\.mlp\.", ".block_sparse_moe."),)
    ignored_weights: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq",)

    spec = OpSpec(_INPUTS, _OUTPUTS, mutates=("kv_cache",), reads_context=True, examples=_EXAMPLES)

    def __init__(self, config: MixtralConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.packed_modules = {
            "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
            **expert_modules(config.num_local_experts, *_EXPERT_NAMES),
        }
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.model = MixtralModel(config, quant_config, prefix=f"{prefix}.model" if prefix else "model")
        self.lm_head = ParallelLMHead(
            config.vocab_size, config.hidden_size, quant_config=quant_config, prefix=f"{prefix}lm_head"
        )
        self._tie_weights()

    def _tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.tie_weights(self.model.embed_tokens)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MixtralForCausalLM:
        super()._apply(fn, recurse)
        self._tie_weights()  # leaving the meta device makes new parameters, one each
        return self

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.model(input_ids, positions)

    def convert_weight(self, name: str, source: WeightSource) -> Iterator[tuple[str, WeightSource]]:
        """Experts in one tensor, as transformers names them from its version 5 on, are as good."""
        return split_stacked_experts(name, source, *_EXPERT_NAMES)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.lm_head(hidden_states)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return self.model.cost(inputs, outputs)
