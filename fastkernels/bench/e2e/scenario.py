"""What an end-to-end run is of: a model, a workload, and the engine's options; and its requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from fastkernels.engine.config import EngineConfig
from fastkernels.engine.model import build_config, find_model
from fastkernels.errors import UsageError
from fastkernels.scoring.statistics import percentile
from fastkernels.workloads import Traffic, TrafficRequest, capped, find_traffic, trace_facts

WARMUP_SEED = 7919
"""Added to the seed: warm-up prompts share no page with those that count."""


@dataclass(frozen=True)
class Scenario:
    """options: EngineConfig fields beside the model. scale: times all lengths. num_requests None: the workload's own.

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
    def traffic(self) -> Traffic:
        traffic = find_traffic(self.workload).scaled(self.scale).seeded(self.seed)
        return traffic if self.num_requests is None else traffic.limited(self.num_requests)

    @cached_property
    def _config(self) -> Any:
        return build_config(find_model(self.model))

    @property
    def max_model_len(self) -> int:
        return int(self.options.get("max_model_len") or self._config.max_position_embeddings)

    def requests(self, repeat: int = 0, max_len: int | None = None) -> list[TrafficRequest]:
        """Those of a repeat, cut to what the model (or a server, when that is less) takes. -1: for the warm-up."""
        seed = self.seed + (repeat if repeat >= 0 else WARMUP_SEED)
        drawn = self.traffic.seeded(seed).requests(self._config.vocab_size, self._config.eos_token_ids)
        return capped(drawn, min(self.max_model_len, max_len or self.max_model_len))[0]

    def check(self) -> None:
        """Before anything is started. Errors: UsageError names an option or its limit; those of model and workload."""
        known = {field.name for field in fields(EngineConfig)} - {"model", "candidates", "seed"}
        for name in self.options:
            if name not in known:
                raise UsageError(f"The engine has no option {name!r}; it has {', '.join(sorted(known))}.")
        EngineConfig(model=self.model, **self.options)
        if self.max_model_len < 2:
            raise UsageError(f"max_model_len is {self.max_model_len}; a prompt and an answer have at least 2 tokens.")
        _ = self.traffic

    def describe(self, requests: Sequence[TrafficRequest]) -> dict[str, Any]:
        """Sizes and source of the workload as it was run."""
        whole = self.traffic.requests(self._config.vocab_size, self._config.eos_token_ids)
        cut = sum(
            (len(a.prompt_token_ids), a.output_len) != (len(b.prompt_token_ids), b.output_len)
            for a, b in zip(whole, requests, strict=True)
        )
        facts = trace_facts().get(self.workload, {})
        return {
            "name": self.workload,
            "num_requests": len(requests),
            "num_prompt_tokens": sum(len(r.prompt_token_ids) for r in requests),
            "num_output_tokens": sum(r.output_len for r in requests),
            "num_cut": cut,
            "max_len": self.max_model_len,
            "scale": self.scale,
            "seed": self.seed,
            "prompt_len": _spread([len(r.prompt_token_ids) for r in requests]),
            "output_len": _spread([r.output_len for r in requests]),
            **{key: facts[key] for key in ("provenance", "license", "citation") if key in facts},
        }


def _spread(lengths: Sequence[int]) -> dict[str, float]:
    return {
        "min": min(lengths),
        **{f"p{share}": percentile(lengths, share / 100) for share in (50, 90, 99)},
        "max": max(lengths),
    }
