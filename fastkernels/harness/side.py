"""One implementation under judgement: a worker, its laid-out cases, and calls with the judge's clock.

A call is a fixed sequence of turns (control.py). The judge decides after the answer is claimed
whether it wants to see it, so no call can be told from another by the one who answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fastkernels.capture.case import encode_value
from fastkernels.harness.answers import (
    MALFORMED,
    Part,
    Sampled,
    check_sample,
    malformed,
    read_parts,
    record_of,
    starts,
)
from fastkernels.harness.arena import ALIGNMENT, POISON_VALUE, Layout, aligned, dtype_name
from fastkernels.harness.changes import Changes
from fastkernels.harness.control import ANSWER_BYTES, HELD_ANSWERS, Word
from fastkernels.harness.launched import read_names
from fastkernels.harness.look import Look
from fastkernels.harness.mutation import check_inputs
from fastkernels.harness.pause import DIRECT_BYTES, stopped
from fastkernels.harness.pool import PlannedCall, Pool
from fastkernels.harness.sample import SAMPLE_BYTES
from fastkernels.harness.verdict import BaselineFailed, Rejection, Verdict
from fastkernels.harness.watcher import Watcher
from fastkernels.harness.workers import Worker, number
from fastkernels.registry import OpEntry
from fastkernels.sets import ALTERNATIVES_DIR, ImplementationSet

LONGEST_HOLD_NS = 8_000_000
_LAUNCHED_SECONDS = 20.0
_PLACES = 6  # a multiple of how many addresses a worker may have (cuda_device.py)


@dataclass(frozen=True)
class Call:
    """What one call gave. claim_ns: GO (on a GPU: RELEASE) to DONE by the judge's clock. settle_ns: DONE to the
    answer lying in shared memory, where it was asked for. device_ns: the worker's own events (GPU), believed only when
    the judge's clock agrees. stage_ns: from RELEASE to the first of them; on a CPU from letting a stopped worker go to
    AWAKE."""

    claim_ns: int
    settle_ns: int
    device_ns: int
    stage_ns: int
    enqueue_ns: int
    is_held: bool
    parts: tuple[Part, ...] | None
    is_sequence: bool = False
    sequence: int = 0
    is_sealed: bool = False
    is_published: bool = True
    after: Mapping[str, Tensor] = field(default_factory=dict)


class Side:
    """A worker that holds one implementation of one op."""

    def __init__(self, worker: Worker, entry: OpEntry, implementations: ImplementationSet | None) -> None:
        self.worker, self.entry, self.implementations = worker, entry, implementations
        self.is_remote = False
        self.pool: Pool | None = None
        self.setup_seconds = 0.0
        self._is_first = True
        self._starts: list[int] = []
        self._answer_start = 0
        self._changes: Changes | None = None

    @property
    def is_baseline(self) -> bool:
        return self.implementations is None

    @contextlib.contextmanager
    def blame(self) -> Iterator[None]:
        """What goes wrong within is said of this side: of the candidate as it is, of the baseline as UNTESTABLE."""
        try:
            yield
        except Rejection as rejection:
            if not self.is_baseline or rejection.verdict is Verdict.UNTESTABLE:
                raise
            message = f"The baseline of {self.entry.name} itself fails here: {rejection.message}"
            raise BaselineFailed(rejection.verdict, message) from None

    def load(self, init: Mapping[str, Any], dtype: torch.dtype) -> None:
        """Errors: Rejection IMPORT_ERROR or RUNTIME_ERROR."""
        implementations = self.implementations
        self.worker.request(
            {
                "cmd": "load",
                "op": self.entry.name,
                "set": None if implementations is None else str(implementations.path),
                "is_sealed": implementations is not None and ALTERNATIVES_DIR not in implementations.path.parents,
                "init": encode_value(dict(init)),
                "dtype": dtype_name(dtype),
            }
        )

    def put_params(self, params: Mapping[str, Tensor]) -> None:
        """Load weights in place; what the implementation prepared from older ones must follow."""
        dense = {name: value.contiguous() for name, value in params.items()}
        layout = Layout.of(dense) if dense else Layout((), ALIGNMENT)
        layout.write(self.worker.arena.region(0, layout.num_bytes), dense)
        reply = self.worker.request(
            {"cmd": "params", "slots": [s.to_json() for s in layout.slots], "num_bytes": layout.num_bytes, "start": 0}
        )
        self._is_first = True
        self.setup_seconds = number(reply.get("setup_seconds"))

    def lay_out(self, pool: Pool, is_remote: bool, flush_bytes: int, num_held: int = HELD_ANSWERS) -> None:
        """Tell the worker where the inputs of `pool` lie; upload them now when it runs on a GPU. num_held: answers that
        it keeps."""
        self.pool, self.is_remote, self._is_first = pool, is_remote, True
        self._changes = None
        size, case = pool.layout.num_bytes, pool.cases[0]
        self._starts = [index * size for index in range(len(pool.cases))]
        self._answer_start = aligned(len(pool.cases) * size) + ANSWER_BYTES
        for start, flat in zip(self._starts, pool.flat, strict=True):
            pool.layout.write(self.worker.arena.region(start, size), flat)
        context = None
        if case.context:
            scalars = {
                "max_query_len": case.context.max_query_len,
                "max_seq_len": case.context.max_seq_len,
                "phase": case.context.phase.value,
                "num_decodes": case.context.num_decodes,
            }
            context = {"tensors": list(case.context.tensors()), "scalars": scalars}
        self.worker.request(
            {
                "cmd": "case",
                "slots": [s.to_json() for s in pool.layout.slots],
                "num_bytes": size,
                "pool_starts": self._starts,
                "arguments": list(case.inputs),
                "scalars": {n: v for n, v in case.inputs.items() if not isinstance(v, Tensor)},
                "context": context,
                "num_caches": len(case.caches),
                "rules": {name: rule.to_json() for name, rule in pool.rules.items()},
                "answer_start": self._answer_start,
                "answer_bytes": pool.answer_bytes,
                "flush_bytes": flush_bytes,
                "poison_bytes": pool.poison_bytes,
                "is_mutating": bool(pool.mutable),
                "num_held": num_held,
            }
        )

    def calls(self, plan: Sequence[PlannedCall], *, is_cold: bool = True) -> list[Call]:
        """Make the calls of one block.

        Errors: Rejection of whatever went wrong, RUNTIME_ERROR for an exception in the implementation.
        """
        worker = self.worker
        worker.send({"cmd": "calls", "first": worker.sequence + 1, "count": len(plan)})
        results = [self._call(planned, is_cold) for planned in plan]
        worker.reply(worker.limits.call_seconds)
        worker.check_memory(seconds=0.5)
        return results

    def again(self, sequence: int) -> tuple[Part, ...]:
        """What was answered to call number `sequence`, as it is now.

        Errors: Rejection RUNTIME_ERROR when it is not shown.
        """
        pool, worker = self.pool, self.worker
        assert pool is not None
        shared = worker.arena.region(self._answer_start - ANSWER_BYTES, ANSWER_BYTES + pool.expected_bytes)
        shared.fill_(POISON_VALUE)  # what is there is of the last call
        worker.request({"cmd": "again", "sequence": sequence}, worker.limits.call_seconds)
        look = Look(worker.arena, self._answer_start, pool.expected_bytes)
        look.take()
        raw = look.whole(pool.answer_bytes)
        record = record_of(look.description(worker.bell.read(Word.ANSWER_LENGTH)))
        try:
            return read_parts(raw, record["answers"])
        except torch.OutOfMemoryError:
            raise
        except MALFORMED as error:
            raise malformed(error) from None

    def graph_us(self, count: int) -> float:
        """Median time of one call inside a CUDA graph, warm, by device events; 0 when it cannot be captured."""
        worker = self.worker
        worker.bell.write(Word.VARIES, 0)
        worker.bell.write(Word.POOL, 0)
        try:
            reply = worker.request({"cmd": "graph", "count": count})
        except Rejection as rejection:
            if rejection.verdict is Verdict.RUNTIME_ERROR and worker.is_alive():
                return 0.0
            raise
        measured = reply.get("nanoseconds")
        if not isinstance(measured, list) or not measured:
            raise Rejection(Verdict.RUNTIME_ERROR, "The worker sent no times of its graph.")
        return median(number(value) for value in measured) / 1e3

    def launched(self, pool: Pool, *, is_remote: bool) -> list[str]:
        """Kernels of one more call, on the first case of a pool, as the worker says; none when it fails in any way.

        The last that is asked of a worker: what it is afterwards is not looked at.
        """
        try:
            self.lay_out(pool, is_remote, flush_bytes=0)
            self.worker.bell.write(Word.VARIES, 0)
            self.worker.bell.write(Word.POOL, 0)
            return read_names(self.worker.request({"cmd": "launched"}, _LAUNCHED_SECONDS))
        except Rejection:
            return []

    def _call(self, planned: PlannedCall, is_cold: bool) -> Call:
        pool, worker = self.pool, self.worker
        assert pool is not None
        bell, watch = worker.bell, worker.watcher(self._seconds())
        self._is_first = False
        worker.sequence += 1
        sequence = worker.sequence
        region = worker.arena.region(self._starts[planned.index], pool.layout.num_bytes)
        image = None if self.is_remote else pool.image(planned.index, planned.variation)
        if not self.is_remote and (planned.is_fetched or self._changes is None):
            self._changes = pool.changes(planned.index, planned.variation)
        self._tell(planned, is_cold)
        worker.arena.region(self._answer_start, pool.poison_bytes).fill_(POISON_VALUE)
        look = Look(worker.arena, self._answer_start, pool.expected_bytes)
        bell.write(Word.PREPARE, sequence)
        bell.wait(Word.READY, sequence, watch)
        woken_ns = 0
        if image is not None:
            woken_ns = self._write(sequence, region, image, watch)
        started, is_held = self._start(sequence, planned)
        bell.wait(Word.DONE, sequence, watch)
        claimed = time.perf_counter_ns()
        # In every call, wanted or not: how long it takes would tell them apart.
        seen = self._changes.seen(region) if self._changes else []
        settled, is_published, sampled = self._settle(sequence, planned, look, watch)
        stage_ns = bell.read(Word.STAGE_NS) if self.is_remote else woken_ns
        device = (bell.read(Word.DEVICE_NS), stage_ns, bell.read(Word.ENQUEUE_NS))
        timing = (claimed - started, settled - claimed, *device, is_held)
        call = Call(*timing, parts=None, is_published=is_published)
        if planned.is_fetched or bell.read(Word.FAILED):
            call = self._read_answer(timing, region, planned, seen, look, sampled)
        if not self.is_remote:
            region.fill_(POISON_VALUE)  # an answer that shares memory with an argument changes now
        return call

    def _settle(
        self, sequence: int, planned: PlannedCall, look: Look, watch: Watcher
    ) -> tuple[int, bool, Sampled | None]:
        """Ask for what was claimed: when it was seen in the arena, whether anything was asked for, and the bytes of a
        large answer that were wanted before it is known whether all of it will be."""
        pool, bell = self.pool, self.worker.bell
        assert pool is not None
        has_failed = bool(bell.read(Word.FAILED))
        is_fetched = planned.is_fetched or has_failed
        if pool.is_all_published or has_failed or planned.is_sealed:
            bell.write(Word.SAMPLE, 0)
            bell.write(Word.FETCH, int(is_fetched or pool.is_all_published))
            bell.write(Word.VERDICT, sequence)
            bell.wait(Word.IDLE, sequence, watch)
            look.take()
            return time.perf_counter_ns(), is_fetched or pool.is_all_published, None
        lot = secrets.randbits(48)
        bell.write(Word.SAMPLE, 1 + lot)
        bell.write(Word.VERDICT, sequence)
        bell.wait(Word.SAMPLED, sequence, watch)
        found = self.worker.arena.region(self._answer_start - ANSWER_BYTES, SAMPLE_BYTES).clone()
        settled = time.perf_counter_ns()
        bell.write(Word.FETCH, int(is_fetched))
        bell.write(Word.WANTED, sequence)
        bell.wait(Word.IDLE, sequence, watch)
        look.take()
        return settled, True, (lot, found)

    def _seconds(self) -> float:
        """A first call on new shapes or weights may compile."""
        limits = self.worker.limits
        return limits.call_seconds * (limits.first_call_factor if self._is_first else 1)

    def _tell(self, planned: PlannedCall, is_cold: bool) -> None:
        """What the worker may know of a call before the clock runs."""
        bell, variation = self.worker.bell, planned.variation
        bell.write(Word.POOL, planned.index)
        bell.write(Word.PLACE, secrets.randbelow(_PLACES))
        bell.write(Word.VARIES, int(variation is not None and self.is_remote))
        bell.write(Word.ROLL, variation.roll if variation else 0)
        bell.write(Word.FLUSH, int(is_cold))
        bell.write(Word.PAUSES, int(self._pauses))
        bell.write(Word.SEAL, int(planned.is_sealed))
        bell.write(Word.ECHO, int(planned.is_echoed))

    @property
    def _pauses(self) -> bool:
        assert self.pool is not None
        return not self.is_remote and self.pool.layout.num_bytes > DIRECT_BYTES

    def _write(self, sequence: int, region: Tensor, image: Tensor, watch: Watcher) -> int:
        """Give the values, in one copy: not before, so that nothing can be computed ahead of the clock. Nanoseconds
        from letting a stopped worker go until it said that it runs."""
        bell = self.worker.bell
        if not self._pauses:
            ctypes.memmove(region.data_ptr(), image.data_ptr(), len(image))
            return 0
        with stopped(self.worker.pid, watch):
            ctypes.memmove(region.data_ptr(), image.data_ptr(), len(image))
            bell.write(Word.WAKE, sequence)
            released = time.perf_counter_ns()
        bell.wait(Word.AWAKE, sequence, watch)
        return time.perf_counter_ns() - released

    def _start(self, sequence: int, planned: PlannedCall) -> tuple[int, bool]:
        """GO; the clock when the call could begin, and whether all of it was enqueued by then.

        On a GPU the call is enqueued first, behind a word that is written last; a call that waits for the device
        itself, as one that reads a value does, is let go after LONGEST_HOLD_NS.
        """
        bell, arena = self.worker.bell, self.worker.arena
        if not self.is_remote:
            started = time.perf_counter_ns()  # before GO: losing the core in between can only add
            bell.write(Word.GO, sequence)
            return started, False
        bell.write(Word.GO, sequence)
        is_held = bell.wait_until(Word.ENQUEUED, sequence, time.perf_counter_ns() + LONGEST_HOLD_NS)
        if planned.variation is not None:
            arena.vector.copy_(planned.variation.multiplier)
            arena.shift.fill_(planned.variation.shift)
        started = time.perf_counter_ns()
        bell.write(Word.RELEASE, sequence)
        return started, is_held

    def _read_answer(
        self,
        timing: tuple[int, int, int, int, int, bool],
        region: Tensor,
        planned: PlannedCall,
        seen: list[Tensor],
        look: Look,
        sampled: Sampled | None,
    ) -> Call:
        pool = self.pool
        assert pool is not None
        raw = look.whole(pool.answer_bytes)
        inputs = None if self.is_remote else region.clone()
        record = record_of(
            look.description(self.worker.bell.read(Word.ANSWER_LENGTH))
        )  # not before: by now nothing can be changed
        try:
            answers = record["answers"]
            if sampled is not None:
                check_sample(raw, sampled, answers)
            parts, end = read_parts(raw, answers), aligned(starts(answers)[-1])
            after: dict[str, Tensor] = {}
            is_copied = planned.is_echoed if self.is_remote else bool(planned.is_sealed and pool.mutable)
            given = pool.values(planned.index, planned.variation) if is_copied or inputs is not None else {}
            if inputs is not None:
                after = check_inputs(pool, inputs, given)
                if self._changes is not None:
                    self._changes.check(inputs, seen)
            if is_copied:
                if "inputs_start" not in record or end + len(region) > len(raw):
                    raise ValueError("the inputs as they are after the call are not with it")
                inputs = raw[end : end + len(region)]
                after = check_inputs(pool, inputs.to(pool.device), given)
            return Call(
                *timing,
                parts=parts,
                is_sequence=bool(record["is_sequence"]),
                sequence=self.worker.sequence,
                is_sealed=planned.is_sealed,
                after=after,
            )
        except torch.OutOfMemoryError:  # a RuntimeError too, but of the judge's own comparison
            raise
        except MALFORMED as error:
            raise malformed(error) from None
