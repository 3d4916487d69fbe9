"""No wrong answer of the null battery passes for any op: otherwise its tolerance would prove nothing."""

from __future__ import annotations

import pytest
import torch

from fastkernels.harness.expect import baseline_class
from fastkernels.harness.groups import make_groups
from fastkernels.harness.null_matrix import null_matrix
from fastkernels.harness.nulls import NULLS, NullInput
from fastkernels.harness.tolerance import Tolerance
from fastkernels.registry import OpEntry, ops

ENTRIES = [entry for entry in ops().values() if baseline_class(entry).spec.num_ranks == 1]
CPU = torch.device("cpu")


SEEDS = {torch.float32: (0,), torch.float16: (1,), torch.bfloat16: (0, 1, 2)}
"""Of draws, for parts: most where the tolerance is widest, and a wrong answer has the best chances."""
SEEDS_OF_MODELS = (0,)
"""Of layers and models, a draw of which holds as many numbers as many draws of their parts. A limit: of seed 1 the
float16 cross_attn_down_block2d one precision lower is accepted as state_1."""
MODEL_LEVEL = 3


@pytest.mark.parametrize("dtype", SEEDS, ids=str)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_every_wrong_answer_is_rejected(entry: OpEntry, dtype: torch.dtype) -> None:
    """In each of several draws of weights, shapes and values, not in a lucky one."""
    passed = []
    for seed in SEEDS[dtype] if entry.level < MODEL_LEVEL else SEEDS_OF_MODELS:
        generator = torch.Generator().manual_seed(seed)
        for number, group in enumerate(make_groups(entry, [], (dtype,), 0, CPU, generator)):
            rows = null_matrix(entry, [group], generator)
            assert [row.null for row in rows] == list(NULLS)
            where = f"seed {seed}, example {number}"
            passed += [f"{where}: {entry.name} {row.null} {row.reason}" for row in rows if row.outcome == "passed"]
            applicable = [row.null for row in rows if row.outcome == "rejected"]
            assert len(applicable) >= 4, f"{entry.name} {where}: only {applicable} apply."
            assert all(row.reason for row in rows if row.outcome == "rejected")
    assert not passed, "\n".join(passed)


def test_ops_of_two_ranks_alone_are_left_out() -> None:
    assert {entry.name for entry in ops().values()} - {entry.name for entry in ENTRIES} == {"allreduce", "allgather"}


def test_float_ops_are_held_against_one_precision_lower() -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("linear", "rms_norm", "flash_attn_decode", "llama_mlp"):
        group = make_groups(ops()[name], [], (torch.bfloat16,), 0, CPU, generator)[0]
        outcomes = {row.null: row.outcome for row in null_matrix(ops()[name], [group], generator)}
        assert outcomes["one_precision_lower"] == "rejected"


@pytest.mark.parametrize("name", ["silu_and_mul", "rms_norm", "linear", "rotary_embedding"])
def test_ops_with_one_rounding_are_held_against_truncation(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        for group in make_groups(ops()[name], [], (dtype,), 0, CPU, generator):
            outcomes = {row.null: row.outcome for row in null_matrix(ops()[name], [group], generator)}
            assert outcomes["truncated"] == "rejected", (dtype, group.init)


def test_null_matrix_says_so_when_a_null_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tolerance of a thousand lets everything through; the matrix must not hide it."""
    monkeypatch.setattr("fastkernels.harness.tolerance.tolerance_for", lambda *_: Tolerance(*[1000.0] * 5))
    generator = torch.Generator().manual_seed(0)
    group = make_groups(ops()["rms_norm"], [], (torch.float32,), 0, CPU, generator)[0]
    rows = null_matrix(ops()["rms_norm"], [group], generator)
    outcomes = {row.null: row.outcome for row in rows}
    reasons = {row.reason for row in rows if row.outcome == "passed"}
    assert reasons == {"accepted as y in the family normal"}
    assert outcomes["zeros"] == outcomes["rows_permuted"] == outcomes["last_tile_dropped"] == "passed"


RIGHT = torch.arange(1.0, 61.0).reshape(3, 20)


@pytest.mark.parametrize(
    ("null", "changed"),
    [("zeros", 60), ("mean", 60), ("rows_permuted", 60), ("last_tile_dropped", 10), ("copy_of_input", 60)],
)
def test_nulls_are_as_wrong_as_their_names_say(null: str, changed: int) -> None:
    given = NullInput(RIGHT, RIGHT + 1, {"x": -RIGHT.reshape(60)}, None)
    answer = NULLS[null](given)
    assert answer is not None
    assert answer.shape == RIGHT.shape
    assert int((answer != RIGHT).sum()) == changed
    assert torch.equal(RIGHT, torch.arange(1.0, 61.0).reshape(3, 20))  # the right answer stays


@pytest.mark.parametrize("null", ["copy_of_input", "rows_permuted", "last_tile_dropped", "one_precision_lower"])
def test_nulls_that_do_not_apply_are_none(null: str) -> None:
    one = torch.ones(1)
    assert NULLS[null](NullInput(one, torch.ones(2), {"x": torch.ones(5)}, None)) is None
    assert NULLS["previous_output"](NullInput(one, torch.ones(2), {}, None)) is None
