"""The referee of one implementation of one op: correctness on captured and hidden inputs, then speed.

Owns inputs, seeds, expectations, tolerances, the clock that counts and the verdict. Imports no
candidate; whatever a worker says is an answer to be checked.
"""

from __future__ import annotations

import errno
import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from fastkernels.capture.case import Case
from fastkernels.errors import FastKernelsError
from fastkernels.harness.answers import Part
from fastkernels.harness.ceilings import Ceilings
from fastkernels.harness.checks import beside_baseline, check_call, check_echo, check_same_draws, worst_of
from fastkernels.harness.clocks import check_clocks, check_floor, late_ns
from fastkernels.harness.compare import Finding
from fastkernels.harness.expect import Expectation, baseline_class, expectation
from fastkernels.harness.groups import Group, answer_bytes, make_groups
from fastkernels.harness.inputs import draw_params
from fastkernels.harness.null_matrix import null_matrix
from fastkernels.harness.plans import near_duplicates, timed_pools
from fastkernels.harness.pool import PlannedCall, Pool, params_bytes
from fastkernels.harness.records import CaseRecord, OpRecord, TimingRecord
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
from fastkernels.harness.tolerance import Tolerance, tolerances_for
from fastkernels.harness.verdict import Rejection, Verdict
from fastkernels.harness.workers import Nursery
from fastkernels.registry import OpEntry
from fastkernels.sets import ImplementationSet, source_digest

Progress = Callable[[str], None]

MACHINE_TROUBLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})

BASELINE_FACTOR = 4.0
"""Of the tolerance: a baseline beyond it is wrong here, and nothing can be judged beside it."""

_TIMED_FACTOR = 2.0
"""Of the tolerance for captured values: timed calls have other values, and no baseline's answer beside each."""

NUM_TRIALS = 3
"""What clocks alone say is said of a candidate only when so many measurements agree, each in fresh processes: noise on
a busy machine seldom comes twice, unpaid work always does. The times that count are those of the trial that passed."""

_TELLING = ("captured", "normal", "heavy_tailed")
"""Families whose answers change with every element."""


@dataclass(frozen=True)
class JudgeConfig:
    """device: "cpu" or "cuda". dtypes: activation dtypes that are judged beside those of captured cases.
    num_shapes: hidden shapes per way of building the op. num_captured, num_timed: captured cases that are
    checked and that are timed."""

    device: str = "cpu"
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
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

    def __init__(self, config: JudgeConfig, nursery: Nursery, progress: Progress = lambda text: None) -> None:
        self.config, self.nursery, self.progress = config, nursery, progress
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
        groups = make_groups(
            entry, cases, config.dtypes, config.num_shapes, self.oracle_device, generator, config.num_captured
        )
        if not groups:
            raise Rejection(
                Verdict.UNTESTABLE,
                f"There is nothing to judge {entry.name} on: no call of it is among the cases, and num_shapes is "
                f"{config.num_shapes}.",
            )
        self.progress("wrong answers")
        record.nulls = null_matrix(entry, groups, generator)
        passed = [f"{n.null} ({n.dtype})" for n in record.nulls if n.outcome == "passed"]
        if passed:
            raise Rejection(Verdict.UNTESTABLE, f"Wrong answers pass for {entry.name}: {', '.join(passed)}.")
        largest, cases_of_largest = timed_pools(groups, 1)[0]
        for number, group in enumerate(groups):
            self.progress(f"correctness {number + 1}/{len(groups)}")
            with self._sides(entry, implementations, group, [BASELINE, CANDIDATE], record) as sides:
                self._correctness(entry, group, sides, record, generator)
                if group is largest:
                    largest_pool = self._pool(group, cases_of_largest[:1])
                    record.launched = sides[CANDIDATE].launched(largest_pool, is_remote=config.is_remote)
        if self.config.is_timed:
            for pool in timed_pools(groups, self.config.num_timed):
                self._time(entry, implementations, *pool, record)

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

        They come up beside each other: on a GPU each needs seconds for that.
        """
        needed = max([params_bytes(group.params), *(p.arena_bytes for p in pools or self._pools(group))])
        with ExitStack() as stack:
            sides, workers = {}, {}
            for name in names:
                readable = (implementations.path,) if name == CANDIDATE else ()
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

    def _pools(self, group: Group) -> list[Pool]:
        return [self._pool(group, cases) for cases in group.pools]

    def _pool(self, group: Group, cases: list[Case]) -> Pool:
        return Pool(group.op, cases, answer_bytes(group, cases[0]), self.oracle_device)

    def _correctness(
        self, entry: OpEntry, group: Group, sides: dict[str, Side], record: OpRecord, generator: torch.Generator
    ) -> None:
        """Every case of every pool, in a random order; halfway through, the weights change in place."""
        half = (len(group.pools) + 1) // 2
        for number, pool in enumerate(self._pools(group)):
            if number == half and group.params:
                self._swap_weights(entry, group, sides, generator)
            expectations = [expectation(group.exact, case, self.oracle_device) for case in pool.cases]
            drawn: dict[int, Call] = {}
            earlier: dict[int, tuple[Part, ...]] = {}
            for side in sides.values():
                with side.blame():
                    side.lay_out(pool, self.config.is_remote, flush_bytes=0)
            order = torch.randperm(len(pool.cases), generator=generator).tolist()
            for index in [*order, order[0]]:
                is_echoed = pool.is_small or index == order[0]
                plan = PlannedCall(index, None, True, is_sealed=bool(secrets.randbelow(2)), is_echoed=is_echoed)
                call = self._check_one(entry, group, sides, plan, expectations[index], earlier, record)
                check_same_draws(expectations[index], drawn.setdefault(index, call), call)
            # Zeros and single ones come out much the same however they are varied: others tell more.
            telling = [index for index in order if pool.cases[index].family in _TELLING]
            for plan in near_duplicates(pool, (telling or order)[-1], generator):
                expected = expectation(group.exact, pool.case(plan.index, plan.variation), self.oracle_device)
                self._check_one(entry, group, sides, plan, expected, earlier, record)

    def _swap_weights(self, entry: OpEntry, group: Group, sides: dict[str, Side], generator: torch.Generator) -> None:
        group.use_params(draw_params(group.op, generator))
        for side in sides.values():
            with side.blame():
                side.put_params(group.params)

    def _check_one(
        self,
        entry: OpEntry,
        group: Group,
        sides: dict[str, Side],
        planned: PlannedCall,
        expected: Expectation,
        earlier: dict[int, tuple[Part, ...]],
        record: OpRecord,
    ) -> Call:
        """The candidate's call, looked at. Errors: Rejection of what is wrong."""
        pool = sides[CANDIDATE].pool
        assert pool is not None
        case, plan = pool.case(planned.index, planned.variation), [planned]
        row = CaseRecord(
            case=case.family if case.family != "captured" else f"captured {case.shapes()}",
            family=case.family,
            phase=case.phase.value if case.phase else "",
            dtype=str(case.dtype).removeprefix("torch."),
            shapes=case.shapes(),
            verdict=Verdict.PASSED.value,
        )
        record.cases.append(row)
        tolerances = tolerances_for(entry.name, case.dtype, case.family, expected)
        try:
            found = self._baseline_findings(group, sides[BASELINE], plan, expected, tolerances, case)
            row.baseline_error = asdict(worst_of(found).error)
            is_widened = case.family != "wide_range" or entry.level > 1
            expected, tolerances = beside_baseline(expected, tolerances, found, is_widened=is_widened)
            row.tolerance = {name: t.to_json() for name, t in tolerances.items()}
            call = sides[CANDIDATE].calls(plan)[0]
            record.num_calls += 1
            finding = worst_of(check_call(group.op, expected, call, tolerances, case.inputs))
            row.error, row.share = asdict(finding.error), asdict(finding.share)
            check_echo(call, earlier)
            return call
        except Rejection as rejection:
            row.verdict, row.message = rejection.verdict.value, rejection.message
            where = f"[{row.family}{' ' + row.phase if row.phase else ''} {row.dtype} {row.shapes}]"
            raise Rejection(rejection.verdict, f"{rejection.message.rstrip()} {where}") from None

    def _baseline_findings(
        self,
        group: Group,
        side: Side,
        plan: list[PlannedCall],
        expected: Expectation,
        tolerances: Mapping[str, Tolerance],
        case: Case,
    ) -> dict[str, Finding]:
        """The production path's own error here; the judge refuses to go on when it is plainly wrong.

        Errors: Rejection UNTESTABLE.
        """
        with side.blame():
            call = side.calls(plan)[0]
            return check_call(group.op, expected, call, tolerances, case.inputs, BASELINE_FACTOR)

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
        pool = self._pool(group, copies)
        names = [BASELINE, BASELINE_AGAIN, CANDIDATE]
        graph: dict[str, float] = {}
        setup_seconds = 0.0
        for restart in range(config.protocol.num_restarts):
            self.progress(f"speed {cases[0].shapes()} {restart + 1}/{config.protocol.num_restarts}")
            with self._sides(entry, implementations, group, names, record, [pool]) as sides:
                for side in sides.values():
                    with side.blame():
                        side.lay_out(pool, config.is_remote, flush_bytes=self.ceilings.flush_bytes)
                run_restart(
                    restart, sides, config.protocol, self._timed_check(entry, group), timed, is_remote=config.is_remote
                )
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
    return path.read_text(errors="replace") if path else ""
