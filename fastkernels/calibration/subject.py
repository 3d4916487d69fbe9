"""A model under calibration: its requests, its answers, and how far another's answers lie from them.

What an eval run sends and how it compares is what is done here: bench/eval's engines run and read the requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastkernels.bench.eval.answers import forced
from fastkernels.bench.eval.passes import Passes
from fastkernels.bench.eval.scenarios import EvalScenario, WorkloadPart
from fastkernels.bench.eval.worker import PipelineEngine, TokenEngine
from fastkernels.engine.llm import LLM
from fastkernels.engine.model_source import find_model
from fastkernels.engine.pipeline import Pipeline
from fastkernels.registry import Kind, architecture_of
from fastkernels.scoring.discrepancy import Answer, Compared, compare
from fastkernels.scoring.items import Family
from fastkernels.training.corpus import held_out_texts
from fastkernels.training.digits import NAME as DIGITS
from fastkernels.training.digits import digits

DEVICE = "cpu"
NUM_PLACES = 64
"""Tokens that each request asks for."""

_PROMPT_BYTES = 96
"""Of held-out text, for a language model that was trained."""

Answers = list[Answer]


@dataclass(frozen=True)
class Composition:
    """How requests come together. chunk_tokens: of a step; None: as many as the engine likes."""

    num_together: int = 64
    chunk_tokens: int | None = None
    is_reversed: bool = False


TOGETHER = Composition()


class _Tokens(TokenEngine):
    """Nothing of a damaged model may stay in a cache of prefixes."""

    def __init__(self, model: str, dtype: str, how: Composition) -> None:
        options: dict[str, Any] = {} if how.chunk_tokens is None else {"max_num_batched_tokens": how.chunk_tokens}
        self.llm = LLM(
            model,
            dtype=dtype,
            device=DEVICE,
            max_num_seqs=how.num_together,
            enforce_eager=True,
            enable_prefix_caching=False,
            **options,
        )


class _Tensors(PipelineEngine):
    def __init__(self, model: str, dtype: str, how: Composition) -> None:
        self.pipeline = Pipeline(model, dtype=dtype, device=DEVICE, max_batch=how.num_together, enforce_eager=True)


class Subject:
    """One model in one dtype. num: of requests, a half of which each of two seeds decides.

    Errors: those of the model; EnvironmentProblem when the requests' data are not installed.
    """

    def __init__(self, name: str, dtype: str, num: int, seed: int = 0, how: Composition = TOGETHER) -> None:
        self.name, self.dtype, self.how = name, dtype, how
        source = find_model(name)
        self.architecture = architecture_of(source.hf_config)
        self.family = Family(self.architecture.family)
        self.is_trained = source.checkpoint is not None
        self.makes_tokens = self.architecture.kind is Kind.AUTOREGRESSIVE
        self.engine: Any = (_Tokens if self.makes_tokens else _Tensors)(name, dtype, how)
        self.suppressed: tuple[int, ...] = ()
        seeds = ((2 * seed, (num + 1) // 2), (2 * seed + 1, num // 2))
        self.requests = [request for number, count in seeds if count for request in self._requests(number, count)]

    @property
    def model(self) -> nn.Module:
        found: nn.Module = self.engine.llm.core.executor.model if self.makes_tokens else self.engine.pipeline.model
        return found

    @cached_property
    def own(self) -> Answers:
        """Its answers when they were first asked for."""
        return self.answers()

    def answers(self, most: int | None = None) -> Answers:
        """As the model is now, in the order of the requests. most: of them, the first."""
        asked = self.requests[:most][::-1] if self.how.is_reversed else self.requests[:most]
        said = self.engine.run({"requests": asked, "suppressed": self.suppressed, "wants_logprobs": False})
        found = [{"token_ids": ids} for ids in said["token_ids"]] if self.makes_tokens else said["tensors"]
        return [_arrays(answer) for answer in (found[::-1] if self.how.is_reversed else found)]

    def compare(self, candidate: Sequence[Answer]) -> Compared:
        """This model is the reference: of language it reads what the candidate said to the first requests."""
        if self.family != Family.LANGUAGE:
            return compare(self.family, self.architecture.answers, self.own[: len(candidate)], candidate)
        read = self.read(candidate)
        return compare(self.family, (), read, read)

    def read(self, candidate: Sequence[Answer]) -> Answers:
        """Answers with what this model would have said at each place, and how likely it holds both."""
        said = [np.asarray(answer["token_ids"]) for answer in candidate]
        asked = self.requests[: len(said)]
        whole = [forced(request["prompt"], tokens) for request, tokens in zip(asked, said, strict=True)]
        scored = self.engine.score({"requests": whole, "suppressed": self.suppressed})
        return [{"token_ids": tokens, **one} for tokens, one in zip(said, scored, strict=True)]

    def _requests(self, seed: int, num: int) -> list[Any]:
        if self.name == DIGITS:
            videos = digits()[1].videos
            chosen = np.random.default_rng(seed).choice(len(videos), num, replace=False)
            return [{"video": videos[i]} for i in chosen]
        if not self.makes_tokens:
            requests: list[Any] = self.engine.make({"num": num, "seed": seed})
            return requests
        if self.is_trained:
            texts = held_out_texts(num * (seed + 1), _PROMPT_BYTES)[-num:]
            prompts = [self.engine.llm.tokenizer.encode(text).ids for text in texts]
            return [{"prompt": np.asarray(ids, dtype=np.int64), "output_len": NUM_PLACES} for ids in prompts]
        part = WorkloadPart("decode_heavy", num, NUM_PLACES / 512)
        scenario = EvalScenario(self.name, "float32", 1, (part,), (part,))  # every dtype is sent the same
        made = Passes(scenario, seed).of(part, "throughput", 0)
        self.suppressed = made.suppressed
        return made.requests


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Every parameter and persistent buffer, as far as the target's dtype holds them."""
    values = source.state_dict()
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            tensor.copy_(values[name])


def _arrays(answer: Mapping[str, Any]) -> Answer:
    """Floats in float32: numpy has no bfloat16, and two dtypes are not compared."""
    return {name: _array(value) for name, value in answer.items()}


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, Tensor):
        return np.asarray(value)
    found: np.ndarray = (value.float() if value.is_floating_point() else value).cpu().numpy()
    return found
