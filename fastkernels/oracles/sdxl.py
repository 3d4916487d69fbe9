"""Stable Diffusion XL by diffusers."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn

from fastkernels.dtypes import default_dtype
from fastkernels.oracles.oracle import Answer, Level, Load, Oracle, Request, With, compiled, first_tensor, randomize
from fastkernels.pipelines.clip_tokenizer import clip_tokenizer

_TEXT: dict[str, Any] = {
    "vocab_size": 514,
    "hidden_size": 32,
    "intermediate_size": 56,
    "projection_dim": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "eos_token_id": 2,
    "bos_token_id": 0,
    "pad_token_id": 1,
}
_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 24, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 3, 4),
    "cross_attention_dim": 56,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 56,
    "norm_num_groups": 8,
}
_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.13025,
    "sample_size": 64,
}
_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
_SIZES: dict[str, Any] = {
    "text_encoder": {**_TEXT, "hidden_act": "quick_gelu"},
    "text_encoder_2": {**_TEXT, "hidden_size": 24, "num_attention_heads": 3, "hidden_act": "gelu"},
    "unet": _UNET,
    "vae": _VAE,
    "scheduler": _SCHEDULE,
    "force_zeros_for_empty_prompt": True,
}


def _last_state(output: Any) -> Tensor:
    """Of a block on the way down: what goes on."""
    return [state for state in output if state is not None][-1]


def _wanted_text(output: Any) -> Tensor:
    """Ours encodes what is not wanted beside it, first."""
    return first_tensor(output)[-1:]


def _same(path: str) -> Level:
    return Level(path, path)


class _Pipe(nn.Module):
    """diffusers' pipeline as a tree of modules."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.pipe = pipe
        self.unet, self.vae = pipe.unet, pipe.vae
        self.text_encoder, self.text_encoder_2 = pipe.text_encoder, pipe.text_encoder_2


class SDXLOracle(Oracle):
    requires = ("diffusers", "transformers")
    preset = "stable-diffusion-xl-base-1.0"
    loads = (Load("28 steps", (1,), is_whole=True), Load("50 steps", (1,), is_whole=True), Load("one step", (1, 4)))
    levels = (
        *(
            Level(f"text_encoder.{part}", f"text_encoder.{part}", _wanted_text)
            for part in ("embeddings", *(f"encoder.layers.{{i}}{inner}" for inner in (".self_attn", ".mlp", "")))
        ),
        Level("text_encoder", "text_encoder", _wanted_text, lambda output: output.hidden_states[-2]),
        Level("text_encoder_2.encoder.layers.{i}", "text_encoder_2.text_model.encoder.layers.{i}", _wanted_text),
        Level("text_encoder_2", "text_encoder_2", lambda output: output[1][-1:], lambda output: output.text_embeds),
        _same("unet.time_embedding"),
        _same("unet.add_embedding"),
        _same("unet.down_blocks.{i}.resnets.{i}"),
        _same("unet.down_blocks.{i}.attentions.{i}.transformer_blocks.{i}.attn1"),
        _same("unet.down_blocks.{i}.attentions.{i}.transformer_blocks.{i}.attn2"),
        _same("unet.down_blocks.{i}.attentions.{i}.transformer_blocks.{i}.ff.net.0"),
        _same("unet.down_blocks.{i}.attentions.{i}.transformer_blocks.{i}.ff"),
        _same("unet.down_blocks.{i}.attentions.{i}.transformer_blocks.{i}"),
        _same("unet.down_blocks.{i}.attentions.{i}"),
        _same("unet.down_blocks.{i}.downsamplers.{i}"),
        Level("unet.down_blocks.{i}", "unet.down_blocks.{i}", our_output=_last_state),
        _same("unet.mid_block"),
        _same("unet.up_blocks.{i}.upsamplers.{i}"),
        _same("unet.up_blocks.{i}"),
        _same("unet"),
        _same("vae.decoder.mid_block"),
        _same("vae.decoder.up_blocks.{i}"),
        Level("vae", "vae.decoder"),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        two_levels = {
            "block_out_channels": (8, 12),
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "transformer_layers_per_block": 1,
            "attention_head_dim": (2, 3),
            "norm_num_groups": 4,
        }
        return {
            "base": _SIZES,
            "velocity": {  # as other models of the family: another end token, schedule and prediction
                **_SIZES,
                "text_encoder": {**_SIZES["text_encoder"], "eos_token_id": 513},
                "text_encoder_2": {**_SIZES["text_encoder_2"], "eos_token_id": 513, "num_hidden_layers": 1},
                "unet": {**_UNET, **two_levels},
                "vae": {**_VAE, "block_out_channels": (8, 8, 12, 12), "layers_per_block": 2},
                "scheduler": {**_SCHEDULE, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
                "force_zeros_for_empty_prompt": False,
            },
        }

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        sizes = {n: _known(part) if isinstance(part, Mapping) else part for n, part in sizes.items()}
        text, text_2 = (transformers.CLIPTextConfig(**sizes[name]) for name in ("text_encoder", "text_encoder_2"))
        with default_dtype(torch.float32), torch.device("cpu"):  # its schedules go through NumPy
            scheduler = diffusers.EulerDiscreteScheduler.from_config(sizes["scheduler"])
        pipe: Any = diffusers.StableDiffusionXLPipeline(
            vae=diffusers.AutoencoderKL.from_config(sizes["vae"]),
            text_encoder=transformers.CLIPTextModel(text),
            text_encoder_2=transformers.CLIPTextModelWithProjection(text_2),
            tokenizer=clip_tokenizer(None, "", 77),
            tokenizer_2=clip_tokenizer(None, "", 77, pad_token="!"),
            unet=diffusers.UNet2DConditionModel.from_config(sizes["unet"]),
            scheduler=scheduler,
            force_zeros_for_empty_prompt=sizes["force_zeros_for_empty_prompt"],
            add_watermarker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return randomize(_Pipe(pipe), seed)

    def save(self, model: Any, folder: Path) -> None:
        model.pipe.save_pretrained(folder)

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """Pictures of several sizes, with and without guidance; the first and the last share a batch."""
        factor = 2 ** (len(sizes["vae"]["block_out_channels"]) - 1)
        noise = torch.randn((4, 9, 5), generator=torch.Generator().manual_seed(8))
        shapes = [{"height": factor * height, "width": factor * width} for height, width in ((8, 8), (9, 5), (7, 13))]
        return [
            {"prompt": "a photograph of an astronaut", "steps": 3, "guidance_scale": 5.0, "seed": 1, **shapes[0]},
            {
                **{
                    "prompt": "",
                    "negative_prompt": "blurry, grey",
                    "steps": 2,
                    "guidance_scale": 7.5,
                    "latents": noise,
                },
                **{"original_size": [512, 300], "crops_coords_top_left": [8, 40], **shapes[1]},
            },
            {"prompt": "two " * 60, "prompt_2": "cats", "steps": 2, "guidance_scale": 1.0, "seed": 3, **shapes[2]},
            {"prompt": "ein Haus am See, 1890", "steps": 5, "guidance_scale": 2.0, "seed": 4, **shapes[0]},
        ]

    def answer(self, model: Any, request: Request) -> Answer:
        given = {name: value for name, value in request.items() if name not in ("steps", "seed", "latents")}
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        if "seed" in request:
            given["generator"] = torch.Generator().manual_seed(request["seed"])
        else:
            given["latents"] = request["latents"][None]
        last: dict[str, Tensor] = {}

        def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            last.update(tensors)
            return {}

        given |= {"num_inference_steps": request["steps"], "callback_on_step_end": keep, "output_type": "pt"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its schedule makes NumPy arrays of tensors
            image = model.pipe(**given).images[0]
        return {"image": image, "latents": last["latents"][0]}

    def save_config(self, model: Any, folder: Path) -> Path:
        pipe, path = model.pipe, folder / "config.json"
        body: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline"}
        body["force_zeros_for_empty_prompt"] = pipe.config.force_zeros_for_empty_prompt
        body |= {name: dict(getattr(pipe, name).config) for name in ("unet", "vae", "scheduler")}
        body |= {name: getattr(pipe, name).config.to_dict() for name in ("text_encoder", "text_encoder_2")}
        path.write_text(json.dumps(body))
        return path

    def load(self, sizes: Mapping[str, Any], num: int, name: str) -> list[Request]:
        """Pictures of the model's own size (1024 x 1024 as published), with guidance."""
        side, channels = sizes["unet"]["sample_size"], sizes["unet"].get("in_channels", 4)
        steps = 2 if side < 64 or name == "one step" else int(name.split()[0])
        scenes = ("a lighthouse in a storm", "two cats asleep on a red sofa", "the skyline of a city, in ink")
        generator = torch.Generator().manual_seed(num)
        noise = torch.randn((num, channels, side, side), generator=generator)
        return [
            {"prompt": scenes[i % len(scenes)], "steps": steps, "guidance_scale": 5.0, "latents": noise[i]}
            for i in range(num)
        ]

    def batch(self, model: Any, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        """The first step's: sigmas and timesteps stay in float32."""
        some = model.unet.conv_in.weight
        batch = {name: torch.stack([state[name] for state in states]).to(some.device) for name in states[0]}
        rounded = ("latents", "prompt_embeds", "pooled_embeds", "time_ids")
        return batch | {name: batch[name].to(some.dtype) for name in rounded}

    def forward(self, model: Any, batch: Mapping[str, Any]) -> Answer:
        """One step of Euler's method with guidance, as the pipeline and its scheduler do it, and as they call the UNet:
        what was compiled for them is used again."""
        latents, num = batch["latents"], batch["prompt_embeds"].shape[1]
        sigma, following = (batch["sigmas"][:, i, None, None, None] for i in (0, 1))
        sample = (latents / (sigma**2 + 1) ** 0.5).to(latents.dtype)
        noise = model.unet(
            sample.repeat_interleave(num, dim=0),
            batch["timesteps"][0, 0],
            encoder_hidden_states=batch["prompt_embeds"].flatten(0, 1),
            timestep_cond=None,
            cross_attention_kwargs=None,
            added_cond_kwargs={
                "text_embeds": batch["pooled_embeds"].flatten(0, 1),
                "time_ids": batch["time_ids"].flatten(0, 1),
            },
            return_dict=False,
        )[0].unflatten(0, (-1, num))
        scale = batch["guidance_scale"].to(noise.dtype)[:, None, None, None]
        noise = noise[:, 0] + scale * (noise[:, -1] - noise[:, 0]) if num > 1 else noise[:, 0]
        return {"latents": (latents + (following - sigma) * noise).to(latents.dtype)}

    def run(self, model: Any, requests: Sequence[Request]) -> Answer:
        """The pipeline to its latents, and what it does with them: it would cast the decoder there and back."""
        some, vae = model.unet.conv_in.weight, model.vae
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            latents = model.pipe(
                [request["prompt"] for request in requests],
                num_inference_steps=requests[0]["steps"],
                guidance_scale=requests[0]["guidance_scale"],
                latents=torch.stack([request["latents"] for request in requests]).to(some.device, some.dtype),
                output_type="latent",
            ).images
        image = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        image = model.pipe.image_processor.postprocess(image, output_type="pt")
        return {"image": image.cpu(), "latents": latents.cpu()}

    def modes(self, model: nn.Module, compile_mode: str | None) -> dict[str, Callable[[], Any]]:
        parts: Any = model
        if parts.vae.dtype is torch.float16 and parts.vae.config.force_upcast:
            parts.vae.float()
        for part in (parts.unet, parts.vae):
            part.to(memory_format=torch.channels_last)  # as diffusers advises for convolutions
        return super().modes(model, compile_mode)

    def compiled(self, model: Any, mode: str) -> Any:
        """The UNet and the decoder of pictures, as diffusers advises."""
        vae = copy.copy(model.vae)
        vae._modules = {**vae._modules, "decoder": compiled(vae.decoder, mode)}
        parts = {**model.pipe.components, "vae": vae, "unet": compiled(model.unet, mode)}
        settings = {"force_zeros_for_empty_prompt": model.pipe.config.force_zeros_for_empty_prompt}
        pipe: Any = diffusers.StableDiffusionXLPipeline(**parts, **settings, add_watermarker=False)
        pipe.set_progress_bar_config(disable=True)
        return With(model, unet=parts["unet"], vae=vae, pipe=pipe)

    def measured_against(self, model: nn.Module) -> str:
        return "StableDiffusionXLPipeline of diffusers, UNet and VAE in channels_last, the VAE kept in its own dtype"


def _known(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in ("_class_name", "architectures", "model_type")}


ORACLE = SDXLOracle()
