"""One engine in a process of its own, told what to do by JSON lines on stdin; run.py starts it.

    python worker.py ours|vllm

It answers on the stdout it was started with; whatever the engine prints goes to stderr. Only the engine that is named
is imported, so that each can come from another PYTHONPATH.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import json
import os
import platform
import struct
import sys
import time
from pathlib import Path
from typing import Any, Protocol

STARTED = time.time()


class Engine(Protocol):
    def facts(self) -> dict[str, Any]: ...

    def generate(self, prompts: list[list[int]], output_lens: list[int]) -> tuple[float, list[list[int]]]: ...

    def counters(self) -> dict[str, Any]: ...


class Ours:
    """FastKernels. options: EngineConfig's; model: a preset or a checkpoint directory."""

    def __init__(self, order: dict[str, Any]) -> None:
        from fastkernels import LLM

        options = {
            "dtype": order["dtype"],
            "max_model_len": order["max_model_len"],
            "max_num_seqs": order["max_num_seqs"],
            "max_num_batched_tokens": order["max_num_batched_tokens"],
            "page_size": order["page_size"],
            "num_pages": order["kv_tokens"] // order["page_size"],
            "enable_prefix_caching": False,
            "seed": order["seed"],
        }
        if order["device"] is not None:
            options["device"] = order["device"]
        self.llm = LLM(order["model"], **{**options, **order["options"]})

    def facts(self) -> dict[str, Any]:
        from fastkernels.bench.environment import environment

        info = self.llm.core.info
        return {
            "version": importlib.metadata.version("fastkernels") if _has("fastkernels") else None,
            "kv_tokens": info.num_pages * info.page_size,
            "engine_startup_seconds": info.startup_seconds,
            "dtype": info.dtype,
            "environment": environment(info.device),
        }

    def generate(self, prompts: list[list[int]], output_lens: list[int]) -> tuple[float, list[list[int]]]:
        from fastkernels import SamplingParams

        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in output_lens]
        started = time.perf_counter()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        return seconds, [list(output.outputs[0].token_ids) for output in outputs]

    def counters(self) -> dict[str, Any]:
        stats = self.llm.core.stats()
        names = ("num_steps", "num_graph_steps", "num_preemptions", "num_compilations", "num_kernels_made")
        return {name: getattr(stats, name) for name in (*names, "peak_memory_bytes")}


class Vllm:
    """vLLM's offline LLM. options: its own, over those of the order, None to leave one out; a checkpoint directory or
    one with a config."""

    def __init__(self, order: dict[str, Any]) -> None:
        from vllm import LLM

        options = {
            "skip_tokenizer_init": True,
            "load_format": order["load_format"],
            "dtype": order["dtype"],
            "seed": order["seed"],
            "max_model_len": order["max_model_len"],
            "max_num_seqs": order["max_num_seqs"],
            "max_num_batched_tokens": order["max_num_batched_tokens"],
            "block_size": order["page_size"],
            "kv_cache_memory_bytes": order["kv_tokens"] * order["kv_bytes_per_token"],
            "gpu_memory_utilization": order["gpu_memory_utilization"],
            "enable_prefix_caching": False,
            "disable_log_stats": True,
        }
        options |= order["options"]
        self.llm = LLM(model=order["model"], **{name: value for name, value in options.items() if value is not None})

    def facts(self) -> dict[str, Any]:
        import vllm

        cache = getattr(getattr(getattr(self.llm, "llm_engine", None), "vllm_config", None), "cache_config", None)
        num_blocks = getattr(cache, "num_gpu_blocks", None)
        return {
            "version": vllm.__version__,
            "kv_tokens": num_blocks * cache.block_size if num_blocks else None,
        }

    def generate(self, prompts: list[list[int]], output_lens: list[int]) -> tuple[float, list[list[int]]]:
        from vllm import SamplingParams

        params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True, detokenize=False) for n in output_lens]
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        started = time.perf_counter()
        outputs = self.llm.generate(given, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        return seconds, [list(output.outputs[0].token_ids) for output in outputs]

    def counters(self) -> dict[str, Any]:
        return {}


ENGINES: dict[str, type[Any]] = {"ours": Ours, "vllm": Vllm}


def _has(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def versions() -> dict[str, str]:
    names = ("torch", "triton", "transformers", "tokenizers", "numpy", "vllm", "fastkernels")
    found = {name: importlib.metadata.version(name) for name in names if _has(name)}
    return {"python": platform.python_version(), **found}


def digest(answers: list[list[int]]) -> str:
    """As fastkernels.bench.e2e.tokens.digest, which this process may not have."""
    state = hashlib.sha256()
    for tokens in answers:
        state.update(struct.pack(f"<{len(tokens) + 1}I", len(tokens), *tokens))
    return state.hexdigest()


def start(name: str, order: dict[str, Any]) -> tuple[Engine, dict[str, Any]]:
    building = time.perf_counter()
    engine: Engine = ENGINES[name](order)
    now = time.time()
    return engine, {
        "startup_seconds": now - order["spawned"],
        "building_seconds": time.perf_counter() - building,
        "interpreter_seconds": STARTED - order["spawned"],
        "versions": versions(),
        **engine.facts(),
    }


def run(engine: Engine, order: dict[str, Any]) -> dict[str, Any]:
    """One pass over the requests of a file. share: of them, from the first on."""
    requests = json.loads(Path(order["requests"]).read_text())
    chosen = requests[: max(1, round(len(requests) * order["share"]))]
    prompts, output_lens = [r["prompt"] for r in chosen], [r["output_len"] for r in chosen]
    before = engine.counters()
    gc.collect()
    seconds, answers = engine.generate(prompts, output_lens)
    after = engine.counters()
    short = [i for i, (answer, n) in enumerate(zip(answers, output_lens, strict=True)) if len(answer) != n]
    if short:
        raise RuntimeError(f"{len(short)} answers have another length than asked for, the first is number {short[0]}.")
    if order.get("tokens"):
        Path(order["tokens"]).write_text(json.dumps(answers))
    return {
        "seconds": seconds,
        "num_requests": len(chosen),
        "num_prompt_tokens": sum(map(len, prompts)),
        "num_output_tokens": sum(output_lens),
        "digest": digest(answers),
        "counters": {name: value if name.startswith("peak") else value - before[name] for name, value in after.items()},
    }


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.set_inheritable(replies.fileno(), False)
    os.dup2(2, 1)
    engine: Engine | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["do"] == "start":
                engine, reply = start(sys.argv[1], order)
            else:
                assert engine is not None
                reply = run(engine, order)
        except Exception as error:  # whatever an engine does wrong is told, and ends it
            replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
            raise
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
