"""Stable Diffusion XL: a text in, a picture out, everything between as one tree of modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.euler import EulerScaleModelInput, EulerStep
from fastkernels.tasks.baseline.L4.autoencoder_kl import AutoencoderKL
from fastkernels.tasks.baseline.L4.clip_text import CLIPTextModel, CLIPTextModelWithProjection
from fastkernels.tasks.baseline.L4.unet2d_condition import NUM_TIME_IDS, UNet2DConditionModel
from fastkernels.tasks.configs.sdxl import SDXLConfig

_LATENTS = TensorSpec(("batch", "latent_channels", "height", "width"))
_LEVEL = TensorSpec(("batch",), dtype="float32", role=Role.COUPLED)


class StableDiffusionXLPipeline(Op):
    """One step of denoising: prev = EulerStep(latents, UNet(latents, with and without the text)).

    Text encoders and the image's decoder are modules of it, which a pipeline calls before the first step and after
    the last: text_encoder, text_encoder_2, vae.

    Shapes:  latents, prev: [batch, latent_channels, height, width]; prompt_embeds: [batch, num_conditions, num_tokens,
             cross_attention_dim], without the text first, then with it, or with it alone; pooled_embeds: [batch,
             num_conditions, pooled_size]; time_ids: [batch, num_conditions, 6]; timestep, sigma, next_sigma,
             guidance_scale: [batch].
    Dtypes:  latents and embeddings bf16, fp16 or fp32, the others fp32; norms, softmax and the step in fp32.
    Returns: prev. No argument is written to.
    Errors:  those of its parts.
    Source:  Podell et al. 2023 (https://arxiv.org/abs/2307.01952); modules as those of diffusers'
             StableDiffusionXLPipeline.
    """

    packed_modules: ClassVar[Mapping[str, Mapping[str, str | int]]] = {
        "to_qkv": {"to_q": "q", "to_k": "k", "to_v": "v"},
        "to_kv": {"to_k": 0, "to_v": 1},
        "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
    }
    weight_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(text_encoder(_2)?)\.text_model\.", r"\1."),
        (r"\.to_out\.0\.", ".to_out."),
        (r"^vae\.(encoder|quant_conv)\..*", "vae.encoder"),
        (r"(^vae\..*\.attentions\.0)\.query\.", r"\1.to_q."),
        (r"(^vae\..*\.attentions\.0)\.key\.", r"\1.to_k."),
        (r"(^vae\..*\.attentions\.0)\.value\.", r"\1.to_v."),
        (r"(^vae\..*\.attentions\.0)\.proj_attn\.", r"\1.to_out."),
    )
    ignored_weights: ClassVar[tuple[str, ...]] = ("vae.encoder", "position_ids")

    spec = OpSpec(
        inputs={
            "latents": _LATENTS,
            "prompt_embeds": TensorSpec(("batch", "num_conditions", "num_tokens", "cross_attention_dim")),
            "pooled_embeds": TensorSpec(("batch", "num_conditions", "pooled_size")),
            "time_ids": TensorSpec(("batch", "num_conditions", "num_time_ids"), dtype="float32", role=Role.COUPLED),
            "timestep": _LEVEL,
            "sigma": _LEVEL,
            "next_sigma": _LEVEL,
            "guidance_scale": _LEVEL,
        },
        outputs={"prev": _LATENTS},
        examples=({"config": SDXLConfig.tiny()},),
        example_axes={
            **{"batch": (2, 1), "num_conditions": (2, 1), "num_tokens": (9, 5)},
            **{"height": (8, 5), "width": (16, 13)},
        },
    )

    def __init__(self, config: SDXLConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.latent_channels, self.num_time_ids = config.vae.latent_channels, NUM_TIME_IDS
        self.cross_attention_dim, self.pooled_size = (
            config.unet.cross_attention_dim,
            config.text_encoder_2.projection_dim,
        )
        self.text_encoder = CLIPTextModel(config.text_encoder, f"{prefix}text_encoder")
        self.text_encoder_2 = CLIPTextModelWithProjection(config.text_encoder_2, f"{prefix}text_encoder_2")
        self.unet = UNet2DConditionModel(config.unet, f"{prefix}unet")
        self.vae = AutoencoderKL(config.vae, f"{prefix}vae")
        self.scale_model_input = EulerScaleModelInput()
        self.step = EulerStep(config.scheduler.prediction_type)
        weight = self.unet.conv_in.weight
        if weight.dtype is torch.float16 and config.vae.force_upcast:
            self.vae.float()
        if weight.is_cuda:  # the layout in which the convolutions are fast
            for part in (self.unet, self.vae):
                part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self,
        latents: Tensor,
        prompt_embeds: Tensor,
        pooled_embeds: Tensor,
        time_ids: Tensor,
        timestep: Tensor,
        sigma: Tensor,
        next_sigma: Tensor,
        guidance_scale: Tensor,
    ) -> Tensor:
        num_conditions = prompt_embeds.shape[1]
        sample = self.scale_model_input(latents, sigma)
        noise = self.unet(
            sample.repeat_interleave(num_conditions, dim=0),
            timestep.repeat_interleave(num_conditions),
            prompt_embeds.flatten(0, 1),
            pooled_embeds.flatten(0, 1),
            time_ids.flatten(0, 1),
        )
        return self.step(latents, noise.unflatten(0, (-1, num_conditions)), sigma, next_sigma, guidance_scale)

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        """Small ones: a roundoff of a timestep of 999 is a turn of the fastest wave, and a guidance scale of 7 makes
        seven of each."""
        shape = (sizes["batch"], sizes["num_conditions"], NUM_TIME_IDS)
        share = torch.rand((4, sizes["batch"]), generator=generator)
        return {
            "timestep": 2 * share[0],
            "time_ids": 2 * torch.rand(shape, generator=generator),
            "sigma": 0.2 + share[1],
            "next_sigma": (0.2 + share[1]) * 0.6 * share[2],
            "guidance_scale": 1 + 0.5 * share[3],
        }

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        latents, embeds = inputs["latents"], inputs["prompt_embeds"].flatten(0, 1)
        shape = (len(embeds), *latents.shape[1:])
        sample = latents.new_empty(shape, device="meta")
        unet = self.unet.cost({"sample": sample, "encoder_hidden_states": embeds}, {})
        moved = [*(t for t in inputs.values() if isinstance(t, Tensor)), *outputs.values(), *self.unet.parameters()]
        return Cost(sum(t.numel() * t.element_size() for t in moved), unet.num_flops)
