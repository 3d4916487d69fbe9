"""One step of the gated delta rule for every sequence."""
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
def _gdn_recurrence_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, beta_ptr, states_ptr, slots_ptr, holds_ptr, o_ptr,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride, g_stride, beta_stride, slot_stride,
    num_heads, heads_a_key, key_dim, value_dim, scale,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    seq, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    key_head = head // heads_a_key
    i, j = tl.arange(0, BLOCK_K), tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    is_k, is_v = i < key_dim, j < value_dim
    is_both = is_k[:, None] & is_v[None, :]
    holds = tl.load(holds_ptr + seq) != 0
    at = tl.load(slots_ptr + seq).to(tl.int64) * slot_stride + head * key_dim * value_dim
    place = states_ptr + at + i[:, None] * value_dim + j[None, :]
    state = tl.load(place, mask=is_both & holds, other=0.0)
    q = tl.load(q_ptr + seq * q_stride + key_head * q_head_stride + i, mask=is_k, other=0.0).to(tl.float32)
    k = tl.load(k_ptr + seq * k_stride + key_head * k_head_stride + i, mask=is_k, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + seq * v_stride + head * v_head_stride + j, mask=is_v, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + seq * g_stride + head)
    beta = tl.load(beta_ptr + seq * beta_stride + head)
    state *= tl.exp(g)
    error = beta * (v - tl.sum(state * k[:, None], axis=0))
    state += k[:, None] * error[None, :]
    tl.store(place, state, mask=is_both)
    o = tl.sum(state * q[:, None], axis=0) * scale
    tl.store(o_ptr + (seq * num_heads + head) * value_dim + j, o.to(o_ptr.dtype.element_ty), mask=is_v)


def gdn_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    states: Tensor,
    state_indices: Tensor,
    has_initial_state: Tensor,
) -> Tensor:
    """GDNRecurrence; states is written to. Arguments as the op's, their last axes dense.

    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("gdn_recurrence", q=q, k=k, v=v, g=g, beta=beta, states=states)
    q, k, v, g, beta = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v, g, beta))
    num_seqs, num_heads, value_dim = v.shape
    num_key_heads, key_dim = k.shape[1:]
    o = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    block_k = triton.next_power_of_2(key_dim)
    block_v = max(1, min(triton.next_power_of_2(value_dim), 4096 // block_k))
    if num_seqs:
        _gdn_recurrence_kernel[(num_seqs, num_heads, triton.cdiv(value_dim, block_v))](
            q, k, v, g, beta, states, state_indices, has_initial_state, o,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], g.stride(0), beta.stride(0), states.stride(0),
            num_heads, num_heads // num_key_heads, key_dim, value_dim, key_dim**-0.5,
            BLOCK_K=block_k, BLOCK_V=block_v, num_warps=4, **dependent_launch(v.device),
        )  # fmt: skip
    return o
