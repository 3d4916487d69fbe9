"""Mamba-2 as a language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm
from fastkernels.tasks.baseline.L2.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from fastkernels.tasks.baseline.L3.mamba2_decoder import AWKWARD, Mamba2DecoderLayer
from fastkernels.tasks.baseline.state_slots import ROOM
from fastkernels.tasks.configs.mamba2 import Mamba2Config

_INPUTS = {
    "input_ids": TensorSpec(("num_tokens",), dtype="int64", role=Role.TOKEN_ID, bound="vocab_size"),
    "positions": TensorSpec(("num_tokens",), dtype="int64", role=Role.POSITION, bound="max_position_embeddings"),
}
_OUTPUTS = {"hidden_states": TensorSpec(("num_tokens", "hidden_size"))}
_EXAMPLES: tuple[dict[str, Any], ...] = (
    {"config": Mamba2Config.tiny()},
    {"config": Mamba2Config.tiny(vocab_size=101, tie_word_embeddings=True, **AWKWARD)},
)


class Mamba2Model(Op):
    """norm_f(layers(embeddings(input_ids))).

    Shapes:  input_ids, positions: [num_tokens]; hidden_states: [num_tokens, hidden_size].
    Dtypes:  ids and positions int64; weights and activations bf16 or fp32.
    Returns: hidden_states, normed. Writes to the layers' kv_cache; no argument is written to. Nothing depends on
             positions: the states say what came before.
    Errors:  those of its parts.
    Source:  Dao & Gu 2024 (https://arxiv.org/abs/2405.21060); modules as vLLM's Mamba2Model.
    """

    spec = OpSpec(_INPUTS, _OUTPUTS, mutates=("kv_cache",), reads_context=True, examples=_EXAMPLES, **ROOM)  # type: ignore[arg-type]

    def __init__(self, config: Mamba2Config, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.embeddings = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, quant_config=quant_config, prefix=f"{prefix}.embeddings"
        )
        self.layers = nn.ModuleList(
            Mamba2DecoderLayer(config, quant_config, prefix=f"{prefix}.layers.{i}")
            for i in range(config.num_hidden_layers)
        )
        self.norm_f = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden_states, residual = self.embeddings(input_ids), None
        for layer in self.layers:
            hidden_states, residual = layer(hidden_states, residual)
        hidden_states, _ = self.norm_f(hidden_states, residual)
        return hidden_states

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        hidden_states = outputs["hidden_states"]
        layers = [layer.cost({"hidden_states": hidden_states}, {}) for layer in self.layers if isinstance(layer, Op)]
        own = hidden_states.numel() * hidden_states.element_size()
        embedding = self.embeddings.cost(inputs, {}).num_bytes
        # A layer's input and result need not leave the chip's caches: the layers' own bytes are weights and states.
        num_bytes = sum(cost.num_bytes - own for cost in layers)
        return Cost(embedding + own + num_bytes, sum(cost.num_flops for cost in layers))


class Mamba2ForCausalLM(Op):
    """Mamba-2 with its language-model head: forward gives hidden states, compute_logits those of chosen rows.

    Shapes:  input_ids, positions: [num_tokens]; hidden_states: [num_tokens, hidden_size];
             logits: [num_rows, vocab_size].
    Dtypes:  ids and positions int64; weights and activations bf16 or fp32.
    Returns: hidden_states, normed. Writes to the layers' kv_cache; no argument is written to.
    Errors:  those of its parts.
    Source:  Dao & Gu 2024 (https://arxiv.org/abs/2405.21060); methods as vLLM's Mamba2ForCausalLM.
    """

    weight_renames: ClassVar[tuple[tuple[str, str], ...]] = ((r"^backbone\.embedding\.", "backbone.embeddings."),)

    spec = OpSpec(_INPUTS, _OUTPUTS, mutates=("kv_cache",), reads_context=True, examples=_EXAMPLES, **ROOM)  # type: ignore[arg-type]

    def __init__(self, config: Mamba2Config, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.backbone = Mamba2Model(config, quant_config, prefix=f"{prefix}.backbone" if prefix else "backbone")
        self.lm_head = ParallelLMHead(
            config.vocab_size, config.hidden_size, quant_config=quant_config, prefix=f"{prefix}lm_head"
        )
        self._tie_weights()

    def _tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.tie_weights(self.backbone.embeddings)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Mamba2ForCausalLM:
        super()._apply(fn, recurse)
        self._tie_weights()  # leaving the meta device makes new parameters, one each
        return self

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.backbone(input_ids, positions)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.lm_head(hidden_states)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return self.backbone.cost(inputs, outputs)
