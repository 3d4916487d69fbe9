"""Pi0 by transformers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from fastkernels.oracles.oracle import Answer, Level, Load, Oracle, Request, compiled, prompts, randomize

_GEMMA: dict[str, Any] = {
    "model_type": "gemma",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
_VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 7,
    "vision_use_head": False,
}
_IMAGE_TOKEN = 511


def _sizes(vision: Mapping[str, Any], shared: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    text = {**_GEMMA, **shared}
    return {
        "vlm_config": {
            "model_type": "paligemma",
            "text_config": text,
            "vision_config": {**_VISION, **vision},
            "projection_dim": text["hidden_size"],
            "image_token_id": _IMAGE_TOKEN,
        },
        "dit_config": {**text, "hidden_size": 20, "intermediate_size": 28},
        "chunk_size": 5,
        "max_state_dim": 6,
        "max_action_dim": 6,
        "num_inference_steps": 3,
        **own,
    }


def _sum_left_to_the_next(output: Any) -> torch.Tensor:
    return output[0] + output[1]


class PI0Oracle(Oracle):
    preset = "pi0_base"
    loads = (Load("three cameras", (1, 4), is_whole=True), Load("one camera", (1,), is_whole=True))
    levels = (
        Level("vlm.vision_tower.layers.{i}.self_attn", "model.vlm.vision_tower.encoder.layers.{i}.self_attn"),
        Level("vlm.vision_tower.layers.{i}", "model.vlm.vision_tower.encoder.layers.{i}"),
        Level("vlm.vision_tower", "model.vlm.vision_tower", their_output=lambda output: output.last_hidden_state),
        Level("vlm.multi_modal_projector", "model.vlm.multi_modal_projector"),
        Level("embed_action_time", "embed_action_time"),
        Level("dit.layers.{i}.self_attn", "model.dit.layers.{i}.self_attn"),
        Level("dit.layers.{i}.mlp", "model.dit.layers.{i}.mlp"),
        Level("dit.layers.{i}", "model.dit.layers.{i}", our_output=_sum_left_to_the_next),
        Level("vlm.layers.{i}.self_attn", "model.vlm.language_model.layers.{i}.self_attn"),
        Level("vlm.layers.{i}.mlp", "model.vlm.language_model.layers.{i}.mlp"),
        Level("vlm.layers.{i}", "model.vlm.language_model.layers.{i}", our_output=_sum_left_to_the_next),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        return {
            "mqa": _sizes({}, {}),
            "gqa": _sizes(
                {"image_size": 15, "patch_size": 5, "hidden_size": 18},
                {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4, "num_hidden_layers": 3},
                **{"chunk_size": 1, "max_state_dim": 3, "max_action_dim": 9, "num_inference_steps": 4},
            ),
        }

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        return randomize(transformers.PI0ForConditionalGeneration(transformers.PI0Config(**sizes)), seed)

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """One to three cameras, texts that fill a step of padding, go beyond it, and have one token."""
        generator = torch.Generator().manual_seed(6)
        side, noise = sizes["vlm_config"]["vision_config"]["image_size"], (sizes["chunk_size"], sizes["max_action_dim"])
        texts = prompts((9, 48, 1, 61), 500)
        return [
            {
                "pixel_values": torch.randn((cameras, 3, side, side), generator=generator),
                "prompt_token_ids": ids,
                "state": torch.randn(sizes["max_state_dim"], generator=generator),
                "noise": torch.randn(noise, generator=generator),
                "steps": steps,
            }
            for ids, cameras, steps in zip(texts, (1, 1, 3, 2), (3, 4, 1, 10), strict=True)
        ]

    def answer(self, model: Any, request: Request) -> Answer:
        """As the library does it: a placeholder token for each of a picture's, nothing padded."""
        pixels = request["pixel_values"]
        vision = model.config.vlm_config.vision_config
        num_images = len(pixels) * (vision.image_size // vision.patch_size) ** 2
        ids = torch.tensor([[_IMAGE_TOKEN] * num_images + list(request["prompt_token_ids"])])
        actions = model.sample_actions(
            state=request["state"][None],
            input_ids=ids,
            pixel_values=pixels[None],
            noise=request["noise"][None],
            attention_mask=torch.ones_like(ids),
            pixel_attention_mask=torch.ones((1, len(pixels)), dtype=torch.bool),
            num_steps=request["steps"],
        )
        return {"actions": actions[0]}

    def published(self, num_layers: int | None) -> dict[str, Any]:
        """num_layers: of the language model and of the expert."""
        sizes = super().published(None)
        if num_layers is not None:
            text = {**sizes["vlm_config"]["text_config"], "num_hidden_layers": num_layers}
            sizes["vlm_config"] = {**sizes["vlm_config"], "text_config": text}
            sizes["dit_config"] = {**sizes["dit_config"], "num_hidden_layers": num_layers}
        return sizes

    def num_layers(self, sizes: Mapping[str, Any]) -> int | None:
        return sizes["dit_config"]["num_hidden_layers"]

    def load(self, sizes: Mapping[str, Any], num: int, name: str) -> list[Request]:
        """Instructions of 48 tokens, lerobot's length of texts, and all steps of the flow."""
        generator = torch.Generator().manual_seed(num)
        side, cameras = sizes["vlm_config"]["vision_config"]["image_size"], 3 if name == "three cameras" else 1
        noise = (sizes["chunk_size"], sizes["max_action_dim"])
        return [
            {
                "pixel_values": torch.randn((cameras, 3, side, side), generator=generator),
                "prompt_token_ids": ids,
                "state": torch.randn(sizes["max_state_dim"], generator=generator),
                "noise": torch.randn(noise, generator=generator),
                "steps": sizes["num_inference_steps"],
            }
            for ids in prompts([48] * num, 500)
        ]

    def run(self, model: Any, requests: Sequence[Request]) -> Answer:
        some, vision = model.action_out_proj.weight, model.config.vlm_config.vision_config
        names = ("pixel_values", "state", "noise")
        given = {n: torch.stack([r[n] for r in requests]).to(some.device, some.dtype) for n in names}
        num, num_cameras = given["pixel_values"].shape[:2]
        token = model.config.vlm_config.image_token_id
        images = [token] * (num_cameras * (vision.image_size // vision.patch_size) ** 2)
        ids = torch.tensor([images + list(r["prompt_token_ids"]) for r in requests], device=some.device)
        cameras = torch.ones((num, num_cameras), dtype=torch.bool, device=some.device)
        given |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_attention_mask": cameras}
        return {"actions": model.sample_actions(**given, num_steps=requests[0]["steps"]).cpu()}

    def compiled(self, model: Any, mode: str) -> Any:
        """The prefix and a step, each a graph: all steps in one would take minutes to compile. The keys and values that
        a graph gives are copied: torch forbids what is read when a graph has run again."""
        inner, whole = copy.copy(model.model), copy.copy(model)
        prefix, step = compiled(model.model.vlm, mode), compiled(model.forward, mode)

        def vlm(**given: Any) -> Any:
            output = prefix(**given)
            _copy_cache(output.past_key_values)
            return output

        def forward(**given: Any) -> Any:
            output = step(**given)
            _copy_cache(given["past_key_values"])
            return output

        inner._modules = {name: part for name, part in inner._modules.items() if name != "vlm"}
        inner.vlm = vlm
        inner.embed_prefix = compiled(model.model.embed_prefix, mode)
        whole._modules = {**whole._modules, "model": inner}
        whole.forward = forward
        return whole


def _copy_cache(cache: Any) -> None:
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.clone(), layer.values.clone()


ORACLE = PI0Oracle()
