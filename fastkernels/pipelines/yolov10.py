"""What is in a picture, and where, by YOLOv10."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from fastkernels.errors import UsageError
from fastkernels.pipelines.inputs import as_floats
from fastkernels.pipelines.media import load_image
from fastkernels.pipelines.result import Result
from fastkernels.tasks.configs.yolov10 import YOLOv10Config

_GREY = 114
_CONFIDENCE = 0.25
_LARGEST = 4096
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


@dataclass(frozen=True)
class Detections(Result):
    """tensors: boxes [n, 4] float32 (left, top, right, bottom) in pixels of the picture, scores [n], labels [n].

    names: of the classes. picture: [height, width, 3] uint8 as the model saw it; size: the given one's width, height.
    """

    names: tuple[str, ...] = ()
    picture: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)

    def _found(self) -> list[tuple[str, float, list[float]]]:
        columns = (self.tensors[name].tolist() for name in ("labels", "scores", "boxes"))
        return [(self.names[i] if self.names else str(i), score, box) for i, score, box in zip(*columns, strict=True)]

    def to_json(self) -> dict[str, Any]:
        found = [
            {"label": label, "score": round(score, 4), "box": [round(x, 2) for x in box]}
            for label, score, box in self._found()
        ]
        return {"image_size": list(self.size), "detections": found}

    def save(self, path: Path) -> None:
        """The boxes drawn on the picture (.png), or as .json or .safetensors."""
        if path.suffix == ".json":
            path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        elif path.suffix == ".png":
            self.draw().save(path)
        elif path.suffix == ".safetensors":
            super().save(path)
        else:
            raise UsageError(f"{path.name}: boxes are written as .png, .json or .safetensors.")

    def draw(self) -> Image.Image:
        if self.picture is None:
            raise UsageError("There is no picture to draw on: the request gave pixel_values. Save as .json.")
        image = Image.fromarray(self.picture).resize(self.size, Image.Resampling.BICUBIC)
        canvas = ImageDraw.Draw(image)
        line = max(1, round(sum(self.size) / 400))
        labels = self.tensors["labels"].tolist()
        for number, (label, score, box) in zip(labels, self._found(), strict=True):
            colour = COLOURS[number % len(COLOURS)]
            left, top, right, bottom = box
            canvas.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=line)
            canvas.text((left + 2 * line, top + line), f"{label} {score:.2f}", fill=colour)
        return image


class YOLOv10Pipeline:
    """{"image": ...} -> Detections.

    "size": pixels a side of the square that the picture is fitted into, a multiple of 32; "confidence": the least
    score; or pixel_values [3, height, width] in [0, 1] that are ready, sides multiples of 32.
    Source: the picture is scaled and padded with grey (114) as LetterBox of ultralytics does with auto=False.
    """

    def __init__(self, model: nn.Module, config: YOLOv10Config, checkpoint: Path | None) -> None:
        self.model, self.config = model, config

    def prepare(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Errors: UsageError when there is no image or its size does not fit."""
        try:
            confidence = float(inputs.get("confidence", _CONFIDENCE))
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"confidence is a number, got {inputs['confidence']!r}.") from error
        if not 0 <= confidence <= 1:
            raise UsageError(f"confidence is from 0 to 1, got {confidence}.")
        if "pixel_values" in inputs:
            pixels = as_floats(inputs["pixel_values"], "pixel_values")
            if pixels.dim() != 3 or len(pixels) != 3 or not pixels.numel() or any(n % 32 for n in pixels.shape[1:]):
                raise UsageError(f"pixel_values are [3, height, width], multiples of 32, got {list(pixels.shape)}.")
            frame = [1.0, 0.0, 0.0, pixels.shape[2], pixels.shape[1], confidence]
            return {"pixel_values": pixels, "frame": torch.tensor(frame)}
        if "image" not in inputs:
            raise UsageError(f"A request has 'image' or 'pixel_values', got {', '.join(inputs) or 'nothing'}.")
        size = inputs.get("size", self.config.image_size)
        if not isinstance(size, int) or not 32 <= size <= _LARGEST or size % 32:
            raise UsageError(f"size is a multiple of 32 from 32 to {_LARGEST}, got {size!r}.")
        picture, scale, left, top, width, height = letterbox(np.array(load_image(inputs["image"])), size)
        return {"picture": picture, "frame": torch.tensor([scale, left, top, width, height, confidence])}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = next(self.model.parameters()).dtype
        pixels = batch["picture"] / 255 if "picture" in batch else batch["pixel_values"]
        boxes, scores, labels = self.model.detect(pixels.to(dtype))  # type: ignore[operator]
        found = {"boxes": boxes, "scores": scores, "labels": labels}
        return found | {name: batch[name] for name in ("picture", "frame") if name in batch}

    def finish(self, result: dict[str, Tensor]) -> Detections:
        scale, left, top, width, height, confidence = result["frame"].tolist()
        scores = result["scores"].float().cpu()
        chosen = scores >= confidence
        boxes = (result["boxes"].cpu()[chosen] - torch.tensor([left, top] * 2)) / scale
        boxes = torch.minimum(boxes.clamp_min(0), torch.tensor([width, height] * 2))
        tensors = {"boxes": boxes, "scores": scores[chosen], "labels": result["labels"].cpu()[chosen]}
        size = (round(width), round(height))
        picture = None
        if "picture" in result:
            inner_width, inner_height = _inner_size(size, scale)
            rows, columns = slice(int(top), int(top) + inner_height), slice(int(left), int(left) + inner_width)
            picture = result["picture"].cpu()[:, rows, columns].permute(1, 2, 0).numpy()
        return Detections(tensors, self.config.names, picture, size)

    def example_requests(self, num: int, seed: int) -> list[dict[str, Any]]:
        """Pictures of squares on noise, of several shapes."""
        random = np.random.default_rng(seed)
        requests = []
        for _ in range(num):
            height, width = random.integers(20, 400, 2)
            image = random.integers(0, 80, (height, width, 3)).astype(np.uint8)
            row, column = height // 4, width // 4
            image[row : row + height // 2, column : column + width // 2] += random.integers(0, 170, 3).astype(np.uint8)
            requests.append({"image": image, "confidence": 0.0})
        return requests


def _inner_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def letterbox(image: np.ndarray, size: int) -> tuple[Tensor, float, int, int, int, int]:
    """(picture [3, size, size] uint8, scale, left, top, width, height): scaled to fit, the rest grey on both sides."""
    height, width = image.shape[:2]
    scale = min(size / height, size / width)
    inner_width, inner_height = _inner_size((width, height), scale)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    if (inner_height, inner_width) != (height, width):
        pixels = interpolate(pixels, (inner_height, inner_width), mode="bilinear", align_corners=False)
    picture = pixels[0].round().to(torch.uint8)
    left, top = (round((size - inner) / 2 - 0.1) for inner in (inner_width, inner_height))
    picture = pad(picture, (left, size - inner_width - left, top, size - inner_height - top), value=_GREY)
    return picture, scale, left, top, width, height
