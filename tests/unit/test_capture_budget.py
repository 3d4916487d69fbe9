"""What is kept of a recording whose values do not fit: moments, and everything that steers control flow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastkernels.capture.record import Recorder
from fastkernels.capture.replay import build_op, call_op, replay
from fastkernels.capture.run import capture
from fastkernels.capture.store import CaseSet
from fastkernels.capture.tensors import named_tensors
from fastkernels.tasks.baseline.L1.mxfp4_moe import MXFP4MoE
from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm
from fastkernels.workloads import Workload

WORKLOAD = Workload("mixture", num_requests=6, input_len=40, output_len=6)


def test_floats_over_the_budget_become_moments_and_integers_stay() -> None:
    budget = 4096
    with Recorder(budget_bytes=budget) as recorder:
        op = RMSNorm(2048)
        generator = torch.Generator().manual_seed(0)
        op(torch.empty(64, 2048).normal_(2.0, 0.5, generator=generator))
    (case,) = recorder.cases
    assert set(case.moments) == {"inputs.x", "params.weight"}
    assert (case.outputs_digest, case.after) == ("", {})
    moments = case.moments["inputs.x"]
    assert moments.mean == pytest.approx(2.0, abs=0.01)
    assert moments.std == pytest.approx(0.5, abs=0.01)
    drawn = CaseSet(recorder.cases)[0].inputs["x"]
    assert drawn.mean() == pytest.approx(2.0, abs=0.01)
    assert drawn.std() == pytest.approx(0.5, abs=0.01)
    assert drawn.abs().max() <= moments.absmax
    assert torch.equal(drawn, CaseSet(recorder.cases)[0].inputs["x"])
    outputs = call_op(build_op(case), case)
    assert outputs[0].shape == (64, 2048)
    assert outputs[0].isfinite().all()


def test_bytes_of_quantised_weights_become_moments_too() -> None:
    """Or the budget would not bound a case set of a checkpoint of MXFP4 experts: nearly all of it is bytes."""
    with Recorder(budget_bytes=0) as recorder:
        op = MXFP4MoE(4, 64, 96)
        x, sorted_ids = torch.randn(2, 64), torch.tensor([0, 2, 1, 2], dtype=torch.int32)
        op(x, sorted_ids, torch.tensor([0, 3], dtype=torch.int32), torch.tensor([4], dtype=torch.int32))
    (case,) = recorder.cases
    assert set(case.moments) == {"inputs.x", "params.weight_blocks", "params.weight_scales"}
    drawn = CaseSet(recorder.cases)[0]
    for name, param in op.named_parameters():
        values = drawn.params[name]
        assert (values.dtype, values.shape) == (torch.uint8, param.shape)
        assert values.float().mean() == pytest.approx(float(param.float().mean()), rel=0.1)
        assert values.max() <= param.max()
    (y,) = call_op(build_op(drawn), drawn)
    assert 0 < y.abs().max() < 100 * op(**drawn.inputs).abs().max()


def test_a_weight_that_lies_where_another_lay_is_looked_at_anew() -> None:
    """Memory of a model that is gone is the next one's."""
    with Recorder(keep=2) as recorder:
        memory = torch.full((8,), 2.0)
        for factor in (2.0, 3.0):
            op = RMSNorm(8)
            op.weight = nn.Parameter(memory.fill_(factor))
            op(torch.randn(3, 8))
    assert [case.params["weight"].tolist() for case in recorder.cases] == [[2.0] * 8, [3.0] * 8]
    assert [replay(case).digest for case in recorder.cases] == [case.outputs_digest for case in recorder.cases]


def test_large_values_leave_room_for_small_ones() -> None:
    with Recorder(["rms_norm"], budget_bytes=100_000) as recorder:
        op = RMSNorm(8)
        for num_rows in (3000, 600, 750, 5, 7):
            op(torch.randn(num_rows, 8))
    assert [bool(case.moments) for case in recorder.cases] == [True, False, True, False, False]


def test_positions_and_pages_are_kept_by_value_without_any_budget() -> None:
    cases, _, _ = capture("tiny-llama", WORKLOAD, device="cpu", budget_mb=0, max_num_batched_tokens=64)
    assert all(
        not tensor.is_floating_point() or name in case.moments or tensor.numel() == 0
        for case in cases.records
        for name, tensor in named_tensors(case).items()
    )
    for case in cases:
        assert all(t.device.type == "cpu" for t in named_tensors(case).values())
        call_op(build_op(case), case)
