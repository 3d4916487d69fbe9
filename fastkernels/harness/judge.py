"""The referee of one implementation of one op: correctness on captured and hidden inputs, then speed.

Owns inputs, seeds, expectations, tolerances, the clock that counts and the verdict. Imports no
candidate; whatever a worker says is an answer to be checked.
"""

from __future__ import annotations

import errno
import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fastkernels.capture.case import Case
from fastkernels.errors import FastKernelsError
from fastkernels.harness.ceilings import Ceilings
from fastkernels.harness.checks import check_call
from fastkernels.harness.clocks import check_clocks, check_floor, late_ns
from fastkernels.harness.correctness import BASELINE_FACTOR, Correctness, pool_of, pools_of
from fastkernels.harness.expect import baseline_class, expectation
from fastkernels.harness.groups import Group, drawn_dtypes, make_groups, none_to_draw
from fastkernels.harness.null_matrix import null_matrix
from fastkernels.harness.plans import timed_pools
from fastkernels.harness.pool import PlannedCall, Pool, params_bytes
from fastkernels.harness.records import OpRecord, TimingRecord
from fastkernels.harness.sandbox import wake_promptly
from fastkernels.harness.side import Call, Side
from fastkernels.harness.timing import (
    BASELINE,
    BASELINE_AGAIN,
    CANDIDATE,
    Protocol,
    Timed,
    run_restart,
)
from fastkernels.harness.timing_record import timing_record
from fastkernels.harness.tolerance import tolerances_for
from fastkernels.harness.verdict import BaselineFailed, Rejection, Verdict
from fastkernels.harness.workers import Nursery
from fastkernels.registry import OpEntry
from fastkernels.sets import ImplementationSet, linked_files, links_out_of, source_digest, source_text

Progress = Callable[[str, float], None]
"""Told what comes next of an op, and which share of its judging is done."""

MACHINE_TROUBLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})

_MAY_BE_STARVED = (Verdict.TIMEOUT, Verdict.RUNTIME_ERROR)
"""What a process can come to by what runs beside it: time and memory are the machine's."""

_TIMED_FACTOR = 2.0
"""Of the tolerance for captured values: timed calls have other values, and no baseline's answer beside each."""

NUM_TRIALS = 3
"""What clocks alone say is said of a candidate only when so many measurements agree, each in fresh processes: noise on
a busy machine seldom comes twice, unpaid work always does. The times that count are those of the trial that passed."""


@dataclass(frozen=True)
class JudgeConfig:
    """device: "cpu" or "cuda". dtypes: activation dtypes that are judged beside those of captured cases; takes_others:
    an op that takes none of them is judged in the first that it takes.
    num_shapes: hidden shapes per way of building the op. num_captured, num_timed: captured cases that are
    checked and that are timed."""

    device: str = "cpu"
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    takes_others: bool = False
    num_shapes: int = 4
    num_captured: int = 24
    num_timed: int = 3
    protocol: Protocol = field(default_factory=Protocol)
    is_timed: bool = True

    @property
    def is_remote(self) -> bool:
        return self.device.startswith("cuda")


class Judge:
    """Judges implementations with workers of one nursery."""

    def __init__(self, config: JudgeConfig, nursery: Nursery, progress: Progress = lambda text, share: None) -> None:
        self.config, self.nursery, self._progress = config, nursery, progress
        self._num_done, self._num_stages = 0, 1
        self.oracle_device = torch.device(config.device)
        wake_promptly()
        self.ceilings = Ceilings.measured(config.device)

    def judge(self, entry: OpEntry, implementations: ImplementationSet, cases: Sequence[Case]) -> OpRecord:
        """The record of one implementation; a verdict other than PASSED is in it, never raised."""
        started = time.monotonic()
        path = implementations.file_of(entry)
        source = _source(entry, implementations)
        seed = secrets.randbits(62)
        record = OpRecord(
            op=entry.name,
            level=entry.level,
            implementation=implementations.name,
            source_path=_shown(path),
            source_sha256=self.source_sha256(entry, implementations),
            device=self.config.device,
            verdict=Verdict.PASSED.value,
            seed=seed,
            source=source,
            baseline_source=Path(entry.path).read_text(),
        )
        try:
            self._judge(entry, implementations, cases, record, torch.Generator().manual_seed(seed))
        except Rejection as rejection:
            record.verdict = rejection.verdict.value
            record.message = rejection.message
            if rejection.verdict is Verdict.CHEATING:
                record.witness = rejection.message
            if rejection.verdict is Verdict.IMPORT_ERROR:
                record.message += _links_note(implementations)
        except Exception as error:
            if isinstance(error, FastKernelsError) or getattr(error, "errno", None) in MACHINE_TROUBLE:
                raise  # the user's or the machine's, and the next op's too
            record.verdict, record.message = Verdict.JUDGE_ERROR.value, traceback.format_exc()
        record.seconds = time.monotonic() - started
        return record

    def source_sha256(self, entry: OpEntry, implementations: ImplementationSet) -> str:
        return source_digest(implementations, entry)

    def _judge(
        self,
        entry: OpEntry,
        implementations: ImplementationSet,
        cases: Sequence[Case],
        record: OpRecord,
        generator: torch.Generator,
    ) -> None:
        config = self.config
        num_ranks = baseline_class(entry).spec.num_ranks
        if num_ranks > 1:
            raise Rejection(Verdict.UNTESTABLE, f"{entry.name} needs {num_ranks} ranks; one process was given.")
        dtypes = drawn_dtypes(entry, config.dtypes, takes_others=config.takes_others)
        groups = make_groups(
            entry, cases, dtypes, config.num_shapes, self.oracle_device, generator, config.num_captured
        )
        if not groups:
            why = none_to_draw(entry, config.dtypes) if not dtypes else f"num_shapes is {config.num_shapes}"
            raise Rejection(
                Verdict.UNTESTABLE,
                f"There is nothing to judge {entry.name} on: no call of it is among the cases, and {why}.",
            )
        timed = timed_pools(groups, config.num_timed) if config.is_timed else []
        self._num_stages = len(groups) + len(timed) * config.protocol.num_restarts
        self._tell("wrong answers", 0.0)
        record.nulls = null_matrix(entry, groups, generator)
        passed = [f"{n.null} ({n.dtype})" for n in record.nulls if n.outcome == "passed"]
        if passed:
            raise Rejection(Verdict.UNTESTABLE, f"Wrong answers pass for {entry.name}: {', '.join(passed)}.")
        largest, cases_of_largest = timed_pools(groups, 1)[0]
        for number, group in enumerate(groups):

            def tell(shapes: str, share: float, number: int = number) -> None:
                self._tell(f"correctness {number + 1}/{len(groups)}, {shapes}", number + share)

            tell(f"{len(group.pools)} shapes", 0.0)
            with self._sides(entry, implementations, group, [BASELINE, CANDIDATE], record) as sides:
                Correctness(group, sides, record, generator, self.oracle_device, tell).check()
                if group is largest:
                    largest_pool = pool_of(group, cases_of_largest[:1], self.oracle_device)
                    record.launched = sides[CANDIDATE].launched(largest_pool, is_remote=config.is_remote)
        self._num_done = len(groups)
        for pool in timed:
            self._time(entry, implementations, *pool, record)

    def _tell(self, text: str, num_done: float) -> None:
        """num_done: of the op's stages."""
        self._progress(text, min(1.0, num_done / self._num_stages))

    @contextmanager
    def _sides(
        self,
        entry: OpEntry,
        implementations: ImplementationSet,
        group: Group,
        names: Sequence[str],
        record: OpRecord,
        pools: Sequence[Pool] = (),
    ) -> Iterator[dict[str, Side]]:
        """Fresh workers with the group's op loaded; all are ended on the way out.

        Errors: of the body, but JUDGE_ERROR of a baseline that took too long or died beside the candidate and answers
        when it is alone: whose failure that was cannot be told, and it is no reason to call the op untestable.
        """
        used = pools or pools_of(group, self.oracle_device)
        try:
            with self._opened(entry, implementations, group, names, record, used) as sides:
                yield sides
        except BaselineFailed as failure:
            if failure.cause in _MAY_BE_STARVED and self._answers_alone(entry, implementations, group, record, used):
                raise Rejection(
                    Verdict.JUDGE_ERROR,
                    f"{failure.message.rstrip()} Alone it answers: something beside it is at fault.",
                ) from failure
            raise

    def _answers_alone(
        self,
        entry: OpEntry,
        implementations: ImplementationSet,
        group: Group,
        record: OpRecord,
        pools: Sequence[Pool],
    ) -> bool:
        """Whether the baseline answers one call of each case, with nothing of the candidate's running."""
        try:
            with self._opened(entry, implementations, group, [BASELINE], record, pools) as sides:
                for pool in pools:
                    side = sides[BASELINE]
                    side.lay_out(pool, self.config.is_remote, flush_bytes=0, num_held=pool.num_held)
                    for index in range(len(pool.cases)):
                        side.calls([PlannedCall(index, None, True)])
        except Rejection:
            return False
        return True

    @contextmanager
    def _opened(
        self,
        entry: OpEntry,
        implementations: ImplementationSet,
        group: Group,
        names: Sequence[str],
        record: OpRecord,
        used: Sequence[Pool],
    ) -> Iterator[dict[str, Side]]:
        """They come up beside each other: on a GPU each needs seconds for that."""
        needed = max([params_bytes(group.params), *(pool.arena_bytes for pool in used)])
        with ExitStack() as stack:
            sides, workers = {}, {}
            for name in names:
                readable = (implementations.path, *linked_files(implementations, [entry])) if name == CANDIDATE else ()
                workers[name] = self.nursery.start(name.replace(" ", "-"), needed, readable)
                stack.callback(workers[name].end)
            for name, worker in workers.items():
                side = Side(worker, entry, implementations if name == CANDIDATE else None)
                with side.blame():
                    worker.confirm()
                    side.load(group.init, group.dtype)
                    side.put_params(group.params)
                sides[name] = side
                if not side.is_baseline:
                    record.confinement = worker.confinement
            yield sides
            if CANDIDATE in sides:
                record.peak_memory_bytes = max(record.peak_memory_bytes, sides[CANDIDATE].worker.peak_memory_bytes)

    def _time(
        self, entry: OpEntry, implementations: ImplementationSet, group: Group, cases: list[Case], record: OpRecord
    ) -> None:
        """Errors: Rejection of a wrong timed answer, or of an impossible time or unpaid work in every trial."""
        for trial in range(1, NUM_TRIALS + 1):
            timed, timing = self._measure(entry, implementations, group, cases, record)
            try:
                check_clocks(timed, is_remote=self.config.is_remote)
                check_floor(timing)
            except Rejection as suspicion:
                timing.suspicion = suspicion.message
                record.suspected.append(timing)
                if trial == NUM_TRIALS:
                    raise
            else:
                record.timings.append(timing)
                return

    def _measure(
        self, entry: OpEntry, implementations: ImplementationSet, group: Group, cases: list[Case], record: OpRecord
    ) -> tuple[Timed, TimingRecord]:
        """All restarts of one case, in fresh processes."""
        config, timed = self.config, Timed()
        copies = [cases[0]] * (1 if config.is_remote else 3)
        pool = pool_of(group, copies, self.oracle_device)
        names = [BASELINE, BASELINE_AGAIN, CANDIDATE]
        graph: dict[str, float] = {}
        setup_seconds = 0.0
        for restart in range(config.protocol.num_restarts):
            self._tell(f"speed {cases[0].shapes()} {restart + 1}/{config.protocol.num_restarts}", self._num_done)
            with self._sides(entry, implementations, group, names, record, [pool]) as sides:
                for side in sides.values():
                    with side.blame():
                        side.lay_out(pool, config.is_remote, flush_bytes=self.ceilings.flush_bytes)
                run_restart(
                    restart, sides, config.protocol, self._timed_check(entry, group), timed, is_remote=config.is_remote
                )
                self._num_done += 1
                setup_seconds = sides[CANDIDATE].setup_seconds
                if config.is_remote and restart == 0:
                    for name in (BASELINE, CANDIDATE):
                        with sides[name].blame():
                            graph[name] = sides[name].graph_us(config.protocol.num_blocks)
        record.num_calls += sum(len(s.claim_ns) for s in timed.samples if s.side == CANDIDATE)
        timed.late_ns = 0.0 if config.is_remote else late_ns(timed)
        timing = timing_record(group, cases[0], timed, graph, self.ceilings)
        timing.setup_seconds = setup_seconds
        timing.varied = sorted(name.removeprefix("in:") for name in pool.rules)
        return timed, timing

    def _timed_check(self, entry: OpEntry, group: Group) -> Callable[[Side, PlannedCall, Call], None]:
        """A fetched timed call is held against the definition on exactly its inputs."""

        def check(side: Side, planned: PlannedCall, call: Call) -> None:
            assert side.pool is not None
            case = side.pool.case(planned.index, planned.variation)
            expected = expectation(group.exact, case, self.oracle_device)
            frozen = tolerances_for(entry.name, case.dtype, "captured", expected)
            factor = BASELINE_FACTOR if side.is_baseline else _TIMED_FACTOR
            check_call(group.op, expected, call, frozen, case.inputs, factor)

        return check


def _shown(path: Path | None) -> str:
    """A shipped file by its place in the package: a record says nothing of the machine's folders there."""
    package = Path(__file__).resolve().parents[2]
    return str(path.relative_to(package) if path and path.is_relative_to(package) else path)


def _source(entry: OpEntry, implementations: ImplementationSet) -> str:
    path = implementations.file_of(entry)
    return source_text(path) if path else ""


def _links_note(implementations: ImplementationSet) -> str:
    """What may have kept a file from being imported, and what to do."""
    found = links_out_of(implementations.path)
    if not found:
        return ""
    links = ", ".join(f"{path.relative_to(implementations.path)} -> {path.resolve()}" for path in found[:4])
    return (
        f"\nA worker reads the set's folder and the op's own file, not what else is linked from there ({links}): "
        "copy it into the set."
    )
