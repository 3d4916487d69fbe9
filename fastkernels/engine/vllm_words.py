"""The words of vLLM's LLM, as EngineConfig has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from fastkernels.engine.config import EngineConfig
from fastkernels.errors import UsageError

_RENAMED = {"block_size": "page_size", "num_gpu_blocks_override": "num_pages"}

_ONLY: dict[str, tuple[Any, str]] = {
    "trust_remote_code": (
        False,
        "no code of a checkpoint is run; `fastkernels list --models` shows which architectures there are",
    ),
    "disable_log_stats": (True, "statistics are not logged; read llm.core.stats()"),
    "skip_tokenizer_init": (False, "a model always has a tokenizer; prompts may be token ids all the same"),
    "tokenizer_mode": ("auto", "tokenizers are those of tokenizer.json"),
    "runner": ("auto", "the model's architecture says whether it makes tokens or embeddings"),
    "convert": ("auto", "the model's architecture says whether it makes tokens or embeddings"),
    "enable_chunked_prefill": (True, "prompts are computed in chunks wherever a model has a cache"),
    "kv_cache_dtype": ("auto", "the KV cache has the model's dtype"),
    "quantization": (None, "a checkpoint's own quantisation is read from its config.json, and no other is made"),
    "revision": (None, "models are folders, which have no revisions"),
    "tokenizer_revision": (None, "models are folders, which have no revisions"),
    "hf_token": (None, "nothing is downloaded"),
    "download_dir": (None, "nothing is downloaded"),
    "hf_overrides": (None, "change a copy of config.json instead"),
    "enable_lora": (False, "there are no LoRA adapters"),
    "pipeline_parallel_size": (1, "models are split by tensor_parallel_size alone"),
    "data_parallel_size": (1, "start an engine for each copy of the model"),
    "cpu_offload_gb": (0, "weights stay on the device"),
    "speculative_config": (None, "there is no speculative decoding"),
    "kv_cache_memory_bytes": (None, "say num_pages, or gpu_memory_utilization"),
    "chat_template": (None, "give it to LLM.chat"),
}
"""Words whose one value is what is done here anyway, and why there is no other."""


def engine_config(model: str, candidates: tuple[str, ...], options: Mapping[str, Any]) -> EngineConfig:
    """What LLM was given, in EngineConfig's words or vLLM's.

    Errors: UsageError names a word that means nothing here, or a value that cannot be had.
    """
    known = {field.name for field in fields(EngineConfig)} - {"model", "candidates"}
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name in _ONLY:
            only, why = _ONLY[name]
            if value is not None and value != only:
                raise UsageError(f"{name} is {value!r}; it can only be {only!r}: {why}.")
            continue
        ours = _RENAMED.get(name, name)
        if ours not in known:
            raise UsageError(f"LLM has no option {name!r}; it has {', '.join(sorted({*known, *_RENAMED}))}.")
        if ours in found or (ours != name and ours in options):
            raise UsageError(f"{name} is another name of {ours}; give one of them.")
        found[ours] = value
    for name in ("dtype", "device"):
        if isinstance(found.get(name), torch.dtype | torch.device):
            found[name] = str(found[name]).removeprefix("torch.")
    if found.get("seed", 0) is None:
        del found["seed"]
    if found.get("tokenizer") is not None:
        found["tokenizer"] = str(found["tokenizer"])
    return EngineConfig(model=model, candidates=candidates, **found)
