"""An oracle's model and ours on the checkpoint that it saved: the same requests, answers and modules compared."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.engine.llm import LLM
from fastkernels.engine.pipeline import Pipeline
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import UsageError
from fastkernels.oracles.oracle import Answer, Level, Oracle, Request
from fastkernels.registry import Architecture, Kind

_LEAST_SCALE = 1e-3


def relative_error(given: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest number wanted; infinite where sizes, integers or finiteness differ."""
    if given.numel() != wanted.numel() or (wanted.is_floating_point() and not bool(torch.isfinite(wanted).all())):
        return math.inf
    given = given.reshape(wanted.shape)
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(given.to(wanted.dtype), wanted) else math.inf
    if not wanted.numel():
        return 0.0
    error = float((given.double() - wanted.double()).abs().max())
    return math.inf if math.isnan(error) else error / max(float(wanted.abs().max()), _LEAST_SCALE)


@dataclass(frozen=True)
class ModulePair:
    """What one module of ours and its counterpart gave."""

    ours: str
    theirs: str
    given: Tensor
    wanted: Tensor


class SideBySide:
    """One variant of an architecture: the library's model with weights by seed, and a checkpoint of it in `folder`."""

    def __init__(self, architecture: Architecture, oracle: Oracle, variant: str, folder: Path, seed: int = 17) -> None:
        self.architecture, self.oracle, self.folder = architecture, oracle, folder
        self.sizes = oracle.tiny()[variant]
        self.theirs = oracle.build(self.sizes, seed=seed)
        oracle.save(self.theirs, folder)
        self.requests: list[Request] = list(oracle.requests(self.sizes))

    @property
    def makes_tokens(self) -> bool:
        return self.architecture.kind is Kind.AUTOREGRESSIVE

    def expected(self) -> list[Answer]:
        """The library's answers, each request alone; of a model that makes tokens without their logits."""
        return [
            {name: t for name, t in answer.items() if not (self.makes_tokens and name == "logits")}
            for answer in self._answered()
        ]

    def _answered(self) -> list[Answer]:
        return [self.oracle.answer(self.theirs, request) for request in self.requests]

    def runner(self, **options: Any) -> LLM | Pipeline:
        """Ours, in float32 on a CPU."""
        if self.makes_tokens:
            return LLM(self.folder, device="cpu", dtype="float32", enable_prefix_caching=False, **options)
        return Pipeline(self.folder, device="cpu", dtype="float32", **options)

    def answers(
        self, requests: Sequence[Request], runner: LLM | Pipeline | None = None, **options: Any
    ) -> list[Answer]:
        """Ours of the requests, which run together."""
        runner = runner or self.runner(**options)
        if isinstance(runner, Pipeline):
            return [result.tensors for result in runner.run(requests)]
        params = [SamplingParams(temperature=0, max_tokens=r["max_tokens"], ignore_eos=True) for r in requests]
        outputs = runner.generate([_prompt(request) for request in requests], params, use_tqdm=False)
        return [{"token_ids": torch.tensor(output.outputs[0].token_ids)} for output in outputs]

    def logits(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Ours and the library's of every token made, request by request."""
        runner = self.runner()
        model, found = our_model(runner), []
        compute: Callable[[Tensor], Tensor] = model.compute_logits  # type: ignore[assignment]

        def keep(hidden: Tensor) -> Tensor:
            found.append(compute(hidden))
            return found[-1]

        model.compute_logits = keep  # type: ignore[assignment]
        for request, answer in zip(self.requests, self._answered(), strict=True):
            found.clear()
            self.answers([request], runner)
            made = torch.cat([logits[-1:] for logits in found])
            yield made, answer["logits"][-len(made) :]

    def levels(self) -> list[ModulePair]:
        """The second request's outputs of every module that the oracle names."""
        runner = self.runner()
        model, request = our_model(runner), dict(self.requests[1])
        if self.makes_tokens:
            request["max_tokens"] = 1
        places = _matched(self.oracle.levels, model)
        given = _first_outputs(model, [ours for _, ours, _ in places], lambda: self.answers([request], runner))
        wanted = _first_outputs(
            self.theirs, [theirs for _, _, theirs in places], lambda: self.oracle.answer(self.theirs, request)
        )
        return [
            ModulePair(ours, theirs, level.our_output(given[ours]), level.their_output(wanted[theirs]))
            for level, ours, theirs in places
        ]


def our_model(runner: LLM | Pipeline) -> nn.Module:
    return runner.model if isinstance(runner, Pipeline) else runner.core.executor.model  # type: ignore[attr-defined]


def _prompt(request: Mapping[str, Any]) -> Any:
    prompt = {k: v for k, v in request.items() if k != "max_tokens"}
    return prompt["prompt_token_ids"] if set(prompt) == {"prompt_token_ids"} else prompt


def _first_outputs(model: nn.Module, paths: Sequence[str], run: Callable[[], Any]) -> dict[str, Any]:
    """What the modules at `paths` return when they are first called during `run()`."""
    found: dict[str, Any] = {}

    def keep(path: str, output: Any) -> None:  # what a hook returned would take the output's place
        found.setdefault(path, output)

    handles = [
        model.get_submodule(path).register_forward_hook(lambda module, given, output, path=path: keep(path, output))
        for path in paths
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _matched(levels: Sequence[Level], ours: nn.Module) -> list[tuple[Level, str, str]]:
    """Every place where the levels' paths are found in our model. Errors: UsageError for a path that is nowhere."""
    names = [name for name, _ in ours.named_modules()]
    found = []
    for level in levels:
        pattern = re.compile("^" + re.escape(level.ours).replace(r"\{i\}", r"(\d+)") + "$")
        places = [(name, match) for name in names if (match := pattern.match(name))]
        if not places:
            raise UsageError(f"Our model has no module {level.ours}.")
        found += [(level, name, _filled(level.theirs, match.groups())) for name, match in places]
    return found


def _filled(path: str, numbers: tuple[str, ...]) -> str:
    """Each {i} by the number at its place; by the one number when there is one."""
    for number in numbers:
        path = path.replace("{i}", number, -1 if len(numbers) == 1 else 1)
    return path
