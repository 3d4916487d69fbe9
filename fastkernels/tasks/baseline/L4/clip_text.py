"""CLIP's text tower, as diffusion models are conditioned on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.op import Op, unread_bytes
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L1.linear import Linear
from fastkernels.tasks.baseline.L2.clip_embeddings import CLIPTextEmbeddings
from fastkernels.tasks.baseline.L3.clip_encoder_layer import CLIPEncoderLayer
from fastkernels.tasks.configs.sdxl import CLIPTextConfig

_OLD_EOS = 2
"""An eos_token_id of older configurations, which is no token's: there the end is the largest id of the text."""


class CLIPEncoder(nn.Module):
    """The layers, by their published names."""

    def __init__(self, config: CLIPTextConfig, prefix: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CLIPEncoderLayer(config, is_causal=True, prefix=f"{prefix}.layers.{i}")
            for i in range(config.num_hidden_layers)
        )


class CLIPTextModel(Op):
    """The states before the last layer, and the last layer's at the text's end, normed.

    Shapes:  input_ids: [batch, num_tokens]; hidden_states: [batch, num_tokens, hidden_size]; pooled: [batch,
             pooled_size].
    Dtypes:  input_ids int64; states bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: (hidden_states, pooled). No argument is written to.
    Errors:  those of its parts.
    Source:  Radford et al. 2021 (https://arxiv.org/abs/2103.00020); as hidden_states[-2] and pooler_output of
             transformers' CLIPTextModel.
    """

    spec = OpSpec(
        inputs={
            "input_ids": TensorSpec(("batch", "num_tokens"), dtype="int64", role=Role.TOKEN_ID, bound="vocab_size")
        },
        outputs={
            "hidden_states": TensorSpec(("batch", "num_tokens", "hidden_size")),
            "pooled": TensorSpec(("batch", "pooled_size")),
        },
        examples=(
            {"config": CLIPTextConfig.tiny(projection_dim=64)},
            {"config": CLIPTextConfig.tiny(projection_dim=51, hidden_size=45, num_attention_heads=3, eos_token_id=7)},
        ),
        example_axes={"batch": (16, 13), "num_tokens": (11, 6)},
    )

    def __init__(self, config: CLIPTextConfig, prefix: str = "") -> None:
        super().__init__()
        self.vocab_size, self.hidden_size = config.vocab_size, config.hidden_size
        self.pooled_size, self.eos_token_id = config.hidden_size, config.eos_token_id
        self.embeddings = CLIPTextEmbeddings(config.vocab_size, config.hidden_size, config.max_position_embeddings)
        self.encoder = CLIPEncoder(config, f"{prefix}.encoder")
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        before = hidden_states = self.embeddings(input_ids)
        for layer in self.encoder.layers:
            before, hidden_states = hidden_states, layer(hidden_states)
        is_end = input_ids == self.eos_token_id
        end = input_ids.argmax(-1) if self.eos_token_id == _OLD_EOS else is_end.int().argmax(-1)
        texts = torch.arange(len(input_ids), device=input_ids.device)
        return before, self.final_layer_norm(hidden_states[texts, end])

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        layers = self.encoder.layers
        flops = sum(layer.cost(outputs, {}).num_flops for layer in layers)  # type: ignore[operator]
        unread = unread_bytes(self.embeddings.token_embedding.weight, inputs["input_ids"])
        return Cost(super().cost(inputs, outputs).num_bytes - unread, flops)


class CLIPTextModelWithProjection(CLIPTextModel):
    """As CLIPTextModel, the pooled state projected.

    Shapes:  as CLIPTextModel; pooled: [batch, pooled_size].
    Dtypes:  input_ids int64; states bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: (hidden_states, pooled). No argument is written to.
    Errors:  those of its parts.
    Source:  Radford et al. 2021 (https://arxiv.org/abs/2103.00020); as hidden_states[-2] and text_embeds of
             transformers' CLIPTextModelWithProjection.
    """

    spec = CLIPTextModel.spec

    def __init__(self, config: CLIPTextConfig, prefix: str = "") -> None:
        super().__init__(config, prefix)
        self.pooled_size = config.projection_dim
        self.text_projection = Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden_states, pooled = super().forward(input_ids)
        return hidden_states, self.text_projection(pooled)
