"""One scenario from its first look to its items: what is never called, trials, ops at fault, timed restarts, scores."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from fastkernels.bench.eval.answers import Comparer, Pair, ReferenceUnfit, read_answers
from fastkernels.bench.eval.implementations import EvalSet, set_of
from fastkernels.bench.eval.passes import TRIAL, WARM_UP, Passes
from fastkernels.bench.eval.plan import Plan, Tell
from fastkernels.bench.eval.processes import Nursery, WorkerFailed
from fastkernels.bench.eval.records import BASELINE_FAILED, ItemRecord, SubsetRecord
from fastkernels.bench.eval.reference import Reference
from fastkernels.bench.eval.restarts import Limits, Side, Timing, pass_records, reference_noise
from fastkernels.bench.eval.subset import find_at_fault
from fastkernels.bench.eval.trial import Trial, Trials, is_accurate
from fastkernels.scoring.discrepancy import AnswerError
from fastkernels.scoring.items import Outcome
from fastkernels.sets import linked_files

BASELINE, BASELINE_AGAIN = "baseline", "baseline again"


@dataclass
class Entry:
    """A set in this scenario. ops: those that the model has. side: None until it is to be timed; part: what of a set
    that breaks the model is timed in its place."""

    chosen: EvalSet
    ops: list[str]
    trial: Trial = field(default_factory=Trial)
    side: Side | None = None
    part: Side | None = None
    subset: SubsetRecord | None = None
    is_done: bool = False


class Evaluation:
    """Errors of the machine are raised; those of a set are its item's, those of the baseline block all items."""

    def __init__(self, plan: Plan, nursery: Nursery, tell: Tell) -> None:
        self.plan, self._nursery, self._tell = plan, nursery, tell
        self._draw = random.Random(plan.seed)
        self._place = nursery.folder("sets")
        self._started = time.monotonic()
        self._num_done, self._num_planned = 0, 1
        self._baseline, self._again = Side(BASELINE, plan.order()), Side(BASELINE_AGAIN, plan.order())
        self._entries: list[Entry] = []
        self._timing: Timing | None = None

    def run(self) -> None:
        """Tells of every item of the plan once. Errors: those of the machine and KeyboardInterrupt, after what is there
        was told of."""
        self._entries = [entry for record in self.plan.sets if (entry := self._entry(set_of(record)))]
        if not self._entries:
            return
        self._num_planned = 1 + len(self._entries) * (1 + self.plan.num_restarts) + 2 * self.plan.num_restarts
        try:
            with Reference(self._nursery, self._baseline.order) as reference:
                self._evaluate(reference)
        except (WorkerFailed, ReferenceUnfit) as error:
            self._tell_of_incomplete(f"The baseline itself failed on the way: {error}")
            self._block(BASELINE_FAILED, f"The baseline itself does not run here: {error}")
        except BaseException as error:
            self._tell_of_incomplete("Interrupted." if isinstance(error, KeyboardInterrupt) else f"Cut short: {error}")
            raise

    def _entry(self, chosen: EvalSet) -> Entry | None:
        """None when there is nothing to run: the item is told."""
        architecture = self.plan.scenario.architecture.name
        ops = chosen.ops_in(architecture)
        if ops:
            return Entry(chosen, ops)
        names = chosen.record.ops
        offered = f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        message = f"Nothing of the set is part of {architecture}: it offers {offered}. The model was not run."
        self._finish(self.plan.item(chosen.record, Outcome.NEVER_CALLED, message=message))
        return None

    def _evaluate(self, reference: Reference) -> None:
        passes, trials = self._look(reference)
        for entry in self._entries:
            self._progress(f"{entry.chosen.name}: trial")
            entry.trial = trials.run(self.plan.order(*self._folders(entry.chosen, entry.ops)))
        trials.compare([entry.trial for entry in self._entries])
        for entry in self._entries:
            self._judge_trial(entry, trials)
        timing = self._timing = self._new_timing(passes, trials.limits, reference)
        self._time(timing, [side for entry in self._entries for side in (entry.side, entry.part) if side is not None])
        for entry in self._entries:
            if entry.side is not None and entry.side.failure is not None:
                self._judge_late_failure(entry, trials, timing)
        for entry in self._entries:
            set_of(entry.chosen.record)  # raises where a set is no longer the one that was asked for
        self._compare(timing, trials.comparer)

    def _look(self, reference: Reference) -> tuple[Passes, Trials]:
        """The baseline's first passes: how long they take, what it answers in a trial; all requests are made here."""
        plan, scenario = self.plan, self.plan.scenario
        self._progress("baseline: first passes", advance=0)
        passes = Passes(scenario, plan.seed, reference.make)
        for part, kind in passes.parts():
            for number in (WARM_UP, *range(plan.num_passes if kind == "throughput" else 1)):
                passes.of(part, kind, number)
        measured = {}
        for part, kind in passes.parts():
            one = passes.of(part, kind, TRIAL)
            data = one.together if kind == "throughput" else one.alone[0]
            measured[kind, part.label] = reference.run(data).seconds
        trial = passes.trial(plan.num_checked)
        reply = reference.run(trial.packed(trial.requests))
        facts = dict(reference.facts)
        expected = read_answers(reply.data, trial.requests, facts, trial.suppressed)
        reference.share()
        reference.rest()
        limits = Limits.of(plan.pass_seconds, reference.startup_seconds, measured)
        comparer = Comparer(scenario, reference, passes.suppressed)
        return passes, Trials(self._nursery, trial, expected, limits, comparer, plan.thresholds, facts)

    def _judge_trial(self, entry: Entry, trials: Trials) -> None:
        """A set that is not called is done; one that broke is not timed; its sound part is, if there is one."""
        trial = entry.trial
        if trial.failure is None and not trial.is_called:
            self._finish(self._never_called(entry))
            entry.is_done = True
            return
        if trial.reason is not None:
            self._bisect(entry, trials)
        if trial.failure is None:
            entry.side = Side(entry.chosen.name, self.plan.order(*self._folders(entry.chosen, entry.ops)))

    def _bisect(self, entry: Entry, trials: Trials) -> None:
        def breaks(ops: Sequence[str]) -> str | None:
            self._progress(f"{entry.chosen.name}: which op is at fault? {len(ops)} of {len(entry.ops)}", advance=0)
            trial = trials.run(self.plan.order(*self._folders(entry.chosen, ops)))
            trials.compare([trial])
            return trial.reason

        found = find_at_fault(entry.ops, entry.trial.reason or "", breaks)
        entry.subset = SubsetRecord(found.at_fault, found.kept, num_runs=found.num_runs)
        if found.kept:
            order = self.plan.order(*self._folders(entry.chosen, found.kept))
            entry.part = Side(f"{entry.chosen.name} ({len(found.kept)} of {len(entry.ops)} ops)", order)

    def _judge_late_failure(self, entry: Entry, trials: Trials, timing: Timing) -> None:
        """It ran in its trial and broke under the clock: ops that break a trial too can still be found."""
        assert entry.side is not None
        again = trials.run(entry.side.order)
        trials.compare([again])
        if entry.subset is not None or again.reason is None:
            return
        entry.trial = again
        self._bisect(entry, trials)
        if entry.part is not None:
            self._time(timing, [entry.part])

    def _new_timing(self, passes: Passes, limits: Limits, reference: Reference) -> Timing:
        chosen = {
            (kind, part.label): sorted(
                self._draw.sample(range(part.num_requests), min(part.num_requests, self.plan.num_checked))
            )
            for part, kind in passes.parts()
        }
        is_together = not self._baseline.order.fills_its_device
        return Timing(passes, limits, self.plan.num_passes, chosen, dict(reference.facts), is_together)

    def _time(self, timing: Timing, candidates: Sequence[Side]) -> None:
        """Further restarts have further numbers: every candidate's are paired with the baseline's of the same ones."""
        first = len(timing.orders)

        def begins(side: Side, restart: int) -> None:
            self._progress(f"{side.name}: restart {restart - first + 1} of {self.plan.num_restarts}")

        numbers = range(first, first + self.plan.num_restarts)
        timing.run(self._nursery, [self._baseline, self._again, *candidates], numbers, self._draw, begins)

    def _compare(self, timing: Timing, comparer: Comparer) -> None:
        sides = [side for e in self._entries for side in (e.side, e.part) if side is not None and side.failure is None]
        comparer.read_ahead([pair for side in sides for pairs in self._pairs(side, timing) for pair in pairs])
        for entry in self._entries:
            if entry.is_done:
                continue
            if entry.subset is not None and entry.part is not None:
                entry.subset.item = self._item(entry, entry.part, timing, comparer)
            if entry.side is None:
                assert entry.trial.failure is not None
                record = self._broken(entry, entry.trial.failure)
            else:
                record = self._item(entry, entry.side, timing, comparer)
            record.subset = entry.subset
            self._finish(record)
            entry.is_done = True

    def _item(self, entry: Entry, side: Side, timing: Timing, comparer: Comparer) -> ItemRecord:
        if side.failure is not None:
            return self._broken(entry, side.failure)
        record = self._timed(entry, side, timing)
        try:
            compared = [comparer.compare(pairs) for pairs in self._pairs(side, timing)]
        except AnswerError as error:
            return self._broken(entry, WorkerFailed(error.reason, str(error)), record)
        if not any(line["num_calls"] for line in record.replacements):
            return self._never_called(entry)
        record.discrepancies = [value for one in compared for value in one.values]
        names = compared[0].figures if compared else {}
        record.figures = {name: fmean(one.figures[name] for one in compared) for name in names}
        if not is_accurate(record.discrepancies, self.plan.thresholds):
            worst = max(record.discrepancies)
            record.message = f"The answers are not within the manifest: the largest discrepancy is {worst:.3g}."
        return record

    def _timed(self, entry: Entry, side: Side, timing: Timing) -> ItemRecord:
        """Without what comparing says."""
        record = self.plan.item(entry.chosen.record, Outcome.MEASURED)
        runs = [side.runs[number] for number in sorted(side.runs)]
        record.passes = pass_records(self._baseline, side)
        record.reference_noise = reference_noise(self._baseline, self._again)
        record.orders = timing.orders
        record.replacements = runs[-1].replacements if runs else []
        record.confinement = runs[-1].confinement if runs else {}
        reference = [self._baseline.runs[number].engine for number in sorted(self._baseline.runs)]
        record.engine = {"reference": reference, "candidate": [run.engine for run in runs]}
        return record

    def _pairs(self, side: Side, timing: Timing) -> list[list[Pair]]:
        """By restart."""
        requests, found = timing.requests(), []
        for restart in sorted(set(side.runs) & set(self._baseline.runs)):
            expected, given = (timing.compared(runs[restart]) for runs in (self._baseline.runs, side.runs))
            found.append([Pair(*three) for three in zip(requests, expected, given, strict=True)])
        return found

    def _broken(self, entry: Entry, failure: WorkerFailed, record: ItemRecord | None = None) -> ItemRecord:
        found = record or self.plan.item(entry.chosen.record, Outcome.INVALID)
        found.outcome, found.reason, found.message = str(Outcome.INVALID), failure.reason, failure.message
        found.replacements = found.replacements or entry.trial.replacements
        return found

    def _never_called(self, entry: Entry) -> ItemRecord:
        names = f"{', '.join(entry.ops[:8])}{', ...' if len(entry.ops) > 8 else ''}"
        message = f"Of the set {names} can be part of the model, and no call reached it on these workloads."
        record = self.plan.item(entry.chosen.record, Outcome.NEVER_CALLED, message=message)
        record.replacements = entry.trial.replacements
        return record

    def _block(self, reason: str, message: str) -> None:
        for entry in self._entries:
            if not entry.is_done:
                self._finish(self.plan.item(entry.chosen.record, Outcome.BLOCKED, reason, message))
                entry.is_done = True

    def _tell_of_incomplete(self, why: str) -> None:
        """Whole restarts are kept, with the trial's discrepancies: nothing is compared any more."""
        for entry in self._entries:
            if entry.side is None or entry.is_done or self._timing is None:
                continue
            record = self._timed(entry, entry.side, self._timing)
            record.discrepancies, record.figures = entry.trial.discrepancies, entry.trial.figures
            if entry.side.failure is not None:
                record = self._broken(entry, entry.side.failure, record)
            record.is_complete = False
            kept = f"{why} What was measured till then is kept; `--resume` measures it again."
            record.message = f"{kept}\n{record.message}".rstrip()
            if record.passes:
                self._finish(record)
                entry.is_done = True

    def _folders(self, chosen: EvalSet, ops: Sequence[str]) -> tuple[str, ...]:
        """The set of these ops, and the one that it is a part of, with the files that are linked into it."""
        whole = chosen.implementations
        linked = linked_files(whole, whole.ops())
        return tuple(map(str, (chosen.folder_of(ops, self._place), whole.path.resolve(), *linked)))

    def _progress(self, text: str, advance: int = 1) -> None:
        self._num_done += advance
        share = min(1.0, self._num_done / self._num_planned)
        self._tell({"event": "progress", "item": self.plan.scenario.name, "text": text, "share": share})

    def _finish(self, record: ItemRecord) -> None:
        record.seconds = time.monotonic() - self._started
        self._tell({"event": "item", "record": record.to_json()})
