"""scikit-learn's bundled digits as short videos, and the tiny V-JEPA 2 classifier that reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastkernels.errors import EnvironmentProblem
from fastkernels.training.language import transformers
from fastkernels.training.loop import Plan

NAME = "trained-digits"
MODEL_CLASS = "VJEPA2ForVideoClassification"
PLAN = Plan(steps=1200, learning_rate=2e-3, matrix_learning_rate=0.02, weight_decay=0.01)
BATCH_SIZE = 64
NUM_FRAMES = 2
_SIDE = 32
_HELD_OUT = 5
"""One digit in so many is held out."""

_SIZES: dict[str, Any] = {
    "patch_size": 8,
    "crop_size": _SIDE,
    "frames_per_clip": NUM_FRAMES,
    "tubelet_size": NUM_FRAMES,
    "hidden_size": 72,
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "mlp_ratio": 2.0,
    "num_pooler_layers": 1,
    "pred_hidden_size": 12,
    "pred_num_attention_heads": 1,
    "pred_num_hidden_layers": 1,
    "pred_num_mask_tokens": 1,
    "num_labels": 10,
}
_PROCESSOR = {"crop_size": {"height": _SIDE, "width": _SIDE}, "size": {"shortest_edge": _SIDE}}
"""As the published video_preprocessor_config.json: of the file's numbers those that differ from the library's."""


@dataclass(frozen=True)
class Digits:
    """videos: [num, 2, 8, 8, 3] uint8, the same grey picture twice; labels: [num] in [0, 10)."""

    videos: np.ndarray
    labels: np.ndarray


@cache
def digits() -> tuple[Digits, Digits]:
    """1437 to train on, 360 held out: every fifth.

    Errors: EnvironmentProblem when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise EnvironmentProblem("The digits come with scikit-learn: pip install 'fastkernels[train]'.") from error
    found = load_digits()
    grey = np.round(found.images * (255 / 16)).astype(np.uint8)
    videos = np.broadcast_to(grey[:, None, :, :, None], (len(grey), NUM_FRAMES, 8, 8, 3))
    is_held_out = np.arange(len(grey)) % _HELD_OUT == 0
    train, held_out = (Digits(videos[kept], found.target[kept]) for kept in (~is_held_out, is_held_out))
    return train, held_out


def build(seed: int) -> nn.Module:
    """The classifier with weights by seed, as transformers initialises them."""
    library = transformers()
    torch.manual_seed(seed)
    model: nn.Module = getattr(library, MODEL_CLASS)(library.VJEPA2Config(**_SIZES))
    return model


class DigitsTask:
    """Digits drawn by (seed, step), each moved by up to one of its 8 x 8 pixels either way."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device, self.data = seed, device, digits()[0]
        from fastkernels.pipelines.vjepa2 import VideoProcessor  # which needs packages that are told of by `digits`

        self.processor = VideoProcessor(_SIDE, _SIDE)
        self.model = build(seed).to(device)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Pixels [64, 2, 3, 32, 32] and labels [64]."""
        random = np.random.default_rng((self.seed, step))
        chosen = random.integers(0, len(self.data.labels), BATCH_SIZE)
        padded = np.pad(self.data.videos[chosen], ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        rows, columns = random.integers(0, 3, (2, BATCH_SIZE))
        moved = [v[:, y : y + 8, x : x + 8] for v, y, x in zip(padded, rows.tolist(), columns.tolist(), strict=True)]
        pixels = self.processor(np.concatenate(moved)).unflatten(0, (BATCH_SIZE, NUM_FRAMES))
        return pixels, torch.from_numpy(self.data.labels[chosen])

    def loss(self, step: int) -> Tensor:
        pixels, labels = (tensor.to(self.device) for tensor in self.batch(step))
        logits = self.model(pixel_values_videos=pixels).logits
        return nn.functional.cross_entropy(logits, labels, label_smoothing=0.05)


def write_processor(folder: Path) -> None:
    """video_preprocessor_config.json: the whole picture is kept, without the library's crop."""
    (folder / "video_preprocessor_config.json").write_text(json.dumps(_PROCESSOR, indent=1) + "\n", encoding="utf-8")
