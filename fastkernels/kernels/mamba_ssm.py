"""One step of Mamba-2's state space for every sequence."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import (
    check_dtypes,
    dependent_launch,
    let_dependents_start,
    tl,
    triton,
    wait_for_dependencies,
)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), without overflow, and exact to a few roundings also where it is small."""
    small = tl.exp(-tl.abs(x))
    total = 1.0 + small
    kept = total - 1.0
    is_lost = kept == 0.0
    log = tl.where(is_lost, small, tl.log(total) * (small / tl.where(is_lost, 1.0, kept)))
    return tl.maximum(x, 0.0) + log


@triton.jit
def _selective_state_update_kernel(
    states_ptr, x_ptr, dt_ptr, a_log_ptr, b_ptr, c_ptr, d_ptr, dt_bias_ptr, slots_ptr, holds_ptr, y_ptr,
    slot_stride, x_stride, x_head_stride, dt_stride, b_stride, b_group_stride, c_stride, c_group_stride,
    num_heads, heads_a_group, head_dim, state_size, dt_min, dt_max,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    seq, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group = head // heads_a_group
    p, n = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    is_p, is_n = p < head_dim, n < state_size
    is_both = is_p[:, None] & is_n[None, :]
    holds = tl.load(holds_ptr + seq) != 0
    at = tl.load(slots_ptr + seq).to(tl.int64) * slot_stride + head * head_dim * state_size
    place = states_ptr + at + p[:, None] * state_size + n[None, :]
    state = tl.load(place, mask=is_both & holds, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + seq * x_stride + head * x_head_stride + p, mask=is_p, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + seq * b_stride + group * b_group_stride + n, mask=is_n, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + seq * c_stride + group * c_group_stride + n, mask=is_n, other=0.0).to(tl.float32)
    step = tl.load(dt_ptr + seq * dt_stride + head).to(tl.float32) + tl.load(dt_bias_ptr + head).to(tl.float32)
    step = tl.minimum(tl.maximum(softplus(step), dt_min), dt_max)
    decay = tl.exp(-tl.exp(tl.load(a_log_ptr + head).to(tl.float32)) * step)
    state = state * decay + (step * x)[:, None] * b[None, :]
    tl.store(place, state, mask=is_both)
    y = tl.sum(state * c[None, :], axis=1) + tl.load(d_ptr + head).to(tl.float32) * x
    tl.store(y_ptr + (seq * num_heads + head) * head_dim + p, y.to(y_ptr.dtype.element_ty), mask=is_p)


def selective_state_update(
    ssm_states: Tensor,
    x: Tensor,
    dt: Tensor,
    a_log: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    dt_bias: Tensor,
    state_indices: Tensor,
    has_initial_state: Tensor,
    dt_limit: tuple[float, float],
) -> Tensor:
    """SelectiveStateUpdate; ssm_states is written to. Arguments as the op's, their last axes dense.

    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("selective_state_update", x=x, dt=dt, A_log=a_log, B=b, C=c, D=d, dt_bias=dt_bias, states=ssm_states)
    x, dt, b, c = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, dt, b, c))
    num_seqs, num_heads, head_dim = x.shape
    num_groups, state_size = b.shape[1:]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block_n = triton.next_power_of_2(state_size)
    block_p = max(1, min(triton.next_power_of_2(head_dim), 4096 // block_n))
    if num_seqs:
        _selective_state_update_kernel[(num_seqs, num_heads, triton.cdiv(head_dim, block_p))](
            ssm_states, x, dt, a_log, b, c, d, dt_bias, state_indices, has_initial_state, y,
            ssm_states.stride(0), *x.stride()[:2], dt.stride(0), *b.stride()[:2], *c.stride()[:2],
            num_heads, num_heads // num_groups, head_dim, state_size, *dt_limit,
            BLOCK_P=block_p, BLOCK_N=block_n, num_warps=4, **dependent_launch(x.device),
        )  # fmt: skip
    return y
