"""Whisper: an encoder of sound and a decoder of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.conv1d import Conv1d
from fastkernels.tasks.baseline.L1.embedding import Embedding
from fastkernels.tasks.baseline.L1.gelu import GELU
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L2.cross_attention import drawn_encoder_tokens
from fastkernels.tasks.baseline.L2.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from fastkernels.tasks.baseline.L3.whisper_decoder_layer import WhisperDecoderLayer
from fastkernels.tasks.baseline.L3.whisper_encoder_layer import WhisperEncoderLayer
from fastkernels.tasks.configs.whisper import WhisperConfig

_EXAMPLES: tuple[dict[str, Any], ...] = (
    {"config": WhisperConfig.tiny()},
    {
        "config": WhisperConfig.tiny(
            d_model=51,
            num_mel_bins=7,
            encoder_attention_heads=3,
            encoder_ffn_dim=37,
            decoder_attention_heads=3,
            decoder_ffn_dim=41,
            max_source_positions=9,
        )
    },
)
_INPUTS = {
    "input_ids": TensorSpec(("num_tokens",), dtype="int64", role=Role.TOKEN_ID, bound="vocab_size"),
    "positions": TensorSpec(("num_tokens",), dtype="int64", role=Role.POSITION, bound="max_position_embeddings"),
    "encoder_hidden_states": TensorSpec(("num_encoder_tokens", "d_model")).optional(),
}
_OUTPUTS = {"hidden_states": TensorSpec(("num_tokens", "d_model"))}
_ENCODED_AT_ONCE = 16
"""Windows: of large-v3 in fp16 the widest activation of so many is 250 MB."""


class WhisperEncoder(Op):
    """layer_norm(layers(gelu(conv2(gelu(conv1(input_features)))) + embed_positions)).

    Shapes:  input_features: [batch, num_mel_bins, num_frames], the log-mel spectrogram of a whole window;
             states: [batch, max_source_positions, d_model], half as many as frames.
    Dtypes:  bf16, fp16 or fp32.
    Returns: states. No argument is written to.
    Errors:  ValueError when the window has another length.
    Source:  Radford et al. 2022 (https://arxiv.org/abs/2212.04356), section 2.2; as WhisperEncoder of transformers.
    """

    spec = OpSpec(
        inputs={"input_features": TensorSpec(("batch", "num_mel_bins", "num_frames"))},
        outputs={"states": TensorSpec(("batch", "max_source_positions", "d_model"))},
        examples=_EXAMPLES,
        example_axes={"batch": (2, 1)},
    )

    def __init__(self, config: WhisperConfig, prefix: str = "") -> None:
        super().__init__()
        self.d_model, self.num_mel_bins = config.d_model, config.num_mel_bins
        self.max_source_positions, self.num_frames = config.max_source_positions, config.num_frames
        self.conv1 = Conv1d(config.num_mel_bins, config.d_model, 3, padding=1)
        self.conv2 = Conv1d(config.d_model, config.d_model, 3, stride=2, padding=1)
        self.activation_fn = GELU()
        self.embed_positions = Embedding(config.max_source_positions, config.d_model)
        self.layers = nn.ModuleList(
            WhisperEncoderLayer(
                config.d_model, config.encoder_attention_heads, config.encoder_ffn_dim, f"{prefix}.layers.{i}"
            )
            for i in range(config.encoder_layers)
        )
        self.layer_norm = LayerNorm(config.d_model)

    def forward(self, input_features: Tensor) -> Tensor:
        if input_features.shape[1:] != (self.num_mel_bins, self.num_frames):
            raise ValueError(
                f"WhisperEncoder takes [batch, {self.num_mel_bins}, {self.num_frames}], a whole window, "
                f"got {tuple(input_features.shape)}."
            )
        x = self.activation_fn(self.conv1(input_features))
        x = self.activation_fn(self.conv2(x)).transpose(1, 2).contiguous()  # sums of layers keep this layout
        x = x + self.embed_positions(torch.arange(self.max_source_positions, device=x.device))
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        states = outputs["states"]
        flops = sum(layer.cost({"x": states}, {}).num_flops for layer in self.layers if isinstance(layer, Op))
        flops += 2 * states.numel() * (2 * self.conv1.weight[0].numel() + self.conv2.weight[0].numel())
        return Cost(super().cost(inputs, outputs).num_bytes, flops)


class WhisperDecoder(Op):
    """layer_norm(layers(embed_tokens(input_ids) + embed_positions(positions), encoder_hidden_states)).

    Shapes:  input_ids, positions: [num_tokens]; encoder_hidden_states: [num_encoder_tokens, d_model], of the sequences
             that begin with this step, one behind another; None when none does; hidden_states: [num_tokens, d_model].
    Dtypes:  ids and positions int64; weights and activations bf16, fp16 or fp32.
    Returns: hidden_states, normed. Writes to the layers' kv_cache; no argument is written to.
    Errors:  those of its parts.
    Source:  Radford et al. 2022 (https://arxiv.org/abs/2212.04356), section 2.2; modules as vLLM's WhisperDecoder.
    """

    spec = OpSpec(_INPUTS, _OUTPUTS, mutates=("kv_cache",), reads_context=True, examples=_EXAMPLES)

    def __init__(self, config: WhisperConfig, prefix: str = "") -> None:
        super().__init__()
        self.d_model, self.vocab_size = config.d_model, config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.d_model, prefix=f"{prefix}.embed_tokens")
        self.embed_positions = Embedding(config.max_target_positions, config.d_model)
        self.layers = nn.ModuleList(
            WhisperDecoderLayer(
                config.d_model, config.decoder_attention_heads, config.decoder_ffn_dim, f"{prefix}.layers.{i}"
            )
            for i in range(config.decoder_layers)
        )
        self.layer_norm = LayerNorm(config.d_model, returns_sum=False)

    def forward(self, input_ids: Tensor, positions: Tensor, encoder_hidden_states: Tensor | None = None) -> Tensor:
        x, residual = self.embed_tokens(input_ids), self.embed_positions(positions)
        for layer in self.layers:
            x, residual = layer(x, encoder_hidden_states, residual)
        return self.layer_norm(x, residual)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return drawn_encoder_tokens(sizes)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """The layers' own, the encoder's states once a layer, and the rows of both tables."""
        hidden_states, states = outputs["hidden_states"], inputs.get("encoder_hidden_states")
        given = {"hidden_states": hidden_states, "encoder_hidden_states": states}
        layers = [layer.cost(given, {}) for layer in self.layers if isinstance(layer, Op)]
        row_bytes = hidden_states.numel() * hidden_states.element_size()
        num_bytes = sum(cost.num_bytes - row_bytes for cost in layers) + 4 * row_bytes
        return Cost(num_bytes, sum(cost.num_flops for cost in layers))


class WhisperForConditionalGeneration(Op):
    """The decoder beside its encoder: encode gives a window's states, forward hidden states, compute_logits logits.

    Shapes:  input_ids, positions: [num_tokens]; encoder_hidden_states: [num_encoder_tokens, d_model], of the sequences
             that begin with this step; hidden_states: [num_tokens, d_model]; logits: [num_rows, vocab_size].
    Dtypes:  ids and positions int64; weights and activations bf16, fp16 or fp32.
    Returns: hidden_states, normed. Writes to the layers' kv_cache; no argument is written to.
    Errors:  those of its parts.
    Source:  Radford et al. 2022 (https://arxiv.org/abs/2212.04356); methods as vLLM's WhisperForConditionalGeneration.
    """

    packed_modules: ClassVar[Mapping[str, Mapping[str, str | int]]] = {
        "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
        "kv_proj": {"k_proj": 0, "v_proj": 1},
    }
    weight_renames: ClassVar[tuple[tuple[str, str], ...]] = ((r"(\d)\.(fc[12])\.", r"\1.mlp.\2."),)
    zero_weights: ClassVar[tuple[str, ...]] = ("k_proj.bias",)

    spec = OpSpec(_INPUTS, _OUTPUTS, mutates=("kv_cache",), reads_context=True, examples=_EXAMPLES)

    def __init__(self, config: WhisperConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.d_model, self.vocab_size = config.d_model, config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.max_encoder_len = config.max_source_positions
        self.model = nn.ModuleDict(
            {"encoder": WhisperEncoder(config, "model.encoder"), "decoder": WhisperDecoder(config, "model.decoder")}
        )
        self.proj_out = ParallelLMHead(config.vocab_size, config.d_model, quant_config=quant_config, prefix="proj_out")
        self._tie_weights()

    @property
    def encoder(self) -> WhisperEncoder:
        return self.model["encoder"]  # type: ignore[return-value]

    @property
    def decoder(self) -> WhisperDecoder:
        return self.model["decoder"]  # type: ignore[return-value]

    def _tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.proj_out.tie_weights(self.decoder.embed_tokens)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WhisperForConditionalGeneration:
        super()._apply(fn, recurse)
        self._tie_weights()  # leaving the meta device makes new parameters, one each
        return self

    def forward(self, input_ids: Tensor, positions: Tensor, encoder_hidden_states: Tensor | None = None) -> Tensor:
        return self.decoder(input_ids, positions, encoder_hidden_states)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.proj_out(hidden_states)

    def encoder_len(self, encoder_input: Any) -> int:
        """States of one window, however much of it is silence."""
        return self.config.max_source_positions

    def encode(self, inputs: Sequence[Tensor]) -> Tensor:
        """[states of all windows, d_model]; inputs: [num_mel_bins, num_frames] each, some of them at once."""
        dtype = self.encoder.conv1.weight.dtype
        found = [
            self.encoder(torch.stack(list(inputs[i : i + _ENCODED_AT_ONCE])).to(dtype)).flatten(0, 1)
            for i in range(0, len(inputs), _ENCODED_AT_ONCE)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def largest_encoder_inputs(self) -> list[Tensor]:
        """What the encoder holds at once at most, by which memory is measured."""
        weight = self.encoder.conv1.weight
        window = torch.zeros(self.config.num_mel_bins, self.config.num_frames, device=weight.device)
        return [window] * _ENCODED_AT_ONCE

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return drawn_encoder_tokens(sizes)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return self.decoder.cost(inputs, outputs)
