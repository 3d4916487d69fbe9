"""Qwen2-VL by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from fastkernels.oracles.language import LanguageOracle
from fastkernels.oracles.oracle import Answer, Level, Request, prompts, randomize

_START, _END, _IMAGE, _VIDEO = 297, 298, 299, 300
_TEXT: dict[str, Any] = {
    "vocab_size": 301,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "bos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}
_VISION: dict[str, Any] = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 2}
_TOKENS = {
    "vision_start_token_id": _START,
    "vision_end_token_id": _END,
    "image_token_id": _IMAGE,
    "video_token_id": _VIDEO,
}


class Qwen2VLOracle(LanguageOracle):
    preset = "qwen2-vl-7b-instruct"
    levels = (
        Level("visual.patch_embed", "model.visual.patch_embed"),
        Level("visual.blocks.{i}.attn", "model.visual.blocks.{i}.attn"),
        Level("visual.blocks.{i}.mlp", "model.visual.blocks.{i}.mlp"),
        Level("visual.blocks.{i}", "model.visual.blocks.{i}"),
        Level("visual.merger", "model.visual.merger"),
        Level("model.layers.{i}.self_attn", "model.language_model.layers.{i}.self_attn"),
        Level("model.layers.{i}.mlp", "model.language_model.layers.{i}.mlp"),
        Level(
            "model.layers.{i}",
            "model.language_model.layers.{i}",
            our_output=lambda output: output[0] + output[1],
        ),
        Level("model", "model.language_model"),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        return {
            "gqa": {"text_config": _TEXT, "vision_config": _VISION, **_TOKENS},
            "tied": {
                "text_config": {**_TEXT, "num_key_value_heads": 1, "hidden_size": 80, "num_attention_heads": 5},
                "vision_config": {**_VISION, "hidden_size": 80, "embed_dim": 60, "num_heads": 3},
                "tie_word_embeddings": True,
                **_TOKENS,
            },
        }

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        config = transformers.Qwen2VLConfig(**sizes)
        return randomize(transformers.Qwen2VLForConditionalGeneration(config), seed)

    def save(self, model: nn.Module, folder: Path) -> None:
        """By the names of the published files; the tied one by those of the model's modules, as some others have it."""
        model.save_pretrained(folder)  # type: ignore[operator]
        self._images(model).save_pretrained(folder)
        if model.config.tie_word_embeddings:  # type: ignore[union-attr]
            state = {name: t.contiguous() for name, t in model.state_dict().items() if name != "lm_head.weight"}
            save_file(state, folder / "model.safetensors", {"format": "pt"})

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """Text alone; a picture; two of odd sizes; a video of five frames; one of a single frame, beside a picture."""
        text = prompts((9, 6, 11, 5, 7), _START)
        random = np.random.default_rng(11)

        def pixels(*shape: int) -> Any:
            return random.integers(0, 256, (*shape, 3), dtype=np.uint8)

        image, video = [_START, _IMAGE, _END], [_START, _VIDEO, _END]
        return [
            {"prompt_token_ids": text[0], "max_tokens": 6},
            _request([*text[1], *image, *text[2]], image=pixels(70, 110)),
            _request([*image, *text[3], *image], image=[pixels(31, 97), pixels(113, 64)]),
            _request([*text[4], *video, *text[3]], video=pixels(5, 60, 136)),
            _request([*video, *text[2], *image, *text[1]], video=[pixels(1, 40, 90)], image=[pixels(57, 57)]),
        ]

    def answer(self, model: nn.Module, request: Request) -> Answer:
        """The greedy tokens, and the logits of every token but the last; keys and values are cached."""
        model.model.rope_deltas = None  # type: ignore[union-attr]
        inputs = self._inputs(model, request)
        tokens: list[int] = []
        logits: list[Tensor] = []
        with torch.no_grad():
            for _ in range(request["max_tokens"]):
                output = model(**inputs, use_cache=True)
                logits.append(output.logits[0].float())
                tokens.append(int(logits[-1][-1].argmax()))
                inputs = {"input_ids": torch.tensor([tokens[-1:]]), "past_key_values": output.past_key_values}
        return {"token_ids": torch.tensor(tokens), "logits": torch.cat(logits)}

    def _images(self, model: Any) -> Any:
        return transformers.Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 24})

    def _inputs(self, model: Any, request: Request) -> dict[str, Any]:
        """What the library's processor makes of a request, whose video part needs torchvision: here frame by frame."""
        data = request.get("multi_modal_data", {})
        images = [Image.fromarray(one) for one in _several(data.get("image"), 3)]
        videos = _several(data.get("video"), 4)
        inputs: dict[str, Any] = {}
        counts: dict[int, list[int]] = {_IMAGE: [], _VIDEO: []}
        if images:
            done = self._images(model)(images=images, return_tensors="pt")
            inputs |= {"pixel_values": done["pixel_values"], "image_grid_thw": done["image_grid_thw"]}
            counts[_IMAGE] = [int(grid.prod()) // 4 for grid in done["image_grid_thw"]]
        if videos:
            patches, grids = zip(*(self._video(model, video) for video in videos), strict=True)
            inputs |= {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor(grids)}
            counts[_VIDEO] = [t * h * w // 4 for t, h, w in grids]
        waiting = {token: iter(nums) for token, nums in counts.items()}
        ids = [t for t in request["prompt_token_ids"] for _ in range(next(waiting[t]) if t in waiting else 1)]
        inputs["input_ids"] = torch.tensor([ids])
        if counts[_IMAGE] or counts[_VIDEO]:
            kinds = [1 if t == _IMAGE else 2 if t == _VIDEO else 0 for t in ids]
            inputs["mm_token_type_ids"] = torch.tensor([kinds])
        return inputs

    def _video(self, model: Any, video: np.ndarray) -> tuple[Tensor, tuple[int, int, int]]:
        """[num_patches, patch_dim] and the grid: pairs of frames, squares of 2 x 2 patches, 14 x 14 pixels a patch."""
        images = self._images(model)
        frames = []
        for frame in (*video, *video[-1:][: len(video) % 2]):
            whole = images(images=[Image.fromarray(frame)], return_tensors="pt", patch_size=28, merge_size=1)
            _, height, width = whole["image_grid_thw"][0].tolist()
            squares = whole["pixel_values"].view(height, width, 3, 2, 28, 28)[:, :, :, 0]
            frames.append(squares.permute(2, 0, 3, 1, 4).reshape(3, 28 * height, 28 * width))
        patches = [
            torch.stack([frame[:, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14] for frame in pair], dim=1)
            for pair in zip(frames[::2], frames[1::2], strict=True)
            for top in range(0, 2 * height, 2)
            for left in range(0, 2 * width, 2)
            for row in (top, top + 1)
            for column in (left, left + 1)
        ]
        return torch.stack(patches).flatten(1), (len(frames) // 2, 2 * height, 2 * width)

    def num_layers(self, sizes: Mapping[str, Any]) -> int | None:
        return _text(sizes)["num_hidden_layers"]

    def lengths(self, sizes: Mapping[str, Any]) -> tuple[int, int]:
        return super().lengths(_text(sizes))

    def load(self, sizes: Mapping[str, Any], num: int, name: str) -> list[Request]:
        """A picture among a prompt's text: of 512 tokens 256 are a picture's of 448 x 448 pixels."""
        length, start, random = self.lengths(sizes)[0], sizes["vision_start_token_id"], np.random.default_rng(num)
        side = 28 * max(2, round((length / 2) ** 0.5))
        image = [start, sizes["image_token_id"], sizes["vision_end_token_id"]]
        num_text = length - 2 - (side // 28) ** 2
        requests = super().load({**_text(sizes), "vocab_size": min(start, _text(sizes)["vocab_size"])}, num, name)
        found: list[Request] = []
        for request in requests:
            ids, picture = request["prompt_token_ids"], random.integers(0, 256, (side, side, 3), dtype=np.uint8)
            ids = [*ids[: num_text // 2], *image, *ids[num_text // 2 : num_text]]
            found.append({**request, "prompt_token_ids": ids, "multi_modal_data": {"image": picture}})
        return found

    def inputs(self, model: Any, requests: Sequence[Request]) -> dict[str, Tensor]:
        config, device = model.config, model.device
        images = [Image.fromarray(request["multi_modal_data"]["image"]) for request in requests]
        done = transformers.Qwen2VLImageProcessorPil()(images=images, return_tensors="pt")
        grids = done["image_grid_thw"]
        counts = (grids.prod(-1) // config.vision_config.spatial_merge_size**2).tolist()
        ids = torch.tensor(
            [
                [token for token in r["prompt_token_ids"] for _ in range(n if token == config.image_token_id else 1)]
                for r, n in zip(requests, counts, strict=True)
            ]
        )
        found = {"input_ids": ids, "pixel_values": done["pixel_values"], "image_grid_thw": grids}
        found |= {"mm_token_type_ids": (ids == config.image_token_id).long(), "attention_mask": torch.ones_like(ids)}
        return {name: t.to(device) for name, t in found.items()}

    def extended(self, inputs: Mapping[str, Tensor], made: Tensor) -> dict[str, Tensor]:
        longer = super().extended(inputs, made)
        kinds = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(made)], dim=1)
        return {**longer, "mm_token_type_ids": kinds, "attention_mask": torch.ones_like(longer["input_ids"])}

    def logits(self, model: Any, inputs: Mapping[str, Tensor], num: int) -> Tensor:
        model.model.rope_deltas = None  # those of the inputs before
        return super().logits(model, inputs, num)


def _text(sizes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's sizes: published ones lie beside those of the vision tower."""
    return sizes.get("text_config", sizes)


def _request(tokens: list[int], **data: Any) -> Request:
    return {"prompt_token_ids": tokens, "multi_modal_data": data, "max_tokens": 6}


def _several(value: Any, num_axes: int) -> list[np.ndarray]:
    if value is None:
        return []
    return [value] if isinstance(value, np.ndarray) and value.ndim == num_axes else list(value)


ORACLE = Qwen2VLOracle()
