"""The index of the largest logit of each row, in two launches: over blocks of each row, then over a row's blocks."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton

BLOCK = 4096


@triton.jit
def _ordered_key(x):
    """int32 in the order of float32 x, -0.0 as 0.0 and every NaN above all: what torch.argmax orders by."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(x != x, 0x7FFFFFFF, key)


@triton.jit(do_not_specialize=["num_blocks"])
def _reduce_blocks_kernel(
    logits_ptr, best_ptr, best_id_ptr, out_ptr, logits_stride, vocab_size, num_blocks,
    IS_WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    row = (pid // num_blocks).to(tl.int64)
    ids = (pid % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + row * logits_stride + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
    keys = _ordered_key(x)
    best = tl.max(keys, axis=0)
    best_id = tl.min(tl.where(keys == best, ids, 0x7FFFFFFF), axis=0)
    if IS_WHOLE:
        tl.store(out_ptr + row, best_id.to(tl.int64))
    else:
        tl.store(best_ptr + pid, best)
        tl.store(best_id_ptr + pid, best_id)


@triton.jit(do_not_specialize=["num_blocks"])
def _reduce_rows_kernel(best_ptr, best_id_ptr, out_ptr, num_blocks, BLOCK_BLOCKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.arange(0, BLOCK_BLOCKS)
    is_block = blocks < num_blocks
    best = tl.load(best_ptr + row * num_blocks + blocks, mask=is_block, other=-0x80000000)
    best_id = tl.load(best_id_ptr + row * num_blocks + blocks, mask=is_block, other=0x7FFFFFFF)
    top = tl.max(best, axis=0)
    tl.store(out_ptr + row, tl.min(tl.where(best == top, best_id, 0x7FFFFFFF), axis=0).to(tl.int64))


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
    block = min(BLOCK, triton.next_power_of_2(vocab_size))
    num_blocks = triton.cdiv(vocab_size, block)
    best, best_id = torch.empty((2, num_rows, num_blocks), dtype=torch.int32, device=logits.device)
    _reduce_blocks_kernel[(num_rows * num_blocks,)](
        logits, best, best_id, ids, logits.stride(0), vocab_size, num_blocks,
        IS_WHOLE=num_blocks == 1, BLOCK=block, num_warps=4,
    )  # fmt: skip
    if num_blocks > 1:
        _reduce_rows_kernel[(num_rows,)](
            best, best_id, ids, num_blocks, BLOCK_BLOCKS=triton.next_power_of_2(num_blocks), num_warps=1
        )
    return ids
