"""V-JEPA 2 by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from torch import nn

from fastkernels.oracles.oracle import Answer, Level, Load, Oracle, Request, randomize

_SIZES: dict[str, Any] = {
    "patch_size": 8,
    "crop_size": 32,
    "frames_per_clip": 4,
    "tubelet_size": 2,
    "hidden_size": 36,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "mlp_ratio": 2.5,
    "num_pooler_layers": 1,
    "pred_hidden_size": 32,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 2,
    "pred_num_mask_tokens": 3,
    "pred_mlp_ratio": 2.0,
}


class VJEPA2Oracle(Oracle):
    model_class: ClassVar[str] = "VJEPA2Model"
    preset = "vjepa2-vitg-fpc64-256"
    loads: ClassVar[tuple[Load, ...]] = (Load("predictor", (1, 4)), Load("encoder", (1,)))
    levels: ClassVar[tuple[Level, ...]] = (
        Level("encoder.embeddings", "encoder.embeddings"),
        Level("encoder.layers.{i}.attention", "encoder.layer.{i}.attention"),
        Level("encoder.layers.{i}.mlp", "encoder.layer.{i}.mlp"),
        Level("encoder.layers.{i}", "encoder.layer.{i}"),
        Level("predictor.layers.{i}.attention", "predictor.layer.{i}.attention"),
        Level("predictor.layers.{i}", "predictor.layer.{i}"),
        Level("predictor", "predictor", their_output=lambda output: output.last_hidden_state),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        return {
            "even": _SIZES,
            "odd": {  # heads whose size is no multiple of 6, patches that leave a rest, no bias, the only mask token
                **_SIZES,
                "patch_size": 5,
                "tubelet_size": 3,
                "hidden_size": 48,
                "num_attention_heads": 3,
                "num_hidden_layers": 1,
                "qkv_bias": False,
                "pred_num_mask_tokens": 1,
            },
        }

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        model_class = getattr(transformers, self.model_class)
        return randomize(model_class(transformers.VJEPA2Config(**{"num_labels": 5, **sizes})), seed)

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]

    def videos(self, sizes: Mapping[str, Any]) -> list[np.ndarray]:
        """The size of the crop, a larger one, one frame of one patch, a wide one whose last frame fits no tubelet."""
        random = np.random.default_rng(3)
        patch, tubelet = sizes["patch_size"], sizes["tubelet_size"]
        shapes = ((2 * tubelet, 32, 32), (2 * tubelet, 40, 48), (1, patch, patch), (tubelet + 1, 17, 33))
        return [random.standard_normal((n, 3, height, width)).astype(np.float32) for n, height, width in shapes]

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """Every patch; the later half from the earlier one; one patch alone; scattered patches, some twice."""
        given = [{"pixel_values_videos": video} for video in self.videos(sizes)]
        num_patches = 2 * (40 // sizes["patch_size"]) * (48 // sizes["patch_size"])
        half = num_patches // 2
        masks: list[dict[str, Any]] = [
            {},
            {"context_mask": list(range(half)), "target_mask": list(range(half, num_patches))},
            {},
            {"context_mask": [5, 0, 2, 5], "target_mask": [3, 1, 1]},
        ]
        return [request | mask for request, mask in zip(given, masks, strict=True)]

    def answer(self, model: nn.Module, request: Request) -> Answer:
        masks = {n: [torch.tensor(request[n])[None]] for n in ("context_mask", "target_mask") if n in request}
        with torch.no_grad():
            output = model(torch.as_tensor(request["pixel_values_videos"])[None], **masks)
        found = output.predictor_output
        return {
            "last_hidden_state": output.last_hidden_state[0],
            "masked_hidden_state": output.masked_hidden_state[0],
            "predicted": found.last_hidden_state[0],
            "target_hidden_state": found.target_hidden_state[0],
        }

    def load(self, sizes: Mapping[str, Any], num: int, name: str) -> list[Request]:
        """A clip each, 64 frames of 256 x 256 pixels as published; for the predictor every patch is shown and asked."""
        generator = torch.Generator().manual_seed(num)
        shape = (sizes["frames_per_clip"], 3, sizes["crop_size"], sizes["crop_size"])
        clips = [torch.randn(shape, generator=generator) for _ in range(num)]
        return [{"pixel_values_videos": clip, "skip_predictor": name == "encoder"} for clip in clips]

    def forward(self, model: Any, batch: Mapping[str, Any]) -> Answer:
        masks = {n: [batch[n]] for n in ("context_mask", "target_mask") if n in batch}
        output = model(batch["pixel_values_videos"], skip_predictor=not masks, **masks)
        if not masks:
            return {"last_hidden_state": output.last_hidden_state}
        predicted = output.predictor_output.last_hidden_state
        return {"last_hidden_state": output.last_hidden_state, "predicted": predicted}


ORACLE = VJEPA2Oracle()
