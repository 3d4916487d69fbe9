"""V-JEPA 2 with its classification head, by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastkernels.oracles.oracle import Answer, Level, Load, Request
from fastkernels.oracles.vjepa2 import VJEPA2Oracle


class VJEPA2ClassificationOracle(VJEPA2Oracle):
    model_class = "VJEPA2ForVideoClassification"
    loads = (Load("classification", (1, 4)),)
    levels = (
        Level("encoder.layers.{i}", "vjepa2.encoder.layer.{i}"),
        Level("pooler.self_attention_layers.{i}.attention", "pooler.self_attention_layers.{i}.self_attn"),
        Level("pooler.self_attention_layers.{i}", "pooler.self_attention_layers.{i}"),
        Level("pooler.cross_attention_layer", "pooler.cross_attention_layer"),
        Level("pooler", "pooler"),
    )

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        return [{"pixel_values_videos": video} for video in self.videos(sizes)]

    def answer(self, model: nn.Module, request: Request) -> Answer:
        with torch.no_grad():
            return {"logits": model(torch.as_tensor(request["pixel_values_videos"])[None]).logits[0]}

    def published(self, num_layers: int | None) -> dict[str, Any]:
        """With the 174 labels of Something-Something v2."""
        return {**super().published(num_layers), "num_labels": 174}

    def forward(self, model: Any, batch: Mapping[str, Any]) -> Answer:
        return {"logits": model(batch["pixel_values_videos"]).logits}


ORACLE = VJEPA2ClassificationOracle()
