"""GPT-OSS as a language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from fastkernels.distributed.tensor_parallel import TransposedSource, WeightSource
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm
from fastkernels.tasks.baseline.L2.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from fastkernels.tasks.baseline.L3.gpt_oss_decoder import GptOssDecoderLayer
from fastkernels.tasks.configs.gpt_oss import GptOssConfig

_INPUTS = {
    "input_ids": TensorSpec(("num_tokens",), dtype="int64", role=Role.TOKEN_ID, bound="vocab_size"),
    "positions": TensorSpec(("num_tokens",), dtype="int64", role=Role.POSITION, bound="max_position_embeddings"),
}
_OUTPUTS = {"hidden_states": TensorSpec(("num_tokens", "hidden_size"))}
_EXAMPLES: tuple[dict[str, Any], ...] = (
    {"config": GptOssConfig.tiny(num_local_experts=4, num_experts_per_tok=4)},  # a near tie is no error of a model's
    {
        "config": GptOssConfig.tiny(
            vocab_size=101,
            hidden_size=52,
            intermediate_size=29,
            num_attention_heads=3,
            num_key_value_heads=1,
            num_local_experts=3,
            num_experts_per_tok=3,
            tie_word_embeddings=True,
            quantization=None,
        )
    },
)


class GptOssModel(Op):
    """norm(layers(embed_tokens(input_ids))); inputs_embeds, where given, stand for the embedded tokens.

    Shapes:  input_ids: [num_tokens]; positions: [num_tokens], or [3, num_tokens] with mrope_section; inputs_embeds,
             hidden_states: [num_tokens, hidden_size].
    Dtypes:  ids and positions int64; weights and activations bf16, fp16 or fp32.
    Returns: hidden_states, normed. Writes to the layers' kv_cache; no argument is written to.
    Errors:  those of its parts.
    Source:  OpenAI 2025 (https://arxiv.org/abs/2508.10925); modules as vLLM's GptOssModel.
    """

    spec = OpSpec(
        {**_INPUTS, "inputs_embeds": TensorSpec(("num_tokens", "hidden_size")).optional()},
        _OUTPUTS,
        mutates=("kv_cache",),
        reads_context=True,
        examples=_EXAMPLES,
    )

    def __init__(self, config: GptOssConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, quant_config=quant_config, prefix=f"{prefix}.embed_tokens"
        )
        self.layers = nn.ModuleList(
            GptOssDecoderLayer(config, i, quant_config, prefix=f"{prefix}.layers.{i}")
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


class GptOssForCausalLM(Op):
    """GPT-OSS with its language-model head: forward gives hidden states, compute_logits those of chosen rows.

    Shapes:  input_ids, positions: [num_tokens]; hidden_states: [num_tokens, hidden_size];
             logits: [num_rows, vocab_size].
    Dtypes:  ids and positions int64; weights and activations bf16, fp16 or fp32.
    Returns: hidden_states, normed. Writes to the layers' kv_cache; no argument is written to.
    Errors:  those of its parts.
    Source:  OpenAI 2025 (https://arxiv.org/abs/2508.10925); methods as vLLM's GptOssForCausalLM.
    """

    packed_modules: ClassVar[Mapping[str, Mapping[str, str | int]]] = {
        "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"}
    }
    weight_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"self_attn\.sinks$", "self_attn.attn.sinks"),
        (r"experts\.gate_up_proj_(bias|blocks|scales)$", r"experts.w13.\1"),
        (r"experts\.down_proj_(bias|blocks|scales)$", r"experts.w2.\1"),
        (r"(w13|w2)\.(blocks|scales)$", r"\1.weight_\2"),
    )
    ignored_weights: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq",)

    spec = OpSpec(_INPUTS, _OUTPUTS, mutates=("kv_cache",), reads_context=True, examples=_EXAMPLES)

    def __init__(self, config: GptOssConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.model = GptOssModel(config, quant_config, prefix=f"{prefix}.model" if prefix else "model")
        self.lm_head = ParallelLMHead(
            config.vocab_size, config.hidden_size, quant_config=quant_config, prefix=f"{prefix}lm_head"
        )
        self._tie_weights()

    def _tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.tie_weights(self.model.embed_tokens)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GptOssForCausalLM:
        super()._apply(fn, recurse)
        self._tie_weights()  # leaving the meta device makes new parameters, one each
        return self

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.model(input_ids, positions)

    def convert_weight(self, name: str, source: WeightSource) -> Iterator[tuple[str, WeightSource]]:
        """Experts that are not quantised are published with their inputs first."""
        for published, own in (("experts.gate_up_proj", "experts.w13"), ("experts.down_proj", "experts.w2")):
            if name.endswith(published) and len(source.shape) == 3:
                yield f"{name.removesuffix(published)}{own}.weight", TransposedSource(source)
                return
        yield name, source

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.lm_head(hidden_states)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return self.model.cost(inputs, outputs)
