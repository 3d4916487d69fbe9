"""The process of one side: it builds a model, with or without a set in the place of ops, and answers what it is sent.

Messages are JSON over a socket (harness/wire.py); requests and answers are payloads in lent memory (payload.py).
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastkernels.bench.eval import payload
from fastkernels.engine.llm import LLM
from fastkernels.engine.model_source import find_model
from fastkernels.engine.pipeline import Pipeline
from fastkernels.engine.results import Logprob, RequestOutput
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import CandidateError
from fastkernels.harness import wire
from fastkernels.registry import Kind, architecture_of

_COUNTERS = ("num_steps", "num_graph_steps", "num_prompt_tokens", "num_cached_tokens", "num_preemptions")
_ERROR_CHARACTERS = 6000


class Engine(Protocol):
    """What a worker can be asked; values are as payload.py packs them."""

    def facts(self) -> dict[str, Any]: ...

    def run(self, value: Any) -> Any: ...

    def make(self, value: Any) -> Any: ...

    def score(self, value: Any) -> Any: ...

    def counters(self) -> dict[str, int]: ...

    def replacements(self) -> list[dict[str, Any]]: ...


def main(sock: socket.socket, order: Mapping[str, Any]) -> None:
    """Until the other side is gone or an error was told."""
    try:
        engine = _build(order)
        wire.send(sock, {"engine": engine.facts()})
        while True:
            message, fds = wire.receive(sock, max_fds=1)
            value = payload.unpack(payload.borrow(fds[0])) if fds else None
            _answer(sock, engine, str(message["do"]), value)
    except wire.WireClosed:
        return
    except BaseException as error:
        traceback.print_exc()
        text = str(error) if isinstance(error, CandidateError) else traceback.format_exc()
        wire.send(sock, {"error": {"reason": _reason(error), "text": text[-_ERROR_CHARACTERS:]}})


def _answer(sock: socket.socket, engine: Engine, what: str, value: Any) -> None:
    if what == "report":
        names = sorted(name for name, module in sys.modules.items() if module is not None)
        facts = {"counters": engine.counters(), "replacements": engine.replacements(), "modules": names}
        wire.send(sock, facts)
        return
    lent = payload.lend(payload.pack(getattr(engine, what)(value)))
    wire.send(sock, {"done": what}, [lent])
    os.close(lent)


def _build(order: Mapping[str, Any]) -> Engine:
    source = find_model(order["model"])
    kind = architecture_of(source.hf_config).kind
    return (TokenEngine if kind is Kind.AUTOREGRESSIVE else PipelineEngine)(order)


def _reason(error: BaseException) -> str:
    if isinstance(error, CandidateError):
        return "IMPORT_ERROR" if error.kind == "import" else "SIGNATURE_ERROR"
    return "CRASH"


class TokenEngine:
    """A model that makes tokens. A request: {"prompt": token ids, or LLM's form with media; "output_len"}."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.llm = LLM(
            order["model"],
            candidates=order["candidates"],
            dtype=order["dtype"],
            device=order["device"],
            tensor_parallel_size=order["tensor_parallel_size"],
            enable_expert_parallel=order["enable_expert_parallel"],
        )

    def facts(self) -> dict[str, Any]:
        info = self.llm.core.info
        names = ("dtype", "device", "vocab_size", "max_model_len", "num_pages", "max_num_seqs", "startup_seconds")
        return {name: getattr(info, name) for name in names}

    def run(self, value: Any) -> Any:
        """{"requests", "suppressed" token ids, "wants_logprobs"} -> {"token_ids": an array each, "logprobs"}."""
        suppressed = tuple(value["suppressed"])
        params = [
            SamplingParams(
                temperature=0,
                max_tokens=request["output_len"],
                ignore_eos=True,
                suppress_tokens=suppressed,
                logprobs=0 if value["wants_logprobs"] else None,
            )
            for request in value["requests"]
        ]
        outputs = self._generate(value, params)
        answers = [output.outputs[0] for output in outputs]
        said: dict[str, Any] = {"token_ids": [np.asarray(answer.token_ids, dtype=np.int64) for answer in answers]}
        if value["wants_logprobs"]:
            said["logprobs"] = [_logprobs(answer.token_ids, answer.logprobs or ()) for answer in answers]
        return said

    def _generate(self, value: Any, params: SamplingParams | list[SamplingParams]) -> list[RequestOutput]:
        prompts = [_prompt(request["prompt"]) for request in value["requests"]]
        return self.llm.generate(prompts, params, use_tqdm=False)

    def score(self, value: Any) -> Any:
        """{"requests": prompts that end with an answer of "num_scored" tokens, "suppressed"} -> what the model says of
        each: "reference_token_ids" (its own first choice at each place), "logprobs", "reference_logprobs"."""
        suppressed = set(value["suppressed"])
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1 + len(suppressed))
        outputs = self._generate(value, params)
        found = []
        for request, output in zip(value["requests"], outputs, strict=True):
            tokens = output.prompt_token_ids[-request["num_scored"] :]
            places = [place or {} for place in output.prompt_logprobs or ()][-request["num_scored"] :]
            best = [_first_choice(place, suppressed) for place in places]
            found.append(
                {
                    "reference_token_ids": np.array([token for token, _ in best], dtype=np.int64),
                    "logprobs": _logprobs(tokens, places),
                    "reference_logprobs": np.array([logprob for _, logprob in best], dtype=np.float64),
                }
            )
        return found

    def make(self, value: Any) -> Any:
        raise NotImplementedError("Requests of a model that makes tokens are the evaluating process's.")

    def counters(self) -> dict[str, int]:
        stats = self.llm.core.stats()
        return {name: int(getattr(stats, name)) for name in _COUNTERS}

    def replacements(self) -> list[dict[str, Any]]:
        return [{"rank": 0, **line} for line in self.llm.replacements()]


def _prompt(prompt: Any) -> Any:
    """Token ids come as an array, of a prompt with media in its mapping."""
    if isinstance(prompt, Mapping):
        return {**prompt, "prompt_token_ids": np.asarray(prompt["prompt_token_ids"]).tolist()}
    return np.asarray(prompt).tolist()


def _logprobs(tokens: Sequence[int], places: Sequence[Mapping[int, Logprob]]) -> np.ndarray:
    """[num_tokens], of the tokens that are there."""
    return np.array([place[token].logprob for token, place in zip(tokens, places, strict=True)], dtype=np.float64)


def _first_choice(place: Mapping[int, Logprob], suppressed: set[int]) -> tuple[int, float]:
    """Of the 1 + len(suppressed) likeliest tokens at a place the first that may be said; the one that is there where
    none may. That one comes first, and is one more where it is not among them."""
    said = list(place.items())
    likeliest = said[1:] if len(said) > 1 + len(suppressed) else sorted(said, key=lambda one: one[1].rank)
    token, found = next((one for one in likeliest if one[0] not in suppressed), said[0])
    return token, found.logprob


class PipelineEngine:
    """A model that makes no tokens. A request is its pipeline's own."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.pipeline = Pipeline(
            order["model"], candidates=order["candidates"], dtype=order["dtype"], device=order["device"]
        )

    def facts(self) -> dict[str, Any]:
        pipeline = self.pipeline
        return {"dtype": str(pipeline.dtype).removeprefix("torch."), "device": str(pipeline.device)}

    def run(self, value: Any) -> Any:
        """{"requests"} -> {"tensors": of each result, by name}."""
        results = self.pipeline.run(value["requests"])
        return {"tensors": [dict(result.tensors) for result in results]}

    def make(self, value: Any) -> Any:
        """{"num", "seed"} -> as many of the pipeline's example requests."""
        return self.pipeline.example_requests(value["num"], value["seed"])

    def score(self, value: Any) -> Any:
        raise NotImplementedError("Tokens alone are scored.")

    def counters(self) -> dict[str, int]:
        core = self.pipeline.core
        return {"num_steps": core.num_steps, "num_graph_steps": getattr(core.runner, "num_graph_steps", 0)}

    def replacements(self) -> list[dict[str, Any]]:
        return self.pipeline.overlay.report() if self.pipeline.overlay is not None else []


def readable_paths(model: str) -> tuple[str, ...]:
    """What a worker must read of a model that is files."""
    return (str(Path(model).resolve()),) if Path(model).exists() else ()
