"""Models of published widths with few layers."""

from __future__ import annotations

import json
from pathlib import Path

from fastkernels.engine.model_source import find_model

MODELS = [
    ("llama-3.1-8b", 1, 1024),
    ("mixtral-8x7b-v0.1", 1, 1024),
    ("gpt-oss-20b", 2, 1024),
    ("mamba-codestral-7b", 1, 128),
    ("qwen3-next-80b-a3b", 4, 256),
    ("qwen2-vl-7b-instruct", 1, 1024),
]
"""Preset, layers (so many that each kind is there once), sequences in a step."""


def few_layers(preset: str, num_layers: int, folder: Path) -> Path:
    """The preset's configuration with its first layers alone, as a file in `folder`."""
    published = find_model(preset).hf_config
    fewer = {**published, "num_hidden_layers": num_layers}
    if "layer_types" in published:
        fewer["layer_types"] = published["layer_types"][:num_layers]
    path = folder / "config.json"
    path.write_text(json.dumps(fewer))
    return path
