"""What differs from model to model when it is compared with vLLM on one GPU, and a configuration of fewer layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastkernels.engine.model_source import find_model


@dataclass(frozen=True)
class Comparison:
    """Both engines are alive at once, with their weights, caches and graphs: layers is what leaves room for it, and for
    a checkpoint that is written and read within minutes; None: all.

    vllm: arguments of its LLM; None takes one away. note: what the comparison leaves out.
    """

    preset: str
    layers: int | None = None
    max_num_seqs: int = 1024
    kv_tokens: int = 335_872
    vllm: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


_OWN_PAGES = {"block_size": None, "kv_cache_memory_bytes": None}
"""Of models with states vLLM sizes pages and states itself, within gpu_memory_utilization."""

COMPARISONS: dict[str, Comparison] = {
    "llama": Comparison("llama-3.1-8b"),
    "mixtral": Comparison("mixtral-8x7b-v0.1", layers=8),
    "gpt-oss": Comparison("gpt-oss-120b", layers=12),
    "mamba2": Comparison("mamba-codestral-7b", max_num_seqs=96, vllm=_OWN_PAGES),
    "qwen3_next": Comparison("qwen3-next-80b-a3b", layers=8, max_num_seqs=512, vllm=_OWN_PAGES),
    "qwen2_vl": Comparison(
        "qwen2-vl-7b-instruct",
        vllm={"limit_mm_per_prompt": {"image": 0, "video": 0}},
        note="text alone: vLLM takes pictures through the checkpoint's own processor and tokenizer",
    ),
}
"""By architecture. Whisper is missing for the reason in qwen2_vl's note."""


def comparison_of(model: str) -> Comparison:
    """By an architecture's name or its preset's; of any other model without settings of its own."""
    known = {c.preset: c for c in COMPARISONS.values()} | COMPARISONS
    return known.get(model) or Comparison(model)


def architecture_named(preset: str) -> str:
    return next((name for name, c in COMPARISONS.items() if c.preset == preset), preset)


def with_layers(preset: str, num_layers: int | None, folder: Path) -> str:
    """The preset, or a config.json like it with fewer layers, for both engines. Errors: SystemExit for more of them."""
    if num_layers is None:
        return preset
    config = dict(find_model(preset).hf_config)
    published = config["num_hidden_layers"]
    if not 0 < num_layers <= published:
        raise SystemExit(f"{preset} has {published} layers, not {num_layers}.")
    config["num_hidden_layers"] = num_layers
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:num_layers]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(preset).stem}-{num_layers}-layers.json"
    path.write_text(json.dumps(config, indent=1))
    return str(path)


def kv_bytes_per_token(hf_config: Mapping[str, Any], dtype: str) -> int:
    """Of all layers whose keys and values are kept; 0 of a model without such."""
    if "num_key_value_heads" not in hf_config:
        return 0
    num_layers, interval = hf_config["num_hidden_layers"], hf_config.get("full_attention_interval", 1)
    head_dim = hf_config.get("head_dim") or hf_config["hidden_size"] // hf_config["num_attention_heads"]
    num_bytes = {"float32": 4}.get(dtype, 2)
    return 2 * (num_layers // interval) * hf_config["num_key_value_heads"] * head_dim * num_bytes
