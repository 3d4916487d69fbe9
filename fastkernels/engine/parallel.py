"""Tensor parallelism: one scheduler, and a process a rank that runs the same steps on its share of the weights.

Rank 0 lives in the engine's process. The others are told each step's inputs (a few kilobytes), never tensors; every
rank draws the same tokens from the gathered logits, so none has to be told what was sampled.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch.distributed as dist

from fastkernels.engine.batch import Array, StepInputs
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.executor import ModelExecutor
from fastkernels.engine.outputs import EngineRequest
from fastkernels.engine.rank_group import (
    check_devices,
    join_group,
    leaving_group,
    on_device,
    see_group_left,
    take_device,
)
from fastkernels.engine.ranks import HERE, READY, Ranks
from fastkernels.engine.step import ModelFacts, Runner, Step
from fastkernels.engine.structured import GrammarError
from fastkernels.errors import EnvironmentProblem, FastKernelsError, RankError


class ParallelExecutor:
    """Rank 0's executor, and the other ranks behind it.

    Errors: UsageError for devices that ranks cannot have; RankError with what a rank said when it could not start.
    """

    def __init__(self, config: EngineConfig) -> None:
        check_devices(config)
        if dist.is_initialized():
            raise EnvironmentProblem("This process already has a process group; one engine with ranks is its limit.")
        store = os.memfd_create("fastkernels-ranks")  # never closed: the group writes there until it is freed
        self._ranks = Ranks()
        self._is_closed = False
        try:
            self._ranks.start(config, store)
            take_device(config, 0)
            self._ranks.expect(HERE)  # for one that ends before, `join_group` would wait half an hour
            join_group(config, 0, store)
            self._ranks.check()
            self._own = ModelExecutor(on_device(config, 0))
            self._ranks.expect(READY)
        except BaseException as error:
            failure = self._failure_behind(error)
            self.close()
            if failure is not None:
                raise failure from error
            raise
        self.runner: Runner = ToldRunner(self._own.runner, self._ranks)
        atexit.register(self.close)

    def _failure_behind(self, error: BaseException) -> RankError | None:
        """Of the rank that rank 0 has met only the end of, in an error of the group's or of what it makes alone."""
        if isinstance(error, RankError) or not isinstance(error, Exception):
            return None
        failure = self._ranks.failure(0) if isinstance(error, FastKernelsError) else self._ranks.failure()
        is_the_same = failure is not None and isinstance(error, FastKernelsError) and str(error) in str(failure)
        return None if is_the_same else failure

    @property
    def facts(self) -> ModelFacts:
        return self._own.facts

    def check(self, request: EngineRequest) -> None:
        """Every rank compiles what the request's answers follow."""
        grammar = request.params.structured_outputs
        with nullcontext() if grammar is None else self._ranks.compiling(grammar):
            self._own.check(request)

    def when_failed(self, tell: Callable[[FastKernelsError], None]) -> None:
        self._ranks.when_failed(tell)

    def encoder_len(self, encoder_input: Array) -> int:
        return self._own.encoder_len(encoder_input)

    def kernels(self) -> list[dict[str, Any]]:
        """As of one rank, with the rank that each line is of where a candidate replaces an op."""
        lines = [{**line, "rank": 0} for line in self._own.kernels()]
        for theirs in self._ranks.ask("kernels"):
            lines += [line for line in theirs if line["status"] != "BASELINE"]
        return lines

    def num_compilations(self) -> int:
        return self._own.num_compilations()

    def num_kernels_made(self) -> int:
        return self._own.num_kernels_made()

    def peak_memory_bytes(self) -> int:
        return self._own.peak_memory_bytes()

    def close(self) -> None:
        """End the ranks; those that do not end in time are killed."""
        if self._is_closed:
            return
        self._is_closed = True
        atexit.unregister(self.close)
        own = getattr(self, "_own", None)
        if own is not None:
            own.close()
        self._ranks.stop()
        leaving = leaving_group()  # beside the others: NCCL's ranks leave together
        self._ranks.end()
        see_group_left(leaving)


class ToldRunner:
    """Tells every other rank what rank 0 is about to do, then does it. Errors: RankError, as Ranks says."""

    def __init__(self, own: Runner, ranks: Ranks) -> None:
        self._own, self._ranks = own, ranks

    @property
    def num_graph_steps(self) -> int:
        return self._own.num_graph_steps

    def launch(self, inputs: StepInputs) -> Step:
        with self._together("launch", inputs):
            step = self._own.launch(inputs)
        self._ranks.check()  # without a group, collectives give back what they get
        return step

    def accept(self, row: int, token: int) -> None:
        with self._together("accept", row, token):
            self._own.accept(row, token)

    @contextmanager
    def _together(self, *message: Any) -> Iterator[None]:
        """Rank 0 does what the others are told, or no rank does anything more."""
        self._ranks.check()
        try:
            self._ranks.tell(*message)
            yield
        except GrammarError:  # all meet it
            raise
        except BaseException as error:  # Ctrl-C, memory, a rank that is gone, a group that was taken away
            self._ranks.give_up(error)
            raise
