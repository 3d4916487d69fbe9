"""What a request of a pipeline comes to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from fastkernels.errors import UsageError


@dataclass(frozen=True)
class Result:
    """tensors: the answer by name, on the CPU. A pipeline whose answers people look at makes a class of its own."""

    tensors: Mapping[str, Tensor]

    def to_json(self) -> dict[str, Any]:
        """What a person or a program reads at once: small tensors whole, of others shape, mean and deviation."""
        return {name: _summary(t) for name, t in self.tensors.items()}

    def encoded(self) -> tuple[str, bytes]:
        """Media type and content, as a server sends it."""
        return "application/json", json.dumps(self.to_json()).encode()

    def save(self, path: Path) -> None:
        """Errors: UsageError when the answer cannot be written as such a file."""
        if path.suffix != ".safetensors":
            raise UsageError(f"{path.name}: this answer is written as .safetensors.")
        save_file({name: t.clone(memory_format=torch.contiguous_format) for name, t in self.tensors.items()}, path)


def _summary(tensor: Tensor) -> Any:
    if tensor.numel() <= 16:
        return tensor.tolist()
    x = tensor.double()
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "mean": float(f"{x.mean():.6g}"),
        "deviation": float(f"{x.std():.6g}"),
    }


@dataclass(frozen=True)
class ImageResult(Result):
    """tensors: "image" [3, height, width] in [0, 1] and whatever else; written as a picture."""

    @property
    def image(self) -> Image.Image:
        """8 bits a channel, rounded."""
        pixels = (self.tensors["image"].permute(1, 2, 0) * 255).round()
        return Image.fromarray(pixels.to(torch.uint8).numpy())

    def png(self) -> bytes:
        buffer = BytesIO()
        self.image.save(buffer, "PNG")
        return buffer.getvalue()

    def encoded(self) -> tuple[str, bytes]:
        return "image/png", self.png()

    def save(self, path: Path) -> None:
        """Errors: UsageError when the answer cannot be written as such a file."""
        if path.suffix == ".safetensors":
            super().save(path)
            return
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".bmp"):
            raise UsageError(f"{path.name}: this answer is written as .png, .jpg, .webp, .bmp or .safetensors.")
        self.image.save(path)
