"""Causal prefill for Hopper: one warp copies keys and values, two groups of four multiply and take the softmax.

Written in Gluon, which exposes the bulk copies, barriers and asynchronous matrix products that
Triton's own pipelining leaves idle here. Each multiprocessor takes tiles in turn, those with the
most keys first, and copies the next tile's keys while it finishes the last.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import HAS_GLUON, gl, gluon, hopper, num_sms, triton
from fastkernels.kernels.flash_attn_decode import LOG2_E

HEAD_SIZES = (64, 128)
BLOCK_M = 128
BLOCK_N = 128
NUM_STAGES = 2


@gluon.jit
def _locate(index, query_start_ptr, num_kv_heads, num_seqs, num_tiles, TOKENS: gl.constexpr):
    """A tile's key head, first token of its sequence, first token in the sequence, and the sequence's length."""
    kv_head = index % num_kv_heads
    seq = index // num_kv_heads % num_seqs
    tile = num_tiles - 1 - index // num_kv_heads // num_seqs
    first = gl.load(query_start_ptr + seq)
    return kv_head, first, tile * TOKENS, gl.load(query_start_ptr + seq + 1) - first


@gluon.jit
def _copy_keys_and_values(
    k_desc, v_desc, k_bufs, v_bufs, k_full, k_empty, v_full, v_empty,
    query_start_ptr, num_kv_heads, num_seqs, num_tiles,
    TOKENS: gl.constexpr, BLOCK_N: gl.constexpr, HEAD_SIZE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    step = 0
    for index in range(gl.program_id(0), num_tiles * num_seqs * num_kv_heads, gl.num_programs(0)):
        kv_head, first, start, length = _locate(index, query_start_ptr, num_kv_heads, num_seqs, num_tiles, TOKENS)
        num_blocks = gl.where(start < length, gl.cdiv(gl.minimum(start + TOKENS, length), BLOCK_N), 0)
        for i in range(num_blocks):
            row = first + (num_blocks - 1 - i) * BLOCK_N
            stage = step % STAGES
            phase = (step // STAGES) & 1
            hopper.mbarrier.wait(k_empty.index(stage), phase ^ 1)
            hopper.mbarrier.expect(k_full.index(stage), k_desc.block_type.nbytes)
            hopper.tma.async_copy_global_to_shared(
                k_desc, [row, kv_head * HEAD_SIZE], k_full.index(stage), k_bufs.index(stage)
            )
            hopper.mbarrier.wait(v_empty.index(stage), phase ^ 1)
            hopper.mbarrier.expect(v_full.index(stage), v_desc.block_type.nbytes)
            hopper.tma.async_copy_global_to_shared(
                v_desc, [row, kv_head * HEAD_SIZE], v_full.index(stage), v_bufs.index(stage)
            )
            step += 1


@gluon.jit
def _after(x):
    """x >= 0, unchanged: a store that never happens keeps the assembler from waiting for the product before it."""
    return gl.inline_asm_elementwise(
        "{ .reg .pred p; .reg .u32 a; mov.u32 a, 0; setp.lt.f32 p, $1, 0f00000000; "
        "@p st.shared.f32 [a], $1; mov.f32 $0, $1; }",
        "=f,f", [x], dtype=gl.float32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _attend_rows(
    q_ptr, out_ptr, q_buf, k_bufs, v_bufs, k_full, k_empty, v_full, v_empty, query_start_ptr, scale_log2,
    q_stride_token, q_stride_head, num_kv_heads, num_seqs, num_tiles, first_row,
    GROUP: gl.constexpr, TOKENS: gl.constexpr, BLOCK_N: gl.constexpr, HEAD_SIZE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """64 rows of each tile: query heads of one key head, token by token."""
    ROWS: gl.constexpr = 64
    dtype: gl.constexpr = q_ptr.dtype.element_ty
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_SIZE, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    io_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_SIZE, HEAD_SIZE // 8], [4, 1], [1, 0])

    io_rows = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, io_layout))
    io_dims = gl.arange(0, HEAD_SIZE, gl.SliceLayout(0, io_layout))[None, :]
    s_rows = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, s_layout))
    s_keys = gl.arange(0, BLOCK_N, gl.SliceLayout(0, s_layout))
    step = 0
    for index in range(gl.program_id(0), num_tiles * num_seqs * num_kv_heads, gl.num_programs(0)):
        kv_head, first, start, length = _locate(index, query_start_ptr, num_kv_heads, num_seqs, num_tiles, TOKENS)
        if start < length:
            num_blocks = gl.cdiv(gl.minimum(start + TOKENS, length), BLOCK_N)
            token = start + io_rows // GROUP
            head = kv_head * GROUP + io_rows % GROUP
            row = (first + token).to(gl.int64)
            is_row = (token < length)[:, None]
            q = gl.load(
                q_ptr + (row * q_stride_token + head * q_stride_head)[:, None] + io_dims, mask=is_row, other=0.0
            )
            q_buf.store(q)
            hopper.fence_async_shared()

            # The last block of keys: the only one that reaches past a row's own token.
            stage = step % STAGES
            phase = (step // STAGES) & 1
            hopper.mbarrier.wait(k_full.index(stage), phase)
            scores = gl.zeros([ROWS, BLOCK_N], gl.float32, s_layout)
            scores = hopper.warpgroup_mma(q_buf, k_bufs.index(stage).permute((1, 0)), scores, use_acc=False)
            hopper.mbarrier.arrive(k_empty.index(stage), count=1)
            last_key = start + s_rows // GROUP - (num_blocks - 1) * BLOCK_N
            scores = gl.where(s_keys[None, :] <= last_key[:, None], scores, float("-inf"))
            top = gl.max(scores, axis=1) * scale_log2
            probs = gl.exp2(scores * scale_log2 - top[:, None])
            total = gl.sum(probs, axis=1)
            p = gl.convert_layout(probs.to(dtype), p_layout)
            acc = gl.zeros([ROWS, HEAD_SIZE], gl.float32, o_layout)
            if num_blocks * BLOCK_N > length:
                # Rows past the sequence belong to others and may hold NaN, which a zero weight does not silence.
                hopper.mbarrier.wait(v_full.index(stage), phase)
                values = v_bufs.index(stage).load(io_layout)
                key = gl.arange(0, BLOCK_N, gl.SliceLayout(1, io_layout)) + (num_blocks - 1) * BLOCK_N
                v_bufs.index(stage).store(gl.where((key < length)[:, None], values, gl.full_like(values, 0.0)))
                hopper.fence_async_shared()

            for _ in range(1, num_blocks):
                last_stage = stage
                last_phase = phase
                step += 1
                stage = step % STAGES
                phase = (step // STAGES) & 1
                hopper.mbarrier.wait(k_full.index(stage), phase)
                scores = hopper.warpgroup_mma(
                    q_buf, k_bufs.index(stage).permute((1, 0)), scores, use_acc=False, is_async=True
                )
                hopper.mbarrier.wait(v_full.index(last_stage), last_phase)
                acc = hopper.warpgroup_mma(p, v_bufs.index(last_stage), acc, is_async=True)
                scores = hopper.warpgroup_mma_wait(1, deps=(scores,))
                hopper.mbarrier.arrive(k_empty.index(stage), count=1)
                new_top = gl.maximum(top, gl.max(scores, axis=1) * scale_log2)
                probs = gl.exp2(scores * scale_log2 - new_top[:, None])
                rescale = gl.exp2(top - new_top)
                total = total * rescale + gl.sum(probs, axis=1)
                top = new_top
                total = _after(total)
                acc, p = hopper.warpgroup_mma_wait(0, deps=(acc, gl.convert_layout(probs.to(dtype), p_layout)))
                hopper.mbarrier.arrive(v_empty.index(last_stage), count=1)
                acc = acc * gl.convert_layout(rescale, gl.SliceLayout(1, o_layout))[:, None]

            hopper.mbarrier.wait(v_full.index(stage), phase)
            acc = hopper.warpgroup_mma(p, v_bufs.index(stage), acc)
            hopper.mbarrier.arrive(v_empty.index(stage), count=1)
            step += 1
            acc = acc / gl.convert_layout(total, gl.SliceLayout(1, o_layout))[:, None]
            q_buf.store(acc.to(dtype))
            out = q_buf.load(io_layout)
            out_row = row * (num_kv_heads * GROUP) + head
            gl.store(out_ptr + out_row[:, None] * HEAD_SIZE + io_dims, out, mask=is_row)


@gluon.jit(do_not_specialize=["num_kv_heads", "num_seqs", "num_tiles"])
def _prefill_kernel(
    q_ptr, k_desc, v_desc, out_ptr, query_start_ptr, scale_log2, q_stride_token, q_stride_head,
    num_kv_heads, num_seqs, num_tiles,
    GROUP: gl.constexpr, HEAD_SIZE: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    TOKENS: gl.constexpr = BLOCK_M // GROUP
    dtype: gl.constexpr = k_desc.dtype
    q_bufs = gl.allocate_shared_memory(dtype, [2, 64, HEAD_SIZE], k_desc.layout)
    k_bufs = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, HEAD_SIZE], k_desc.layout)
    v_bufs = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, HEAD_SIZE], v_desc.layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], hopper.mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], hopper.mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], hopper.mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], hopper.mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        hopper.mbarrier.init(k_full.index(i), count=1)
        hopper.mbarrier.init(v_full.index(i), count=1)
        hopper.mbarrier.init(k_empty.index(i), count=2)
        hopper.mbarrier.init(v_empty.index(i), count=2)
    gl.warp_specialize(
        [
            (_attend_rows, (
                q_ptr, out_ptr, q_bufs.index(0), k_bufs, v_bufs, k_full, k_empty, v_full, v_empty, query_start_ptr,
                scale_log2, q_stride_token, q_stride_head, num_kv_heads, num_seqs, num_tiles, 0,
                GROUP, TOKENS, BLOCK_N, HEAD_SIZE, STAGES,
            )),
            (_attend_rows, (
                q_ptr, out_ptr, q_bufs.index(1), k_bufs, v_bufs, k_full, k_empty, v_full, v_empty, query_start_ptr,
                scale_log2, q_stride_token, q_stride_head, num_kv_heads, num_seqs, num_tiles, 64,
                GROUP, TOKENS, BLOCK_N, HEAD_SIZE, STAGES,
            )),
            (_copy_keys_and_values, (
                k_desc, v_desc, k_bufs, v_bufs, k_full, k_empty, v_full, v_empty,
                query_start_ptr, num_kv_heads, num_seqs, num_tiles, TOKENS, BLOCK_N, HEAD_SIZE, STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def supports(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel can take a call: Hopper, 16-bit dtypes, and sizes and strides that bulk copies need."""
    if not (HAS_GLUON and query.is_cuda and torch.cuda.get_device_capability(query.device)[0] == 9):
        return False
    group, head_size = query.shape[1] // key.shape[1], query.shape[2]
    return (
        query.dtype in (torch.bfloat16, torch.float16)
        and head_size in HEAD_SIZES
        and group in (1, 2, 4, 8, 16, 32, 64)
        and all(
            x.stride()[1:] == (head_size, 1) and x.stride(0) % 8 == 0 and x.data_ptr() % 16 == 0 for x in (key, value)
        )
    )


def launch(
    query: Tensor, key: Tensor, value: Tensor, query_start_loc: Tensor, max_query_len: int, scale: float, out: Tensor
) -> None:
    """Fill `out` as flash_attn_prefill defines it; arguments for which `supports` holds."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    num_tokens, num_heads, head_size = query.shape
    num_kv_heads, num_seqs = key.shape[1], query_start_loc.shape[0] - 1
    group = num_heads // num_kv_heads
    num_tiles = triton.cdiv(max_query_len, BLOCK_M // group)
    element = gl.bfloat16 if query.dtype == torch.bfloat16 else gl.float16
    block = [BLOCK_N, head_size]
    layout = gl.NVMMASharedLayout.get_default_for(block, element)
    shape = [num_tokens, num_kv_heads * head_size]
    k_desc, v_desc = (TensorDescriptor(x, shape, [x.stride(0), 1], block, layout) for x in (key, value))
    num_programs = min(num_sms(query.device), num_tiles * num_seqs * num_kv_heads)
    _prefill_kernel[(num_programs,)](
        query, k_desc, v_desc, out, query_start_loc, scale * LOG2_E, query.stride(0), query.stride(1),
        num_kv_heads, num_seqs, num_tiles, GROUP=group, HEAD_SIZE=head_size, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
        STAGES=NUM_STAGES, num_warps=4, maxnreg=168,
    )  # fmt: skip
