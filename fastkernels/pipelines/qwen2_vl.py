"""Qwen2-VL: pictures and videos of a prompt as patches, their placeholders as many tokens, positions by place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from fastkernels.engine.multimodal import Ints, Media, MediaItem, ProcessedPrompt
from fastkernels.errors import EnvironmentProblem, UnsupportedError, UsageError
from fastkernels.pipelines.media import load_image, load_video
from fastkernels.pipelines.options import read_options
from fastkernels.tasks.configs.qwen2_vl import Qwen2VLConfig

_MARKERS = {
    "<|vision_start|>": "vision_start_token_id",
    "<|vision_end|>": "vision_end_token_id",
    "<|image_pad|>": "image_token_id",
    "<|video_pad|>": "video_token_id",
}
_PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
_VIDEO_SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}
"""Pixels of a frame where a checkpoint says nothing of videos; as transformers' Qwen2VLVideoProcessor."""

_MOST_FRAMES = 32
"""Of an encoded video, evenly spaced: vLLM's default. Frames that come as arrays are all taken."""

_EXAMPLES = (("image", 1), ("image", 2), ("video", 1), ("", 0))
"""What example prompts hold in turn: a modality, and how many of it."""

_MOST_EXAMPLE_SIDE = 10
"""Of example pictures, in embeddings: two of them, or a video of two frames, leave a prompt its room."""


@dataclass(frozen=True)
class _Item:
    pixel_values: NDArray[np.float32]
    grid: tuple[int, int, int]
    key: bytes

    def num_tokens(self, merge_size: int) -> int:
        frames, height, width = self.grid
        return frames * height * width // merge_size**2


class Qwen2VLProcessor:
    """Of a checkpoint directory with preprocessor_config.json, or with the library's own numbers without one."""

    modalities = ("image", "video")
    needs_media = False

    def __init__(self, config: Qwen2VLConfig, tokenizer: Tokenizer, checkpoint: Path | None = None) -> None:
        self.config, self.tokenizer = config, tokenizer
        self._image_options = _processor_options(checkpoint, "preprocessor_config.json")
        self._video_options = _processor_options(checkpoint, "video_preprocessor_config.json") or self._image_options
        ids = {marker: getattr(config, name) for marker, name in _MARKERS.items()}
        self._ids = ids
        self._unknown = [marker for marker, token in ids.items() if tokenizer.token_to_id(marker) != token]

    def placeholder(self, modality: str) -> str:
        """Errors: UnsupportedError for another modality."""
        if modality not in _PADS:
            raise UnsupportedError(f"The model takes {' and '.join(_PADS)}, not {modality}.")
        return f"<|vision_start|>{_PADS[modality]}<|vision_end|>"

    def __call__(
        self, prompt: str | Sequence[int], data: Mapping[str, Any], add_special_tokens: bool = True
    ) -> ProcessedPrompt:
        """data: "image" and "video", each one or a list of them: anything that load_image and load_video take.

        Errors: UsageError when one cannot be read, or when there are more or fewer than placeholders.
        """
        text = prompt if isinstance(prompt, str) else None
        tokens = self._encode(prompt, add_special_tokens) if isinstance(prompt, str) else [int(t) for t in prompt]
        given = {modality: _as_list(data[modality]) for modality in data if data[modality] is not None}
        for modality in given:
            self.placeholder(modality)
        pads = {self.config.image_token_id: "image", self.config.video_token_id: "video"}
        for token, modality in pads.items():
            num_given, num_wanted = len(given.get(modality, ())), tokens.count(token)
            if num_given != num_wanted:
                raise UsageError(
                    f"The prompt has {num_wanted} {modality} placeholders ({_PADS[modality]}) and {num_given} "
                    f"{modality}s came with it; each needs the other."
                )
        if not any(given.values()):
            return ProcessedPrompt(tuple(tokens), text)
        items = {modality: iter([self._item(modality, one) for one in ones]) for modality, ones in given.items()}
        order = [(pads[token], next(items[pads[token]])) for token in tokens if token in pads]
        return self._expand(tokens, order, text)

    def _expand(self, tokens: list[int], order: list[tuple[str, _Item]], text: str | None) -> ProcessedPrompt:
        """Each placeholder as many times as its item has embeddings; positions on three axes.

        What follows an item begins behind its largest position, as when the model was published
        (https://arxiv.org/abs/2409.12191, section 2.1).
        """
        merge = self.config.vision.spatial_merge_size
        pads = (self.config.image_token_id, self.config.video_token_id)
        waiting = iter(order)
        made: list[int] = []
        media: list[MediaItem] = []
        positions: list[Ints] = []
        following = 0
        for token in tokens:
            if token not in pads:
                made.append(token)
                positions.append(np.full((3, 1), following))
                following += 1
                continue
            modality, item = next(waiting)
            num, (frames, height, width) = item.num_tokens(merge), item.grid
            places = np.arange(len(made), len(made) + num)
            grid = np.array([item.grid], dtype=np.int64)[0]
            media.append(MediaItem(modality, {"pixel_values": item.pixel_values, "grid_thw": grid}, item.key, places))
            made += [token] * num
            positions.append(np.indices((frames, height // merge, width // merge)).reshape(3, -1) + following)
            following = int(positions[-1].max()) + 1
        placed = np.concatenate(positions, axis=1).astype(np.int64)
        return ProcessedPrompt(tuple(made), text, Media(tuple(media), placed, following - len(made)))

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Markers that the tokenizer does not know, as that of the tiny models, are put in by hand."""
        if not self._unknown:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        tokens: list[int] = []
        for part in re.split("|".join(f"({re.escape(marker)})" for marker in self._unknown), text):
            if part in self._unknown:
                tokens.append(self._ids[part])
            elif part:
                tokens += self.tokenizer.encode(part, add_special_tokens=add_special_tokens and not tokens).ids
        return tokens

    def _item(self, modality: str, source: Any) -> _Item:
        frames = self._frames(source) if modality == "video" else [load_image(source)]
        digest = blake2b(f"{modality} {len(frames)} {frames[0].size}".encode(), digest_size=16)
        for frame in frames:
            digest.update(frame.tobytes())
        options = {} if modality == "image" else {"size": self._video_size}
        try:
            done = self._images(images=frames, return_tensors="np", **options)
        except ValueError as error:  # sides of which one is 200 times the other
            raise UsageError(f"The {modality} of {frames[0].size[0]} x {frames[0].size[1]} pixels: {error}.") from error
        _, height, width = (int(n) for n in done["image_grid_thw"][0])
        if max(height, width) > self.config.vision.max_grid_size:
            raise UsageError(
                f"The {modality} has {height} x {width} patches; at most {self.config.vision.max_grid_size} a side."
            )
        pixels = np.asarray(done["pixel_values"], dtype=np.float32)
        if modality == "video":
            pixels = self._tubelets(pixels, len(frames))
        num_frames = len(pixels) // (height * width)
        return _Item(np.ascontiguousarray(pixels), (num_frames, height, width), digest.digest())

    def _frames(self, source: Any) -> list[Image.Image]:
        is_encoded = not isinstance(source, np.ndarray | list | tuple)
        frames = load_video(source, most_frames=_MOST_FRAMES if is_encoded else None)
        return [Image.fromarray(frame) for frame in frames]

    def _tubelets(self, pixels: NDArray[np.float32], num_frames: int) -> NDArray[np.float32]:
        """Patches of pictures, in each of which a frame stands for all of a patch's frames, as patches of a video; the
        last frame is repeated until they are full."""
        vision = self.config.vision
        depth = vision.temporal_patch_size
        shape = (num_frames, -1, vision.in_channels, depth, vision.patch_size**2)
        single = pixels.reshape(shape)[:, :, :, 0]
        missing = -num_frames % depth
        single = np.concatenate([single, np.repeat(single[-1:], missing, axis=0)])
        grouped = single.reshape(-1, depth, *single.shape[1:]).transpose(0, 2, 3, 1, 4)
        return grouped.reshape(-1, vision.patch_dim)

    @cached_property
    def _images(self) -> Any:
        try:
            from transformers import Qwen2VLImageProcessorPil
        except ImportError as error:
            raise EnvironmentProblem(
                "To see pictures, install transformers: pip install 'fastkernels[server]'."
            ) from error
        vision = self.config.vision
        sizes = {
            "patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "merge_size": vision.spatial_merge_size,
        }
        return Qwen2VLImageProcessorPil(**{**self._image_options, **sizes})

    @cached_property
    def _video_size(self) -> dict[str, int]:
        options = self._video_options
        size = dict(options.get("size") or _VIDEO_SIZE)
        least, most = options.get("min_pixels"), options.get("max_pixels")
        return size | ({"shortest_edge": least} if least else {}) | ({"longest_edge": most} if most else {})

    def example_prompts(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Mapping[str, Any]]:
        """A picture, two pictures, a video and the text alone, in turn, at places and in odd sizes drawn by seed."""
        random = np.random.default_rng(seed)
        made: list[Mapping[str, Any]] = []
        for tokens, (modality, count) in zip(prompts, cycle(_EXAMPLES)):
            whole = list(tokens)
            for place in sorted(random.integers(0, len(tokens) + 1, count), reverse=True):
                whole[place:place] = [self._ids[m] for m in ("<|vision_start|>", _PADS[modality], "<|vision_end|>")]
            items = [self._example(modality, random) for _ in range(count)]
            made.append({"prompt_token_ids": whole, **({"multi_modal_data": {modality: items}} if items else {})})
        return made

    def _example(self, modality: str, random: np.random.Generator) -> NDArray[np.uint8]:
        vision = self.config.vision
        square = vision.patch_size * vision.spatial_merge_size
        most = min(_MOST_EXAMPLE_SIDE, max(3, self.config.max_position_embeddings // 256))
        height, width = (int(side) for side in random.integers(square, most * square // 2, 2) * 2 + 1)
        shape = (2, height, width, 3) if modality == "video" else (height, width, 3)
        return random.integers(0, 256, shape, dtype=np.uint8)


def _as_list(value: Any) -> list[Any]:
    """One item or several. A list of pictures is one video only inside another list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _processor_options(checkpoint: Path | None, name: str) -> dict[str, Any]:
    """Those of the arithmetic, not the names of classes."""
    options = read_options(checkpoint, name)
    return {k: v for k, v in options.items() if not k.endswith(("processor_type", "processor_class"))}
