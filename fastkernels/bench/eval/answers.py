"""A candidate's answers held against the reference's: the form first, then the family's discrepancy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastkernels.bench.eval import payload
from fastkernels.bench.eval.processes import WorkerFailed
from fastkernels.bench.eval.reference import Reference
from fastkernels.bench.eval.scenarios import EvalScenario
from fastkernels.engine.model_source import find_model, find_tokenizer
from fastkernels.scoring.discrepancy import Answer, AnswerError, Compared, compare
from fastkernels.scoring.items import Family

Value = Mapping[str, Any]
"""One answer as it came: "token_ids", an array; or tensors by name."""


class ReferenceUnfit(Exception):
    """The reference's own answers cannot be compared with: they are not finite."""


@dataclass(frozen=True)
class Pair:
    """One request's answers. request: what was sent."""

    request: Any
    reference: Value
    candidate: Value


def read_answers(
    data: bytes, requests: Sequence[Any], facts: Mapping[str, Any], suppressed: Sequence[int] = ()
) -> list[Value]:
    """One answer for each request. facts: the engine's of the reference, "vocab_size" where it makes tokens.
    suppressed: token ids that the requests forbid; the reference cannot read an answer that holds one.

    Errors: WorkerFailed when the payload is none, an answer is missing, or tokens are not as many as were asked for, or
    not of those that may be said.
    """
    try:
        value = payload.unpack(data)
    except ValueError as error:
        raise WorkerFailed("CRASH", f"The answer cannot be read: {error}") from None
    makes_tokens = "vocab_size" in facts
    answers = value.get("token_ids" if makes_tokens else "tensors") if isinstance(value, dict) else None
    if not isinstance(answers, list) or len(answers) != len(requests):
        count = len(answers) if isinstance(answers, list) else 0
        raise WorkerFailed("MISSING_ANSWER", f"{count} answers came to {len(requests)} requests.")
    if not makes_tokens:
        return [answer if isinstance(answer, dict) else {} for answer in answers]
    for number, (tokens, request) in enumerate(zip(answers, requests, strict=True)):
        _check_tokens(number, tokens, request["output_len"], facts["vocab_size"])
    for number, logprobs in enumerate(value.get("logprobs") or ()):
        if not np.isfinite(np.asarray(logprobs, dtype=np.float64)).all():
            raise WorkerFailed("NOT_FINITE", f"Log-probabilities of answer {number} hold NaN or infinity.")
    for number, tokens in enumerate(answers):
        if (forbidden := np.isin(tokens, suppressed)).any():
            token = int(tokens[forbidden][0])
            raise WorkerFailed("WRONG_SHAPE", f"Answer {number} holds token {token}, which the request suppresses.")
    return [{"token_ids": tokens} for tokens in answers]


def _check_tokens(number: int, tokens: Any, wanted: int, vocab_size: int) -> None:
    if not isinstance(tokens, np.ndarray) or tokens.dtype.kind != "i":
        kind = tokens.dtype if isinstance(tokens, np.ndarray) else type(tokens).__name__
        raise WorkerFailed("WRONG_DTYPE", f"Answer {number} is {kind}; token ids are integers.")
    if tokens.shape != (wanted,):
        raise WorkerFailed("WRONG_SHAPE", f"Answer {number} has {list(tokens.shape)} tokens; {wanted} were asked for.")
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise WorkerFailed("WRONG_SHAPE", f"Answer {number} holds a token outside of [0, {vocab_size}).")


class Comparer:
    """Answers of one scenario, whose requests live as long as it does."""

    def __init__(self, scenario: EvalScenario, reference: Reference, suppressed: Sequence[int] = ()) -> None:
        self._family, self._names = scenario.architecture.family, scenario.architecture.answers
        self._reference, self._suppressed = reference, suppressed
        self._read: dict[tuple[int, bytes], Mapping[str, Any]] = {}
        source = find_model(scenario.model)
        self._tokenizer = find_tokenizer(source) if source.checkpoint is not None else None

    def read_ahead(self, pairs: Sequence[Pair]) -> None:
        """Tokens of several sides at once: on a GPU the reference is started anew for each reading."""
        if self._family == Family.LANGUAGE and pairs:
            self._scored([p.request for p in pairs], [np.asarray(p.candidate["token_ids"]) for p in pairs])

    def compare(self, pairs: Sequence[Pair]) -> Compared:
        """Errors: AnswerError of the candidate's answers, ReferenceUnfit of the reference's."""
        try:
            if self._family == Family.LANGUAGE:
                return self._compare_language(pairs)
            sides = [self._both(number, pair) for number, pair in enumerate(pairs)]
            return compare(self._family, self._names, [a for a, _ in sides], [b for _, b in sides])
        except AnswerError:
            raise
        except ValueError as error:
            raise ReferenceUnfit(str(error)) from error

    def _compare_language(self, pairs: Sequence[Pair]) -> Compared:
        """Teacher forcing with the roles exchanged: the reference reads the candidate's own tokens."""
        said = [np.asarray(pair.candidate["token_ids"]) for pair in pairs]
        scored = self._scored([pair.request for pair in pairs], said)
        answers = [{"token_ids": tokens, **one} for tokens, one in zip(said, scored, strict=True)]
        compared = compare(self._family, (), [pair.reference for pair in pairs], answers)
        equal = [float(np.mean(pair.reference["token_ids"] == t)) for pair, t in zip(pairs, said, strict=True)]
        return Compared(compared.values, {**compared.figures, "share_equal": fmean(equal)})

    def _scored(self, requests: Sequence[Any], said: Sequence[np.ndarray]) -> list[Mapping[str, Any]]:
        """What was said to a request before, in another restart or of another side, is read once."""
        places = [(id(request), tokens.tobytes()) for request, tokens in zip(requests, said, strict=True)]
        new = {
            place: forced(request["prompt"], tokens)
            for place, request, tokens in zip(places, requests, said, strict=True)
            if place not in self._read
        }
        if new:
            found = self._reference.score(list(new.values()), self._suppressed)
            self._read.update(zip(new, found, strict=True))
        return [self._read[place] for place in places]

    def _both(self, number: int, pair: Pair) -> tuple[Answer, Answer]:
        if self._family == Family.SPEECH:
            return self._transcript(pair.reference), self._transcript(pair.candidate)
        _check_dtypes(number, self._names, pair)
        return _arrays(pair.reference), _arrays(pair.candidate)

    def _transcript(self, answer: Value) -> Answer:
        """With its text, where the model has a tokenizer of its own."""
        tokens = np.asarray(answer["token_ids"])
        if self._tokenizer is None:
            return {"token_ids": tokens}
        return {"token_ids": tokens, "text": np.array(self._tokenizer.decode(tokens.tolist()))}


def forced(prompt: Any, tokens: np.ndarray) -> dict[str, Any]:
    """A request to score: the prompt (token ids, or a mapping with `prompt_token_ids`) with the answer behind it."""
    if isinstance(prompt, Mapping):
        whole: Any = {**prompt, "prompt_token_ids": np.concatenate([prompt["prompt_token_ids"], tokens])}
    else:
        whole = np.concatenate([prompt, tokens])
    return {"prompt": whole, "num_scored": len(tokens)}


def _check_dtypes(number: int, names: Sequence[str], pair: Pair) -> None:
    """numpy has no bfloat16: dtypes are compared before it is widened."""
    for name in names:
        expected, given = pair.reference.get(name), pair.candidate.get(name)
        if isinstance(expected, Tensor) and isinstance(given, Tensor) and expected.dtype != given.dtype:
            words = f"{name} of answer {number} is {given.dtype}; the reference's is {expected.dtype}."
            raise AnswerError("WRONG_DTYPE", words)


def _arrays(answer: Value) -> Answer:
    return {name: _array(t) for name, t in answer.items() if isinstance(t, Tensor)}


def _array(tensor: Tensor) -> np.ndarray:
    narrow = tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
    return (tensor.float() if narrow else tensor).numpy()
