"""What is sent to every side of a scenario: the same requests from the same seeds, others in each pass."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastkernels.bench.eval import payload
from fastkernels.bench.eval.scenarios import EvalScenario, WorkloadPart
from fastkernels.scoring.items import Family

WARM_UP, TRIAL = -2, -1
"""Numbers of the passes that are not timed."""

Make = Callable[[int, int], list[Any]]
"""(how many, seed) -> requests of a pipeline, from a baseline worker."""


@dataclass(frozen=True)
class Pass:
    """Requests that are sent together, and one by one for a latency. number: of the pass, WARM_UP or TRIAL."""

    part: WorkloadPart
    kind: str
    number: int
    requests: list[Any]
    suppressed: tuple[int, ...] = ()

    @cached_property
    def together(self) -> bytes:
        return self.packed(self.requests)

    @cached_property
    def alone(self) -> list[bytes]:
        return [self.packed([request]) for request in self.requests]

    def packed(self, requests: Sequence[Any], wants_logprobs: bool = False) -> bytes:
        return payload.pack(
            {"requests": list(requests), "suppressed": list(self.suppressed), "wants_logprobs": wants_logprobs}
        )


class Passes:
    """The passes of a scenario, made once. make: needed where the model makes no tokens."""

    def __init__(self, scenario: EvalScenario, seed: int, make: Make | None = None) -> None:
        self.scenario, self._seed, self._make = scenario, seed, make
        self._made: dict[tuple[str, str, int], Pass] = {}

    def parts(self) -> list[tuple[WorkloadPart, str]]:
        """Throughput first."""
        return [(p, "throughput") for p in self.scenario.throughput] + [(p, "latency") for p in self.scenario.latency]

    def of(self, part: WorkloadPart, kind: str, number: int) -> Pass:
        place = (kind, part.label, number)
        if place not in self._made:
            self._made[place] = Pass(part, kind, number, self._requests(part, kind, number), self.suppressed)
        return self._made[place]

    def trial(self, most: int) -> Pass:
        """Of the first throughput workload, untimed."""
        whole = self.of(self.scenario.throughput[0], "throughput", TRIAL)
        return Pass(whole.part, whole.kind, whole.number, whole.requests[:most], whole.suppressed)

    @cached_property
    def suppressed(self) -> tuple[int, ...]:
        """Tokens that stand for media: an answer that held one could not be read again as a prompt."""
        known = self.scenario
        if known.architecture.family != Family.LANGUAGE:
            return ()
        media = known.engine_scenario(known.throughput[0], self._seed).media
        return () if media is None else tuple(sorted(media.placeholders))

    def _requests(self, part: WorkloadPart, kind: str, number: int) -> list[Any]:
        seed = self._seed_of(part, kind, number)
        if not self.scenario.makes_tokens:
            assert self._make is not None
            return self._make(part.num_requests, seed)
        known = self.scenario.engine_scenario(part, seed)
        drawn = known.requests(0, known.longest - 1)  # a place for the token after an answer
        prompts = [_as_arrays(prompt) for prompt in known.prompts(drawn)]
        return [{"prompt": p, "output_len": r.output_len} for p, r in zip(prompts, drawn, strict=True)]

    def _seed_of(self, part: WorkloadPart, kind: str, number: int) -> int:
        words = (self._seed, *(zlib.crc32(t.encode()) for t in (self.scenario.name, kind, part.label)), number + 16)
        return int(np.random.SeedSequence(words).generate_state(1)[0] >> 1)


def _as_arrays(prompt: Any) -> Any:
    if isinstance(prompt, dict):
        return {**prompt, "prompt_token_ids": np.asarray(prompt["prompt_token_ids"], dtype=np.int64)}
    return np.asarray(prompt, dtype=np.int64)
