"""One scenario with sets of every trait: what becomes of each, and what is recorded of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from eval_sets import (
    DLRM,
    FASTER,
    LLAMA,
    SETS,
    THRESHOLDS,
    hanging,
    hanging_set,
    items_of,
    plan_for,
    write_manifest,
)

from fastkernels.bench.eval.evaluation import Evaluation
from fastkernels.bench.eval.implementations import read_sets, set_of
from fastkernels.bench.eval.order import Order
from fastkernels.bench.eval.passes import Passes
from fastkernels.bench.eval.processes import Nursery, Worker, WorkerFailed
from fastkernels.bench.eval.restarts import Limits, Side, SideRun, Timing
from fastkernels.bench.eval.run import EvalRun
from fastkernels.bench.eval.scenarios import ScenarioSet
from fastkernels.bench.eval.trial import Trial
from fastkernels.errors import EnvironmentProblem, RunFolderError
from fastkernels.harness.process_tree import runs
from fastkernels.scoring.macroeval import item_correctness
from fastkernels.scoring.manifest import load_manifest
from fastkernels.scoring.scores import items_of as scored
from fastkernels.scoring.scores import scores

Json = dict[str, Any]
BROKEN = ("crashes", "dies", "not_finite", "wrong_shape", "broken_import", "wrong_signature")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="module")
def items(nursery: Nursery) -> dict[str, Json]:
    """Of DLRM, all in one sweep."""
    sets = ("sound", "inaccurate", "late", "one_at_fault", "together", FASTER, *BROKEN)
    return items_of(nursery, plan_for(DLRM, *sets))


@pytest.fixture(scope="module")
def llama_items(nursery: Nursery) -> dict[str, Json]:
    return items_of(nursery, plan_for(LLAMA, FASTER, "never_called", "not_finite", "sound"))


def test_a_sound_set_is_measured_on_the_baselines_requests(items: dict[str, Json]) -> None:
    item = items["sound"]
    assert (item["outcome"], item["reason"], item["is_complete"]) == ("MEASURED", "", True)
    assert item["discrepancies"] == [0.0] * 3, "One of all requests that are ranked together, in each restart."
    (line,) = item["replacements"]
    assert (line["op"], line["status"], line["rank"]) == ("relu", "REPLACED", 0)
    assert line["num_calls"] > 0
    places = [(p["restart"], p["kind"], p["workload"]) for p in item["passes"]]
    kinds = [("throughput", "examples x16"), ("latency", "examples x4")]
    assert places == [(restart, *kind) for restart in range(3) for kind in kinds]
    for one in item["passes"]:
        count = 2 if one["kind"] == "throughput" else 4
        assert len(one["reference_s"]) == len(one["candidate_s"]) == count
        assert all(0 < seconds < 20 for seconds in one["reference_s"] + one["candidate_s"])
    assert len(item["reference_noise"]) == 3 * (2 + 4)
    assert all(math.isfinite(ratio) for ratio in item["reference_noise"])
    assert item["thresholds"] == {"good": THRESHOLDS.good, "bad": THRESHOLDS.bad, "tau": 1.0}


def test_every_side_runs_once_in_each_restart_in_an_order_of_its_own(items: dict[str, Json]) -> None:
    orders = items["sound"]["orders"]
    assert len(orders) == 3
    assert all(len(set(order)) == len(order) for order in orders)
    assert all({"baseline", "baseline again", "sound", "inaccurate"} <= set(order) for order in orders)
    assert len({tuple(name for name in order if name in ("baseline", "sound")) for order in orders} | {()}) > 1
    engines = items["sound"]["engine"]
    assert [len(engines[side]) for side in ("reference", "candidate")] == [3, 3]
    assert engines["candidate"][0]["counters"]["num_steps"] > 0
    assert items["sound"]["confinement"]["user_id"] is not None


def test_a_set_that_changes_while_it_is_measured_has_no_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    (mine / "L1").mkdir(parents=True)
    (mine / "L1" / "relu.py").write_text("class ReLU: pass\n")
    plan, compared = plan_for(DLRM, str(mine)), []
    trials = SimpleNamespace(run=lambda order: Trial(), compare=lambda trials: None, limits=None, comparer=None)
    for name, does in {
        "_look": lambda self, reference: (None, trials),
        "_judge_trial": lambda self, entry, trials: None,
        "_new_timing": lambda self, *given: None,
        "_time": lambda self, *given: (mine / "L1" / "relu.py").write_text("class ReLU:\n    pass\n"),
        "_compare": lambda self, *given: compared.append(given),
    }.items():
        monkeypatch.setattr(Evaluation, name, does)
    one = Evaluation(plan, SimpleNamespace(folder=lambda name: tmp_path), lambda event: None)
    one._entries = [one._entry(set_of(record)) for record in plan.sets]
    with pytest.raises(RunFolderError, match=r"The set 'mine' in .* has changed"):
        one._evaluate(None)
    assert compared == []


def test_items_are_what_scoring_reads(items: dict[str, Json]) -> None:
    results = {"kind": "eval", "eval_schema_version": 1, "items": [items["sound"], items["crashes"]]}
    found = scored(results)
    assert item_correctness(found["sound"][0]) == 1.0
    assert [len(restart) for restart in found["sound"][0].throughput] == [2, 2, 2]
    assert [len(restart) for restart in found["sound"][0].latency] == [4, 4, 4]
    assert item_correctness(found["crashes"][0]) == 0.0


@pytest.mark.parametrize(
    ("name", "reason", "says"),
    [
        ("crashes", "CRASH", "illegal memory access"),
        ("dies", "CRASH", "Segmentation fault"),
        ("not_finite", "NOT_FINITE", "holds 1 NaN"),
        ("wrong_shape", "WRONG_SHAPE", "the reference's is [1]"),
        ("broken_import", "IMPORT_ERROR", "no_such_module"),
        ("wrong_signature", "SIGNATURE_ERROR", "another signature"),
    ],
)
def test_a_set_that_breaks_the_model_is_invalid_and_its_op_is_named(
    items: dict[str, Json], name: str, reason: str, says: str
) -> None:
    item = items[name]
    assert (item["outcome"], item["reason"]) == ("INVALID", reason)
    assert says in item["message"]
    assert item["passes"] == []
    op = "dense_mlp" if name == "wrong_shape" else "relu"
    assert item["subset"]["at_fault"] == {op: reason}
    assert (item["subset"]["kept"], item["subset"]["item"]) == ([], None)


def test_answers_off_the_manifest_are_measured_and_their_op_is_named(items: dict[str, Json]) -> None:
    item = items["inaccurate"]
    assert item["outcome"] == "MEASURED"
    assert max(item["discrepancies"]) > THRESHOLDS.good
    assert "not within the manifest" in item["message"]
    assert item["passes"]
    assert item["subset"]["at_fault"] == {"relu": "INACCURATE"}


def test_of_two_ops_the_one_at_fault_is_found_and_the_other_is_measured(items: dict[str, Json]) -> None:
    item = items["one_at_fault"]
    subset = item["subset"]
    assert list(subset["at_fault"]) == ["addcmul"]
    assert subset["kept"] == ["relu"]
    assert subset["num_runs"] == 2
    kept = subset["item"]
    assert (kept["outcome"], len(kept["passes"])) == ("MEASURED", 6)
    assert max(kept["discrepancies"]) <= THRESHOLDS.good
    assert [line["op"] for line in kept["replacements"]] == ["relu"]
    assert [line["op"] for line in item["replacements"]] == ["addcmul", "relu"]
    assert any("one_at_fault (1 of 2 ops)" in order for order in kept["orders"])


def test_ops_that_break_a_model_only_together_are_told_as_such(items: dict[str, Json]) -> None:
    item = items["together"]
    assert (item["outcome"], item["reason"]) == ("INVALID", "CRASH")
    assert item["subset"]["at_fault"] == {"relu": "CRASH (only together with addcmul)"}
    assert item["subset"]["kept"] == ["addcmul"]
    assert item["subset"]["item"]["outcome"] == "MEASURED"


def test_a_set_that_breaks_under_the_clock_alone_is_invalid_and_others_are_measured(items: dict[str, Json]) -> None:
    item = items["late"]
    assert (item["outcome"], item["reason"]) == ("INVALID", "CRASH")
    assert "the twelfth call was the last one" in item["message"]
    assert item["subset"] is None
    assert items["sound"]["outcome"] == "MEASURED"


def test_a_set_without_a_part_of_the_model_is_never_called_and_nothing_is_run(items: dict[str, Json]) -> None:
    item = items["faster"]
    assert item["outcome"] == "NEVER_CALLED"
    assert "Nothing of the set is part of dlrmv2: it offers rms_norm. The model was not run." in item["message"]


def test_a_set_that_no_call_reaches_is_never_called(llama_items: dict[str, Json]) -> None:
    item = llama_items["never_called"]
    assert item["outcome"] == "NEVER_CALLED"
    assert "top_logprobs can be part of the model, and no call reached it" in item["message"]
    assert "Nothing of the set is part of llama" in llama_items["sound"]["message"]


def test_a_language_model_is_judged_by_its_own_tokens(llama_items: dict[str, Json]) -> None:
    item = llama_items["faster"]
    assert item["outcome"] == "MEASURED"
    assert len(item["discrepancies"]) == 3 * (2 * 4 + 2)
    assert max(item["discrepancies"]) == 0.0
    assert item["figures"]["share_equal"] == 1.0
    assert item["figures"]["perplexity"] > 1.0


def test_nan_in_a_model_of_tokens_is_found_though_tokens_are_finite(llama_items: dict[str, Json]) -> None:
    item = llama_items["not_finite"]
    assert (item["outcome"], item["reason"]) == ("INVALID", "NOT_FINITE")
    assert item["subset"]["at_fault"] == {"silu_and_mul": "NOT_FINITE"}


def test_engines_that_fill_their_device_run_one_after_another(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: no worker is started while another lives, the reference neither."""
    living, most = 0, 0
    start, end = Nursery.start, Worker.end

    def started(self: Nursery, order: Order) -> Worker:
        nonlocal living, most
        living += 1
        most = max(most, living)
        return start(self, order)

    def ended(self: Worker) -> None:
        nonlocal living
        living -= 1
        end(self)

    monkeypatch.setattr(Order, "fills_its_device", True)
    monkeypatch.setattr(Nursery, "start", started)
    monkeypatch.setattr(Worker, "end", ended)
    items = items_of(nursery, plan_for(LLAMA, FASTER, "not_finite", num_passes=1))
    assert (living, most) == (0, 1)
    assert items["faster"]["outcome"] == "MEASURED"
    assert max(items["faster"]["discrepancies"]) == 0.0
    assert items["not_finite"]["reason"] == "NOT_FINITE"


def test_a_set_that_hangs_is_ended_with_all_that_it_started(nursery: Nursery, tmp_path: Path) -> None:
    items = items_of(nursery, plan_for(DLRM, hanging_set(tmp_path), "sound", pass_seconds=1.5))
    assert (items["hanging"]["outcome"], items["hanging"]["reason"]) == ("INVALID", "TIMEOUT")
    assert items["sound"]["outcome"] == "MEASURED"
    assert not hanging()


def test_a_set_that_hangs_under_the_clock_is_gone_while_others_are_timed(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = Timing._visit
    hung: list[psutil.Process] = []
    seen: list[bool] = []

    def visited(self: Timing, live: Any, *where: Any) -> None:
        if live.side.name == "sound":
            hung.append(psutil.Process(live.worker.pid))
            raise WorkerFailed("TIMEOUT", "The time was over.")
        seen.extend(runs(process) for process in hung)
        visit(self, live, *where)

    monkeypatch.setattr(Timing, "_visit", visited)
    items = items_of(nursery, plan_for(DLRM, "sound", "inaccurate", num_restarts=1))
    assert (items["sound"]["reason"], items["inaccurate"]["outcome"]) == ("TIMEOUT", "MEASURED")
    assert seen
    assert not any(seen)


ENDS = (WorkerFailed("CRASH", "out of memory"), OSError(28, "disk full"), EnvironmentProblem("x"), KeyboardInterrupt())


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_what_ends_a_scenario_in_a_later_restart_keeps_the_restarts_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """One set has a restart, of the other nothing is there: it is blocked by the baseline, else not told of. Gone on
    with, both are measured again."""

    def fails(self: Evaluation, reference: object) -> None:
        seconds = {("throughput", "examples x16"): [1.0, 1.0], ("latency", "examples x4"): [0.5] * 4}
        mine = self._entries[0].side = Side("sound", self.plan.order())
        for side in (self._baseline, self._again, mine):
            side.runs[0] = SideRun(seconds)
        self._timing = Timing(Passes(DLRM, 7), Limits(1.0, {}), 2, {}, {}, True, [["sound", "baseline"]])
        raise error

    monkeypatch.setattr(Evaluation, "_evaluate", fails)
    monkeypatch.setattr("fastkernels.bench.eval.evaluation.Reference", lambda *given: contextlib.nullcontext())
    idle = SimpleNamespace(folder=lambda name: tmp_path)
    events: list[Json] = []
    is_raised = not isinstance(error, WorkerFailed)
    with pytest.raises(type(error)) if is_raised else contextlib.nullcontext():
        Evaluation(plan_for(DLRM, "sound", "late"), idle, events.append).run()  # type: ignore[arg-type]
    told = {e["record"]["implementation"]: e["record"] for e in events}
    assert [p["restart"] for p in told["sound"]["passes"]] == [0, 0]
    assert (told["sound"]["outcome"], told["sound"]["is_complete"]) == ("MEASURED", False)
    assert "`--resume` measures it again" in told["sound"]["message"]
    assert [told[name]["outcome"] for name in ("late",) if name in told] == ([] if is_raised else ["BLOCKED"])
    results = {"kind": "eval", "eval_schema_version": 1, "items": [*told.values()]}
    assert scores(scored(results)["sound"])["deployable"]["num_items"] == 1
    sets = read_sets([str(SETS / name) for name in ("sound", "late")])
    run = EvalRun(ScenarioSet("mine", (DLRM,)), sets, "cpu", load_manifest(write_manifest(tmp_path / "manifest.json")))
    (plan,) = run.plans({(DLRM.name, name): record for name, record in told.items()})
    assert [record.name for record in plan.sets] == ["sound", "late"]


def test_a_baseline_that_does_not_run_blocks_the_items_and_says_why(nursery: Nursery) -> None:
    items = items_of(nursery, plan_for(LLAMA, FASTER, device="cuda"))
    item = items["faster"]
    assert (item["outcome"], item["reason"]) == ("BLOCKED", "BASELINE_FAILED")
    assert "GPUs are visible" in item["message"]
