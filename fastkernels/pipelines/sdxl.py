"""A picture of a text by Stable Diffusion XL."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.errors import UsageError
from fastkernels.pipelines.clip_tokenizer import clip_tokenizer
from fastkernels.pipelines.euler_schedule import euler_schedule
from fastkernels.pipelines.inputs import as_floats
from fastkernels.pipelines.result import ImageResult
from fastkernels.tasks.configs.sdxl import SDXLConfig

_MOST_PIXELS = 16 << 20
_LARGEST_SIZE = 1 << 24
"""Of the sizes that the model is told: up to here float32 tells whole numbers apart."""

_STEPS, _GUIDANCE = 50, 5.0
_TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
_SIZES = ("original_size", "crops_coords_top_left", "target_size")
_KNOWN = {*_TEXTS, *_SIZES, "steps", "guidance_scale", "height", "width", "seed", "latents"}


class SDXLPipeline:
    """{"prompt": ...} -> image [3, height, width] in [0, 1], latents, seed.

    steps, guidance_scale (up to 1: none), height, width (multiples of 8), seed, negative_prompt, and prompt_2 and
    negative_prompt_2 for the second text encoder, original_size, crops_coords_top_left, target_size, latents (noise of
    deviation 1): as diffusers' StableDiffusionXLPipeline, steps being num_inference_steps.
    """

    media_type = "image/png"
    texts = _TEXTS

    def __init__(self, model: nn.Module, config: SDXLConfig, checkpoint: Path | None) -> None:
        self.model: Any = model
        self.config = config
        lengths = [c.max_position_embeddings for c in (config.text_encoder, config.text_encoder_2)]
        self.tokenizers = (
            clip_tokenizer(checkpoint, "tokenizer", lengths[0]),
            clip_tokenizer(checkpoint, "tokenizer_2", lengths[1], pad_token="!"),
        )

    def num_steps(self, inputs: Mapping[str, Any]) -> int:
        """Errors: UsageError when it is no number, or more than the model was trained with."""
        steps, most = inputs.get("steps", _STEPS), self.config.scheduler.num_train_timesteps
        if not isinstance(steps, int) or isinstance(steps, bool) or steps > most:
            raise UsageError(f"steps is {steps!r}; it is a whole number, at most {most}.")
        return steps

    @torch.inference_mode()
    def prepare(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Errors: UsageError names what of a request cannot be used."""
        self._check(inputs)
        weight = self.model.unet.conv_in.weight
        height, width = self._size(inputs)
        prompts, negatives = self._texts(inputs)
        guidance = _number(inputs, "guidance_scale", _GUIDANCE)
        seed = inputs.get("seed")
        seed = secrets.randbits(31) if seed is None else seed
        timesteps, sigmas, deviation = euler_schedule(self.config.scheduler, self.num_steps(inputs))
        most = self.config.scheduler.num_train_timesteps
        state = {
            "latents": (self._noise(inputs, height, width, seed) * deviation).to(weight.dtype),
            "time_ids": self._time_ids(inputs, height, width).expand(2 if guidance > 1 else 1, -1),
            "timesteps": nn.functional.pad(timesteps, (0, most - len(timesteps))),
            "sigmas": nn.functional.pad(sigmas, (0, most + 1 - len(sigmas))),
            "guidance_scale": torch.tensor(guidance),
            "seed": torch.tensor(seed),
        }
        state = {name: t.to(weight.device) for name, t in state.items()}
        embeds, pooled = self._encode(prompts, negatives if guidance > 1 else None)
        if guidance > 1 and negatives is None:
            embeds, pooled = (torch.cat([torch.zeros_like(t), t]) for t in (embeds, pooled))
        return {**state, "prompt_embeds": embeds, "pooled_embeds": pooled}

    def advance(self, batch: dict[str, Tensor], step: Tensor) -> dict[str, Tensor]:
        place = step[:, None]
        prev = self.model(
            batch["latents"],
            batch["prompt_embeds"],
            batch["pooled_embeds"],
            batch["time_ids"],
            batch["timesteps"].gather(1, place)[:, 0],
            batch["sigmas"].gather(1, place)[:, 0],
            batch["sigmas"].gather(1, place + 1)[:, 0],
            batch["guidance_scale"],
        )
        return {"latents": prev}

    @torch.inference_mode()
    def finish(self, state: dict[str, Tensor]) -> ImageResult:
        latents, vae = state["latents"], self.model.vae
        z = latents.to(vae.post_quant_conv.weight.dtype) / self.config.vae.scaling_factor
        image = (vae(z[None])[0].float() / 2 + 0.5).clamp(0, 1)
        return ImageResult({"image": image.cpu(), "latents": latents.cpu(), "seed": state["seed"].cpu()})

    @staticmethod
    def example_requests(num: int, seed: int) -> list[dict[str, Any]]:
        """Short runs of the default size, one in three without guidance."""
        scenes = ("a lighthouse in a storm", "two cats asleep on a red sofa", "the skyline of a city, in ink")
        return [
            {
                "prompt": scenes[i % len(scenes)],
                "steps": 2 + i % 2,
                "seed": seed + i,
                "guidance_scale": 1.0 if i % 3 == 1 else 5.0,
            }
            for i in range(num)
        ]

    def _check(self, inputs: Mapping[str, Any]) -> None:
        unknown = sorted(set(inputs) - _KNOWN)
        if unknown:
            raise UsageError(f"A request has no {', '.join(unknown)}; it has {', '.join(sorted(_KNOWN))}.")
        if "prompt" not in inputs:
            raise UsageError("A request has a 'prompt'.")
        for name in _TEXTS:
            if inputs.get(name) is not None and not isinstance(inputs[name], str):
                raise UsageError(f"{name} is a text, got {inputs[name]!r}.")
        seed = inputs.get("seed")
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 63):
            raise UsageError(f"seed is {seed!r}; it is a whole number from 0 to 2^63 - 1.")

    def _size(self, inputs: Mapping[str, Any]) -> tuple[int, int]:
        factor = self.config.vae.scale_factor
        sides = []
        for name in ("height", "width"):
            side = inputs.get(name, factor * self.config.unet.sample_size)
            if not isinstance(side, int) or side < factor or side % factor:
                raise UsageError(f"{name} is {side!r}; it is a multiple of {factor}.")
            sides.append(side)
        if sides[0] * sides[1] > _MOST_PIXELS:
            raise UsageError(f"{sides[0]} x {sides[1]} are more than {_MOST_PIXELS} pixels.")
        return sides[0], sides[1]

    def _texts(self, inputs: Mapping[str, Any]) -> tuple[tuple[str, str], tuple[str, str] | None]:
        """For both encoders: what is wanted, and what is not (None: zeros)."""
        prompt, negative = inputs["prompt"], inputs.get("negative_prompt")
        prompts = (prompt, inputs.get("prompt_2") or prompt)
        if negative is None and self.config.force_zeros_for_empty_prompt:
            return prompts, None
        return prompts, (negative or "", inputs.get("negative_prompt_2") or negative or "")

    def _encode(self, prompts: tuple[str, str], negatives: tuple[str, str] | None) -> tuple[Tensor, Tensor]:
        """[texts, tokens, cross_attention_dim], [texts, pooled_size]: of the unwanted text, if any, then the other."""
        parts, pooled = [], None
        for i, encoder in enumerate((self.model.text_encoder, self.model.text_encoder_2)):
            texts = [prompts[i]] if negatives is None else [negatives[i], prompts[i]]
            most = self.tokenizers[i].model_max_length
            ids = self.tokenizers[i](
                texts, padding="max_length", max_length=most, truncation=True, return_tensors="pt"
            ).input_ids
            states, pooled = encoder(ids.to(self.model.unet.conv_in.weight.device))
            parts.append(states)
        assert pooled is not None
        return torch.cat(parts, dim=-1), pooled

    def _time_ids(self, inputs: Mapping[str, Any], height: int, width: int) -> Tensor:
        defaults = {"original_size": (height, width), "crops_coords_top_left": (0, 0), "target_size": (height, width)}
        numbers: list[float] = []
        for name in _SIZES:
            given = inputs.get(name, defaults[name])
            if not isinstance(given, list | tuple) or len(given) != 2 or not all(isinstance(n, int) for n in given):
                raise UsageError(f"{name} is {given!r}; it is two whole numbers: height, width.")
            if max(map(abs, given)) > _LARGEST_SIZE:
                raise UsageError(f"{name} is {given!r:.80}; the most is {_LARGEST_SIZE}.")
            numbers += given
        return torch.tensor(numbers, dtype=torch.float32)[None]

    def _noise(self, inputs: Mapping[str, Any], height: int, width: int, seed: int) -> Tensor:
        factor, channels = self.config.vae.scale_factor, self.config.vae.latent_channels
        shape = (channels, height // factor, width // factor)
        if inputs.get("latents") is None:
            return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        noise = as_floats(inputs["latents"], "latents")
        if tuple(noise.shape) != shape:
            raise UsageError(f"latents are {list(shape)} for a picture of {height} x {width}, got {list(noise.shape)}.")
        return noise


def _number(inputs: Mapping[str, Any], name: str, default: float) -> float:
    value = inputs.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1000:
        raise UsageError(f"{name} is {value!r}; it is a number from 0 to 1000.")
    return float(value)
