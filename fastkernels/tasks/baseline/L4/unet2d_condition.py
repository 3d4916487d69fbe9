"""The denoiser of Stable Diffusion XL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.conv2d import Conv2d
from fastkernels.tasks.baseline.L1.group_norm import GroupNorm
from fastkernels.tasks.baseline.L1.sinusoidal_embed import SinusoidalEmbed
from fastkernels.tasks.baseline.L2.timestep_embedding import TimestepEmbedding
from fastkernels.tasks.baseline.L3.unet_blocks import (
    CrossAttnDownBlock2D,
    CrossAttnUpBlock2D,
    DownBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)
from fastkernels.tasks.configs.sdxl import UNetConfig

_LATENTS = TensorSpec(("batch", "in_channels", "height", "width"))
NUM_TIME_IDS = 6
"""Height and width of the original, of the crop's corner, and of what is wanted."""


class UNet2DConditionModel(Op):
    """The noise in latents at a timestep, given a text and the sizes of the picture it is the caption of.

    Shapes:  sample: [batch, in_channels, height, width]; timestep: [batch]; encoder_hidden_states: [batch, num_tokens,
             cross_attention_dim]; text_embeds: [batch, text_embeds_size]; time_ids: [batch, 6]; noise: as sample with
             out_channels.
    Dtypes:  bf16, fp16 or fp32; timestep and time_ids fp32; norms, activations and softmax in fp32.
    Returns: noise. No argument is written to.
    Errors:  those of its parts.
    Source:  Podell et al. 2023 (https://arxiv.org/abs/2307.01952); as diffusers' UNet2DConditionModel with
             addition_embed_type "text_time", its added_cond_kwargs as arguments.
    """

    spec = OpSpec(
        inputs={
            "sample": _LATENTS,
            "timestep": TensorSpec(("batch",), dtype="float32"),
            "encoder_hidden_states": TensorSpec(("batch", "num_tokens", "cross_attention_dim")),
            "text_embeds": TensorSpec(("batch", "text_embeds_size")),
            "time_ids": TensorSpec(("batch", "num_time_ids"), dtype="float32"),
        },
        outputs={"noise": TensorSpec(("batch", "out_channels", "height", "width"))},
        examples=({"config": UNetConfig.tiny()},),
        example_axes={"batch": (2, 1), "height": (8, 5), "width": (16, 13), "num_tokens": (9, 5)},
    )

    def __init__(self, config: UNetConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.in_channels, self.out_channels = config.in_channels, config.out_channels
        self.cross_attention_dim, self.num_time_ids = config.cross_attention_dim, NUM_TIME_IDS
        added_size = config.projection_class_embeddings_input_dim
        self.text_embeds_size = added_size - NUM_TIME_IDS * config.addition_time_embed_dim
        channels, temb = config.block_out_channels, config.time_embed_dim
        waves = (config.flip_sin_to_cos, float(config.freq_shift))
        self.conv_in = Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_proj = SinusoidalEmbed(channels[0], *waves)
        self.time_embedding = TimestepEmbedding(channels[0], temb)
        self.add_time_proj = SinusoidalEmbed(config.addition_time_embed_dim, *waves)
        self.add_embedding = TimestepEmbedding(added_size, temb)
        self.down_blocks = nn.ModuleList(self._down_block(i, prefix) for i in range(len(channels)))
        self.mid_block = UNetMidBlock2DCrossAttn(
            channels[-1], temb, config.transformer_layers[-1], config.num_heads[-1], config.cross_attention_dim,
            config.norm_num_groups, config.norm_eps, f"{prefix}.mid_block",
        )  # fmt: skip
        self.up_blocks = nn.ModuleList(self._up_block(i, prefix) for i in reversed(range(len(channels))))
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[0], config.norm_eps, activation="silu")
        self.conv_out = Conv2d(channels[0], config.out_channels, 3, padding=1)

    @property
    def _norm(self) -> tuple[int, float]:
        return self.config.norm_num_groups, self.config.norm_eps

    def _attention(self, level: int) -> tuple[int, int, int]:
        config = self.config
        return config.transformer_layers[level], config.num_heads[level], config.cross_attention_dim

    def _down_block(self, level: int, prefix: str) -> DownBlock2D:
        config = self.config
        channels = (config.block_out_channels[max(level - 1, 0)], config.block_out_channels[level])
        sizes = (*channels, config.time_embed_dim)
        norm, samples = self._norm, level < len(config.block_out_channels) - 1
        if not config.transformer_layers[level]:
            return DownBlock2D(*sizes, *norm, add_downsample=samples)
        prefix = f"{prefix}.down_blocks.{level}"
        return CrossAttnDownBlock2D(*sizes, *self._attention(level), *norm, add_downsample=samples, prefix=prefix)

    def _up_block(self, level: int, prefix: str) -> UpBlock2D:
        config = self.config
        sizes, last = config.block_out_channels, len(config.block_out_channels) - 1
        channels = (sizes[max(level - 1, 0)], sizes[min(level + 1, last)], sizes[level])
        norm, samples = self._norm, level > 0
        if not config.transformer_layers[level]:
            return UpBlock2D(*channels, config.time_embed_dim, *norm, add_upsample=samples)
        prefix = f"{prefix}.up_blocks.{last - level}"
        attention = self._attention(level)
        return CrossAttnUpBlock2D(
            *channels, config.time_embed_dim, *attention, *norm, add_upsample=samples, prefix=prefix
        )

    def embed(self, sample: Tensor, timestep: Tensor, text_embeds: Tensor, time_ids: Tensor) -> Tensor:
        """What every ResNet block is told: [batch, time_embed_dim]."""
        sizes = self.add_time_proj(time_ids.flatten()).unflatten(0, time_ids.shape).flatten(1)
        added = torch.cat([text_embeds, sizes.to(text_embeds.dtype)], dim=-1)
        return self.time_embedding(self.time_proj(timestep).to(sample.dtype)) + self.add_embedding(added)

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, text_embeds: Tensor, time_ids: Tensor
    ) -> Tensor:
        temb = self.embed(sample, timestep, text_embeds, time_ids)
        hidden_states = self.conv_in(sample)
        skips = [hidden_states]
        for block in self.down_blocks:
            text = (encoder_hidden_states,) if isinstance(block, CrossAttnDownBlock2D) else ()
            states = [state for state in block(hidden_states, temb, *text) if state is not None]
            skips += states
            hidden_states = states[-1]
        hidden_states = self.mid_block(hidden_states, temb, encoder_hidden_states)
        for block in self.up_blocks:
            text = (encoder_hidden_states,) if isinstance(block, CrossAttnUpBlock2D) else ()
            given = (skips.pop(), skips.pop(), skips.pop())
            size = skips[-1].shape[2:] if skips else hidden_states.shape[2:]
            hidden_states = block(hidden_states, *given, temb, *size, *text)
        return self.conv_out(self.conv_norm_out(hidden_states))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """Of every block at its own sides, which halve on the way down."""
        sample, encoded = inputs["sample"], inputs["encoder_hidden_states"]
        num, (height, width) = len(sample), sample.shape[2:]
        last, flops = len(self.down_blocks) - 1, 0
        for level, channels in enumerate(self.config.block_out_channels):
            x = sample.new_empty((num, channels, height, width), device="meta")
            given = {"hidden_states": x, "skip_0": x, "encoder_hidden_states": encoded}
            blocks = [self.down_blocks[level], self.up_blocks[last - level]]
            blocks += [self.mid_block] if level == last else []
            flops += sum(block.cost(given, {"state_0": x}).num_flops for block in blocks)  # type: ignore[operator]
            height, width = (height + 1) // 2, (width + 1) // 2
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
