"""Options of the commands that build an engine: one for each field of EngineConfig."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

from typer import Argument, Option

from fastkernels.engine.config import EngineConfig

_HELP = {
    "model": "A checkpoint directory, a config.json, or a preset such as tiny-llama.",
    "tokenizer": "A folder with the tokenizer to use; the model's own when left out.",
    "load_format": "dummy: random weights by seed, whatever the checkpoint holds.",
    "dtype": "float32, bfloat16, float16, or auto: the model's own.",
    "device": "cpu, cuda or fake (no model: for tests); the GPU when there is one.",
    "tensor_parallel_size": "Devices that share the model.",
    "enable_expert_parallel": "Each device holds some experts whole, instead of a slice of every expert.",
    "max_model_len": "Tokens of prompt and answer; the model's own when left out.",
    "max_num_seqs": "Requests in one step.",
    "max_num_batched_tokens": "Tokens in one step.",
    "max_num_waiting": "Requests that may wait; more are refused.",
    "page_size": "Tokens in a page of the KV cache.",
    "num_pages": "Pages of the KV cache; what the device's memory holds when left out.",
    "gpu_memory_utilization": "Share of the device's memory to use.",
    "enable_prefix_caching": "Keep the pages of prompts for others that begin alike.",
    "enforce_eager": "Capture no CUDA graph.",
    "warm": "lazy: compile at first use; full: before the first request.",
    "mamba_ssm_cache_dtype": "Of Mamba-2's states: auto (the activations'), float32, bfloat16 or float16.",
    "seed": "Of random weights, and of requests that bring none.",
    "candidates": "An implementation set that replaces ops; may be repeated.",
}
_SHORT = {"tensor_parallel_size": "--tp"}
_OF_SERVERS = ("max_num_waiting",)


def takes_engine_config(function: Callable[..., Any], is_model_named: bool = False) -> Callable[..., Any]:
    """The command's first argument, an EngineConfig, becomes MODEL and one option for each other field.

    is_model_named: the model is an option too, and what is of a server's queue is left out.
    """
    hints = get_type_hints(EngineConfig)
    signature = inspect.signature(function, eval_str=True)
    own = list(signature.parameters.values())[1:]
    chosen_fields = [field for field in fields(EngineConfig) if not (is_model_named and field.name in _OF_SERVERS)]
    names = [field.name for field in chosen_fields]
    parameters = [_parameter(f.name, hints[f.name], f.default, is_model_named) for f in chosen_fields]

    @wraps(function)
    def command(**given: Any) -> Any:
        chosen = {name: given.pop(name) for name in names if name in given}
        chosen["candidates"] = tuple(chosen.get("candidates") or ())
        return function(EngineConfig(**chosen), **given)

    command.__signature__ = signature.replace(parameters=[*parameters, *own])  # type: ignore[attr-defined]
    return command


def _parameter(name: str, kind: Any, default: Any, is_model_named: bool) -> inspect.Parameter:
    if name == "model":
        annotation: Any = Annotated[str, Option(help=_HELP[name]) if is_model_named else Argument(help=_HELP[name])]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
    if name == "candidates":
        kind, default = list[str] | None, None
    flag = f"--{name.replace('_', '-')}"
    declared = [f"{flag}/--no-{flag[2:]}" if kind is bool else flag, *([_SHORT[name]] if name in _SHORT else [])]
    annotation = Annotated[kind, Option(*declared, help=_HELP[name])]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
