"""Minus infinity over the logits of tokens much less likely than the likeliest: maxima by block, then the cut."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import ROW_POINTERS, check_dtypes, tl, triton

BLOCK = 4096


@triton.jit(do_not_specialize=["num_blocks"], do_not_specialize_on_alignment=ROW_POINTERS)
def _block_max_kernel(logits_ptr, min_p_ptr, max_ptr, logits_stride, vocab_size, num_blocks, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    row = (pid // num_blocks).to(tl.int64)
    if tl.load(min_p_ptr + row) <= 0.0:
        return
    ids = (pid % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + row * logits_stride + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
    tl.store(max_ptr + pid, tl.max(x, axis=0))


@triton.jit(do_not_specialize=["num_blocks"], do_not_specialize_on_alignment=ROW_POINTERS)
def _cut_kernel(
    logits_ptr, temperature_ptr, min_p_ptr, max_ptr, logits_stride, vocab_size, num_blocks,
    BLOCK: tl.constexpr, BLOCK_BLOCKS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    row = (pid // num_blocks).to(tl.int64)
    p = tl.load(min_p_ptr + row)
    if p <= 0.0:
        return
    blocks = tl.arange(0, BLOCK_BLOCKS)
    top = tl.max(tl.load(max_ptr + row * num_blocks + blocks, mask=blocks < num_blocks, other=float("-inf")), axis=0)
    least = top.to(tl.float64) + tl.load(temperature_ptr + row).to(tl.float64) * tl.log(p.to(tl.float64))
    # x < least in float64, decided in float32: `nearest` itself is out when it was rounded down.
    nearest = least.to(tl.float32)
    ids = (pid % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    places = logits_ptr + row * logits_stride + ids
    x = tl.load(places, mask=ids < vocab_size, other=float("inf")).to(tl.float32)
    is_cut = tl.where(nearest.to(tl.float64) < least, x <= nearest, x < nearest)
    lowest = tl.full([BLOCK], float("-inf"), dtype=logits_ptr.dtype.element_ty)
    tl.store(places, lowest, mask=is_cut & (ids < vocab_size))


def min_p(logits: Tensor, temperature: Tensor, min_p: Tensor) -> None:
    """As the op MinP; rows whose min_p is 0 are not read.

    Shapes:  logits: [num_rows, vocab_size], rows may be strided; temperature, min_p: [num_rows].
    Dtypes:  logits bf16, fp16 or fp32; temperature, min_p fp32.
    Errors:  UnsupportedError for another dtype of logits.
    """
    check_dtypes("min_p", logits=logits)
    num_rows, vocab_size = logits.shape
    if num_rows == 0:
        return
    block = min(BLOCK, triton.next_power_of_2(vocab_size))
    num_blocks = triton.cdiv(vocab_size, block)
    tops = torch.empty((num_rows, num_blocks), dtype=torch.float32, device=logits.device)
    temperature, min_p = temperature.float(), min_p.float()
    grid = (num_rows * num_blocks,)
    _block_max_kernel[grid](logits, min_p, tops, logits.stride(0), vocab_size, num_blocks, BLOCK=block, num_warps=4)
    _cut_kernel[grid](
        logits, temperature, min_p, tops, logits.stride(0), vocab_size, num_blocks,
        BLOCK=block, BLOCK_BLOCKS=triton.next_power_of_2(num_blocks), num_warps=4,
    )  # fmt: skip
