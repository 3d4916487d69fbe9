"""A model on its device: built, given its caches, and ready to be stepped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fastkernels.cache import PAGED_KINDS, CacheKind, CacheSpec, cached_layers
from fastkernels.context import ForwardContext, Phase, set_forward_context
from fastkernels.distributed.tensor_parallel import tp_size
from fastkernels.dtypes import find_dtype
from fastkernels.engine.cache import allocate_caches, cache_bytes, cache_groups, state_bytes
from fastkernels.engine.config import EngineConfig, Warm
from fastkernels.engine.graphs import graph_sizes
from fastkernels.engine.model import build_config, build_model, find_device, find_model, find_tokenizer
from fastkernels.engine.outputs import EngineRequest
from fastkernels.engine.runners.autoregressive import AutoregressiveRunner, RunnerLimits
from fastkernels.engine.step import ModelFacts
from fastkernels.engine.structured import Grammars
from fastkernels.errors import EnvironmentProblem, UnsupportedError, UsageError
from fastkernels.overlay import Overlay, install
from fastkernels.registry import ops_of_module
from fastkernels.sets import ImplementationSet, resolve_set

DEFAULT_NUM_PAGES = 512
GRAPH_BYTES = 1 << 30
"""Left free for CUDA graphs, which are captured after the caches are there."""


class ModelExecutor:
    """One rank's model, caches and runner.

    Errors: those of the configuration, the checkpoint and the candidates; UnsupportedError when no page fits.
    """

    def __init__(self, config: EngineConfig, candidates: Sequence[ImplementationSet] = ()) -> None:
        self.config = config
        if tp_size() != config.tensor_parallel_size:
            raise EnvironmentProblem(
                f"This process belongs to a group of {tp_size()} ranks; an engine with tensor_parallel_size "
                f"{config.tensor_parallel_size} needs a process of its own."
            )
        source = find_model(config.model)
        self.device = find_device(config.device)
        sets = [*candidates, *(resolve_set(name) for name in config.candidates)]
        self.overlay: Overlay | None = install(sets) if sets else None
        self.model_config = build_config(source)
        dtype = find_dtype(config.dtype or self.model_config.torch_dtype)
        self.source = source
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device.index or 0)
        self.model = build_model(source, self.model_config, dtype, self.device, config.seed)
        specs = [layer.cache_spec for layer in cached_layers(self.model)]
        max_model_len = self._max_model_len()
        num_pages = config.num_pages or self._num_pages(specs, dtype)
        caches = allocate_caches(self.model, num_pages, config.page_size, config.max_num_seqs + 1, dtype, self.device)
        uses_graphs = self.device.type == "cuda" and not config.enforce_eager
        limits = RunnerLimits(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=max_model_len,
            page_size=config.page_size,
            vocab_size=self.model_config.vocab_size,
            has_state=any(spec.kind is CacheKind.STATE for spec in specs),
            graph_sizes=graph_sizes(config.max_num_seqs) if uses_graphs else (),
        )
        groups = cache_groups(specs)
        eos_token_ids = frozenset(self.model_config.eos_token_ids)
        tokenizer = find_tokenizer(source)
        self.runner = AutoregressiveRunner(
            self.model,
            self.device,
            limits,
            [group.kind for group in groups],
            eos_token_ids,
            Grammars(tokenizer, limits.vocab_size, eos_token_ids),
        )
        if config.warm is Warm.FULL and self.runner.graphs is not None:
            self.runner.graphs.warm()
        self.facts = ModelFacts(
            model=source.name,
            dtype=str(dtype).removeprefix("torch."),
            device=str(self.device),
            vocab_size=self.model_config.vocab_size,
            max_model_len=max_model_len,
            max_num_seqs=config.max_num_seqs,
            eos_token_ids=eos_token_ids,
            cache_groups=tuple(groups),
            num_pages=num_pages,
            tokenizer=tokenizer,
            has_state=limits.has_state,
            weight_bytes=sum(p.numel() * p.element_size() for p in self.model.parameters()),
            cache_bytes=sum(_num_bytes(cache) for cache in caches),
        )

    def _max_model_len(self) -> int:
        known, asked = self.model_config.max_position_embeddings, self.config.max_model_len
        if asked is not None and asked > known:
            raise UsageError(f"max_model_len is {asked}; {self.source.name} knows {known} positions.")
        return asked or known

    def _num_pages(self, specs: Sequence[CacheSpec], dtype: torch.dtype) -> int:
        """What fits beside weights and the largest step; on a CPU a fixed number."""
        page_bytes = cache_bytes(specs, self.config.page_size, dtype)
        if self.device.type != "cuda" or not page_bytes:
            return DEFAULT_NUM_PAGES
        torch.cuda.reset_peak_memory_stats(self.device)
        self._run_largest_step()
        torch.cuda.synchronize(self.device)
        largest = torch.cuda.max_memory_allocated(self.device) - torch.cuda.memory_allocated(self.device)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        kept = int((1 - self.config.gpu_memory_utilization) * total)
        slots = (self.config.max_num_seqs + 1) * state_bytes(specs)
        if tp_size() > 1:
            smallest = torch.tensor(free, device=self.device)
            dist.all_reduce(smallest, dist.ReduceOp.MIN)  # every rank has the same pages
            free = int(smallest)
        num_pages = (free - kept - largest - slots - (0 if self.config.enforce_eager else GRAPH_BYTES)) // page_bytes
        if num_pages < 1:
            raise UnsupportedError(
                f"{free / 2**30:.1f} GiB are free of {total / 2**30:.1f}; the largest step takes {largest / 2**30:.1f} "
                f"and gpu_memory_utilization keeps {kept / 2**30:.1f}: no page of {page_bytes} bytes fits. Lower "
                "max_num_batched_tokens or max_num_seqs, or raise gpu_memory_utilization."
            )
        return int(num_pages)

    @torch.inference_mode()
    def _run_largest_step(self) -> None:
        """Prompts of the longest batch, and logits for as many rows as there may be; no cache is written."""
        num = self.config.max_num_batched_tokens
        num_seqs = max(1, min(num // 512, self.config.max_num_seqs))
        starts = torch.linspace(0, num, num_seqs + 1).to(torch.int32)
        lens = starts.diff()
        context = ForwardContext(
            query_start_loc=starts,
            seq_lens=lens,
            block_table=torch.zeros((num_seqs, 1), dtype=torch.int32),
            slot_mapping=torch.full((num,), -1, dtype=torch.int64),
            max_query_len=int(lens.max()),
            max_seq_len=int(lens.max()),
            phase=Phase.PREFILL,
        ).to(self.device)
        ids = torch.zeros(num, dtype=torch.int64, device=self.device)
        positions = torch.arange(num, device=self.device) % self.model_config.max_position_embeddings
        with set_forward_context(context):
            hidden = self.model(ids, positions)
        rows = min(self.config.max_num_seqs, num)
        self.model.compute_logits(hidden[:rows]).argmax(-1)  # type: ignore[operator]

    def check(self, request: EngineRequest) -> None:
        """Errors: SamplingParamsError when its grammar cannot be compiled."""
        self.runner.sampler.check(request.params)

    def kernels(self) -> list[dict[str, Any]]:
        """Every op in the model, by name, with the set that serves it."""
        replaced = {line["op"]: line for line in self.overlay.report()} if self.overlay is not None else {}
        found: dict[str, dict[str, Any]] = {}
        for module in self.model.modules():
            for entry in ops_of_module(type(module).__module__) or ():
                if entry.class_name == type(module).__name__:
                    line = {"op": entry.name, "class": entry.class_name, "set": "baseline", "status": "BASELINE"}
                    found[entry.name] = {**line, "num_calls": None}
        for name, line in replaced.items():
            known = found.get(name, {"op": name, "class": None})
            found[name] = {**known, "set": line["set"], "status": line["status"], "num_calls": line["num_calls"]}
        return [found[name] for name in sorted(found)]

    def num_compilations(self) -> int:
        return len(self.runner.graphs.captured) if self.runner.graphs is not None else 0

    def peak_memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0

    def close(self) -> None:
        if self.overlay is not None:
            self.overlay.remove()


def _num_bytes(cache: Any) -> int:
    tensors = cache if isinstance(cache, tuple) else (cache,)
    return sum(t.numel() * t.element_size() for t in tensors)


def has_pages(model: nn.Module) -> bool:
    """Whether any layer keeps pages."""
    return any(layer.cache_spec.kind in PAGED_KINDS for layer in cached_layers(model))
