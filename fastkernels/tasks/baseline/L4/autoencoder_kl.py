"""The decoder of a variational autoencoder: latents in, image out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.conv2d import Conv2d
from fastkernels.tasks.baseline.L1.group_norm import GroupNorm
from fastkernels.tasks.baseline.L3.vae_blocks import UNetMidBlock2D, UpDecoderBlock2D
from fastkernels.tasks.configs.sdxl import AutoencoderConfig


class Decoder(nn.Module):
    """The blocks, by their published names; AutoencoderKL.forward runs them."""

    def __init__(self, config: AutoencoderConfig, prefix: str = "") -> None:
        super().__init__()
        channels, groups = tuple(reversed(config.block_out_channels)), config.norm_num_groups
        tf32, last = config.allow_tf32, len(config.block_out_channels) - 1
        self.conv_in = Conv2d(config.latent_channels, channels[0], 3, padding=1, allow_tf32=tf32)
        self.mid_block = UNetMidBlock2D(channels[0], groups, tf32, f"{prefix}.mid_block")
        self.up_blocks = nn.ModuleList(
            UpDecoderBlock2D(before, after, config.layers_per_block + 1, groups, i < last, tf32)
            for i, (before, after) in enumerate(zip((channels[0], *channels), channels, strict=False))
        )
        self.conv_norm_out = GroupNorm(groups, channels[-1], 1e-6, activation="silu")
        self.conv_out = Conv2d(channels[-1], config.out_channels, 3, padding=1, allow_tf32=tf32)


class AutoencoderKL(Op):
    """image = decoder(post_quant_conv(z)).

    Shapes:  z: [batch, latent_channels, height, width]; image: [batch, out_channels, scale * height, scale * width].
    Dtypes:  bf16, fp16 or fp32; norms, activations and softmax in fp32; config.allow_tf32 as Conv2d has it.
    Returns: image, about [-1, 1]. No argument is written to.
    Errors:  those of its parts.
    Source:  Rombach et al. 2021 (https://arxiv.org/abs/2112.10752); as decode of diffusers' AutoencoderKL.
    """

    spec = OpSpec(
        inputs={"z": TensorSpec(("batch", "latent_channels", "height", "width"))},
        outputs={"image": TensorSpec(("batch", "out_channels", "image_height", "image_width"))},
        examples=(
            {"config": AutoencoderConfig.tiny()},
            {"config": AutoencoderConfig.tiny(block_out_channels=(18, 27), norm_num_groups=3)},
        ),
        example_axes={"batch": (2, 1), "height": (3, 4), "width": (6, 5)},
    )

    def __init__(self, config: AutoencoderConfig, prefix: str = "") -> None:
        super().__init__()
        self.latent_channels, self.out_channels = config.latent_channels, config.out_channels
        self.scale = config.scale_factor
        self.post_quant_conv = Conv2d(config.latent_channels, config.latent_channels, 1, allow_tf32=config.allow_tf32)
        self.decoder = Decoder(config, f"{prefix}.decoder")

    def forward(self, z: Tensor) -> Tensor:
        decoder = self.decoder
        hidden_states = decoder.mid_block(decoder.conv_in(self.post_quant_conv(z)))
        for block in decoder.up_blocks:
            hidden_states = block(hidden_states)
        return decoder.conv_out(decoder.conv_norm_out(hidden_states))

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {f"image_{side}": self.scale * sizes[side] for side in ("height", "width")}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """Every convolution at the sides of its own block; the attention's part is small beside them."""
        z = inputs["z"]
        pixels, flops = z.numel() // z.shape[1], 0
        low = [self.post_quant_conv, self.decoder.conv_in, self.decoder.mid_block]
        for part in (*low, *self.decoder.up_blocks, self.decoder.conv_out):
            is_block = isinstance(part, UpDecoderBlock2D)
            resnets = part.resnets if isinstance(part, UpDecoderBlock2D) else part
            flops += 2 * pixels * sum(p.numel() for p in resnets.parameters() if p.dim() >= 2)
            if is_block and part.upsamplers:  # type: ignore[union-attr]
                pixels *= 4
                flops += 2 * pixels * sum(p.numel() for p in part.upsamplers.parameters() if p.dim() == 4)  # type: ignore[union-attr]
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
