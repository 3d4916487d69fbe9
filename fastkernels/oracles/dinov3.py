"""DINOv3 by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from fastkernels.oracles.oracle import Answer, Level, Load, Oracle, Request, randomize

_SIZES: dict[str, Any] = {
    "patch_size": 8,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "num_register_tokens": 4,
    "hidden_act": "silu",
    "use_gated_mlp": True,
    "query_bias": False,
    "value_bias": False,
}


class DINOv3Oracle(Oracle):
    preset = "dinov3-vit7b16"
    loads = (Load("default", (1, 32)), Load("high-res", (8,)))
    levels = (
        Level("layers.{i}.attention", "model.layer.{i}.attention"),
        Level("layers.{i}.mlp", "model.layer.{i}.mlp"),
        Level("layers.{i}", "model.layer.{i}"),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        return {
            "gated": _SIZES,  # as the 7B model
            "plain": {  # as the smaller ones: a bias of query and value, none of key
                **_SIZES,
                "hidden_act": "gelu",
                "use_gated_mlp": False,
                "query_bias": True,
                "value_bias": True,
                "num_register_tokens": 1,
                "num_attention_heads": 3,
                "patch_size": 5,
                "image_size": 25,
            },
        }

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        return randomize(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes)), seed)

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """A square, a wide and a tall picture of pixels that fit no patch, and one patch alone."""
        patch, random = sizes["patch_size"], np.random.default_rng(3)
        shapes = ((32, 32), (3 * patch, 5 * patch + 3), (7 * patch + 1, 2 * patch), (patch, patch))
        return [{"pixel_values": random.standard_normal((3, *shape)).astype(np.float32)} for shape in shapes]

    def answer(self, model: nn.Module, request: Request) -> Answer:
        with torch.no_grad():
            output = model(torch.as_tensor(request["pixel_values"])[None])
        return {"last_hidden_state": output.last_hidden_state[0], "pooler_output": output.pooler_output[0]}

    def load(self, sizes: Mapping[str, Any], num: int, name: str) -> list[Request]:
        """Pictures of the model's size (224 pixels a side as published), or of over twice that: 512."""
        side = sizes["image_size"] * (1 if name == "default" else 16 / 7)
        side = int(side) // sizes["patch_size"] * sizes["patch_size"]
        generator = torch.Generator().manual_seed(num)
        return [{"pixel_values": torch.randn((3, side, side), generator=generator)} for _ in range(num)]

    def forward(self, model: Any, batch: Mapping[str, Any]) -> Answer:
        return {"last_hidden_state": model(batch["pixel_values"]).last_hidden_state}


ORACLE = DINOv3Oracle()
