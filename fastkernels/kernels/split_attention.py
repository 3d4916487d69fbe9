"""The kernels of flash decoding: a program attends to a part of a sequence's pages, and the parts are merged."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from fastkernels.kernels.backend import PLAN_POINTERS, let_dependents_start, tl, triton, wait_for_dependencies


@triton.jit
def _load_keys(
    k_base, v_base, table_row, first, end,
    k_stride_page, k_stride_slot, v_stride_page, v_stride_slot,
    HEAD_SIZE: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Keys and values of positions [first, first + BLOCK_N), zero from `end` on."""
    keys = first + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    is_key = keys < end
    page = tl.load(table_row + keys // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
    slot = keys % PAGE_SIZE
    mask = is_key[:, None] & (dims[None, :] < HEAD_SIZE)
    k = tl.load(k_base + (page * k_stride_page + slot * k_stride_slot)[:, None] + dims[None, :], mask=mask, other=0.0)
    v = tl.load(v_base + (page * v_stride_page + slot * v_stride_slot)[:, None] + dims[None, :], mask=mask, other=0.0)
    return k, v


@triton.jit
def _attend(
    q, k, v, first, end, last_key, scale_log2, top, total, acc, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr
):  # fmt: skip
    """The softmax's maximum, its sum and the weighted values, with the keys of one tile added.

    WINDOW: 0, or how many keys up to its last a row sees at most.
    """
    keys = first + tl.arange(0, BLOCK_N)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    scores = tl.where((keys < end)[None, :] & (keys[None, :] <= last_key[:, None]), scores, float("-inf"))
    if WINDOW > 0:
        scores = tl.where(keys[None, :] > last_key[:, None] - WINDOW, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1))
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    probs = tl.exp2(scores - shift[:, None])
    rescale = tl.exp2(top - shift)
    total = total * rescale + tl.sum(probs, axis=1)
    acc = tl.dot(probs.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
    return new_top, total, acc


@triton.jit
def _merge(
    out_row, partial_ptr, lse_ptr, sinks_ptr, first_part, num_used, kv_head,
    GROUP: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Write one token's heads of a group: their splits weighted and summed, in the order of the splits.

    A head's sink, if it has one, is a score without a value: it comes first, and once.
    """
    rows = tl.arange(0, BLOCK_R)
    dims = tl.arange(0, BLOCK_D)
    is_row = rows < GROUP
    is_value = is_row[:, None] & (dims[None, :] < HEAD_SIZE)
    top = tl.full([BLOCK_R], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_R], dtype=tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    if HAS_SINKS:
        sinks = tl.load(sinks_ptr + kv_head * GROUP + rows, mask=is_row, other=0.0).to(tl.float32)
        top = sinks * 1.4426950408889634
        total = total + 1.0
    for first in tl.range(0, num_used, BLOCK_S, num_stages=1):
        splits = first + tl.arange(0, BLOCK_S)
        is_used = splits < num_used
        part = first_part + splits[:, None] * BLOCK_M + rows[None, :]
        mask = is_used[:, None] & is_row[None, :]
        lse = tl.load(lse_ptr + part, mask=mask, other=float("-inf"))
        values = tl.load(
            partial_ptr + part[:, :, None] * HEAD_SIZE + dims[None, None, :],
            mask=is_used[:, None, None] & is_value[None, :, :], other=0.0,
        )  # fmt: skip
        new_top = tl.maximum(top, tl.max(lse, axis=0))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(lse - shift[None, :])
        rescale = tl.exp2(top - shift)
        total = total * rescale + tl.sum(weight, axis=0)
        acc = acc * rescale[:, None] + tl.sum(values * weight[:, :, None], axis=0)
        top = new_top
    merged = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    out = out_row + rows[:, None] * HEAD_SIZE + dims[None, :]
    tl.store(out, merged.to(out_row.dtype.element_ty), mask=is_value)


@triton.jit(
    do_not_specialize=["table_stride", "num_kv_heads", "num_splits", "least_tiles"],
    do_not_specialize_on_alignment=PLAN_POINTERS,
)
def split_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, partial_ptr, lse_ptr, arrivals_ptr, query_start_ptr, seq_lens_ptr, table_ptr,
    sinks_ptr, scale_log2, q_stride_token, q_stride_head, k_stride_page, k_stride_slot, k_stride_head,
    v_stride_page, v_stride_slot, v_stride_head, table_stride, num_kv_heads, num_splits, least_tiles,
    GROUP: tl.constexpr, HEAD_SIZE: tl.constexpr, PAGE_SIZE: tl.constexpr, HAS_QUERY_START: tl.constexpr,
    IS_SPLIT: tl.constexpr, MERGES: tl.constexpr, HELD: tl.constexpr, IS_AHEAD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr, STAGES: tl.constexpr, WINDOW: tl.constexpr, HAS_SINKS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """IS_AHEAD: lengths, and of the keys held their pages and those before the newest, are read before the wait.

    HELD: of the first keys of a program so many stay in registers and are attended to last.

    least_tiles: that a split has, 1 or more: of a short sequence fewer than num_splits are used, and the others end.

    MERGES: the program that arrives last merges the splits of its sequence and key head.

    WINDOW: 0, or how many keys a row sees at most: what lies before a sequence's first window is left out of its
    splits. Sinks are added where a row is finished: in the merge, or here when there is one split.
    """
    let_dependents_start(PDL)
    if not IS_AHEAD:
        wait_for_dependencies(PDL)
    pid = tl.program_id(0)
    kv_head = pid % num_kv_heads
    split = (pid // num_kv_heads) % num_splits
    seq = (pid // num_kv_heads // num_splits).to(tl.int64)
    seq_len = tl.load(seq_lens_ptr + seq)
    if HAS_QUERY_START:
        first_token = tl.load(query_start_ptr + seq).to(tl.int64)
        query_len = (tl.load(query_start_ptr + seq + 1) - first_token).to(tl.int32)
        if query_len > BLOCK_M // GROUP:
            return
    else:
        first_token = seq
        query_len = 1
    if WINDOW > 0:
        first_key = tl.maximum(seq_len - query_len - WINDOW + 1, 0)
        num_keys = seq_len - first_key
    else:
        num_keys = seq_len
    tiles_each = tl.maximum(tl.cdiv(tl.cdiv(num_keys, BLOCK_N), num_splits), least_tiles)
    begin = split * tiles_each * BLOCK_N
    if WINDOW > 0:
        begin += first_key
    end = tl.minimum(begin + tiles_each * BLOCK_N, seq_len)
    is_idle = begin >= end
    if MERGES:
        is_idle = is_idle & (split > 0)
    if IS_SPLIT and is_idle:
        if IS_AHEAD:
            wait_for_dependencies(PDL)
        return

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    is_dim = dims[None, :] < HEAD_SIZE
    token = rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    is_row = token < query_len
    last_key = seq_len - query_len + token
    table_row = table_ptr + seq * table_stride
    k_base = k_ptr + kv_head.to(tl.int64) * k_stride_head
    v_base = v_ptr + kv_head.to(tl.int64) * v_stride_head
    newest = seq_len - 1
    ROW_WINDOW: tl.constexpr = WINDOW if HAS_QUERY_START else 0  # a single new token's splits begin at its window
    if IS_AHEAD and HELD == 0:
        wait_for_dependencies(PDL)
    if HELD > 0:
        k_held, v_held = _load_keys(
            k_base, v_base, table_row, begin, tl.minimum(end, newest) if IS_AHEAD else end,
            k_stride_page, k_stride_slot, v_stride_page, v_stride_slot, HEAD_SIZE, PAGE_SIZE, HELD, BLOCK_D,
        )  # fmt: skip
    if IS_AHEAD and HELD > 0:
        is_held = (newest >= begin) & (newest < tl.minimum(begin + HELD, end))
        new_page = tl.load(table_row + newest // PAGE_SIZE, mask=is_held, other=0).to(tl.int64)
        wait_for_dependencies(PDL)
        is_read = is_held & (dims < HEAD_SIZE)
        new_slot = newest % PAGE_SIZE
        k_new = tl.load(k_base + new_page * k_stride_page + new_slot * k_stride_slot + dims, mask=is_read, other=0.0)
        v_new = tl.load(v_base + new_page * v_stride_page + new_slot * v_stride_slot + dims, mask=is_read, other=0.0)
    q_offsets = (first_token + token)[:, None] * q_stride_token + head[:, None] * q_stride_head + dims[None, :]
    q = tl.load(q_ptr + q_offsets, mask=is_row[:, None] & is_dim, other=0.0)

    top = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    for start in tl.range(begin + HELD, end, BLOCK_N, num_stages=STAGES):
        k, v = _load_keys(
            k_base, v_base, table_row, start, end,
            k_stride_page, k_stride_slot, v_stride_page, v_stride_slot, HEAD_SIZE, PAGE_SIZE, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        top, total, acc = _attend(q, k, v, start, end, last_key, scale_log2, top, total, acc, BLOCK_N, ROW_WINDOW)
    if HELD > 0:
        if IS_AHEAD:
            is_new = (begin + tl.arange(0, HELD) == newest)[:, None]
            k_held = tl.where(is_new, k_new[None, :], k_held)
            v_held = tl.where(is_new, v_new[None, :], v_held)
        top, total, acc = _attend(
            q, k_held, v_held, begin, end, last_key, scale_log2, top, total, acc, HELD, ROW_WINDOW
        )

    if HAS_SINKS and not IS_SPLIT:
        sinks = tl.load(sinks_ptr + head).to(tl.float32) * 1.4426950408889634
        shift = tl.maximum(top, sinks)
        rescale = tl.exp2(top - shift)
        total = total * rescale + tl.exp2(sinks - shift)
        acc = acc * rescale[:, None]
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    mask = is_row[:, None] & is_dim
    num_heads = num_kv_heads * GROUP
    if IS_SPLIT:
        first_part = (seq * num_kv_heads + kv_head) * num_splits * BLOCK_M
        part = first_part + split * BLOCK_M + rows
        tl.store(partial_ptr + part[:, None] * HEAD_SIZE + dims[None, :], acc, mask=mask)
        tl.store(lse_ptr + part, top + tl.log2(tl.where(total == 0.0, 1.0, total)), mask=is_row)
        if MERGES:
            num_used = tl.maximum(tl.cdiv(num_keys, tl.maximum(tiles_each, 1) * BLOCK_N), 1)
            arrivals = arrivals_ptr + seq * num_kv_heads + kv_head
            tl.debug_barrier()  # all of this program's values are written before it arrives
            if tl.atomic_add(arrivals, 1, sem="acq_rel") == num_used - 1:
                tl.store(arrivals, 0)
                out_row = out_ptr + (first_token * num_heads + kv_head * GROUP) * HEAD_SIZE
                _merge(
                    out_row, partial_ptr, lse_ptr, sinks_ptr, first_part, num_used, kv_head,
                    GROUP, HEAD_SIZE, BLOCK_M, BLOCK_R, BLOCK_D, BLOCK_S, HAS_SINKS,
                )  # fmt: skip
    else:
        out_offsets = ((first_token + token)[:, None] * num_heads + head[:, None]) * HEAD_SIZE + dims[None, :]
        tl.store(out_ptr + out_offsets, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=["num_kv_heads", "num_splits", "least_tiles", "num_tokens"],
    do_not_specialize_on_alignment=PLAN_POINTERS,
)
def merge_kernel(
    out_ptr, partial_ptr, lse_ptr, query_start_ptr, seq_lens_ptr, sinks_ptr, num_kv_heads, num_splits,
    least_tiles, num_tokens,
    GROUP: tl.constexpr, HEAD_SIZE: tl.constexpr, HAS_QUERY_START: tl.constexpr, IS_AHEAD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr, WINDOW: tl.constexpr, HAS_SINKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    if not IS_AHEAD:
        wait_for_dependencies(PDL)
    pid = tl.program_id(0)
    token = pid % num_tokens
    kv_head = (pid // num_tokens) % num_kv_heads
    seq = (pid // num_tokens // num_kv_heads).to(tl.int64)
    first_token = seq
    if HAS_QUERY_START:
        first_token = tl.load(query_start_ptr + seq).to(tl.int64)
        query_len = (tl.load(query_start_ptr + seq + 1) - first_token).to(tl.int32)
        if (token >= query_len) | (query_len > BLOCK_M // GROUP):
            return
    else:
        query_len = 1
    num_keys = tl.load(seq_lens_ptr + seq)
    if WINDOW > 0:
        num_keys = tl.minimum(num_keys, query_len + WINDOW - 1)
    num_tiles = tl.cdiv(num_keys, BLOCK_N)
    num_used = tl.cdiv(num_tiles, tl.maximum(tl.cdiv(num_tiles, num_splits), least_tiles))
    first_part = (seq * num_kv_heads + kv_head) * num_splits * BLOCK_M + token * GROUP
    out_row = out_ptr + ((first_token + token) * num_kv_heads + kv_head) * GROUP * HEAD_SIZE
    if IS_AHEAD:
        wait_for_dependencies(PDL)
    _merge(
        out_row, partial_ptr, lse_ptr, sinks_ptr, first_part, num_used, kv_head,
        GROUP, HEAD_SIZE, BLOCK_M, BLOCK_R, BLOCK_D, BLOCK_S, HAS_SINKS,
    )  # fmt: skip
