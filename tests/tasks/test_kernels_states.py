"""Kernels over state slots against float64 definitions: run by test_kernels_interpreter.py, or TRITON_INTERPRET=1."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from turns import in_turn

from fastkernels.env import triton_interpreted
from fastkernels.op import Op

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from fastkernels.kernels.chunk_gated_delta_rule import chunk_gated_delta_rule, in_stages
from fastkernels.kernels.chunk_gated_delta_rule_stages import (
    SMALL,
    WIDE,
    Stages,
    chunk_gated_delta_rule_in_stages,
    default_stages,
)
from fastkernels.kernels.gdn_recurrence import gdn_recurrence
from fastkernels.kernels.mamba_chunk_scan import mamba_chunk_scan
from fastkernels.kernels.mamba_ssm import selective_state_update
from fastkernels.tasks.baseline.L1.causal_conv1d import CausalConv1d, CausalConv1dUpdate
from fastkernels.tasks.baseline.L1.chunk_gated_delta_rule import ChunkGatedDeltaRule, draw_delta_inputs
from fastkernels.tasks.baseline.L1.gdn_recurrence import GDNRecurrence
from fastkernels.tasks.baseline.L1.mamba_chunk_scan import MambaChunkScan
from fastkernels.tasks.baseline.L1.mamba_ssm import SelectiveStateUpdate
from fastkernels.tasks.baseline.state_slots import decay_parameters

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
DTYPES = [torch.float32, torch.float16]
RELATIVE = {torch.float32: 1.5e-5, torch.float16: 2.0**-11 * 1.05}
"""Of a tensor's root mean square, per element: float32 sums of a chunk's logarithms, whose differences are raised to e,
and one rounding to the output's dtype."""
BATCHES: dict[str, tuple[list[int], list[bool]]] = {
    "one token": ([1], [False]),
    "shorter than the window": ([2, 1, 3], [True, False, True]),
    "about a chunk": ([31, 33, 64, 65], [True, True, False, True]),
    "an empty one between": ([5, 0, 17], [True, True, False]),
}

STAGED: dict[str, tuple[list[int], list[bool]]] = {
    **BATCHES,
    "several chunks": ([200, 65, 129], [False, True, True]),
    "an end at a chunk's end": ([128, 0, 64], [True, True, False]),
    "many short ones": ([1, 3, 0, 2, 40, 1, 1, 5, 33, 1], [n % 3 > 0 for n in range(10)]),
}
"""Chunks have up to 64 rows."""


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is filled with NaN, so that an element no kernel wrote shows."""
    torch.manual_seed(0)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))


def strided(*shape: int, dtype: torch.dtype) -> Tensor:
    """Rows inside wider ones, which hold NaN."""
    wide = torch.full((shape[0], *shape[1:-1], shape[-1] + 5), float("nan"), dtype=dtype)
    wide[..., : shape[-1]] = torch.randn(shape).to(dtype)
    return wide[..., : shape[-1]]


def places(batch: str) -> dict[str, Tensor]:
    lengths, holds = STAGED[batch]
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    slots = torch.arange(len(lengths)).flip(0).int() + 1
    return {"query_start_loc": starts, "state_indices": slots, "has_initial_state": torch.tensor(holds)}


def steps(num_seqs: int) -> dict[str, Tensor]:
    slots = torch.arange(num_seqs).flip(0).int() + 1
    return {"state_indices": slots, "has_initial_state": torch.arange(num_seqs) % 3 != 1}


def pool(where: dict[str, Tensor], *shape: int, dtype: torch.dtype) -> Tensor:
    """Slots of sequences that hold something; NaN elsewhere."""
    states = torch.full((len(where["state_indices"]) + 2, *shape), float("nan"), dtype=dtype)
    held = where["state_indices"][where["has_initial_state"]].long()
    states[held] = torch.randn(len(held), *shape).to(dtype)
    return states


def check(op: Op, kernel: Callable[..., Tensor], arguments: dict[str, Any], states: str, *more: Any) -> None:
    """The kernel's answer and what it leaves in the slots; slots of nobody stay as they are."""
    exact = {n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in arguments.items()}
    exact[states] = exact[states].clone()
    lengths = arguments["query_start_loc"].diff() if "query_start_loc" in arguments else None
    wanted = op.reference(**exact)
    passed = [v for n, v in arguments.items() if n != "max_query_len" or kernel is causal_conv1d]
    got = kernel(*passed, *more)
    for one, right in ((got, wanted), (arguments[states], exact[states])):
        assert one.shape == right.shape
        assert torch.equal(one.isnan(), right.isnan())
        scale = right.nan_to_num().square().mean().sqrt()
        error = (one.double() - right).nan_to_num().abs()
        bound = RELATIVE[one.dtype] * torch.maximum(
            right.nan_to_num().abs(), scale if one.dtype != DTYPES[1] else 0.1 * scale
        )
        assert (error <= bound).all(), f"worst ratio to the bound: {(error / bound).max()}"
    assert lengths is None or len(lengths) > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("dim", "width", "activation"), [(40, 4, "silu"), (259, 2, None), (7, 5, "silu")])
def test_causal_conv1d_equals_its_definition(
    dim: int, width: int, activation: str | None, batch: str, dtype: torch.dtype
) -> None:
    where = places(batch)
    arguments = {
        "x": strided(int(where["query_start_loc"][-1]), dim, dtype=dtype),
        "weight": torch.randn(dim, width).to(dtype),
        "bias": torch.randn(dim).to(dtype) if activation else None,
        "conv_states": pool(where, width - 1, dim, dtype=dtype),
        **where,
        "max_query_len": int(where["query_start_loc"].diff().max()),
    }
    check(CausalConv1d(activation), causal_conv1d, arguments, "conv_states", activation == "silu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("dim", "width", "activation"), [(40, 4, "silu"), (259, 2, None), (7, 5, "silu"), (9, 1, None)]
)
def test_causal_conv1d_update_equals_its_definition(
    dim: int, width: int, activation: str | None, dtype: torch.dtype
) -> None:
    where = steps(5)
    arguments = {
        "x": strided(5, dim, dtype=dtype),
        "conv_states": pool(where, width - 1, dim, dtype=dtype),
        "weight": torch.randn(dim, width).to(dtype),
        "bias": torch.randn(dim).to(dtype) if activation else None,
        **where,
    }
    check(CausalConv1dUpdate(activation), causal_conv1d_update, arguments, "conv_states", activation == "silu")


def mamba(num_rows: int, heads: tuple[int, int], sizes: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    num_heads, num_groups = heads
    drawn = decay_parameters(num_heads, torch.Generator().manual_seed(1))
    return {
        "x": strided(num_rows, num_heads, sizes[0], dtype=dtype),
        "dt": strided(num_rows, num_heads, dtype=dtype),
        "A_log": drawn["A_log"].to(dtype),
        "B": strided(num_rows, num_groups, sizes[1], dtype=dtype),
        "C": strided(num_rows, num_groups, sizes[1], dtype=dtype),
        "D": torch.randn(num_heads).to(dtype),
        "dt_bias": drawn["dt_bias"].to(dtype),
    }


Shape = tuple[tuple[int, int], tuple[int, int]]
SIZES: list[Shape] = [((4, 2), (16, 32)), ((3, 1), (70, 19))]


@pytest.mark.parametrize(("shape", "batch", "dtype"), in_turn(SIZES, BATCHES, last=DTYPES))
def test_mamba_chunk_scan_equals_the_recurrence(shape: Shape, batch: str, dtype: torch.dtype) -> None:
    heads, sizes = shape
    where, limit = places(batch), (0.001, 0.5)
    arguments = mamba(int(where["query_start_loc"][-1]), heads, sizes, dtype)
    states = pool(where, heads[0], *sizes, dtype=torch.float32)
    given = {**arguments, "ssm_states": states, **where, "max_query_len": 0}
    check(MambaChunkScan(64, limit), mamba_chunk_scan, given, "ssm_states", limit)


def test_mamba_chunk_scan_rounds_states_of_16_bits_once_a_prompt() -> None:
    where, limit = places("about a chunk"), (0.001, 0.5)
    arguments = mamba(int(where["query_start_loc"][-1]), (4, 2), (16, 32), torch.float16)
    states = pool(where, 4, 16, 32, dtype=torch.float16)
    given = {**arguments, "ssm_states": states, **where, "max_query_len": 0}
    check(MambaChunkScan(64, limit), mamba_chunk_scan, given, "ssm_states", limit)


def test_mamba_chunk_scan_knows_small_decays_behind_a_large_one() -> None:
    """Of sums near 3,000 fp32 holds differences to 1e-4 alone."""
    where, limit = places("about a chunk"), (0.0, float("inf"))
    arguments = mamba(int(where["query_start_loc"][-1]), (4, 2), (16, 32), torch.float32)
    arguments["dt"] = torch.where(torch.arange(arguments["dt"].shape[0])[:, None] % 8 == 1, 3000.0, -4.0).expand(-1, 4)
    arguments["A_log"] = torch.zeros(4)
    states = pool(where, 4, 16, 32, dtype=torch.float32)
    given = {**arguments, "ssm_states": states, **where, "max_query_len": 0}
    check(MambaChunkScan(64, limit), mamba_chunk_scan, given, "ssm_states", limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("heads", "sizes"), SIZES)
def test_selective_state_update_equals_its_definition(
    heads: tuple[int, int], sizes: tuple[int, int], state_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    where, limit = steps(5), (0.0, float("inf"))
    states = pool(where, heads[0], *sizes, dtype=state_dtype)
    given = {"ssm_states": states, **mamba(5, heads, sizes, dtype), **where}
    check(SelectiveStateUpdate(limit), selective_state_update, given, "ssm_states", limit)


def delta(num_rows: int, heads: tuple[int, int], sizes: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    axes = {"num_v_heads": heads[0], "num_k_heads": heads[1], "head_k_dim": sizes[0]}
    drawn = draw_delta_inputs(axes, num_rows, torch.Generator().manual_seed(1))
    keys = {name: drawn[name].to(dtype) for name in ("q", "k")}
    v = strided(num_rows, heads[0], sizes[1], dtype=dtype)
    return {**keys, "v": v, "g": drawn["g"], "beta": drawn["beta"]}


@pytest.mark.parametrize(("shape", "batch", "dtype"), in_turn(SIZES, BATCHES, last=DTYPES))
def test_chunk_gated_delta_rule_equals_the_recurrence(shape: Shape, batch: str, dtype: torch.dtype) -> None:
    heads, sizes = shape
    where = places(batch)
    arguments = delta(int(where["query_start_loc"][-1]), heads, sizes, dtype)
    states = pool(where, heads[0], *sizes, dtype=torch.float32)
    given = {**arguments, "states": states, **where, "max_query_len": 0}
    check(ChunkGatedDeltaRule(), chunk_gated_delta_rule, given, "states")


def test_chunk_gated_delta_rule_knows_small_decays_behind_a_large_one() -> None:
    where = places("about a chunk")
    arguments = delta(int(where["query_start_loc"][-1]), (2, 1), (16, 16), torch.float32)
    arguments["g"] = torch.where(torch.arange(len(arguments["g"]))[:, None] % 8 == 1, -3000.0, arguments["g"])
    given = {**arguments, "states": pool(where, 2, 16, 16, dtype=torch.float32), **where, "max_query_len": 0}
    check(ChunkGatedDeltaRule(), chunk_gated_delta_rule, given, "states")


def test_equal_keys_that_never_decay_do_not_blow_up() -> None:
    """The triangular system is then all ones: powers of it would not fit into float32."""
    where = places("about a chunk")
    arguments = delta(int(where["query_start_loc"][-1]), (2, 1), (16, 16), torch.float32)
    arguments["k"][:] = arguments["k"][:1]
    arguments["g"].zero_()
    arguments["beta"].fill_(1.0)
    given = {**arguments, "states": pool(where, 2, 16, 16, dtype=torch.float32), **where, "max_query_len": 0}
    check(ChunkGatedDeltaRule(), chunk_gated_delta_rule, given, "states")


WIDER: Shape = ((2, 2), (64, 72))
"""Values in two parts of the state that is carried."""
LEAVES = [WIDE, SMALL, WIDE._replace(leaf=8, solve_values=16, carry_values=16, read_values=16)]


def check_stages(
    arguments: dict[str, Tensor], where: dict[str, Tensor], states: Tensor, stages: Stages | None = None
) -> None:
    given = {**arguments, "states": states, **where, "max_query_len": 0}
    check(ChunkGatedDeltaRule(), chunk_gated_delta_rule_in_stages, given, "states", stages, True)


@pytest.mark.parametrize(("shape", "batch", "stages"), in_turn(SIZES, STAGED, last=LEAVES))
def test_delta_rule_in_stages_equals_the_recurrence(shape: Shape, batch: str, stages: Stages) -> None:
    heads, sizes = shape
    where = places(batch)
    arguments = delta(int(where["query_start_loc"][-1]), heads, sizes, torch.float32)
    wide = strided(*arguments["q"].shape, dtype=torch.float32)
    wide[:] = arguments["q"]
    arguments["q"] = wide
    check_stages(arguments, where, pool(where, heads[0], *sizes, dtype=torch.float32), stages)


def test_wide_heads_take_wide_stages() -> None:
    where, (heads, sizes) = places("several chunks"), WIDER
    assert [default_stages(*sizes), default_stages(128, 128), default_stages(64, 32)] == [WIDE, WIDE, SMALL]
    arguments = delta(int(where["query_start_loc"][-1]), heads, sizes, torch.float32)
    check_stages(arguments, where, pool(where, heads[0], *sizes, dtype=torch.float32))


@pytest.mark.parametrize("stages", LEAVES)
@pytest.mark.parametrize("kind", ["a large decay among small ones", "equal keys that never decay", "no step"])
def test_delta_rule_in_stages_at_its_edges(kind: str, stages: Stages) -> None:
    where = places("several chunks")
    arguments = delta(int(where["query_start_loc"][-1]), (2, 1), (16, 16), torch.float32)
    if kind == "a large decay among small ones":
        arguments["g"] = torch.where(torch.arange(len(arguments["g"]))[:, None] % 8 == 1, -3000.0, arguments["g"])
    elif kind == "equal keys that never decay":
        arguments["k"][:] = arguments["k"][:1]
        arguments["g"].zero_()
        arguments["beta"].fill_(1.0)
    else:
        arguments["g"].zero_()
        arguments["beta"].zero_()
    check_stages(arguments, where, pool(where, 2, 16, 16, dtype=torch.float32), stages)


def test_stages_are_for_bf16_and_longer_prompts() -> None:
    def q(tokens: int, key_dim: int = 128, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty((tokens, 1, key_dim), dtype=dtype, device="meta")

    assert in_stages(q(65), 1)
    assert in_stages(q(8192), 127)
    assert not in_stages(q(64), 1)
    assert not in_stages(q(8192), 128)
    assert not in_stages(q(8192, key_dim=256), 1)
    assert not in_stages(q(8192, dtype=torch.float32), 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "sizes"), SIZES)
def test_gdn_recurrence_equals_its_definition(
    heads: tuple[int, int], sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    where = steps(5)
    states = pool(where, heads[0], *sizes, dtype=torch.float32)
    check(GDNRecurrence(), gdn_recurrence, {**delta(5, heads, sizes, dtype), "states": states, **where}, "states")
