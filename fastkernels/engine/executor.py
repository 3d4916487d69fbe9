"""A model on its device: built, given its caches, and ready to be stepped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import nn

from fastkernels.cache import CacheKind, CacheSpec, cached_layers
from fastkernels.distributed.tensor_parallel import expert_parallel, tp_size
from fastkernels.dtypes import choose_dtype, find_dtype
from fastkernels.engine.batch import Array
from fastkernels.engine.cache import allocate_caches, cache_bytes, cache_groups, state_bytes
from fastkernels.engine.cold_start import ColdStart, cold_start
from fastkernels.engine.config import EngineConfig, LoadFormat, Warm
from fastkernels.engine.dummy_steps import prompts_step, run_dummy_encoder, run_dummy_step, warm_parts
from fastkernels.engine.graphs import graph_sizes
from fastkernels.engine.model import build_model, find_device
from fastkernels.engine.model_source import build_config, find_model, find_tokenizer
from fastkernels.engine.outputs import EngineRequest
from fastkernels.engine.replacements import kernels_of
from fastkernels.engine.runners.autoregressive import AutoregressiveRunner, RunnerLimits
from fastkernels.engine.step import ModelFacts
from fastkernels.engine.structured import Grammars
from fastkernels.errors import EnvironmentProblem, FastKernelsError, UnsupportedError, UsageError
from fastkernels.kernels.compilations import num_kernels_made
from fastkernels.overlay import Overlay, install
from fastkernels.registry import Kind, architecture_of
from fastkernels.sets import resolve_set

DEFAULT_NUM_PAGES = 512
MOST_PAGES = 1 << 22
"""Of a tiny model on a large GPU: the host keeps a record of each."""

GRAPH_BYTES = 1 << 30
"""Left free for CUDA graphs, which are captured after the caches are there."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights, and what the engine has to know of it.

    config: has vocab_size, max_position_embeddings and eos_token_ids. The model's forward takes (token_ids, positions)
    and compute_logits some of its rows; one with an encoder also has encode and encoder_len.
    """

    name: str
    model: nn.Module
    config: Any
    dtype: torch.dtype
    tokenizer: Tokenizer


def load_model(config: EngineConfig, device: torch.device) -> LoadedModel:
    """The model that a configuration names. Errors: those of its files."""
    source = find_model(config.model)
    if architecture_of(source.hf_config).kind is not Kind.AUTOREGRESSIVE:
        raise UnsupportedError(f"{source.name} makes no tokens; use Pipeline, or `fastkernels generate` with --input.")
    known = build_config(source)
    dtype = choose_dtype(config.dtype, known.torch_dtype)
    with expert_parallel(config.enable_expert_parallel):
        model = build_model(source, known, dtype, device, config.seed, config.load_format is LoadFormat.DUMMY)
    return LoadedModel(source.name, model, known, dtype, find_tokenizer(source, config.tokenizer))


def choose_state_dtype(model: nn.Module, config: EngineConfig, dtype: torch.dtype) -> None:
    """Before caches are allocated. dtype: the activations'."""
    asked = config.mamba_ssm_cache_dtype
    for layer in cached_layers(model):
        if hasattr(layer, "ssm_cache_dtype"):
            layer.ssm_cache_dtype = dtype if asked == "auto" else find_dtype(asked)


@contextmanager
def small_caches(model: nn.Module, config: EngineConfig, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Inside, the layers have every state and a single page, which is all that a step of nobody's tokens looks at."""
    allocate_caches(model, 1, config.page_size, config.max_num_seqs + 1, dtype, device)
    try:
        yield
    finally:
        for layer in cached_layers(model):
            layer.kv_cache = None


def build_runner(
    config: EngineConfig,
    model: nn.Module,
    known: Any,
    max_model_len: int,
    device: torch.device,
    uses_graphs: bool,
    compiles_steps: bool = False,
    grammars: Grammars | None = None,
) -> AutoregressiveRunner:
    """What runs the steps of a model, whose caches it has. known: the model's own configuration."""
    specs = [layer.cache_spec for layer in cached_layers(model)]
    limits = RunnerLimits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=max_model_len,
        page_size=config.page_size,
        vocab_size=known.vocab_size,
        has_state=_has_state(specs),
        graph_sizes=graph_sizes(config.max_num_seqs) if uses_graphs else (),
        compiles_steps=compiles_steps,
        max_encoder_len=getattr(model, "max_encoder_len", 0),
    )
    kinds = [group.kind for group in cache_groups(specs)]
    return AutoregressiveRunner(model, device, limits, kinds, known.eos_token_ids, grammars)


class ModelExecutor:
    """One rank's model, caches and runner.

    loaded: a model that is built already; None: the one that `config` names.
    Errors: those of the configuration, the checkpoint and the candidates; UnsupportedError when no page fits.
    """

    def __init__(self, config: EngineConfig, loaded: LoadedModel | None = None) -> None:
        self.config = config
        if tp_size() != config.tensor_parallel_size:
            raise EnvironmentProblem(
                f"This process belongs to a group of {tp_size()} ranks; an engine with tensor_parallel_size "
                f"{config.tensor_parallel_size} needs a process of its own."
            )
        self.device = find_device(config.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device.index or 0)
        with cold_start(config, self.device) as start:
            self._build(loaded, start)

    def _build(self, loaded: LoadedModel | None, start: ColdStart) -> None:
        config = self.config
        sets = [resolve_set(name) for name in config.candidates]
        self.overlay: Overlay | None = install(sets) if sets else None
        self.loaded = loaded or load_model(config, self.device)
        self.model = self.loaded.model
        choose_state_dtype(self.model, config, self.loaded.dtype)
        specs = [layer.cache_spec for layer in cached_layers(self.model)]
        self._check_slots(specs)
        self._wait_for_kernels(start)
        num_pages = (config.num_pages or self._num_pages(specs)) if cache_groups(specs) else 0
        caches = allocate_caches(
            self.model, num_pages, config.page_size, config.max_num_seqs + 1, self.loaded.dtype, self.device
        )
        self.runner = self._build_runner()
        self._make_ready()
        self.facts = self._facts(specs, num_pages, sum(_num_bytes(cache) for cache in caches))

    def _wait_for_kernels(self, start: ColdStart) -> None:
        """Before the first launch of any rank: rank 0 has them compiled for all."""
        start.wait_for_kernels()
        if tp_size() > 1 and self.device.type == "cuda":
            dist.barrier()

    def _build_runner(self) -> AutoregressiveRunner:
        config, known = self.config, self.loaded.config
        uses_graphs = self.device.type == "cuda" and not config.enforce_eager
        grammars = Grammars(self.loaded.tokenizer, known.vocab_size, known.eos_token_ids)
        how = (self._max_model_len(), self.device, uses_graphs, self._compiles_steps(), grammars)
        return build_runner(config, self.model, known, *how)

    def _compiles_steps(self) -> bool:
        """On a CPU, for who waits for it: it takes some ten seconds. Candidates run as they are, rank by rank."""
        config = self.config
        is_wanted = self.device.type == "cpu" and config.warm is Warm.FULL and not config.enforce_eager
        return is_wanted and self.overlay is None and tp_size() == 1

    def _facts(self, specs: Sequence[CacheSpec], num_pages: int, num_cache_bytes: int) -> ModelFacts:
        loaded = self.loaded
        return ModelFacts(
            model=loaded.name,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=str(self.device),
            vocab_size=loaded.config.vocab_size,
            max_model_len=self._max_model_len(),
            max_num_seqs=self.config.max_num_seqs,
            eos_token_ids=frozenset(loaded.config.eos_token_ids),
            cache_groups=tuple(cache_groups(specs)),
            num_pages=num_pages,
            tokenizer=loaded.tokenizer,
            has_state=_has_state(specs),
            weight_bytes=sum(p.numel() * p.element_size() for p in self.model.parameters()),
            cache_bytes=num_cache_bytes,
            takes_media=hasattr(self.model, "embed_multimodal") or hasattr(self.model, "encode"),
            max_encoder_len=getattr(self.model, "max_encoder_len", 0),
        )

    def _max_model_len(self) -> int:
        known, asked = self.loaded.config.max_position_embeddings, self.config.max_model_len
        if asked is not None and asked > known:
            raise UsageError(f"max_model_len is {asked}; {self.loaded.name} knows {known} positions.")
        return asked or known

    def _check_slots(self, specs: Sequence[CacheSpec]) -> None:
        """Every row has its states from the start. Errors: UnsupportedError when those do not fit."""
        slot_bytes = state_bytes(specs)
        free = _free_bytes(self.device, self.config.gpu_memory_utilization)
        most = free // slot_bytes - 1 if slot_bytes else self.config.max_num_seqs
        if most < self.config.max_num_seqs:
            raise UnsupportedError(
                f"A request's states take {slot_bytes / 2**20:.1f} MiB in {self.loaded.name}; max_num_seqs "
                f"{self.config.max_num_seqs} and one more do not fit in the {free / 2**30:.1f} GiB that are free: "
                f"lower max_num_seqs to at most {max(0, most)}."
            )

    def _num_pages(self, specs: Sequence[CacheSpec]) -> int:
        """What fits beside weights and the largest step; on a CPU a fixed number."""
        page_bytes = cache_bytes(specs, self.config.page_size, self.loaded.dtype)
        if self.device.type != "cuda":
            return DEFAULT_NUM_PAGES
        with small_caches(self.model, self.config, self.loaded.dtype, self.device):
            torch.cuda.reset_peak_memory_stats(self.device)
            self._run_largest_step()
            torch.cuda.synchronize(self.device)
            largest = torch.cuda.max_memory_allocated(self.device) - torch.cuda.memory_allocated(self.device)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        kept = int((1 - self.config.gpu_memory_utilization) * total)
        slots = (self.config.max_num_seqs + 1) * state_bytes(specs)
        num_pages = (free - kept - largest - slots - (0 if self.config.enforce_eager else GRAPH_BYTES)) // page_bytes
        if tp_size() > 1:
            least = torch.tensor(num_pages, device=self.device)
            dist.all_reduce(least, dist.ReduceOp.MIN)  # one scheduler hands out pages for all ranks
            num_pages = int(least)
        if num_pages < 1:
            raise UnsupportedError(
                f"{free / 2**30:.1f} GiB are free of {total / 2**30:.1f}; the largest step takes {largest / 2**30:.1f} "
                f"and gpu_memory_utilization keeps {kept / 2**30:.1f}: no page of {page_bytes} bytes fits. Lower "
                "max_num_batched_tokens or max_num_seqs, or raise gpu_memory_utilization."
            )
        return int(min(num_pages, MOST_PAGES))

    def _run_largest_step(self) -> None:
        """As many tokens as a step may have, and the encoder's inputs if there is one."""
        config, known = self.config, self.loaded.config
        rows, positions = config.max_num_seqs, known.max_position_embeddings
        step = prompts_step(config.max_num_batched_tokens, config.max_num_seqs)
        run_dummy_step(self.model, step, config.page_size, rows, positions, self.device)
        run_dummy_encoder(self.model, config.max_num_batched_tokens)

    def _make_ready(self) -> None:
        """Steps have a stream of their own, which does not wait for what the default one still builds."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.config.warm is Warm.FULL:
            self._warm_up()

    def _warm_up(self) -> None:
        """Compile and capture what requests would otherwise wait for."""
        for part in warm_parts(self.runner, self.loaded.config.max_position_embeddings, self.loaded.dtype):
            part()

    def check(self, request: EngineRequest) -> None:
        """Errors: SamplingParamsError when its grammar cannot be compiled or allows nothing."""
        self.runner.sampler.check(request.params)
        if request.media is not None and not hasattr(self.model, "embed_multimodal"):
            raise UnsupportedError(f"{self.loaded.name} takes text only; the request brings pictures, video or sound.")
        if request.encoder_input is None and hasattr(self.model, "encode"):
            raise UnsupportedError(f"{self.loaded.name} continues what its encoder reads; the request brings nothing.")

    def when_failed(self, tell: Callable[[FastKernelsError], None]) -> None:
        """Nothing but a step can fail here."""

    def encoder_len(self, encoder_input: Array) -> int:
        """States that the model's encoder makes of an input. Errors: UnsupportedError when there is no encoder."""
        count = getattr(self.model, "encoder_len", None)
        if count is None:
            raise UnsupportedError(f"{self.loaded.name} has no encoder; leave encoder_input out.")
        return int(count(encoder_input))

    def kernels(self) -> list[dict[str, Any]]:
        """Every op in the model, by name, with the set that serves it."""
        return kernels_of(self.model, self.overlay)

    def num_compilations(self) -> int:
        """Graphs captured and steps compiled."""
        return sum(len(some.captured) for some in (self.runner.graphs, self.runner.compiled) if some is not None)

    def num_kernels_made(self) -> int:
        return num_kernels_made()

    def peak_memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0

    def close(self) -> None:
        self.runner.close()
        if self.overlay is not None:
            self.overlay.remove()


def _has_state(specs: Sequence[CacheSpec]) -> bool:
    return any(spec.kind is CacheKind.STATE for spec in specs)


def _num_bytes(cache: Any) -> int:
    tensors = cache if isinstance(cache, tuple) else (cache,)
    return sum(t.numel() * t.element_size() for t in tensors)


def _free_bytes(device: torch.device, share: float) -> int:
    """What may still be taken; share: of a GPU's memory that is used at all."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, total = torch.cuda.mem_get_info(device)
    return int(free - (1 - share) * total)
