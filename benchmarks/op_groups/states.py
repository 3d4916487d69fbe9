"""Causal convolutions, Mamba-2's scan and update, and the gated delta rule, over prompts and single tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, normalize, silu

from fastkernels.op import Op
from fastkernels.tasks.baseline.L1.causal_conv1d import CausalConv1d, CausalConv1dUpdate
from fastkernels.tasks.baseline.L1.chunk_gated_delta_rule import ChunkGatedDeltaRule, chunked_delta_rule
from fastkernels.tasks.baseline.L1.gdn_recurrence import GDNRecurrence
from fastkernels.tasks.baseline.L1.mamba_chunk_scan import MambaChunkScan, chunked_scan, discretize
from fastkernels.tasks.baseline.L1.mamba_ssm import SelectiveStateUpdate
from fastkernels.tasks.baseline.state_slots import decay_parameters, first_state, sequences
from op_groups.bench import Bench, Row

SEQUENCES, DECODES = 4, (1, 64, 256)
CHUNKS = "torch, in chunks"
"""Definitions go row by row, which takes seconds for a prompt."""


def rows(bench: Bench) -> Iterator[Row]:
    yield from _mamba(bench)
    yield from _qwen3_next(bench)


class _Prompts:
    """As many prompts of one length, the first half of them further parts of longer ones."""

    def __init__(self, bench: Bench) -> None:
        self.length = bench.size(2048, 20)
        self.num_tokens = SEQUENCES * self.length
        starts = bench.ints(range(0, self.num_tokens + 1, self.length))
        holds = torch.arange(SEQUENCES, device=bench.device) < SEQUENCES // 2
        self.places = (starts, bench.ints(range(SEQUENCES)), holds)
        self.told = (*self.places, self.length)


def _single(bench: Bench, n: int) -> tuple[Tensor, Tensor]:
    return torch.randperm(n, device=bench.device).int(), torch.ones(n, dtype=torch.bool, device=bench.device)


def _convolutions(bench: Bench, model: str, dim: int, row: int, width: int, has_bias: bool) -> Iterator[Row]:
    """row: of the projection of which the convolution takes dim columns."""
    weight = bench.randn(dim, width) * width**-0.5
    bias = bench.randn(dim) if has_bias else None
    prompts = _Prompts(bench)

    def states(n: int) -> Tensor:
        return bench.randn(n, width - 1, dim)

    def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, conv_states: Tensor, *told: Any) -> Tensor:
        """Of sequences of one length: cuDNN's convolution by channel, of channels before rows."""
        held = torch.where(told[2][:, None, None], conv_states[told[1].long()], 0)
        padded = torch.cat((held, x.unflatten(0, (SEQUENCES, -1))), dim=1)
        conv_states[told[1].long()] = padded[:, 1 - width :]
        y = conv1d(padded.transpose(1, 2), weight[:, None], bias, groups=dim)
        return silu(y).transpose(1, 2).flatten(0, 1)

    yield bench.row(
        model,
        f"{SEQUENCES} x {prompts.length} x {dim}",
        bench.build(CausalConv1d, {}, torch.bfloat16),
        lambda: (bench.randn(prompts.num_tokens, row)[:, :dim], weight, bias, states(SEQUENCES), *prompts.told),
        {"torch conv1d": convolved},
        init={},
    )
    for n in DECODES if not bench.is_rehearsal else (3,):
        yield bench.row(
            model,
            f"{n} x {dim}",
            bench.build(CausalConv1dUpdate, {}, torch.bfloat16),
            lambda n=n: (bench.randn(n, row)[:, :dim], states(n), weight, bias, *_single(bench, n)),
            init={},
        )


def _mamba(bench: Bench) -> Iterator[Row]:
    model, config = "Mamba-Codestral-7B", bench.config("mamba-codestral-7b", "tiny-mamba2")
    heads, size, state, groups = config.num_heads, config.head_dim, config.state_size, config.n_groups
    inner, grouped = heads * size, groups * state
    dim = inner + 2 * grouped
    yield from _convolutions(bench, model, dim, inner + dim + heads, config.conv_kernel, config.use_conv_bias)
    drawn = decay_parameters(heads, torch.Generator().manual_seed(0))
    a_log, dt_bias = (drawn[name].to(bench.device) for name in ("A_log", "dt_bias"))
    d = torch.ones(heads, device=bench.device)

    def parts(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, dt, B and C as they lie in what the layer computes."""
        x, b, c = bench.randn(n, dim).split([inner, grouped, grouped], dim=-1)
        dt = bench.randn(n, inner + dim + heads)[:, -heads:]
        return x.unflatten(-1, (heads, size)), dt, b.unflatten(-1, (groups, state)), c.unflatten(-1, (groups, state))

    def states(n: int) -> Tensor:
        return bench.randn(n, heads, size, state, dtype=torch.float32)

    prompts = _Prompts(bench)

    def scan() -> tuple[Any, ...]:
        x, dt, b, c = parts(prompts.num_tokens)
        return x, dt, a_log, b, c, d, dt_bias, states(SEQUENCES), *prompts.told

    def update(n: int) -> tuple[Any, ...]:
        x, dt, b, c = parts(n)
        return states(n), x, dt, a_log, b, c, d, dt_bias, *_single(bench, n)

    init = {"chunk_size": config.chunk_size}
    op: Op = bench.build(MambaChunkScan, init, torch.bfloat16)
    shape = f"{SEQUENCES} x {prompts.length} x {heads} x {size}, states of {state}"
    has_definition = bench.is_rehearsal
    yield bench.row(model, shape, op, scan, {CHUNKS: _scan_in_chunks}, init=init, has_definition=has_definition)
    op = bench.build(SelectiveStateUpdate, {}, torch.bfloat16)
    for n in DECODES if not bench.is_rehearsal else (3,):
        shape = f"{n} x {heads} x {size}, states of {state}"
        yield bench.row(model, shape, op, lambda n=n: update(n), init={})


def _scan_in_chunks(
    x: Tensor, dt: Tensor, a_log: Tensor, b: Tensor, c: Tensor, d: Tensor, dt_bias: Tensor, states: Tensor, *told: Any
) -> Tensor:
    step, decay = discretize(dt, a_log, dt_bias, (0.0, float("inf")), torch.float32)
    y = torch.empty_like(x)
    for start, end, slot, has_state in sequences(*told[:3]):
        some, state = slice(start, end), first_state(states, slot, has_state, torch.float32)
        y[some] = chunked_scan(x[some], step[some], decay[some], b[some], c[some], d, state)
        states[slot] = state
    return y


def _qwen3_next(bench: Bench) -> Iterator[Row]:
    model, config = "Qwen3-Next-80B", bench.config("qwen3-next-80b-a3b", "tiny-qwen3_next")
    k_heads, v_heads = config.linear_num_key_heads, config.linear_num_value_heads
    k_size, v_size = config.linear_key_head_dim, config.linear_value_head_dim
    keys, values = k_heads * k_size, v_heads * v_size
    dim = 2 * keys + values
    yield from _convolutions(bench, model, dim, dim + values, config.linear_conv_kernel_dim, has_bias=False)

    def parts(n: int) -> tuple[Tensor, ...]:
        """Rows of q and k of length one; decays that last some tens of rows."""
        q, k = normalize(bench.randn(n, 2 * k_heads, k_size).float(), dim=-1).chunk(2, dim=-2)
        v = bench.randn(n, dim)[:, 2 * keys :].unflatten(-1, (v_heads, v_size))
        gates = torch.rand(2, n, v_heads, device=bench.device)
        return q.to(v.dtype), k.to(v.dtype), v, -0.2 * gates[0].square(), 0.05 + 0.95 * gates[1]

    def states(n: int) -> Tensor:
        return bench.randn(n, v_heads, k_size, v_size, dtype=torch.float32)

    prompts = _Prompts(bench)
    op = bench.build(ChunkGatedDeltaRule, {}, torch.bfloat16)
    yield bench.row(
        model,
        f"{SEQUENCES} x {prompts.length} x {v_heads}, {k_size} x {v_size}",
        op,
        lambda: (*parts(prompts.num_tokens), states(SEQUENCES), *prompts.told),
        {CHUNKS: _rule_in_chunks},
        init={},
        has_definition=bench.is_rehearsal,
    )
    op = bench.build(GDNRecurrence, {}, torch.bfloat16)
    for n in DECODES if not bench.is_rehearsal else (3,):
        shape = f"{n} x {v_heads}, {k_size} x {v_size}"
        yield bench.row(model, shape, op, lambda n=n: (*parts(n), states(n), *_single(bench, n)), init={})


def _rule_in_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, states: Tensor, *told: Any) -> Tensor:
    o = torch.empty_like(v)
    for start, end, slot, has_state in sequences(*told[:3]):
        some, state = slice(start, end), first_state(states, slot, has_state, torch.float32)
        o[some] = chunked_delta_rule(q[some], k[some], v[some], g[some], beta[some], state)
        states[slot] = state
    return o
