"""Write the keys and values of new tokens into their slots of the paged cache."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.kernels.backend import dependent_launch, let_dependents_start, tl, triton, wait_for_dependencies


@triton.jit(do_not_specialize=["num_tokens", "num_heads"])
def _store_kvcache_kernel(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slot_ptr,
    k_stride_token, k_stride_head, v_stride_token, v_stride_head,
    k_stride_page, k_stride_slot, k_cache_stride_head, v_stride_page, v_stride_slot, v_cache_stride_head,
    num_tokens, num_heads, width,
    PAGE_SIZE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    pid = tl.program_id(0)
    head = pid % num_heads
    tokens = (pid // num_heads).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_token = tokens < num_tokens
    slots = tl.load(slot_ptr + tokens, mask=is_token, other=-1).to(tl.int64)
    is_stored = (slots >= 0)[:, None]
    page = (slots // PAGE_SIZE)[:, None]
    offset = (slots % PAGE_SIZE)[:, None]
    for start in range(0, width, BLOCK_W):
        cols = start + tl.arange(0, BLOCK_W)[None, :]
        # Rows that are not stored are read as well: then no load waits for the slots.
        is_read = is_token[:, None] & (cols < width)
        key = tl.load(k_ptr + tokens[:, None] * k_stride_token + head * k_stride_head + cols, mask=is_read)
        value = tl.load(v_ptr + tokens[:, None] * v_stride_token + head * v_stride_head + cols, mask=is_read)
        mask = is_stored & (cols < width)
        k_out = k_cache_ptr + page * k_stride_page + offset * k_stride_slot + head * k_cache_stride_head
        v_out = v_cache_ptr + page * v_stride_page + offset * v_stride_slot + head * v_cache_stride_head
        tl.store(k_out + cols, key, mask=mask)
        tl.store(v_out + cols, value, mask=mask)


def tile(num_tokens: int, width: int) -> tuple[int, int, int]:
    """(tokens, columns, warps) of one program: 8 values a thread, more tokens where rows are narrow."""
    block_w = min(1024, triton.next_power_of_2(width))
    block_t = 1 if num_tokens < 1024 else 2048 // block_w
    return block_t, block_w, max(1, min(8, block_t * block_w // 256))


def store_kvcache(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    """cache[slot // page_size, slot % page_size] = row, for key and value; negative slots are skipped.

    Shapes:  key, value: [num_tokens, num_kv_heads, head_size], tokens and heads may be strided;
             key_cache, value_cache: [num_pages, page_size, num_kv_heads, head_size], written to;
             slot_mapping: [num_tokens] of integers.
    Errors:  UnsupportedError when the dtypes differ or a last axis is not dense in the cache.
    """
    if not key.dtype == value.dtype == key_cache.dtype == value_cache.dtype:
        raise UnsupportedError(
            "store_kvcache copies bits: key, value and both caches must have one dtype, got "
            f"{key.dtype}, {value.dtype}, {key_cache.dtype}, {value_cache.dtype}."
        )
    if key_cache.stride(3) != 1 or value_cache.stride(3) != 1:
        raise UnsupportedError(
            "store_kvcache needs caches whose last axis is dense, got strides "
            f"{key_cache.stride()} and {value_cache.stride()}."
        )
    if key.numel() == 0:
        return
    key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (key, value))
    _, num_heads, head_size = key.shape
    tensors = (key, value, key_cache, value_cache)
    if all(x.stride(-2) == head_size for x in tensors) or num_heads == 1:
        num_heads, head_size = 1, num_heads * head_size
    block_t, block_w, warps = tile(key.shape[0], head_size)
    _store_kvcache_kernel[(triton.cdiv(key.shape[0], block_t) * num_heads,)](
        *tensors, slot_mapping,
        key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        *key_cache.stride()[:3], *value_cache.stride()[:3],
        key.shape[0], num_heads, head_size,
        PAGE_SIZE=key_cache.shape[1], BLOCK_T=block_t, BLOCK_W=block_w, num_warps=warps,
        **dependent_launch(key.device),
    )  # fmt: skip
