"""Steps of models that make one token after another: prompts in chunks and single tokens, mixed in a batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastkernels.cache import CacheKind
from fastkernels.context import ForwardContext, Phase, set_forward_context
from fastkernels.engine.batch import PENDING, Array, PromptPart, StepInputs
from fastkernels.engine.compiled import CompiledSteps, RunningStep, compiled_steps
from fastkernels.engine.graphs import GraphPool
from fastkernels.engine.logprobs import prompt_logprobs, unpack_logprobs
from fastkernels.engine.outputs import TokenLogprobs
from fastkernels.engine.runners.media import EncodedMedia
from fastkernels.engine.sampler import Sampler
from fastkernels.engine.staging import PendingRead, Readback, Staging
from fastkernels.engine.step import StepResult
from fastkernels.engine.structured import Grammars

_LOGPROB_ROWS = 1024
"""Rows of logits held at once for a prompt's log-probabilities."""


@dataclass(frozen=True)
class RunnerLimits:
    """What buffers are sized by. graph_sizes: numbers of sequences for which decode steps become CUDA graphs.

    compiles_steps: on a CPU decode steps are compiled. max_encoder_len: as in ModelFacts.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    page_size: int
    vocab_size: int
    has_state: bool = False
    graph_sizes: tuple[int, ...] = ()
    compiles_steps: bool = False
    max_encoder_len: int = 0


class AutoregressiveRunner:
    """The model around its paged context, then the sampler. Rows remember on the device what they sampled last."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        limits: RunnerLimits,
        kinds: Sequence[CacheKind],
        eos_token_ids: Collection[int] = (),
        grammars: Grammars | None = None,
    ) -> None:
        self.model, self.device, self.limits = model, device, limits
        self.sampler = Sampler(limits.vocab_size, device, limits.max_num_seqs, eos_token_ids, grammars)
        # The last place belongs to the padding rows of graphs.
        self.last_token = torch.zeros(limits.max_num_seqs + 1, dtype=torch.int64, device=device)
        self.media = EncodedMedia(limits.max_num_batched_tokens)
        self.num_graph_steps = 0
        self.staging, self._readback = Staging(device), Readback(device)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.graphs = GraphPool(self, kinds) if limits.graph_sizes else None
        self.compiled = compiled_steps(self, kinds) if limits.compiles_steps else None

    def launch(self, inputs: StepInputs) -> AutoregressiveStep:
        """Enqueue a step; nothing here waits for a device that is at most two steps behind."""
        for entering in inputs.entering:
            self.sampler.add(
                entering.row, entering.params, entering.seed, entering.prompt_token_ids, entering.output_token_ids
            )
        with torch.inference_mode(), torch.cuda.stream(self.stream):
            step = self._run(inputs)
        if inputs.media is not None:
            self.media.free(inputs.media.freed)
        return step

    def accept(self, row: int, token: int) -> None:
        self.sampler.accept(row, token)

    def close(self) -> None:
        """Give the graphs back: while one is there that holds a collective, NCCL does not let a rank leave."""
        for some in (self.graphs, self.compiled):
            if some is not None:
                some.close()

    def _run(self, inputs: StepInputs) -> AutoregressiveStep:
        size = self.graphs.size_for(inputs) if self.graphs is not None else None
        if size is not None:
            assert self.graphs is not None
            self.num_graph_steps += 1
            done = self.graphs.replay(inputs, size)
            if self.sampler.is_plain_greedy(inputs.sample_rows.tolist()):
                return AutoregressiveStep(inputs, self._readback.start(done.greedy_ids))
            return self._sample(inputs, done.logits, done.rows, done.positions)
        if self.compiled is not None:
            size = self.compiled.size_for(inputs)
            if size is not None:
                return self._run_compiled(self.compiled, inputs, size)
            self.compiled.drain()
        ids, positions, context, (sample_index, sample_rows, sample_positions) = self._place(inputs)
        encoded = self._encode(inputs)
        if inputs.media is not None:
            encoded |= self.media.embeds(self.model, inputs.media, ids)
        with set_forward_context(context):
            hidden = self.model(ids, positions, **encoded)
            return self._finish(inputs, hidden, sample_index, sample_rows, sample_positions)

    def _run_compiled(self, compiled: CompiledSteps, inputs: StepInputs, size: int) -> AutoregressiveStep:
        self.num_graph_steps += 1
        running = compiled.launch(inputs, size)
        if self.sampler.is_plain_greedy(inputs.sample_rows.tolist()):
            return AutoregressiveStep(inputs, running)
        done = running.replayed()
        return self._sample(inputs, done.logits, done.rows, done.positions)

    def _finish(
        self, inputs: StepInputs, hidden: Tensor, sample_index: Tensor, sample_rows: Tensor, sample_positions: Tensor
    ) -> AutoregressiveStep:
        parts = [self._readback.start(self._prompt_part(part, hidden)) for part in inputs.prompt_logprobs]
        if not len(inputs.sample_rows):
            return AutoregressiveStep(inputs, prompt_logprobs=parts)
        last = hidden[sample_index]
        embeddings = None
        if inputs.embedding_rows:
            embeddings = self._readback.start(nn.functional.normalize(last.float(), dim=-1))
        logits = self.model.compute_logits(last)  # type: ignore[operator]
        return self._sample(inputs, logits, sample_rows, sample_positions, parts, embeddings)

    def _encode(self, inputs: StepInputs) -> dict[str, Tensor]:
        """The encoder states of the requests that come with this step; the layers keep them in their pages."""
        given = [torch.from_numpy(e.encoder_input) for e in inputs.entering if e.encoder_input is not None]
        if not given:
            return {}
        states = self.model.encode([x.to(self.device, non_blocking=True) for x in given])  # type: ignore[operator]
        return {"encoder_hidden_states": states}

    def _prompt_part(self, part: PromptPart, hidden: Tensor) -> Tensor:
        """Packed log-probabilities of part of a prompt, some rows of logits at a time."""
        next_ids = torch.tensor(part.next_ids, device=self.device)
        rows = hidden[part.first : part.first + len(next_ids)]
        packed = [
            prompt_logprobs(self.model.compute_logits(some), ids, part.num).packed()  # type: ignore[operator]
            for some, ids in zip(rows.split(_LOGPROB_ROWS), next_ids.split(_LOGPROB_ROWS), strict=True)
        ]
        return torch.cat(packed)

    def _place(self, inputs: StepInputs) -> tuple[Tensor, Tensor, ForwardContext, list[Tensor]]:
        """Token ids, positions and context on the device, and which tokens are sampled: index, row, position."""
        kinds, stored = list(inputs.block_tables), list(inputs.slot_mappings)
        starts = np.concatenate([[0], inputs.counts.cumsum()]).astype(np.int32)
        token_rows = np.repeat(inputs.rows, inputs.counts)
        ends = inputs.starts + inputs.counts
        samples, is_crossed = np.isin(inputs.rows, inputs.sample_rows), CacheKind.CROSS in kinds
        turned = inputs.positions if inputs.rope_positions is None else inputs.rope_positions
        arrays: list[Array] = [inputs.token_ids, turned, token_rows, starts, ends.astype(np.int32)]
        arrays += [inputs.slot_mappings[kind] for kind in stored]
        arrays += [np.ascontiguousarray(inputs.block_tables[kind]) for kind in kinds]
        arrays += [inputs.encoder_lens.astype(np.int32), inputs.encoder_slots]
        arrays += [inputs.rows.astype(np.int32), inputs.starts > 0]
        arrays += [inputs.sample_index, inputs.sample_rows, ends[samples]]
        packed = self.staging.put(arrays)
        ids, positions, rows, query_start_loc, seq_lens = packed[:5]
        if (inputs.token_ids == PENDING).any():
            ids = torch.where(ids < 0, self.last_token[rows], ids)
        slots, tables = packed[5 : 5 + len(stored)], packed[5 + len(stored) : 5 + len(stored) + len(kinds)]
        context = step_context(
            dict(zip(stored, slots, strict=True)),
            dict(zip(kinds, tables, strict=True)),
            query_start_loc,
            seq_lens,
            *(packed[-5:-3] if self.limits.has_state else (None, None)),
            max_query_len=int(inputs.counts.max()),
            max_seq_len=int(ends.max()),
            cross=(packed[-7], packed[-6] if len(inputs.encoder_slots) else None) if is_crossed else None,
            phase=inputs.phase,
            num_decodes=int((inputs.counts == 1).sum()),
        )
        return ids, positions, context, packed[-3:]

    def _sample(
        self,
        inputs: StepInputs,
        logits: Tensor,
        rows: Tensor,
        positions: Tensor,
        parts: Sequence[PendingRead] = (),
        embeddings: PendingRead | None = None,
    ) -> AutoregressiveStep:
        sampled = self.sampler(logits, inputs.sample_rows.tolist(), rows, positions)
        self.last_token.index_copy_(0, rows, sampled.token_ids)
        logprobs = None if sampled.logprobs is None else self._readback.start(sampled.logprobs.packed())
        nums = self.sampler.num_logprobs(inputs.sample_rows.tolist()) if logprobs is not None else ()
        tokens = self._readback.start(sampled.token_ids)
        return AutoregressiveStep(inputs, tokens, logprobs, nums, parts, embeddings)


@dataclass(frozen=True)
class AutoregressiveStep:
    """A launched step: what it sampled is on its way to the host."""

    inputs: StepInputs
    tokens: PendingRead | RunningStep | None = None
    logprobs: PendingRead | None = None
    num_logprobs: Sequence[int | None] = ()
    prompt_logprobs: Sequence[PendingRead] = ()
    embeddings: PendingRead | None = None

    def wait(self) -> StepResult:
        """Block until the device has done the step."""
        prompt = {
            part.row: _found(unpack_logprobs(read.wait().numpy(), [part.num] * len(part.next_ids)))
            for part, read in zip(self.inputs.prompt_logprobs, self.prompt_logprobs, strict=True)
        }
        if self.tokens is None:
            return StepResult([], prompt_logprobs=prompt)
        embeddings = {}
        if self.embeddings is not None:
            rows, values = self.inputs.sample_rows.tolist(), self.embeddings.wait()
            wanted = self.inputs.embedding_rows
            embeddings = {row: tuple(value.tolist()) for row, value in zip(rows, values, strict=True) if row in wanted}
        logprobs = None
        if self.logprobs is not None:
            logprobs = unpack_logprobs(self.logprobs.wait().numpy(), self.num_logprobs)
        return StepResult(self.tokens.wait().tolist(), logprobs, embeddings, prompt)


def _found(some: Sequence[TokenLogprobs | None]) -> tuple[TokenLogprobs, ...]:
    return tuple(one for one in some if one is not None)


def step_context(
    slots: dict[CacheKind, Tensor],
    tables: dict[CacheKind, Tensor],
    query_start_loc: Tensor,
    seq_lens: Tensor,
    state_slots: Tensor | None,
    has_initial_state: Tensor | None,
    *,
    max_query_len: int,
    max_seq_len: int,
    phase: Phase,
    num_decodes: int,
    cross: tuple[Tensor, Tensor | None] | None = None,
) -> ForwardContext:
    """The forward context of a batch; a kind that the model lacks stays empty."""
    nothing = seq_lens.new_empty((seq_lens.shape[0], 0))
    return ForwardContext(
        query_start_loc=query_start_loc,
        seq_lens=seq_lens,
        block_table=tables.get(CacheKind.FULL, nothing),
        slot_mapping=slots.get(CacheKind.FULL, nothing.flatten().long()),
        max_query_len=max_query_len,
        max_seq_len=max_seq_len,
        phase=phase,
        num_decodes=num_decodes,
        window_block_table=tables.get(CacheKind.WINDOW),
        window_slot_mapping=slots.get(CacheKind.WINDOW),
        cross_block_table=tables.get(CacheKind.CROSS),
        cross_seq_lens=cross[0] if cross else None,
        cross_slot_mapping=cross[1] if cross else None,
        state_slots=state_slots,
        has_initial_state=has_initial_state,
    )
