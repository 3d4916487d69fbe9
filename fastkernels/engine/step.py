"""What runs steps, whatever it computes with: steps are launched, and waited for later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tokenizers import Tokenizer

from fastkernels.engine.batch import Array, StepInputs
from fastkernels.engine.cache import CacheGroup
from fastkernels.engine.outputs import EngineRequest, TokenLogprobs
from fastkernels.errors import FastKernelsError


@dataclass(frozen=True)
class StepResult:
    """tokens, logprobs: of the rows that sample, in order. embeddings, prompt_logprobs: by row."""

    tokens: list[int]
    logprobs: Sequence[TokenLogprobs | None] | None = None
    embeddings: dict[int, tuple[float, ...]] = field(default_factory=dict)
    prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)


class Step(Protocol):
    """A step that was launched."""

    def wait(self) -> StepResult:
        """Block until the step's results are on the host."""


class Runner(Protocol):
    """Launches steps in order; a step may read what the one before it sampled."""

    @property
    def num_graph_steps(self) -> int: ...

    def launch(self, inputs: StepInputs) -> Step: ...

    def accept(self, row: int, token: int) -> None:
        """The host has seen a token of a row whose next one depends on it.

        Errors: GrammarError when the row's grammar does not allow it.
        """


@dataclass(frozen=True)
class ModelFacts:
    """What the engine has to know of a model that is ready to run. num_pages: 0 where no layer has any.
    max_encoder_len: states of an encoder input at most; 0 where there is no encoder, or none that is longer than
    max_model_len."""

    model: str
    dtype: str
    device: str
    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    eos_token_ids: frozenset[int]
    cache_groups: tuple[CacheGroup, ...]
    num_pages: int
    tokenizer: Tokenizer
    has_state: bool = False
    weight_bytes: int = 0
    cache_bytes: int = 0
    takes_media: bool = False
    max_encoder_len: int = 0


class Executor(Protocol):
    """A model with its caches on its devices, and the runner that steps it."""

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def runner(self) -> Runner: ...

    def check(self, request: EngineRequest) -> None:
        """Errors: SamplingParamsError when the request asks for what cannot be compiled or kept."""

    def when_failed(self, tell: Callable[[FastKernelsError], None]) -> None:
        """`tell` is called, in any thread, when no step can be made any more, also while none is being made."""

    def encoder_len(self, encoder_input: Array) -> int:
        """States that the model's encoder makes of an input. Errors: UnsupportedError when there is no encoder."""

    def kernels(self) -> list[dict[str, Any]]: ...

    def num_compilations(self) -> int: ...

    def num_kernels_made(self) -> int: ...

    def peak_memory_bytes(self) -> int: ...

    def close(self) -> None: ...
