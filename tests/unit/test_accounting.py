"""The published policies and scales of tolerances, of runs and of entries, and where a user sees them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from commands import called
from leaderboard_boards import ALPHA, make_board
from report_runs import CPU, REQUEST, broken, item, record, timing, write_eval_run, write_run, wrong

from fastkernels.harness.verdict import Verdict
from fastkernels.leaderboard.build import site_files
from fastkernels.registry import ops as registered_ops
from fastkernels.report.accounting import (
    POLICIES,
    entry_tolerances,
    policy_rows,
    run_policies,
    view_tolerances,
)
from fastkernels.report.eval_view import item_views, set_scores
from fastkernels.report.load import load_results
from fastkernels.report.publish import render_run
from fastkernels.scoring.manifest import load_manifest
from fastkernels.scoring.policies import Policy

NUM_L1 = sum(entry.level == 1 for entry in registered_ops().values())
THRESHOLDS = load_manifest().thresholds("language", "bfloat16")
GOOD, BAD = THRESHOLDS.good, THRESHOLDS.bad
NOTHING_DECIDED = Verdict.UNTESTABLE


def judged() -> list[Any]:
    """Of level 1: two right, one wrong, one of which nothing was decided; of level 2 one right and never timed."""
    return [
        record("rms_norm", "mine", timings=[timing(4.0), timing(1.0, "x[1, 64]")]),
        record("linear", "mine", timings=[timing(0.5)]),
        wrong("embedding", "mine", Verdict.CHEATING, "It answered before it was asked.", timings=[timing(9.0)]),
        record("greedy_sample", "mine", NOTHING_DECIDED, message="Wrong answers pass.", cases=[]),
        record("llama_mlp", "mine", level=2),
    ]


def figures(rows: Any, scope: str) -> list[tuple[int, int, float | None]]:
    """Right, of how many, and the speedup, by policy."""
    (row,) = [row for row in rows if row.scope == scope]
    found = [row.headlines[policy] for policy in POLICIES]
    return [(h.num_correct, h.num_targets, h.speedup and round(h.speedup, 6)) for h in found]


def test_blocked_targets_are_left_out_or_not_right_or_almost_nothing() -> None:
    rows = policy_rows("mine", {"1": 6, "2": 3}, [r.to_json() for r in judged()])
    assert [(row.scope, row.num_blocked) for row in rows] == [("L1+L2", 5), ("L1", 3), ("L2", 2)]
    assert figures(rows, "L1") == [(2, 3, 1.0), (2, 6, 1.0), (2, 6, round(0.01 ** (4 / 6), 6))]
    assert figures(rows, "L1+L2") == [(3, 4, 1.0), (3, 9, 1.0), (3, 9, round(0.01 ** (6 / 8), 6))]
    assert figures(rows, "L2") == [(1, 1, None), (1, 3, None), (1, 3, 0.01)]  # what was not timed has no speedup


def test_targets_of_a_run_are_all_registered_ops_or_what_its_command_named(tmp_path: Path) -> None:
    whole, level, named = (
        run_policies(load_results(write_run(tmp_path / name, judged()[:4], request={**REQUEST, **words})))
        for name, words in (("a", {"target": None}), ("b", {"target": None, "level": 1}), ("c", {"target": ["rms"]}))
    )
    assert [row.scope for row in whole] == ["L1+L2", "L1"]
    assert [row.scope for row in level] == [row.scope for row in named] == ["L1"]
    assert figures(whole, "L1") == figures(level, "L1")
    assert figures(level, "L1")[:2] == [(2, 3, 1.0), (2, NUM_L1, 1.0)]
    assert figures(named, "L1") == [(2, 3, 1.0), (2, 4, 1.0), (2, 4, 0.1)]


def test_the_entry_of_a_run_has_its_policies(tmp_path: Path) -> None:
    """Whose ops are reduced, and whose registered ops are kept."""
    (entry,) = (e for e in make_board(tmp_path).entries() if (e["agent"], e["kind"]) == (ALPHA, "kernels"))
    found = figures(policy_rows(ALPHA, entry["targets"], entry["ops"]), "L1")
    speedup = round(math.sqrt(2.5 * (1.6 * 1.3 * 1.004) ** (1 / 3)), 6)
    assert found[:2] == [(2, 3, speedup), (2, entry["targets"]["1"], speedup)]
    assert found[2][2] == pytest.approx((speedup**2 * 0.01 ** (NUM_L1 - 2)) ** (1 / NUM_L1), rel=1e-3)


def scaled_items() -> list[Any]:
    """Discrepancies of 0.1 to 3 times good; one that was never called, and one that the machine could not run."""
    shares = (0.1, 0.4, 0.9, 1.5, 3.0)
    found = [item(f"tiny-{s}", "language", "mine", 1.0 + s, discrepancies=[s * GOOD, 0.0]) for s in shares]
    found.append(broken("tiny-sdxl", "image", "mine", "NEVER_CALLED", ""))
    return [*found, broken("tiny-dinov3", "embedding", "mine", "BLOCKED", "TOO_FEW_DEVICES")]


def test_tolerances_are_scaled_as_published(tmp_path: Path) -> None:
    results = load_results(write_eval_run(tmp_path / "run", scaled_items()))
    found = view_tolerances(item_views(results))
    assert list(found) == ["0.25", "0.5", "1.0", "2.0", "5.0"]
    assert [h.num_correct for h in found.values()] == [1, 2, 3, 4, 5]
    assert {h.num_targets for h in found.values()} == {7}
    items = item_views(results)
    speedup = math.prod(view.speedup.ratio for view in items[:3] if view.speedup) ** (1 / 3)
    assert found["1.0"].speedup == pytest.approx(speedup)
    sensitivity = set_scores(results)["mine"]["sensitivity"]
    assert [h.num_correct / 7 for h in found.values()] == pytest.approx([s["coverage"] for s in sensitivity.values()])


def entry_item(**changed: Any) -> dict[str, Any]:
    thresholds = {"good": GOOD, "bad": BAD, "tau": 1.0}
    whole = {"item": "a", "verdict": "VALID", "worst_discrepancy": 0.0, "thresholds": thresholds, "speedup": None}
    return {**whole, **changed}


def test_items_of_an_entry_without_a_figure_still_count() -> None:
    items = [
        entry_item(speedup={"ratio": 1.5}),
        entry_item(),
        entry_item(worst_discrepancy=1e-9, thresholds={"good": 0.0, "bad": 1.0}),
        entry_item(worst_discrepancy=0.0, thresholds={"good": 0.0, "bad": 1.0}),
        entry_item(verdict="INVALID", worst_discrepancy=None, thresholds={}),
    ]
    found = entry_tolerances(items)
    assert {(h.num_correct, h.num_targets, round(h.speedup or 0, 6)) for h in found.values()} == {(3, 5, 1.5)}


def test_an_agents_page_shows_policies_and_tolerances(tmp_path: Path) -> None:
    entries = make_board(tmp_path).entries()
    page = site_files(entries)["agents/alpha.html"]
    (kernels, whole) = (next(e for e in entries if (e["agent"], e["kind"]) == (ALPHA, k)) for k in ("kernels", "eval"))
    for row in policy_rows(ALPHA, kernels["targets"], kernels["ops"]):
        assert f'{row.scope}<small class="case">{row.num_blocked} blocked</small>' in page
        for policy, name in POLICIES.items():
            found = row.headlines[policy]
            assert (
                f'data-label="{name.capitalize()}">{found.speedup:.3f}\u00d7'
                f"<small>{found.num_correct} of {found.num_targets}" in page
            )
    for scale, found in entry_tolerances(whole["items"]).items():
        assert f'\u00d7 {scale}</th><td class="number">{found.num_correct} of {found.num_targets}</td>' in page


def test_the_report_of_a_run_shows_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernels = write_run(tmp_path / "kernels", judged(), request={**REQUEST, "target": None}, **CPU)
    page = render_run(load_results(kernels))
    assert f'mine<small class="case">L1, {NUM_L1 - 3} blocked</small>' in page
    assert f"<small>2 of {NUM_L1}</small>" in page
    told = " ".join(called(capsys, "report", kernels).stdout.split())
    assert " ".join(("blocked targets level blocked", *POLICIES.values())) in told
    assert f"mine L1 {NUM_L1 - 3} 2 of 3, 1.000 2 of {NUM_L1}, 1.000 2 of {NUM_L1}, 0.011" in told

    models = write_eval_run(tmp_path / "models", scaled_items())
    page = render_run(load_results(models))
    assert '\u00d7 0.25</td><td class="number" data-value="1">1 of 7</td>' in page
    told = " ".join(called(capsys, "report", models).stdout.split())
    assert "tolerance x 0.25 x 0.5 x 1 x 2 x 5" in told
    assert "1 of 7, 1.0" in told


def test_policies_are_in_the_order_of_the_published_table() -> None:
    assert list(POLICIES) == list(Policy)
