"""The scripts under benchmarks/ that time kernels and steps on a GPU: what they write when something is amiss."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Without a GPU: what asks for one is replaced."""
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for known in (name, "kernel_timing"):
        monkeypatch.delitem(sys.modules, known, raising=False)
    module: ModuleType = importlib.import_module(name)
    for function in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, function, lambda: None)
    monkeypatch.setattr(module, "environment", dict)
    return module


def test_a_step_without_an_op_is_compared_with_the_whole_one_of_as_many_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decode_step = script("decode_step", monkeypatch)
    most: list[int] = []
    monkeypatch.setattr(decode_step, "copy_row", lambda: SimpleNamespace(rate=lambda path: 4.0))
    monkeypatch.setattr(decode_step, "cached_layers", lambda model: [model] * 2)
    monkeypatch.setattr(decode_step, "least_bytes", lambda executor, num_rows, context: 1000 * num_rows)
    monkeypatch.setattr(decode_step, "Step", lambda executor, num_rows, *sizes: num_rows)
    monkeypatch.setattr(
        decode_step, "take_turns", lambda steps, num: {key: [10.0 * key[1] - bool(key[0])] * num for key in steps}
    )
    out = tmp_path / "steps.json"
    monkeypatch.setattr(decode_step, "build_executor", lambda rows, context: SimpleNamespace(model=most.append(rows)))
    for words, rows, lacking in (
        (["--rows", "8", "4", "--without", "rms_norm"], [1, 4, 8, 32], [1, 32]),
        (["--rows", "8"], [8], []),
    ):
        monkeypatch.setattr(sys, "argv", ["decode_step.py", *words, "--replays", "3", "--out", str(out)])
        decode_step.main()
        record = json.loads(out.read_text())
        assert [step["rows"] for step in record["steps"]] == rows
        assert [(step["rows"], step["us_a_layer"]) for step in record["lacking"]] == [(n, 0.5) for n in lacking]
        assert most.pop() == max(rows)


def test_an_op_that_once_gave_no_number_is_shown_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    op_errors = importlib.import_module("op_errors")
    watch = op_errors.Watch(torch.nn.Identity(), most=9)
    op = RMSNorm(4)
    for place, rms in (("first", 0.1), ("second", math.nan), ("third", 0.001), ("fourth", math.inf)):
        watch._note(op, place, "y", rms, {})
    [error] = watch.errors.values()
    assert math.isnan(error.rms)
    assert (error.place, error.num_calls) == ("second", 4)


def test_variants_that_are_wrong_fail_or_come_too_late_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    tune = importlib.import_module("tune_states")
    given = {"x": torch.ones(4), "states": torch.ones(3)}

    def add(x: torch.Tensor, states: torch.Tensor, more: float = 1.0) -> torch.Tensor:
        states += more
        return x + states.sum()

    def fail(x: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        raise ValueError("no room")

    variants = {
        "right": add,
        "wrong": lambda *xs: add(*xs, more=1.1),
        "nan": lambda *xs: add(*xs, math.nan),
        "no": fail,
    }
    case = tune.Case("op", "4", given, lambda exact: add(**exact), variants)
    rows = tune.measured(case, torch.device("cpu"), 60.0)
    assert [bool(row.problem) for row in rows] == [False, True, True, True]
    assert rows[0].error < 1e-6 < 0.04 < rows[1].error
    assert rows[3].problem == "ValueError: no room"
    assert given["states"].tolist() == [1.0] * 3
    assert {row.problem for row in tune.measured(case, torch.device("cpu"), 0.0)} == {"no time was left"}
    tune.print_table(rows)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[4] for line in printed[1:]][-1] == "no"
