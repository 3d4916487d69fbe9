"""What an end-to-end run is of: a model, a workload, and the engine's options; and its requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fastkernels.bench.e2e.media import ExampleMedia, example_media
from fastkernels.engine.config import EngineConfig, Warm
from fastkernels.engine.model_source import build_config, check_experts, find_model
from fastkernels.errors import UsageError
from fastkernels.registry import Architecture, Kind, architecture_of
from fastkernels.scoring.statistics import percentile
from fastkernels.workloads import Traffic, TrafficRequest, capped, find_traffic, trace_facts, traffic_names

if TYPE_CHECKING:
    import torch

EXAMPLES = "examples"
"""The workload of a model that makes no tokens: its pipeline's own example requests."""
PIPELINE_OPTIONS = ("device", "dtype", "max_num_seqs", "enforce_eager")
_NUM_EXAMPLES = 64

WARMUP_SEED = 7919
"""Added to the seed: warm-up prompts share no page with those that count."""
WHOLE_WARMUP_TOKENS = 100_000
"""On a GPU so few are warmed up whole: what is compiled or captured at a first use, is there."""


@dataclass(frozen=True)
class Scenario:
    """options: EngineConfig fields beside the model. scale: times all lengths. num_requests None: the workload's own.

    A model that makes tokens has a `traffic` of prompts; the others have `examples` of their pipeline.

    Repeats have other token ids each, so that no prefix cache knows them from the repeat before.
    Errors: UnknownNameError for the model and the workload, CheckpointError, UsageError.
    """

    model: str
    workload: str
    num_requests: int | None = None
    scale: float = 1.0
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def architecture(self) -> Architecture:
        return architecture_of(find_model(self.model).hf_config)

    @property
    def makes_tokens(self) -> bool:
        return self.architecture.kind is Kind.AUTOREGRESSIVE

    @property
    def size(self) -> int:
        """The number of requests. Errors: UsageError when the workload is not of such a model."""
        if self.makes_tokens:
            return self.traffic.num_requests
        self._check_examples()
        return _NUM_EXAMPLES if self.num_requests is None else self.num_requests

    @cached_property
    def traffic(self) -> Traffic:
        """Errors: UsageError when the workload is not of a model that makes tokens, or the model is none."""
        self._check_tokens()
        traffic = find_traffic(self.workload).scaled(self.scale).seeded(self.seed)
        return traffic if self.num_requests is None else traffic.limited(self.num_requests)

    @cached_property
    def _config(self) -> Any:
        return build_config(find_model(self.model))

    @property
    def max_model_len(self) -> int:
        return int(self.options.get("max_model_len") or self._config.max_position_embeddings)

    @cached_property
    def media(self) -> ExampleMedia | None:
        """Of a model that takes pictures or sounds beside tokens."""
        return example_media(self.model) if self.makes_tokens and self.architecture.pipeline else None

    def requests(self, repeat: int = 0, max_len: int | None = None) -> list[TrafficRequest]:
        """Those of a repeat, cut to what the model (or a server, when that is less) takes. -1: for the warm-up."""
        undrawn = {*self._config.eos_token_ids, *(self.media.placeholders if self.media else ())}
        drawn = self.traffic.seeded(self._seed(repeat)).requests(self._config.vocab_size, undrawn)
        return capped(drawn, min(self.longest, max_len or self.longest))[0]

    @property
    def longest(self) -> int:
        """Tokens of a request at most, media left out."""
        return self.max_model_len - (self.media.room if self.media else 0)

    def prompts(self, requests: Sequence[TrafficRequest], repeat: int = 0) -> list[Any]:
        """What LLM.generate takes: token ids, beside example media where the model takes them."""
        tokens = [list(r.prompt_token_ids) for r in requests]
        return list(self.media.beside(tokens, self._seed(repeat))) if self.media else tokens

    def load(self, repeat: int = 0, max_len: int | None = None, most: int | None = None) -> list[Any]:
        """What goes over HTTP of a repeat, the first `most`: the requests, beside files of example media where the
        model takes them. max_len: tokens of a request that the server takes, media and all."""
        room = self.media.room if self.media else 0
        requests = self.requests(repeat, max_len and max_len - room)[:most]
        return list(self.media.files_beside(requests, self._seed(repeat))) if self.media else list(requests)

    def _seed(self, repeat: int) -> int:
        return self.seed + (repeat if repeat >= 0 else WARMUP_SEED)

    def warmup_requests(self, share: float, device: str) -> list[TrafficRequest]:
        """The first of other requests, at least one."""
        requests = self.requests(-1)
        num_tokens = sum(len(r.prompt_token_ids) + r.output_len for r in requests)
        if device.startswith("cuda") and num_tokens <= WHOLE_WARMUP_TOKENS:
            return requests
        return requests[: max(1, round(share * len(requests)))]

    def check(self) -> None:
        """Before anything is started. Errors: UsageError names an option or its limit; those of model and workload."""
        if self.seed < 0:
            raise UsageError(f"--seed is {self.seed}; the least is 0.")
        known = {f.name: str(f.type) for f in fields(EngineConfig) if f.name not in ("model", "candidates", "seed")}
        for name, value in self.options.items():
            if name not in known:
                raise UsageError(f"The engine has no option {name!r}; it has {', '.join(sorted(known))}.")
            kind = known[name].removesuffix(" | None")
            if not _is_of(kind, value):
                wanted = " or ".join(Warm) if kind == "Warm" else _KINDS[kind][0]
                raise UsageError(f"The engine's option {name} is {value!r}; it is {wanted}.")
        config = EngineConfig(model=self.model, **self.options)
        if config.enable_expert_parallel:
            check_experts(config.model, config.tensor_parallel_size)
        if not self.makes_tokens:
            self._check_examples()
            return
        if self.max_model_len < 2:
            raise UsageError(f"max_model_len is {self.max_model_len}; a prompt and an answer have at least 2 tokens.")
        _ = self.traffic

    def _check_tokens(self) -> None:
        if not self.makes_tokens:
            raise UsageError(
                f"{self.model} makes no tokens, and the workload {self.workload!r} is of prompts; say --workload "
                f"{EXAMPLES}."
            )
        if self.workload == EXAMPLES:
            raise UsageError(
                f"{self.model} makes tokens, and the workload {EXAMPLES!r} is of models that make none; say --workload "
                f"with one of {', '.join(traffic_names())}."
            )

    def _check_examples(self) -> None:
        if self.workload != EXAMPLES:
            self._check_tokens()
        if self.num_requests is not None and self.num_requests < 1:
            raise UsageError(f"--num-requests is {self.num_requests}; the least is 1.")
        if self.scale != 1.0:
            raise UsageError(
                f"--scale {self.scale} is of lengths of prompts; {self.workload!r} has none: leave it out."
            )
        if self.options.get("tensor_parallel_size", 1) != 1:
            raise UsageError(f"{self.model} makes no tokens and runs on 1 device; leave --tp out.")
        unfit = sorted(set(self.options) - {"tensor_parallel_size", *PIPELINE_OPTIONS})
        if unfit:
            raise UsageError(
                f"{self.model} makes no tokens; the engine's option {unfit[0]!r} is of tokens. It has "
                f"{', '.join(PIPELINE_OPTIONS)}."
            )
        if self.options.get("device") == "fake":
            raise UsageError(f"The fake device makes tokens, which {self.model} does not; say cpu or cuda.")

    @property
    def gpus(self) -> list[torch.device]:
        """What the engine runs on: of several the first that torch sees, as its ranks are given them."""
        named, size = str(self.options.get("device") or "cuda"), int(self.options.get("tensor_parallel_size") or 1)
        if named.partition(":")[0] != "cuda":
            return []
        import torch  # seconds: who starts engines of others does without it

        return [torch.device("cuda", rank) for rank in range(size)] if size > 1 else [torch.device(named)]

    def describe(self, requests: Sequence[TrafficRequest] = ()) -> dict[str, Any]:
        """Sizes and source of the workload as it was run; requests: those of a model that makes tokens."""
        facts = {"name": self.workload, "kind": self.architecture.kind.value, "scale": self.scale, "seed": self.seed}
        return facts | (self._describe_tokens(requests) if self.makes_tokens else {"num_requests": self.size})

    def _describe_tokens(self, requests: Sequence[TrafficRequest]) -> dict[str, Any]:
        cut = sum(
            whole != (len(request.prompt_token_ids), request.output_len)
            for whole, request in zip(self.traffic.lengths(), requests, strict=True)
        )
        facts = trace_facts().get(self.workload, {})
        return {
            "num_requests": len(requests),
            "num_prompt_tokens": sum(len(r.prompt_token_ids) for r in requests),
            "num_output_tokens": sum(r.output_len for r in requests),
            "num_cut": cut,
            "max_len": self.longest,
            "prompt_len": _spread([len(r.prompt_token_ids) for r in requests]),
            "output_len": _spread([r.output_len for r in requests]),
            **{key: facts[key] for key in ("provenance", "license", "citation") if key in facts},
        }


_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "bool": ("true or false", (bool,)),
    "str": ("a word", (str,)),
}
"""By the annotation of an option: what it is called, and its types."""


def _is_of(kind: str, value: Any) -> bool:
    if kind == "Warm":
        return value in [*Warm]
    return isinstance(value, _KINDS[kind][1]) and isinstance(value, bool) == (kind == "bool")


def _spread(lengths: Sequence[int]) -> dict[str, float]:
    return {
        "min": min(lengths),
        **{f"p{share}": percentile(lengths, share / 100) for share in (50, 90, 99)},
        "max": max(lengths),
    }
