"""The random weights of a preset as a checkpoint that any engine loads.

    python checkpoint.py PRESET DIRECTORY [--seed 0] [--config-only]

The tensors are those that FastKernels gives the preset itself for that seed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from fastkernels.dtypes import find_dtype
from fastkernels.engine.model_source import build_config, find_model
from fastkernels.registry import architecture_of
from fastkernels.weights import random_tensors

SHARD_BYTES = 4 << 30
PUBLISHED = {
    "GptOssForCausalLM": (
        (r"experts\.w13\.(weight_)?(bias|blocks|scales)$", r"experts.gate_up_proj_\2"),
        (r"experts\.w2\.(weight_)?(bias|blocks|scales)$", r"experts.down_proj_\2"),
        (r"self_attn\.attn\.sinks$", "self_attn.sinks"),
    )
}
"""Patterns by class, where a model's own names are not the published ones."""


def write_checkpoint(preset: str, directory: Path, seed: int, dtype: str | None = None) -> int:
    """The number of bytes written."""
    source = find_model(preset)
    config = build_config(source)
    architecture = architecture_of(source.hf_config)
    with torch.device("meta"):
        model = getattr(importlib.import_module(architecture.module), architecture.class_name)(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = find_dtype(dtype or config.torch_dtype)
    directory.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    size = total = 0

    def write() -> None:
        name = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
        save_file(shard, directory / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, tensor in random_tensors(model, seed, device):
        whole = tensor.narrow(0, 0, tensor.shape[0]).to(kind if tensor.byte_range is None else torch.uint8).cpu()
        if size + whole.nbytes > SHARD_BYTES and shard:
            write()
            size = 0
        shard[published_name(architecture.class_name, name)] = whole
        size += whole.nbytes
        total += whole.nbytes
    write()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def published_name(class_name: str, name: str) -> str:
    for pattern, replacement in PUBLISHED.get(class_name, ()):
        name = re.sub(pattern, replacement, name)
    return name


def write_config(preset: str, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in find_model(preset).hf_config.items() if not key.startswith("_")}
    (directory / "config.json").write_text(json.dumps(config, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype")
    parser.add_argument("--config-only", action="store_true")
    given = parser.parse_args()
    started = time.perf_counter()
    write_config(given.preset, given.directory)
    size = 0 if given.config_only else write_checkpoint(given.preset, given.directory, given.seed, given.dtype)
    print(f"{size / 1e9:.2f} GB in {time.perf_counter() - started:.1f} s: {given.directory}")


if __name__ == "__main__":
    main()
