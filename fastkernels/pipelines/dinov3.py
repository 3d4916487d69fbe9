"""Features of a picture by DINOv3."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import ViTImageProcessorPil

from fastkernels.errors import UsageError
from fastkernels.pipelines.inputs import as_floats, as_whole_number
from fastkernels.pipelines.media import load_image
from fastkernels.pipelines.result import Result
from fastkernels.tasks.configs.dinov3 import DINOv3Config

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LARGEST = 4096


class DINOv3Pipeline:
    """{"image": ...} -> last_hidden_state [tokens, hidden_size], pooler_output [hidden_size].

    "size": pixels a side when not the model's own, a multiple of its patch_size, at most 4096; or pixel_values
    [channels, height, width] that are ready. Source: the processor is transformers' ViTImageProcessor with DINOv3's
    numbers.
    """

    def __init__(self, model: nn.Module, config: DINOv3Config, checkpoint: Path | None) -> None:
        self.model, self.config = model, config
        size = {"height": config.image_size, "width": config.image_size}
        if checkpoint is not None and (checkpoint / "preprocessor_config.json").is_file():
            self.processor = ViTImageProcessorPil.from_pretrained(checkpoint)
        else:
            self.processor = ViTImageProcessorPil(size=size, image_mean=_MEAN, image_std=_DEVIATION)

    def prepare(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Errors: UsageError when there is no image or its size does not fit."""
        patch = self.config.patch_size
        if "pixel_values" in inputs:
            pixels = as_floats(inputs["pixel_values"], "pixel_values")
        elif "image" in inputs:
            size = as_whole_number(inputs.get("size", self.config.image_size), "size", patch, _LARGEST)
            image = load_image(inputs["image"])
            pixels = self.processor(image, size={"height": size, "width": size}, return_tensors="pt")["pixel_values"][0]
        else:
            raise UsageError(f"A request has 'image' or 'pixel_values', got {', '.join(inputs) or 'nothing'}.")
        if pixels.dim() != 3 or len(pixels) != self.config.num_channels or min(pixels.shape[1:]) < patch:
            raise UsageError(
                f"pixel_values are [{self.config.num_channels}, height, width] with sides of at least {patch}, "
                f"got {list(pixels.shape)}."
            )
        return {"pixel_values": pixels}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = next(self.model.parameters()).dtype
        return {"last_hidden_state": self.model(batch["pixel_values"].to(dtype))}

    def finish(self, result: dict[str, Tensor]) -> Result:
        hidden_states = result["last_hidden_state"].cpu()
        return Result({"last_hidden_state": hidden_states, "pooler_output": hidden_states[0]})

    def example_requests(self, num: int, seed: int) -> list[dict[str, Any]]:
        """Pictures of gradients and noise, of several shapes."""
        random = np.random.default_rng(seed)
        requests = []
        for _ in range(num):
            height, width = random.integers(20, 400, 2)
            ramp = np.linspace(0, 200, width)[None, :, None] * random.random(3)
            noise = random.integers(0, 56, (height, width, 3))
            requests.append({"image": (ramp + noise).astype(np.uint8)})
        return requests
