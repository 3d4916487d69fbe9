"""Actions of a robot by Pi0."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor, nn
from transformers.image_processing_backends import PilBackend

from fastkernels.engine.model_source import ModelSource, find_tokenizer
from fastkernels.errors import UsageError
from fastkernels.pipelines.inputs import as_floats, as_integers
from fastkernels.pipelines.media import load_image
from fastkernels.pipelines.result import Result
from fastkernels.tasks.configs.pi0 import PI0Config

_TEXT_STEP = 48
"""Texts are padded to multiples of this, so that unlike ones share a batch: lerobot's tokenizer_max_length."""

_MOST_CAMERAS, _MOST_STEPS = 16, 1000
_KNOWN = {"images", "image", "pixel_values", "prompt", "prompt_token_ids", "state", "noise", "seed", "steps"}


class PI0ImageProcessor(PilBackend):
    """Fits a picture into the square, normalises, and pads right and below, as transformers' PI0ImageProcessor."""

    resample = Resampling.BICUBIC
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    default_to_square = False
    do_resize = do_rescale = do_normalize = do_convert_rgb = do_pad = True


class PI0Pipeline:
    """{"images": [...], "prompt": ..., "state": [...]} -> actions [chunk_size, max_action_dim].

    image: one picture instead of several cameras' images; pixel_values [cameras, channels, size, size] that are ready;
    prompt_token_ids of a tokenised instruction; state: up to max_state_dim numbers, normalised; noise [chunk_size,
    max_action_dim] or a seed of it; steps of the flow. Source: as transformers' PI0Processor and sample_actions.
    """

    texts = ("prompt",)
    encoded = ("pixel_values", "input_ids", "text_mask")

    def __init__(self, model: nn.Module, config: PI0Config, checkpoint: Path | None) -> None:
        self.model: Any = model
        self.config = config
        side = config.vision.image_size
        self.processor = PI0ImageProcessor(
            size={"max_height": side, "max_width": side}, pad_size={"height": side, "width": side}
        )
        self.tokenizer = find_tokenizer(ModelSource("", {}, checkpoint))

    def num_steps(self, inputs: Mapping[str, Any]) -> int:
        """Errors: UsageError when it is no number."""
        steps = inputs.get("steps", self.config.num_inference_steps)
        if not isinstance(steps, int) or isinstance(steps, bool) or steps > _MOST_STEPS:
            raise UsageError(f"steps is {steps!r}; it is a whole number, at most {_MOST_STEPS}.")
        return steps

    @torch.inference_mode()
    def prepare(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Errors: UsageError names what cannot be used."""
        unknown = sorted(set(inputs) - _KNOWN)
        if unknown:
            raise UsageError(f"A request has no {', '.join(unknown)}; it has {', '.join(sorted(_KNOWN))}.")
        weight = self.model.action_out_proj.weight
        pixels, ids = self._pixels(inputs), self._ids(inputs)
        num_images, num_padded = len(pixels) * self.config.vision.num_tokens, -(-len(ids) // _TEXT_STEP) * _TEXT_STEP
        self._check_length(num_images + num_padded)
        input_ids = torch.zeros(num_padded, dtype=torch.int64)
        input_ids[: len(ids)] = torch.tensor(ids)
        text_mask = torch.arange(num_padded) < len(ids)
        state, noise = self._state(inputs), self._noise(inputs)
        return {
            "actions": noise.to(weight),
            "state": state.to(weight),
            "step_size": torch.tensor(-1.0 / max(1, self.num_steps(inputs)), dtype=torch.float64, device=weight.device),
            "pixel_values": pixels.to(weight),
            "input_ids": input_ids.to(weight.device),
            "text_mask": text_mask.to(weight.device),
        }

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The prefixes' keys and values, once for all steps."""
        keys, values = self.model.vlm(*(batch[name] for name in self.encoded))
        is_image = batch["text_mask"].new_ones((1, 1)).expand(len(keys), keys.shape[2] - batch["text_mask"].shape[1])
        return {
            "prefix_keys": keys,
            "prefix_values": values,
            "prefix_mask": torch.cat([is_image, batch["text_mask"]], dim=1),
        }

    def advance(self, batch: dict[str, Tensor], step: Tensor) -> dict[str, Tensor]:
        timestep = (1 + step * batch["step_size"]).float()  # the fastest wave turns a rounding of it by 1e-4
        return {"actions": self.model(**batch | {"timestep": timestep, "step_size": batch["step_size"].float()})}

    def finish(self, state: dict[str, Tensor]) -> Result:
        return Result({"actions": state["actions"].float().cpu()})

    def example_requests(self, num: int, seed: int) -> list[dict[str, Any]]:
        """One to three cameras, instructions of several lengths."""
        random = np.random.default_rng(seed)
        verbs = ("pick up the cup", "fold the towel and put it on the table", "open the drawer")
        return [
            {
                "images": [random.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(1 + i % 3)],
                "prompt": verbs[i % len(verbs)],
                "state": random.standard_normal(self.config.max_state_dim).tolist(),
                "seed": seed + i,
            }
            for i in range(num)
        ]

    def _pixels(self, inputs: Mapping[str, Any]) -> Tensor:
        side, channels = self.config.vision.image_size, self.config.vision.num_channels
        if "pixel_values" in inputs:
            pixels = as_floats(inputs["pixel_values"], "pixel_values")
        elif "images" in inputs or "image" in inputs:
            given = inputs["images"] if "images" in inputs else [inputs["image"]]
            if not isinstance(given, list | tuple) or not 0 < len(given) <= _MOST_CAMERAS:
                raise UsageError(f"images is a list of 1 to {_MOST_CAMERAS} pictures, one a camera.")
            images = [load_image(one) for one in given]
            pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        else:
            raise UsageError("A request has 'images', an 'image' or 'pixel_values'.")
        if pixels.dim() != 4 or not len(pixels) or tuple(pixels.shape[1:]) != (channels, side, side):
            raise UsageError(f"pixel_values are [cameras, {channels}, {side}, {side}], got {list(pixels.shape)}.")
        return pixels

    def _ids(self, inputs: Mapping[str, Any]) -> list[int]:
        size = self.config.text.vocab_size
        if "prompt_token_ids" in inputs:
            found = as_integers(inputs["prompt_token_ids"], "prompt_token_ids", "a list of whole numbers")
            ids = found.tolist() if found.dim() == 1 else []
        elif isinstance(inputs.get("prompt"), str):
            text = self.tokenizer.encode(f"{inputs['prompt']}\n", add_special_tokens=False).ids
            ids = [self.config.text.bos_token_id, *text]
        else:
            raise UsageError("A request has a 'prompt', which is a text, or 'prompt_token_ids'.")
        if not ids or not all(0 <= i < size for i in ids):
            raise UsageError(f"prompt_token_ids are one or more whole numbers in [0, {size}).")
        return ids

    def _check_length(self, num_prefix: int) -> None:
        most = self.config.text.max_position_embeddings - 1 - self.config.chunk_size
        if num_prefix > most:
            raise UsageError(f"The pictures and the prompt take {num_prefix} tokens; the most is {most}.")

    def _state(self, inputs: Mapping[str, Any]) -> Tensor:
        most = self.config.max_state_dim
        state = as_floats(inputs.get("state", ()), "state", f"a list of up to {most} numbers")
        if state.dim() != 1 or len(state) > most:
            raise UsageError(f"state is a list of up to {most} numbers, got {list(state.shape)}.")
        if not bool(torch.isfinite(state).all()):
            raise UsageError(f"state is finite numbers, got {state.tolist()}.")
        return nn.functional.pad(state, (0, most - len(state)))

    def _noise(self, inputs: Mapping[str, Any]) -> Tensor:
        shape = (self.config.chunk_size, self.config.max_action_dim)
        if "noise" in inputs:
            noise = as_floats(inputs["noise"], "noise")
            if tuple(noise.shape) != shape:
                raise UsageError(f"noise is {list(shape)}, got {list(noise.shape)}.")
            return noise
        seed = inputs.get("seed")
        seed = secrets.randbits(31) if seed is None else seed
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 63:
            raise UsageError(f"seed is {seed!r}; it is a whole number from 0 to 2^63 - 1.")
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
