"""Causal prefill for Hopper: one warp copies keys and values, two groups of four multiply and take the softmax.

Written in Gluon, which exposes the bulk copies, barriers and asynchronous matrix products that
Triton's own pipelining leaves idle here. Each multiprocessor takes tiles in turn, those with the
most keys first, and copies the next tile's keys while it finishes the last.

Triton's interpreter runs no Gluon: without a GPU this kernel is compiled (tests/tasks/test_kernels_compile.py),
and only on one its answers are held against the definition (tests/gpu/test_op_errors.py).
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import HAS_GLUON, PLAN_POINTERS, gl, gluon, gpu_of, hopper, num_sms, triton
from fastkernels.kernels.flash_attn_decode import LOG2_E

HEAD_SIZES = (64, 128)
PAGE_SIZES = (16, 32, 64, 128)
BLOCK_M = 128
BLOCK_N = 128
NUM_STAGES = 2


@gluon.jit
def _locate(
    index, query_start_ptr, seq_lens_ptr, num_kv_heads, num_seqs, num_tiles, min_query_len,
    TOKENS: gl.constexpr, PAGE_SIZE: gl.constexpr,
):  # fmt: skip
    """Where a tile lies: (key head, sequence, its first row, the tile's first token, new tokens, cached tokens).

    Sequences with fewer than min_query_len new tokens count as empty; they are another kernel's.
    """
    seq = index // num_kv_heads % num_seqs
    tile = num_tiles - 1 - index // num_kv_heads // num_seqs
    first = gl.load(query_start_ptr + seq).to(gl.int32)
    length = gl.load(query_start_ptr + seq + 1).to(gl.int32) - first
    context = 0
    if PAGE_SIZE > 0:
        context = gl.load(seq_lens_ptr + seq).to(gl.int32) - length
    return index % num_kv_heads, seq, first, tile * TOKENS, gl.where(length >= min_query_len, length, 0), context


@gluon.jit
def _copy_block(
    desc, buf, full, empty, phase, row, column, table_row, block, last_page,
    PAGE_SIZE: gl.constexpr, BLOCK_N: gl.constexpr,
):  # fmt: skip
    """Ask for BLOCK_N rows of keys or values once the buffer is empty: one copy, or one a page."""
    hopper.mbarrier.wait(empty, phase ^ 1)
    hopper.mbarrier.expect(full, BLOCK_N * desc.block_type.shape[1] * 2)
    if PAGE_SIZE == 0:
        hopper.tma.async_copy_global_to_shared(desc, [row, column], full, buf)
    else:
        PAGES: gl.constexpr = BLOCK_N // PAGE_SIZE
        for i in gl.static_range(PAGES):
            # Past the sequence its last page is read again, so that the byte count stands.
            page = gl.load(table_row + gl.minimum(block * PAGES + i, last_page)).to(gl.int32)
            part = buf.slice(i * PAGE_SIZE, PAGE_SIZE, dim=0)
            hopper.tma.async_copy_global_to_shared(desc, [page * PAGE_SIZE, column], full, part)


@gluon.jit
def _copy_keys_and_values(
    k_desc, v_desc, k_bufs, v_bufs, k_full, k_empty, v_full, v_empty, query_start_ptr, seq_lens_ptr, table_ptr,
    table_stride, num_kv_heads, num_seqs, num_tiles, min_query_len,
    TOKENS: gl.constexpr, PAGE_SIZE: gl.constexpr, BLOCK_N: gl.constexpr, HEAD_SIZE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    step = 0
    for index in range(gl.program_id(0), num_tiles * num_seqs * num_kv_heads, gl.num_programs(0)):
        kv_head, seq, first, start, length, context = _locate(
            index, query_start_ptr, seq_lens_ptr, num_kv_heads, num_seqs, num_tiles, min_query_len, TOKENS, PAGE_SIZE
        )
        num_blocks = gl.where(start < length, gl.cdiv(context + gl.minimum(start + TOKENS, length), BLOCK_N), 0)
        column = kv_head * HEAD_SIZE
        table_row = table_ptr + seq.to(gl.int64) * table_stride
        last_page = 0
        if PAGE_SIZE > 0:
            last_page = (context + length - 1) // PAGE_SIZE
        for i in range(num_blocks):
            block = num_blocks - 1 - i
            stage = step % STAGES
            phase = (step // STAGES) & 1
            _copy_block(
                k_desc, k_bufs.index(stage), k_full.index(stage), k_empty.index(stage), phase,
                first + block * BLOCK_N, column, table_row, block, last_page, PAGE_SIZE, BLOCK_N,
            )  # fmt: skip
            _copy_block(
                v_desc, v_bufs.index(stage), v_full.index(stage), v_empty.index(stage), phase,
                first + block * BLOCK_N, column, table_row, block, last_page, PAGE_SIZE, BLOCK_N,
            )  # fmt: skip
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
def _copy_queries(
    q_ptr, q_buf, index, rows, dims, query_start_ptr, seq_lens_ptr, q_stride_token, q_stride_head,
    num_kv_heads, num_seqs, num_tiles, min_query_len,
    GROUP: gl.constexpr, TOKENS: gl.constexpr, PAGE_SIZE: gl.constexpr,
):  # fmt: skip
    """Start the copy of a tile's rows of the query; rows that are not there keep what they had."""
    index = gl.minimum(index, num_tiles * num_seqs * num_kv_heads - 1)
    kv_head, _seq, first, start, length, _context = _locate(
        index, query_start_ptr, seq_lens_ptr, num_kv_heads, num_seqs, num_tiles, min_query_len, TOKENS, PAGE_SIZE
    )
    token = start + rows // GROUP
    offsets = (first + token).to(gl.int64) * q_stride_token + (kv_head * GROUP + rows % GROUP) * q_stride_head
    mask = (token < length)[:, None] & (dims >= 0)
    hopper.async_copy.async_copy_global_to_shared(q_buf, q_ptr + offsets[:, None] + dims, mask)
    hopper.async_copy.commit_group()


@gluon.jit
def _attend_rows(
    q_ptr, out_ptr, q_bufs, k_bufs, v_bufs, k_full, k_empty, v_full, v_empty, query_start_ptr, seq_lens_ptr, scale_log2,
    q_stride_token, q_stride_head, num_kv_heads, num_seqs, num_tiles, min_query_len,
    HALF: gl.constexpr, GROUP: gl.constexpr, TOKENS: gl.constexpr, PAGE_SIZE: gl.constexpr,
    BLOCK_N: gl.constexpr, HEAD_SIZE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """64 rows of each tile: query heads of one key head, token by token."""
    ROWS: gl.constexpr = 64
    dtype: gl.constexpr = q_ptr.dtype.element_ty
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_SIZE, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    io_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_SIZE, HEAD_SIZE // 8], [4, 1], [1, 0])

    io_rows = HALF * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, io_layout))
    io_dims = gl.arange(0, HEAD_SIZE, gl.SliceLayout(0, io_layout))[None, :]
    s_rows = HALF * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, s_layout))
    s_keys = gl.arange(0, BLOCK_N, gl.SliceLayout(0, s_layout))[None, :]
    step = 0
    turn = 0
    _copy_queries(
        q_ptr, q_bufs.index(2 * HALF), gl.program_id(0), io_rows, io_dims, query_start_ptr, seq_lens_ptr,
        q_stride_token, q_stride_head, num_kv_heads, num_seqs, num_tiles, min_query_len, GROUP, TOKENS, PAGE_SIZE,
    )  # fmt: skip
    for index in range(gl.program_id(0), num_tiles * num_seqs * num_kv_heads, gl.num_programs(0)):
        q_buf = q_bufs.index(2 * HALF + turn)
        turn = turn ^ 1
        hopper.async_copy.wait_group(0)
        hopper.fence_async_shared()
        gl.thread_barrier()
        _copy_queries(
            q_ptr, q_bufs.index(2 * HALF + turn), index + gl.num_programs(0), io_rows, io_dims, query_start_ptr,
            seq_lens_ptr, q_stride_token, q_stride_head, num_kv_heads, num_seqs, num_tiles, min_query_len,
            GROUP, TOKENS, PAGE_SIZE,
        )  # fmt: skip
        kv_head, _seq, first, start, length, context = _locate(
            index, query_start_ptr, seq_lens_ptr, num_kv_heads, num_seqs, num_tiles, min_query_len, TOKENS, PAGE_SIZE
        )
        if start < length:
            num_blocks = gl.cdiv(context + gl.minimum(start + TOKENS, length), BLOCK_N)
            # The first key of the block at hand; blocks are taken from the last, which reaches past some rows' tokens.
            key = (num_blocks - 1) * BLOCK_N
            last_key = (context + start + s_rows // GROUP)[:, None]
            stage = step % STAGES
            phase = (step // STAGES) & 1
            hopper.mbarrier.wait(k_full.index(stage), phase)
            scores = gl.zeros([ROWS, BLOCK_N], gl.float32, s_layout)
            scores = hopper.warpgroup_mma(q_buf, k_bufs.index(stage).permute((1, 0)), scores, use_acc=False)
            hopper.mbarrier.arrive(k_empty.index(stage), count=1)
            scores = gl.where(key + s_keys <= last_key, scores, float("-inf"))
            top = gl.max(scores, axis=1) * scale_log2
            if PAGE_SIZE > 0:
                # A row whose own token lies in the block before sees nothing of this one.
                top = gl.where(top == float("-inf"), -1e30, top)
            probs = gl.exp2(scores * scale_log2 - top[:, None])
            total = gl.sum(probs, axis=1)
            p = gl.convert_layout(probs.to(dtype), p_layout)
            acc = gl.zeros([ROWS, HEAD_SIZE], gl.float32, o_layout)
            if key + BLOCK_N > context + length:
                # Rows past the sequence may hold NaN, which a zero weight does not silence.
                hopper.mbarrier.wait(v_full.index(stage), phase)
                values = v_bufs.index(stage).load(io_layout)
                is_own = key + gl.arange(0, BLOCK_N, gl.SliceLayout(1, io_layout)) < context + length
                v_bufs.index(stage).store(gl.where(is_own[:, None], values, gl.full_like(values, 0.0)))
                hopper.fence_async_shared()

            for _i in range(1, num_blocks):
                last_stage = stage
                last_phase = phase
                step += 1
                key -= BLOCK_N
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
                if PAGE_SIZE > 0:  # noqa: SIM102 (the outer one is compiled away)
                    if key + BLOCK_N - 1 > context + start:
                        scores = gl.where(key + s_keys <= last_key, scores, float("-inf"))
                new_top = gl.maximum(top, gl.max(scores, axis=1) * scale_log2)
                probs = gl.exp2(scores * scale_log2 - new_top[:, None])
                rescale = gl.exp2(top - new_top)
                total = _after(total * rescale + gl.sum(probs, axis=1))
                top = new_top
                acc, p = hopper.warpgroup_mma_wait(0, deps=(acc, gl.convert_layout(probs.to(dtype), p_layout)))
                hopper.mbarrier.arrive(v_empty.index(last_stage), count=1)
                acc = acc * gl.convert_layout(rescale, gl.SliceLayout(1, o_layout))[:, None]

            hopper.mbarrier.wait(v_full.index(stage), phase)
            acc = hopper.warpgroup_mma(p, v_bufs.index(stage), acc)
            hopper.mbarrier.arrive(v_empty.index(stage), count=1)
            step += 1
            acc = acc / gl.convert_layout(total, gl.SliceLayout(1, o_layout))[:, None]
            q_buf.store(acc.to(dtype))
            token = start + io_rows // GROUP
            out_rows = (first + token).to(gl.int64) * (num_kv_heads * GROUP) + kv_head * GROUP + io_rows % GROUP
            is_row = (token < length)[:, None]
            gl.store(out_ptr + out_rows[:, None] * HEAD_SIZE + io_dims, q_buf.load(io_layout), mask=is_row)
    hopper.async_copy.wait_group(0)


@gluon.jit(
    do_not_specialize=["table_stride", "num_kv_heads", "num_seqs", "num_tiles", "min_query_len"],
    do_not_specialize_on_alignment=PLAN_POINTERS,
)
def _flash_attn_kernel(
    q_ptr, k_desc, v_desc, out_ptr, query_start_ptr, seq_lens_ptr, table_ptr, scale_log2, q_stride_token, q_stride_head,
    table_stride, num_kv_heads, num_seqs, num_tiles, min_query_len,
    GROUP: gl.constexpr, HEAD_SIZE: gl.constexpr, PAGE_SIZE: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    TOKENS: gl.constexpr = BLOCK_M // GROUP
    dtype: gl.constexpr = k_desc.dtype
    q_bufs = gl.allocate_shared_memory(dtype, [4, BLOCK_M // 2, HEAD_SIZE], k_desc.layout)
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
                q_ptr, out_ptr, q_bufs, k_bufs, v_bufs, k_full, k_empty, v_full, v_empty,
                query_start_ptr, seq_lens_ptr, scale_log2, q_stride_token, q_stride_head,
                num_kv_heads, num_seqs, num_tiles, min_query_len,
                0, GROUP, TOKENS, PAGE_SIZE, BLOCK_N, HEAD_SIZE, STAGES,
            )),
            (_attend_rows, (
                q_ptr, out_ptr, q_bufs, k_bufs, v_bufs, k_full, k_empty, v_full, v_empty,
                query_start_ptr, seq_lens_ptr, scale_log2, q_stride_token, q_stride_head,
                num_kv_heads, num_seqs, num_tiles, min_query_len,
                1, GROUP, TOKENS, PAGE_SIZE, BLOCK_N, HEAD_SIZE, STAGES,
            )),
            (_copy_keys_and_values, (
                k_desc, v_desc, k_bufs, v_bufs, k_full, k_empty, v_full, v_empty,
                query_start_ptr, seq_lens_ptr, table_ptr, table_stride, num_kv_heads, num_seqs, num_tiles,
                min_query_len, TOKENS, PAGE_SIZE, BLOCK_N, HEAD_SIZE, STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def supports(query: Tensor, key: Tensor, value: Tensor, is_paged: bool) -> bool:
    """Whether the kernel can take a call: Hopper, 16-bit dtypes, and sizes and strides that bulk copies need."""
    if not (HAS_GLUON and gpu_of(query.device).capability[0] == 9):
        return False
    group, head_size = query.shape[1] // key.shape[-2], query.shape[2]
    if query.dtype == torch.float32 or head_size not in HEAD_SIZES or group not in (1, 2, 4, 8, 16, 32, 64):
        return False
    if is_paged and (key.shape[1] not in PAGE_SIZES or key.shape[0] * key.shape[1] >= 2**31):
        return False
    # Triton knows strides to be multiples of 16 or of nothing, and the query is copied 8 values at a time.
    return (
        query.data_ptr() % 16 == 0
        and all(stride % 16 == 0 for stride in query.stride()[:2])
        and all(x.data_ptr() % 16 == 0 and x.stride(-3) % 8 == 0 for x in (key, value))
        and all(x.stride()[-2:] == (head_size, 1) for x in (key, value))
        and (not is_paged or all(x.stride(0) == x.shape[1] * x.stride(1) for x in (key, value)))
    )


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor | None,
    block_table: Tensor | None,
    min_query_len: int,
    max_query_len: int,
    scale: float,
    out: Tensor,
) -> None:
    """As launch_tiles of flash_attn_prefill, for arguments that `supports` takes."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    num_heads, head_size = query.shape[1:]
    num_kv_heads, num_seqs = key.shape[-2], query_start_loc.shape[0] - 1
    group = num_heads // num_kv_heads
    num_tiles = triton.cdiv(max_query_len, BLOCK_M // group)
    page_size = 0 if block_table is None else key.shape[1]
    element = gl.bfloat16 if query.dtype == torch.bfloat16 else gl.float16
    block = [page_size or BLOCK_N, head_size]
    layout = gl.NVMMASharedLayout.get_default_for(block, element)
    shape = [key.numel() // (num_kv_heads * head_size), num_kv_heads * head_size]
    k_desc, v_desc = (TensorDescriptor(x, shape, [x.stride(-3), 1], block, layout) for x in (key, value))
    num_programs = min(num_sms(query.device), num_tiles * num_seqs * num_kv_heads)
    _flash_attn_kernel[(num_programs,)](
        query, k_desc, v_desc, out, query_start_loc, query_start_loc if seq_lens is None else seq_lens,
        query_start_loc if block_table is None else block_table, scale * LOG2_E, query.stride(0), query.stride(1),
        0 if block_table is None else block_table.stride(0), num_kv_heads, num_seqs, num_tiles, min_query_len,
        GROUP=group, HEAD_SIZE=head_size, PAGE_SIZE=page_size, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, STAGES=NUM_STAGES,
        num_warps=4, maxnreg=168,
    )  # fmt: skip
