"""Features of a video, of what is hidden in it, or a word for what is done in it, by V-JEPA 2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fastkernels.errors import CheckpointError, UsageError
from fastkernels.pipelines.inputs import as_floats, as_integers, as_whole_number
from fastkernels.pipelines.media import MAX_FRAMES, load_image, load_video
from fastkernels.pipelines.result import Result
from fastkernels.tasks.configs.vjepa2 import VJEPA2Config

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MASKS = ("context_mask", "target_mask")
_NUM_SHOWN = 5


@dataclass(frozen=True)
class VideoProcessor:
    """Frames to pixel values: the shorter side to shortest_edge, the middle crop_size pixels, mean 0, deviation 1.

    Source: transformers' VJEPA2VideoProcessor, whose library needs torchvision; the numbers are its.
    """

    crop_size: int
    shortest_edge: int
    mean: tuple[float, ...] = _MEAN
    deviation: tuple[float, ...] = _DEVIATION

    @classmethod
    def of(cls, config: VJEPA2Config, checkpoint: Path | None) -> VideoProcessor:
        """Errors: CheckpointError when the checkpoint's own numbers cannot be read."""
        path = None if checkpoint is None else checkpoint / "video_preprocessor_config.json"
        if path is None or not path.is_file():
            return cls(config.crop_size, int(config.crop_size * 256 / 224))
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            crop = given.get("crop_size", config.crop_size)
            crop = crop["height"] if isinstance(crop, dict) else crop
            edge = given.get("size", {}).get("shortest_edge", int(crop * 256 / 224))
            mean, deviation = given.get("image_mean", _MEAN), given.get("image_std", _DEVIATION)
            return cls(int(crop), int(edge), tuple(mean), tuple(deviation))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read as a video processor: {error!r}") from error

    def __call__(self, frames: np.ndarray) -> Tensor:
        """[frames, height, width, 3] uint8 -> [frames, 3, crop_size, crop_size] float32."""
        height, width = frames.shape[1:3]
        short = min(height, width)
        sides = tuple(max(self.crop_size, side * self.shortest_edge // short) for side in (height, width))
        pixels = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2)
        pixels = interpolate(pixels, sides, mode="bilinear", antialias=True, align_corners=False)
        top, left = ((side - self.crop_size) // 2 for side in sides)
        pixels = pixels[:, :, top : top + self.crop_size, left : left + self.crop_size].float() / 255
        mean, deviation = (torch.tensor(x)[:, None, None] for x in (self.mean, self.deviation))
        return (pixels - mean) / deviation


class _Videos:
    """What both pipelines take: {"video": ...}, {"image": ...} as a video of one frame, or pixel_values_videos."""

    def __init__(self, model: nn.Module, config: VJEPA2Config, checkpoint: Path | None) -> None:
        self.model, self.config = model, config
        self.processor = VideoProcessor.of(config, checkpoint)

    def pixels(self, inputs: Mapping[str, Any]) -> Tensor:
        """[frames, channels, height, width]. Errors: UsageError when there is no video or its size does not fit."""
        config = self.config
        if "pixel_values_videos" in inputs:
            pixels = as_floats(inputs["pixel_values_videos"], "pixel_values_videos")
        elif "video" in inputs:
            wanted = None
            if "num_frames" in inputs:
                wanted = as_whole_number(inputs["num_frames"], "num_frames", 1, MAX_FRAMES)
            pixels = self.processor(load_video(inputs["video"], wanted, most_frames=config.frames_per_clip))
        elif "image" in inputs:
            pixels = self.processor(np.asarray(load_image(inputs["image"]))[None])
        else:
            given = ", ".join(inputs) or "nothing"
            raise UsageError(f"A request has 'video', 'image' or 'pixel_values_videos', got {given}.")
        fits = pixels.dim() == 4 and len(pixels) > 0 and pixels.shape[1] == config.in_chans
        if not fits or min(pixels.shape[2:]) < config.patch_size:
            raise UsageError(
                f"pixel_values_videos are [frames, {config.in_chans}, height, width] with sides of at least "
                f"{config.patch_size}, got {list(pixels.shape)}."
            )
        return pixels

    def example_requests(self, num: int, seed: int) -> list[dict[str, Any]]:
        """Videos of a gradient that moves and noise: several lengths, one of a single frame."""
        random = np.random.default_rng(seed)
        requests = []
        for i in range(num):
            height, width = random.integers(20, 100, 2)
            num_frames = 1 if i == 1 else int(random.integers(2, 9))
            ramp = np.linspace(0, 200, width)[None, None, :, None] * random.random(3)
            moving = np.stack([np.roll(ramp[0], 3 * t, axis=1) for t in range(num_frames)])
            noise = random.integers(0, 56, (num_frames, height, width, 3))
            requests.append({"video": (moving + noise).astype(np.uint8)})
        return requests


class VJEPA2Pipeline(_Videos):
    """{"video": ...} -> last_hidden_state [patches, hidden_size], predicted [targets, hidden_size].

    "context_mask", "target_mask": numbers of the patches that the predictor is shown and asked for, every one when left
    out; "skip_predictor": true for last_hidden_state alone; "num_frames": so many, evenly spaced. With a prediction
    also masked_hidden_state and target_hidden_state: what the encoder says of the context and of the targets.
    """

    def prepare(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Errors: UsageError when the video or a mask does not fit."""
        pixels = self.pixels(inputs)
        state = {"pixel_values_videos": pixels}
        skips = inputs.get("skip_predictor", False)
        if not isinstance(skips, bool):
            raise UsageError(f"skip_predictor is {skips!r:.80}; it is true or false.")
        if skips:
            return state
        embeddings = self.model.encoder.embeddings  # type: ignore[union-attr]
        num_patches = embeddings.num_patches(len(pixels), *pixels.shape[2:])  # type: ignore[union-attr,operator]
        for name in _MASKS:
            mask = as_integers(inputs.get(name, range(num_patches)), name, "a list of numbers of patches")
            if mask.dim() != 1 or not len(mask) or int(mask.min()) < 0 or int(mask.max()) >= num_patches:
                shown = "none" if not mask.numel() else f"{int(mask.min())} to {int(mask.max())}"
                raise UsageError(f"{name} numbers some of the video's {num_patches} patches from 0 on, got {shown}.")
            state[name] = mask
        return state

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        pixels = batch["pixel_values_videos"].to(next(self.model.parameters()).dtype)
        if "target_mask" not in batch:
            return {"last_hidden_state": self.model(pixels)}
        hidden, predicted = self.model(pixels, batch["context_mask"], batch["target_mask"])
        gather: Any = self.model.predictor.gather_tokens  # type: ignore[union-attr]
        return {
            "last_hidden_state": hidden,
            "predicted": predicted,
            "masked_hidden_state": gather(hidden, batch["context_mask"]),
            "target_hidden_state": gather(hidden, batch["target_mask"]),
        }

    def finish(self, result: dict[str, Tensor]) -> Result:
        return Result({name: t.cpu() for name, t in result.items()})


@dataclass(frozen=True)
class Labels(Result):
    """names: of the labels, in the order of tensors["logits"]."""

    names: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The likeliest labels with their probabilities."""
        scores = self.tensors["logits"].float().softmax(-1)
        best = scores.topk(min(_NUM_SHOWN, len(scores)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return {"labels": [{"label": self.names[i], "score": float(f"{p:.6g}")} for i, p in pairs]}

    def save(self, path: Path) -> None:
        if path.suffix == ".json":
            path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        else:
            super().save(path)


class VJEPA2ClassificationPipeline(_Videos):
    """{"video": ...} -> logits [num_labels], and the labels' names where the checkpoint's config.json has them."""

    def __init__(self, model: nn.Module, config: VJEPA2Config, checkpoint: Path | None) -> None:
        super().__init__(model, config, checkpoint)
        path = None if checkpoint is None else checkpoint / "config.json"
        given = json.loads(path.read_text(encoding="utf-8")).get("id2label") if path is not None else None
        names = given or {}
        self.names = tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(config.num_labels))

    def prepare(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"pixel_values_videos": self.pixels(inputs)}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.model(batch["pixel_values_videos"].to(next(self.model.parameters()).dtype))}

    def finish(self, result: dict[str, Tensor]) -> Labels:
        return Labels({"logits": result["logits"].cpu()}, self.names)
