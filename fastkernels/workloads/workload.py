"""Named traffic mixes: how many requests, how long their prompts are and how much they ask for."""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from fastkernels.errors import UnknownNameError, UsageError
from fastkernels.workloads.prompts import prompts
from fastkernels.workloads.tokenizer import byte_tokenizer
from fastkernels.workloads.trace import TraceWorkload, trace_facts
from fastkernels.workloads.traffic import TokenSource, Traffic, TrafficRequest


@dataclass(frozen=True)
class Workload:
    """num_requests prompts of input_len tokens that ask for output_len tokens each.

    input_len None: the shipped English prompts at their natural lengths, times prompt_scale.
    """

    name: str
    num_requests: int
    input_len: int | None
    output_len: int
    seed: int = 0
    prompt_scale: float = 1.0

    def __post_init__(self) -> None:
        for field in ("num_requests", "output_len"):
            if getattr(self, field) < 1:
                raise UsageError(f"Workload {self.name!r}: {field} is {getattr(self, field)}; the least is 1.")
        if self.input_len is not None and self.input_len < 1:
            raise UsageError(f"Workload {self.name!r}: input_len is {self.input_len}; the least is 1.")

    def scaled(self, factor: float) -> Workload:
        """The same mix with lengths times `factor`, never below 1: how a tiny model gets a big mix."""
        if not 0 < factor < math.inf:
            raise UsageError(f"A workload is scaled by a finite factor above 0, got {factor}.")
        input_len = self.input_len and max(1, round(self.input_len * factor))
        output_len = max(1, round(self.output_len * factor))
        return replace(self, input_len=input_len, output_len=output_len, prompt_scale=self.prompt_scale * factor)

    @property
    def has_arrivals(self) -> bool:
        return False

    def limited(self, num_requests: int) -> Workload:
        """The same mix with another number of requests."""
        return replace(self, num_requests=num_requests)

    def seeded(self, seed: int) -> Workload:
        """The same mix with other tokens."""
        return replace(self, seed=seed)

    def requests(self, vocab_size: int, end_ids: Collection[int] = ()) -> list[TrafficRequest]:
        """Drawn token ids in the mix's lengths; for throughput, where token_ids are for what tensors look like."""
        source = TokenSource(vocab_size, end_ids, self.seed)
        return [
            TrafficRequest(tuple(source.draw(length, number)), self.output_len)
            for number, length in enumerate(self._input_lens())
        ]

    def lengths(self) -> list[tuple[int, int]]:
        return [(length, self.output_len) for length in self._input_lens()]

    def _input_lens(self) -> list[int]:
        if self.input_len is not None:
            return [self.input_len] * self.num_requests
        natural = [len(encoding.ids) for encoding in byte_tokenizer().encode_batch(list(prompts()))]
        lengths = [max(1, round(length * self.prompt_scale)) for length in natural]
        return [lengths[i % len(lengths)] for i in range(self.num_requests)]

    def token_ids(self, tokenizer: Tokenizer) -> list[list[int]]:
        """The prompts as token ids, from the tokenizer alone: the same on every machine.

        Fixed lengths are cut from the shipped prompts, one after another in a circle, from places drawn by seed.
        """
        texts = prompts()
        if self.input_len is None:
            natural = [tokenizer.encode(text).ids for text in texts]
            whole = [ids[: max(1, round(len(ids) * self.prompt_scale))] for ids in natural]
            return [whole[i % len(whole)] for i in range(self.num_requests)]
        corpus = tokenizer.encode("\n\n".join(texts)).ids
        starts = random.Random(self.seed).choices(range(len(corpus)), k=self.num_requests)
        return [[corpus[(start + i) % len(corpus)] for i in range(self.input_len)] for start in starts]


WORKLOADS = (
    Workload("demo", num_requests=32, input_len=None, output_len=32),
    Workload("single", num_requests=1, input_len=512, output_len=128),
    Workload("batch32", num_requests=32, input_len=512, output_len=128),
    Workload("decode_heavy", num_requests=512, input_len=128, output_len=512),
    Workload("balanced", num_requests=1000, input_len=512, output_len=128),
    Workload("prefill_heavy", num_requests=256, input_len=2048, output_len=32),
)


def find_workload(name: str) -> Workload:
    """Errors: UnknownNameError suggests the nearest."""
    for workload in WORKLOADS:
        if workload.name == name:
            return workload
    raise UnknownNameError("workload", name, [w.name for w in WORKLOADS])


def traffic_names() -> list[str]:
    """Mixes and traces."""
    return [workload.name for workload in WORKLOADS] + list(trace_facts())


def find_traffic(name: str) -> Traffic:
    """A mix or a trace by name.

    Errors: UnknownNameError suggests the nearest.
    """
    if name in trace_facts():
        return TraceWorkload(name)
    if name not in traffic_names():
        raise UnknownNameError("workload", name, traffic_names())
    return find_workload(name)
