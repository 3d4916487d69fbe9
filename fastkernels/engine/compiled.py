"""Compiled decode steps on a CPU, which are to it what CUDA graphs are to a GPU: one call, no Python inside.

torch.export traces the step of any model once for every number of sequences, torch.compile's code generator makes a
library of it, and the two operators of fastkernels.kernels.paged_cpu go where the paged cache is read and written.
Steps run in a thread of their own, without the interpreter's lock: the host schedules the next one meanwhile.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastkernels.cache import CacheKind, cached_layers
from fastkernels.context import Phase, set_forward_context
from fastkernels.engine.batch import StepInputs
from fastkernels.engine.graphs import Replayed
from fastkernels.engine.step_library import step_library
from fastkernels.errors import EnvironmentProblem
from fastkernels.kernels.paged_cpu import library

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastkernels.engine.runners.autoregressive import AutoregressiveRunner

logger = logging.getLogger(__name__)

_LEAST_SEQS = 2
"""torch.export takes sizes of 1 for constants: a step of one sequence has a row of padding."""

_TRACED_SEQS, _TIMED_SEQS, _TIMED_RUNS = 7, 32, 8
_HOST_SECONDS = 150e-6
"""What the host has to do beside a step of some 32 rows."""


class _StepModule(nn.Module):
    """A decode step as a function of tensors alone."""

    def __init__(self, runner: AutoregressiveRunner, kinds: Sequence[CacheKind]) -> None:
        super().__init__()
        self.model, self.limits, self.greedy = runner.model, runner.limits, runner.sampler.greedy
        self.kinds = tuple(kinds)

    def forward(
        self, caches: list[Any], last_token: Tensor, ids: Tensor, positions: Tensor, rows: Tensor, seq_lens: Tensor,
        slots: list[Tensor], tables: list[Tensor],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        from fastkernels.engine.runners.autoregressive import step_context

        num_seqs = ids.shape[0]
        context = step_context(
            dict(zip(self.kinds, slots, strict=True)),
            dict(zip(self.kinds, tables, strict=True)),
            torch.arange(num_seqs + 1, dtype=torch.int32),
            seq_lens,
            None,
            None,
            max_query_len=1,
            max_seq_len=self.limits.max_model_len,
            phase=Phase.DECODE,
            num_decodes=num_seqs,
        )
        known = torch.where(ids < 0, last_token[rows], ids)
        with _bound(self.model, caches), set_forward_context(context):
            logits = self.model.compute_logits(self.model(known, positions))  # type: ignore[operator]
            likeliest = self.greedy(logits)
        last_token.index_copy_(0, rows, likeliest)
        return logits, likeliest


class _Traced(nn.Module):
    """The step with the model's weights among its arguments, so that none is copied into the library."""

    def __init__(self, step: _StepModule) -> None:
        super().__init__()
        self._step = [step]  # in a list: not a part, else its weights would be constants

    def forward(self, weights: dict[str, Tensor], *arguments: Any) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(self._step[0], weights, arguments)


@contextmanager
def _bound(model: nn.Module, caches: Sequence[Any]) -> Iterator[None]:
    layers = cached_layers(model)
    before = [layer.kv_cache for layer in layers]
    for layer, cache in zip(layers, caches, strict=True):
        layer.kv_cache = cache
    try:
        yield
    finally:
        for layer, cache in zip(layers, before, strict=True):
            layer.kv_cache = cache


class _Inputs:
    """What the host tells a step, in memory that stays where it is; one of two, for a step may run while the next is
    told."""

    def __init__(self, runner: AutoregressiveRunner, kinds: Sequence[CacheKind]) -> None:
        limits = runner.limits
        most, max_pages = max(limits.max_num_seqs, _TRACED_SEQS), -(-limits.max_model_len // limits.page_size)
        self.kinds, self.pad_row, self.last_token = list(kinds), limits.max_num_seqs, runner.last_token
        self.numbers = np.zeros((3, most), dtype=np.int64)  # ids, positions, rows
        self.seq_lens = np.zeros(most, dtype=np.int32)
        self.slots = [np.zeros(most, dtype=np.int64) for _ in kinds]
        self.tables = [np.zeros((most, max_pages), dtype=np.int32) for _ in kinds]
        self.running: RunningStep | None = None
        self.made_handles: dict[int, ctypes.Array[ctypes.c_void_p]] = {}

    def tensors(self, size: int) -> tuple[Any, ...]:
        ids, positions, rows = (torch.from_numpy(some[:size]) for some in self.numbers)
        slots, tables = ([torch.from_numpy(some[:size]) for some in all_] for all_ in (self.slots, self.tables))
        return self.last_token, ids, positions, rows, torch.from_numpy(self.seq_lens[:size]), slots, tables

    def fill(self, inputs: StepInputs, size: int) -> None:
        num, numbers = inputs.num_seqs, self.numbers
        numbers[0, :num], numbers[1, :num], numbers[2, :num] = inputs.token_ids, inputs.positions, inputs.rows
        np.add(inputs.positions, 1, out=self.seq_lens[:num], casting="unsafe")
        for kind, slots, own in zip(self.kinds, self.slots, self.tables, strict=True):
            table = inputs.block_tables[kind]
            own[:num, : table.shape[1]] = table
            slots[:num] = inputs.slot_mappings[kind]
            slots[num:size] = -1
        if num < size:
            numbers[:2, num:size], numbers[2, num:size], self.seq_lens[num:size] = 0, self.pad_row, 0

    def handles(self, size: int, fixed: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
        """Of the step's arguments for so many rows: `fixed`, then what is told. Made once each, and kept."""
        if size not in self.made_handles:
            tensors = [*fixed, *torch.utils._pytree.tree_leaves(self.tensors(size))]
            self.made_handles[size] = (ctypes.c_void_p * len(tensors))(*_handles(tensors))
        return self.made_handles[size]


class CompiledSteps:
    """As GraphPool, but steps run in a thread. Errors: EnvironmentProblem when a step cannot be compiled here."""

    def __init__(self, runner: AutoregressiveRunner, kinds: Sequence[CacheKind]) -> None:
        # The runner holds these steps: a cycle would keep weights and caches until a collection finds it.
        self.runner: AutoregressiveRunner = weakref.proxy(runner)
        self._inputs = (_Inputs(runner, kinds), _Inputs(runner, kinds))
        step = _StepModule(runner, kinds)
        weights = {n: t.detach() for n, t in (*step.named_parameters(), *step.named_buffers())}
        caches = [layer.kv_cache for layer in cached_layers(runner.model)]
        self._fixed = [*weights.values(), *caches]
        arguments = (weights, caches, *self._inputs[0].tensors(_TRACED_SEQS))
        self._library = _Library(step_library(_Traced(step), arguments, _LEAST_SEQS))
        self._worker = _Worker(self._library)
        self.captured = {runner.limits.max_num_seqs: self._library}
        self._turn = 0
        self.num_threads = self._choose_threads()
        self._release = weakref.finalize(self, _release, self._worker, [told.made_handles for told in self._inputs])
        self._release.atexit = False

    def size_for(self, inputs: StepInputs) -> int | None:
        """The number of rows of a step; None where it has to run eagerly."""
        if not inputs.is_uniform_decode or inputs.prompt_logprobs or inputs.rope_positions is not None:
            return None
        return max(inputs.num_seqs, _LEAST_SEQS)

    def close(self) -> None:
        """End the thread, and let go of the weights and caches that steps were told of."""
        self._release()

    def warm(self) -> None:
        """One library serves every number of sequences, and it is there."""

    def launch(self, inputs: StepInputs, size: int) -> RunningStep:
        """Start a decode step behind those that were started; every row's likeliest token is noted as its last."""
        self._turn = 1 - self._turn
        told = self._inputs[self._turn]
        if told.running is not None:
            told.running.outputs()
        told.fill(inputs, size)
        told.running = self._worker.start(told.handles(size, self._fixed), inputs)
        return told.running

    def drain(self) -> None:
        """Wait until no step runs: another is about to use the caches."""
        for told in self._inputs:
            if told.running is not None:
                told.running.outputs()

    def _choose_threads(self) -> int:
        """All of torch's threads, or one fewer where that costs a step less than it gives the host's own work."""
        most = torch.get_num_threads()
        if most > 1:
            size = min(_TIMED_SEQS, max(self.runner.limits.max_num_seqs, _LEAST_SEQS))
            told = self._inputs[0]
            told.numbers[2], told.seq_lens[:] = told.pad_row, 0
            for slots in told.slots:
                slots[:] = -1
            all_, fewer = (self._timed(told, size, num) for num in (most, most - 1))
            most -= fewer < all_ + _HOST_SECONDS
        self._worker.num_threads = most
        return most

    def _timed(self, told: _Inputs, size: int, num_threads: int) -> float:
        self._worker.num_threads = num_threads
        seconds = []
        for _ in range(_TIMED_RUNS):
            started = time.perf_counter()
            self._worker.start(told.handles(size, self._fixed), None).outputs()
            seconds.append(time.perf_counter() - started)
        return min(seconds)


class RunningStep:
    """A step that is on its way, or done."""

    def __init__(self, handles: ctypes.Array[ctypes.c_void_p], inputs: StepInputs | None) -> None:
        self.handles, self._inputs = handles, inputs
        self._is_done = threading.Lock()
        self._is_done.acquire()
        self._outputs: list[Tensor] | None = None
        self._error: Exception | None = None

    def finish(self, outputs: list[Tensor] | None, error: Exception | None) -> None:
        self._outputs, self._error = outputs, error
        self._is_done.release()

    def outputs(self) -> list[Tensor]:
        """Logits and likeliest tokens, padding and all; blocks until they are there."""
        if self._outputs is None and self._error is None:
            with self._is_done:
                pass
        if self._error is not None:
            raise self._error
        assert self._outputs is not None
        return self._outputs

    def wait(self) -> Tensor:
        """The likeliest token of each row."""
        assert self._inputs is not None
        return self.outputs()[1][: self._inputs.num_seqs]

    def replayed(self) -> Replayed:
        assert self._inputs is not None
        rows, drawn = torch.from_numpy(self._inputs.rows), torch.from_numpy(self._inputs.positions + 1)
        return Replayed(self.outputs()[0][: len(rows)], self.wait(), rows, drawn)


class _Worker:
    """The thread that runs steps, one after another. num_threads: how many each may use."""

    def __init__(self, library: _Library) -> None:
        self.num_threads = 1
        self._library = library
        self._queue: SimpleQueue[RunningStep | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="compiled-steps", daemon=True)
        self._thread.start()

    def start(self, handles: ctypes.Array[ctypes.c_void_p], inputs: StepInputs | None) -> RunningStep:
        step = RunningStep(handles, inputs)
        self._queue.put(step)
        return step

    def end(self) -> None:
        """Behind the steps that were started."""
        self._queue.put(None)
        self._thread.join()

    def _loop(self) -> None:
        num_threads = 0
        while (step := self._queue.get()) is not None:
            if num_threads != self.num_threads:
                num_threads = self.num_threads
                torch.set_num_threads(num_threads)  # of this thread
            try:
                step.finish(self._library.run(step.handles), None)
            except Exception as error:  # raised where the step is waited for
                step.finish(None, error)


class _Library:
    """A step's library, loaded."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self._container = ctypes.c_void_p()
        create = self._library.AOTInductorModelContainerCreateWithDevice
        create.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p]
        if create(ctypes.byref(self._container), 1, b"cpu", None):
            raise EnvironmentProblem(f"{path} cannot be loaded.")
        run = ctypes.cast(self._library.AOTInductorModelContainerRunSingleThreaded, ctypes.c_void_p)
        self._call = library().fastkernels_run_step
        self._call.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]
        self._entry = run.value

    def run(self, handles: ctypes.Array[ctypes.c_void_p]) -> list[Tensor]:
        outputs = (ctypes.c_void_p * 2)()
        if self._call(self._entry, self._container, handles, len(handles), outputs, 2):
            raise RuntimeError("A compiled step failed; its message is on stderr.")
        return _taken_back(outputs)


_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def _release(worker: _Worker, made: Sequence[dict[int, ctypes.Array[ctypes.c_void_p]]]) -> None:
    worker.end()
    for by_size in made:
        for handles in by_size.values():
            _taken_back(handles)
        by_size.clear()


def _taken_back(handles: ctypes.Array[ctypes.c_void_p]) -> list[Tensor]:
    """The tensors that handles keep alive, which are of no use after it."""
    return torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs([_new_capsule(h, None, None) for h in handles])


def _handles(tensors: Sequence[Tensor]) -> list[int]:
    return [_pointer_of(capsule, None) for capsule in torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))]


def compiled_steps(runner: AutoregressiveRunner, kinds: Sequence[CacheKind]) -> CompiledSteps | None:
    """None where steps stay eager, after one line in the log that says why."""
    if set(kinds) - {CacheKind.FULL, CacheKind.WINDOW} or runner.limits.has_state or not kinds:
        logger.warning("Decode steps stay eager: only models whose layers keep pages of keys and values are compiled.")
        return None
    dtypes = {layer.kv_cache.dtype for layer in cached_layers(runner.model)}
    if not dtypes <= {torch.float32, torch.bfloat16}:
        logger.warning("Decode steps stay eager: caches of float32 and bfloat16 are compiled, not %s.", dtypes)
        return None
    try:
        return CompiledSteps(runner, kinds)
    except EnvironmentProblem as error:
        logger.warning("Decode steps stay eager, because none can be compiled: %s", error)
        return None
