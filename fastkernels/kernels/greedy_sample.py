"""The index of the largest logit of each row, in two launches: the largest of each block, then its place in its block.

The first reads all logits and is bound by instructions, not by memory: it takes one maximum a logit and no index.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton

BLOCK = 4096
CHUNK = 1024
"""Logits that a program loads at once, 16 bytes a thread where they have 16 bits."""


@triton.jit
def _ordered_key(x):
    """int32 in the order of float32 x, -0.0 as 0.0 and every NaN above all: what torch.argmax orders by."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(x != x, 0x7FFFFFFF, key)


@triton.jit(do_not_specialize=["num_blocks"])
def _block_max_kernel(
    logits_ptr, best_ptr, logits_stride, vocab_size, num_blocks, BLOCK: tl.constexpr, CHUNK: tl.constexpr
):
    pid = tl.program_id(0)
    row_ptr = logits_ptr + (pid // num_blocks).to(tl.int64) * logits_stride
    ids = (pid % num_blocks) * BLOCK + tl.arange(0, CHUNK)
    top = tl.full([CHUNK], float("-inf"), dtype=tl.float32)
    for start in tl.static_range(0, BLOCK, CHUNK):
        x = tl.load(row_ptr + start + ids, mask=start + ids < vocab_size, other=float("-inf")).to(tl.float32)
        top = tl.maximum(top, x, propagate_nan=tl.PropagateNan.ALL)
    tl.store(best_ptr + pid, tl.max(_ordered_key(top), axis=0))


@triton.jit(do_not_specialize=["num_blocks"])
def _find_kernel(
    logits_ptr, best_ptr, out_ptr, logits_stride, vocab_size, num_blocks,
    IS_WHOLE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_BLOCKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start = 0
    if not IS_WHOLE:
        blocks = tl.arange(0, BLOCK_BLOCKS)
        best = tl.load(best_ptr + row * num_blocks + blocks, mask=blocks < num_blocks, other=-0x80000000)
        start = tl.min(tl.where(best == tl.max(best, axis=0), blocks, 0x7FFFFFFF), axis=0) * BLOCK
    ids = start + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + row * logits_stride + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
    keys = _ordered_key(x)
    place = tl.min(tl.where(keys == tl.max(keys, axis=0), ids, 0x7FFFFFFF), axis=0)
    tl.store(out_ptr + row, place.to(tl.int64))


def greedy_sample(logits: Tensor) -> Tensor:
    """The lowest index of the largest logit; NaN counts as the largest.

    Shapes:  logits: [num_rows, vocab_size], rows may be strided; the result: [num_rows].
    Dtypes:  logits bf16, fp16 or fp32; the result int64.
    Errors:  UnsupportedError for another dtype.
    """
    check_dtypes("greedy_sample", logits=logits)
    num_rows, vocab_size = logits.shape
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows == 0:
        return ids
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    # With rows enough for every multiprocessor, longer chains of loads hide more of the memory's latency.
    block = min(BLOCK if num_rows < 128 else 2 * BLOCK, triton.next_power_of_2(vocab_size))
    num_blocks = triton.cdiv(vocab_size, block)
    best = torch.empty((num_rows, num_blocks), dtype=torch.int32, device=logits.device)
    if num_blocks > 1:
        _block_max_kernel[(num_rows * num_blocks,)](
            logits, best, logits.stride(0), vocab_size, num_blocks, BLOCK=block, CHUNK=CHUNK, num_warps=4
        )
    _find_kernel[(num_rows,)](
        logits, best, ids, logits.stride(0), vocab_size, num_blocks,
        IS_WHOLE=num_blocks == 1, BLOCK=block, BLOCK_BLOCKS=triton.next_power_of_2(num_blocks), num_warps=8,
    )  # fmt: skip
    return ids
