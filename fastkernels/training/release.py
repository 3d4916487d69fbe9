"""What a training leaves behind: a checkpoint as transformers publishes it, and training.json, how it came about."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastkernels.bench.environment import environment
from fastkernels.training.loop import Progress

RECORD = "training.json"
_MOST_POINTS = 200
_MODE = 0o644
"""safetensors writes files that their owner alone can read."""


def release(model: nn.Module, folder: Path, dtype: torch.dtype, record: Mapping[str, Any]) -> None:
    """Write config.json, model.safetensors with weights in `dtype`, and the record with the environment.

    The model's own weights become those of the files.
    """
    model.to(dtype=dtype, device="cpu")
    model.save_pretrained(folder)  # type: ignore[operator]
    for path in folder.glob("*.safetensors"):
        path.chmod(_MODE)
    device = str(record.get("device", "cpu"))
    body = {
        **record,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "weights_dtype": str(dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "environment": environment(device),
    }
    (folder / RECORD).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def amend(folder: Path, more: Mapping[str, Any]) -> None:
    """Add to the record what was measured with the released files."""
    path = folder / RECORD
    body = {**json.loads(path.read_text(encoding="utf-8")), **more}
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def curve(done: Progress) -> list[dict[str, float]]:
    """The mean loss of each of at most 200 equal stretches of steps, by the last step of each."""
    width = max(1, -(-len(done.losses) // _MOST_POINTS))
    parts: list[Sequence[float]] = [done.losses[i : i + width] for i in range(0, len(done.losses), width)]
    ends = [min((i + 1) * width, len(done.losses)) for i in range(len(parts))]
    return [{"step": end, "loss": round(sum(p) / len(p), 4)} for end, p in zip(ends, parts, strict=True)]
