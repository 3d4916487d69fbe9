"""Llama as a language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm
from fastkernels.tasks.baseline.L2.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from fastkernels.tasks.baseline.L3.llama_decoder import LlamaDecoderLayer
from fastkernels.tasks.configs.llama import LlamaConfig

_INPUTS = {
    "input_ids": TensorSpec(("num_tokens",), dtype="int64", role=Role.TOKEN_ID, bound="vocab_size"),
    "positions": TensorSpec(("num_tokens",), dtype="int64", role=Role.POSITION, bound="max_position_embeddings"),
}
EMBEDS = TensorSpec(("num_tokens", "hidden_size"), role=Role.COUPLED).optional()
_OUTPUTS = {"hidden_states": TensorSpec(("num_tokens", "hidden_size"))}
_EXAMPLES: tuple[dict[str, Any], ...] = (
    {"config": LlamaConfig.tiny()},
    {
        "config": LlamaConfig.tiny(
            vocab_size=101,
            hidden_size=52,
            intermediate_size=89,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=80,
            tie_word_embeddings=True,
            attention_bias=True,
        )
    },
)


class LlamaModel(Op):
    """norm(layers(embed_tokens(input_ids))); inputs_embeds, where given, stand for the embedded tokens.

    Shapes:  input_ids: [num_tokens]; positions: [num_tokens], or [3, num_tokens] with mrope_section; inputs_embeds,
             hidden_states: [num_tokens, hidden_size].
    Dtypes:  ids and positions int64; weights and activations bf16, fp16 or fp32.
    Returns: hidden_states, normed. Writes to the layers' kv_cache; no argument is written to.
    Errors:  those of its parts.
    Source:  Grattafiori et al. 2024 (https://arxiv.org/abs/2407.21783); modules as vLLM's LlamaModel.
    """

    spec = OpSpec(
        {**_INPUTS, "inputs_embeds": EMBEDS},
        _OUTPUTS,
        mutates=("kv_cache",),
        reads_context=True,
        examples=_EXAMPLES,
    )

    def __init__(self, config: LlamaConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, quant_config=quant_config, prefix=f"{prefix}.embed_tokens"
        )
        self.layers = nn.ModuleList(
            LlamaDecoderLayer(config, quant_config, prefix=f"{prefix}.layers.{i}")
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

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        """Vectors of the size of embedded tokens."""
        drawn = torch.randn(sizes["num_tokens"], self.hidden_size, generator=generator)
        return {"inputs_embeds": drawn * self.hidden_size**-0.5}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        embedding = self.embed_tokens.cost(inputs, {})
        hidden_states = outputs["hidden_states"]
        nothing = hidden_states[:0]
        layers = [layer.cost({"hidden_states": nothing}, {}) for layer in self.layers if isinstance(layer, Op)]
        matrices = sum(p.numel() for p in self.layers.parameters() if p.dim() == 2)
        num_bytes = hidden_states.numel() * hidden_states.element_size() + embedding.num_bytes
        flops = sum(cost.num_flops for cost in layers) + 2 * len(hidden_states) * matrices
        return Cost(num_bytes + sum(cost.num_bytes for cost in layers), flops)


class LlamaForCausalLM(Op):
    """Llama with its language-model head: forward gives hidden states, compute_logits those of chosen rows.

    Shapes:  input_ids, positions: [num_tokens]; hidden_states: [num_tokens, hidden_size];
             logits: [num_rows, vocab_size].
    Dtypes:  ids and positions int64; weights and activations bf16, fp16 or fp32.
    Returns: hidden_states, normed. Writes to the layers' kv_cache; no argument is written to.
    Errors:  those of its parts.
    Source:  Grattafiori et al. 2024 (https://arxiv.org/abs/2407.21783); methods as vLLM's LlamaForCausalLM.
    """

    packed_modules: ClassVar[Mapping[str, Mapping[str, str | int]]] = {
        "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
        "gate_up_proj": {"gate_proj": 0, "up_proj": 1},
    }
    ignored_weights: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq",)

    spec = OpSpec(_INPUTS, _OUTPUTS, mutates=("kv_cache",), reads_context=True, examples=_EXAMPLES)

    def __init__(self, config: LlamaConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.model = LlamaModel(config, quant_config, prefix=f"{prefix}.model" if prefix else "model")
        self.lm_head = ParallelLMHead(
            config.vocab_size, config.hidden_size, quant_config=quant_config, prefix=f"{prefix}lm_head"
        )
        self._tie_weights()

    def _tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.tie_weights(self.model.embed_tokens)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LlamaForCausalLM:
        super()._apply(fn, recurse)
        self._tie_weights()  # leaving the meta device makes new parameters, one each
        return self

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.model(input_ids, positions)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.lm_head(hidden_states)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return self.model.cost(inputs, outputs)
