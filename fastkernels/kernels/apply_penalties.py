"""Repetition, frequency and presence penalties, written over the logits of the tokens that occurred."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from torch import Tensor

from fastkernels.kernels.backend import ROW_POINTERS, check_dtypes, tl, triton

BLOCK = 4096


@triton.jit(do_not_specialize=["num_blocks"], do_not_specialize_on_alignment=ROW_POINTERS)
def _apply_penalties_kernel(
    logits_ptr, row_ptr, count_ptr, repetition_ptr, frequency_ptr, presence_ptr,
    logits_stride, count_stride, vocab_size, num_blocks, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    place = (pid // num_blocks).to(tl.int64)
    repetition = tl.load(repetition_ptr + place)
    frequency = tl.load(frequency_ptr + place)
    presence = tl.load(presence_ptr + place)
    if (repetition == 1.0) & (frequency == 0.0) & (presence == 0.0):
        return
    row = tl.load(row_ptr + place)
    ids = (pid % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    counts = tl.load(count_ptr + row * count_stride + ids, mask=ids < vocab_size, other=0)
    places = logits_ptr + place * logits_stride + ids
    x = tl.load(places, mask=counts > 0, other=0.0).to(tl.float32)
    x = tl.where(x > 0.0, x / repetition, x * repetition)
    number = counts >> 1
    x -= frequency * number.to(tl.float32) + tl.where(number > 0, presence, 0.0)
    tl.store(places, x.to(logits_ptr.dtype.element_ty), mask=counts > 0)


def apply_penalties(
    logits: Tensor, row_index: Tensor, token_counts: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor
) -> None:
    """As the op ApplyPenalties; only the logits of tokens with a count are read.

    Shapes:  logits: [num_rows, vocab_size]; token_counts: [max_rows, vocab_size]; rows of both may be strided;
             all others: [num_rows].
    Dtypes:  logits bf16, fp16 or fp32; penalties fp32; row_index int64; token_counts int32.
    Errors:  UnsupportedError for another dtype of logits.
    """
    check_dtypes("apply_penalties", logits=logits)
    num_rows, vocab_size = logits.shape
    block = min(BLOCK, triton.next_power_of_2(vocab_size))
    num_blocks = triton.cdiv(vocab_size, block)
    if num_rows:
        _apply_penalties_kernel[(num_rows * num_blocks,)](
            logits, row_index, token_counts, repetition.float(), frequency.float(), presence.float(),
            logits.stride(0), token_counts.stride(0), vocab_size, num_blocks, BLOCK=block, num_warps=4,
        )  # fmt: skip
