"""Minus infinity over the logits whose bit is not set."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from torch import Tensor

from fastkernels.kernels.backend import ROW_POINTERS, check_dtypes, tl, triton

BLOCK = 4096


@triton.jit(do_not_specialize=["num_blocks"], do_not_specialize_on_alignment=ROW_POINTERS)
def _apply_token_bitmask_kernel(
    logits_ptr, bitmask_ptr, mask_index_ptr, logits_stride, bitmask_stride, vocab_size, num_blocks,
    BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    place = (pid // num_blocks).to(tl.int64)
    row = tl.load(mask_index_ptr + place).to(tl.int64)
    if row < 0:
        return
    ids = (pid % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(bitmask_ptr + row * bitmask_stride + (ids >> 5), mask=ids < vocab_size, other=-1)
    is_barred = ((words >> (ids & 31)) & 1) == 0
    lowest = tl.full([BLOCK], float("-inf"), dtype=logits_ptr.dtype.element_ty)
    tl.store(logits_ptr + place * logits_stride + ids, lowest, mask=is_barred)


def apply_token_bitmask(logits: Tensor, bitmask: Tensor, mask_index: Tensor) -> None:
    """As the op ApplyTokenBitmask; no logit is read.

    Shapes:  logits: [num_rows, vocab_size], rows may be strided; bitmask: [num_masks, at least vocab_size / 32];
             mask_index: [num_rows].
    Dtypes:  logits bf16, fp16 or fp32; bitmask int32; mask_index int32 or int64.
    Errors:  UnsupportedError for another dtype of logits.
    """
    check_dtypes("apply_token_bitmask", logits=logits)
    num_rows, vocab_size = logits.shape
    block = min(BLOCK, triton.next_power_of_2(vocab_size))
    num_blocks = triton.cdiv(vocab_size, block)
    if num_rows:
        _apply_token_bitmask_kernel[(num_rows * num_blocks,)](
            logits, bitmask, mask_index, logits.stride(0), bitmask.stride(0), vocab_size, num_blocks,
            BLOCK=block, num_warps=4,
        )  # fmt: skip
