"""A runner without a model: its tokens follow from the prefix alone, read back through the pages.

What the scheduler or the page tables do wrong changes the tokens, so that both can be tested without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastkernels.cache import CacheKind
from fastkernels.engine.batch import PENDING, Array, StepInputs
from fastkernels.engine.cache import CacheGroup
from fastkernels.engine.config import FAKE_DEVICE, EngineConfig
from fastkernels.engine.model_source import build_config, find_model, find_tokenizer
from fastkernels.engine.outputs import EngineRequest
from fastkernels.engine.step import ModelFacts, StepResult
from fastkernels.errors import FastKernelsError, UnsupportedError

DEFAULT_NUM_PAGES = 512
_NEED_LOGITS = ("structured_outputs", "logprobs", "prompt_logprobs", "allowed_token_ids", "bad_words")

_PRIME = 1_000_003


class FakeRunner:
    """Writes token ids where a model would write keys and values; the next token is a hash of those it reads."""

    def __init__(self, num_pages: int, page_size: int, vocab_size: int, max_num_seqs: int) -> None:
        self.vocab_size, self.page_size = vocab_size, page_size
        self._cache = np.zeros(num_pages * page_size, dtype=np.int64)
        self._last_token = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_graph_steps = 0

    def launch(self, inputs: StepInputs) -> FakeStep:
        """Run a step; its result is there at once."""
        rows = np.repeat(inputs.rows, inputs.counts)
        ids = np.where(inputs.token_ids == PENDING, self._last_token[rows], inputs.token_ids)
        self._cache[inputs.slot_mappings[CacheKind.FULL]] = ids
        tokens = []
        position = {int(row): i for i, row in enumerate(inputs.rows)}
        for row in inputs.sample_rows.tolist():
            i = position[row]
            tokens.append(self._next(inputs.block_tables[CacheKind.FULL][i], int(inputs.starts[i] + inputs.counts[i])))
        self._last_token[inputs.sample_rows] = tokens
        sampled = dict(zip(inputs.sample_rows.tolist(), tokens, strict=True))
        embeddings = {row: tuple(_unit(sampled[row]).tolist()) for row in inputs.embedding_rows}
        return FakeStep(StepResult(tokens, embeddings=embeddings))

    def _next(self, pages: Sequence[int], seq_len: int) -> int:
        num_pages = -(-seq_len // self.page_size)
        first = np.asarray(pages[:num_pages], dtype=np.int64) * self.page_size
        slots = (first[:, None] + np.arange(self.page_size)).ravel()[:seq_len]
        return next_token(self._cache[slots], self.vocab_size)

    def accept(self, row: int, token: int) -> None:
        pass


class FakeStep:
    """A step that is over."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def wait(self) -> StepResult:
        return self._result


def next_token(prefix: Sequence[int] | np.ndarray, vocab_size: int) -> int:
    """The token that follows `prefix` on the fake device."""
    ids = np.asarray(prefix, dtype=np.int64)
    weights = np.arange(1, len(ids) + 1) % 997 + 1
    return int((int((ids * weights).sum() % _PRIME) * 31 + len(ids)) % vocab_size)


def _unit(token: int) -> np.ndarray:
    vector = np.cos(np.arange(8) * (token + 1))
    return vector / np.linalg.norm(vector)


class FakeExecutor:
    """The limits and the tokenizer of a model, and nothing that computes."""

    def __init__(self, config: EngineConfig) -> None:
        source = find_model(config.model)
        known = build_config(source)
        num_pages = config.num_pages or DEFAULT_NUM_PAGES
        self.facts = ModelFacts(
            model=source.name,
            dtype=str(known.torch_dtype if config.dtype is None else config.dtype),
            device=FAKE_DEVICE,
            vocab_size=known.vocab_size,
            max_model_len=min(config.max_model_len or known.max_position_embeddings, known.max_position_embeddings),
            max_num_seqs=config.max_num_seqs,
            eos_token_ids=frozenset(known.eos_token_ids),
            cache_groups=(CacheGroup(CacheKind.FULL),),
            num_pages=num_pages,
            tokenizer=find_tokenizer(source, config.tokenizer),
        )
        self.runner = FakeRunner(num_pages, config.page_size, known.vocab_size, config.max_num_seqs)

    def check(self, request: EngineRequest) -> None:
        params = request.params
        if request.media is not None:
            raise UnsupportedError("The fake device takes text only; the request brings pictures, video or sound.")
        asked = [name for name in _NEED_LOGITS if getattr(params, name) not in (None, ())]
        if asked:
            raise UnsupportedError(f"The fake device has no {' or '.join(asked)}: it has no logits.")

    def when_failed(self, tell: Callable[[FastKernelsError], None]) -> None:
        pass

    def encoder_len(self, encoder_input: Array) -> int:
        raise UnsupportedError("The fake device has no encoder.")

    def kernels(self) -> list[dict[str, Any]]:
        return []

    def num_compilations(self) -> int:
        return 0

    def num_kernels_made(self) -> int:
        return 0

    def peak_memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        pass
